"""Faults of what runs the instances, and of the instances themselves: one restart, then back."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import zipfile
from pathlib import Path

import pytest
from clojure_repository import ClojureRepository as Tags
from conftest import NewHost
from little_host import LittleHost, free_ports
from standin.upstart import Upstart

from deploy_clojars import config
from deploy_clojars.checks import running
from deploy_clojars.checks.finding import Site
from deploy_clojars.deploy import preflight
from deploy_clojars.errors import NotReady
from deploy_clojars.host.host import Host
from deploy_clojars.machine import processes

FIRST, SECOND = Tags.FIRST, Tags.SECOND

NEVER_ANSWERS = "time.sleep(1000)"
# Without http.server, whose import takes a busy machine seconds.
LISTENS = """
server = _socket.socket()
server.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
server.bind(("127.0.0.1", int(os.environ["PORT"])))
server.listen(5)
def answer(status):
    client = _socket.socket(fileno=server._accept()[0])
    client.recv(65536)
    client.sendall(b"HTTP/1.0 " + status + b"\\r\\nContent-Length: 0\\r\\n\\r\\n")
    client.close()
"""
ANSWERS_500 = f"{LISTENS}while True: answer(b'500 Internal Server Error')"
ANSWERS_ONCE_AND_DIES = f"{LISTENS}answer(b'200 OK'); os._exit(1)"


def make_release(host: LittleHost, version: str, code: str) -> None:
    """A release of the tag's commit that does something else than to serve."""
    path = host.releases / f"clojars-web-{version}-standalone.jar"
    start = "import _socket, os, sys, time\njar = open(os.path.realpath(sys.argv[0]), 'rb')\n"
    with zipfile.ZipFile(host.jar(version)) as good, zipfile.ZipFile(path, "w") as jar:
        for name in good.namelist():
            if name != "__main__.py":
                jar.writestr(name, good.read(name))
        jar.writestr("__main__.py", start + code)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (NEVER_ANSWERS, "Connection refused"),
        (ANSWERS_500, "500 Internal Server Error"),
        (ANSWERS_ONCE_AND_DIES, "clojars-backup did not come up on"),
    ],
    ids=["never answers", "answers 500", "answers once and dies"],
)
def test_an_instance_that_does_not_come_up_is_reverted(
    light_host: LittleHost, code: str, said: str
) -> None:
    host = light_host
    host.write_config(health="timeout = 6\nsettle = 0.3\ninterval = 0.1")
    make_release(host, SECOND, code)
    primary = host.pid("primary")
    result = host.run(SECOND, "--yes")
    assert result.returncode == 6
    assert said in result.stderr
    assert f"reverted: {FIRST} is current and runs on both instances" in result.stderr
    assert (host.versions, host.pid("primary")) == ((FIRST, FIRST), primary)
    assert host.status["ok"]


def test_a_restart_that_hangs_has_a_time_limit_and_is_said(
    light_host: LittleHost, upstart: Upstart
) -> None:
    host = light_host
    host.have(SECOND)
    host.write_config(services="timeout = 4")  # for the other calls, too
    upstart.hang("restart")
    result = host.run(SECOND, "--yes")
    # The link is back, and the backup that could not be asked still runs what it ran.
    assert result.returncode == 6
    assert "restart clojars-backup: no answer within 4 s" in result.stderr
    assert host.current == f"clojars-web-{FIRST}-standalone.jar"
    assert host.versions == (FIRST, FIRST)
    # What Upstart was asked it does when it can; by then that is the approved release.
    upstart.unhang()
    host.done("rollback", FIRST, "--yes")
    assert host.versions == (FIRST, FIRST)
    assert host.status["ok"]


