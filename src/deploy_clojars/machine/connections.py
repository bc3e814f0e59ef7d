"""The kernel's table of TCP connections: who listens on a port, and who is connected to it."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from deploy_clojars.machine import signals

# States of /proc/net/tcp (proc(5)).
ESTABLISHED, SYN_RECV, TIME_WAIT, CLOSE_WAIT, LISTEN = "01", "03", "06", "08", "0A"
# A connection that an instance still has something to do for.
CONNECTED = frozenset({ESTABLISHED, SYN_RECV, CLOSE_WAIT})

TICK = 0.02  # seconds between two questions who listens

TIME_WAIT_SECONDS = 60.0  # how long the end that closes first stays there (TCP_TIMEWAIT_LEN)

# linux/netlink.h, linux/sock_diag.h; the message's header and struct inet_diag_req_v2.
NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, NLMSG_DONE, REQUEST_AND_DUMP = 4, 20, 3, 0x301
DIAG_REQUEST = struct.Struct("=IHHIIBBBxI48x")

Host = ipaddress.IPv4Address | ipaddress.IPv6Address
Address = tuple[Host, int]

# A socket bound to one of these accepts what is sent to any address; IPv6's also IPv4, unless told not to.
WILDCARDS = {4: ("0.0.0.0", "::"), 6: ("::",)}


@dataclass(frozen=True)
class Row:
    """One row of the table: one end of a connection, or a listening socket."""

    local: Address
    remote: Address
    state: str
    uid: int
    inode: int  # 0 if no process has the socket open (any more)


@dataclass(frozen=True)
class Visitor:
    """The other end of a connection to a port of this machine."""

    port: int
    at: Host  # the address at which it is connected to the port
    address: str
    local: bool  # on this machine
    uid: int | None = None  # the owner of its socket, where that is known
    inode: int = 0  # of its socket; 0 if no process has it open (any more)


def listeners() -> list[Row]:
    """The rows of all TCP sockets that listen.

    The kernel is asked for them alone (sock_diag(7)). /proc/net/tcp has them first, but to find the
    row after the last of them the kernel searches its whole hash table: 3 ms on an idle machine,
    and a deploy looks dozens of times.
    """
    try:
        return [row for family in (socket.AF_INET, socket.AF_INET6) for row in _dumped(family)]
    except OSError:  # a kernel without inet_diag, or a container that denies it
        return _listeners_in_proc()


def _dumped(family: int) -> Iterator[Row]:
    """The listening sockets of a family, as netlink(7) and linux/inet_diag.h lay them out."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_SOCK_DIAG) as kernel:
        kernel.send(
            DIAG_REQUEST.pack(
                DIAG_REQUEST.size, SOCK_DIAG_BY_FAMILY, REQUEST_AND_DUMP, 0, 0,
                family, socket.IPPROTO_TCP, 0, 1 << int(LISTEN, 16),
            )
        )  # fmt: skip
        while True:
            messages = kernel.recv(65536)
            while messages:
                size, kind = struct.unpack_from("=IH", messages)
                if kind == NLMSG_DONE:
                    return
                if kind != SOCK_DIAG_BY_FAMILY:
                    raise OSError(-struct.unpack_from("=i", messages, 16)[0], "sock_diag")
                port, remote_port = struct.unpack_from("!HH", messages, 20)
                length = 4 if messages[16] == socket.AF_INET else 16
                local, remote = messages[24 : 24 + length], messages[40 : 40 + length]
                uid, inode = struct.unpack_from("=II", messages, 80)
                yield Row((_host(local), port), (_host(remote), remote_port), LISTEN, uid, inode)
                messages = messages[(size + 3) & ~3 :]


def _listeners_in_proc() -> list[Row]:
    """The same from /proc/net/tcp.

    "It will first list all listening TCP sockets" (the kernel's proc_net_tcp.rst; before Linux 4.4
    among half-open ones), and reading the thousands of connections after them would take 26 ms.
    """
    found = []
    for lines in _tables():
        for line in lines:
            columns = line.split()
            if columns[3] not in (LISTEN, SYN_RECV):
                break
            if columns[3] == LISTEN:
                found.append(_row(columns))
    return found


def wait_for_listeners(ports: Collection[int], seconds: float, *files: int) -> bool:
    """Waits until all these ports are listened on or one of `files` can be read, at most `seconds`.

    Returns whether they are listened on. An instance that starts is noticed sooner than by a look from
    time to time, which costs a hundred times as much, and takes that from the start. Raises Interrupted.
    """
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if signals.wait(min(left, TICK), *files):
            break
        with contextlib.suppress(OSError):  # such as no descriptor left
            if {row.local[1] for row in listeners()}.issuperset(ports):
                return True
    return False


