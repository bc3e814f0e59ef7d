"""The kernel's table of TCP connections: who listens on a port, and who is connected to it."""

from __future__ import annotations

import contextlib
import ipaddress
import sys
from collections.abc import Iterator
from dataclasses import dataclass

# States of /proc/net/tcp (proc(5)).
ESTABLISHED, SYN_RECV, CLOSE_WAIT, LISTEN = "01", "03", "08", "0A"
# A connection that an instance still has something to do for.
CONNECTED = frozenset({ESTABLISHED, SYN_RECV, CLOSE_WAIT})

Address = tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]


@dataclass(frozen=True)
class Row:
    """One row of the table: one end of a connection, or a listening socket."""

    local: Address
    remote: Address
    state: str
    uid: int
    inode: int  # 0 where no process has the socket (any more)


@dataclass(frozen=True)
class Visitor:
    """Somebody who is connected to a port of this machine."""

    port: int
    address: str
    local: bool  # from this machine
    uid: int | None = None  # whose socket the other end is, where that is known
    inode: int = 0  # of the other end's socket; 0 where no process has it (any more)


def listening_sockets(port: int) -> frozenset[int]:
    """The inodes of all TCP sockets that listen on `port`, on whatever address."""
    return frozenset(row.inode for row in listeners(port))


def listeners(port: int) -> list[Row]:
    """The rows of all TCP sockets that listen on `port`, on whatever address."""
    return [row for row in _rows(port) if row.state == LISTEN and row.local[1] == port]


def visitors(port: int) -> list[Visitor]:
    """Who is connected to `port` now, on whatever address.

    An end of a connection that is on this machine has a row of its own, and that says whose it is.
    """
    rows = list(_rows(port))
    other_ends = {(row.local, row.remote): row for row in rows if row.remote[1] == port}
    found = []
    for row in rows:
        if row.local[1] != port or row.state not in CONNECTED:
            continue
        other = other_ends.get((row.remote, row.local))
        host, remote_port = row.remote
        found.append(
            Visitor(
                port,
                f"{f'[{host}]' if host.version == 6 else host}:{remote_port}",
                local=host.is_loopback or other is not None,
                # Without a socket the row's user is root's number and means nobody.
                uid=other.uid if other is not None and other.inode else None,
                inode=other.inode if other is not None else 0,
            )
        )
    return found


def _rows(port: int) -> Iterator[Row]:
    """The rows in which `port` is at either end."""
    wanted = f":{port:04X} "
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(FileNotFoundError), open(table, encoding="ascii") as lines:
            for line in lines:
                # The table has a row for every connection of the machine; most are not looked at.
                if wanted in line:
                    columns = line.split()
                    local, remote = _address(columns[1]), _address(columns[2])
                    yield Row(local, remote, columns[3], int(columns[7]), int(columns[9]))


def _address(text: str) -> Address:
    """`0100007F:1F41`: the address in words of the machine's own byte order, and the port."""
    host, _, port = text.partition(":")
    packed = bytes.fromhex(host)
    if sys.byteorder == "little":
        words = (packed[start : start + 4] for start in range(0, len(packed), 4))
        packed = b"".join(word[::-1] for word in words)
    address = ipaddress.ip_address(packed)
    # A JVM listens through IPv6 sockets, and its connections from 127.0.0.1 look mapped.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address, int(port, 16)