@pytest.mark.parametrize("words", [("restart",), ("deploy", SECOND)])
def test_a_stop_that_takes_longer_than_the_time_limit_leaves_nothing_down_and_nothing_half_done(
    new_light_host: NewHost, words: tuple[str, ...]
) -> None:
    host = new_light_host(services="timeout = 3")  # for the other calls, too
    slow = {r"^kill timeout .*": "kill timeout 5\nkill signal WINCH"}  # nobody heeds that signal
    for job, web, nailgun in zip(
        (host.primary, host.backup), host.ports[:2], host.ports[2:], strict=True
    ):
        host.upstart.install(job, host.job_file(job, web, nailgun, **slow))
    host.serving(FIRST)
    host.have(SECOND)
    host.done(*words, "--yes")
    assert host.versions == ((FIRST, FIRST) if words == ("restart",) else (SECOND, SECOND))
    assert host.status["ok"]


@pytest.mark.parametrize(("broken", "status"), [("backup", 9), ("primary", 8)])
def test_a_broken_job_file_of_one_instance_does_not_keep_the_other_one_down(
    light_host: LittleHost, upstart: Upstart, broken: str, status: int
) -> None:
    host = light_host
    for job in (host.primary, host.backup):
        host.control("stop", job)
    upstart.install(getattr(host, broken), "nonsense\n")
    assert host.status["next"] is not None

    result = host.run("rollback", FIRST, "--yes")

    assert result.returncode == status
    assert "Unknown job" in result.stderr
    assert host.status["instances"]["primary"]["serving"] is (broken == "backup")
    assert host.status["instances"]["backup"]["serving"] is (broken == "primary")


def test_an_instance_that_serves_is_not_restarted_while_the_others_job_is_unknown(
    light_host: LittleHost, upstart: Upstart
) -> None:
    host = light_host
    host.have(SECOND)
    host.control("stop", host.backup)
    upstart.install(host.backup, "nonsense\n")
    pid = host.pid("primary")

    result = host.run("rollback", SECOND, "--yes")

    assert result.returncode == 4
    assert f"the state of {host.backup} is unknown" in result.stderr
    assert host.pid("primary") == pid


def fake_sudo(host: LittleHost, directory: Path, text: str) -> None:
    """A sudo that says this and refuses."""
    directory.mkdir()
    (directory / "sudo").write_text(f"#!/bin/sh\necho '{text}' >&2\nexit 1\n", encoding="utf-8")
    (directory / "sudo").chmod(0o755)
    host.environment["PATH"] = f"{directory}:{os.environ['PATH']}"
    host.write_config(services="sudo = true")


@pytest.mark.parametrize(
    "text", ["Sorry, user clojars is not allowed to execute", "sudo: a password is required"]
)
@pytest.mark.parametrize("words", [(SECOND, "--yes"), ("rollback", SECOND, "--yes")])
def test_a_sudo_that_refuses_or_asks_for_a_password_is_said_before_anything_is_done(
    light_host: LittleHost, tmp_path: Path, text: str, words: tuple[str, ...]
) -> None:
    host = light_host
    host.have(SECOND)
    fake_sudo(host, tmp_path / "bin", text)
    result = host.run(*words)
    assert result.returncode == 4
    assert "sudo does not let this user run" in result.stderr
    assert "without a password" in result.stderr
    assert re.search(
        r"^  nothing was changed; as root: deploy-clojars .*setup\n  allow exactly these commands",
        result.stderr, re.MULTILINE,
    )  # fmt: skip
    assert host.versions == (FIRST, FIRST)
    assert not (host.deploy / "mirror.git").exists()


def test_a_build_that_writes_100_mb_that_are_no_text_shows_a_screenful(
    new_light_host: NewHost,
) -> None:
    host = new_light_host(build='test = "head -c 100000000 /dev/urandom; false"')
    result = host.run(FIRST, "--yes")
    assert result.returncode == 5
    assert (
        "the tests (head -c 100000000 /dev/urandom; false) failed: exit status 1" in result.stderr
    )
    assert len(result.stderr.splitlines()) < 50
    assert all(line.isprintable() for line in result.stderr.splitlines())
    [log] = (host.deploy / "logs").iterdir()
    assert log.stat().st_size > 100_000_000


