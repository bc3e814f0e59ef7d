"""What a file system may refuse."""

from __future__ import annotations

import errno
import os

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)  # no block or inode is left, or the user's quota is used up

# Some file systems, of a network or in user space, do not sync, or not directories (fsync(2)).
NOT_SYNCED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)


def sync(descriptor: int) -> None:
    """Waits until a file or a directory is on the disk, where its file system can tell.

    Raises OSError.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_SYNCED:
            raise
