"""A connection that nginx keeps for a next request is none: real sockets, and a real nginx."""

from __future__ import annotations

import dataclasses
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from front import newer_nginx, running_nginx
from little_host import free_ports, wait_for

from deploy_clojars.config import parse
from deploy_clojars.host.visits import Doors
from deploy_clojars.machine import connections, idle
from deploy_clojars.setup.files import render, values_of

TICKS = 0.05  # seconds; more than the kernel's clock needs to tell two moments apart


class Pair:
    """A client's connection to a server, and the server's end."""

    def __init__(self, server: socket.socket) -> None:
        self.client = socket.create_connection(("127.0.0.1", server.getsockname()[1]))
        self.server, _ = server.accept()

    def asks(self) -> None:
        """The client sends a request, and the server reads it."""
        self.client.sendall(b"GET")
        assert self.server.recv(9)

    def answers(self) -> None:
        """The server answers, and the client reads it."""
        time.sleep(TICKS)
        self.server.sendall(b"200")
        assert self.client.recv(9)

    def end(self) -> None:
        """Closes both ends."""
        self.client.close()
        self.server.close()


def fresh(pair: Pair) -> None:
    """Nothing was sent yet."""


def asked(pair: Pair) -> None:
    pair.asks()


def answered(pair: Pair) -> None:
    pair.asks()
    pair.answers()


def answered_at_once(pair: Pair) -> None:
    pair.asks()
    pair.server.sendall(b"200")
    assert pair.client.recv(9)


def asked_again(pair: Pair) -> None:
    answered(pair)
    time.sleep(TICKS)
    pair.asks()


def asked_again_and_not_read(pair: Pair) -> None:
    answered(pair)
    pair.client.sendall(b"GET")


def answer_not_taken(pair: Pair) -> None:
    pair.asks()
    pair.server.setblocking(False)
    try:
        while True:
            pair.server.send(bytes(100_000))
    except BlockingIOError:
        pass


STATES = (fresh, asked, answered, answered_at_once, asked_again, asked_again_and_not_read,
          answer_not_taken)  # fmt: skip


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_what_was_answered_a_while_ago_is_idle_and_nothing_else(
    family: socket.AddressFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idle, "PAUSE", 1000)  # longer than a busy machine may take to get here
    with socket.socket(family) as server:
        server.bind(("127.0.0.1" if family == socket.AF_INET else "::", 0))
        server.listen()
        port = server.getsockname()[1]
        pairs = {state: Pair(server) for state in STATES}
        names = {pair.client.getsockname(): state for state, pair in pairs.items()}
        try:
            for state, pair in pairs.items():
                state(pair)

            def at_work() -> set[object]:
                visitors = idle.without_idle(connections.Table(port).visitors(port))
                found = (each.address.rpartition(":") for each in visitors)
                peers = {(host, int(number)) for host, _, number in found}
                return {names[each] for each in peers & names.keys()}  # a port may have others

            busy = set(STATES) - {answered, answered_at_once}
            assert at_work() == set(STATES)
            monkeypatch.setattr(idle, "PAUSE", 0.5)
            wait_for(lambda: at_work() == busy, "the answered ones are idle")
        finally:
            for pair in pairs.values():
                pair.end()


def test_where_the_kernel_does_not_tell_every_connection_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(idle, "PAUSE", 0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        pair = Pair(server)
        answered(pair)
        address = "{}:{}".format(*pair.client.getsockname())
        # Somebody else may have the same port at another address.
        found = connections.Table(port).visitors(port)
        visitors = [each for each in found if each.address == address]
        assert len(visitors) == 1
        # The client's kernel may take a moment to acknowledge the answer.
        wait_for(lambda: idle.without_idle(visitors) == [], "it is idle")
        monkeypatch.setattr(idle, "SOCK_DIAG", 31)  # a protocol that there is not
        assert idle.without_idle(visitors) == visitors
        pair.end()


class Web(BaseHTTPRequestHandler):
    """An instance that keeps its connections; `/slow` waits until it may answer."""

    protocol_version = "HTTP/1.1"
    may_answer = threading.Event()

    def do_GET(self) -> None:
        if self.path == "/slow":
            assert self.may_answer.wait(180)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def instance(port: int) -> Iterator[None]:
    """A running instance."""
    with ThreadingHTTPServer(("127.0.0.1", port), Web) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield
        server.shutdown()


def ask(port: int, path: str) -> bytes:
    """The first line of what nginx answers."""
    with socket.create_connection(("127.0.0.1", port), timeout=180) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\nHost: clojars.org\r\n\r\n".encode())
        return connection.makefile("rb").readline()


def test_a_connection_that_nginx_keeps_is_no_request_and_one_at_work_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idle, "PAUSE", 0.5)

    def as_it_was(template: str, *words: object, **more: object) -> str:
        text = render(template, *words, **more)  # type: ignore[arg-type]
        for line in ("proxy_http_version 1.0;", "proxy_set_header Connection close;"):
            text = text.replace(line, "")
        return text

    monkeypatch.setattr("front.render", as_it_was)
    web, other, nailgun, other_nailgun, probe, site, front = free_ports(7)
    config = parse(
        {
            "home": str(tmp_path / "home"),
            "instances": {
                "primary": {"health": [f"http://127.0.0.1:{web}/", f"tcp://127.0.0.1:{nailgun}"]},
                "backup": {"health": [f"http://127.0.0.1:{other}/", f"tcp://127.0.0.1:{other_nailgun}"]},
            },
            "drain": {"flag": f"{tmp_path}/run/drain", "probe": f"http://127.0.0.1:{probe}/pool"},
        },
        "test",
    )  # fmt: skip
    values = dataclasses.replace(
        values_of(config, user="clojars"),
        listen=f"127.0.0.1:{site}", nailgun_port=str(front), pages=str(tmp_path / "pages"),
    )  # fmt: skip
    doors = Doors(frozenset({web}), frozenset())
    with instance(web), running_nginx(tmp_path, values, config.drain, newer_nginx()):
        assert b"200" in ask(site, "/")
        assert connections.Table(web).visitors(web), "nginx keeps the connection"
        wait_for(lambda: not doors.visits().requests, "it is idle")
        assert connections.Table(web).visitors(web)
        assert not doors.visits().past_nginx
        slow = threading.Thread(target=ask, args=(site, "/slow"))
        slow.start()
        wait_for(lambda: doors.visits().requests, "the request is seen")
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            assert doors.visits().requests
            time.sleep(0.1)
        Web.may_answer.set()
        slow.join(180)
        wait_for(lambda: not doors.visits().requests, "it was answered")
