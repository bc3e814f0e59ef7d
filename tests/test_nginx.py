"""The real nginx with the rendered configuration: who gets a request, and what is lost."""

from __future__ import annotations

import dataclasses
import http.client
import http.server
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import crossplane
import pytest
from front import newer_nginx, running_nginx
from little_host import free_ports, wait_for

from deploy_clojars.config import parse
from deploy_clojars.setup.files import Values, values_of

UPLOAD = 20_000_000  # bytes


class Web(http.server.BaseHTTPRequestHandler):
    """An instance of the application that says which one it is, and counts what it was sent."""

    server: Instance

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)
        if self.server.keeps_connections:
            self.protocol_version = "HTTP/1.1"

    def finish(self) -> None:
        super().finish()
        self.server.connections.discard(self.connection)

    def do_GET(self) -> None:
        self._answer(self.server.role)

    def do_POST(self) -> None:
        size = len(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.uploads.append(size)
        if self.server.dies_on_upload:
            self.connection.close()
            self.close_connection = True
            return
        self._answer(f"{self.server.role} {size} {self.headers['Host']}")

    do_PUT = do_POST

    def _answer(self, text: str) -> None:
        self.server.asked_to_close.append(self.headers["Connection"])
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *words: object) -> None:
        pass


class Instance(http.server.ThreadingHTTPServer):
    """One instance's web port."""

    daemon_threads = True
    dies_on_upload = False

    def __init__(self, role: str, port: int, keeps_connections: bool = False) -> None:
        self.role = role
        self.keeps_connections = keeps_connections
        self.connections: set[socket.socket] = set()  # that are open
        self.asked_to_close: list[str | None] = []  # the header of each request
        self.uploads: list[int] = []
        super().__init__(("127.0.0.1", port), Web)


class Nailgun(socketserver.ThreadingTCPServer):
    """One instance's nailgun port: it answers when it has heard all."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, role: str, port: int) -> None:
        class Answer(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                heard = self.rfile.read()
                self.wfile.write(f"{role} {len(heard)}".encode())

        super().__init__(("127.0.0.1", port), Answer)


class Site:
    """nginx before two instances that can be stopped and started."""

    def __init__(self, directory: Path, **backup: bool) -> None:
        web, other_web, nailgun, other_nailgun, probe, site, front = free_ports(7)
        self.ports = {"primary": (web, nailgun), "backup": (other_web, other_nailgun)}
        self.flag = directory / "run/drain"
        self.home = directory / "home"
        self.site, self.probe_port, self.front = site, probe, front
        instances: dict[str, Any] = {
            role: {"health": [f"http://127.0.0.1:{ports[0]}/", f"tcp://127.0.0.1:{ports[1]}"]}
            for role, ports in self.ports.items()
        }
        instances["backup"] |= backup
        config = parse(
            {
                "home": str(self.home),
                "instances": instances,
                "drain": {"flag": str(self.flag), "probe": f"http://127.0.0.1:{probe}/pool"},
            },
            "test",
        )
        self.drain = config.drain
        self.values: Values = dataclasses.replace(
            values_of(config, user="clojars"),
            listen=f"127.0.0.1:{site}",
            nailgun_port=str(front),
            pages=str(directory / "pages"),
        )
        self._running: dict[str, list[socketserver.TCPServer]] = {}

    def start(self, role: str, *, keeps_connections: bool = False) -> Instance:
        """Starts an instance that is down."""
        web, nailgun = self.ports[role]
        servers = [Instance(role, web, keeps_connections), Nailgun(role, nailgun)]
        for server in servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        self._running[role] = list(servers)
        return servers[0]  # type: ignore[return-value]

    def stop(self, role: str) -> None:
        """Ends an instance; its ports refuse connections."""
        for server in self._running.pop(role, []):
            server.shutdown()
            server.server_close()

    def request(self, method: str = "GET", path: str = "/", body: Any = None) -> tuple[int, str]:
        """What a user gets."""
        connection = http.client.HTTPConnection("127.0.0.1", self.site, timeout=60)
        try:
            connection.request(method, path, body, {"Host": "clojars.org"})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def probed(self) -> str:
        """What nginx says of the pool."""
        connection = http.client.HTTPConnection("127.0.0.1", self.probe_port, timeout=60)
        try:
            connection.request("GET", "/pool")
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def nailgun(self) -> str:
        """Sends a little, shuts the sending side, and reads the answer."""
        with socket.create_connection(("127.0.0.1", self.front), timeout=60) as connection:
            connection.sendall(b"upload")
            connection.shutdown(socket.SHUT_WR)
            return connection.makefile().read()


@contextmanager
def serving(
    directory: Path, program: str | None = None, for_all_sites: str = "", **backup: bool
) -> Iterator[Site]:
    """A site whose two instances are up; `backup` are further keys of that one's table."""
    site = Site(directory, **backup)
    (directory / "home/repo/a").mkdir(parents=True)
    (site.home / "repo/a/a.jar").write_text("from the disk")
    (site.home / "secret").write_text("secret")
    for role in site.ports:
        site.start(role)
    try:
        with running_nginx(directory, site.values, site.drain, program, for_all_sites):
            yield site
    finally:
        for role in site.ports:
            site.stop(role)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """The site."""
    with serving(tmp_path) as site:
        yield site


