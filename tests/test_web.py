"""A URL is asked within its time limit, and the server notices nothing odd."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from deploy_clojars.config import HealthUrl
from deploy_clojars.host import health
from deploy_clojars.machine import web

LIMIT = 0.5  # seconds
# What is slow takes twice as long and more; a busy machine may take its time for the limit.
IN_TIME = 10  # seconds
PATIENCE = 60  # seconds, for what takes a moment
Slow = Callable[[pytest.MonkeyPatch, ExitStack], str]


@contextmanager
def served(answer: Callable[[socket.socket], object]) -> Iterator[int]:
    """A server for one connection; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                connection, _ = server.accept()
                with connection:
                    answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        thread.join(PATIENCE)
        assert not thread.is_alive()


def drips(connection: socket.socket) -> None:
    """Sends a byte now and then until the client has gone."""
    with suppress(OSError):
        while True:
            connection.sendall(b"H")
            connection.settimeout(0.1)
            with suppress(TimeoutError):
                if not connection.recv(4096):
                    return


def says_nothing(connection: socket.socket) -> None:
    while connection.recv(4096):
        pass


def a_name_server_that_does_not_answer(patch: pytest.MonkeyPatch, stack: ExitStack) -> str:
    over = threading.Event()
    stack.callback(over.set)

    def hangs(*_: object, **__: object) -> list[object]:
        over.wait(2 * IN_TIME)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    patch.setattr(socket, "getaddrinfo", hangs)
    return "http://slow.example:80/"


def addresses_that_do_not_answer(patch: pytest.MonkeyPatch, stack: ExitStack) -> str:
    full = stack.enter_context(socket.create_server(("0.0.0.0", 0), backlog=0))
    port = full.getsockname()[1]
    for _ in range(3):  # no room for one more in its queue: the kernel does not answer
        waiting = stack.enter_context(socket.socket())
        waiting.setblocking(False)
        waiting.connect_ex(("127.0.0.1", port))
    numbers = range(1, 1 + int(2 * IN_TIME / LIMIT))  # with the limit for each
    found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (f"127.0.0.{n}", 0)) for n in numbers]
    patch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    return f"http://many.example:{port}/"


def tls_that_is_not_answered(_: pytest.MonkeyPatch, stack: ExitStack) -> str:
    return f"https://127.0.0.1:{stack.enter_context(served(says_nothing))}/"


def a_server_that_drips(_: pytest.MonkeyPatch, stack: ExitStack) -> str:
    return f"http://127.0.0.1:{stack.enter_context(served(drips))}/"


@pytest.mark.parametrize(
    "slow",
    [
        a_name_server_that_does_not_answer,
        addresses_that_do_not_answer,
        tls_that_is_not_answered,
        a_server_that_drips,
    ],
)
def test_whatever_is_slow_the_limit_is_for_all_of_it(
    slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        url = slow(monkeypatch, stack)
        started = time.monotonic()
        answer = web.get(url, LIMIT)
        assert time.monotonic() - started < IN_TIME
    assert (answer.status, answer.said) == (None, "timed out")


@pytest.mark.parametrize("slow", [a_name_server_that_does_not_answer, addresses_that_do_not_answer])
def test_a_tcp_health_url_has_the_same_limit(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        url = slow(monkeypatch, stack).replace("http:", "tcp:").rstrip("/")
        started = time.monotonic()
        check = health.check(HealthUrl(url), LIMIT)
        assert time.monotonic() - started < IN_TIME
    assert (check.ok, check.detail) == (False, "timed out")


def test_what_still_asks_after_the_limit_ends_too() -> None:
    before = threading.active_count()
    with served(drips) as port:
        web.get(f"http://127.0.0.1:{port}/", LIMIT)
    deadline = time.monotonic() + PATIENCE
    while threading.active_count() > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_where_no_thread_can_be_started_the_url_is_asked_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with served(lambda each: answers(each, b"")) as port:
        monkeypatch.setattr(threading.Thread, "start", fails)
        assert web.get(f"http://127.0.0.1:{port}/", PATIENCE).status == 200
        monkeypatch.undo()


def answers(connection: socket.socket, body: bytes, length: int | None = None) -> bytes:
    """Answers, and returns how the client ends the connection: b"" if it does so in order."""
    request = connection.recv(4096)
    assert request.endswith(b"\r\n\r\n")
    length = len(body) if length is None else length
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length + body)
    connection.settimeout(PATIENCE)
    return connection.recv(1)


@pytest.mark.parametrize("size", [0, 9000, 60_000])
@pytest.mark.parametrize("wanted", [0, 100])
def test_an_answer_is_read_to_its_end_and_the_connection_not_reset(
    size: int, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "MOMENT", PATIENCE)  # the server is slow where the machine is busy
    ends: list[bytes | OSError] = []

    def server(connection: socket.socket) -> None:
        try:
            ends.append(answers(connection, b"x" * size))
        except OSError as error:
            ends.append(error)

    with served(server) as port:
        answer = web.get(f"http://127.0.0.1:{port}/", PATIENCE, max_body=wanted)
    assert (answer.status, len(answer.body)) == (200, min(size, wanted))
    assert ends == [b""]


def test_a_body_that_never_ends_does_not_hold_up_an_answer() -> None:
    with served(lambda each: answers(each, b"x", length=9000)) as port:
        started = time.monotonic()
        assert web.get(f"http://127.0.0.1:{port}/", PATIENCE).status == 200
        assert time.monotonic() - started < PATIENCE / 2


def test_a_python_that_cannot_load_openssl_asks_http_urls_all_the_same() -> None:
    def answers(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with served(answers) as port:
        program = (
            "import sys; sys.modules['_ssl'] = None\n"
            "from deploy_clojars.machine import web\n"
            f"print(web.get('http://127.0.0.1:{port}/', {PATIENCE}))"
        )
        argv = [sys.executable, "-c", program]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout == "200 OK\n"
