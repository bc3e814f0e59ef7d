"""What counts as a healthy answer: each health URL asked once."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from deploy_clojars.errors import reason

CHECK_SECONDS = 5.0  # for one health URL to answer

WEB_SCHEMES, NAILGUN_SCHEME = ("http", "https"), "tcp"  # of health URLs
ALL_SCHEMES = (*WEB_SCHEMES, NAILGUN_SCHEME)
DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Check:
    """One health URL's answer."""

    url: str
    ok: bool
    ms: float
    detail: str


def check(url: str) -> Check:
    """Asks one health URL: 2xx or 3xx is well; for tcp a connection is."""
    started = time.monotonic()
    ok, detail = _connects(url) if urlsplit(url).scheme == NAILGUN_SCHEME else _answers(url)
    seconds = time.monotonic() - started
    if not ok and seconds >= CHECK_SECONDS:
        detail = "timed out"
    return Check(url, ok, round(seconds * 1000, 1), detail)


def _connects(url: str) -> tuple[bool, str]:
    try:
        with socket.create_connection(address_of(url), timeout=CHECK_SECONDS):
            return True, "connected"
    except OSError as error:
        return False, reason(error)


def _answers(url: str) -> tuple[bool, str]:
    # Imported in the thread that asks, while another one waits for the service manager: a quarter
    # of the time that `status` takes.
    from deploy_clojars.machine import web

    answer = web.get(url, CHECK_SECONDS)
    return answer.status is not None and 200 <= answer.status < 400, str(answer)


def address_of(url: str) -> tuple[str, int]:
    """The host and the port that a health URL names."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or DEFAULT_PORTS.get(parts.scheme, 0)


def is_local(host: str) -> bool:
    """Whether the address is this machine's: only then can a socket be bound to it."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind(address)
        return True
    except OSError:
        return False
