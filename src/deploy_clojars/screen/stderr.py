"""Standard error, which no run waits for: its reader may be gone, or may take nothing for hours.

A terminal takes nothing after Ctrl-S, in a window's selection mode, and when a connection hangs;
then write(2) waits. A run that waited with it could stand still while nginx prefers the backup.
"""

from __future__ import annotations

import io
import os
import select
import signal
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

PATIENCE = 2.0  # seconds; a reader that takes nothing for so long is no longer waited for
MOST = 64 * 1024  # bytes that may wait for the reader
PIECE = 4096  # bytes; what is written at once


class SafeStderr(io.TextIOBase):
    """Standard error; an error in writing to it, as to a window that was closed, stops nothing."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._changed = threading.Condition()
        self._pending: deque[bytes] = deque()
        self._size = 0  # bytes that wait for the reader
        self._taken = 0  # bytes that the reader has taken
        self._has_writer = False
        self._is_stuck = False

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def isatty(self) -> bool:
        with suppress(OSError, ValueError):
            return self._stream.isatty()
        return False

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, text: str) -> int:
        if self._has_writer:
            self._put(text.encode(self.encoding, "backslashreplace"))
        else:
            with suppress(OSError, ValueError):
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        if not self._has_writer:
            with suppress(OSError, ValueError):
                self._stream.flush()

    @contextmanager
    def never_waited_for(self) -> Iterator[None]:
        """While the block runs, a thread does the writing, so that a stuck reader holds up nothing.

        A slow reader is waited for; for one that takes nothing, the newest MOST bytes are kept.
        """
        self.flush()
        self._has_writer = True
        try:
            threading.Thread(target=self._write, args=(self.fileno(),), daemon=True).start()
        except (OSError, ValueError, RuntimeError):  # it is not a file, or there is no thread
            self._has_writer = False
        try:
            yield
        finally:
            with self._changed:
                self._wait_for_the_reader(0)
                # A reader that is still stuck keeps the writer, which ends with the process.
                self._has_writer = self._has_writer and self._is_stuck
                self._changed.notify_all()

    def _put(self, data: bytes) -> None:
        with self._changed:
            self._pending.append(data)
            self._size += len(data)
            self._changed.notify_all()
            self._wait_for_the_reader(MOST)
            while self._size > MOST and self._pending:
                self._size -= len(self._pending.popleft())

    def _wait_for_the_reader(self, most: int) -> None:
        """Waits until it has taken all but `most` bytes, for as long as it takes any."""
        while self._size > most and not self._is_stuck:
            self._is_stuck = not self._takes_some()

    def _takes_some(self) -> bool:
        before = self._taken
        return self._changed.wait_for(lambda: self._taken > before, PATIENCE)

    def _write(self, descriptor: int) -> None:
        # Signals are for the main thread. SIGTTOU would stop the whole process where `stty tostop`
        # lets no background job write.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or not self._has_writer)
                if not self._pending:
                    return
                data = self._pending.popleft()
            while data:
                written = _written(descriptor, data[:PIECE])
                data = data[written:]
                with self._changed:
                    self._size -= written
                    self._taken += written
                    self._is_stuck = False
                    self._changed.notify_all()


def _written(descriptor: int, data: bytes) -> int:
    """How many of the bytes were written, or given up because there is nobody to take them."""
    try:
        return os.write(descriptor, data)
    except BlockingIOError:  # another program on the same terminal has made it so
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        poll.poll()
        return 0
    except OSError:
        return len(data)
