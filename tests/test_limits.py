"""Limits that a host sets: threads, descriptors, what its file systems can do."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from clojure_repository import ClojureRepository as Tags
from front import in_front_of
from little_host import LittleHost

from deploy_clojars.errors import NotReady
from deploy_clojars.machine import files, signals, sockets, threads
from deploy_clojars.run import lock

FIRST, SECOND = Tags.FIRST, Tags.SECOND

# As under RLIMIT_NPROC, which does not hold for root, as whom these tests may run.
NO_MORE_THREADS = """
import os, threading
name = "_start_joinable_thread" if hasattr(threading, "_start_joinable_thread") else "_start_new_thread"
start = getattr(threading, name)
def limited(*words, **options):
    if os.path.exists({limit!r}):
        raise RuntimeError("can't start new thread")
    return start(*words, **options)
setattr(threading, name, limited)
"""


@pytest.fixture
def limit(light_host: LittleHost, tmp_path: Path) -> Path:
    """While this file is there the tool can start no thread."""
    limit = tmp_path / "limit"
    library = tmp_path / "library"
    library.mkdir()
    (library / "sitecustomize.py").write_text(NO_MORE_THREADS.format(limit=str(limit)))
    light_host.environment = {"PYTHONPATH": str(library), "TERM": "xterm"}
    light_host.have(SECOND)
    return limit


@pytest.mark.parametrize(("answer", "status"), [("no", 7), ("yes", 0)])
def test_no_thread_can_be_started_any_more_when_the_question_is_answered(
    light_host: LittleHost, limit: Path, answer: str, status: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("CI", raising=False)  # which has no lines that are alive
    with in_front_of(light_host, quiet="0.2", timeout="20"):
        with light_host.typing(SECOND) as terminal:
            terminal.asked()
            limit.touch()
            terminal.types(answer)
            shown = terminal.ends(status)
        assert "warning" not in shown
        version = SECOND if status == 0 else FIRST
        assert light_host.versions == (version, version)
        assert light_host.status["ok"]  # which can start none either
    assert light_host.run("check").returncode in (0, 11)


# As under RLIMIT_NPROC: threads and processes that are there may be replaced by others.
NO_MORE_PROCESSES = """
import errno, os, subprocess
from pathlib import Path
import psutil
start = subprocess._fork_exec
limit = Path({limit!r})
def used(process):
    return process.num_threads() + len(process.children())
def limited(*words, **options):
    if limit.exists() and used(psutil.Process()) >= int(limit.read_text()):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return start(*words, **options)
subprocess._fork_exec = limited
"""


@pytest.mark.parametrize(("answer", "status"), [("no", 7), ("yes", 0)])
def test_no_process_can_be_started_any_more_when_the_question_is_answered(
    light_host: LittleHost, tmp_path: Path, answer: str, status: int
) -> None:
    host = light_host
    host.have(SECOND)
    limit, library = tmp_path / "limit", tmp_path / "library"
    library.mkdir()
    (library / "sitecustomize.py").write_text(NO_MORE_PROCESSES.format(limit=str(limit)))
    host.environment = {"PYTHONPATH": str(library)}
    with host.typing(SECOND) as terminal:
        terminal.asked()
        new = tmp_path / "new"
        new.write_text(str(psutil.Process(terminal.pid).num_threads()))
        new.rename(limit)
        terminal.types(answer)
        terminal.ends(status)
    host.environment = {}
    version = SECOND if status == 0 else FIRST
    assert host.versions == (version, version)
    assert host.status["ok"]


def test_a_deploy_that_can_start_no_thread_fails_with_a_clear_error(
    light_host: LittleHost, limit: Path
) -> None:
    limit.touch()
    result = light_host.run(SECOND, "--yes")
    assert result.returncode == 1
    assert "cannot be started: can't start new thread" in result.stderr
    assert "nothing that runs was changed" in result.stderr
    assert light_host.versions == (FIRST, FIRST)
    assert light_host.status["ok"]


def test_a_call_runs_in_a_thread_or_where_there_is_none_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert threads.started(threading.get_ident).result() != threading.get_ident()
    monkeypatch.setattr(threading.Thread, "start", refused)
    assert threads.started(threading.get_ident).result() == threading.get_ident()
    failing = threads.started(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        failing.result()


def refused(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_a_name_is_asked_for_where_no_thread_can_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        patched.setattr(sockets, "KEPT", 0.0)
        for _ in range(2):
            assert sockets.addresses_of("localhost", 5)


@pytest.fixture
def many_descriptors() -> Iterator[list[int]]:
    """More of them than select(2) can take, all open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    opened = [os.open(os.devnull, os.O_RDONLY)]
    while opened[-1] < 1100:
        opened.append(os.dup(opened[0]))
    yield opened
    for descriptor in opened:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def is_open(descriptor: int) -> bool:
    return os.path.lexists(f"/proc/self/fd/{descriptor}")


