"""One HTTP GET with a hard time limit: for an instance's health URL and nginx's probe."""

from __future__ import annotations

import http.client
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from deploy_clojars.errors import reason
from deploy_clojars.machine import sockets

# Of a body that nobody wants: so much is read, for so long.
USUAL_BODY = 64 * 1024  # bytes
MOMENT = 0.3  # seconds


@dataclass(frozen=True)
class Answer:
    """A server's answer; without one `status` is None and `said` the reason."""

    status: int | None
    said: str  # the reason phrase
    body: bytes = b""

    def __str__(self) -> str:
        return self.said if self.status is None else f"{self.status} {self.said}".strip()


def get(url: str, timeout: float, max_body: int = 0) -> Answer:
    """Requests a URL, and reads up to `max_body` bytes of the answer's body.

    All of it takes `timeout` seconds at most: the name server, each address, TLS, and a server
    that sends a byte now and then.
    """
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port)
    try:
        used: sockets.Limited
        used = connection.sock = sockets.connect(connection.host, connection.port, timeout)
        if secure:
            used = connection.sock = _in_tls(connection.sock, connection.host)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers={"User-Agent": "deploy-clojars"})
        response = connection.getresponse()
        body = response.read(max_body)
        with suppress(OSError, http.client.HTTPException):
            _read_on(response, used)
        return Answer(response.status, response.reason, body)
    except TimeoutError:
        return Answer(None, "timed out")
    except (OSError, http.client.HTTPException) as error:
        return Answer(None, reason(error))
    finally:
        connection.close()


def _read_on(response: http.client.HTTPResponse, connection: sockets.Limited) -> None:
    """Reads a body of usual size to its end, unless that takes longer than a moment.

    Closed with an unread answer, a connection is reset, which servers log as an error.
    """
    connection.deadline = min(connection.deadline, time.monotonic() + MOMENT)
    left = USUAL_BODY
    while left > 0 and (chunk := response.read1(left)):
        left -= len(chunk)


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
