"""Connections that are kept open but idle: the kernel knows when data last went over each."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress

from deploy_clojars.machine.connections import ESTABLISHED, Address, Visitor, shown

# How long an answer may pause in the middle, and how long a request may take if it came within a few ms
# of what was sent last: the kernel's clock does not tell which of them was first. In seconds.
PAUSE = 20.0

# sock_diag(7), and struct tcp_info of linux/tcp.h.
SOCK_DIAG, BY_FAMILY = 4, 20
REQUEST_DUMP, ERROR, DONE = 0x301, 2, 3
HEADER, MESSAGE = struct.Struct("=IHHII"), struct.Struct("!4xHH16s16s12x")
QUEUES = struct.Struct("=II")  # after the message and four bytes
INFO = 2  # the number of the attribute with struct tcp_info
LAST_SENT, LAST_RECEIVED = 44, 52  # offsets in it of how many ms ago that was
SEGMENTS = struct.Struct("=152xII")  # how many with data came and went


def without_idle(visitors: Sequence[Visitor]) -> list[Visitor]:
    """The visitors whose connections are not idle; all of them where the kernel does not tell.

    The last thing that went over an idle connection is an answer, some time ago.
    """
    idle: set[tuple[str, str]] = set()
    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError, struct.error):
            idle |= {(shown(own), shown(other)) for own, other in _idle(family)}
    return [each for each in visitors if (shown((each.at, each.port)), each.address) not in idle]


def _idle(family: socket.AddressFamily) -> Iterator[tuple[Address, Address]]:
    states = 1 << int(ESTABLISHED, 16)
    wanted = struct.pack("=BBBBI48x", family, socket.IPPROTO_TCP, 1 << (INFO - 1), 0, states)
    kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, SOCK_DIAG)
    with closing(kernel):
        kernel.settimeout(1)
        kernel.send(HEADER.pack(HEADER.size + len(wanted), BY_FAMILY, REQUEST_DUMP, 1, 0) + wanted)
        while True:
            answer = kernel.recv(1 << 18)
            while len(answer) >= HEADER.size:
                length, kind, *_ = HEADER.unpack_from(answer)
                if kind in (ERROR, DONE):
                    return
                message, answer = answer[HEADER.size : length], answer[length + 3 & ~3 :]
                if _is_idle(message):
                    yield _ends(message, family)


def _is_idle(message: bytes) -> bool:
    """Whether it has had a request, and the answer was the last that went over it."""
    start = MESSAGE.size + 4
    if any(QUEUES.unpack_from(message, start)):
        return False
    info = _attribute(message[start + QUEUES.size + 8 :], INFO)
    if len(info) < SEGMENTS.size:  # a kernel before Linux 4.6
        return False
    sent, received = (struct.unpack_from("=I", info, at)[0] for at in (LAST_SENT, LAST_RECEIVED))
    return all(SEGMENTS.unpack_from(info)) and PAUSE * 1000 <= sent <= received


def _attribute(attributes: bytes, wanted: int) -> bytes:
    while len(attributes) >= 4:
        length, kind = struct.unpack_from("=HH", attributes)
        if kind == wanted:
            return attributes[4:length]
        attributes = attributes[max(4, length + 3 & ~3) :]
    return b""


def _ends(message: bytes, family: socket.AddressFamily) -> tuple[Address, Address]:
    port, other_port, host, other_host = MESSAGE.unpack_from(message)
    size = 4 if family == socket.AF_INET else 16
    return _address(host[:size], port), _address(other_host[:size], other_port)


def _address(packed: bytes, port: int) -> Address:
    host = ipaddress.ip_address(packed)
    mapped = host.ipv4_mapped if isinstance(host, ipaddress.IPv6Address) else None
    return mapped or host, port
