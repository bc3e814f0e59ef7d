"""What several tests ask of the operating system."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil


class Clock:
    """Stands in for the module `time`: the real one, and what a test adds to it.

    So a time limit is reached when the test wants it, and not before on a machine that stalls.
    """

    sleep = staticmethod(time.sleep)

    def __init__(self) -> None:
        self._skipped = 0.0
        self._waits: tuple[Callable[[], object], float] | None = None

    def skips(self, seconds: float) -> None:
        """It is so much later."""
        self._skipped += seconds

    def skips_once(self, condition: Callable[[], object], seconds: float) -> None:
        """It is so much later once the condition is true, for whoever asks for the time again then.

        Again: a time limit that begins after that begins with the first answer.
        """
        self._waits = (condition, seconds)

    def monotonic(self) -> float:
        """The time."""
        now = time.monotonic() + self._skipped
        if self._waits is not None and self._waits[0]():
            self.skips(self._waits[1])
            self._waits = None
        return now


def lives(pid: int) -> bool:
    """Whether the process runs; a zombie that nobody has reaped does not."""
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """As full a disk as a test can have: writes beyond `size` bytes are cut short, then fail."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