def answering(listening: Sequence[Row], host: Host, port: int) -> list[Row]:
    """The listening sockets that a connection to this address and port may reach.

    The kernel prefers a socket bound to the address itself to a wildcard, and 0.0.0.0 to ::.
    If there are several, they share the connections (SO_REUSEPORT).
    """
    for bound in (host, *map(ipaddress.ip_address, WILDCARDS[host.version])):
        found = [row for row in listening if row.local == (bound, port)]
        if found:
            return found
    return []


class Table:
    """The connections with one of these ports at either end, at one moment.

    The kernel lists every connection of the machine: only rows that are asked for are parsed.
    """

    def __init__(self, *ports: int) -> None:
        self._lines: dict[int, list[list[str]]] = {port: [] for port in ports}
        wanted = {port: f":{port:04X} " for port in ports}
        for lines in _tables():
            for line in lines:
                for port, text in wanted.items():
                    if text in line:
                        self._lines[port].append(line.split())

    def visitors(self, port: int) -> list[Visitor]:
        """Who was connected to `port`, on any address.

        If the other end is on this machine, its own row says whose it is.
        """
        rows = [_row(columns) for columns in self._lines[port] if columns[3] != TIME_WAIT]
        other_ends = {(row.local, row.remote): row for row in rows if row.remote[1] == port}
        return [
            _visitor(port, row, other_ends.get((row.remote, row.local)))
            for row in rows
            if row.local[1] == port and row.state in CONNECTED
        ]

    def sent_to(self, address: Address) -> list[Visitor]:
        """Who on this machine was connected to an address of another machine."""
        rows = [_row(columns) for columns in self._lines[address[1]]]
        return [
            Visitor(address[1], address[0], shown(row.local), True, row.uid, row.inode)
            for row in rows
            if row.remote == address and row.state in CONNECTED
        ]

    def seconds_since_one_ended(self, port: int) -> float | None:
        """How long ago the last connection from this machine to `port` ended; None if not known.

        Known are those that the listening side closed first, also ones too short to be seen open.
        """
        most_left = -1  # of TIME_WAIT, in clock ticks
        for columns in self._lines[port]:
            if columns[3] != TIME_WAIT:
                continue
            left = int(columns[5].partition(":")[2], 16)
            if left > most_left:
                row = _row(columns)
                if row.local[1] == port and row.remote[0].is_loopback:
                    most_left = left
        if most_left < 0:
            return None
        return max(0.0, TIME_WAIT_SECONDS - most_left / os.sysconf("SC_CLK_TCK"))


def _visitor(port: int, row: Row, other: Row | None) -> Visitor:
    return Visitor(
        port,
        row.local[0],
        shown(row.remote),
        local=row.remote[0].is_loopback or other is not None,
        # In a row without a socket the user is 0, which does not mean root.
        uid=other.uid if other is not None and other.inode else None,
        inode=other.inode if other is not None else 0,
    )


def shown(address: Address) -> str:
    """An address and a port as people write them."""
    host, port = address
    return f"[{host}]:{port}" if host.version == 6 else f"{host}:{port}"


def _tables() -> Iterator[Iterator[str]]:
    """The lines of the IPv4 and the IPv6 table, without their headings."""
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):  # where subset=pid leaves them
        with contextlib.suppress(FileNotFoundError), open(table, encoding="ascii") as lines:
            next(lines)
            yield lines


def _row(columns: list[str]) -> Row:
    local, remote = _address(columns[1]), _address(columns[2])
    return Row(local, remote, columns[3], int(columns[7]), int(columns[9]))


def _address(text: str) -> Address:
    """Parses `0100007F:1F41`: the address in 32-bit words in native byte order, and the port."""
    host, _, port = text.partition(":")
    packed = bytes.fromhex(host)
    if sys.byteorder == "little":
        words = (packed[start : start + 4] for start in range(0, len(packed), 4))
        packed = b"".join(word[::-1] for word in words)
    return _host(packed), int(port, 16)


@lru_cache(maxsize=1000)  # nearly all sockets that listen have one of a few addresses
def _host(packed: bytes) -> Host:
    address = ipaddress.ip_address(packed)
    # A JVM listens on IPv6 sockets, which show connections from 127.0.0.1 as ::ffff:127.0.0.1.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
