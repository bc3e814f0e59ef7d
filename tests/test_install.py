"""`install VERSION`: the release is there, and nothing runs it."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from built_releases import keeping
from clojure_repository import ClojureRepository as Tags
from little_host import LittleHost, wait_for

from deploy_clojars.host.decisions import prunable
from deploy_clojars.host.journal import Event, History, HostVersions, history_of
from deploy_clojars.run.lock import holder_of

FIRST, SECOND, THIRD = Tags.FIRST, Tags.SECOND, Tags.THIRD


@pytest.fixture
def jar(light_host: LittleHost, tmp_path: Path) -> Path:
    """The second release, as it comes from elsewhere."""
    return Path(shutil.copyfile(light_host.jar(SECOND), tmp_path / "elsewhere.jar"))


def release(host: LittleHost, version: str = SECOND) -> Path:
    return host.releases / f"clojars-web-{version}-standalone.jar"


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def what_runs(host: LittleHost) -> tuple[Any, ...]:
    """What an install must not change."""
    return host.current, host.pid("primary"), host.pid("backup"), host.status["approved"]


def killed_during_its_build(host: LittleHost, *words: str) -> None:
    """An install of the second release that ends as a power cut would end it."""
    host.write_config(build='test = "sleep 600"\nuberjar = "false"')
    with subprocess.Popen(
        [*host.command, *words], env=host.whole_environment, stderr=subprocess.DEVNULL
    ) as tool:
        wait_for(lambda: host.is_at("test"), "the tests run")
        tool.kill()
    # A program that it was just starting has its lock until its exec.
    wait_for(lambda: holder_of(host.deploy / "lock") is None, "its lock is free")
    host.write_config()


def test_a_release_is_built_and_nothing_runs_it_until_a_deploy_uses_it(
    light_host: LittleHost,
) -> None:
    before = what_runs(light_host)
    result = light_host.done("install", SECOND)

    assert result.stdout == ""
    assert f"{SECOND} is installed; to deploy it: deploy-clojars deploy {SECOND}" in result.stderr
    assert release(light_host).read_bytes() == light_host.jar(SECOND).read_bytes()
    assert what_runs(light_host) == before
    status = light_host.status
    assert (status["ok"], status["approved"], status["previous"]) == (True, FIRST, None)
    assert f"install {SECOND}" in light_host.done("history").stdout
    end = light_host.events[-1]
    assert (end["command"], end["outcome"], end["status"]) == ("install", "installed", 0)

    again = light_host.done("install", SECOND)
    assert again.stderr.endswith(f"{SECOND} is already installed; nothing to do\n")
    assert light_host.events[-1]["outcome"] == "nothing to do"
    assert what_runs(light_host) == before

    result = light_host.done("deploy", SECOND, "--yes")
    assert "not built again" in result.stderr
    assert light_host.versions == (SECOND, SECOND)
    status = light_host.status
    assert (status["ok"], status["approved"], status["previous"]) == (True, SECOND, FIRST)


def test_a_jar_is_installed_once_and_another_one_is_refused_with_both_checksums(
    light_host: LittleHost, jar: Path
) -> None:
    words = ("install", SECOND, "--jar", str(jar), "--sha256", sha256(jar))
    dry = light_host.done(*words, "--dry-run").stdout
    assert f"cp {jar} " in dry
    assert not light_host.deploy.exists()
    before = what_runs(light_host)

    light_host.done(*words)
    assert release(light_host).read_bytes() == jar.read_bytes()
    assert f"install {SECOND} from a jar" in light_host.done("history").stdout
    for again in (words, ("install", SECOND)):  # the second one asks no repository
        assert "nothing to do" in light_host.done(*again).stderr
    assert (
        "# 0.2.0 is already installed; nothing to do" in light_host.done(*words, "--dry-run").stdout
    )

    other = light_host.jar(THIRD)
    refused = light_host.run("install", SECOND, "--jar", str(other))
    assert refused.returncode == 1
    assert f"its SHA-256 is {sha256(jar)}, that of the new one is {sha256(other)}" in refused.stderr
    assert f"deploy-clojars install {SECOND} --jar FILE --rebuild" in refused.stderr
    assert "nothing that runs was changed" in refused.stderr
    assert what_runs(light_host) == before

    replaced = light_host.done("install", SECOND, "--jar", str(other), "--rebuild")
    assert "the jar says 0.2.1, the version is 0.2.0" in replaced.stderr
    assert release(light_host).read_bytes() == other.read_bytes()
    light_host.done("install", SECOND, "--jar", str(jar), "--rebuild")

    light_host.done("deploy", SECOND, "--jar", str(jar), "--yes")
    assert light_host.versions == (SECOND, SECOND)
    refused = light_host.run("install", SECOND, "--jar", str(jar), "--rebuild")
    assert refused.returncode == 1
    assert f"release {SECOND} cannot be replaced: it is current" in refused.stderr
    refused = light_host.run("install", "install", "--jar", str(jar))
    assert refused.returncode == 2
    assert "'install' is not a version: it is the name of a command" in refused.stderr
    assert light_host.versions == (SECOND, SECOND)


def test_an_install_that_was_killed_leaves_nothing_to_revert_and_status_names_it(
    light_host: LittleHost,
) -> None:
    before = what_runs(light_host)
    killed_during_its_build(light_host, "install", SECOND)

    status = light_host.status
    assert (status["interrupted"], status["drift"], status["ok"]) == (True, False, False)
    assert status["next"] == f"deploy-clojars install {SECOND}"
    text = light_host.run("status").stdout
    assert f"interrupted: the install of {SECOND} by " in text
    assert "was cut off; it changed nothing that runs" in text
    refused = light_host.run("restart", "--yes")
    assert refused.returncode == 4
    assert f"first: deploy-clojars install {SECOND}" in refused.stderr

    light_host.done("install", SECOND)
    assert what_runs(light_host) == before
    assert light_host.status["ok"]
    assert not light_host.processes_of_runs()
    assert "cut off" in light_host.done("history").stdout


def test_a_signal_stops_an_install_and_says_that_nothing_that_runs_was_changed(
    light_host: LittleHost,
) -> None:
    light_host.write_config(build='test = "sleep 600"\nuberjar = "false"')
    with subprocess.Popen(
        [*light_host.command, "install", SECOND],
        env=light_host.whole_environment, stderr=subprocess.PIPE, text=True,
    ) as tool:  # fmt: skip
        wait_for(lambda: light_host.is_at("test"), "the tests run")
        locked = light_host.run("install", THIRD)
        tool.send_signal(signal.SIGTERM)
        _, said = tool.communicate()
    assert tool.returncode == 143
    assert "nothing that runs was changed" in said
    assert locked.returncode == 3
    assert f"locked: install {SECOND} by " in locked.stderr
    assert light_host.status["ok"]
    assert not release(light_host).exists()


def test_before_the_first_deploy_a_release_can_be_there_already(light_host: LittleHost) -> None:
    """Nothing is current, and nothing runs."""
    for job in (light_host.backup, light_host.primary):
        light_host.control("stop", job)
    light_host.link.unlink()
    killed_during_its_build(light_host, "install", SECOND)
    assert light_host.status["next"] == f"deploy-clojars install {SECOND}"
    light_host.done("install", SECOND)
    assert light_host.current is None
    assert light_host.status["next"] is None
    light_host.done("deploy", SECOND, "--yes")
    assert light_host.versions == (SECOND, SECOND)


def test_a_deploy_that_was_cut_off_is_reverted_first_and_drift_stays(
    light_host: LittleHost, jar: Path
) -> None:
    light_host.done("deploy", FIRST, "--jar", str(light_host.jar(FIRST)), "--yes")
    with light_host.typing("deploy", SECOND) as terminal:
        terminal.asked()
        os.kill(terminal.pid, signal.SIGKILL)
        terminal.ends(137)
    assert light_host.current == release(light_host).name

    result = light_host.done("install", THIRD, "--jar", str(light_host.jar(THIRD)))
    assert f"reverted: {FIRST} is current" in result.stderr
    assert light_host.versions == (FIRST, FIRST)
    assert light_host.status["ok"]

    light_host.link.unlink()
    light_host.link.symlink_to(release(light_host).name)
    before = light_host.status
    assert before["drift"]
    light_host.done("install", SECOND, "--jar", str(jar))
    after = light_host.status
    assert all(after[key] == before[key] for key in ("current", "approved", "drift", "next"))
    assert light_host.versions == (FIRST, FIRST)


def test_one_that_waits_for_its_deploy_is_pruned_only_after_newer_ones(
    three_built: LittleHost,
) -> None:
    release(three_built, SECOND).unlink()
    three_built.done("install", SECOND)
    keeping(three_built, 1)
    result = three_built.done("prune")
    assert FIRST not in result.stderr  # it is previous
    assert release(three_built, SECOND).exists()
    with three_built.typing("deploy", SECOND) as terminal:
        terminal.asked()
        terminal.types("no")
        terminal.ends(7)
    three_built.done("prune")
    assert not release(three_built, SECOND).exists()


@pytest.mark.parametrize(
    ("waiting", "keep", "go"),
    [("", 1, "CDE"), ("E", 1, "CD"), ("CDE", 1, "CD"), ("CDE", 2, "C"), ("DE", 2, "C"), ("E", 0, "")],
)  # fmt: skip
def test_as_many_wait_for_their_first_deploy_as_are_kept(waiting: str, keep: int, go: str) -> None:
    assert "".join(prunable("ABCDE", "ABCDE", "AB", "AB", keep, waiting)) == go


# --- what the journal's lines add up to -----------------------------------------------------------


LEFT = HostVersions("B", "B", "A")


def event(run: str, event: str, **fields: Any) -> Event:
    return Event(event=event, run=run, **fields)


BEFORE = {
    "a host without a run": [],
    "a rollback that is half done": [
        event("1", "begin", command="rollback", version="B"),
        event("1", "no return", version="B"),
        event("1", "end", status=8, left=LEFT),
    ],
    "a deploy that was cut off past its point of no return": [
        event("1", "begin", command="deploy", version="B", left=LEFT),
        event("1", "flip", version="B"),
        event("1", "no return", version="B"),
    ],
    "a restart that failed": [
        event("1", "begin", command="restart", version="B"),
        event("1", "no return", version="B"),
        event("1", "end", status=9, left=LEFT),
    ],
}
INSTALLED = [
    event("2", "begin", command="install", version="C", left=LEFT),
    event("2", "installed", version="C", sha256="1"),
]


@pytest.mark.parametrize("before", [each for each in BEFORE if each != "a host without a run"])
@pytest.mark.parametrize("killed", [0, 1, 2], ids=["no kill", "one killed", "two killed"])
def test_what_the_run_before_an_install_left_still_counts(before: str, killed: int) -> None:
    events = [*BEFORE[before]]
    expected = history_of(events).last
    for number in range(killed):
        events.append(event(f"killed {number}", "begin", command="install", version="C"))
        unfinished = history_of(events).unfinished
        assert unfinished is not None
        assert (unfinished.what, unfinished.follows) == ("install of C", expected)
        assert expected is not None
        assert unfinished.cut_off == expected.cut_off
    events += [*INSTALLED, event("2", "end", status=0, left=LEFT)]
    history = history_of(events)
    assert history.last == expected
    assert (history.stack, history.waiting) == (history_of(BEFORE[before]).stack, ["C"])


def test_a_deploy_after_an_install_that_was_killed_still_finishes_what_was_before_that() -> None:
    events = [
        *BEFORE["a deploy that was cut off past its point of no return"],
        event("2", "begin", command="install", version="C"),
        event("3", "begin", command="deploy", version="B"),
    ]
    last = history_of(events).last
    assert last is not None
    assert last.cut_off is not None
    assert last.cut_off.id == "1"


def test_the_first_run_may_be_an_install_and_what_it_left_counts() -> None:
    history = history_of([*INSTALLED, event("2", "end", status=0, left=LEFT)])
    assert history.last is not None
    assert (history.last.ended, history.last.left) == (True, LEFT)


def test_one_that_a_deploy_has_tried_waits_no_longer() -> None:
    events = [*INSTALLED, event("2", "end", status=0, left=LEFT)]
    events += [event("3", "begin", command="deploy", version="C"), event("3", "flip", version="C")]
    assert history_of(events).waiting == []
    assert history_of([*INSTALLED[1:]]).waiting == History().waiting
