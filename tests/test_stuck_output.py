"""A reader of standard error that takes nothing, is slow, or is gone: no run waits for it for long."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest
from clojure_repository import ClojureRepository as Tags
from little_host import LittleHost, at_a_terminal, wait_for

from deploy_clojars.screen import stderr
from deploy_clojars.screen.stderr import MOST, SafeStderr

FIRST, SECOND = Tags.FIRST, Tags.SECOND


# --- runs ---------------------------------------------------------------------------------------


def has_ended(host: LittleHost) -> bool:
    return bool(host.events) and host.events[-1]["event"] == "end"


def test_ctrl_s_at_a_step_does_not_hold_up_the_run(light_host: LittleHost, tmp_path: Path) -> None:
    host = light_host
    goes_on = tmp_path / "goes on"
    uberjar = host.options["build"].splitlines()[1]
    host.options["build"] = f"test = \"while [ ! -e '{goes_on}' ]; do sleep 0.05; done\"\n{uberjar}"
    host.write_config()
    with host.typing(SECOND, "--yes") as terminal:
        wait_for(lambda: host.is_at("test"), "the tests run")
        terminal.presses("s")
        goes_on.touch()
        wait_for(lambda: has_ended(host), "the run ends")
        wait_for(lambda: host.status["lock"] is None, "the lock is free")
        terminal.presses("q")
        terminal.ends(0)
    assert host.versions == (SECOND, SECOND)
    [log] = (host.deploy / "logs").iterdir()
    assert f"{SECOND} is in production" in log.read_text()


def test_ctrl_s_at_the_question_does_not_hold_up_the_revert(light_host: LittleHost) -> None:
    host = light_host
    host.have(SECOND)
    with host.typing(SECOND) as terminal:
        terminal.asked()
        terminal.presses("s")
        terminal.kill(signal.SIGINT)
        wait_for(lambda: has_ended(host), "the run ends")
        wait_for(lambda: host.status["lock"] is None, "the lock is free")
        terminal.presses("q")
        terminal.ends(130)
    assert host.versions == (FIRST, FIRST)
    assert host.status["ok"]


def test_what_was_said_meanwhile_is_shown_after_ctrl_q(light_host: LittleHost) -> None:
    host = light_host
    host.have(SECOND)
    with host.typing(SECOND) as terminal:
        terminal.sees("fetch")
        terminal.presses("s")
        wait_for(lambda: host.is_at("ask"), "the question")
        terminal.presses("q")
        terminal.asked()
        assert f"Promote {SECOND}?" in terminal.shown
        terminal.types("no")
        terminal.ends(7)


def test_a_job_in_the_background_is_not_stopped_for_its_output(light_host: LittleHost) -> None:
    host = light_host
    host.have(SECOND)
    deploy = shlex.join([*host.command, SECOND, "--yes"])
    argv = ["bash", "--norc", "-i", "-c", f"stty tostop; {deploy} & wait $!; exit $?"]
    with at_a_terminal(argv, host.whole_environment, host.directory, 180) as terminal:
        terminal.ends(0)
    assert host.versions == (SECOND, SECOND)


# --- the stream ---------------------------------------------------------------------------------


class Pipe:
    """Standard error into a pipe, and its reader."""

    def __init__(self) -> None:
        self.reader, writer = os.pipe()
        self.stream: TextIO = open(writer, "w", encoding="utf-8")  # noqa: SIM115 # closed below
        self.safe = SafeStderr(self.stream)

    def read(self, size: int = 1 << 16) -> bytes:
        return os.read(self.reader, size)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.stream.close()
    with contextlib.suppress(OSError):  # a test has closed it
        os.close(pipe.reader)


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stderr, "PATIENCE", 0.2)


def test_a_reader_that_takes_nothing_is_given_up_once_and_gets_the_newest(pipe: Pipe) -> None:
    lines = [f"{number:>99}\n" for number in range(30_000)]  # 3 MB
    started = time.monotonic()
    with pipe.safe.never_waited_for():
        for line in lines:
            pipe.safe.write(line)
        assert time.monotonic() - started < 60  # each line alone would be waited for 0.2 s
        got = b""
        while not got.endswith(lines[-1].encode()):
            got += pipe.read()
    assert len(got) < 4 * MOST  # what was kept, and what was in the pipe
    assert lines[-100].encode() in got
    assert all(len(line) in (0, 99) for line in got.split(b"\n"))  # none was torn


def test_a_slow_reader_loses_nothing(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stderr, "PATIENCE", 60)
    text = "".join(f"{number}\n" for number in range(100_000))  # 0.6 MB
    got: list[bytes] = []

    def read_slowly() -> None:
        while sum(map(len, got)) < len(text):
            time.sleep(0.002)
            got.append(pipe.read(4096))

    reader = threading.Thread(target=read_slowly)
    reader.start()
    with pipe.safe.never_waited_for():
        for line in text.splitlines(keepends=True):
            pipe.safe.write(line)
    reader.join()
    assert b"".join(got).decode() == text


def test_all_is_written_before_the_block_ends(pipe: Pipe) -> None:
    with pipe.safe.never_waited_for():
        pipe.safe.write("the last word\n")
    assert pipe.read() == b"the last word\n"
    pipe.safe.write("and one more\n")
    pipe.safe.flush()
    assert pipe.read() == b"and one more\n"


def test_a_reader_that_is_gone_is_not_waited_for(pipe: Pipe) -> None:
    started = time.monotonic()
    os.close(pipe.reader)
    with pipe.safe.never_waited_for():
        for _ in range(1000):
            pipe.safe.write("x" * 1000)
    assert time.monotonic() - started < 60


def test_a_stream_that_others_have_made_non_blocking_loses_nothing(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stderr, "PATIENCE", 60)  # its reader may be slow to begin
    os.set_blocking(pipe.stream.fileno(), False)
    text = "x" * 300_000
    got: list[bytes] = []

    def read() -> None:
        while sum(map(len, got)) < len(text):
            got.append(pipe.read())

    reader = threading.Thread(target=read)
    reader.start()
    with pipe.safe.never_waited_for():
        for start in range(0, len(text), 1000):
            pipe.safe.write(text[start : start + 1000])
    reader.join()
    assert len(b"".join(got)) == len(text)


def test_where_no_thread_can_be_started_all_is_written_at_once(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    with pipe.safe.never_waited_for():
        pipe.safe.write("a word\n")
        pipe.safe.flush()
        assert pipe.read() == b"a word\n"
