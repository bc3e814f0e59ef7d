"""The lines of a file that others append to: the new ones, or all of them backwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

CHUNK = 1024 * 1024  # bytes
BLOCK = 64 * 1024  # bytes; usually a few of the last lines are wanted


class TailedFile:
    """Reads each line of a file once, as `tail -F` does, and notices if the file was replaced."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.start_over()

    def start_over(self) -> None:
        """Forgets what was read: the next call of `new_lines` begins at the first line."""
        self._identity: tuple[int, int] | None = None  # device, inode
        self._offset = 0  # bytes: where the first line begins that was not read yet
        self._last_line = b""  # the one before it, to notice that the file was rewritten
        self.rest = b""  # what follows the last line feed: a line that is not complete (yet)

    def new_lines(self) -> Iterator[tuple[bool, list[bytes]]]:
        """The lines since the last call, a few thousand at a time; `rest` is what follows them.

        The first value of a pair says that the file was replaced, truncated or rewritten (or is
        read for the first time): lines from before do not count any more. Raises OSError.
        """
        # Without O_NONBLOCK a FIFO in its place would be waited for.
        descriptor = os.open(self.file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            found = os.fstat(descriptor)
            identity = found.st_dev, found.st_ino
            length = len(self._last_line)
            last_line = os.pread(descriptor, length, self._offset - length)
            if (identity, last_line) != (self._identity, self._last_line):
                self.start_over()
                self._identity = identity
                yield True, []
            self.rest = b""
            while chunk := os.pread(descriptor, CHUNK, self._offset + len(self.rest)):
                *lines, rest = (self.rest + chunk).split(b"\n")
                self._offset += len(self.rest) + len(chunk) - len(rest)
                self.rest = rest
                if lines:
                    self._last_line = lines[-1] + b"\n"
                    yield False, lines
        finally:
            os.close(descriptor)


def lines_backwards(file: Path) -> Iterator[bytes]:
    """The file's lines, the last one first; reads only as far as it is iterated. Raises OSError."""
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        begin = os.fstat(descriptor).st_size
        rest = b""
        while begin > 0:
            size = min(BLOCK, begin)
            begin -= size
            # The first of these may be the end of a line that begins in the block before.
            rest, *lines = (os.pread(descriptor, size, begin) + rest).split(b"\n")
            yield from reversed(lines)
        yield rest
    finally:
        os.close(descriptor)
