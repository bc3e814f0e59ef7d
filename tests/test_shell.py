"""Running other programs: their output, their limits, and that none of them outlives a run."""

from __future__ import annotations

import os
import pwd
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import pytest
from system import Clock, lives

from deploy_clojars.checks import user
from deploy_clojars.deploy import build
from deploy_clojars.errors import Interrupted, NotReady
from deploy_clojars.machine import processes, shell, signals
from deploy_clojars.machine.environment import environment
from deploy_clojars.machine.processes import RUN_VARIABLE
from deploy_clojars.machine.shell import Silent, TookTooLong, capture, last_lines, running
from deploy_clojars.run import lock

DEADLINE = 60.0  # seconds that anything may take on a busy machine

IGNORE_TERM = "trap '' TERM; "


@pytest.fixture(autouse=True)
def fresh_signals() -> Iterator[None]:
    """However the tests were started (nohup, `&`), and whatever signal the last one has caught."""
    before = {signum: signal.signal(signum, signal.SIG_DFL) for signum in signals.HANDLED}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)
    with signals.handled():
        pass


class Runner:
    """Runs shell scripts in a directory of their own."""

    def __init__(self, directory: Path, log: IO[bytes]) -> None:
        self.directory = directory
        self.log = log

    def __call__(self, script: str, **limits: Any) -> int:
        return self.run(["/bin/sh", "-c", script], **limits)

    def run(self, argv: list[str], watch: Callable[[], None] = lambda: None, **limits: Any) -> int:
        options: dict[str, Any] = {"timeout": DEADLINE, "env": {"PATH": os.environ["PATH"]}}
        with running(argv, log=self.log, cwd=self.directory, **(options | limits)) as command:
            command.wait(watch)
        return command.status

    @property
    def output(self) -> bytes:
        return Path(self.log.name).read_bytes()

    def pid(self, name: str = "pid") -> int:
        """The PID that the script has written into a file."""
        return int((self.directory / name).read_text())

    def wrote(self, name: str = "pid") -> bool:
        with suppress(OSError, ValueError):
            return self.pid(name) > 0
        return False


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Runner]:
    directory = tmp_path / "work"
    directory.mkdir()
    with (tmp_path / "log").open("ab", buffering=0) as log:
        yield Runner(directory, log)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that the tool's time limits go by."""
    clock = Clock()
    monkeypatch.setattr(shell, "time", clock)
    return clock


# A long command's output and end


def test_both_streams_go_into_the_log_in_the_order_they_came(run: Runner) -> None:
    run("for i in 1 2 3 4 5; do echo out $i; echo err $i >&2; done")

    expected = [f"{stream} {number}" for number in range(1, 6) for stream in ("out", "err")]
    assert run.output.decode().splitlines() == expected


def test_the_output_is_added_to_what_the_log_has(run: Runner) -> None:
    run.log.write(b"before\n")
    run("echo between")
    run.log.write(b"after\n")

    assert run.output == b"before\nbetween\nafter\n"


def test_the_output_is_there_while_the_command_still_runs(run: Runner) -> None:
    def answer_what_it_printed() -> None:
        if b"question" in run.output:
            (run.directory / "answer").touch()

    status = run(
        "echo question; until [ -e answer ]; do sleep 0.01; done; echo done",
        watch=answer_what_it_printed,
    )

    assert (status, run.output) == (0, b"question\ndone\n")


def test_the_output_is_bytes_and_not_text(run: Runner) -> None:
    run(r"printf 'a\377\000\033[31m\r\nb'")

    assert run.output == b"a\xff\x00\x1b[31m\r\nb"


def test_no_output_is_too_much(run: Runner) -> None:
    run("head -c 5000000 /dev/zero")

    assert len(run.output) == 5_000_000


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("true", 0),
        ("false", 1),
        ("exit 77", 77),
        ("exit 255", 255),
        ("kill -KILL $$", -signal.SIGKILL),
        ("kill -TERM $$", -signal.SIGTERM),
        ("kill -USR1 $$", -signal.SIGUSR1),
    ],
)
def test_the_exit_status_is_returned_and_a_signals_is_negative(
    run: Runner, script: str, status: int
) -> None:
    assert run(script) == status


