"""A backup that runs only during a run, on a host with memory for one JVM."""

from __future__ import annotations

import os
import shlex
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from clojure_repository import ClojureRepository as Tags
from conftest import Clojure
from front import Front, asked, in_front_of, request_in
from little_host import LittleHost, wait_for
from load.site import site_of
from standin.upstart import RealUpstart, Upstart
from systemd_kit import bare_machine
from test_killed import kill_at_the_question, kill_in_the_promotion

FIRST, SECOND, THIRD = Tags.FIRST, Tags.SECOND, Tags.THIRD


@pytest.fixture
def resting(ready: LittleHost) -> LittleHost:
    """0.1.0 is in production on the primary alone; 0.2.0 and 0.2.1 are there."""
    ready.lets_the_backup_rest()
    return ready


@pytest.fixture
def resting_light_host(light_host: LittleHost) -> LittleHost:
    """The same, under Upstart only."""
    for tag in (SECOND, THIRD):
        light_host.have(tag)
    light_host.lets_the_backup_rest()
    return light_host


@pytest.fixture
def front(light_host: LittleHost) -> Iterator[Front]:
    """nginx in front of a host whose backup may rest."""
    light_host.have(SECOND)
    light_host.options["instances.backup"] = "only_while_deploying = true"
    with in_front_of(light_host, quiet="0.2", timeout="60") as front:
        yield front


def what_was_done(host: LittleHost) -> list[str]:
    """What the journal says of the link and the instances, in order."""
    kept = ("flip", "restart", "stop", "promoted", "rolled back")
    return [
        " ".join(filter(None, (event["event"], event.get("instance"), event.get("version"))))
        for event in host.events
        if event["event"] in kept
    ]


def rests(host: LittleHost) -> bool:
    """Whether the backup is stopped, and all is well."""
    return host.pid("backup") is None and bool(host.status["ok"])


# What is said of it


def test_a_backup_that_rests_needs_nobody(resting: LittleHost) -> None:
    status = resting.status
    assert (status["ok"], status["next"], status["drift"]) == (True, None, False)
    backup = status["instances"]["backup"]
    assert (backup["state"], backup["running"], backup["serving"]) == ("stopped", None, False)
    text = resting.done("status").stdout
    assert "clojars-backup: stopped (runs only while deploying)\nok\n" in text
    assert resting.done("-q", "status").stdout == ""  # what a login shows
    assert "ok  job clojars-backup: stopped (runs only while deploying)" in resting.run("check").stdout  # fmt: skip


def test_one_that_runs_is_as_well_unless_it_runs_another_release(resting: LittleHost) -> None:
    host = resting
    host.done(SECOND, "--yes")
    host.control("start", host.backup)
    wait_for(lambda: host.version("backup") == SECOND, "the backup serves")
    assert host.status["ok"]
    host.done(SECOND, "--yes")
    assert rests(host)
    # Upstart and supervisord start it on what current names.
    host.link.unlink()
    host.link.symlink_to(f"clojars-web-{THIRD}-standalone.jar")
    host.control("start", host.backup)
    wait_for(lambda: host.version("backup") == THIRD, "the backup serves another release")
    host.link.unlink()
    host.link.symlink_to(f"clojars-web-{SECOND}-standalone.jar")
    status = host.status
    assert (status["ok"], status["drift"]) == (False, True)
    assert status["next"] == f"deploy-clojars rollback {SECOND}"
    primary = host.pid("primary")
    host.done("rollback", SECOND, "--yes")
    assert rests(host)
    assert host.pid("primary") == primary


def test_without_the_key_a_stopped_backup_needs_somebody(resting: LittleHost) -> None:
    text = resting.config.read_text(encoding="utf-8")
    resting.config.write_text(text.replace("only_while_deploying = true\n", ""), encoding="utf-8")
    assert resting.status["next"] == f"deploy-clojars rollback {FIRST}"


def test_a_stranger_on_its_port_is_found(resting_light_host: LittleHost) -> None:
    host = resting_light_host
    with socket.create_server(("127.0.0.1", host.ports[1])):
        taken = f"(runs only while deploying); port {host.ports[1]} is taken by PID {os.getpid()}"
        assert taken in host.done("status").stdout
        checked = host.run("check").stdout
        assert f"!!  job clojars-backup: stopped {taken}" in checked
        assert f"      kill {os.getpid()}\n" in checked
    assert rests(host)


# What runs meanwhile


def test_a_deploy_starts_it_and_stops_it_when_the_primary_is_healthy(resting: LittleHost) -> None:
    host = resting
    with host.typing(SECOND) as terminal:
        terminal.asked()
        assert "start clojars-backup" in terminal.shown
        assert host.versions == (FIRST, SECOND)
        terminal.types("yes")
        terminal.ends(0)
    assert host.version("primary") == SECOND
    assert rests(host)
    assert what_was_done(host) == [
        f"flip {SECOND}", f"restart backup {SECOND}", f"restart primary {SECOND}",
        f"promoted {SECOND}", "stop backup",
    ]  # fmt: skip
    assert host.events[-1]["event"] == "end"


