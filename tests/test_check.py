"""`check`: every finding at once, each with its remedy."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from clojure_repository import ClojureRepository as Tags
from conftest import NewHost
from little_host import LittleHost, free_ports
from programs import require_program

from deploy_clojars.checks import programs

FIRST = Tags.FIRST


@contextmanager
def probe(flag: Path, port: int, *, blind: bool = False) -> Iterator[None]:
    """What nginx answers at the probe, by the flag that it sees; `blind`: it sees none."""

    class Pool(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"backup" if flag.exists() and not blind else b"primary")

        def log_message(self, *words: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Pool) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()


@pytest.fixture
def flag(light_host: LittleHost, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The drain flag's path on a host that is otherwise ready."""
    require_program("nginx")
    for directory in (light_host.directory, *light_host.directory.parents):
        if directory.owner() == light_host.directory.owner() and directory != Path("/"):
            directory.chmod(directory.stat().st_mode | 0o011)
    monkeypatch.setenv("TMPDIR", "/var/tmp")  # the host is below the usual one
    return light_host.directory / "run" / "drain-primary"


def with_drain(host: LittleHost, flag: Path) -> int:
    """Writes the configuration with the flag, and returns the probe's port."""
    [port] = free_ports(1)
    flag.parent.mkdir(exist_ok=True)
    host.options["drain"] = f'flag = "{flag}"\nprobe = "http://127.0.0.1:{port}/pool"'
    host.write_config()
    return port


def test_a_ready_host_has_no_finding(light_host: LittleHost, flag: Path) -> None:
    with probe(flag, with_drain(light_host, flag)):
        result = light_host.run("check")
        assert result.returncode == 0, result.stdout
        assert result.stdout.endswith("ready\n")
        assert light_host.run("check", "-q").stdout == "ready\n"
    assert not light_host.deploy.exists()


def test_a_stale_flag_is_found_and_may_be_removed(light_host: LittleHost, flag: Path) -> None:
    with probe(flag, with_drain(light_host, flag)):
        flag.touch()
        result = light_host.run("check")
    assert result.returncode == 11
    assert f"rm {flag}" in result.stdout
    assert result.stdout.endswith("1 finding\n")


def test_an_nginx_that_does_not_see_the_flag_is_found(light_host: LittleHost, flag: Path) -> None:
    with probe(flag, with_drain(light_host, flag), blind=True):
        flag.touch()
        result = light_host.run("check")
    assert "nginx does not follow the drain flag" in result.stdout


def test_no_probe_no_directory_and_an_instance_down_are_found_at_once(
    light_host: LittleHost, flag: Path
) -> None:
    host = light_host
    with_drain(host, flag)
    flag.parent.rmdir()
    host.control("stop", host.backup)
    (host.home / "bin").mkdir()
    (host.home / "bin/deploy-clojars").write_text("#!/bin/sh\n")
    host.releases.chmod(0o777)
    host.repository_url = "/nowhere"
    host.write_config(top=f'repository = "/nowhere"\nhome = "{host.home}"')
    result = host.run("check")
    assert result.returncode == 11
    for said in (
        f"{flag.parent}, of the drain flag, is not there",
        "which instance is first (",
        "clojars-backup is not running",
        f"deploy-clojars -c {host.config} rollback {FIRST}",
        f"mv {host.home}/bin/deploy-clojars {host.home}/bin/deploy-clojars.old",
        f"chmod go-w {host.releases}",
        "/nowhere cannot be read",
    ):
        assert said in result.stdout, said


def test_a_bare_host_is_told_to_set_up(new_light_host: NewHost) -> None:
    host = new_light_host(services='bin = "/nowhere"')
    host.releases.rmdir()
    result = host.run("check")
    assert result.returncode == 11
    assert f"deploy-clojars -c {host.config} setup" in result.stdout
    assert "job clojars: /nowhere/status: No such file or directory" in result.stdout
    assert "Traceback" not in result.stderr


def test_a_rejected_configuration_is_the_usual_error(light_host: LittleHost) -> None:
    light_host.config.write_text("nmae = 1")
    assert light_host.run("check").returncode == 2


@pytest.mark.parametrize(
    ("said", "since", "wrong"),
    [
        ("git version 2.39.5", (2, 29), False),
        ("git version 2.29", (2, 29), False),
        ("git version 2.28.9", (2, 29), True),
        ("git version 2.100.1.windows.1", (2, 29), False),
        ("status (upstart 1.13.2)\nCopyright", (1, 4), False),
        ("status (upstart 1.3)", (1, 4), True),
        ("1.9.13", (1, 9, 13), False),
        ("1.9.9", (1, 9, 13), True),
        ("", (1, 4), True),
    ],
)
def test_versions_are_compared_as_numbers(said: str, since: tuple[int, ...], wrong: bool) -> None:
    assert programs.judged("it", said, since).wrong is wrong