def test_words_are_passed_to_the_letter(run: Runner) -> None:
    words = ["a b", "*", "$HOME", "`id`", "'", "", "é", "-n", "--x=y"]

    run.run(["printf", "[%s]", *words])

    assert run.output.decode() == "".join(f"[{word}]" for word in words)


def test_the_command_gets_no_input(run: Runner) -> None:
    assert run("cat; read line; echo $?; test -t 0 || echo no terminal") == 0
    assert run.output == b"1\nno terminal\n"


def test_the_command_has_no_terminal_at_all_to_ask_at(run: Runner) -> None:
    assert run("exec </dev/tty") != 0


def test_the_command_is_in_its_directory_and_a_session_of_its_own(run: Runner) -> None:
    run("pwd; cut -d' ' -f6 /proc/self/stat")

    directory, session = run.output.decode().splitlines()
    assert Path(directory) == run.directory
    assert int(session) != os.getsid(0)


def test_the_environment_is_the_given_one_and_nothing_else(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "live")

    run.run(["/usr/bin/env"], env={"A": "1", "B": "two words"})

    assert sorted(run.output.decode().splitlines()) == ["A=1", "B=two words"]


def test_a_command_can_be_nicer_and_the_first_to_go_when_memory_is_short(run: Runner) -> None:
    run("nice; cat /proc/self/oom_score_adj", nice=3, oom_score_adj=800)

    assert run.output.decode().split() == [str(min(19, os.nice(0) + 3)), "800"]


def test_a_commands_priority_is_left_alone_if_nothing_is_said(run: Runner) -> None:
    run("nice; cat /proc/self/oom_score_adj")

    own = Path("/proc/self/oom_score_adj").read_text().strip()
    assert run.output.decode().split() == [str(os.nice(0)), own]


@pytest.mark.parametrize("program", ["no-such-program-anywhere", "/no/such/program", "./plain"])
def test_a_program_that_is_not_there_is_an_error(run: Runner, program: str) -> None:
    (run.directory / "plain").write_text("not executable")

    with pytest.raises(FileNotFoundError):
        run.run([program])


# A long command's limits


def test_a_command_that_takes_too_long_is_ended(
    run: Runner, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell, "GRACE", DEADLINE)
    clock.skips_once(lambda: run.output, 2 * DEADLINE)
    started = time.monotonic()

    with pytest.raises(TookTooLong, match=r"not done within 60 s"):
        run("echo begun; exec sleep 1000")

    assert time.monotonic() - started < shell.GRACE
    assert run.output == b"begun\n"


def test_its_children_and_their_children_are_ended_too(run: Runner) -> None:
    script = "(sh -c 'echo $$ >grandchild; sleep 1000; true'; true) & echo $! >child; wait"

    with pytest.raises(Enough):
        run(script, watch=enough_when(lambda: run.wrote("child") and run.wrote("grandchild")))

    assert not lives(run.pid("child"))
    assert not lives(run.pid("grandchild"))


def test_what_ignores_the_request_to_end_is_killed(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell, "GRACE", 0.2)

    with pytest.raises(Enough):
        run(
            f"{IGNORE_TERM} sh -c 'echo $$ >pid; while :; do sleep 0.05; done'; true",
            watch=enough_when(run.wrote),
        )

    assert not lives(run.pid())


def test_what_a_command_left_in_the_background_does_not_outlive_it(run: Runner) -> None:
    assert run("sleep 1000 & echo $! >pid") == 0

    assert not lives(run.pid())


def test_a_command_that_says_nothing_for_too_long_is_ended(run: Runner, clock: Clock) -> None:
    def much_later_once_it_sleeps() -> None:
        if run.wrote() and Path(f"/proc/{run.pid()}/comm").read_text() == "sleep\n":
            clock.skips(2 * DEADLINE)

    limits = {"silence": DEADLINE, "timeout": 10 * DEADLINE}
    with pytest.raises(Silent, match=r"nothing heard for 60 s"):
        run("echo begun; echo $$ >pid; exec sleep 1000", watch=much_later_once_it_sleeps, **limits)

    assert run.output == b"begun\n"
    assert not lives(run.pid())


