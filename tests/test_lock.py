"""The lock: one run at a time, whoever looks at it and however its holder ends."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from deploy_clojars.errors import DeployError, Locked, NotReady, Status
from deploy_clojars.run.lock import Holder, held, holder_of, locked_by

DEADLINE = 60.0  # seconds that anything may take on a busy machine

ME = Holder(
    pid=os.getpid(), user="toby", since="2015-03-01T10:00:00Z", step="start", version="0.1.0",
    command="deploy",
)  # fmt: skip

# A run in a process of its own: it takes the lock, starts a child, says its child's PID and waits.
RUN = """
import os, subprocess, sys
from pathlib import Path
from deploy_clojars.run.lock import Holder, held
with held(Path(sys.argv[1]), Holder(pid=os.getpid(), user="ada", version="0.2.0")):
    child = subprocess.Popen(["sleep", "1000"], stdout=subprocess.DEVNULL)
    print(child.pid, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "lock"


@contextmanager
def another_run(file: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A run that holds the lock in another process; gives it and its child's PID."""
    with subprocess.Popen(
        [sys.executable, "-c", RUN, str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stdout is not None
        child = int(run.stdout.readline())
        try:
            yield run, child
        finally:
            run.kill()
            os.kill(child, signal.SIGKILL)


# Free and held


def test_a_lock_that_nobody_ever_held_is_free(file: Path) -> None:
    assert holder_of(file) is None
    assert not file.exists()


def test_while_it_is_held_everybody_can_see_by_whom(file: Path) -> None:
    with held(file, ME):
        assert holder_of(file) == ME


def test_it_is_free_afterwards_whatever_its_file_says(file: Path) -> None:
    with held(file, ME):
        pass

    assert holder_of(file) is None
    assert json.loads(file.read_text())["user"] == "toby"


def test_it_is_free_after_a_failure_too(file: Path) -> None:
    with pytest.raises(ZeroDivisionError), held(file, ME):
        raise ZeroDivisionError

    assert holder_of(file) is None


def test_the_step_is_shown_as_it_changes(file: Path) -> None:
    with held(file, ME) as lock:
        for step in ("a step with a long name", "ask", "promote"):
            lock.at_step(step)

            holder = holder_of(file)
            assert holder is not None
            assert (holder.step, holder.user) == (step, "toby")


def test_a_reader_in_the_middle_of_a_write_sees_the_new_step_whole(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | None] = []

    def look_first(descriptor: int, length: int) -> None:
        holder = holder_of(file)
        seen.append(holder.step if holder is not None else None)
        truncate(descriptor, length)

    truncate = os.ftruncate
    monkeypatch.setattr(os, "ftruncate", look_first)
    with held(file, ME) as lock:
        lock.at_step("a step with a long name")
        lock.at_step("flip")

    assert seen == [ME.step, "a step with a long name", "flip"]


def test_the_next_run_shows_nothing_of_the_last_one(file: Path) -> None:
    with held(file, ME):
        pass

    with held(file, Holder(pid=1)):
        assert holder_of(file) == Holder(pid=1)


def test_its_file_is_never_removed(file: Path) -> None:
    with held(file, ME):
        first = file.stat().st_ino
    with held(file, ME):
        assert file.stat().st_ino == first

    assert file.stat().st_ino == first


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o000])
def test_everybody_can_read_it_and_its_owner_alone_write_it(file: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with held(file, ME):
            assert stat.S_IMODE(file.stat().st_mode) == 0o644
    finally:
        os.umask(before)


def test_a_link_in_its_place_is_not_followed(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("not a lock\n")
    file.symlink_to(other)

    with pytest.raises((OSError, DeployError)), held(file, ME):
        pass

    assert other.read_text() == "not a lock\n"
    assert holder_of(file) is None


# Two runs


def test_a_second_run_is_refused_and_told_all_about_the_first(file: Path) -> None:
    with held(file, ME) as lock:
        lock.at_step("test")
        with pytest.raises(Locked) as refused, held(file, Holder(pid=1)):
            pass

    assert refused.value.status == Status.LOCKED
    assert refused.value.message == (
        f"locked: deploy 0.1.0 by toby since 2015-03-01T10:00:00Z, step test, PID {os.getpid()}"
    )
    assert refused.value.remedy.endswith(f"to stop that run cleanly: kill -INT {os.getpid()}")


def test_a_run_that_was_refused_changes_nothing_for_the_first(file: Path) -> None:
    with held(file, ME):
        with pytest.raises(Locked), held(file, Holder(pid=1)):
            pass

        assert holder_of(file) == ME
        with pytest.raises(Locked), held(file, Holder(pid=1)):
            pass


def test_a_run_in_another_process_is_refused_and_refuses(file: Path) -> None:
    with another_run(file) as (run, _):
        assert holder_of(file) == Holder(pid=run.pid, user="ada", version="0.2.0")
        with pytest.raises(Locked, match=f"by ada .*PID {run.pid}"), held(file, ME):
            pass

        assert run.stdin is not None
        run.stdin.close()
        run.wait(DEADLINE)
        with held(file, ME):
            assert refused_in_another_process(file)


def refused_in_another_process(file: Path) -> bool:
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(file)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    return done.returncode != 0 and "Locked" in done.stderr


def test_a_killed_run_holds_no_lock_while_its_children_go_on(file: Path) -> None:
    with another_run(file) as (run, child):
        run.kill()
        run.wait()

        wait_for(lambda: holder_of(file) is None, "the lock is free")
        os.kill(child, 0)
        with held(file, ME):
            assert holder_of(file) == ME


def test_a_child_process_does_not_inherit_it(file: Path) -> None:
    with ExitStack() as processes:
        with held(file, ME):
            child = processes.enter_context(
                subprocess.Popen(["sleep", "1000"], close_fds=False, start_new_session=True)
            )
            processes.callback(child.kill)

        assert child.poll() is None
        assert holder_of(file) is None


# Looking


def test_to_look_at_it_never_takes_it(file: Path) -> None:
    file.touch()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            holder_of(file)

    looking = [threading.Thread(target=look) for _ in range(3)]
    for thread in looking:
        thread.start()
    try:
        for _ in range(500):
            with held(file, ME):
                pass
    finally:
        done.set()
        for thread in looking:
            thread.join()


def test_to_look_at_it_does_not_release_it(file: Path) -> None:
    with held(file, ME):
        holder_of(file)

        with pytest.raises(Locked), held(file, Holder()):
            pass


# A file that says nothing sensible


GARBAGE = [
    b"",
    b"\n",
    b'{"pid": 1, "user": "to',
    b'{"pid": "one"}',
    b'{"user": "caf\xe9"}',
    b"[]",
    b"null",
    b"\x00" * 100,
    b"\xff\xfe",
    b"x" * 10_000,
]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_in_a_free_lock_does_not_matter(file: Path, garbage: bytes) -> None:
    file.write_bytes(garbage)

    assert holder_of(file) is None
    with held(file, ME):
        assert holder_of(file) == ME
        assert json.loads(file.read_text())["user"] == "toby"


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_in_a_held_lock_hides_its_holder_but_not_that_it_is_held(
    file: Path, garbage: bytes
) -> None:
    with held(file, ME):
        file.write_bytes(garbage)

        assert holder_of(file) == Holder()
        with pytest.raises(Locked, match=r"^locked: a run by somebody"), held(file, Holder()):
            pass


def test_keys_that_a_newer_version_added_do_not_hide_the_holder(file: Path) -> None:
    with held(file, ME):
        file.write_text('{"pid": 7, "user": "ada", "host": {"name": "x"}}\n')

        assert holder_of(file) == Holder(pid=7, user="ada")


def test_a_holder_whose_name_is_not_utf_8_locks_all_the_same(file: Path) -> None:
    with held(file, Holder(pid=7, user="ren\udce9")):
        holder = holder_of(file)

        assert holder is not None
        with pytest.raises(Locked), held(file, Holder()):
            pass


def test_without_a_pid_there_is_nothing_to_be_killed() -> None:
    assert locked_by(Holder()).remedy == ""


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE:.0f} s: {what}"
        time.sleep(0.005)


def test_what_is_no_file_in_its_place_is_refused_with_what_mends_it(file: Path) -> None:
    file.mkdir()
    with pytest.raises(NotReady, match="Is a directory") as error, held(file, Holder()):
        pass
    assert error.value.remedy == f"mv {file} {file}.old"
    file.rmdir()
    os.mkfifo(file)
    assert holder_of(file) is None  # and waits for nobody
