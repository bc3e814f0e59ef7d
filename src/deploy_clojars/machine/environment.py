"""The environment of what is not the application: the tests, the build, the hook; and files of variables."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Mapping

from deploy_clojars.machine.processes import RUN_VARIABLE

# What a build may see of the login shell. Not DATABASE_URL, MAIL_URL, KEY_FILE or CLASSPATH: the
# production user's shell may export them, and tests would run on the live database.
LET_THROUGH = ("PATH", "USER", "LANG", "TMPDIR")
LET_THROUGH_PREFIXES = ("LC_", "LEIN_", "JAVA_")
LET_THROUGH_SUFFIXES = ("_proxy", "_PROXY")


def environment(
    allowed: tuple[str, ...], run_id: str, outer: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The environment of the tests and the build, from the tool's own; `allowed` adds names."""
    inner = {
        name: value
        for name, value in outer.items()
        if name in LET_THROUGH
        or name in allowed
        or name.startswith(LET_THROUGH_PREFIXES)
        or name.endswith(LET_THROUGH_SUFFIXES)
    }
    try:
        user = pwd.getpwuid(os.geteuid())
        inner["HOME"] = user.pw_dir
        inner.setdefault("USER", user.pw_name)
    except KeyError:  # as in a container; a deploy without $HOME is refused
        inner["HOME"] = outer.get("HOME", "/")
    if os.geteuid() == 0:
        inner.setdefault("LEIN_ROOT", "1")  # upstream's script asks otherwise
    inner[RUN_VARIABLE] = run_id
    return inner


# A line of an EnvironmentFile: the name, the quoted parts, the rest; see systemd.exec(5).
_ASSIGNMENT = re.compile(
    r"""^[ \t]*([A-Za-z_]\w*)[ \t]*=[ \t]*((?:(?:'[^']*'|"(?:\\.|[^"\\])*")[ \t]*)*)((?:\\.|[^\n\\])*)$""",
    re.MULTILINE | re.DOTALL | re.ASCII,
)
_QUOTED = re.compile(r"""'([^']*)'|"((?:\\.|[^"\\])*)\"""", re.DOTALL)


def assignments(text: str) -> dict[str, str]:
    """The variables of a file of NAME=VALUE lines, as systemd reads it; other lines are skipped."""
    return {name: _value(quoted, rest) for name, quoted, rest in _ASSIGNMENT.findall(text)}


def _value(quoted: str, rest: str) -> str:
    parts = [
        single or re.sub(r'\\(["\\`$\n])', _escaped, double)
        for single, double in _QUOTED.findall(quoted)
    ]
    # A blank at the end that is escaped stays.
    bare = re.sub(r"(?<!\\)[ \t\r]+$", "", rest)
    return "".join([*parts, re.sub(r"\\(.)", _escaped, bare, flags=re.DOTALL)])


def _escaped(found: re.Match[str]) -> str:
    return "" if found[1] == "\n" else found[1]


def why_for_a_shell(line: str) -> str | None:
    """Why systemd does not read a line of an EnvironmentFile as a shell would; None if it does."""
    if re.match(r"\s*export\s", line):
        return "systemd skips a line with `export`"
    if re.match(r"\s*[A-Za-z_]\w*=", line):
        value = re.sub(r"'[^']*'", "", line)
        if re.search(r"\$[\w({]|`", value):
            return "systemd takes the `$` or backquote literally"
        if re.search(r"\s#", re.sub(r'"[^"]*"', "", value)):
            return "systemd takes the comment as part of the value"
    return None
