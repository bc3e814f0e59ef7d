"""Users: who asked, whose host it is, and whether this one may change it."""

from __future__ import annotations

import os
import pwd
import shlex
from typing import TYPE_CHECKING

from deploy_clojars.config import DEFAULT_FILE
from deploy_clojars.errors import NotReady, UsageError

if TYPE_CHECKING:
    from deploy_clojars.host.host import Host


def user_name(uid: int | None = None) -> str:
    """The name of a user (default: this process's), or its number if it has none."""
    uid = os.geteuid() if uid is None else uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def operator() -> str:
    """Who asked: the user behind sudo, not the production user."""
    name = os.environ.get("SUDO_USER") or user_name()
    return name.encode("utf-8", "backslashreplace").decode()


def refuse_the_wrong_user(host: Host, command: str, version: str | None) -> None:
    """Only the owner of `releases/` changes anything: what root made, the user could not repair.

    Raises UsageError (2), or NotReady (4) if there is no such directory.
    """
    directory = host.releases.directory
    try:
        owner = os.stat(directory).st_uid
    except OSError as error:
        raise NotReady(
            f"{directory}: {error.strerror}",
            remedy=f"as root: install -d -o USER -g USER {directory}, with the user of the site",
        ) from None
    whose_home = host.owner
    if whose_home is not None and owner != whose_home:
        whose = user_name(whose_home)
        raise NotReady(
            f"{directory} belongs to {user_name(owner)}, and {host.home} is the home of {whose}",
            remedy=f"as root: {shlex.join(['chown', whose, str(directory)])}",
        )
    if owner != os.geteuid():
        # sudo -i passes no variable on, DEPLOY_CLOJARS_CONFIG included.
        named = host.file is not None and host.file != DEFAULT_FILE
        words = ["deploy-clojars", *(["-c", str(host.file)] if named else []), command]
        typed = shlex.join([*words, *([version] if version else [])])
        raise UsageError(
            f"{directory} belongs to {user_name(owner)}, and this is {user_name()}",
            remedy=f"sudo -iu {user_name(owner)} {typed}",
        )
    if not os.access(directory, os.W_OK | os.X_OK):
        raise NotReady(f"{directory} cannot be written by {user_name()}")
