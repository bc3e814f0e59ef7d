"""A revert or a rollback that fails loses nothing of why, and what is said of the host is so."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
from clojure_repository import ClojureRepository as Tags
from conftest import NewHost
from little_host import LittleHost, wait_for

from deploy_clojars import config
from deploy_clojars.commands import rollback
from deploy_clojars.config import BACKUP, PRIMARY
from deploy_clojars.errors import DeployError, HalfDone, NotHealthy
from deploy_clojars.host.host import Host
from deploy_clojars.host.releases import Releases
from deploy_clojars.run.run import Request, started
from deploy_clojars.screen.console import Console

FIRST, SECOND, THIRD = Tags.FIRST, Tags.SECOND, Tags.THIRD


@pytest.fixture
def without_a_way_back(new_light_host: NewHost) -> LittleHost:
    """The tests remove the approved release: whatever fails after them, its revert fails, too."""
    host = new_light_host()
    approved = host.releases / f"clojars-web-{FIRST}-standalone.jar"
    build = host.options["build"].replace('test = "true"', f'test = "rm {approved}"')
    host.options["build"] = build
    host.write_config()
    host.serving(FIRST)
    return host


def log_of(host: LittleHost) -> str:
    """The run's own log."""
    [log] = (host.deploy / "logs").iterdir()
    return log.read_text(encoding="utf-8")


def test_a_revert_that_fails_loses_nothing_of_an_instance_that_did_not_come_up(
    without_a_way_back: LittleHost,
) -> None:
    host = without_a_way_back
    host.does_not_start(SECOND, "backup")
    result = host.run(SECOND, "--yes")
    assert result.returncode == 9, result.stderr
    error = result.stderr[result.stderr.index("\nerror: ") :]
    assert "error: clojars-backup did not come up on 0.2.0" in error
    assert f"; the revert failed: release {FIRST} is not in {host.releases}\n" in error
    assert f"current: {SECOND}" in error
    assert "\n  | when it failed:\n" in result.stderr
    assert "\n  | job: clojars-backup " in result.stderr
    assert host.events[-1]["why"].startswith("clojars-backup did not come up on 0.2.0")


def test_a_revert_that_fails_loses_nothing_of_a_defect(without_a_way_back: LittleHost) -> None:
    host = without_a_way_back
    result = with_a_defect(host, "deploy.pipeline.ask_to_promote", SECOND, "--yes")
    assert result.returncode == 9, result.stderr
    assert (
        "error: a defect of deploy-clojars: KeyError('ask_to_promote'); "
        f"the revert failed: release {FIRST} is not in {host.releases}\n"
    ) in result.stderr
    assert f"  the traceback: {host.deploy}/logs/" in result.stderr
    assert result.stderr.count(f"\n  current: {SECOND}\n") == 1
    assert "Traceback (most recent call last)" in log_of(host)
    assert "KeyError: 'ask_to_promote'" in log_of(host)


def test_a_defect_in_a_revert_loses_nothing_of_the_first_cause(light_host: LittleHost) -> None:
    host = light_host
    host.have(SECOND)
    for release in (SECOND, FIRST):  # after the flip is undone, the job is respawned on FIRST
        host.does_not_start(release, "backup")
    words = (SECOND, "--yes", "--json")
    result = with_a_defect(host, "deploy.revert.restart_what_is_not_healthy", *words)
    assert result.returncode == 70, result.stderr
    ended = json.loads(result.stdout)
    assert (ended["status"], ended["outcome"], ended["changed"]) == (70, "failed", True)
    assert ended["message"] in result.stderr
    error = result.stderr[result.stderr.index("\nerror: ") :]
    assert "error: clojars-backup did not come up on 0.2.0" in error
    assert "; a defect of deploy-clojars: KeyError('restart_what_is_not_healthy')\n" in error
    assert "\n  | when it failed:\n" in result.stderr
    assert "\n  | job: clojars-backup " in result.stderr
    assert f"  once the cause is fixed, run: deploy-clojars rollback {FIRST}\n" in error
    assert "KeyError: 'restart_what_is_not_healthy'" in log_of(host)


