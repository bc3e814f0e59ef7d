"""One GET, for what answers on this machine: an instance's health URL, nginx's probe."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from deploy_clojars.errors import reason


@dataclass(frozen=True)
class Answer:
    """What a server answered; `status` is None if it did not, and `said` is why."""

    status: int | None
    said: str  # beside the status
    body: bytes = b""

    def __str__(self) -> str:
        return self.said if self.status is None else f"{self.status} {self.said}".strip()


def get(url: str, seconds: float, most: int = 0) -> Answer:
    """Asks for a URL, and takes at most `seconds`, whatever the server does.

    Of the answer's body no more than `most` bytes are read.
    """
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=seconds)
    try:
        connection.connect()
        with _shut_down_after(seconds, connection.sock):
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", path, headers={"User-Agent": "deploy-clojars"})
            response = connection.getresponse()
            return Answer(response.status, response.reason, response.read(most))
    except (OSError, http.client.HTTPException) as error:
        return Answer(None, reason(error))
    finally:
        connection.close()


@contextmanager
def _shut_down_after(seconds: float, connection: socket.socket) -> Iterator[None]:
    """A socket's time limit is for one read; a server that drips bytes would hold up the run."""

    def shut_down() -> None:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    deadline = threading.Timer(seconds, shut_down)
    deadline.daemon = True
    deadline.start()
    try:
        yield
    finally:
        deadline.cancel()