def test_the_backup_answers_the_next_request_and_the_primary_gets_them_back(site: Site) -> None:
    assert site.request() == (200, "primary")
    site.stop("primary")
    assert site.request() == (200, "backup")
    assert site.nailgun() == "backup 6"
    site.start("primary")
    wait_for(lambda: site.request() == (200, "primary"), "traffic returns", 60)
    wait_for(lambda: site.nailgun() == "primary 6", "the nailgun port, too", 60)


def test_both_down_is_a_decent_page_for_every_method_and_the_first_one_back_serves(
    site: Site,
) -> None:
    site.stop("primary")
    site.stop("backup")
    for method, path in (("GET", "/"), ("POST", "/"), ("PUT", "/repo/a/b.jar"), ("GET", "/x")):
        status, page = site.request(method, path, b"x" if method != "GET" else None)
        assert (status, "Back in a moment" in page) == (503, True), (method, path)
    site.start("backup")
    assert site.request() == (200, "backup")
    site.start("primary")
    wait_for(lambda: site.request() == (200, "primary"), "traffic returns", 60)


def test_the_flag_sends_new_requests_to_the_backup(site: Site) -> None:
    site.flag.touch()
    assert site.probed() == "backup"
    assert site.request() == (200, "backup")
    assert site.request("POST", "/", b"x")[1].startswith("backup")
    site.stop("backup")
    assert site.request() == (200, "primary")
    site.start("backup")
    assert site.request() == (200, "backup")
    site.flag.unlink()
    assert site.probed() == "primary"
    assert site.request() == (200, "primary")


def test_the_repository_is_read_from_the_disk_and_uploads_reach_the_application(site: Site) -> None:
    assert site.request("GET", "/repo/a/a.jar") == (200, "from the disk")
    assert site.request("GET", "/repo/a/none.jar")[0] == 404
    for path in ("/repo/../secret", "/repo/%2e%2e/secret", "/repo/a/..%2f..%2fsecret"):
        assert "secret" not in site.request("GET", path)[1]
    assert site.request("PUT", "/repo/a/b.jar", b"jar") == (200, "primary 3 clojars.org")


def test_an_upload_of_20_mb_passes_and_a_much_larger_one_does_not(site: Site) -> None:
    assert site.request("POST", "/", bytes(UPLOAD))[1] == f"primary {UPLOAD} clojars.org"
    with suppress(BrokenPipeError, ConnectionResetError):  # nginx need not read it all
        assert site.request("POST", "/", bytes(2 * UPLOAD))[0] == 413


def test_an_upload_that_was_sent_once_is_never_sent_again(site: Site) -> None:
    site.stop("primary")
    primary = site.start("primary")
    wait_for(lambda: site.request() == (200, "primary"), "traffic returns")
    primary.dies_on_upload = True
    status, page = site.request("POST", "/", b"once")
    assert (status, "Back in a moment" in page) == (503, True)
    assert primary.uploads == [4]