def test_a_command_that_goes_on_saying_something_is_not_silent(run: Runner, clock: Clock) -> None:
    numbers = [f"{number}\n".encode() for number in range(1, 9)]

    def much_later_after_each() -> None:
        if run.output.endswith(numbers[0]):
            clock.skips(0.75 * DEADLINE)
            (run.directory / numbers.pop(0).decode().strip()).touch()

    script = "for i in 1 2 3 4 5 6 7 8; do echo $i; until [ -e $i ]; do sleep 0.01; done; done"
    limits = {"silence": DEADLINE, "timeout": 10 * DEADLINE}
    assert run(script, watch=much_later_after_each, **limits) == 0


def test_without_a_log_nobody_knows_whether_a_command_is_silent(run: Runner) -> None:
    with open(os.devnull, "ab") as run.log:
        assert run("for i in 1 2 3 4 5 6; do echo $i; sleep 0.1; done", silence=0.3) == 0


def test_a_failure_of_the_watch_ends_the_command(run: Runner) -> None:
    with pytest.raises(Enough):
        run("echo $$ >pid; exec sleep 1000", watch=enough_when(run.wrote))

    assert not lives(run.pid())


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_tool_ends_the_command(run: Runner, signum: signal.Signals) -> None:
    with signals.handled(), pytest.raises(Interrupted) as interrupted:
        run(f"echo $$ >pid; kill -{signum:d} {os.getpid()}; exec sleep 1000")

    assert interrupted.value.status == 128 + signum
    assert not lives(run.pid())


def test_a_signal_that_is_to_be_seen_through_ends_nothing(run: Runner) -> None:
    notices: list[str] = []

    def note() -> None:
        notices.append("noted")
        (run.directory / "noted").touch()

    with signals.handled(), signals.uninterruptible(note):
        status = run(
            f"kill -TERM {os.getpid()}; until [ -e noted ]; do sleep 0.01; done; "
            f"kill -INT {os.getpid()}; sleep 0.2; echo done"
        )

    assert (status, run.output, notices) == (0, b"done\n", ["noted"])


class Enough(Exception):
    """The test has seen what it waited for."""


def enough_when(condition: Callable[[], bool]) -> Callable[[], None]:
    def watch() -> None:
        if condition():
            raise Enough

    return watch


# A short command


def test_a_short_commands_streams_and_status_are_captured() -> None:
    answer = capture(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout=DEADLINE)

    assert (answer.status, answer.out, answer.err) == (3, "out\n", "err\n")


def test_a_short_command_speaks_english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("OTHER", "stays")

    answer = capture(["sh", "-c", 'echo "$LC_ALL $OTHER"'], timeout=DEADLINE)

    assert answer.out == "C stays\n"


def test_a_short_commands_words_are_passed_to_the_letter() -> None:
    assert capture(["printf", "%s", "$HOME *"], timeout=DEADLINE).out == "$HOME *"


def test_a_short_command_gets_no_input() -> None:
    assert capture(["cat"], timeout=DEADLINE).out == ""


def test_a_short_commands_output_need_not_be_text() -> None:
    assert capture(["printf", r"a\377b"], timeout=DEADLINE).out == "a\N{REPLACEMENT CHARACTER}b"


def test_a_short_commands_output_need_not_be_short() -> None:
    assert len(capture(["head", "-c", "1000000", "/dev/zero"], timeout=DEADLINE).out) == 1_000_000


def test_a_short_command_that_takes_too_long_is_ended_with_its_children(
    tmp_path: Path, clock: Clock
) -> None:
    pid = tmp_path / "pid"
    script = f"sleep 1000 & echo $! >{shlex.quote(str(pid))}; wait"
    clock.skips_once(lambda: pid.exists() and pid.read_text().endswith("\n"), 2 * DEADLINE)

    with pytest.raises(TookTooLong, match=r"no answer within 60 s") as error:
        capture(["sh", "-c", script], timeout=DEADLINE)

    assert error.value.status == 1  # and not 70, a defect, wherever nobody expects it
    assert error.value.detail.startswith("sh -c 'sleep 1000 & ")

    wait_for(lambda: not lives(int(pid.read_text())), "its child has ended")


