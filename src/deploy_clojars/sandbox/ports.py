"""Ports on 127.0.0.1 that stay the same from one start to the next."""

from __future__ import annotations

import random
import socket
from collections.abc import Collection

from deploy_clojars import connections
from deploy_clojars.errors import DeployError
from deploy_clojars.sandbox.place import Pair, Ports

# Below the range from which the kernel takes the ports of outgoing connections (32768 and up): one
# of those could have the port in the moment in which an instance is restarted.
CHOICE = range(20000, 30000)


def chosen(old: Ports | None = None) -> Ports:
    """Six free ports: the old ones, or others for those that are taken. Raises DeployError (1)."""
    kept = [port if is_free(port) else None for port in old.all] if old else [None] * 6
    avoided = old.all if old else ()
    ports: list[int] = []
    for port in kept:
        ports.append(port if port is not None else _a_free_one([*avoided, *ports]))
    web, nailgun, backup_web, backup_nailgun, site, probe = ports
    return Ports(Pair(web, nailgun), Pair(backup_web, backup_nailgun), site, probe)


def is_free(port: int) -> bool:
    """Whether nobody listens on the port, on whatever address, and an instance could."""
    if connections.listeners(port)[port]:
        return False
    with socket.socket() as probe:
        # As the instances do: connections that were closed lately are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _a_free_one(avoided: Collection[int]) -> int:
    for port in random.sample(CHOICE, len(CHOICE)):
        if port not in avoided and is_free(port):
            return port
    raise DeployError(f"no free port on 127.0.0.1 from {CHOICE.start} to {CHOICE.stop - 1}")