@pytest.mark.parametrize("answer", ["no", signal.SIGTERM])
def test_a_deploy_that_is_declined_or_stopped_only_stops_it(
    resting: LittleHost, answer: str | signal.Signals
) -> None:
    host = resting
    primary = host.pid("primary")
    with host.typing(SECOND) as terminal:
        terminal.asked()
        assert f"no   puts current back to {FIRST} and stops clojars-backup" in terminal.shown
        if isinstance(answer, str):
            terminal.types(answer)
        else:
            terminal.kill(answer)
        terminal.sees(f"reverted: {FIRST} is current and runs on clojars")
        terminal.ends((7, 143))
    assert host.pid("primary") == primary
    assert rests(host)
    assert what_was_done(host) == [
        f"flip {SECOND}", f"restart backup {SECOND}", f"flip {FIRST}", "stop backup",
    ]  # fmt: skip


def test_a_deploy_whose_release_does_not_start_leaves_it_stopped(
    resting_light_host: LittleHost,
) -> None:
    host = resting_light_host
    host.does_not_start(SECOND, "backup")
    result = host.run(SECOND, "--yes")
    assert result.returncode == 6, result.stderr
    assert host.version("primary") == FIRST
    assert rests(host)


def test_it_stays_if_the_primary_does_not_come_up(resting_light_host: LittleHost) -> None:
    host = resting_light_host
    host.does_not_start(SECOND, "primary")
    assert host.run(SECOND, "--yes").returncode == 8
    assert host.versions == (None, SECOND)
    Path(f"{host.releases}/clojars-web-{SECOND}-standalone.jar.refused").unlink()
    host.done("rollback", FIRST, "--yes")
    assert host.version("primary") == FIRST
    assert rests(host)


def test_a_rollback_and_a_restart_start_it_for_the_primarys_restart(resting: LittleHost) -> None:
    host = resting
    with host.typing("rollback", SECOND) as terminal:
        terminal.asked()
        assert "clojars-backup runs nothing: will be started" in terminal.shown
        assert "clojars-backup is stopped at the end" in terminal.shown
        terminal.types("yes")
        terminal.ends(0)
    assert host.version("primary") == SECOND
    assert rests(host)
    host.done("restart", "--yes")
    assert rests(host)
    assert what_was_done(host) == [
        f"flip {SECOND}", f"restart backup {SECOND}", f"restart primary {SECOND}",
        f"rolled back {SECOND}", "stop backup",
        f"restart backup {SECOND}", f"restart primary {SECOND}", "stop backup",
    ]  # fmt: skip


def test_it_is_not_started_where_the_primary_needs_no_restart(resting: LittleHost) -> None:
    host = resting
    assert "nothing to do" in host.done(FIRST, "--yes").stderr
    assert f"{FIRST} is current, approved and runs on clojars already" in (
        host.done("rollback", FIRST, "--yes").stderr
    )
    host.link.unlink()
    host.link.symlink_to(f"clojars-web-{SECOND}-standalone.jar")
    host.done("rollback", FIRST, "--yes")
    assert what_was_done(host) == [f"flip {FIRST}", f"rolled back {FIRST}"]
    assert rests(host)


def test_a_primary_that_is_down_is_started_and_nothing_else(resting: LittleHost) -> None:
    host = resting
    host.control("stop", host.primary)
    assert host.status["next"] == f"deploy-clojars rollback {FIRST}"
    host.done("rollback", FIRST, "--yes")
    assert what_was_done(host)[1:] == [f"restart primary {FIRST}", f"rolled back {FIRST}"]
    assert host.version("primary") == FIRST
    assert rests(host)


def test_if_the_primary_cannot_be_started_the_backup_is(resting_light_host: LittleHost) -> None:
    host = resting_light_host
    host.control("stop", host.primary)
    host.does_not_start(FIRST, "primary")
    assert host.run("rollback", FIRST, "--yes").returncode == 8
    assert host.versions == (None, FIRST)


def test_a_dry_run_starts_it_first_and_stops_it_last(resting: LittleHost) -> None:
    for command in ((SECOND,), ("rollback", SECOND), ("restart",)):
        lines = resting.done(*command, "--dry-run").stdout.splitlines()
        asked = [line for line in lines if line.endswith((" clojars-backup", " clojars"))]
        assert [line.split()[-2].rpartition("/")[2] for line in (asked[0], asked[-1])] == [
            "start", "stop",
        ]  # fmt: skip
        assert lines[-1].endswith("stop clojars-backup")
    assert rests(resting)