def test_a_signal_ends_a_short_command() -> None:
    script = f"kill -TERM {os.getpid()}; exec sleep 1000"

    with signals.handled(), pytest.raises(Interrupted):
        capture(["sh", "-c", script], timeout=DEADLINE)


def test_a_short_command_that_is_not_there_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        capture(["no-such-program-anywhere"], timeout=DEADLINE)


# What is shown of a log


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def test_the_last_lines_of_a_log_are_its_end(log: Path) -> None:
    log.write_text("".join(f"line {number}\n" for number in range(1000)))

    assert last_lines(log, lines=2) == "line 998\nline 999"
    assert len(last_lines(log).splitlines()) == shell.LAST_LINES


def test_only_what_came_after_the_start_is_shown(log: Path) -> None:
    log.write_text("of the tests\n")
    start = log.stat().st_size
    with log.open("a") as file:
        file.write("of the build\n")

    assert last_lines(log, start) == "of the build"


def test_of_a_huge_log_only_the_end_is_read(log: Path) -> None:
    with log.open("wb") as file:
        file.truncate(10**12)
        file.seek(0, os.SEEK_END)
        file.write(b"\nthe end\n")

    assert last_lines(log).endswith("\nthe end")


def test_a_log_that_is_not_there_has_no_last_lines(log: Path) -> None:
    assert last_lines(log) == ""


# Strays


@pytest.fixture
def run_id() -> str:
    """The id of a run that no other process on this machine carries."""
    return f"{uuid.uuid4().hex}."


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., int]]:
    """Starts a shell script with a run's id in its environment (None: without) as a daemon.

    It has a session of its own and its starter is gone, as what fled from a build would be.
    """
    started: list[int] = []

    def start(script: str, run_id: str | None) -> int:
        file = tmp_path / f"pid-{len(started)}"
        environment = {name: value for name, value in os.environ.items() if name != RUN_VARIABLE}
        if run_id is not None:
            environment[RUN_VARIABLE] = run_id
        whole = f"echo $$ >{shlex.quote(str(file))}; {script}"
        subprocess.run(
            ["sh", "-c", f"setsid sh -c {shlex.quote(whole)} </dev/null >/dev/null 2>&1 &"],
            env=environment,
            check=True,
        )
        wait_for(lambda: file.exists() and file.read_text().endswith("\n"), "the daemon runs")
        started.append(int(file.read_text()))
        return started[-1]

    yield start
    for pid in started:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


DAEMON = "sleep 1000 & wait"


def test_a_daemon_that_fled_from_a_run_is_ended(start: Callable[..., int], run_id: str) -> None:
    daemon = start("exec sleep 1000", f"{run_id}1")

    assert processes.end_strays(run_id) == 1

    assert not lives(daemon)
    assert processes.strays(run_id) == []


def test_one_is_found_while_it_executes_a_program(
    start: Callable[..., int], run_id: str, tmp_path: Path
) -> None:
    script = tmp_path / "script"
    script.write_text(f"exec sh {shlex.quote(str(script))}\n")
    pid = start(f"exec sh {shlex.quote(str(script))}", f"{run_id}1")

    # A look in fifty would have missed it.
    entry = f"{RUN_VARIABLE}={run_id}1".encode()
    assert all(entry in processes.environment_of(pid) for _ in range(2000))
    assert [process.pid for process in processes.strays(run_id)] == [pid]


def test_who_has_no_environment_is_not_waited_for() -> None:
    with subprocess.Popen(["sleep", "1000"], env={}) as process:
        assert processes.environment_of(process.pid) == b""
        process.kill()


def test_its_children_are_ended_too(start: Callable[..., int], run_id: str) -> None:
    daemon = start(DAEMON, f"{run_id}1")
    wait_for(lambda: len(processes.strays(run_id)) == 2, "its child runs")
    family = processes.strays(run_id)

    assert processes.end_strays(run_id) == 2

    pids = [process.pid for process in family]
    assert daemon in pids
    assert not any(lives(pid) for pid in pids)


