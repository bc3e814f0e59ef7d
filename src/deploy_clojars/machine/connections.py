"""The kernel's table of TCP connections: who listens on a port, and who is connected to it."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

# States of /proc/net/tcp (proc(5)).
ESTABLISHED, SYN_RECV, TIME_WAIT, CLOSE_WAIT, LISTEN = "01", "03", "06", "08", "0A"
# A connection that an instance still has something to do for.
CONNECTED = frozenset({ESTABLISHED, SYN_RECV, CLOSE_WAIT})

# How long the kernel remembers an end of a connection that it closed first (TCP_TIMEWAIT_LEN).
REMEMBERED = 60.0  # seconds

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


def listeners(*ports: int) -> dict[int, list[Row]]:
    """The rows of all TCP sockets that listen on these ports, on whatever address, by port.

    "It will first list all listening TCP sockets" (the kernel's proc_net_tcp.rst; before Linux 4.4
    among half-open ones), and to walk through the thousands of connections behind them takes 26 ms.
    Even this is 3 ms on a machine with much memory, whose table has many buckets: ask once for all.
    """
    found: dict[int, list[Row]] = {port: [] for port in ports}
    for lines in _tables():
        for line in lines:
            columns = line.split()
            if columns[3] not in (LISTEN, SYN_RECV):
                break
            rows = found.get(int(columns[1].rpartition(":")[2], 16))
            if rows is not None and columns[3] == LISTEN:
                rows.append(_row(columns))
    return found


class Table:
    """The rows of these ports, at either end, as the kernel had them at one moment.

    It has a row for every connection of the machine and is read once; most rows are not looked at.
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
        """Who was connected to `port`, on whatever address.

        An end of a connection that is on this machine has a row of its own, and that says whose
        it is.
        """
        rows = [_row(columns) for columns in self._lines[port] if columns[3] != TIME_WAIT]
        other_ends = {(row.local, row.remote): row for row in rows if row.remote[1] == port}
        return [
            _visitor(port, row, other_ends.get((row.remote, row.local)))
            for row in rows
            if row.local[1] == port and row.state in CONNECTED
        ]

    def seconds_since_one_ended(self, port: int) -> float | None:
        """How long ago the last connection from this machine to `port` had ended; None: not known.

        The kernel remembers those that the listening side closed first. So a connection is known
        that was shorter than the pause between two looks.
        """
        ticks_left = -1
        for columns in self._lines[port]:
            if columns[3] == TIME_WAIT:
                ticks = int(columns[5].partition(":")[2], 16)
                if ticks > ticks_left and _is_from_here(_row(columns), port):
                    ticks_left = ticks
        if ticks_left < 0:
            return None
        return max(0.0, REMEMBERED - ticks_left / os.sysconf("SC_CLK_TCK"))


def _visitor(port: int, row: Row, other: Row | None) -> Visitor:
    host, remote_port = row.remote
    return Visitor(
        port,
        f"{f'[{host}]' if host.version == 6 else host}:{remote_port}",
        local=host.is_loopback or other is not None,
        # Without a socket the row's user is root's number and means nobody.
        uid=other.uid if other is not None and other.inode else None,
        inode=other.inode if other is not None else 0,
    )


def _is_from_here(row: Row, port: int) -> bool:
    return row.local[1] == port and row.remote[0].is_loopback


def _tables() -> Iterator[Iterator[str]]:
    """The rows of both tables, without their headings."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(FileNotFoundError), open(table, encoding="ascii") as lines:
            next(lines)
            yield lines


def _row(columns: list[str]) -> Row:
    local, remote = _address(columns[1]), _address(columns[2])
    return Row(local, remote, columns[3], int(columns[7]), int(columns[9]))


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
