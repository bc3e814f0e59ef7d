# Copyright: the authors of deploy-clojars
# MIT License (see https://opensource.org/license/mit)
"""TOML from variables, as far as the configuration of deploy-clojars needs it."""

from __future__ import annotations

import json

from ansible.errors import AnsibleFilterError


def to_toml(keys):
    """The TOML document with these keys; a dictionary is a table."""
    return "".join(f"{line}\n" for line in lines(keys, ()))


def lines(keys, path):
    """The lines of a table: its own keys first, then the tables in it."""
    tables = {name: value for name, value in keys.items() if isinstance(value, dict)}
    if path and len(tables) < len(keys):
        yield f"[{'.'.join(map(quoted, path))}]"
    for name, value in keys.items():
        if name not in tables:
            yield f"{quoted(name)} = {written(value, (*path, name))}"
    for name, table in tables.items():
        yield from lines(table, (*path, name))


def written(value, path):
    """A value; `path` is that of its key, for the error message."""
    if isinstance(value, list):
        return f"[{', '.join(written(each, path) for each in value)}]"
    if isinstance(value, dict):
        pairs = (f"{quoted(name)} = {written(each, (*path, name))}" for name, each in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, float):
        return str(float(value))  # JSON has `Infinity` where TOML has `inf`
    if isinstance(value, (bool, int)):
        return json.dumps(value)
    raise AnsibleFilterError(f"{'.'.join(map(str, path))}: {value!r} cannot be written as TOML")


def quoted(text):
    """A string; TOML has no surrogates, and unlike JSON takes DEL only escaped."""
    return json.dumps(str(text), ensure_ascii=False).replace("\x7f", "\\u007f")


class FilterModule:
    """The filter of the role host."""

    def filters(self):
        """The filter by name."""
        return {"to_toml": to_toml}