def test_a_stray_that_ignores_the_request_to_end_is_killed(
    start: Callable[..., int], run_id: str
) -> None:
    daemon = start(f"{IGNORE_TERM} while :; do sleep 0.05; done", f"{run_id}1")

    processes.end_strays(run_id, grace=0.2)

    assert not lives(daemon)


def test_other_processes_are_left_alone(start: Callable[..., int], run_id: str) -> None:
    stray = start("exec sleep 1000", f"{run_id}1")
    others = [
        start("exec sleep 1000", None),
        start("exec sleep 1000", f"other-{run_id}1"),
        start(f"export OTHER={RUN_VARIABLE}={run_id}1; exec sleep 1000", None),
        start(f"exec sh -c 'sleep 1000; : {RUN_VARIABLE}={run_id}1'", None),
    ]

    assert processes.end_strays(run_id) == 1

    assert not lives(stray)
    assert all(lives(pid) for pid in others)


def test_strays_of_one_run_or_of_all_runs_of_a_host(start: Callable[..., int], run_id: str) -> None:
    first = start("exec sleep 1000", f"{run_id}1")
    second = start("exec sleep 1000", f"{run_id}2")

    assert processes.end_strays(f"{run_id}2") == 1
    assert (lives(first), lives(second)) == (True, False)

    assert processes.end_strays(run_id) == 1
    assert not lives(first)


def test_the_tool_does_not_end_itself(run_id: str) -> None:
    program = (
        f"from deploy_clojars.machine.processes import end_strays; print(end_strays({run_id!r}))"
    )

    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, RUN_VARIABLE: f"{run_id}1"},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=True,
    )

    assert done.stdout == "0\n"


def test_without_strays_nothing_is_waited_for(run_id: str) -> None:
    started = time.monotonic()

    assert processes.end_strays(run_id, grace=DEADLINE) == 0

    assert time.monotonic() - started < DEADLINE


