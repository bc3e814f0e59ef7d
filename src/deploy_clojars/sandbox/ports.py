"""Ports on 127.0.0.1 that stay the same from one start to the next."""

from __future__ import annotations

import random
import socket
from collections.abc import Sequence

from deploy_clojars.errors import DeployError
from deploy_clojars.machine import connections
from deploy_clojars.sandbox.place import Pair, Ports

# Below the range from which the kernel takes the ports of outgoing connections (32768 and up): one
# of those could have the port in the moment in which an instance is restarted.
CHOICE = range(20000, 30000)
# Neighbours, so that two sandboxes share none: nginx has its two from the start on, but an instance
# that was never started has its own in a file alone, where the next sandbox would not see it.
BLOCK = 6


def chosen(old: Ports | None = None) -> Ports:
    """Six free ports: the old ones, or others for those that are taken. Raises DeployError (1)."""
    web, nailgun, backup_web, backup_nailgun, site, probe = _kept(old.all) if old else _free_block()
    return Ports(Pair(web, nailgun), Pair(backup_web, backup_nailgun), site, probe)


def _kept(ports: Sequence[int]) -> Sequence[int]:
    """The ports; instead of those that are taken, others."""
    kept = free(*ports)
    if len(kept) == len(ports):
        return ports
    pairs = zip(ports, _free_block(), strict=True)
    return [port if port in kept else other for port, other in pairs]


def free(*ports: int) -> list[int]:
    """Those on which nobody listens, on whatever address, and an instance could."""
    taken = {row.local[1] for row in connections.listeners()}
    return [port for port in ports if port not in taken and _can_be_bound(port)]


def _can_be_bound(port: int) -> bool:
    with socket.socket() as probe:
        # As the instances do: connections that were closed lately are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_block() -> range:
    starts = range(CHOICE.start, CHOICE.stop - BLOCK + 1, BLOCK)
    for start in random.sample(starts, len(starts)):
        block = range(start, start + BLOCK)
        if len(free(*block)) == BLOCK:
            return block
    raise DeployError(
        f"no {BLOCK} free ports in a row on 127.0.0.1 from {CHOICE.start} to {CHOICE.stop - 1}"
    )
