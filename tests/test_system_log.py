"""What the system's log is told, through a real datagram socket."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import msgspec
import pytest

from deploy_clojars import config
from deploy_clojars.errors import DeployError
from deploy_clojars.host.host import Host
from deploy_clojars.host.journal import Event
from deploy_clojars.run import system_log
from deploy_clojars.run.run import Request, Run
from deploy_clojars.screen.console import Console


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


@pytest.mark.parametrize("command", ["deploy", "rollback"])
def test_what_the_journal_refuses_does_not_happen_and_is_not_reported(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(msgspec.structs.replace(config.Config(), home=str(tmp_path)))
    host.journal.file.mkdir(parents=True)  # cannot be written
    run = Run(host, Console(), Request(command, "0.2.0"), lambda step, version: None)
    address = str(tmp_path / "log")
    monkeypatch.setattr(system_log, "tell", partial(system_log.tell, address=address))
    with listening(tmp_path / "log") as log:
        if command == "deploy":
            with pytest.raises(DeployError, match="cannot be written"):
                run.record("flip", version="0.2.0")
            log.setblocking(False)
            with pytest.raises(BlockingIOError):
                log.recv(2000)
        else:  # users do not wait for a journal
            assert not run.record("flip", version="0.2.0")
            assert log.recv(2000).decode().endswith("rollback 0.2.0: current none -> 0.2.0")


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
