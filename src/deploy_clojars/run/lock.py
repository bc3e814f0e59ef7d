"""The lock: one run at a time, and every user can see whose it is."""

from __future__ import annotations

import fcntl
import os
import shlex
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from deploy_clojars.errors import Locked, NotReady
from deploy_clojars.host.users import user_name
from deploy_clojars.machine import processes
from deploy_clojars.machine.files import NO_ROOM

# Of the whole file, as a `struct flock` (fcntl(2)): type, whence, start, length, and a PID that is
# 0 for this kind of lock.
WRITE_LOCK = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


class Holder(msgspec.Struct, frozen=True):
    """Who holds the lock, as its file says."""

    pid: int | None = None
    user: str | None = None
    since: str | None = None  # ISO 8601, UTC
    step: str | None = None
    version: str | None = None
    command: str | None = None


class Lock:
    """The lock's file while this run holds it."""

    def __init__(self, descriptor: int, holder: Holder) -> None:
        self._descriptor = descriptor
        self._holder = holder
        self.before = _read(descriptor)  # the last holder, and the step that it reached
        self._write()

    def at_step(self, step: str, version: str | None = None) -> None:
        """Writes down the step that the run is at, and its version if that is known only now."""
        version = version or self._holder.version
        self._holder = msgspec.structs.replace(self._holder, step=step, version=version)
        self._write()

    def _write(self) -> None:
        try:
            # A reader that comes between the two reads the first line, which is complete.
            text = msgspec.json.encode(self._holder) + b"\n"
            os.pwrite(self._descriptor, text, 0)
            os.ftruncate(self._descriptor, len(text))
        except (OSError, UnicodeEncodeError):
            # On a full disk the lock holds without it, and must not make a revert fail.
            pass


@contextmanager
def held(file: Path, holder: Holder) -> Iterator[Lock]:
    """Holds the lock while the block runs. The file is never removed.

    An open file description lock: it ends with the process, children do not inherit it, and with
    F_OFD_GETLK `status` can read it without taking it, which would make a run that starts at that
    instant fail. Raises Locked (3), NotReady (4).
    """
    descriptor = _opened(file, os.O_CREAT)
    try:
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, WRITE_LOCK)
        except BlockingIOError:
            raise locked_by(_read(descriptor)) from None
        except OSError as error:
            # As on a network file system: without a lock two runs could be at work at once.
            raise NotReady(
                f"the file system of {file} does not support locks: {error.strerror}",
                remedy=f"move {file.parent} to one that does, such as a local disk",
            ) from None
        with suppress(OSError):  # a file system may have no modes
            os.fchmod(descriptor, 0o644)  # whatever the umask: `status` runs as any user
        yield Lock(descriptor, holder)
    finally:
        os.close(descriptor)


def refuse_one_that_cannot_be_held(file: Path) -> None:
    """Opens the lock, if it is there, without taking it. Raises NotReady (4)."""
    if os.path.lexists(file):
        os.close(_opened(file))


def _opened(file: Path, more: int = 0) -> int:
    try:
        # O_NONBLOCK: a FIFO in its place must not hold up anybody.
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | more
        return os.open(file, flags, 0o644)
    except OSError as error:
        if os.path.lexists(file) and not stat.S_ISREG(os.lstat(file).st_mode):
            remedy = shlex.join(["mv", str(file), f"{file}.old"])
        elif error.errno in NO_ROOM:
            remedy = "make room on the disk (see df and df -i)"
        else:
            user = user_name()
            remedy = f"as root: {shlex.join(['chown', '-R', user, str(file.parent)])}"
        raise NotReady(
            f"the lock {file} cannot be opened: {error.strerror}", remedy=remedy
        ) from None


def holder_of(file: Path) -> Holder | None:
    """Who holds the lock now, or None if it is free."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, WRITE_LOCK)
        (kind,) = struct.unpack_from("h", answer)
        return None if kind == fcntl.F_UNLCK else _read(descriptor)
    except OSError:
        return None  # where there are no locks nobody holds one
    finally:
        os.close(descriptor)


def locked_by(holder: Holder) -> Locked:
    """The error that says who has the lock and how to make that run stop cleanly."""
    what = f"{holder.command or 'a run'} {holder.version or ''}".strip()
    message = (
        f"locked: {what} by {holder.user or 'somebody'} since {holder.since or 'just now'}, "
        f"step {holder.step or 'start'}, PID {holder.pid or 'unknown'}"
    )
    if holder.pid is None:
        return Locked(message)
    stop = f"kill -INT {holder.pid}"
    if processes.is_suspended(holder.pid):
        # Stopped with Ctrl-Z, it acts on a signal only when it continues.
        message, stop = f"{message}, suspended", f"{stop}; kill -CONT {holder.pid}"
    return Locked(message, remedy=f"nothing was changed\nto stop that run cleanly: {stop}")


def _read(descriptor: int) -> Holder:
    try:
        line, _, _ = os.pread(descriptor, 4096, 0).partition(b"\n")
        return msgspec.json.decode(line, type=Holder)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        # It has only just taken the lock and written nothing yet.
        return Holder()