def test_a_primary_without_a_backup_is_given_up_for_no_error(tmp_path: Path) -> None:
    with serving(tmp_path, only_while_deploying=True) as site:
        site.stop("backup")
        site.stop("primary")
        assert site.request()[0] == 503
        primary = site.start("primary")
        assert site.request() == (200, "primary")
        assert site.nailgun() == "primary 6"
        primary.dies_on_upload = True
        assert site.request("POST", "/", b"x")[0] == 503
        assert site.request() == (200, "primary")
        # And the backup takes the traffic as soon as it is there.
        site.start("backup")
        site.flag.touch()
        assert site.request() == (200, "backup")
        site.stop("primary")
        assert site.nailgun() == "backup 6"


KEEPS = 'proxy_http_version 1.1; proxy_set_header Connection "";'
OTHERWISE = "proxy_request_buffering off; proxy_next_upstream off; proxy_intercept_errors on;"


@pytest.mark.parametrize("newer", [False, True])
def test_each_request_has_a_connection_of_its_own_whatever_the_default_is(
    tmp_path: Path, newer: bool
) -> None:
    """nginx from 1.29.7 on keeps them, and another one may be told to for all sites."""
    program = newer_nginx() if newer else None
    with serving(tmp_path, program, f"{KEEPS} {OTHERWISE}") as site:
        site.stop("primary")
        primary = site.start("primary", keeps_connections=True)
        wait_for(lambda: site.request() == (200, "primary"), "traffic returns")
        for method in ("GET", "POST", "GET", "GET"):
            assert site.request(method, "/", b"x" if method == "POST" else None)[0] == 200
        wait_for(lambda: not primary.connections, "nginx closes each after its request")
        assert set(primary.asked_to_close) == {"close"}
        # The other settings for all sites do not count here either.
        primary.dies_on_upload = True
        status, page = site.request("PUT", "/repo/a/b.jar", b"once")
        assert (status, page.split()[0]) == (200, "backup")


def directives(text: str, path: Path) -> list[dict[str, Any]]:
    """All directives of a configuration, inner ones too."""
    path.write_text(text)
    parsed = crossplane.parse(str(path), single=True, strict=False, check_ctx=False)
    assert parsed["status"] == "ok", parsed["errors"]
    found: list[dict[str, Any]] = []

    def walk(block: list[dict[str, Any]]) -> None:
        for each in block:
            found.append(each)
            walk(each.get("block", []))

    walk(parsed["config"][0]["parsed"])
    return found


def test_the_policy_holds(tmp_path: Path) -> None:
    etc = Path(__file__).parents[1] / "etc/nginx"
    for name in ("clojars", "clojars-nailgun.conf"):
        found = directives((etc / name).read_text(), tmp_path / name)
        words = {each["directive"] for each in found}
        assert not words & {"keepalive", "worker_shutdown_timeout"}
        # Written out, since another version's default or nginx.conf may be another.
        said = {(each["directive"], *each["args"]) for each in found}
        assert {("proxy_next_upstream_timeout", "0"), ("proxy_next_upstream_tries", "0")} <= said
        if name == "clojars":
            assert {("proxy_next_upstream", "error", "timeout"), ("proxy_request_buffering", "on"),
                    ("proxy_http_version", "1.0"), ("proxy_set_header", "Connection", "close"),
                    ("proxy_intercept_errors", "off")} <= said  # fmt: skip
        else:
            assert {("proxy_next_upstream", "on"), ("proxy_timeout", "10m")} <= said
        assert all("non_idempotent" not in each["args"] for each in found)
        upstreams = {each["args"][0]: each["block"] for each in found if each["directive"] == "upstream"}  # fmt: skip
        for pool, servers in upstreams.items():
            first, second = (set(server["args"][1:]) for server in servers)
            assert second == {"backup", "max_fails=0"}
            spared = pool.endswith("backup_first")
            assert first == ({"max_fails=0"} if spared else {"max_fails=1", "fail_timeout=2s"})
        # A misspelt pool passes `nginx -t`.
        named = {each["args"][1] for each in found if each["directive"] == "set"}
        assert named <= set(upstreams)
        if "nailgun" in name:
            assert ["on"] in [each["args"] for each in found if each["directive"] == "proxy_half_close"]  # fmt: skip
        else:
            assert len(named) == 2
            listens = [each["args"] for each in found if each["directive"] == "listen"]
            assert listens == [["80"], ["127.0.0.1:8099"]]
