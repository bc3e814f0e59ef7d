"""What the system's log is told, through a real datagram socket."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from deploy_clojars.host.journal import Event
from deploy_clojars.run import system_log


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A system log."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(path))
        receiver.settimeout(5)
        yield receiver


def test_a_line_arrives_without_control_characters(tmp_path: Path) -> None:
    with listening(tmp_path / "log") as log:
        system_log.tell("ann: deploy 0.2.0:\x1b[2J done\nno second line", str(tmp_path / "log"))
        line = log.recv(2000).decode()
    assert line.startswith("<13>deploy-clojars[")
    assert line.endswith("]: ann: deploy 0.2.0: [2J done no second line")


def test_a_host_without_a_system_log_does_without(tmp_path: Path) -> None:
    system_log.tell("nobody hears", str(tmp_path / "nothing"))


def test_a_system_log_that_is_stuck_holds_nothing_up(tmp_path: Path) -> None:
    with listening(tmp_path / "log"):
        started = time.monotonic()
        for number in range(1000):  # far more than the socket holds
            system_log.tell(f"line {number}", str(tmp_path / "log"))
        assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (Event("flip", version="0.2.0", previously="0.1.0"), "current 0.1.0 -> 0.2.0"),
        (Event("flip", previously="0.2.0"), "current 0.2.0 -> none"),
        (Event("restart", instance="backup", version="0.2.0"), "restart of the backup on 0.2.0"),
        (Event("promoted", version="0.2.0"), "0.2.0 is in production"),
        (Event("prune", version="0.1.0"), None),
        (Event("pruned", version="0.1.0"), "removed 0.1.0"),
        (Event("end", outcome="declined", status=7), "declined (7)"),
        (Event("step", step="ask"), None),
        (Event("begin"), None),
    ],
)
def test_every_change_is_one_line(event: Event, line: str | None) -> None:
    by_ann = msgspec.structs.replace(event, by="ann")
    said = system_log.line_of(by_ann, "deploy", "0.2.0")
    assert said == (line and f"ann: deploy 0.2.0: {line}")


def test_a_question_is_told_of_once_after_fifteen_minutes() -> None:
    now, told = 0.0, list[str]()
    remind = system_log.Reminder("ann: Promote 0.2.0?", told.append, lambda: now)
    remind()
    now = 899.0
    remind()
    assert told == []
    for now in (900.0, 2000.0):  # noqa: B007 # the clock reads it
        remind()
    assert told == ["ann: Promote 0.2.0? (open for 15 minutes)"]
