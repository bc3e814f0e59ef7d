"""What several tests ask of the operating system."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

from deploy_clojars.machine import processes


def lives(pid: int) -> bool:
    """Whether the process runs; a zombie that nobody has reaped does not."""
    state = processes.state_of(pid)
    return state is not None and state[0] not in "ZX"


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """As full a disk as a test can have: writes beyond `size` bytes are cut short, then fail."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
