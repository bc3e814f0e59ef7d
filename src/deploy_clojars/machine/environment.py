"""The environment of what is not the application: the tests, the build, the hook."""

from __future__ import annotations

import os
import pwd
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
