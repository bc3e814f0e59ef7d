"""One HTTP GET with a hard time limit: for an instance's health URL and nginx's probe."""

from __future__ import annotations

import http.client
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

from deploy_clojars.errors import reason
from deploy_clojars.machine import sockets


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
    connection = kind(parts.hostname or "", parts.port)
    try:
        connection.sock = sockets.connect(connection.host, connection.port, timeout)
        if secure:
            connection.sock = _in_tls(connection.sock, connection.host)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers={"User-Agent": "deploy-clojars"})
        response = connection.getresponse()
        return Answer(response.status, response.reason, response.read(max_body))
    except (OSError, http.client.HTTPException) as error:
        return Answer(None, reason(error))
    finally:
        connection.close()


class _InTLS(sockets.Limited, ssl.SSLSocket):
    """A socket in TLS."""


def _in_tls(connection: sockets.Socket, host: str) -> _InTLS:
    context = ssl.create_default_context()
    context.sslsocket_class = _InTLS
    connection.settimeout(connection.left())  # the handshake keeps it as a whole
    secured = context.wrap_socket(connection, server_hostname=host)
    assert isinstance(secured, _InTLS)
    secured.deadline = connection.deadline
    return secured
