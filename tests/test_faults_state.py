"""Faults of what the tool knows, and of the world around it while it runs."""

from __future__ import annotations

import multiprocessing
import multiprocessing.synchronize
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from clojure_repository import ClojureRepository as Tags
from conftest import NewHost
from little_host import LittleHost, wait_for

import deploy_clojars
from deploy_clojars.errors import Locked
from deploy_clojars.run import lock

FIRST, SECOND, THIRD = Tags.FIRST, Tags.SECOND, Tags.THIRD


@pytest.fixture
def second(light_host: LittleHost) -> LittleHost:
    """0.2.0 is in production, deployed over 0.1.0."""
    light_host.have(SECOND)
    light_host.have(THIRD)
    light_host.done(SECOND, "--yes")
    return light_host


# The releases


def follow(host: LittleHost) -> list[str]:
    """Types what `status` names until all is well; returns what was typed."""
    typed: list[str] = []
    while (following := host.status["next"]) is not None and len(typed) < 4:
        answer = " --yes" if following.split()[1] in ("deploy", "rollback") else ""
        path = f"{Path(host.command[0]).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["sh", "-c", following + answer],
            env={**host.whole_environment, "PATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (following, done.stderr)
        typed.append(following.removeprefix("deploy-clojars "))
    return typed


def emptied(host: LittleHost, *, link: bool) -> None:
    for jar in host.releases.glob("*-standalone.jar"):
        jar.unlink()
    if link:
        host.link.unlink()


@pytest.mark.parametrize("link", [True, False])
def test_releases_that_were_all_removed_are_built_again(second: LittleHost, link: bool) -> None:
    emptied(second, link=link)
    refused = second.run("rollback", SECOND, "--yes")
    assert (refused.returncode, f"deploy {SECOND}" in refused.stderr) == (
        (1, True) if link else (4, False)
    )
    assert second.run("restart", "--yes").returncode == 4
    if link:
        other = second.run(THIRD, "--yes").stderr
        assert f"put it back, or build it again: deploy-clojars deploy {SECOND}\n" in other
    assert follow(second) == [*([] if link else [f"rm {second.link}"]), f"deploy {SECOND}"]
    assert second.versions == (SECOND, SECOND)
    assert second.status["ok"]


@pytest.mark.parametrize("link", [True, False])
def test_a_deploy_that_was_killed_before_all_releases_were_removed_is_no_dead_end(
    second: LittleHost, link: bool
) -> None:
    with second.typing(THIRD) as terminal:
        terminal.asked()
        terminal.kill(signal.SIGKILL)
        terminal.ends(137)
    emptied(second, link=link)
    for words in ((THIRD, "--yes"), ("prune",)):
        assert second.run(*words).returncode in (0, 4)
    assert follow(second)[-1] == f"deploy {SECOND}"
    assert second.versions == (SECOND, SECOND)
    assert second.status["ok"]


@pytest.mark.parametrize("words", [(THIRD,), ("rollback", THIRD)])
def test_a_run_past_its_point_of_no_return_is_finished_though_all_releases_were_removed(
    second: LittleHost, words: tuple[str, ...]
) -> None:
    with second.comes_up_late(THIRD, "primary"), second.typing(*words, "--yes") as terminal:
        # It has its jar open: one that has not could not start any more.
        wait_for(
            lambda: second.status["instances"]["primary"]["running"] == THIRD,
            "the primary is restarted",
        )
        terminal.kill(signal.SIGKILL)
        terminal.ends(137)
    emptied(second, link=True)
    assert follow(second) == [f"deploy {THIRD}"]
    assert second.versions == (THIRD, THIRD)


def test_without_a_journal_and_without_a_release_a_first_deploy_leads_on(
    light_host: LittleHost,
) -> None:
    emptied(light_host, link=True)
    light_host.done(SECOND, "--yes")
    assert light_host.versions == (SECOND, SECOND)
    assert light_host.status["ok"]


def test_a_previous_release_that_is_gone_is_said_with_the_way_further_back(
    second: LittleHost,
) -> None:
    second.done(THIRD, "--yes")
    gone = second.releases / f"clojars-web-{SECOND}-standalone.jar"
    gone.unlink()
    assert f"previous  {SECOND} (its jar is gone)\n" in second.run("status").stdout
    assert second.status["previous"] == SECOND
    refused = second.run("rollback", "--yes")
    assert refused.returncode == 1
    assert f"error: no release {SECOND} in {second.releases}\n" in refused.stderr
    assert f"to go back further: deploy-clojars rollback {FIRST}\n" in refused.stderr
    second.done("rollback", FIRST, "--yes")
    assert second.status["ok"]


def test_further_back_than_a_previous_release_that_is_gone_is_never_the_approved_one(
    second: LittleHost,
) -> None:
    second.done(THIRD, "--yes")
    second.done(SECOND, "--yes")
    (second.releases / f"clojars-web-{THIRD}-standalone.jar").unlink()
    refused = second.run("rollback", "--yes")
    assert f"error: no release {THIRD} in {second.releases}\n" in refused.stderr
    assert f"to go back further: deploy-clojars rollback {FIRST}\n" in refused.stderr


# The journal


def test_a_journal_that_is_a_directory_is_said_with_the_command_that_leads_on(
    second: LittleHost,
) -> None:
    journal = second.deploy / "journal.jsonl"
    lines = journal.read_bytes()
    journal.unlink()
    journal.mkdir()
    assert second.status["next"] == "deploy-clojars check"
    for words in ((THIRD, "--yes"), ("restart", "--yes")):
        refused = second.run(*words)
        assert refused.returncode == 1
        assert (
            f"{journal} cannot be read: Is a directory\n  see: deploy-clojars check"
            in refused.stderr
        )
    moved = f"mv {journal} {journal}.old"
    assert f"      {moved}\n" in second.run("check").stdout
    subprocess.run(moved.split(), check=True)
    journal.write_bytes(lines)
    assert second.status["ok"]


@pytest.mark.parametrize("name", ["logs", "checkouts"])
def test_a_file_in_the_place_of_a_directory_is_found_by_check(
    second: LittleHost, name: str
) -> None:
    path = second.deploy / name
    shutil.rmtree(path, ignore_errors=True)
    path.touch()
    found = second.run("check").stdout
    assert f"!!  {path} is not a directory\n      mv {path} {path}.old\n" in found


def test_without_its_journal_a_host_is_adopted_as_it_is(second: LittleHost) -> None:
    (second.deploy / "journal.jsonl").unlink()
    status = second.status
    assert (status["ok"], status["approved"], status["previous"]) == (True, SECOND, None)
    nowhere = second.run("rollback", "--yes")
    assert nowhere.returncode == 1
    assert "there is no previous release to roll back to" in nowhere.stderr
    assert FIRST in nowhere.stderr
    second.done(THIRD, "--yes")
    assert second.status["previous"] == SECOND


def test_a_journal_that_was_cut_in_the_middle_of_a_line_goes_on(second: LittleHost) -> None:
    journal = second.deploy / "journal.jsonl"
    with journal.open("r+b") as file:
        file.truncate(journal.stat().st_size - 30)
    # The end of the run is what was cut off.
    status = second.status
    assert (status["interrupted"], status["approved"]) == (True, SECOND)
    assert status["next"] == f"deploy-clojars deploy {SECOND}"
    second.done("deploy", SECOND, "--yes")
    assert second.status["ok"]


def test_a_journal_cut_back_into_the_first_deploy_takes_no_link_away(
    new_light_host: NewHost,
) -> None:
    host = new_light_host()
    host.done(FIRST, "--yes")
    host.done(SECOND, "--yes")
    journal = host.deploy / "journal.jsonl"
    text = journal.read_text(encoding="utf-8")
    end = text.index("\n", text.index('"flip"')) + 1
    journal.write_text(text[:end], encoding="utf-8")
    pids = (host.pid("primary"), host.pid("backup"))
    result = host.done(SECOND, "--yes")
    assert f"current has been {SECOND} since, and stays" in result.stderr
    assert (host.pid("primary"), host.pid("backup")) == pids
    assert host.status["ok"]


def test_a_journal_of_100_000_lines_is_read_in_no_time(second: LittleHost) -> None:
    journal = second.deploy / "journal.jsonl"
    text = journal.read_text(encoding="utf-8")
    lines = text.count("\n")
    journal.write_text(text * (100_000 // lines + 1), encoding="utf-8")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert second.status["ok"]
    second.done("rollback", FIRST, "--yes")
    assert second.versions == (FIRST, FIRST)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Of the processor's time: a busy machine takes longer.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 30


# The lock


def test_of_two_runs_in_the_same_millisecond_one_is_refused_a_hundred_times_over(
    tmp_path: Path,
) -> None:
    file = tmp_path / "lock"
    rounds = 100
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(2)
    results = fork.SimpleQueue()
    runs = [
        fork.Process(target=take_again_and_again, args=(file, rounds, barrier, results))
        for _ in range(2)
    ]
    for run in runs:
        run.start()
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            lock.holder_of(file)

    looker = threading.Thread(target=look)
    looker.start()
    try:
        taken = [results.get() for _ in range(2)]
    finally:
        ended.set()
        looker.join()
        for run in runs:
            run.join(10)
    assert [sum(both) for both in zip(*taken, strict=True)] == [1] * rounds


def take_again_and_again(
    file: Path,
    rounds: int,
    barrier: multiprocessing.synchronize.Barrier,
    results: multiprocessing.SimpleQueue[list[bool]],
) -> None:
    """Takes the lock at the same instant as the other one, and says how often it had it."""
    had = []
    for _ in range(rounds):
        barrier.wait(120)
        try:
            with lock.held(file, lock.Holder(pid=os.getpid())):
                had.append(True)
                barrier.wait(120)
        except Locked:
            had.append(False)
            barrier.wait(120)
    results.put(had)


def test_of_two_deploys_at_once_one_is_done_the_other_refused_and_status_never_mistaken(
    second: LittleHost,
) -> None:
    host, done = second, SECOND
    for _ in range(2):
        tags = [tag for tag in (FIRST, SECOND, THIRD) if tag != done][:2]
        with ThreadPoolExecutor() as pool, ExitStack() as until_one_is_refused:
            for tag in tags:  # else one could be done before the other begins
                until_one_is_refused.enter_context(host.comes_up_late(tag, "backup"))
            runs = {tag: pool.submit(host.run, tag, "--yes") for tag in tags}
            while not all(run.done() for run in runs.values()):
                seen = host.status
                assert not (seen["interrupted"] or seen["drift"]), seen
                if any(run.done() for run in runs.values()):
                    until_one_is_refused.close()
        statuses = {tag: run.result().returncode for tag, run in runs.items()}
        assert sorted(statuses.values()) == [0, 3], statuses
        done = next(tag for tag, status in statuses.items() if status == 0)
        assert host.status["ok"]
        assert (host.current, host.versions) == (
            f"clojars-web-{done}-standalone.jar",
            (done, done),
        )


# While the question is open


def test_a_configuration_that_was_changed_while_the_question_is_open_is_not_read_again(
    second: LittleHost,
) -> None:
    with second.typing(THIRD) as terminal:
        terminal.asked()
        second.config.write_text("this is no TOML", encoding="utf-8")
        terminal.types("no")
        terminal.ends(7)
    second.write_config()
    assert second.versions == (SECOND, SECOND)
    assert second.status["ok"]


@pytest.mark.parametrize(("answer", "status"), [("no", 7), ("yes", 0)])
def test_a_package_that_was_upgraded_while_the_question_is_open_breaks_nothing(
    second: LittleHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, status: int
) -> None:
    [source] = deploy_clojars.__path__
    package = tmp_path / "installed" / "deploy_clojars"
    shutil.copytree(source, package)
    # Every import is shown, of whichever package.
    second.environment.update(PYTHONPATH=str(package.parent), PYTHONPROFILEIMPORTTIME="1")
    command = [sys.executable, "-m", "deploy_clojars"]
    monkeypatch.setattr(LittleHost, "command", property(lambda _: command))
    with second.typing(THIRD) as terminal:
        terminal.asked()
        assert "| deploy_clojars.deploy.pipeline" in " ".join(terminal.shown.split()) or (
            "deploy_clojars.deploy.pipeline" in terminal.shown
        )
        shutil.rmtree(package)
        seen = len(terminal.shown)
        terminal.types(answer)
        shown = terminal.ends(status)
    assert "import time:" not in shown[seen:]
    monkeypatch.undo()
    second.environment.clear()
    assert second.status["ok"]


def test_after_a_reboot_while_the_question_was_open_status_names_the_way_back(
    second: LittleHost,
) -> None:
    with second.typing(THIRD) as terminal:
        terminal.asked()
        terminal.kill(signal.SIGKILL)
        terminal.ends(137)
    for job in (second.primary, second.backup):
        second.control("stop", job)
        second.control("start", job)
    # Upstart starts what current names, to which nobody has said yes.
    wait_for(lambda: second.versions == (THIRD, THIRD), "both are up")
    status = second.status
    assert (status["ok"], status["interrupted"], status["approved"]) == (False, True, SECOND)
    assert status["next"] == f"deploy-clojars rollback {SECOND}"
    second.done("rollback", SECOND, "--yes")
    assert second.versions == (SECOND, SECOND)
    assert second.status["ok"]


# The shell that it is called from


@pytest.mark.parametrize(
    "changes",
    [
        ["-u", "HOME"],
        ["LC_ALL=C", "PYTHONCOERCECLOCALE=0", "PYTHONUTF8=0"],
        ["LC_ALL=en_US.ISO-8859-1", "PYTHONIOENCODING=iso8859-1", "PYTHONUTF8=0"],
        ["-u", "PATH_THAT_IS_NOT_SET", "COLUMNS=20"],
    ],
    ids=["no HOME", "ASCII", "Latin-1", "20 columns"],
)
def test_from_an_odd_shell_a_deploy_and_status_work_as_from_any(
    light_host: LittleHost, changes: list[str]
) -> None:
    host = light_host
    host.have(SECOND)
    for words in ((SECOND, "--yes"), ("status",), ("rollback", "--yes")):
        result = subprocess.run(
            ["env", *changes, *host.command, *words],
            env=host.whole_environment, cwd=host.directory, stdin=subprocess.DEVNULL,
            capture_output=True, timeout=300, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert b"Traceback" not in result.stderr
    assert host.versions == (FIRST, FIRST)