@pytest.mark.parametrize("role", ["primary", "backup"])
def test_a_health_url_that_nothing_answers_is_refused_before_anything_is_restarted(
    light_host: LittleHost, role: str
) -> None:
    host = light_host
    host.have(SECOND)
    host.write_config(health="timeout = 1.5")
    pids = host.pid("primary"), host.pid("backup")
    right = host.config.read_text(encoding="utf-8")
    port = host.ports[0] if role == "primary" else host.ports[1]
    wrong = right.replace(
        f'health = ["http://127.0.0.1:{port}/"', 'health = ["http://127.0.0.1:1/"'
    )
    assert wrong != right
    host.config.write_text(wrong, encoding="utf-8")
    result = host.run(SECOND, "--yes")
    assert result.returncode == 4, result.stderr
    assert "is not healthy as configured: http://127.0.0.1:1/: Connection refused" in result.stderr
    assert f"if instances.{role} in the configuration is wrong, fix it" in result.stderr
    assert (host.pid("primary"), host.pid("backup")) == pids
    assert host.current == f"clojars-web-{FIRST}-standalone.jar"
    host.write_config()
    host.done(SECOND, "--yes")


ANYTHING = [(SECOND, "--yes"), ("rollback", SECOND, "--yes"), ("restart", "--yes")]


@pytest.mark.parametrize("words", ANYTHING)
@pytest.mark.parametrize("wrong", ["web", "nailgun", "both"])
def test_urls_of_ports_on_which_neither_instance_listens_are_refused_by_every_command(
    light_host: LittleHost, wrong: str, words: tuple[str, ...]
) -> None:
    host = light_host
    host.have(SECOND)
    pids = host.pid("primary"), host.pid("backup")
    right = host.ports
    free = free_ports(4)
    host.ports = [
        free[index] if wrong in ("both", "web" if index < 2 else "nailgun") else port
        for index, port in enumerate(right)
    ]
    host.write_config()
    result = host.run(*words)
    assert result.returncode == 4, result.stderr
    listens = f"clojars (PID {pids[0]}) does not listen on port"
    assert listens in result.stderr
    assert str(host.config) in result.stderr
    checked = host.run("check")
    assert listens in checked.stdout
    assert f"set instances.primary.health in {host.config}" in checked.stdout
    assert (host.pid("primary"), host.pid("backup")) == pids
    assert host.current == f"clojars-web-{FIRST}-standalone.jar"
    host.ports = right


def test_an_instance_that_hangs_before_it_listens_can_be_rolled_back(
    light_host: LittleHost,
) -> None:
    host = light_host
    host.have(SECOND)
    pid = host.pid("primary")
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)  # it listens on both ports, and answers at none
    try:
        host.done("rollback", SECOND, "--yes")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    assert host.versions == (SECOND, SECOND)


@pytest.mark.parametrize("words", ANYTHING)
def test_a_name_without_an_address_is_refused_by_every_command(
    light_host: LittleHost, words: tuple[str, ...]
) -> None:
    host = light_host
    host.have(SECOND)
    pids = host.pid("primary"), host.pid("backup")
    text = host.config.read_text(encoding="utf-8")
    host.config.write_text(text.replace('["http://127.0.0.1', '["http://nowhere.invalid'))
    result = host.run(*words)
    assert result.returncode == 4, result.stderr
    assert "the host nowhere.invalid in a health URL of clojars has no address: " in result.stderr
    assert (host.pid("primary"), host.pid("backup")) == pids


def test_an_instance_that_could_not_be_seen_to_be_healthy_is_not_restarted(
    light_host: LittleHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(config.load(light_host.config), file=light_host.config)
    preflight.ready_to_restart(host)

    def refuses(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(processes, "_look_at_open_files", refuses)
    with pytest.raises(NotReady, match="what clojars has open is not visible to this user: PID"):
        preflight.ready_to_restart(host)
    [first, *_] = [each for each in running.jobs(Site(host, host.look())) if each.wrong]
    assert first.what.startswith("what clojars has open is not visible")
    assert "a program that has no file capability" in first.remedy


def test_an_instance_that_ends_while_it_is_looked_at_is_gone_and_no_other_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:

        def ends(*_: object) -> None:
            process.kill()
            process.wait()

        monkeypatch.setattr(processes, "_look_at_open_files", ends)
        assert processes.tree(process.pid) is None
