"""syslog: one line for every change, and for a question that nobody answers."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from deploy_clojars.host.journal import Event
from deploy_clojars.screen.text import printable

ADDRESS = "/dev/log"
NOTICE = 1 * 8 + 5  # facility user, severity notice; RFC 3164
LONGEST = 1000  # bytes; many a syslogd truncates longer lines

QUESTION_IS_LONG = 15 * 60.0  # seconds


def tell(text: str, address: str = ADDRESS) -> None:
    """Sends a line to syslog, unless it is missing or does not read.

    Not with syslog(3): that blocks while the daemon does not read, and a revert must not.
    """
    text = printable(text).replace("\n", " ")
    line = f"<{NOTICE}>deploy-clojars[{os.getpid()}]: {text}"
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.sendto(line.encode("utf-8", "backslashreplace")[:LONGEST], address)


def line_of(event: Event, command: str, version: str | None) -> str | None:
    """The line for a journal's event, or None if it changes nothing on the host."""
    what = {
        "flip": f"current {event.previously or 'none'} -> {event.version or 'none'}",
        "restart": f"restart of the {event.instance} on {event.version}",
        "stop": f"stop of the {event.instance}",
        "drain": f"drain of the {event.instance}",
        "undrain": f"the drain of the {event.instance} is over",
        "installed": f"installed {event.version}",
        "migrated": f"migrated the data for {event.version}",
        "approved": f"yes to {event.version}",
        "promoted": f"{event.version} is in production",
        "rolled back": f"{event.version} is in production again",
        "pruned": f"removed {event.version}",
        "end": f"{event.outcome} ({event.status})",
    }.get(event.event)
    if what is None:
        return None
    words = " ".join(word for word in (command, version) if word)
    return f"{event.by}: {words}: {what}"


class Reminder:
    """Reports once that a question has been open for long; to be called every now and then."""

    def __init__(
        self,
        text: str,
        tell: Callable[[str], None] = tell,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._text = text
        self._tell = tell
        self._clock = clock
        self._due: float | None = clock() + QUESTION_IS_LONG

    def __call__(self) -> None:
        if self._due is not None and self._clock() >= self._due:
            self._due = None
            self._tell(f"{self._text} (open for {QUESTION_IS_LONG / 60:.0f} minutes)")