def test_a_thousand_inherited_descriptors_do_not_matter(
    light_host: LittleHost, many_descriptors: list[int]
) -> None:
    del many_descriptors  # all up to the highest of them are inherited
    light_host.have(SECOND)
    result = subprocess.run(
        [*light_host.command, SECOND, "--yes"],
        env=light_host.whole_environment,
        cwd=light_host.directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        pass_fds=[each for each in map(int, os.listdir("/proc/self/fd")) if is_open(each)],
    )
    assert result.returncode == 0, result.stderr
    assert light_host.versions == (SECOND, SECOND)


@pytest.mark.parametrize("words", [(SECOND, "--yes"), ("rollback", SECOND, "--yes")])
def test_too_few_descriptors_are_said_before_anything_is_done(
    light_host: LittleHost, words: tuple[str, ...]
) -> None:
    light_host.have(SECOND)
    result = subprocess.run(
        ["prlimit", "--nofile=24:24", *light_host.command, *words],
        env=light_host.whole_environment,
        cwd=light_host.directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 4, result.stderr
    assert "ulimit -n" in result.stderr
    assert light_host.versions == (FIRST, FIRST)
    assert light_host.events == []


def test_a_descriptor_above_those_of_select_can_be_waited_for(many_descriptors: list[int]) -> None:
    reader, writer = os.pipe()
    try:
        high = fcntl.fcntl(reader, fcntl.F_DUPFD, many_descriptors[-1])
        assert list(signals.wait(0, high)) == []
        os.write(writer, b"x")
        assert list(signals.wait(5, high)) == [high]
        os.close(high)
    finally:
        os.close(reader)
        os.close(writer)


def test_a_directory_that_its_file_system_does_not_sync_is_no_failure() -> None:
    descriptor = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)  # as some of a network
    try:
        with pytest.raises(OSError, match="Invalid argument"):
            os.fsync(descriptor)
        files.sync(descriptor)
    finally:
        os.close(descriptor)


def test_a_disk_that_fails_to_sync_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        files.sync(0)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_where_there_are_no_locks_a_run_is_refused_and_nobody_holds_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    file = tmp_path / "lock"
    monkeypatch.setattr(fcntl, "fcntl", fail)
    with (
        pytest.raises(NotReady, match=f"does not support locks: {os.strerror(number)}") as refused,
        lock.held(file, lock.Holder()),
    ):
        pytest.fail("two runs could be at work")
    assert f"move {tmp_path} to one that does" in refused.value.remedy
    assert lock.holder_of(file) is None


def test_a_file_system_without_modes_has_a_lock_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "fchmod", fail)
    file = tmp_path / "lock"
    with lock.held(file, lock.Holder(user="ann")):
        assert lock.holder_of(file) == lock.Holder(user="ann")


def test_a_full_disk_is_not_mended_by_chown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "open", fail)
    with (
        pytest.raises(NotReady, match="No space left on device") as refused,
        lock.held(tmp_path / "lock", lock.Holder()),
    ):
        pytest.fail("there is no lock")
    assert "chown" not in refused.value.remedy
    assert "make room" in refused.value.remedy
