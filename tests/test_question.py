"""What a person can answer, and what can happen meanwhile; on a real terminal."""

from __future__ import annotations

import os
import signal
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clojure_repository import ClojureRepository as Tags
from little_host import LittleHost, Terminal, wait_for
from system import lives

FIRST, SECOND = Tags.FIRST, Tags.SECOND

Site = tuple[str | None, tuple[str | None, str | None], int | None]


def site(host: LittleHost) -> Site:
    """The link's text, what both instances serve, and the primary's PID."""
    return host.current, host.versions, host.pid("primary")


def end_of_input(terminal: Terminal) -> None:
    terminal.presses("d")


def ctrl_c(terminal: Terminal) -> None:
    terminal.presses("c")


def no(terminal: Terminal) -> None:
    terminal.types("N")


def interrupt_the_tool_alone(terminal: Terminal) -> None:
    terminal.kill(signal.SIGINT)


def terminate(terminal: Terminal) -> None:
    terminal.kill(signal.SIGTERM)


def two_at_once(terminal: Terminal) -> None:
    terminal.kill(signal.SIGTERM)
    terminal.kill(signal.SIGINT)


def rubbish_then_no(terminal: Terminal) -> None:
    for answer in ("", "perhaps", "yes!", "yesno", "\x1b[A"):
        terminal.types(answer)
        terminal.sees("Please type yes or no.")
        terminal.asked()
    terminal.types("no")


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        pytest.param(no, 7, marks=pytest.mark.any_manager),
        pytest.param(rubbish_then_no, 7, marks=pytest.mark.jvm),
        pytest.param(end_of_input, 7, marks=pytest.mark.any_manager),
        (ctrl_c, 130),
        pytest.param(interrupt_the_tool_alone, 130, marks=pytest.mark.any_manager),
        pytest.param(terminate, 143, marks=pytest.mark.any_manager),
        # The kernel has no order for two that come at once.
        pytest.param(two_at_once, (130, 143), marks=pytest.mark.any_manager),
    ],
)
def test_everything_but_yes_reverts(
    ready: LittleHost, answer: Callable[[Terminal], None], status: int | tuple[int, ...]
) -> None:
    before = site(ready)
    with ready.typing(SECOND) as terminal:
        terminal.asked()
        answer(terminal)
        shown = terminal.ends(status)
    assert f"reverted: {FIRST} is current and runs on both instances" in shown
    assert site(ready) == before
    assert ready.status["ok"]


def test_a_hang_up_reverts_although_nothing_can_be_shown(ready: LittleHost) -> None:
    before = site(ready)
    with ready.typing(SECOND) as terminal:
        terminal.asked()
        terminal.hangs_up()
        wait_for(lambda: ready.events[-1]["event"] == "end", "the run ends")
        wait_for(lambda: not lives(terminal.pid), "it is gone")
    assert ready.events[-1]["status"] in (7, 129)
    wait_for(lambda: ready.status["lock"] is None, "the lock is free")
    assert site(ready) == before
    assert ready.status["ok"]
    [log] = (ready.deploy / "logs").iterdir()
    assert "reverted" in log.read_text()


@pytest.mark.any_manager
def test_an_answer_typed_before_the_question_does_not_count(ready: LittleHost) -> None:
    with ready.typing(SECOND) as terminal:
        with ready.comes_up_late(SECOND, "backup"):  # no question before the block ends
            terminal.sees("fetch")
            terminal.types("yes")
        terminal.asked()
        assert ready.versions == (FIRST, SECOND)
        terminal.types("no")
        terminal.ends(7)
    assert ready.versions == (FIRST, FIRST)


def test_a_primary_that_came_back_on_the_new_release_is_seen_and_put_back(
    ready: LittleHost,
) -> None:
    with ready.typing(SECOND) as terminal:
        terminal.asked()
        os.kill(ready.pid("primary") or 0, signal.SIGKILL)
        terminal.sees(f"clojars died and has come back on {SECOND} by itself")
        terminal.asked()
        terminal.types("no")
        terminal.ends(7)
    assert ready.versions == (FIRST, FIRST)
    assert ready.status["ok"]


def test_yes_accepts_a_primary_that_came_back_on_the_new_release(ready: LittleHost) -> None:
    with ready.typing(SECOND) as terminal:
        terminal.asked()
        os.kill(ready.pid("primary") or 0, signal.SIGKILL)
        wait_for(lambda: ready.version("primary") == SECOND, "the primary is back")
        respawned = wait_for(lambda: ready.pid("primary"), "it counts as running")
        terminal.types("yes")
        terminal.ends(0)
    assert ready.versions == (SECOND, SECOND)
    assert ready.pid("primary") == respawned
    assert ready.status["ok"]


def test_a_primary_that_is_stopped_meanwhile_is_started_again_by_the_revert(
    ready: LittleHost,
) -> None:
    with ready.typing(SECOND) as terminal:
        terminal.asked()
        ready.control("stop", ready.primary)
        terminal.sees("clojars no longer serves")
        terminal.asked()
        terminal.types("no")
        terminal.ends(7)
    assert ready.versions == (FIRST, FIRST)
    assert ready.status["ok"]


