"""nginx as the drain needs it: its flag, what it says of itself, and which visitors are its own."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from deploy_clojars import config
from deploy_clojars.errors import DeployError, NotDrained
from deploy_clojars.machine import processes
from deploy_clojars.machine.connections import Visitor

# nginx and what is based on it: the name of the program, its processes and its service.
NAMES = ("nginx", "angie", "openresty", "freenginx", "tengine")

PROBE_SECONDS = 3.0

# What the probe answers: who gets new requests first.
PRIMARY_FIRST, BACKUP_FIRST = "primary", "backup"


class Nginx:
    """The nginx in front of the two instances. It looks at the flag's file at every request."""

    def __init__(self, settings: config.Drain) -> None:
        self.flag = Path(settings.flag)
        self.probe = settings.probe

    def answer(self) -> str:
        """What the probe answers, `primary` or `backup`, or else why there is no such answer."""
        from deploy_clojars.machine import web  # `status` has no use for it

        answer = web.get(self.probe, PROBE_SECONDS, max_body=100)
        return answer.body.decode(errors="replace").strip() if answer.status == 200 else str(answer)

    @property
    def answers(self) -> bool:
        """Whether the probe says who is first; if it does not, nothing is drained."""
        return self.answer() in (PRIMARY_FIRST, BACKUP_FIRST)

    @property
    def flag_is_set(self) -> bool:
        """Whether the flag makes nginx prefer the backup; a directory in its place does not."""
        return self.flag.is_file()

    def set_flag(self) -> None:
        """Tells nginx to prefer the backup. Raises NotDrained (6)."""
        try:
            # Not through a link: whoever made it would choose the file that is created.
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(self.flag, flags, 0o644))
        except OSError as error:
            message = f"the drain flag {self.flag} cannot be created: {error.strerror}"
            raise NotDrained(message) from None

    def remove_flag(self) -> None:
        """Tells nginx to prefer the primary. Raises DeployError."""
        try:
            self.flag.unlink(missing_ok=True)
        except OSError as error:
            message = f"the drain flag {self.flag} cannot be removed: {error.strerror}"
            raise DeployError(message) from None

    @property
    def why_no_flag(self) -> str | None:
        """Why this user cannot set and remove the flag, or None."""
        directory = self.flag.parent
        if not directory.is_dir():
            return f"{directory}, the drain flag's directory, does not exist"
        if not os.access(directory, os.W_OK | os.X_OK):
            return f"{directory}, the drain flag's directory, cannot be written by this user"
        if os.path.lexists(self.flag) and (self.flag.is_symlink() or not self.flag.is_file()):
            return f"the drain flag {self.flag} exists and is not a regular file"
        return None


@dataclass(frozen=True)
class Processes:
    """nginx's processes: their users, and their sockets as far as this user may see them."""

    uids: frozenset[int] = frozenset()
    sockets: frozenset[int] = frozenset()
    visible: bool = False  # whether all of their sockets are


def names_running() -> set[str]:
    """Which of NAMES have a running process."""
    return {process.info["name"] for process in psutil.process_iter(["name"])}.intersection(NAMES)


def own_processes() -> Processes:
    """Finds nginx's processes; a reload starts new ones, so ask again each time."""
    uids: set[int] = set()
    sockets: set[int] = set()
    visible = True
    for process in psutil.process_iter(["name"]):
        if process.info["name"] not in NAMES:
            continue
        with suppress(psutil.Error):
            uids.add(process.uids().effective)
            seen, its_sockets = processes.sockets_of(process.pid)
            visible = visible and seen
            sockets |= its_sockets
    return Processes(frozenset(uids), frozenset(sockets), visible and bool(uids))


def visitors_from(nginx: Processes, visitors: Iterable[Visitor]) -> list[Visitor]:
    """The visitors that are nginx; the others connect to the port directly, as a browser may.

    Of another user's connection only the user is known. What may be nginx counts as nginx: waiting
    too long is better than losing a request.
    """
    return [visitor for visitor in visitors if visitor.local and _may_be(nginx, visitor)]


def _may_be(nginx: Processes, visitor: Visitor) -> bool:
    if visitor.inode == 0:
        return True  # its process has closed it, and the instance may still be at work on it
    if nginx.visible:
        return visitor.inode in nginx.sockets
    if nginx.uids:
        return visitor.uid in nginx.uids
    return visitor.uid != os.geteuid()  # nginx's processes are hidden; this user's own are not it
