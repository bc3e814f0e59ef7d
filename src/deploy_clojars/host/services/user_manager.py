"""The systemd of a user's own: where it is, and how long it runs."""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from pathlib import Path

from deploy_clojars.host.users import user_name


def runtime_directory(user: int) -> str:
    """Where a user's own manager is: $XDG_RUNTIME_DIR, which `sudo -iu` and cron may not set."""
    named = os.environ.get("XDG_RUNTIME_DIR", "")
    with suppress(OSError):
        if os.stat(f"{named}/systemd/private").st_uid == user:
            return named
    return f"/run/user/{user}"


def is_lingering(user: int, root: Path = Path("/")) -> bool:
    """Whether the user's own manager runs from boot on, and not only while they are logged in.

    `root` stands for /.
    """
    return (root / "var/lib/systemd/linger" / user_name(user)).exists()


def enable_lingering(user: int) -> str:
    """The command that makes the user's own manager run, now and from boot on."""
    return _by_root("loginctl", "enable-linger", user_name(user))


def without_one(user: int, said: str) -> tuple[str, str]:
    """What it means that systemctl cannot reach the user's own manager, and what to do."""
    remedy = enable_lingering(user)
    if is_lingering(user):  # then it was started at boot, and has ended
        remedy = _by_root("systemctl", "restart", f"user@{user}.service")
    return f"{user_name(user)} has no systemd of their own ({said})", remedy


def _by_root(*words: str) -> str:
    return f"{'as root: ' * (os.geteuid() != 0)}{shlex.join(words)}"
