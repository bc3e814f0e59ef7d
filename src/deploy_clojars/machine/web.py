"""One HTTP GET with a hard time limit: for an instance's health URL and nginx's probe."""

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
    """A server's answer; without one `status` is None and `said` the reason."""

    status: int | None
    said: str  # the reason phrase
    body: bytes = b""

    def __str__(self) -> str:
        return self.said if self.status is None else f"{self.status} {self.said}".strip()


def get(url: str, timeout: float, max_body: int = 0) -> Answer:
    """Requests a URL, which takes `timeout` seconds at most; reads up to `max_body` bytes of body."""
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=timeout)
    try:
        connection.connect()
        with _shut_down_after(timeout, connection.sock):
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", path, headers={"User-Agent": "deploy-clojars"})
            response = connection.getresponse()
            return Answer(response.status, response.reason, response.read(max_body))
    except (OSError, http.client.HTTPException) as error:
        return Answer(None, reason(error))
    finally:
        connection.close()


@contextmanager
def _shut_down_after(seconds: float, connection: socket.socket) -> Iterator[None]:
    """Ends a connection whose server sends a byte now and then: a socket's timeout is per read."""

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