def test_what_is_wrong_with_the_backup_is_said_whatever_is_wrong_with_the_primary(
    light_host: LittleHost,
) -> None:
    host = light_host
    with host.typing(SECOND) as terminal:
        terminal.asked()
        host.control("stop", host.primary)
        terminal.sees("clojars no longer serves")
        host.control("stop", host.backup)
        terminal.sees("clojars-backup is not running")
        terminal.sees("a yes will be refused")
        terminal.asked()
        terminal.types("no")
        terminal.ends(7)
    assert host.status["ok"]


@pytest.mark.any_manager
def test_what_was_wrong_and_is_well_again_is_said_too(light_host: LittleHost) -> None:
    host = light_host
    link = host.link
    with host.typing(SECOND) as terminal:
        terminal.asked()
        link.rename(host.directory / "link")
        terminal.sees("someone else has changed current")
        (host.directory / "link").rename(link)
        terminal.sees(f"current names {SECOND} again")
        backup = host.pid("backup") or 0
        os.kill(backup, signal.SIGSTOP)
        terminal.sees("timed out; a yes will be refused")
        os.kill(backup, signal.SIGCONT)
        terminal.sees(f"clojars-backup is healthy on {SECOND} again")
        terminal.asked()
        terminal.types("yes")
        terminal.ends(0)
    assert host.versions == (SECOND, SECOND)


def test_a_backup_that_is_another_process_now_is_said_before_the_answer(
    light_host: LittleHost,
) -> None:
    host = light_host
    with host.typing(SECOND) as terminal:
        terminal.asked()
        os.kill(host.pid("backup") or 0, signal.SIGKILL)
        terminal.sees("clojars-backup died and was started again")
        terminal.sees("a yes will be refused")
        terminal.types("no")
        terminal.ends(7)
    assert host.status["ok"]


@pytest.mark.any_manager
def test_an_answer_does_not_wait_for_an_instance_that_hangs(light_host: LittleHost) -> None:
    host = light_host
    # Far longer than a busy machine takes to show a line.
    host.write_config(health="answer_timeout = 60\nsettle = 0.2\ninterval = 0.2")
    stopped = [host.pid("primary") or 0]
    with host.typing(SECOND) as terminal:
        terminal.asked()
        stopped.append(host.pid("backup") or 0)
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            terminal.types("perhaps")  # after it both are looked at
            terminal.asked()
            typed = time.monotonic()
            terminal.types("no")
            terminal.sees(f"{SECOND} was declined")
            assert time.monotonic() - typed < 30
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
        terminal.ends(7)
    assert host.status["ok"]


@pytest.mark.any_manager
def test_a_signal_after_yes_and_before_the_point_of_no_return_reverts(
    light_host: LittleHost,
) -> None:
    host = light_host
    host.write_config(health="answer_timeout = 60\nsettle = 0.2\ninterval = 0.2")
    before = site(host)
    with host.typing(SECOND) as terminal:
        terminal.asked()
        backup = host.pid("backup") or 0
        os.kill(backup, signal.SIGSTOP)  # the last look at it waits for an answer
        try:
            terminal.types("yes")
            wait_for(lambda: host.events[-1]["event"] == "approved", "the yes is noted")
            terminal.kill(signal.SIGTERM)
        finally:
            os.kill(backup, signal.SIGCONT)
        terminal.ends(143)
    assert site(host) == before
    assert host.status["ok"]


def test_yes_is_refused_when_the_backup_died_meanwhile(ready: LittleHost) -> None:
    before = site(ready)
    with ready.typing(SECOND) as terminal:
        terminal.asked()
        os.kill(ready.pid("backup") or 0, signal.SIGKILL)
        wait_for(lambda: ready.version("backup") == SECOND, "the backup is back")
        terminal.types("yes")
        shown = terminal.ends(6)
    assert "clojars-backup did not stay healthy until the answer" in shown
    assert site(ready) == before
    assert ready.status["ok"]


@pytest.mark.any_manager
def test_yes_is_refused_when_somebody_changed_the_link_meanwhile(ready: LittleHost) -> None:
    before = site(ready)
    with ready.typing(SECOND) as terminal:
        terminal.asked()
        ready.have(Tags.THIRD)
        ready.link.unlink()
        ready.link.symlink_to(f"clojars-web-{Tags.THIRD}-standalone.jar")
        terminal.sees("someone else has changed current")
        terminal.asked()
        terminal.types("yes")
        terminal.ends(6)
    assert site(ready) == before
    assert ready.status["ok"]


def test_a_primary_that_only_stalled_is_not_restarted_by_the_revert(ready: LittleHost) -> None:
    before = site(ready)
    primary = ready.pid("primary") or 0
    with ready.typing(SECOND) as terminal:
        terminal.asked()
        os.kill(primary, signal.SIGSTOP)
        try:
            terminal.types("no")
            terminal.sees("flip")
            terminal.sees("0.2.0 -> 0.1.0")
        finally:
            # Longer than one check may take.
            threading.Timer(6, os.kill, [primary, signal.SIGCONT]).start()
        terminal.ends(7)
    assert site(ready) == before


