"""The tests and the build at the same time: whether there is room for both, and how to wait for both."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Literal, TypeVar

from deploy_clojars.host.host import Host
from deploy_clojars.machine import shell, signals
from deploy_clojars.run.run import LOOKED_BACK

T = TypeVar("T")

# Work in progress. It yields the files to wait for; it is continued when one of them becomes readable, and at
# least every TICK.
Work = Generator[Sequence[int], None, T]

MORE = 1.25  # times the memory that the last runs used; a tag may need more than the one before


def carried_out(*works: Work[T]) -> list[T]:
    """Carries out all of them at the same time and returns their results.

    The first error, or a signal, ends the others and is raised once they have ended.
    """
    results: dict[Work[T], T] = {}
    try:
        while True:
            files: list[int] = []
            for work in [each for each in works if each not in results]:
                try:
                    files += next(work)
                except StopIteration as end:
                    results[work] = end.value
            if len(results) == len(works):
                return [results[work] for work in works]
            signals.wait(shell.TICK, *files)
    finally:
        for work in works:
            work.close()


def runs_both(host: Host) -> bool:
    """Whether the tests and the build are carried out at the same time."""
    setting = host.config.build.parallel
    used = memory_used(host) if setting == "auto" else None
    return is_room_for_both(setting, len(os.sched_getaffinity(0)), available_memory(), used)


def is_room_for_both(
    setting: Literal["auto"] | bool, cores: int, available: int | None, used: int | None
) -> bool:
    """The same, given the memory that is available and what both used in recent runs, in bytes."""
    if setting != "auto":
        return setting
    if available is None or used is None:
        return False
    return cores >= 2 and available >= MORE * used


def memory_used(host: Host) -> int | None:
    """The bytes that the tests and the build used together in recent runs; None if unknown."""
    most: dict[str, int] = {}
    with suppress(OSError):
        for event in islice(host.journal.backwards(), LOOKED_BACK):
            if event.memory is not None and event.step in ("test", "build"):
                most[event.step] = max(event.memory, most.get(event.step, 0))
    return sum(most.values()) if len(most) == 2 else None


def available_memory() -> int | None:
    """The bytes that are available without swapping (proc(5)); None if the kernel does not say."""
    with suppress(OSError, StopIteration), open("/proc/meminfo", "rb") as lines:
        available = next(line for line in lines if line.startswith(b"MemAvailable:"))
        return int(available.split()[1]) * 1024
    return None
