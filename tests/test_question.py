"""What a person can answer, and what can happen meanwhile; on a real terminal."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from clojure_repository import ClojureRepository as Tags
from conftest import Clojure
from little_host import LittleHost, Terminal, wait_for

FIRST, SECOND = Tags.FIRST, Tags.SECOND

Site = tuple[str | None, tuple[str | None, str | None], int | None]


def site(host: LittleHost) -> Site:
    """The link's text, what both instances serve, and the primary's PID."""
    return host.current, host.versions, host.pid("primary")


@pytest.fixture
def ready(request: pytest.FixtureRequest) -> LittleHost:
    """0.1.0 is in production, and the release 0.2.0 is there; on JVMs where it is marked so."""
    host: LittleHost
    if request.node.get_closest_marker("jvm"):
        host = request.getfixturevalue("host")
        clojure: Clojure = request.getfixturevalue("clojure")
        host.have(SECOND, clojure.jar(SECOND))
    else:
        host = request.getfixturevalue("light_host")
        host.have(SECOND)
    return host


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
        (no, 7),
        pytest.param(rubbish_then_no, 7, marks=pytest.mark.jvm),
        pytest.param(end_of_input, 7, marks=pytest.mark.jvm),
        pytest.param(ctrl_c, 130, marks=pytest.mark.jvm),
        (interrupt_the_tool_alone, 130),
        (terminate, 143),
        # The kernel has no order for two that come at once.
        (two_at_once, (130, 143)),
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


@pytest.mark.jvm
def test_a_hang_up_reverts_although_nothing_can_be_shown(ready: LittleHost) -> None:
    before = site(ready)
    with ready.typing(SECOND) as terminal:
        terminal.asked()
        terminal.hangs_up()
        wait_for(lambda: ready.events[-1]["event"] == "end", "the run ends", 60)
    assert ready.events[-1]["status"] in (7, 129)
    wait_for(lambda: ready.status["lock"] is None, "the lock is free")
    assert site(ready) == before
    assert ready.status["ok"]
    [log] = (ready.deploy / "logs").iterdir()
    assert "reverted" in log.read_text()


def test_an_answer_typed_before_the_question_does_not_count(ready: LittleHost) -> None:
    with ready.typing(SECOND) as terminal:
        terminal.sees("fetch")
        terminal.types("yes")
        terminal.asked()
        assert ready.versions == (FIRST, SECOND)
        terminal.types("no")
        terminal.ends(7)
    assert ready.versions == (FIRST, FIRST)


@pytest.mark.jvm
def test_a_primary_that_came_back_on_the_new_release_is_seen_and_put_back(
    ready: LittleHost,
) -> None:
    with ready.typing(SECOND) as terminal:
        terminal.asked()
        os.kill(ready.pid("primary") or 0, signal.SIGKILL)
        terminal.sees(f"clojars died and was started again by itself, on {SECOND}")
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
        respawned = ready.pid("primary")
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
        terminal.sees("clojars does not serve any more")
        terminal.asked()
        terminal.types("no")
        terminal.ends(7)
    assert ready.versions == (FIRST, FIRST)
    assert ready.status["ok"]


@pytest.mark.jvm
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
