"""The drain, with the real nginx in front: who gets requests while the instances restart."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from clojure_repository import ClojureRepository as Tags
from front import Front, in_front_of
from little_host import LittleHost, wait_for

FIRST, SECOND = Tags.FIRST, Tags.SECOND


@pytest.fixture
def front(light_host: LittleHost) -> Iterator[Front]:
    """nginx in front of a host that serves 0.1.0 and has 0.2.0."""
    light_host.have(SECOND)
    with in_front_of(light_host, quiet="0.2", timeout="1") as front:
        yield front


def who_serves(host: LittleHost, front: Front) -> str | None:
    """Which instance gets a request now."""
    pid = asked(front, "/pid")
    roles = {str(host.pid(role)): role for role in ("primary", "backup")}
    return roles.get(pid or "")


def asked(front: Front, path: str) -> str | None:
    """What a user gets; None for anything but 200."""
    connection = http.client.HTTPConnection(front.site.removeprefix("http://"), timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        text = answer.read().decode()
        return text if answer.status == 200 else None
    finally:
        connection.close()


class Slow:
    """A request that the instance answers after a while."""

    def __init__(self, front: Front, ms: int) -> None:
        self.answer: str | None = None
        self._thread = threading.Thread(target=self._ask, args=(front, ms))
        self._thread.start()

    def _ask(self, front: Front, ms: int) -> None:
        with contextlib.suppress(OSError):
            self.answer = asked(front, f"/slow?ms={ms}")

    def ends(self) -> str | None:
        """Waits for the answer."""
        self._thread.join(30)
        return self.answer


@contextlib.contextmanager
def slow_request(front: Front, host: LittleHost, ms: int) -> Iterator[Slow]:
    """A request that is in the primary when the block begins."""
    log = Path(f"{host.upstart.jobs.parent}/logs/{host.primary}.log")
    line = f"answering in {ms} ms"
    request = Slow(front, ms)
    wait_for(lambda: line in log.read_text("utf-8", "replace"), "the request is in the primary")
    yield request
    request.ends()


def drains(host: LittleHost) -> list[str]:
    """What the journal says of the drain and of restarts, in order."""
    kept = ("drain", "flip", "restart", "undrain")
    return [
        " ".join(filter(None, (event["event"], event.get("instance"))))
        for event in host.events
        if event["event"] in kept
    ]
