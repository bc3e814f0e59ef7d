"""What a file system may refuse, and how many files may be open."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)  # no block or inode is left, or the user's quota is used up

# Some file systems, of a network or in user space, do not sync, or not directories (fsync(2)).
NOT_SYNCED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)


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
    """Why others than root could change or replace the file; None if nobody can."""
    try:
        path = path.resolve(strict=True)
        for each in (path, *path.parents):
            found = each.stat()
            if found.st_uid != 0:
                return f"{each} does not belong to root"
            is_writable = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            # In a directory like /tmp nobody can replace what is root's.
            if is_writable and not (each != path and found.st_mode & stat.S_ISVTX):
                return f"others than root can write {each}"
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        return f"{path}: {getattr(error, 'strerror', None) or error}"
    return None