@pytest.mark.parametrize("version", [FIRST, None])
def test_a_rollback_that_cannot_be_put_back_names_each_cause(
    light_host: LittleHost, version: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if version is None:
        light_host.link.unlink()
    host = Host(config.load(light_host.config))

    def fails(*_: object) -> None:
        raise DeployError("the disk is broken", detail="an error of the disk")

    monkeypatch.setattr(Releases, "flip", fails)
    monkeypatch.setattr(Releases, "remove_link", fails)
    failed = {
        PRIMARY: NotHealthy("the primary was spared", detail=""),
        BACKUP: NotHealthy("the backup died", detail="its last words"),
    }
    with started(host, Console(), Request("rollback", SECOND)) as run:
        look = host.look()
        run.begin(look)
        light_host.have(SECOND)
        light_host.link.unlink(missing_ok=True)
        light_host.link.symlink_to(f"clojars-web-{SECOND}-standalone.jar")
        error = rollback.put_back(run, look, failed)
    assert isinstance(error, HalfDone)
    assert error.message == (
        "the primary was spared; the backup died; putting back what ran before failed, too: "
        "the disk is broken"
    )
    assert error.detail == "its last words\nan error of the disk"


def test_after_a_reverted_run_it_is_not_said_that_nothing_was_changed(
    light_host: LittleHost,
) -> None:
    host = light_host
    host.have(SECOND)
    kill(host, lambda: host.is_at("ask"), SECOND)
    result = host.run("9.9.9", "--yes")
    assert result.returncode == 1
    assert "no tag 9.9.9" in result.stderr
    assert (
        "\n  apart from the revert of the earlier run, nothing that runs was changed; "
        f"clojars runs {FIRST} as before\n"
    ) in result.stderr


def test_a_run_that_was_killed_before_it_flipped_does_not_hide_what_changed_since(
    new_light_host: NewHost,
) -> None:
    host = new_light_host(build='test = "sleep 1000"')
    host.serving(FIRST)
    host.have(SECOND)
    kill(host, lambda: host.is_at("test"), THIRD)
    host.link.unlink()
    host.link.symlink_to(f"clojars-web-{SECOND}-standalone.jar")
    result = host.run(THIRD, "--yes")
    assert result.returncode == 4, result.stderr
    assert "`current` or a running instance has changed since the last run" in result.stderr
    assert f"first: deploy-clojars rollback {FIRST}" in result.stderr
    assert host.status["drift"]


def test_a_rollback_after_a_killed_deploy_keeps_its_reason(light_host: LittleHost) -> None:
    host = light_host
    host.have(SECOND)
    kill(host, lambda: host.is_at("ask"), SECOND)
    host.environment["SUDO_USER"] = "alice"
    host.done("rollback", "-m", "it eats uploads", "--yes")
    [rolled_back] = [event for event in host.events if event["event"] == "rolled back"]
    assert rolled_back["previously"] == SECOND
    with host.typing(SECOND) as terminal:
        terminal.asked()
        assert f"{SECOND} was rolled back on 20" in terminal.shown
        assert "by alice: it eats uploads" in terminal.shown
        terminal.types("no")
        terminal.ends(7)


def test_a_deploy_that_was_killed_in_its_tests_does_not_count_as_rolled_back(
    new_light_host: NewHost,
) -> None:
    host = new_light_host(build='test = "sleep 1000"')
    host.serving(FIRST)
    kill(host, lambda: host.is_at("test"), SECOND)
    host.done("rollback", FIRST, "--yes")
    [rolled_back] = [event for event in host.events if event["event"] == "rolled back"]
    assert "previously" not in rolled_back


def kill(host: LittleHost, when: Callable[[], bool], tag: str) -> None:
    """A deploy of the tag that is killed at this moment."""
    with host.typing(tag) as terminal:
        wait_for(when, "the run has come so far")
        terminal.kill(signal.SIGKILL)
        terminal.ends(137)
    wait_for(lambda: host.status["lock"] is None, "the lock is free")


def broken(place: str) -> str:
    """A program that is the tool with a defect: this function raises KeyError."""
    module, _, function = f"deploy_clojars.{place}".rpartition(".")
    return (
        f"import {module}\n"
        f"def broken(*_): raise KeyError({function!r})\n"
        f"{module}.{function} = broken\n"
        "from deploy_clojars.cli import main\n"
        "main()\n"
    )


def with_a_defect(host: LittleHost, place: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", broken(place), *words],
        env=host.whole_environment,
        capture_output=True,
        text=True,
        check=False,
    )
