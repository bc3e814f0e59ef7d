"""One HTTP GET with a hard time limit: for an instance's health URL and nginx's probe."""

from __future__ import annotations

import http.client
import socket
import time
from base64 import b64encode
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

from deploy_clojars.errors import reason
from deploy_clojars.machine import sockets

# How much of a body that nobody wants is read, and for how long.
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


def get(
    url: str, timeout: float, max_body: int = 0, *, host: str | None = None, ca: str | None = None
) -> Answer:
    """Requests a URL, and reads up to `max_body` bytes of the answer's body.

    The user and the password in it are sent. `host` is the server's name if the URL has only its
    address: for the Host header and the certificate. `ca` is a file of certificates:
    the server's own, or those it must be signed by instead of the system's.
    All of it takes `timeout` seconds at most: the name server, each address, TLS, and a server
    that sends a byte now and then.
    """
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    address, port = parts.hostname or "", parts.port or (443 if secure else 80)
    connection = http.client.HTTPConnection(address, port)
    try:
        used: sockets.Limited
        used = connection.sock = sockets.connect(address, port, timeout)
        if secure:
            # Imported where it is used: a Python without OpenSSL does without it.
            from deploy_clojars.machine import tls

            used = connection.sock = tls.secured(connection.sock, host or address, ca)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers=_headers(parts, host))
        with _final_response(connection.sock) as response:
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


def _headers(parts: SplitResult, host: str | None) -> dict[str, str]:
    named = host or parts.netloc.rpartition("@")[2]
    headers = {"Host": named, "User-Agent": "deploy-clojars"}
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {b64encode(login.encode()).decode()}"
    return headers


def _final_response(connection: socket.socket) -> http.client.HTTPResponse:
    """The final answer, after any 1xx such as 103 with hints; http.client itself skips only 100."""
    response = http.client.HTTPResponse(connection, method="GET")
    response.begin()
    while 100 <= response.status < 200 and response.status != http.HTTPStatus.SWITCHING_PROTOCOLS:
        response.headers = None  # type: ignore[assignment] # as before the first call
        response.begin()
    return response


def _read_on(response: http.client.HTTPResponse, connection: sockets.Limited) -> None:
    """Reads a body of usual size to its end, unless that takes longer than a moment.

    A connection that is closed with an unread answer is reset, and servers log that as an error.
    """
    connection.deadline = min(connection.deadline, time.monotonic() + MOMENT)
    left = USUAL_BODY
    while left > 0 and (chunk := response.read1(left)):
        left -= len(chunk)
