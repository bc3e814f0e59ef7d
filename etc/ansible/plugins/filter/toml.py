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
        yield f"[{'.'.join(map(key, path))}]"
    for name, value in keys.items():
        if name not in tables:
            yield f"{key(name)} = {written(value)}"
    for name, table in tables.items():
        yield from lines(table, (*path, name))


def key(name):
    """The name, quoted."""
    return json.dumps(str(name))


def written(value):
    """A value; JSON and TOML write those of these types alike."""
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key(name)} = {written(each)}' for name, each in value.items())}}}"
    if isinstance(value, (bool, int, float, str)):
        return json.dumps(value)
    raise AnsibleFilterError(f"{value!r} cannot be written as TOML")


class FilterModule:
    """The filter of the role host."""

    def filters(self):
        """The filter by name."""
        return {"to_toml": to_toml}
