"""Which sockets are an instance's: those that could answer its health URLs, and no others."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace

import pytest
from little_host import free_ports

from deploy_clojars import config
from deploy_clojars.errors import NotHealthy
from deploy_clojars.host import nginx
from deploy_clojars.host.instances import Instance
from deploy_clojars.host.releases import Releases
from deploy_clojars.host.services import Job
from deploy_clojars.machine import connections, processes, sockets
from deploy_clojars.machine.connections import LISTEN, Row

# What a connection to an address goes to

ADDRESSES = {
    "exact": "127.0.0.1", "other": "127.0.0.2", "any": "0.0.0.0", "any6": "::", "exact6": "::1",
}  # fmt: skip


def listening(*names: str) -> list[Row]:
    """Sockets on port 8001, of which each has its place in the list as its inode."""
    return [
        Row((ip_address(ADDRESSES[name]), 8001), (ip_address("0.0.0.0"), 0), LISTEN, 0, inode)
        for inode, name in enumerate(names)
    ]


@pytest.mark.parametrize(
    ("there", "address", "answer"),
    [
        (("other", "exact"), "127.0.0.1", [1]),
        (("any", "exact"), "127.0.0.1", [1]),
        (("any6", "any"), "127.0.0.1", [1]),
        (("other", "any6"), "127.0.0.1", [1]),
        (("exact6", "other"), "127.0.0.1", []),
        (("exact", "exact"), "127.0.0.1", [0, 1]),  # SO_REUSEPORT
        (("any", "exact6", "any6"), "::1", [1]),
        (("any", "any6"), "::1", [1]),
        (("any", "exact"), "::1", []),
    ],
)
def test_a_connection_goes_to_what_is_bound_most_narrowly(
    there: tuple[str, ...], address: str, answer: list[int]
) -> None:
    found = connections.answering(listening(*there), ip_address(address), 8001)
    assert [row.inode for row in found] == answer
    assert connections.answering(listening(*there), ip_address(address), 8002) == []


# What the kernel lists


@pytest.mark.parametrize("has_sock_diag", [True, False])
@pytest.mark.parametrize(
    ("bound", "listed"),
    [
        ("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "0.0.0.0"), ("::1", "::1"), ("::", "::"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
    ],
)  # fmt: skip
def test_a_listener_is_found_and_its_connections_are_not(
    monkeypatch: pytest.MonkeyPatch, has_sock_diag: bool, bound: str, listed: str
) -> None:
    if not has_sock_diag:
        monkeypatch.setattr(connections, "NETLINK_SOCK_DIAG", 31)  # nothing answers there
    is_ipv6 = ":" in bound
    family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
    with socket.create_server((bound, 0), family=family, dualstack_ipv6=is_ipv6) as server:
        port = server.getsockname()[1]
        with socket.create_connection((bound, port)), server.accept()[0]:
            [found] = (row for row in connections.listeners() if row.local[1] == port)
    assert found.local == (ip_address(listed), port)
    assert found.remote[1] == 0
    assert found.uid == os.geteuid()


@pytest.mark.parametrize("has_sock_diag", [True, False])
def test_a_listener_has_the_inode_of_its_socket(
    monkeypatch: pytest.MonkeyPatch, has_sock_diag: bool
) -> None:
    if not has_sock_diag:
        monkeypatch.setattr(connections, "NETLINK_SOCK_DIAG", 31)
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(100)]
        inodes = {row.local[1]: row.inode for row in connections.listeners()}
        for server in servers:
            assert inodes[server.getsockname()[1]] == os.fstat(server.fileno()).st_ino


def test_a_wait_for_listeners_ends_when_all_of_them_are_there() -> None:
    first, second = free_ports(2)
    with ExitStack() as stack:

        def listen_later() -> None:
            for port in (first, second):
                time.sleep(0.1)
                stack.enter_context(socket.create_server(("127.0.0.1", port)))

        began = time.monotonic()
        thread = threading.Thread(target=listen_later)
        thread.start()
        assert connections.wait_for_listeners((first, second), 100)
        assert time.monotonic() - began < 100
        thread.join()
        for port in (first, second):
            socket.create_connection(("127.0.0.1", port)).close()


def test_a_wait_for_listeners_ends_when_its_time_is_up() -> None:
    [port] = free_ports(1)
    assert not connections.wait_for_listeners((port,), 0.05)


def test_a_wait_for_listeners_ends_when_the_process_ends() -> None:
    [port] = free_ports(1)
    began = time.monotonic()
    with subprocess.Popen(["sleep", "0.1"]) as process, processes.end_of(process.pid) as end:
        assert not connections.wait_for_listeners((port,), 100, *end)
        assert process.poll() is not None
    assert time.monotonic() - began < 100


# An instance, which here is the process of the test itself

ANSWER = b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n"


@contextmanager
def listener(address: str, port: int) -> Iterator[socket.socket]:
    """A socket that answers every request for a page, in this process."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, port), family=family) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with closing(connection):
                    connection.recv(4096)
                    connection.sendall(ANSWER)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@contextmanager