def test_descendants_are_found_whichever_thread_started_the_first() -> None:
    program = (
        "import subprocess, threading\n"
        "script = 'sleep 1000 & echo up; wait'\n"
        "threading.Thread(target=subprocess.run, args=(['sh', '-c', script],)).start()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == b"up\n"
        child, sleep = processes.descendants_of(parent.pid)
        assert processes.descendants_of(child) == [sleep]
        assert processes.descendants_of(sleep) == []
        assert processes.descendants_of(parent.pid, without=[child]) == []
        for pid in (parent.pid, child, sleep):
            os.kill(pid, signal.SIGKILL)


# The environment of the tests and the build


OUTER = {
    "PATH": "/usr/bin",
    "USER": "clojars",
    "LANG": "en_US.UTF-8",
    "LC_ALL": "C.UTF-8",
    "LC_TIME": "de_DE",
    "TMPDIR": "/var/tmp",
    "LEIN_HOME": "/opt/lein",
    "LEIN_JVM_OPTS": "-Xmx1g",
    "JAVA_HOME": "/usr/lib/jvm",
    "JAVA_TOOL_OPTIONS": "-Dx=y",
    "http_proxy": "http://proxy:3128",
    "https_proxy": "http://proxy:3128",
    "no_proxy": "localhost",
}
KEPT_FROM_THE_BUILD = {
    "DATABASE_URL": "jdbc:sqlite:live",
    "MAIL_URL": "smtp://live",
    "KEY_FILE": "/home/clojars/.ssh/authorized_keys",
    "CLASSPATH": "/live",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "SSH_AUTH_SOCK": "/tmp/agent",
    "XDG_CONFIG_HOME": "/home/clojars/.config",
    "MY_LEIN_HOME": "x",
    "MYJAVA_HOME": "x",
    "PATHS": "x",
    "USERS": "x",
    "proxy": "x",
}


def test_the_build_sees_what_it_is_meant_to_see_and_nothing_else() -> None:
    inner = environment((), "run-1", OUTER | KEPT_FROM_THE_BUILD)

    added = {"HOME", RUN_VARIABLE, *(("LEIN_ROOT",) if os.geteuid() == 0 else ())}
    assert {name: value for name, value in inner.items() if name not in added} == OUTER
    assert set(inner) - set(OUTER) == added


@pytest.mark.parametrize("name", ["DATABASE_URL", "MAIL_URL", "KEY_FILE", "CLASSPATH"])
def test_what_belongs_to_the_live_site_passes_only_if_it_is_named(name: str) -> None:
    assert name not in environment(("M2_HOME",), "run-1", KEPT_FROM_THE_BUILD)
    assert environment((name,), "run-1", KEPT_FROM_THE_BUILD)[name]


def test_a_name_in_the_configuration_passes_if_it_is_set() -> None:
    inner = environment(("M2_HOME", "UNSET"), "run-1", {"M2_HOME": "/opt/m2"})

    assert inner["M2_HOME"] == "/opt/m2"
    assert "UNSET" not in inner


@pytest.mark.parametrize("allowed", [(), ("HOME",)])
def test_home_is_the_password_databases_and_not_the_callers(allowed: tuple[str, ...]) -> None:
    inner = environment(allowed, "run-1", {"HOME": "/home/somebody-else"})

    assert inner["HOME"] == pwd.getpwuid(os.geteuid()).pw_dir


def test_the_build_always_carries_its_runs_id_and_a_user() -> None:
    inner = environment((RUN_VARIABLE,), "run-1", {RUN_VARIABLE: "run-0"})

    assert inner[RUN_VARIABLE] == "run-1"
    assert inner["USER"] == pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture
def nobodys_number(monkeypatch: pytest.MonkeyPatch) -> int:
    """This process's user has a number that is not in the password database."""
    number = 4_000_000_000
    monkeypatch.setattr(os, "geteuid", lambda: number)
    with pytest.raises(KeyError):
        pwd.getpwuid(number)
    return number


def test_a_user_without_an_entry_has_the_home_of_the_environment(nobodys_number: int) -> None:
    inner = environment((), "run-1", {"HOME": "/srv/app"})

    assert inner["HOME"] == "/srv/app"
    assert "USER" not in inner


def test_a_user_without_an_entry_and_a_home_is_refused(
    nobodys_number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.refuse_a_user_without_a_home()

    monkeypatch.delenv("HOME")
    with pytest.raises(NotReady, match=f"user {nobodys_number} is not in the password database"):
        build.refuse_a_user_without_a_home()


def test_a_user_without_an_entry_is_told_how_to_open_the_lock(
    nobodys_number: int, tmp_path: Path
) -> None:
    with pytest.raises(NotReady) as refused, lock.held(tmp_path / "no" / "lock", lock.Holder()):
        pass

    assert refused.value.remedy == f"as root: chown -R {nobodys_number} {tmp_path}/no"


def test_a_user_without_an_entry_has_no_login_shell_to_check(nobodys_number: int) -> None:
    assert list(user.login_shell()) == []


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE:.0f} s: {what}"
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("command", "program"),
    [
        ("lein test", "lein"),
        ("LEIN_FAST=1 A=b lein test", "lein"),
        ("'/opt/a=b/bin/python3' -m unittest", "/opt/a=b/bin/python3"),
        ("", None),
        ("'unfinished", None),
        ("lein test; true", "lein"),
        ("lein;true", "lein"),
        ("(cd web && lein test)", None),
    ],
)
def test_the_program_of_a_command_line_is_its_first_word_behind_the_assignments(
    command: str, program: str | None
) -> None:
    assert build.program_of(command) == program


def test_what_the_shell_itself_can_do_need_not_be_on_path() -> None:
    there = ("cd web && lein test", "if true; then true; fi")
    assert build.missing_programs(*there) == []
    assert build.missing_programs("no-such-program; true", "true") == ["no-such-program"]


@pytest.mark.parametrize("name", ["INT", "QUIT", "HUP"])
def test_a_command_that_the_terminal_s_signal_hit_at_its_birth_is_asked_again(
    tmp_path: Path, name: str
) -> None:
    script = f"mkdir {tmp_path}/begun 2>/dev/null && kill -{name} $$; echo asked"
    assert shell.capture(["/bin/sh", "-c", script], timeout=DEADLINE).out == "asked\n"