def test_setup_has_systemd_start_only_the_primary_at_boot() -> None:
    with bare_machine() as host:
        config = host.machine.run("cat", "/etc/deploy-clojars.toml").stdout
        table = "[instances.backup]\n"
        config = config.replace(table, f"{table}only_while_deploying = true\n")
        host.machine.write("/etc/deploy-clojars.toml", config)
        assert host.tool("setup").returncode == 0
        enabled = [host.machine.run("systemctl", "is-enabled", job, check=False).stdout.strip()
                   for job in ("clojars", "clojars-backup")]  # fmt: skip
        assert enabled == ["enabled", "disabled"]
        host.serve()
        done = host.tool("restart", "--yes", by="clojars")
        assert done.returncode == 0, done.stderr
        backup = host.status["instances"]["backup"]
        assert (host.status["ok"], backup["state"]) == (True, "stopped")
        shown = host.tool("check").stdout
        assert "ok  job clojars-backup: stopped (runs only while deploying)\n" in shown
        assert "ok  clojars-backup.service does not start at boot\n" in shown
        host.systemctl("enable", "--quiet", "clojars-backup")
        assert "!!  clojars-backup.service would start at boot, though it runs only" in host.check()


# What may go wrong at its stop


def program_in_place_of_stop(host: LittleHost, script: str) -> None:
    """Puts a shell script in the place of Upstart's `stop`, which is `$stop` in it."""
    programs = host.directory / "bin"
    programs.mkdir()
    for program in host.upstart.bin.iterdir():
        (programs / program.name).symlink_to(program)
    stop = programs / "stop"
    stop.unlink()
    real = shlex.quote(str(host.upstart.bin / "stop"))
    stop.write_text(f"#!/bin/sh\nstop={real}\n{script}\n", encoding="utf-8")
    stop.chmod(0o755)
    text = host.config.read_text(encoding="utf-8")
    host.config.write_text(text.replace(str(host.upstart.bin), str(programs)), encoding="utf-8")


def test_a_stop_that_fails_is_a_warning_with_the_command(resting_light_host: LittleHost) -> None:
    host = resting_light_host
    program_in_place_of_stop(host, 'echo "stop: no" >&2; exit 1')
    result = host.done(SECOND, "--yes")
    command = f"{host.directory}/bin/stop clojars-backup"
    assert "warning: clojars-backup could not be stopped: stop: no; clojars-backup was not" in (
        result.stderr
    )
    assert f"to stop it later: {command}\n" in result.stderr
    assert host.versions == (SECOND, SECOND)
    assert host.status["ok"]


@pytest.mark.parametrize(
    ("words", "following", "stops"),
    [
        ((SECOND, "--yes"), ("deploy", SECOND), True),
        ((SECOND, "--yes"), ("deploy", SECOND), False),
        (("rollback", SECOND, "--yes"), ("rollback", SECOND), False),
        (("restart", "--yes"), ("rollback", FIRST), True),
        ((SECOND,), ("rollback", FIRST), True),
        ((SECOND,), ("rollback", FIRST), False),
    ],
    ids=["deploy, after it", "deploy", "rollback", "restart, after it", "no, after it", "no"],
)
def test_killed_at_its_stop_the_command_that_status_names_finishes_it(
    resting_light_host: LittleHost,
    words: tuple[str, ...],
    following: tuple[str, str],
    stops: bool,
) -> None:
    host = resting_light_host
    held = host.directory / "held"
    does = '"$stop" "$@"' if stops else "true"
    # `restart` stops the primary, too, and before it starts the backup that one.
    program_in_place_of_stop(
        host,
        f"""[ "$1" = clojars-backup ] && [ ! -e {host.directory}/after ] &&
        {host.upstart.bin}/status clojars-backup | grep -q start/running || exec "$stop" "$@"
        {does}; touch {held}; while [ -e {held} ]; do sleep 0.05; done""",
    )
    with host.typing(*words) as terminal:
        if words == (SECOND,):
            terminal.asked()
            terminal.types("no")
        wait_for(held.exists, "the backup is stopped")
        terminal.kill(signal.SIGKILL)
        terminal.ends(137)
    (host.directory / "after").touch()
    held.unlink()
    assert (host.pid("backup") is None) is stops
    primary = host.pid("primary")
    status = host.status
    assert (status["interrupted"], status["drift"], status["ok"]) == (True, False, False)
    version = following[1]
    assert status["current"] == status["approved"] == version
    assert status["next"] == shlex.join(["deploy-clojars", *following])
    host.done(*following, "--yes")
    assert host.pid("primary") == primary
    assert host.version("primary") == version
    assert rests(host)


