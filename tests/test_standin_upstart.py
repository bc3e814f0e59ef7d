"""The stand-in for Upstart answers as the real one, measured, did (standin/upstart.md)."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest
from standin.upstart import MARKER, PROGRAMS, JobFile, JobFileError, RealUpstart, Upstart

DEADLINE = 60.0  # seconds that anything may take on a busy machine
IS_ROOT = os.geteuid() == 0

needs_root = pytest.mark.skipif(not IS_ROOT, reason="only root can be another user")

SERVICE = "exec sleep 1000\n"

T = TypeVar("T")


class Answer(NamedTuple):
    output: str
    error: str
    status: int


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that every user can enter, as a real host's are; `tmp_path` is not."""
    with tempfile.TemporaryDirectory(prefix="upstart-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@pytest.fixture
def upstart(directory: Path) -> Iterator[Upstart]:
    with Upstart.started(directory) as upstart:
        yield upstart


def call(upstart: Upstart, program: str, *arguments: str, user: str | None = None) -> Answer:
    done = subprocess.run(
        [str(upstart.bin / program), *arguments],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=DEADLINE,
        user=user,
        cwd="/",
        check=False,
    )
    return Answer(done.stdout, done.stderr, done.returncode)


def begin(upstart: Upstart, program: str, *arguments: str) -> subprocess.Popen[str]:
    """A call that is not waited for."""
    command = [str(upstart.bin / program), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(calling: subprocess.Popen[str]) -> Answer:
    output, error = calling.communicate(timeout=DEADLINE)
    return Answer(output, error, calling.returncode)


def wait_for(condition: Callable[[], T], what: str) -> T:
    deadline = time.monotonic() + DEADLINE
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {DEADLINE:.0f} s: {what}"
        time.sleep(0.005)
    return value


def wait_for_status(upstart: Upstart, job: str, pattern: str) -> str:
    """What `status` prints as soon as all of it matches `pattern`."""
    seen = ""

    def matches() -> bool:
        nonlocal seen
        seen = call(upstart, "status", job).output
        return re.fullmatch(pattern, seen) is not None

    wait_for(matches, f"{job} {pattern}")
    return seen


def running_pid(upstart: Upstart, job: str) -> int:
    pid = upstart.pid(job)
    assert pid is not None
    return pid


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def start_sleeping(upstart: Upstart, job: str) -> None:
    """Starts a job whose program ends with `exec sleep`, and waits until the shell has read it."""
    call(upstart, "start", job)
    pid = running_pid(upstart, job)
    wait_for(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n", f"{job} sleeps")


def written_pid(path: Path) -> int:
    """The PID that a job's process wrote to `path`, once it is there whole."""

    def line() -> str:
        text = path.read_text() if path.exists() else ""
        return text if text.endswith("\n") else ""

    return int(wait_for(line, f"a PID in {path}"))


def write_program(path: Path, text: str) -> None:
    """A shell program, put in place at once so that no start finds half of it."""
    temporary = path.with_suffix(".new")
    temporary.write_text(f"#!/bin/sh\n{text}\n")
    temporary.chmod(0o755)
    temporary.replace(path)


# The table of standin/upstart.md, row by row


def test_status_of_a_running_job(upstart: Upstart) -> None:
    upstart.install("clojars", SERVICE)
    call(upstart, "start", "clojars")
    pid = upstart.pid("clojars")
    assert call(upstart, "status", "clojars") == (f"clojars start/running, process {pid}\n", "", 0)


def test_status_of_a_stopped_job_is_no_failure(upstart: Upstart) -> None:
    upstart.install("clojars-backup", SERVICE)
    assert call(upstart, "status", "clojars-backup") == ("clojars-backup stop/waiting\n", "", 0)
    assert upstart.pid("clojars-backup") is None


def test_restart_of_a_running_job_gives_it_a_new_process(upstart: Upstart) -> None:
    upstart.install("clojars", SERVICE)
    call(upstart, "start", "clojars")
    old = running_pid(upstart, "clojars")
    answer = call(upstart, "restart", "clojars")
    new = running_pid(upstart, "clojars")
    assert answer == (f"clojars start/running, process {new}\n", "", 0)
    assert new != old
    assert not is_alive(old)


def test_restart_of_a_stopped_job_does_not_start_it(upstart: Upstart) -> None:
    upstart.install("clojars", SERVICE)
    assert call(upstart, "restart", "clojars") == ("", "restart: Unknown instance: \n", 1)
    assert upstart.pid("clojars") is None


def test_start_of_a_running_job(upstart: Upstart) -> None:
    upstart.install("clojars", SERVICE)
    call(upstart, "start", "clojars")
    expected = ("", "start: Job is already running: clojars\n", 1)
    assert call(upstart, "start", "clojars") == expected


def test_start_of_a_stopped_job(upstart: Upstart) -> None:
    upstart.install("clojars-backup", SERVICE)
    answer = call(upstart, "start", "clojars-backup")
    pid = upstart.pid("clojars-backup")
    assert answer == (f"clojars-backup start/running, process {pid}\n", "", 0)


def test_stop_of_a_running_job(upstart: Upstart) -> None:
    upstart.install("clojars-backup", SERVICE)
    call(upstart, "start", "clojars-backup")
    pid = running_pid(upstart, "clojars-backup")
    assert call(upstart, "stop", "clojars-backup") == ("clojars-backup stop/waiting\n", "", 0)
    assert not is_alive(pid)


def test_stop_of_a_stopped_job(upstart: Upstart) -> None:
    upstart.install("clojars", SERVICE)
    assert call(upstart, "stop", "clojars") == ("", "stop: Unknown instance: \n", 1)


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_unknown_job(upstart: Upstart, program: str) -> None:
    assert call(upstart, program, "nosuch") == ("", f"{program}: Unknown job: nosuch\n", 1)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_job_file_with_a_syntax_error_is_an_unknown_job(upstart: Upstart, program: str) -> None:
    upstart.install("broken", "exec sleep 1000\nrespawns\n")
    assert call(upstart, program, "broken") == ("", f"{program}: Unknown job: broken\n", 1)


def test_start_of_a_job_that_dies_at_once_succeeds_until_the_respawn_limit(
    upstart: Upstart, directory: Path
) -> None:
    starts = directory / "starts"
    upstart.install("dier", f"respawn\nexec sh -c 'echo again >> {starts}; exit 1'\n")
    began = time.monotonic()
    answer = call(upstart, "start", "dier")
    # On a machine under load it is dead before the answer is written.
    assert re.fullmatch(r"dier start/(running, process \d+|stopping)\n", answer.output)
    assert answer[1:] == ("", 0)
    wait_for_status(upstart, "dier", "dier stop/waiting\n")
    # The first start and the ten respawns of the default limit, unless its five seconds were over.
    count = starts.read_text().count("again")
    assert count == 11 or (count > 11 and time.monotonic() - began > 5)


def test_status_of_a_job_that_is_being_respawned(upstart: Upstart) -> None:
    upstart.install("dier", "respawn\nrespawn limit unlimited\nexec false\n")
    call(upstart, "start", "dier")
    wait_for_status(upstart, "dier", r"dier start/spawned, process \d+\n")


def test_restart_to_a_program_that_dies_at_once_succeeds(upstart: Upstart, directory: Path) -> None:
    program = directory / "program"
    write_program(program, "exec sleep 1000")
    upstart.install("prog", f"exec {program}\n")
    start_sleeping(upstart, "prog")
    write_program(program, "exit 1")
    answer = call(upstart, "restart", "prog")
    # On a machine under load it is dead before the answer is written.
    assert re.fullmatch(r"prog (start/running, process \d+|stop/stopping)\n", answer.output)
    assert answer[1:] == ("", 0)
    wait_for_status(upstart, "prog", "prog stop/waiting\n")


def test_restart_without_the_program_file_leaves_the_job_stopped(
    upstart: Upstart, directory: Path
) -> None:
    program = directory / "program"
    write_program(program, "exec sleep 1000")
    upstart.install("prog", f"respawn\nexec {program}\n")
    start_sleeping(upstart, "prog")
    program.unlink()
    assert call(upstart, "restart", "prog") == ("", "restart: Job failed to restart\n", 1)
    assert call(upstart, "status", "prog") == ("prog stop/waiting\n", "", 0)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("exec /nonexistent/program\n", id="missing program"),
        pytest.param("chdir /nonexistent\nexec sleep 1000\n", id="bad chdir"),
        pytest.param("setuid nosuchuser\nexec sleep 1000\n", id="bad setuid"),
        pytest.param("pre-start exec false\nexec sleep 1000\n", id="pre-start fails"),
        pytest.param(
            "setuid root\nexec sleep 1000\n",
            id="setuid without root",
            marks=pytest.mark.skipif(IS_ROOT, reason="root can be anyone"),
        ),
    ],
)
def test_a_start_that_fails(upstart: Upstart, text: str) -> None:
    upstart.install("clojars", text)
    assert call(upstart, "start", "clojars") == ("", "start: Job failed to start\n", 1)
    assert call(upstart, "status", "clojars") == ("clojars stop/waiting\n", "", 0)


def test_status_in_pre_start(upstart: Upstart) -> None:
    upstart.install("prestart", "pre-start exec sleep 1000\nexec sleep 1000\n")
    with begin(upstart, "start", "prestart") as starting:
        wait_for_status(upstart, "prestart", r"prestart start/pre-start, process \d+\n")
        assert upstart.pid("prestart") is None
        starting.kill()


def test_status_in_post_start_has_a_second_line(upstart: Upstart) -> None:
    upstart.install("poststart", "post-start exec sleep 1000\nexec sleep 1000\n")
    with begin(upstart, "start", "poststart") as starting:
        lines = r"poststart start/post-start, process (\d+)\n\tpost-start process \d+\n"
        status = wait_for_status(upstart, "poststart", lines)
        found = re.match(lines, status)
        assert found
        assert upstart.pid("poststart") == int(found[1])
        assert starting.poll() is None
        starting.kill()


def test_status_while_waiting_for_kill(upstart: Upstart, directory: Path) -> None:
    install_stubborn(upstart, directory, kill_timeout=600)
    pid = running_pid(upstart, "stubborn")
    with begin(upstart, "restart", "stubborn") as restarting:
        wait_for_status(upstart, "stubborn", f"stubborn start/killed, process {pid}\n")
        restarting.kill()
    with begin(upstart, "stop", "stubborn") as stopping:
        wait_for_status(upstart, "stubborn", f"stubborn stop/killed, process {pid}\n")
        stopping.kill()


def test_restart_of_a_job_that_ignores_sigterm_takes_the_kill_timeout(
    upstart: Upstart, directory: Path
) -> None:
    install_stubborn(upstart, directory, kill_timeout=1)
    took: list[float] = []

    def is_restarted_in_time() -> bool:
        """Before the default of five seconds, which a busy machine may exceed now and then."""
        old = running_pid(upstart, "stubborn")
        began = time.monotonic()
        answer = call(upstart, "restart", "stubborn")
        took.append(time.monotonic() - began)
        new = running_pid(upstart, "stubborn")
        assert answer == (f"stubborn start/running, process {new}\n", "", 0)
        assert new != old
        assert not is_alive(old)
        wait_until_stubborn(upstart, directory)
        return took[-1] < 4

    wait_for(is_restarted_in_time, "a restart in one second")
    assert min(took) >= 1


def install_stubborn(upstart: Upstart, directory: Path, *, kill_timeout: int) -> None:
    """A job whose process ignores SIGTERM, running."""
    ready = directory / "ready"
    program = directory / "stubborn"
    write_program(program, f"trap '' TERM\necho $$ > {ready}\nwhile :; do sleep 0.1; done")
    upstart.install("stubborn", f"kill timeout {kill_timeout}\nexec {program}\n")
    call(upstart, "start", "stubborn")
    wait_until_stubborn(upstart, directory)


def wait_until_stubborn(upstart: Upstart, directory: Path) -> None:
    pid = upstart.pid("stubborn")
    wait_for(lambda: written_pid(directory / "ready") == pid, "it ignores SIGTERM")


def test_status_when_the_main_process_dies_during_post_start(
    upstart: Upstart, directory: Path
) -> None:
    program, gate = install_health(upstart, directory)
    with begin(upstart, "start", "health") as starting:
        health = r"health respawn/post-start, \(post-start\) process \d+\n"
        wait_for_status(upstart, "health", health)
        assert upstart.pid("health") is None
        # So `start` blocks for as long as the program dies (fact 6).
        assert starting.poll() is None
        write_program(program, "exec sleep 1000")
        gate.touch()
        answer = end(starting)
    pid = running_pid(upstart, "health")
    assert answer == (f"health start/running, process {pid}\n", "", 0)


def test_killing_the_caller_does_not_cancel_what_it_asked(
    upstart: Upstart, directory: Path
) -> None:
    program, gate = install_health(upstart, directory)
    with begin(upstart, "start", "health") as starting:
        wait_for_status(upstart, "health", r"health respawn/post-start, .*\n")
        starting.kill()
    write_program(program, "exec sleep 1000")
    gate.touch()
    wait_for_status(upstart, "health", r"health start/running, process \d+\n")


def install_health(upstart: Upstart, directory: Path) -> tuple[Path, Path]:
    """A job that dies at once and whose post-start waits; its program, and what it waits for."""
    program, gate = directory / "program", directory / "gate"
    write_program(program, "exit 1")
    upstart.install(
        "health",
        f"""\
        respawn
        exec {program}
        post-start script
            while ! test -e {gate}; do
                sleep 0.01
            done
        end script
        """,
    )
    return program, gate


def test_a_restart_overtaken_by_anothers_stop_succeeds(upstart: Upstart, directory: Path) -> None:
    gate = directory / "gate"
    gate.touch()
    wait = f"while ! test -e {gate}; do sleep 0.01; done"
    upstart.install("prestart", f"pre-start exec sh -c '{wait}'\nexec sleep 1000\n")
    call(upstart, "start", "prestart")
    gate.unlink()
    with begin(upstart, "restart", "prestart") as restarting:
        wait_for_status(upstart, "prestart", r"prestart start/pre-start, process \d+\n")
        with begin(upstart, "stop", "prestart") as stopping:
            answer = end(restarting)
            assert re.fullmatch(r"prestart stop/pre-start, process \d+\n", answer.output)
            assert answer[1:] == ("", 0)
            gate.touch()
            assert end(stopping) == ("prestart stop/waiting\n", "", 0)


def test_instances_of_a_job(upstart: Upstart) -> None:
    upstart.install("inst", "instance $NAME\nexec sleep 1000\n")
    for name in ("a", "b"):
        answer = call(upstart, "start", "inst", f"NAME={name}")
        pid = upstart.pid("inst", f"NAME={name}")
        assert answer == (f"inst ({name}) start/running, process {pid}\n", "", 0)
    assert upstart.pid("inst", "NAME=a") != upstart.pid("inst", "NAME=b")
    assert call(upstart, "stop", "inst", "NAME=a") == ("inst stop/waiting\n", "", 0)
    assert upstart.pid("inst", "NAME=a") is None
    assert upstart.pid("inst", "NAME=b") is not None
    assert call(upstart, "stop", "inst", "NAME=a") == ("", "stop: Unknown instance: a\n", 1)


@needs_root
def test_without_root_only_status_works(directory: Path) -> None:
    with Upstart.started(directory, root_only=True) as upstart:
        upstart.install("clojars", SERVICE)
        started = call(upstart, "start", "clojars")
        assert started.status == 0
        assert call(upstart, "status", "clojars", user="nobody") == started
        for program in ("start", "stop", "restart"):
            output, error, status = call(upstart, program, "clojars", user="nobody")
            assert (output, status) == ("", 1)
            rejected = f'{program}: Rejected send message, 1 matched rules; type="method_call", '
            assert error.startswith(rejected)
            assert error.count("\n") == 1
        assert call(upstart, "status", "clojars") == started


@needs_root
@pytest.mark.parametrize("program", PROGRAMS)
def test_without_root_and_without_dbus_nothing_works(directory: Path, program: str) -> None:
    with Upstart.started(directory, root_only=True, system_bus=False) as upstart:
        upstart.install("clojars", SERVICE)
        error = (
            f"{program}: Unable to connect to system bus: Failed to connect to socket "
            "/run/dbus/system_bus_socket: No such file or directory\n"
        )
        assert call(upstart, program, "clojars", user="nobody") == ("", error, 1)
        assert call(upstart, "status", "clojars") == ("clojars stop/waiting\n", "", 0)


@pytest.mark.parametrize("program", PROGRAMS)
def test_without_upstart(upstart: Upstart, program: str) -> None:
    upstart.close()
    error = (
        f"{program}: Unable to connect to Upstart: Failed to connect to socket "
        "/com/ubuntu/upstart: Connection refused\n"
    )
    assert call(upstart, program, "clojars") == ("", error, 1)


def test_restart_through_sudo(upstart: Upstart) -> None:
    allowed = ["sudo", "-n", "true"]
    if not shutil.which("sudo") or subprocess.run(allowed, check=False).returncode:
        pytest.skip("no sudo without a password")
    upstart.install("clojars", SERVICE)
    call(upstart, "start", "clojars")
    command = ["sudo", "-n", str(upstart.bin / "restart"), "clojars"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    pid = running_pid(upstart, "clojars")
    assert done.stdout == f"clojars start/running, process {pid}\n"
    assert (done.stderr, done.returncode) == ("", 0)


# What follows from the table (the numbered facts)


def test_a_program_that_keeps_dying_looks_running_and_only_its_pid_changes(
    upstart: Upstart,
) -> None:
    # Slower than the limit: two deaths in one second would be too many (fact 3).
    upstart.install("dier", "respawn\nrespawn limit 1 1\nexec sh -c 'sleep 1.1; exit 1'\n")
    call(upstart, "start", "dier")
    pids: set[int] = set()

    def has_changed_twice() -> bool:
        status = call(upstart, "status", "dier").output
        assert " start/" in status
        found = re.fullmatch(r"dier start/running, process (\d+)\n", status)
        if found:
            pids.add(int(found[1]))
        return len(pids) > 2

    wait_for(has_changed_twice, "three processes")


def test_a_respawn_limit_counts_what_dies_within_its_interval(
    upstart: Upstart, directory: Path
) -> None:
    starts = directory / "starts"
    text = f"respawn\nrespawn limit 3 60\nexec sh -c 'echo again >> {starts}'\n"
    upstart.install("dier", text)
    call(upstart, "start", "dier")
    wait_for_status(upstart, "dier", "dier stop/waiting\n")
    assert starts.read_text().count("again") == 4


def test_a_normal_exit_is_not_respawned(upstart: Upstart) -> None:
    upstart.install("clojars", "respawn\nnormal exit 0 TERM\nexec sleep 1000\n")
    call(upstart, "start", "clojars")
    os.kill(running_pid(upstart, "clojars"), signal.SIGTERM)
    wait_for_status(upstart, "clojars", "clojars stop/waiting\n")


def test_a_killed_process_is_respawned(upstart: Upstart) -> None:
    upstart.install("clojars", "respawn\nexec sleep 1000\n")
    call(upstart, "start", "clojars")
    old = running_pid(upstart, "clojars")
    os.kill(old, signal.SIGKILL)
    wait_for(lambda: upstart.pid("clojars") not in (old, None), "another process")


def test_restart_keeps_the_old_definition_and_stop_and_start_read_the_new_one(
    upstart: Upstart,
) -> None:
    upstart.install("clojars", "exec sleep 1001\n")
    call(upstart, "start", "clojars")
    upstart.install("clojars", "exec sleep 1002\n")
    call(upstart, "restart", "clojars")
    assert command_line_of(upstart, "clojars") == ["sleep", "1001"]
    call(upstart, "stop", "clojars")
    call(upstart, "start", "clojars")
    assert command_line_of(upstart, "clojars") == ["sleep", "1002"]


@pytest.mark.parametrize("text", ["nonsense\n", None], ids=["broken", "removed"])
def test_a_job_file_broken_while_the_job_runs_is_silent_until_it_stops(
    upstart: Upstart, text: str | None
) -> None:
    upstart.install("clojars", SERVICE)
    call(upstart, "start", "clojars")
    if text is None:
        (upstart.jobs / "clojars.conf").unlink()
    else:
        upstart.install("clojars", text)
    assert call(upstart, "restart", "clojars").status == 0
    pid = running_pid(upstart, "clojars")
    error = (
        'stop: Method "Get" with signature "ss" on interface "org.freedesktop.DBus.Properties" '
        "doesn't exist\n"
    )
    assert call(upstart, "stop", "clojars") == ("", error, 1)
    assert not is_alive(pid)
    assert call(upstart, "start", "clojars") == ("", "start: Unknown job: clojars\n", 1)
    assert call(upstart, "status", "clojars") == ("", "status: Unknown job: clojars\n", 1)


UNKNOWN = ("", "status: Unknown job: clojars\n", 1)
STOPPED = ("clojars stop/waiting\n", "", 0)


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_job_file_that_a_link_brings_is_unknown_until_init_reads_all_again(
    upstart: Upstart, directory: Path, link: Callable[[Path, Path], None]
) -> None:
    (directory / "written").write_text(SERVICE)
    link(directory / "written", upstart.jobs / "clojars.conf")
    assert call(upstart, "status", "clojars") == UNKNOWN
    assert call(upstart, "start", "clojars") == ("", "start: Unknown job: clojars\n", 1)
    assert call(upstart, "initctl", "reload-configuration") == ("", "", 0)
    assert call(upstart, "status", "clojars") == STOPPED


def test_a_job_file_that_a_link_brought_is_known_after_a_touch(
    upstart: Upstart, directory: Path
) -> None:
    (directory / "written").write_text(SERVICE)
    os.link(directory / "written", upstart.jobs / "clojars.conf")
    subprocess.run(["touch", upstart.jobs / "clojars.conf"], check=True)
    assert call(upstart, "status", "clojars") == STOPPED


def test_a_job_file_that_is_renamed_or_written_in_place_is_known_at_once(
    upstart: Upstart, directory: Path
) -> None:
    (directory / "written").write_text(SERVICE)
    (directory / "written").rename(upstart.jobs / "clojars.conf")
    assert call(upstart, "status", "clojars") == STOPPED
    (upstart.jobs / "clojars.conf").unlink()
    assert call(upstart, "status", "clojars") == UNKNOWN
    (upstart.jobs / "clojars.conf").write_text(SERVICE)
    assert call(upstart, "status", "clojars") == STOPPED


def test_a_job_that_is_being_stopped_can_be_started_and_nothing_else(
    upstart: Upstart, directory: Path
) -> None:
    install_stubborn(upstart, directory, kill_timeout=600)
    old = running_pid(upstart, "stubborn")
    with begin(upstart, "stop", "stubborn") as stopping:
        wait_for_status(upstart, "stubborn", f"stubborn stop/killed, process {old}\n")
        assert call(upstart, "restart", "stubborn") == (
            "", "restart: Job has already been stopped: \n", 1,
        )  # fmt: skip
        assert call(upstart, "stop", "stubborn") == (
            "", "stop: Job has already been stopped: stubborn\n", 1,
        )  # fmt: skip
        with begin(upstart, "start", "stubborn") as starting:
            wait_for_status(upstart, "stubborn", f"stubborn start/killed, process {old}\n")
            os.kill(old, signal.SIGKILL)
            answer = end(starting)
        stopping.wait(DEADLINE)
    new = running_pid(upstart, "stubborn")
    assert answer == (f"stubborn start/running, process {new}\n", "", 0)
    assert new != old
    assert not is_alive(old)


def test_two_restarts_at_once_both_succeed(upstart: Upstart, directory: Path) -> None:
    install_stubborn(upstart, directory, kill_timeout=600)
    old = running_pid(upstart, "stubborn")
    with begin(upstart, "restart", "stubborn") as first:
        wait_for_status(upstart, "stubborn", f"stubborn start/killed, process {old}\n")
        with begin(upstart, "restart", "stubborn") as last:
            overtaken = end(first)
            os.kill(old, signal.SIGKILL)
            second = end(last)
    assert second == (
        f"stubborn start/running, process {running_pid(upstart, 'stubborn')}\n",
        "",
        0,
    )
    assert re.fullmatch(r"stubborn start/[a-z]+, process \d+\n", overtaken.output)
    assert overtaken.status == 0


@needs_root
def test_setuid_alone_leaves_roots_group(upstart: Upstart) -> None:
    upstart.install("alone", f"setuid nobody\n{SERVICE}")
    upstart.install("both", f"setuid nobody\nsetgid nogroup\n{SERVICE}")
    groups = {}
    for job in ("alone", "both"):
        call(upstart, "start", job)
        pid = running_pid(upstart, job)
        wait_for(lambda pid=pid: os.stat(f"/proc/{pid}").st_uid == 65534, "it shows its owner")  # type: ignore[misc]
        groups[job] = os.stat(f"/proc/{pid}").st_gid
    assert groups == {"alone": 0, "both": 65534}


def test_an_escaped_quote_in_a_command_is_a_syntax_error_of_the_shell(upstart: Upstart) -> None:
    upstart.install("clojars", 'exec sh -c "echo \\"up\\"; exec sleep 1000"\n')
    call(upstart, "start", "clojars")
    wait_for_status(upstart, "clojars", "clojars stop/waiting\n")
    log = upstart.logs / "clojars.log"
    wait_for(lambda: log.exists() and "yntax error" in log.read_text(), "the shell's words")


def test_stop_takes_the_whole_process_group_but_not_a_session_of_its_own(
    upstart: Upstart, directory: Path
) -> None:
    member, orphan = directory / "member", directory / "orphan"
    program = directory / "program"
    write_program(
        program,
        f"""
        sh -c 'echo $$ > {member}; exec sleep 1000' &
        setsid sh -c 'echo $$ > {orphan}; exec sleep 1000' &
        wait""",
    )
    upstart.install("clojars", f"console none\nexec {program}\n")
    call(upstart, "start", "clojars")
    member_pid, orphan_pid = written_pid(member), written_pid(orphan)
    assert call(upstart, "stop", "clojars").status == 0
    wait_for(lambda: not is_alive(member_pid), "the end of the group's member")
    assert is_alive(orphan_pid)
    upstart.close()
    assert not is_alive(orphan_pid)


def test_a_job_has_a_bare_environment(upstart: Upstart) -> None:
    upstart.install("clojars", "env PORT=8001\nenv OPTIONS='-a -b'\nexec sleep 1000\n")
    call(upstart, "start", "clojars")
    environment = dict(
        entry.split("=", 1)
        for entry in process_file(running_pid(upstart, "clojars"), "environ")
        if not entry.startswith(f"{MARKER}=")
    )
    assert set(environment) == {
        *("PATH", "TERM", "PORT", "OPTIONS"),
        *("UPSTART_JOB", "UPSTART_INSTANCE"),
    }
    assert environment["PORT"] == "8001"
    assert environment["OPTIONS"] == "-a -b"
    assert environment["UPSTART_JOB"] == "clojars"
    assert environment["UPSTART_INSTANCE"] == ""


def test_what_a_job_prints_is_in_its_log(upstart: Upstart) -> None:
    upstart.install("clojars", "exec sh -c 'echo hello; echo trouble >&2; exec sleep 1000'\n")
    call(upstart, "start", "clojars")
    log = upstart.logs / "clojars.log"
    wait_for(lambda: log.exists() and "trouble" in log.read_text(), "the job's output")
    assert log.read_text().split() == ["hello", "trouble"]
    assert log.stat().st_mode & 0o777 == 0o640


def test_the_last_words_of_a_dying_job_are_in_its_log(upstart: Upstart) -> None:
    upstart.install("clojars", "exec sh -c 'echo farewell; exit 1'\n")
    call(upstart, "start", "clojars")
    wait_for_status(upstart, "clojars", "clojars stop/waiting\n")
    assert "farewell" in (upstart.logs / "clojars.log").read_text()


def test_a_job_without_a_console_log_has_none(upstart: Upstart) -> None:
    upstart.install("clojars", "console none\nexec sh -c 'echo hello'\n")
    call(upstart, "start", "clojars")
    wait_for_status(upstart, "clojars", "clojars stop/waiting\n")
    assert list(upstart.logs.iterdir()) == []


# Job files


def test_a_command_runs_without_a_shell_unless_it_needs_one(upstart: Upstart) -> None:
    upstart.install("plain", "exec sleep 1000 # not this\n")
    upstart.install("shell", 'env TIME=1000\nexec sleep "$TIME"\n')
    upstart.install("script", "script\n  sleep 1000\n  echo never\nend script\n")
    for job in ("plain", "shell", "script"):
        assert call(upstart, "start", job).status == 0
    for job in ("plain", "shell"):
        # At its exec it is the shell still, which then puts the program in its place.
        wait_for(
            lambda job=job: command_line_of(upstart, job) == ["sleep", "1000"],  # type: ignore[misc]
            f"sleep as the main process of {job}",
        )
    # A script's shell stays, and its program is a child that shares its group.
    assert command_line_of(upstart, "script")[:2] == ["/bin/sh", "-e"]


def test_a_failing_line_ends_a_script(upstart: Upstart, directory: Path) -> None:
    path = directory / "path"
    upstart.install("clojars", f"script\nfalse\ntouch {path}\nsleep 1000\nend script\n")
    call(upstart, "start", "clojars")
    wait_for_status(upstart, "clojars", "clojars stop/waiting\n")
    assert not path.exists()


def test_the_processes_around_the_main_one_run_in_order(upstart: Upstart, directory: Path) -> None:
    path = directory / "order"
    stages = ("pre-start", "post-start", "pre-stop", "post-stop")
    lines = [f"{stage} exec echo {stage} >> {path}\n" for stage in stages]
    upstart.install("clojars", "".join(lines) + SERVICE)
    call(upstart, "start", "clojars")
    assert path.read_text().split() == ["pre-start", "post-start"]
    call(upstart, "stop", "clojars")
    assert path.read_text().split() == list(stages)


@needs_root
def test_a_job_runs_as_its_user_and_where_it_says(upstart: Upstart) -> None:
    upstart.install(
        "clojars",
        """\
        description "the repository"
        start on (runlevel [2345]
                  and net-device-up IFACE!=lo)   # over two lines
        stop on runlevel [!2345]
        setuid nobody
        chdir /usr
        umask 0077
        nice 5
        oom score 100
        limit nofile 512 1024
        script
            umask
            sleep 1000
        end script
        """,
    )
    assert call(upstart, "start", "clojars").status == 0
    pid = running_pid(upstart, "clojars")
    status = "\n".join(process_file(pid, "status"))
    wait_for(lambda: Path("/proc", str(pid)).stat().st_uid == 65534, "it runs as nobody")
    assert re.search(r"^Umask:\s+0077$", status, re.MULTILINE)
    assert os.readlink(f"/proc/{pid}/cwd") == "/usr"
    assert os.getpriority(os.PRIO_PROCESS, pid) == 5
    assert process_file(pid, "oom_score_adj")[0].strip() == "100"
    limits = "".join(process_file(pid, "limits"))
    assert re.search(r"^Max open files\s+512\s+1024", limits, re.MULTILINE)
    log = upstart.logs / "clojars.log"
    wait_for(lambda: log.exists() and "0077" in log.read_text(), "what the script printed")


def test_restart_of_a_job_with_a_pre_stop_process_restarts_nothing(upstart: Upstart) -> None:
    """Launchpad 703800: from Upstart's source, not measured."""
    upstart.install("clojars", "pre-stop exec true\nexec sleep 1000\n")
    started = call(upstart, "start", "clojars")
    assert call(upstart, "restart", "clojars") == started
    assert call(upstart, "stop", "clojars") == ("clojars stop/waiting\n", "", 0)


def test_the_defaults_of_a_job() -> None:
    job = JobFile("clojars", SERVICE).parse()
    assert job.kill_timeout == 5
    assert job.kill_signal == signal.SIGTERM
    assert (job.respawn, job.respawn_limit, job.respawn_interval) == (False, 10, 5)
    assert (job.console, job.chdir, job.umask) == ("log", "/", 0o022)


@pytest.mark.parametrize(
    "text",
    [
        "# nothing but a comment\n",
        "author 'A. Nonymous'\nversion 1\nusage \"start it\"\n",
        "emits one two\nexport ONE TWO\n",
        "start on (a or\n  (b and c X=1))\nexec true\n",
        "stop on runlevel [016] # a comment\n",
        "oom score never\n",
        "limit core unlimited unlimited\n",
        "respawn limit 5 60\nrespawn limit unlimited\n",
        "normal exit 0 143 TERM SIGHUP\nkill signal INT\nkill timeout 30\n",
        "exec java -jar \\\n  current.jar\n",
        "env JAVA_OPTS=\"-Xmx1g -Da='b'\"\n",
        "pre-start script\n  true\nend script # done\n",
        "exec no newline at the end",
    ],
)
def test_a_job_file_that_upstart_reads(text: str) -> None:
    JobFile("clojars", text).parse()


@pytest.mark.parametrize(
    "text",
    [
        "exec\n",
        "task\n",
        "expect fork\n",
        "script\ntrue\n",
        "description two words\n",
        "exec echo 'unterminated\n",
        "exec trailing \\",
        "start on (a or b\n",
        "start on\n",
        "start with a\n",
        "respawn always\n",
        "respawn limit 5\n",
        "kill timeout 0.5\n",
        "kill timeout never\n",
        "kill signal NOSUCH\n",
        "limit nosuch 1 2\n",
        "limit nofile many many\n",
        "console tty\n",
        "umask 999\n",
        "nice 99\n",
        "pre-start true\n",
    ],
)
def test_a_job_file_with_a_syntax_error(text: str) -> None:
    with pytest.raises(JobFileError):
        JobFile("clojars", text).parse()


def test_quotes_and_continued_lines() -> None:
    job = JobFile("clojars", "env A='b c' # d\nexec java \\\n   -jar 'a b.jar' # e\n").parse()
    assert job.environment == {"A": "b c"}
    assert job.commands["main"].text.split() == ["java", "-jar", "'a", "b.jar'"]


# A program that hangs, for tests of time limits


def test_a_program_that_hangs_is_not_answered_until_it_is_let_go(upstart: Upstart) -> None:
    upstart.install("clojars", SERVICE)
    upstart.install("clojars-backup", SERVICE)
    upstart.hang("start", "clojars")
    with begin(upstart, "start", "clojars") as starting:
        # The other job and the other programs are not concerned.
        assert call(upstart, "start", "clojars-backup").status == 0
        assert call(upstart, "status", "clojars").output == "clojars stop/waiting\n"
        with pytest.raises(subprocess.TimeoutExpired):
            starting.wait(0.1)
        upstart.unhang()
        answer = end(starting)
    assert answer.output == f"clojars start/running, process {upstart.pid('clojars')}\n"


def test_a_program_that_hangs_may_have_done_what_it_was_asked(upstart: Upstart) -> None:
    upstart.install("clojars", SERVICE)
    upstart.hang("start", carried_out=True)
    with begin(upstart, "start", "clojars") as starting:
        running = r"clojars start/running, process \d+\n"
        status = wait_for_status(upstart, "clojars", running)
        with pytest.raises(subprocess.TimeoutExpired):
            starting.wait(0.1)
        upstart.unhang()
        assert end(starting) == (status, "", 0)


# The stand-in's own manners


def test_a_call_is_quick(upstart: Upstart) -> None:
    upstart.install("clojars", SERVICE)

    def is_quick() -> bool:
        began = time.monotonic()
        call(upstart, "status", "clojars")
        return time.monotonic() - began < 0.06

    # Aimed at 30 ms; on a busy machine one of many is as quick.
    wait_for(is_quick, "a quick call")


def test_init_and_jobs_have_sessions_of_their_own(upstart: Upstart) -> None:
    upstart.install("clojars", SERVICE)
    call(upstart, "start", "clojars")
    pid = running_pid(upstart, "clojars")
    assert os.getsid(pid) == os.getpgid(pid) == pid
    assert os.getsid(upstart.init_pid) == upstart.init_pid


def test_close_ends_every_process_that_came_from_it_and_no_other(directory: Path) -> None:
    program, pids = directory / "program", directory / "pids"
    deep = f"sh -c 'echo $$ >> {pids}; exec sleep 1000'"
    write_program(
        program,
        f"""
        trap '' TERM
        {deep} &
        setsid {deep} &
        (setsid {deep} &)
        (env -i setsid {deep} &)
        wait""",
    )
    environment = os.environ | {"UPSTART_JOB": "clojars", MARKER: "another"}
    with subprocess.Popen(["sleep", "1000"], env=environment) as stranger:
        with Upstart.started(directory / "upstart") as upstart:
            upstart.install("clojars", f"kill timeout 60\nexec {program}\n")
            call(upstart, "start", "clojars")
            began = [running_pid(upstart, "clojars"), upstart.init_pid]
            wait_for(lambda: pids.exists() and pids.read_text().count("\n") == 4, "four processes")
            began += map(int, pids.read_text().split())
            assert all(map(is_alive, began))
        assert not any(map(is_alive, began))
        assert stranger.poll() is None
        stranger.kill()


def test_close_cleans_up_after_an_init_that_was_killed(upstart: Upstart) -> None:
    upstart.install("clojars", SERVICE)
    call(upstart, "start", "clojars")
    pid = running_pid(upstart, "clojars")
    os.kill(upstart.init_pid, signal.SIGKILL)
    wait_for(lambda: call(upstart, "status", "clojars").status == 1, "the end of init")
    upstart.close()
    wait_for(lambda: not is_alive(pid), "the end of the job, which was killed")
    upstart.close()


@pytest.mark.parametrize("has_fork", [False, True], ids=["alone", "with a fork"])
def test_everything_ends_with_a_test_that_was_killed(directory: Path, has_fork: bool) -> None:
    """A fork of the test keeps its end of the socket open: init must notice all the same."""
    code = f"""
import os, pathlib, subprocess, time
from standin.upstart import Upstart
with Upstart.started(pathlib.Path({str(directory)!r}, "upstart")) as upstart:
    upstart.install("clojars", "exec sleep 1000")
    subprocess.run([upstart.bin / "start", "clojars"], check=True, stdout=subprocess.DEVNULL)
    fork = os.fork() if {has_fork} else 0
    if {has_fork} and not fork:
        time.sleep(1000)
    print(upstart.init_pid, upstart.pid("clojars"), fork, flush=True)
    time.sleep(1000)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as test:
        assert test.stdout is not None
        init, job, fork = map(int, test.stdout.readline().split())
        assert is_alive(init)
        assert is_alive(job)
        test.kill()
        try:
            wait_for(lambda: not is_alive(job) and not is_alive(init), "the end of init and job")
        finally:
            if fork:
                os.kill(fork, signal.SIGKILL)


def test_a_bad_request_does_not_end_init(upstart: Upstart) -> None:
    upstart.install("clojars", SERVICE)
    assert call(upstart, "start").error.startswith("start: missing job name\n")
    assert call(upstart, "start", "../clojars").error == "start: Unknown job: ../clojars\n"
    assert call(upstart, "start", "clojars", "novalue").status == 1
    assert call(upstart, "start", "--nosuch", "clojars").status == 1
    assert call(upstart, "start", "\udcff").status == 1
    assert call(upstart, "start", "clojars").status == 0


# The real thing, with the same face


def test_the_real_things_jobs_are_removed_and_a_hosts_own_are_refused(upstart: Upstart) -> None:
    upstart.install("cron", SERVICE)
    with RealUpstart.opened(upstart.bin, upstart.jobs) as real:
        with pytest.raises(FileExistsError):
            real.install("cron", SERVICE)
        real.install("clojars", SERVICE)
        real.install("clojars", "exec sleep 1001")
        call(upstart, "start", "clojars")
        pid = real.pid("clojars")
        assert pid is not None
        assert command_line_of(upstart, "clojars") == ["sleep", "1001"]
    assert not is_alive(pid)
    assert [path.name for path in upstart.jobs.iterdir()] == ["cron.conf"]


def command_line_of(upstart: Upstart, job: str) -> list[str]:
    return process_file(running_pid(upstart, job), "cmdline")


def process_file(pid: int, name: str) -> list[str]:
    """The entries of a file in /proc: lines, or what ends in a NUL.

    An exec closes files, by which init knows it, before it sets up what the process shows of itself.
    """
    text = wait_for(Path(f"/proc/{pid}", name).read_text, f"{name} is there")
    return text.rstrip("\0").split("\0") if "\0" in text else text.splitlines(keepends=True)
