"""Watchers that look all the time while the tool is hit: at the link, the releases and the site."""

from __future__ import annotations

import ctypes
import os
import select
import struct
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from little_host import LittleHost

# inotify(7)
MODIFY, CLOSE_WRITE, MOVED_FROM, MOVED_TO = 0x02, 0x08, 0x40, 0x80
CREATE, DELETE, QUEUE_OVERFLOW = 0x100, 0x200, 0x4000
HEADER = struct.Struct("iIII")

LINK_SECONDS = 0.1  # between two looks at the link if the kernel tells of no change
SITE_SECONDS = 0.1  # between two looks at the site; an instance takes longer to start


def watch(directory: Path, mask: int) -> int:
    """A descriptor that can be read when something has changed in the directory."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = int(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    watched = libc.inotify_add_watch(descriptor, os.fsencode(directory), ctypes.c_uint32(mask))
    if descriptor < 0 or watched < 0:
        raise OSError(ctypes.get_errno(), "inotify")
    return descriptor


def drain(descriptor: int) -> bytes:
    """What the kernel has to tell by now."""
    received = b""
    with suppress(BlockingIOError):
        while more := os.read(descriptor, 65536):
            received += more
    return received


class Watcher(threading.Thread):
    """Looks until it is closed; what it must never see is in `violations`."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.violations: list[str] = []
        self._ended = threading.Event()

    def close(self) -> None:
        """Ends the watch."""
        self._ended.set()
        self.join(10)

    def see(self, violation: str) -> None:
        """Notes what must never be."""
        if violation not in self.violations:
            self.violations.append(violation)


@dataclass(frozen=True)
class Happened:
    """One event of inotify."""

    mask: int
    name: str


class Releases(Watcher):
    """I1 and I2: the link names a complete release, and no release ever changes or goes.

    The kernel tells of every change to the directory, however short, and the link is read at each.
    `links` are the link's texts, in order.
    """

    def __init__(self, host: LittleHost) -> None:
        super().__init__()
        self._directory, self._link = host.releases, host.link
        self.links: list[str] = []
        self._descriptor = watch(
            self._directory, MODIFY | CLOSE_WRITE | MOVED_FROM | MOVED_TO | CREATE | DELETE
        )
        self._looking = threading.Lock()
        self._known: dict[str, tuple[int, int, int]] = {}
        self._learn()

    def run(self) -> None:
        while not self._ended.is_set():
            select.select([self._descriptor], [], [], LINK_SECONDS)
            with self._looking:
                self._look()
        os.close(self._descriptor)

    @contextmanager
    def looking_away(self) -> Iterator[None]:
        """While the block runs somebody else than the tool changes the directory."""
        with self._looking:
            self._look()
            yield
            list(self._events())
            self._learn()

    def _learn(self) -> None:
        self._known = {}
        for path in self._directory.glob("*-standalone.jar"):
            self._known[path.name] = self._identity(path)

    @staticmethod
    def _identity(path: Path) -> tuple[int, int, int]:
        found = path.lstat()
        return found.st_ino, found.st_size, found.st_mtime_ns

    def _look(self) -> None:
        for event in self._events():
            self._judge(event)
        self._look_at_the_link()

    def _events(self) -> Iterator[Happened]:
        received = drain(self._descriptor)
        while received:
            _, mask, _, length = HEADER.unpack_from(received)
            name = received[HEADER.size : HEADER.size + length].rstrip(b"\0")
            received = received[HEADER.size + length :]
            yield Happened(mask, os.fsdecode(name))

    def _judge(self, event: Happened) -> None:
        if event.mask & QUEUE_OVERFLOW:
            self.see("the watcher was too slow")
        if event.name == self._link.name and event.mask & (DELETE | MOVED_FROM | CREATE):
            self.see(f"I1: the link was not replaced in one step (inotify {event.mask:#x})")
        if not event.name.endswith("-standalone.jar"):
            return
        if event.mask & (MODIFY | CLOSE_WRITE):
            self.see(f"I2: {event.name} was written to under its name")
        if event.mask & (DELETE | MOVED_FROM):
            self.see(f"I2: {event.name} was removed")
        if event.mask & (CREATE | MOVED_TO):
            self._judge_new(event.name)

    def _judge_new(self, name: str) -> None:
        path = self._directory / name
        try:
            if name in self._known:
                self.see(f"I2: {name} was replaced")
            with zipfile.ZipFile(path) as jar:
                if jar.testzip() is not None:
                    self.see(f"I2: {name} is damaged")
            self._known[name] = self._identity(path)
        except (OSError, zipfile.BadZipFile) as error:
            self.see(f"I2: {name} was not complete when it appeared: {error}")

    def _look_at_the_link(self) -> None:
        try:
            text = os.readlink(self._link)
        except OSError as error:
            self.see(f"I1: the link cannot be read: {error}")
            return
        if self.links[-1:] == [text]:
            return
        self.links.append(text)
        if "/" in text or not text.endswith("-standalone.jar"):
            self.see(f"I1: the link names {text}")
        elif not (self._directory / text).is_file():
            self.see(f"I1: the link names {text}, which is not there")

    def judge_all(self) -> None:
        """Looks whether every release is still what it was."""
        with self._looking:
            self._look()
            for name, known in self._known.items():
                path = self._directory / name
                if not path.exists() or self._identity(path) != known:
                    self.see(f"I2: {name} is not what it was")


class Site(Watcher):
    """I3 and I4: at least one instance answers, and the primary runs only what was approved.

    `approved` are the releases to which somebody has said yes by now.
    """

    def __init__(self, host: LittleHost) -> None:
        super().__init__()
        self._host = host
        self.approved: set[str] = set()

    def run(self) -> None:
        while not self._ended.wait(SITE_SECONDS):
            # The primary twice: between the first two answers the backup's turn may have begun.
            if not (self._primary() or self._host.version("backup") or self._primary()):
                self.see("I3: no instance answered")

    def _primary(self) -> bool:
        approved = self.approved.copy()
        version = self._host.version("primary")
        if version is not None and version not in approved | self.approved:
            self.see(f"I4: the primary serves {version}, to which nobody said yes")
        return version is not None
