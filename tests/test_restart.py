"""`restart`: both instances anew on the same release, one after the other."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from clojure_repository import ClojureRepository as Tags
from conftest import NewHost
from front import in_front_of, request_in
from little_host import LittleHost, wait_for

FIRST, SECOND = Tags.FIRST, Tags.SECOND


def pids(host: LittleHost) -> tuple[int | None, int | None]:
    """The processes of the primary and the backup."""
    return host.pid("primary"), host.pid("backup")


def restarted(host: LittleHost) -> list[str]:
    """The instances in the order in which they were restarted."""
    return [event["instance"] for event in host.events if event["event"] == "restart"]


def test_both_are_new_processes_on_the_same_release(light_host: LittleHost) -> None:
    host = light_host
    before = pids(host)
    with host.typing("restart") as terminal:
        terminal.asked()
        assert pids(host) == before
        assert "users are logged out" in terminal.shown
        terminal.types("yes")
        terminal.ends(0)
    assert host.versions == (FIRST, FIRST)
    assert not set(pids(host)) & set(before)
    assert restarted(host) == ["backup", "primary"]
    assert host.status["ok"]


def test_a_job_file_that_was_changed_is_read(light_host: LittleHost) -> None:
    host = light_host
    for job, web, nailgun in (
        (host.primary, host.ports[0], host.ports[2]),
        (host.backup, host.ports[1], host.ports[3]),
    ):
        host.upstart.install(job, host.job_file(job, web, nailgun, REPO="/elsewhere"))
    host.control("restart", host.primary)
    assert b"REPO=/elsewhere" not in environment_of(host, "primary")
    host.done("restart", "--yes")
    for role in ("primary", "backup"):
        assert b"REPO=/elsewhere" in environment_of(host, role)


def environment_of(host: LittleHost, role: str) -> list[bytes]:
    pid = wait_for(lambda: host.pid(role), f"the {role} runs")
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


@pytest.mark.parametrize("down", [("clojars",), ("clojars", "clojars-backup")])
def test_a_primary_that_is_down_comes_first(light_host: LittleHost, down: tuple[str, ...]) -> None:
    host = light_host
    for job in down:
        host.control("stop", job)
    result = host.done("restart", "--yes")
    said = [line for line in result.stderr.splitlines() if line.endswith("started")]
    assert [line.split()[0] for line in said] == ["clojars", "clojars-backup"]
    assert [line.endswith("serve and is started") for line in said] == [
        job in down for job in ("clojars", "clojars-backup")
    ]
    assert restarted(host) == ["primary", "backup"]
    assert host.versions == (FIRST, FIRST)


@pytest.mark.any_manager
def test_no_leaves_everything_as_it_is(light_host: LittleHost) -> None:
    host = light_host
    before = pids(host)
    with host.typing("restart") as terminal:
        terminal.asked()
        terminal.types("no")
        terminal.ends(7)
    with host.typing("restart") as terminal:
        terminal.asked()
        terminal.presses("c")
        assert "nothing was changed" in terminal.ends(130)
    assert pids(host) == before
    assert restarted(host) == []


@pytest.mark.any_manager
def test_without_a_terminal_it_needs_an_answer_beforehand(light_host: LittleHost) -> None:
    result = light_host.run("restart")
    assert result.returncode == 2
    assert "--yes" in result.stderr
    assert not light_host.deploy.exists()


@pytest.mark.any_manager
def test_it_is_refused_before_anything_was_deployed(new_light_host: NewHost) -> None:
    result = new_light_host().run("restart", "--yes")
    assert result.returncode == 4
    assert "no release has been approved yet" in result.stderr


@pytest.mark.any_manager
def test_it_is_refused_while_something_drifts(light_host: LittleHost) -> None:
    host = light_host
    host.have(SECOND)
    host.done(SECOND, "--yes")
    before = pids(host)
    host.link.unlink()
    host.link.symlink_to(f"clojars-web-{FIRST}-standalone.jar")
    result = host.run("restart", "--yes", "--force")
    assert result.returncode == 4
    assert f"first: deploy-clojars rollback {SECOND}" in result.stderr
    assert pids(host) == before


@pytest.mark.any_manager
def test_it_is_refused_while_a_run_is_cut_off(light_host: LittleHost) -> None:
    host = light_host
    host.have(SECOND)
    with host.typing(SECOND) as terminal:
        terminal.asked()
        terminal.kill(signal.SIGKILL)
        terminal.ends(137)
    result = host.run("restart", "--yes")
    assert result.returncode == 4
    assert f"first: deploy-clojars rollback {FIRST}" in result.stderr


def test_the_primary_is_spared_if_the_backup_does_not_come_up(light_host: LittleHost) -> None:
    host = light_host
    primary = host.pid("primary")
    host.does_not_start(FIRST, "backup")
    result = host.run("restart", "--yes")
    assert result.returncode == 6, result.stderr
    assert "clojars serves alone and is left running" in result.stderr
    assert host.pid("primary") == primary
    assert host.version("primary") == FIRST


def test_force_restarts_the_only_serving_instance_and_says_what_it_costs(
    light_host: LittleHost,
) -> None:
    host = light_host
    primary = host.pid("primary")
    host.does_not_start(FIRST, "backup")
    result = host.run("restart", "--yes", "--force")
    assert result.returncode == 9, result.stderr
    assert "users get errors until it is up" in result.stderr
    assert host.version("primary") == FIRST
    assert host.pid("primary") != primary


def test_a_primary_that_does_not_come_up_leaves_the_backup_serving(light_host: LittleHost) -> None:
    host = light_host
    host.does_not_start(FIRST, "primary")
    result = host.run("restart", "--yes")
    assert result.returncode == 8, result.stderr
    assert f"deploy-clojars rollback {FIRST}\n" in result.stderr
    assert "and then once more: deploy-clojars restart" in result.stderr
    assert "run it again after the command named next" in host.run("status").stdout
    assert host.versions == (None, FIRST)
    assert host.status["next"] == f"deploy-clojars rollback {FIRST}"
    Path(f"{host.releases}/clojars-web-{FIRST}-standalone.jar.refused").unlink()
    finished = host.done("rollback", FIRST, "--yes")
    assert (
        "the restart before this did not finish; run it again: deploy-clojars restart"
        in finished.stderr
    )
    assert host.status["ok"]


def test_a_primary_that_comes_up_by_itself_does_not_end_the_restart(light_host: LittleHost) -> None:
    host = light_host
    host.does_not_start(FIRST, "primary")
    assert host.run("restart", "--yes").returncode == 8
    Path(f"{host.releases}/clojars-web-{FIRST}-standalone.jar.refused").unlink()
    host.comes_back("primary", FIRST)
    wait_for(lambda: host.status["ok"], "all is well")
    assert "the restart did not finish: run it again\n" in host.run("status").stdout
    before = pids(host)
    finished = host.done("rollback", FIRST, "--yes")
    assert "runs on both instances already" in finished.stderr
    assert "run it again: deploy-clojars restart" in finished.stderr
    assert pids(host) == before


@pytest.mark.parametrize("role", ["backup", "primary"])
def test_one_that_is_killed_in_the_middle_is_finished_by_what_status_names(
    light_host: LittleHost, role: str
) -> None:
    host = light_host
    with host.comes_up_late(FIRST, role), host.typing("restart", "--yes") as terminal:
        wait_for(lambda: host.is_at(role) or role in restarted(host), f"the {role} is restarted")
        terminal.kill(signal.SIGKILL)
        terminal.ends(137)
    status = wait_for(lambda: (now := host.status)["lock"] is None and now, "the lock is free")
    assert status["interrupted"]
    assert status["next"] == f"deploy-clojars rollback {FIRST}"
    host.done("rollback", FIRST, "--yes")
    assert host.versions == (FIRST, FIRST)
    assert host.status["ok"]


def test_a_signal_in_the_middle_is_noted_and_the_restart_seen_through(
    light_host: LittleHost,
) -> None:
    host = light_host
    before = pids(host)
    with host.typing("restart", "--yes") as terminal:
        with host.comes_up_late(FIRST, "backup"):
            terminal.sees("stop and start clojars-backup")
            terminal.presses("c")
            terminal.sees("signal noted; finishing")
        terminal.ends(0)
    assert not set(pids(host)) & set(before)
    assert host.status["ok"]


@pytest.mark.any_manager
def test_a_signal_in_the_first_drain_comes_before_anything_is_restarted(
    light_host: LittleHost,
) -> None:
    host = light_host
    before = pids(host)
    with (
        in_front_of(host, quiet="100", timeout="200") as front,
        host.typing("restart", "--yes") as terminal,
    ):
        wait_for(lambda: host.is_at("drain"), "the drain")
        terminal.presses("c")
        terminal.ends(130)
        assert not front.flag.exists()
    assert pids(host) == before
    assert host.status["ok"]


def change_the_link(host: LittleHost) -> None:
    host.have(SECOND)
    host.link.unlink()
    host.link.symlink_to(f"clojars-web-{SECOND}-standalone.jar")


@pytest.mark.any_manager
def test_what_changed_while_the_question_was_open_is_refused_before_anything_is_done(
    light_host: LittleHost,
) -> None:
    host = light_host
    before = pids(host)
    with host.typing("restart") as terminal:
        terminal.asked()
        change_the_link(host)
        terminal.types("yes")
        shown = terminal.ends(4)
    assert f"current is {SECOND}, and {FIRST} is approved" in shown
    assert f"first: deploy-clojars rollback {FIRST}" in shown
    assert pids(host) == before
    assert "begin" not in [event["event"] for event in host.events]


@pytest.mark.any_manager
def test_what_changes_during_the_drain_is_refused_while_nothing_was_restarted(
    light_host: LittleHost,
) -> None:
    host = light_host
    before = pids(host)
    with in_front_of(host, quiet="0.2", timeout="100") as front:
        front.flag.touch()
        with request_in(host, front, "backup") as request:
            front.flag.unlink()
            with host.typing("restart", "--yes") as terminal:
                wait_for(lambda: host.is_at("drain"), "the drain of the backup")
                change_the_link(host)
                assert request.is_let_go() == FIRST
                shown = terminal.ends(6)
    assert f"someone else has changed current: it names {SECOND}, not {FIRST}" in shown
    assert f"once the cause is fixed, run: deploy-clojars rollback {FIRST}" in shown
    assert f"nothing that runs was changed; clojars runs {FIRST} as before" in shown
    assert pids(host) == before
    assert restarted(host) == []
    assert "the restart did not finish" not in host.run("status").stdout