def test_killed_at_the_question_the_next_run_stops_it_first(resting: LittleHost) -> None:
    host = resting
    kill_at_the_question(host)
    status = host.status
    assert (status["interrupted"], status["next"]) == (True, f"deploy-clojars rollback {FIRST}")
    primary = host.pid("primary")
    host.done("rollback", FIRST, "--yes")
    assert host.pid("primary") == primary
    assert rests(host)
    kill_at_the_question(host)
    result = host.done(THIRD, "--yes")
    assert f"reverted: {FIRST} is current and runs on clojars" in result.stderr
    assert host.version("primary") == THIRD
    assert rests(host)


def test_killed_in_the_promotion_the_same_deploy_finishes_it(resting: LittleHost) -> None:
    host = resting
    kill_in_the_promotion(host)
    wait_for(lambda: host.version("primary") == SECOND, "the primary is up")
    assert host.status["next"] == f"deploy-clojars deploy {SECOND}"
    primary = host.pid("primary")
    host.done(SECOND, "--yes")
    assert host.pid("primary") == primary
    assert rests(host)


def test_a_signal_while_it_is_stopped_changes_nothing(resting_light_host: LittleHost) -> None:
    host = resting_light_host
    held = host.directory / "held"
    program_in_place_of_stop(
        host, f'touch {held}; while [ -e {held} ]; do sleep 0.05; done; exec "$stop" "$@"'
    )
    with host.typing(SECOND, "--yes") as terminal:
        wait_for(held.exists, "the backup is stopped")
        terminal.kill(signal.SIGTERM)
        held.unlink()
        terminal.ends(0)
    assert rests(host)


# Who is in it


@pytest.mark.jvm
def test_no_request_is_lost_though_it_stops_at_the_end_of_each_run(
    tmp_path: Path, upstart: Upstart | RealUpstart, clojure: Clojure
) -> None:
    with site_of(
        tmp_path / "site", upstart, clojure.repository, clojure.jar, "abrupt",
        backup="only_while_deploying = true", settle="0.5",
    ) as site:  # fmt: skip
        host = site.host
        host.control("stop", host.backup)
        with site.under_load(0.4) as load:
            for words in ((SECOND,), ("rollback", FIRST), ("restart",)):
                host.done(*words, "--yes")
                assert rests(host)
            with host.typing(SECOND) as terminal:
                terminal.asked()
                terminal.types("no")
                terminal.ends(7)
            assert rests(host)
        account = load.account()
        assert account.is_clean, account
        assert account.requests > 1000


@pytest.fixture
def in_its_backup(light_host: LittleHost, front: Front) -> LittleHost:
    """The host behind nginx, with requests in the backup until the primary is back."""
    host = light_host
    host.control("stop", host.primary)
    wait_for(lambda: asked(front, "/version") == FIRST, "the backup serves")
    return host


def comes_back(host: LittleHost) -> None:
    """The primary is there again."""
    host.control("start", host.primary)
    wait_for(lambda: host.version("primary") == FIRST, "the primary is back")


def test_a_request_in_it_is_answered_before_its_stop(
    in_its_backup: LittleHost, front: Front
) -> None:
    host = in_its_backup
    with request_in(host, front, "backup") as request:
        comes_back(host)
        with host.typing(FIRST, "--yes") as terminal:
            wait_for(lambda: host.is_at("drain"), "its requests are waited for")
            assert request.is_let_go() == FIRST
            assert f"{FIRST} is in production already" in terminal.ends(0)
    assert rests(host)


def test_a_primary_that_dies_during_its_drain_keeps_it_running(
    in_its_backup: LittleHost, front: Front
) -> None:
    host = in_its_backup
    with request_in(host, front, "backup") as request:
        comes_back(host)
        with host.typing(FIRST, "--yes") as terminal:
            wait_for(lambda: host.is_at("drain"), "its requests are waited for")
            host.control("stop", host.primary)
            assert request.is_let_go() == FIRST
            shown = terminal.ends(0)
    assert "clojars no longer serves, and clojars-backup serves alone" in " ".join(shown.split())
    assert asked(front, "/version") == FIRST
    assert host.status["next"] == f"deploy-clojars rollback {FIRST}"


def test_a_nailgun_client_in_it_is_not_cut(in_its_backup: LittleHost, front: Front) -> None:
    host = in_its_backup
    patient = host.options["drain"]
    host.options["drain"] = patient.replace("timeout = 60", "timeout = 1")
    host.write_config()
    with socket.create_connection(("127.0.0.1", front.nailgun_port)) as client:
        assert client.recv(100)
        comes_back(host)
        result = host.done(FIRST, "--yes")
        assert "clojars-backup still had requests from nginx after 1 s; clojars-backup was not" in (
            result.stderr
        )
        assert host.versions == (FIRST, FIRST)
        assert host.status["ok"]
    host.options["drain"] = patient  # nginx may take a while to end its side of the connection
    host.write_config()
    host.done(FIRST, "--yes")
    assert rests(host)
