"""Sockets whose one time limit covers everything: the name server, each address, what is received."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from concurrent.futures import Future
from functools import partial
from typing import Any

from deploy_clojars.machine import threads

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# How long a name server's answer is used: several looks a second need not all ask. In seconds.
KEPT = 60.0

_lock = threading.Lock()
_asked: dict[str, Future[tuple[Address, ...]]] = {}
_known: dict[str, tuple[float, tuple[Address, ...]]] = {}


def addresses_of(host: str, seconds: float) -> tuple[Address, ...]:
    """The host's addresses, in the order in which a connection tries them.

    If the name server does not answer now, its earlier answer counts. Raises OSError, within `seconds`.
    """
    try:
        return (ipaddress.ip_address(host),)
    except ValueError:
        pass
    since, known = _known.get(host, (0.0, ()))
    if known and time.monotonic() - since < KEPT:
        return known
    try:
        return _lookup(host).result(timeout=seconds)
    except OSError as error:
        if known:
            return known
        raise (TimeoutError("timed out") if isinstance(error, TimeoutError) else error) from None


def _lookup(host: str) -> Future[tuple[Address, ...]]:
    """Looks a name up, once at a time, in a thread: getaddrinfo(3) has no time limit."""
    with _lock:
        asked = _asked.get(host)
        if asked is None or asked.done():
            asked = _asked[host] = threads.started(partial(_look_up, host))
        return asked


def _look_up(host: str) -> tuple[Address, ...]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    addresses = tuple(dict.fromkeys(ipaddress.ip_address(each[4][0]) for each in found))
    _known[host] = (time.monotonic(), addresses)
    return addresses


class Limited:
    """Added to a socket: its time limit is for all that is received, not for each part of it."""

    deadline = 0.0  # by time.monotonic()

    def recv_into(self: Any, *words: Any) -> int:
        seconds = self.deadline - time.monotonic()
        self.settimeout(max(0.0, seconds))
        try:
            return super().recv_into(*words)  # type: ignore[misc,no-any-return]
        except OSError:
            # What had come in time counts: this process may have been stopped meanwhile (Ctrl-Z).
            if seconds <= 0:
                raise TimeoutError("timed out") from None
            raise

    def left(self) -> float:
        """The seconds that are left. Raises TimeoutError if none are."""
        seconds = self.deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError("timed out")
        return seconds


class Socket(Limited, socket.socket):
    """A socket that is not encrypted."""


def connect(host: str, port: int, seconds: float) -> Socket:
    """Connects to the first of the host's addresses that answers. Raises OSError, within `seconds`."""
    deadline = time.monotonic() + seconds
    error: OSError = TimeoutError("timed out")
    for address in addresses_of(host, seconds):
        connection = Socket(_family(address), socket.SOCK_STREAM)
        connection.deadline = deadline
        try:
            connection.settimeout(connection.left())
            connection.connect((str(address), port))
            return connection
        except OSError as failed:
            connection.close()
            error = failed
    raise error


def is_local(address: Address) -> bool:
    """Whether the address is this machine's, that is, whether a socket can be bound to it."""
    try:
        with socket.socket(_family(address), socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
        return True
    except OSError:
        return False


def _family(address: Address) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6