def stranger(address: str, port: int) -> Iterator[None]:
    """Another process listens there, no descendant of this one."""
    family = "AF_INET6" if ":" in address else "AF_INET"
    program = (
        f"import os, socket, time; s = socket.create_server(({address!r}, {port}), "
        f"family=socket.{family}, reuse_port=True); print(os.getpid(), flush=True); time.sleep(600)"
    )
    words = ["sh", "-c", '"$0" -c "$1" &', sys.executable, program]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as shell:
        assert shell.stdout is not None
        pid = int(shell.stdout.readline())
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Callable[..., Instance]]:
    """Makes the instance that this process is, with these health URLs, on release 0.1.0."""
    releases = tmp_path / "releases"
    releases.mkdir()
    jar = releases / "clojars-web-0.1.0-standalone.jar"
    jar.touch()
    services = SimpleNamespace(
        status=lambda job: Job("running", os.getpid(), "clojars start/running"),
        last_log_lines=lambda job: "",
    )

    def make(*urls: str) -> Instance:
        settings = config.Instance(job="clojars", url="http://clojars.org/", health=urls)
        return Instance(
            "primary", settings, config.Health(), services, Releases(releases, "clojars-web"),
        )  # fmt: skip

    with jar.open("rb"):
        yield make


Make = Callable[..., Instance]


def why(instance: Instance) -> str | None:
    return instance.observe().why_not_healthy_on("0.1.0")


@pytest.mark.parametrize(
    ("own", "other"),
    [("127.0.0.1", "127.0.0.2"), ("0.0.0.0", "::1"), ("127.0.0.1", "::"), ("::1", "127.0.0.1")],
)
def test_a_listener_on_another_address_is_no_concern(made: Make, own: str, other: str) -> None:
    [port] = free_ports(1)
    host = "[::1]" if own == "::1" else "127.0.0.1"
    with stranger(other, port), listener(own, port):
        assert why(made(f"http://{host}:{port}/")) is None


def test_a_stranger_that_may_answer_one_of_a_names_addresses_counts(
    made: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    [port] = free_ports(1)
    resolved = [
        (socket.AF_INET, 0, 0, "", ("127.0.0.1", 0)),
        (socket.AF_INET, 0, 0, "", ("127.0.0.3", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: resolved)
    instance = made(f"http://two.invalid:{port}/")
    with listener("127.0.0.1", port):
        assert why(instance) is None
        with stranger("127.0.0.3", port):
            said = why(instance)
    assert said is not None
    assert f"does not own port {port}" in said


def test_requests_at_an_address_that_no_health_url_names_are_waited_for(
    made: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, other = free_ports(2)
    with ExitStack() as there:
        for port in (named, other):
            there.enter_context(socket.create_server(("0.0.0.0", port), reuse_port=True))
        there.enter_context(stranger("127.0.0.9", other))
        doors = made(f"http://127.0.0.1:{named}/").doors()
        clients = [
            there.enter_context(socket.create_connection(address))
            for address in (("127.0.0.2", named), ("127.0.0.5", other), ("127.0.0.9", other))
        ]
        its_own = nginx.Processes(
            frozenset({os.geteuid()}), processes.sockets_of(os.getpid())[1], True
        )
        monkeypatch.setattr(nginx, "own_processes", lambda: its_own)
        visits = doors.visits()
    at = {(str(each.at), each.port) for each in visits.requests}
    assert at == {("127.0.0.2", named), ("127.0.0.5", other)}
    assert len(clients) == 3


def test_without_a_descriptor_left_the_state_is_unknown_and_not_down(made: Make) -> None:
    [port] = free_ports(1)
    instance = made(f"http://127.0.0.1:{port}/")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with listener("127.0.0.1", port):
        assert why(instance) is None
        with ExitStack() as taken:
            resource.setrlimit(
                resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, limits[1])
            )
            try:
                while True:
                    taken.enter_context(socket.socket())
            except OSError:
                seen = instance.observe()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert seen.state == "unknown"
    assert "Too many open files" in seen.said


def test_a_process_is_still_the_old_one_only_if_it_started_when_that_did(made: Make) -> None:
    """On a host that starts many processes, an instance can come back with its old PID."""
    [port] = free_ports(1)
    instance = made(f"http://127.0.0.1:{port}/")
    with listener("127.0.0.1", port):
        now = processes.process(os.getpid())
        with pytest.raises(NotHealthy, match="still the process from before the restart"):
            instance.wait_until_healthy("0.1.0", before=now, timeout=0)
        assert now.started is not None
        ended = replace(now, started=now.started - 1)
        assert instance.wait_until_healthy("0.1.0", before=ended).process == now


# Names


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The name server does not answer until the event is set."""
    answers = threading.Event()

    def wait(*_: object, **__: object) -> object:
        assert answers.wait(60)
        return [(socket.AF_INET, 0, 0, "", ("127.0.0.7", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", wait)
    yield answers
    answers.set()


def test_a_name_server_that_does_not_answer_takes_the_limit_and_no_longer(
    made: Make, silent: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy_clojars.host.health.CHECK_SECONDS", 0.3)
    urls = [f"http://slow.invalid:{port}/" for port in range(8001, 8021)]
    started = time.monotonic()
    seen = made(*urls).observe()
    # Twenty times the limit of the system's resolver are 100.
    assert time.monotonic() - started < 60
    assert {check.detail for check in seen.checks} == {"timed out"}
    silent.set()
    assert sockets.addresses_of("slow.invalid", 60) == (ip_address("127.0.0.7"),)


def test_an_earlier_answer_counts_while_the_name_server_is_silent(
    silent: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent.set()
    found = sockets.addresses_of("once.invalid", 60)
    silent.clear()
    monkeypatch.setattr(sockets, "KEPT", 0.0)
    assert sockets.addresses_of("once.invalid", 0.1) == found
