"""The lines of a file that grows at its end: each is read once, or the last ones first."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

CHUNK = 1024 * 1024  # bytes
BLOCK = 64 * 1024  # bytes; what is wanted of the end is short


class TailedFile:
    """A file to which lines are appended. It may also be replaced, truncated or cut in mid-line."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._start_over()

    def _start_over(self) -> None:
        self._identity: tuple[int, int] | None = None
        self._offset = 0  # bytes; up to here its lines were given out
        self._last_line = b""  # with its end; it shows whether a file was rewritten
        self.rest = b""  # behind the last line: one without its end, which may yet be written on

    def news(self) -> Iterator[tuple[bool, list[bytes]]]:
        """The lines since the last look, in portions of a few thousand.

        With each comes whether all that was given out before has to be forgotten, because this
        is not that file any more. `rest` is what follows the last of them. Raises OSError.
        """
        # Something else, such as a FIFO, must not be waited for.
        descriptor = os.open(self.file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if not self._goes_on_in(descriptor):
                self._start_over()
                yield True, []
            found = os.fstat(descriptor)
            self._identity = found.st_dev, found.st_ino
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

    def forget(self) -> None:
        """Reads the file from its beginning at the next look."""
        self._start_over()

    def _goes_on_in(self, descriptor: int) -> bool:
        found = os.fstat(descriptor)
        if self._identity != (found.st_dev, found.st_ino):
            return False
        length = len(self._last_line)
        return os.pread(descriptor, length, self._offset - length) == self._last_line


def from_the_end(file: Path) -> Iterator[bytes]:
    """The file's lines, the last one first; only as much is read as is asked for.

    Raises OSError.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        begin = os.fstat(descriptor).st_size
        rest = b""
        while begin > 0:
            size = min(BLOCK, begin)
            begin -= size
            # The first line may begin further to the front.
            rest, *lines = (os.pread(descriptor, size, begin) + rest).split(b"\n")
            yield from reversed(lines)
        yield rest
    finally:
        os.close(descriptor)
