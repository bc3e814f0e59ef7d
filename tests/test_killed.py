"""The tool killed where it hurts: status knows it, and the next command needs no clean-up."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from clojure_repository import ClojureRepository as Tags
from little_host import LittleHost, wait_for

FIRST, SECOND, THIRD = Tags.FIRST, Tags.SECOND, Tags.THIRD


def kill_at_the_question(host: LittleHost) -> None:
    """Nobody answered, and nothing is put back."""
    with host.typing(SECOND) as terminal:
        terminal.asked()
        terminal.kill(signal.SIGKILL)
        terminal.ends(137)


def kill_in_the_promotion(host: LittleHost) -> None:
    """The primary was asked to restart, and nobody waits for it."""
    with host.typing(SECOND) as terminal:
        terminal.asked()
        before = host.pid("primary")
        with host.comes_up_late(SECOND, "primary"):
            terminal.types("yes")
            wait_for(lambda: host.pid("primary") not in (before, None), "the primary restarts")
            terminal.kill(signal.SIGKILL)
            terminal.ends(137)


def test_killed_at_the_question_status_names_the_way_back(ready: LittleHost) -> None:
    kill_at_the_question(ready)
    status = ready.status
    assert (status["interrupted"], status["drift"], status["ok"]) == (True, False, False)
    assert (status["current"], status["approved"]) == (SECOND, FIRST)
    assert status["next"] == f"deploy-clojars rollback {FIRST}"
    text = ready.run("status").stdout
    assert "was cut off before its point of no return" in text
    ready.done("rollback", FIRST, "--yes")
    assert ready.versions == (FIRST, FIRST)
    assert ready.status["ok"]


def test_killed_at_the_question_the_same_deploy_reverts_first(ready: LittleHost) -> None:
    kill_at_the_question(ready)
    primary = ready.pid("primary")
    with ready.typing(SECOND) as terminal:
        terminal.sees("reverting it first")
        terminal.sees(f"reverted: {FIRST} is current and runs on both instances")
        terminal.asked()
        assert ready.pid("primary") == primary
        terminal.types("yes")
        terminal.ends(0)
    assert ready.versions == (SECOND, SECOND)
    assert (ready.status["ok"], ready.status["previous"]) == (True, FIRST)


@pytest.mark.any_manager
def test_killed_at_the_question_another_deploy_reverts_first(ready: LittleHost) -> None:
    kill_at_the_question(ready)
    result = ready.done(THIRD, "--yes")
    assert f"reverted: {FIRST} is current" in result.stderr
    assert ready.versions == (THIRD, THIRD)
    assert ready.status["previous"] == FIRST


@pytest.mark.any_manager
def test_killed_at_the_question_a_bare_rollback_goes_to_the_approved_release(
    ready: LittleHost,
) -> None:
    kill_at_the_question(ready)
    primary = ready.pid("primary")
    ready.done("rollback", "--yes")
    assert ready.versions == (FIRST, FIRST)
    assert ready.pid("primary") == primary
    assert ready.status["ok"]


def test_killed_at_the_question_a_rollback_leads_past_an_approved_release_that_does_not_start(
    light_host: LittleHost,
) -> None:
    host = light_host
    for version in (SECOND, THIRD):
        host.have(version)
    kill_at_the_question(host)
    host.does_not_start(FIRST, "primary", "backup")  # any more
    shown = host.done("rollback", THIRD, "--yes").stderr
    assert f"the revert to {FIRST} is half done" in shown
    assert f"continuing with the rollback to {THIRD}" in shown
    assert host.versions == (THIRD, THIRD)
    assert host.status["ok"]


@pytest.mark.jvm
def test_killed_in_the_promotion_the_same_deploy_finishes_it(ready: LittleHost) -> None:
    kill_in_the_promotion(ready)
    status = ready.status
    assert (status["interrupted"], status["approved"]) == (True, FIRST)
    assert status["next"] == f"deploy-clojars deploy {SECOND}"
    wait_for(lambda: ready.version("primary") == SECOND, "the primary is up")
    pids = (ready.pid("primary"), ready.pid("backup"))
    ready.done(SECOND, "--yes")
    assert (ready.pid("primary"), ready.pid("backup")) == pids
    assert (ready.status["ok"], ready.status["approved"]) == (True, SECOND)


@pytest.mark.any_manager
def test_killed_in_the_promotion_another_deploy_is_refused(ready: LittleHost) -> None:
    kill_in_the_promotion(ready)
    wait_for(lambda: ready.version("primary") == SECOND, "the primary is up")
    result = ready.run(THIRD, "--yes")
    assert result.returncode == 4
    assert f"first: deploy-clojars deploy {SECOND}" in result.stderr
    assert ready.versions == (SECOND, SECOND)
    assert ready.status["interrupted"]


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("rollback", FIRST), marks=pytest.mark.any_manager),
        ("rollback",),
    ],
)
def test_killed_in_the_promotion_a_rollback_ends_it(
    ready: LittleHost, words: tuple[str, ...]
) -> None:
    kill_in_the_promotion(ready)
    wait_for(lambda: ready.version("primary") == SECOND, "the primary is up")
    ready.done(*words, "--yes")
    assert ready.versions == (FIRST, FIRST)
    assert ready.status["ok"]


def test_killed_in_the_promotion_a_rollback_to_what_runs_approves_it(ready: LittleHost) -> None:
    kill_in_the_promotion(ready)
    wait_for(lambda: ready.version("primary") == SECOND, "the primary is up")
    pids = (ready.pid("primary"), ready.pid("backup"))
    ready.done("rollback", SECOND, "--yes")
    assert (ready.pid("primary"), ready.pid("backup")) == pids
    status = ready.status
    assert (status["ok"], status["approved"], status["previous"]) == (True, SECOND, FIRST)


@pytest.mark.any_manager
def test_killed_while_building_nothing_of_the_build_outlives_the_next_run(
    new_light_host: Callable[..., LittleHost],
) -> None:
    host = new_light_host(build='test = "sleep 1000 & setsid sleep 1000; true"')
    host.serving(FIRST)
    before = (host.pid("primary"), host.pid("backup"))
    with host.typing(SECOND) as terminal:
        wait_for(lambda: host.is_at("test"), "the tests run")
        wait_for(lambda: len(host.processes_of_runs()) == 3, "all of them run")
        terminal.kill(signal.SIGKILL)
        terminal.ends(137)
    assert host.processes_of_runs()
    assert host.status["interrupted"]
    host.done("rollback", FIRST, "--yes")
    assert host.processes_of_runs() == []
    assert (host.pid("primary"), host.pid("backup")) == before
    assert host.status["ok"]


@pytest.mark.any_manager
@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_while_building_ends_the_build(
    new_light_host: Callable[..., LittleHost], signum: int, status: int
) -> None:
    host = new_light_host(build='test = "sleep 1000 & setsid sleep 1000; true"')
    host.serving(FIRST)
    with host.typing(SECOND) as terminal:
        wait_for(lambda: host.is_at("test"), "the tests run")
        wait_for(lambda: len(host.processes_of_runs()) == 3, "all of them run")
        terminal.kill(signum)
        shown = terminal.ends(status)
    assert f"nothing that runs was changed; clojars runs {FIRST} as before" in shown
    assert host.processes_of_runs() == []
    assert host.status["ok"]
    assert list((host.deploy / "checkouts").iterdir()) == []


def test_a_signal_after_the_point_of_no_return_is_noted_and_seen_through(
    ready: LittleHost,
) -> None:
    with ready.typing(SECOND) as terminal:
        terminal.asked()
        before = ready.pid("primary")
        with ready.comes_up_late(SECOND, "primary"):
            terminal.types("yes")
            wait_for(lambda: ready.pid("primary") != before, "the primary restarts")
            terminal.kill(signal.SIGTERM)
            terminal.kill(signal.SIGINT)
            terminal.sees("signal noted; finishing, up to")
        shown = terminal.ends(0)
    assert shown.count("signal noted; finishing, up to") == 1
    assert ready.versions == (SECOND, SECOND)
    assert ready.status["ok"]


def test_signals_never_cut_a_revert_short(ready: LittleHost) -> None:
    before = (ready.current, ready.versions, ready.pid("primary"))
    with ready.typing(SECOND) as terminal:
        terminal.asked()
        with ready.comes_up_late(FIRST, "backup"):  # the revert does not end before the block
            terminal.kill(signal.SIGINT)
            terminal.sees("reverting")
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                terminal.kill(signum)
        terminal.ends(130)
    assert (ready.current, ready.versions, ready.pid("primary")) == before
    assert ready.status["ok"]


@pytest.mark.any_manager
def test_a_run_that_fails_early_does_not_hide_one_that_was_cut_off(ready: LittleHost) -> None:
    kill_in_the_promotion(ready)
    wait_for(lambda: ready.version("primary") == SECOND, "the primary is up")
    ready.write_config(top=f'repository = "file://{ready.directory}/nowhere"')
    result = ready.run(SECOND, "--yes")
    assert result.returncode == 1
    assert f"nothing that runs was changed; clojars runs {SECOND} as before" in result.stderr
    status = ready.status
    assert status["interrupted"]
    assert status["next"] == f"deploy-clojars deploy {SECOND}"
    assert ready.run(THIRD, "--yes").returncode == 4
    ready.write_config()
    ready.done(SECOND, "--yes")
    assert ready.status["ok"]


@pytest.mark.any_manager
def test_a_run_that_fails_early_does_not_end_drift(ready: LittleHost) -> None:
    ready.done(SECOND, "--yes")
    ready.link.unlink()
    ready.link.symlink_to(f"clojars-web-{FIRST}-standalone.jar")
    ready.write_config(top=f'repository = "file://{ready.directory}/nowhere"')
    assert ready.run(SECOND, "--yes").returncode == 1
    assert ready.status["drift"]
    assert ready.run(THIRD, "--yes").returncode == 4


@pytest.mark.any_manager
def test_a_rollback_that_reverts_first_flips_once(ready: LittleHost) -> None:
    with ready.typing(SECOND) as terminal:
        terminal.asked()
        terminal.kill(signal.SIGKILL)
        terminal.ends(137)
    said = ready.done("rollback", FIRST, "--yes").stderr
    assert said.count("current: ") == 1
    assert f"current: {SECOND} -> {FIRST}" in said
    assert ready.status["ok"]


@pytest.mark.any_manager
def test_with_the_approved_release_gone_a_named_rollback_still_works(ready: LittleHost) -> None:
    ready.done(SECOND, "--yes")
    with ready.typing(THIRD) as terminal:
        terminal.asked()
        terminal.kill(signal.SIGKILL)
        terminal.ends(137)
    approved = ready.releases / f"clojars-web-{SECOND}-standalone.jar"
    approved.rename(ready.directory / "gone")
    assert ready.status["next"] == f"deploy-clojars rollback {FIRST}"
    refused = ready.run(THIRD, "--yes")
    assert refused.returncode == 4
    assert f"rollback {FIRST}" in refused.stderr
    ready.done("rollback", FIRST, "--yes")
    assert ready.versions == (FIRST, FIRST)
    assert ready.status["ok"]