@pytest.mark.any_manager
def test_the_locked_message_says_how_to_stop_a_suspended_run(ready: LittleHost) -> None:
    with ready.typing(SECOND) as terminal:
        terminal.asked()
        terminal.kill(signal.SIGSTOP)
        wait_for(lambda: is_suspended(terminal.pid), "it sleeps")
        result = ready.run("rollback", FIRST, "--yes")
        assert result.returncode == 3
        assert f"kill -INT {terminal.pid}; kill -CONT {terminal.pid}" in result.stderr
        terminal.kill(signal.SIGINT)
        terminal.kill(signal.SIGCONT)
        terminal.ends(130)
    assert ready.versions == (FIRST, FIRST)


@pytest.mark.any_manager
def test_after_ctrl_z_and_fg_the_question_is_asked_again(ready: LittleHost) -> None:
    with ready.typing(SECOND) as terminal:
        terminal.asked()
        terminal.kill(signal.SIGSTOP)
        wait_for(lambda: is_suspended(terminal.pid), "it sleeps")
        terminal.kill(signal.SIGCONT)
        terminal.asked()
        terminal.types("no")
        terminal.ends(7)


def is_suspended(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.any_manager
def test_ctrl_backslash_reverts_as_ctrl_c_does(ready: LittleHost) -> None:
    before = site(ready)
    with ready.typing(SECOND) as terminal:
        terminal.asked()
        terminal.presses("\\")
        terminal.ends(131)
    assert site(ready) == before


@pytest.mark.any_manager
def test_the_page_of_a_deploy_that_goes_on_says_what_the_answers_do(ready: LittleHost) -> None:
    with ready.typing(SECOND) as terminal:
        terminal.asked()
        os.kill(ready.pid("primary") or 0, signal.SIGKILL)
        wait_for(lambda: ready.version("primary") == SECOND, "the primary is back")
        terminal.kill(signal.SIGKILL)
        terminal.ends(137)
    # Cut off before the point of no return: reverted first, then asked about the usual.
    with ready.typing(SECOND) as terminal:
        terminal.asked()
        assert f"yes  restarts clojars on {SECOND}; users are logged out" in terminal.shown
        assert f"no   puts current back to {FIRST} and restarts clojars-backup;" in terminal.shown
        terminal.types("no")
        terminal.ends(7)


def test_no_leaves_a_primary_that_was_down_on_the_approved_release_down(
    ready: LittleHost,
) -> None:
    ready.control("stop", ready.primary)
    with ready.typing(FIRST) as terminal:
        terminal.asked()
        assert f"yes  starts clojars on {FIRST}" in terminal.shown
        assert "no   leaves clojars alone" in terminal.shown
        terminal.types("no")
        terminal.ends(7)
    assert ready.pid("primary") is None
    assert ready.version("backup") == FIRST


def without_icrnl(settings: list[Any]) -> None:
    settings[0] &= ~termios.ICRNL


def raw(settings: list[Any]) -> None:
    settings[0] &= ~termios.ICRNL
    settings[3] &= ~(termios.ICANON | termios.ECHO | termios.ISIG)


def ignoring_enter(settings: list[Any]) -> None:
    settings[0] |= termios.IGNCR


@pytest.mark.any_manager
@pytest.mark.parametrize("left", [without_icrnl, raw, ignoring_enter])
def test_enter_ends_an_answer_however_a_program_has_left_the_terminal(
    ready: LittleHost, left: Callable[[list[Any]], None]
) -> None:
    with ready.typing(SECOND) as terminal:
        with ready.comes_up_late(SECOND, "backup"):  # no question before the block ends
            terminal.sees("fetch")
            before, settings = terminal.settings, terminal.settings
            left(settings)
            terminal.settings = settings
            changed = terminal.settings
            assert changed != before
        terminal.asked()
        terminal.writes("no\r")
        wait_for(lambda: ready.events[-1]["event"] == "end", "the run ends")
        assert terminal.settings == changed
        terminal.ends(7)
    assert ready.versions == (FIRST, FIRST)


@pytest.mark.any_manager
def test_with_yes_what_is_decided_is_shown_and_no_question(ready: LittleHost) -> None:
    said = ready.done(SECOND, "--yes").stderr
    assert f"{FIRST} -> {SECOND}" in said
    assert "ask        yes, by --yes" in said
    for words in ("Try it", "  yes  ", "  no   ", "[yes/no]"):
        assert words not in said
    with ready.typing("deploy", Tags.THIRD) as terminal:
        terminal.asked()
        for words in (f"{SECOND} -> {Tags.THIRD}", "Try it", "  yes  ", "  no   "):
            assert words in terminal.shown
        terminal.types("no")
        terminal.ends(7)
