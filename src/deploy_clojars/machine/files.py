"""What is read once and to its end, what a file system may refuse, and how many files may be open."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy_clojars.errors import DeployError, reason
from deploy_clojars.machine import signals

CHUNK = 1024 * 1024  # bytes

STANDARD_INPUT = Path("/dev/stdin")

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)  # no block or inode is left, or the user's quota is used up

# Some file systems, of a network or in user space, do not sync, or not directories (fsync(2)).
NOT_SYNCED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)


@dataclass(frozen=True)
class Input:
    """An open file, pipe or socket, to be read once and to its end."""

    path: Path
    descriptor: int

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return "standard input" if self.path == STANDARD_INPUT else str(self.path)

    @property
    def size(self) -> int | None:
        """A file's size in bytes; None if it is not a file, so that only its end tells."""
        return None if self._version is None else self._version[0]

    @property
    def _version(self) -> tuple[int, int] | None:
        """What tells whether a file was changed; None if it is not a file."""
        found = os.fstat(self.descriptor)
        return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None

    def chunks(self, patience: float) -> Iterator[bytes]:
        """What is in it; a file must not change meanwhile.

        Raises DeployError (also if nothing comes for `patience` seconds), Interrupted.
        """
        before = self._version
        last_heard = time.monotonic()
        while True:
            is_late = time.monotonic() - last_heard > patience  # before the look, for Ctrl-Z
            if not signals.wait(1.0, self.descriptor):
                if is_late:
                    raise DeployError(f"{self.name}: no data for {patience:g} s")
                continue
            try:
                chunk = os.read(self.descriptor, CHUNK)
            except BlockingIOError:  # another process has read it
                continue
            except OSError as error:
                raise DeployError(f"{self.name} cannot be read: {reason(error)}") from None
            if not chunk:
                break
            last_heard = time.monotonic()
            yield chunk
        if self._version != before:
            raise DeployError(f"{self.name} changed while it was read")


@contextmanager
def opened(path: Path) -> Iterator[Input]:
    """A file that another program made, open while the block runs. Raises DeployError."""
    try:
        # A link in its place could lead to any file of the user, a pipe would be waited for.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags)
    except OSError as error:
        raise DeployError(f"{path} cannot be read: {reason(error)}") from None
    try:
        yield Input(path, descriptor)
    finally:
        os.close(descriptor)


def can_open(count: int) -> bool:
    """Whether this process can open `count` more files at the same time."""
    opened: list[int] = []
    try:
        while len(opened) < count:
            opened.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        return False
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return True


def sync(descriptor: int) -> None:
    """Waits until a file or a directory is on the disk, where its file system can tell.

    Raises OSError.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_SYNCED:
            raise


def why_not_roots_alone(path: Path) -> str | None:
    """Why users other than root could change or replace the file; None if none can."""
    try:
        real = path.resolve(strict=True)
        for each in (real, *real.parents, path, *path.parents):  # a link could be led elsewhere
            found = each.lstat()
            if found.st_uid != 0:
                return f"{each} does not belong to root"
            is_writable = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            # In a directory like /tmp nobody can replace what is root's.
            is_safe = each not in (real, path) and found.st_mode & stat.S_ISVTX
            if is_writable and not is_safe and not stat.S_ISLNK(found.st_mode):
                return f"users other than root can write to {each}"
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        return f"{path}: {getattr(error, 'strerror', None) or error}"
    return None
