"""Upstart's four programs, told what the real ones were measured to say (standin/upstart.md)."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from programs import require_program
from system import Clock, lives

from deploy_clojars.errors import NotReady
from deploy_clojars.host import services
from deploy_clojars.host.services import Job, ServiceFailed
from deploy_clojars.host.services.upstart import Upstart, parse_status
from deploy_clojars.machine import shell

DEADLINE = 60.0  # seconds that anything may take on a busy machine

RUNS = ("clojars start/running, process 3", "", 0)
UNKNOWN_INSTANCE = ("", "restart: Unknown instance: ", 1)
UNKNOWN_INSTANCE_OF_STOP = ("", "stop: Unknown instance: ", 1)
RUNS_ALREADY = ("", "start: Job is already running: clojars", 1)

NO_BUS = (
    "Unable to connect to system bus: Failed to connect to socket "
    "/run/dbus/system_bus_socket: No such file or directory\n"
)
NO_UPSTART = (
    "Unable to connect to Upstart: Failed to connect to socket "
    "/com/ubuntu/upstart: Connection refused\n"
)
REJECTED = 'Rejected send message, 1 matched rules; type="method_call", sender=":1.2"\n'

Said = tuple[str, str, int]  # standard output, standard error, exit status


# What status says


@pytest.mark.parametrize(
    ("text", "job", "state", "pid"),
    [
        ("clojars start/running, process 3", "clojars", "running", 3),
        ("clojars-backup stop/waiting", "clojars-backup", "stopped", None),
        ("clojars start/running, process 4", "clojars", "running", 4),
        ("clojars-backup start/running, process 5", "clojars-backup", "running", 5),
        ("dier start/running, process 10", "dier", "running", 10),
        ("dier start/spawned, process 14", "dier", "starting", None),
        ("dier stop/waiting", "dier", "stopped", None),
        ("prog start/running, process 104", "prog", "running", 104),
        ("prestart start/pre-start, process 66", "prestart", "starting", None),
        ("poststart start/post-start, process 77\n\tpost-start process 78", "poststart",
         "starting", None),
        ("stubborn start/killed, process 100", "stubborn", "starting", None),
        ("health respawn/post-start, (post-start) process 1568", "health", "starting", None),
        ("prestart stop/pre-start, process 72", "prestart", "stopping", None),
        ("inst (a) start/running, process 166", "inst", "running", 166),
        ("clojars start/running, process 331", "clojars", "running", 331),
        # Not measured, but of the same form.
        ("clojars stop/killed, process 9", "clojars", "stopping", None),
        ("clojars start/running", "clojars", "starting", None),  # it is being respawned
        ("clojars start/running, process 3\n\tpost-stop process 4\n", "clojars", "running", 3),
    ],
)  # fmt: skip
def test_what_status_says_is_read(text: str, job: str, state: str, pid: int | None) -> None:
    found = parse_status(text, job)

    assert (found.state, found.pid) == (state, pid)
    assert found.said == text.splitlines()[0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "clojars",
        "clojars start/running, process",
        "clojars start/running, process 3 and more",
        "clojars start/running, process -3",
        "clojars: start/running, process 3",
        "clojars-backup start/running, process 3",  # another job
        "clojars is running",
        "\tpost-start process 78",
        # What the other programs were measured to say, and status where it fails.
        "status: Unknown job: clojars",
        "restart: Unknown instance: ",
        "start: Job is already running: clojars",
        "stop: Unknown instance: ",
        "restart: Job failed to restart",
        "start: Job failed to start",
        "sudo: a password is required",
        f"restart: {REJECTED}",
        f"restart: {NO_BUS}",
        f"restart: {NO_UPSTART}",
    ],
)
def test_what_is_no_status_of_the_job_is_an_unknown_state(text: str) -> None:
    found = parse_status(text, "clojars")

    assert (found.state, found.pid) == ("unknown", None)
    assert found.said


# The programs


class Programs:
    """A directory with fake start, stop, restart and status, and the calls that they got."""

    def __init__(self, directory: Path) -> None:
        self.bin = directory / "bin"
        self.bin.mkdir()
        self._log = directory / "calls"
        self._log.touch()

    def answers(self, verb: str, *said: Said) -> None:
        """Lets `verb` say the one after the other, and the last of them from then on."""
        cases = [
            f"{number}) printf %s {shlex.quote(out)}; printf %s {shlex.quote(err)} >&2; "
            f"exit {status};;"
            for number, (out, err, status) in enumerate(said, start=1)
        ]
        cases[-1] = "*" + cases[-1].lstrip("0123456789")
        turns = shlex.quote(f"{self._log}.{verb}")
        self.does(verb, f"echo >>{turns}\ncase $(($(wc -l <{turns}))) in {' '.join(cases)} esac")

    def does(self, verb: str, script: str) -> None:
        """Lets `verb` run a script."""
        log = shlex.quote(str(self._log))
        program = self.bin / verb
        program.write_text(f'#!/bin/sh\necho "{verb} $*" >>{log}\n{script}\n')
        program.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        return self._log.read_text().splitlines()


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path)


@pytest.fixture
def upstart(programs: Programs) -> Upstart:
    return Upstart(bin=str(programs.bin), sudo=False, timeout=DEADLINE)


@pytest.fixture
def over_once(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """The time limit of the next call is reached when a condition is true, and no other one."""
    clock = Clock()
    monkeypatch.setattr(shell, "time", clock)
    return lambda condition: clock.skips_once(condition, 2 * DEADLINE)


def test_a_running_job_has_its_pid(programs: Programs, upstart: Upstart) -> None:
    programs.answers("status", RUNS)

    assert upstart.status("clojars") == Job("running", 3, "clojars start/running, process 3")
    assert programs.calls == ["status clojars"]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (("", "status: Unknown job: nosuch\n", 1), "status: Unknown job: nosuch"),
        (("", f"status: {NO_UPSTART}", 1), "Unable to connect to Upstart"),
        (("", f"status: {NO_BUS}", 1), "Unable to connect to system bus"),
        (("nosuch start/running, process 3\n", "", 1), "start/running"),
        (("", "", 1), "exit status 1"),
        (("", "", 0), "no answer"),
    ],
)  # fmt: skip
def test_a_state_that_cannot_be_had_is_unknown_with_the_reason(
    programs: Programs, upstart: Upstart, said: Said, reason: str
) -> None:
    programs.answers("status", said)

    found = upstart.status("nosuch")

    assert (found.state, found.pid) == ("unknown", None)
    assert reason in found.said


def test_a_running_job_is_restarted(programs: Programs, upstart: Upstart) -> None:
    programs.answers("restart", ("clojars start/running, process 4", "", 0))

    upstart.restart("clojars")

    assert programs.calls == ["restart clojars"]


def test_the_restart_of_a_stopped_job_starts_it(programs: Programs, upstart: Upstart) -> None:
    programs.answers("restart", UNKNOWN_INSTANCE)
    programs.answers("start", ("clojars start/running, process 5", "", 0))

    upstart.restart("clojars")

    assert programs.calls == ["restart clojars", "start clojars"]


def test_the_start_of_a_running_job_restarts_it(programs: Programs, upstart: Upstart) -> None:
    programs.answers("start", RUNS_ALREADY)
    programs.answers("restart", RUNS)

    upstart.start("clojars")

    assert programs.calls == ["start clojars", "restart clojars"]


def test_a_stopped_job_that_was_started_meanwhile_is_restarted(
    programs: Programs, upstart: Upstart
) -> None:
    programs.answers("restart", UNKNOWN_INSTANCE, RUNS)
    programs.answers("start", RUNS_ALREADY)

    upstart.restart("clojars")

    assert programs.calls == ["restart clojars", "start clojars", "restart clojars"]


def test_a_job_that_comes_and_goes_is_not_followed_for_ever(
    programs: Programs, upstart: Upstart
) -> None:
    programs.answers("restart", UNKNOWN_INSTANCE)
    programs.answers("start", RUNS_ALREADY)

    with pytest.raises(ServiceFailed, match="Unknown instance"):
        upstart.restart("clojars")

    assert programs.calls == ["restart clojars", "start clojars", "restart clojars"]


IS_BEING_STOPPED = ("", "restart: Job has already been stopped: \n", 1)


def test_the_restart_of_a_job_that_is_being_stopped_starts_it(
    programs: Programs, upstart: Upstart
) -> None:
    programs.answers("restart", IS_BEING_STOPPED)
    programs.answers("start", ("clojars start/running, process 5", "", 0))

    upstart.restart("clojars")

    assert programs.calls == ["restart clojars", "start clojars"]


def test_to_stop_a_job_that_is_being_stopped_waits_for_its_end(
    programs: Programs, upstart: Upstart
) -> None:
    programs.answers("stop", ("", "stop: Job has already been stopped: clojars\n", 1))
    programs.answers(
        "status",
        ("clojars stop/killed, process 3", "", 0),
        ("clojars stop/killed, process 3", "", 0),
        ("clojars stop/waiting", "", 0),
    )

    upstart.stop("clojars")

    assert programs.calls == ["stop clojars", *["status clojars"] * 3]


def test_the_end_of_a_job_that_is_being_stopped_is_not_waited_for_for_ever(
    programs: Programs, upstart: Upstart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "LONGEST_STOP", 0.5 / DEADLINE)
    programs.answers("stop", ("", "stop: Job has already been stopped: clojars\n", 1))
    programs.answers("status", ("clojars stop/killed, process 3", "", 0))

    with pytest.raises(ServiceFailed, match=r"stop/killed, process 3: not stopped within 0\.5 s"):
        upstart.stop("clojars")


def test_a_stop_that_takes_longer_than_the_time_limit_is_waited_for(
    programs: Programs, upstart: Upstart, over_once: Callable[[Callable[[], object]], None]
) -> None:
    programs.does("stop", "exec sleep 1000")
    programs.answers(
        "status",
        *[("clojars stop/killed, process 3", "", 0)] * 3,
        ("clojars stop/waiting", "", 0),
    )
    over_once(lambda: programs.calls)

    upstart.stop("clojars")

    assert programs.calls == ["stop clojars", *["status clojars"] * 4]


@pytest.mark.parametrize("verb", ["restart", "start"])
def test_a_job_that_will_start_when_its_stop_has_ended_has_not_failed(
    programs: Programs,
    upstart: Upstart,
    over_once: Callable[[Callable[[], object]], None],
    verb: str,
) -> None:
    programs.does(verb, "exec sleep 1000")
    programs.answers("status", ("clojars start/killed, process 3", "", 0))
    over_once(lambda: programs.calls)

    getattr(upstart, verb)("clojars")

    assert programs.calls == [f"{verb} clojars", "status clojars"]


def test_a_job_whose_file_is_gone_is_stopped_and_cannot_be_started(
    programs: Programs, upstart: Upstart
) -> None:
    no_method = (
        'stop: Method "Get" with signature "ss" on interface "org.freedesktop.DBus.Properties" '
        "doesn't exist\n"
    )
    programs.answers("stop", ("", no_method, 1))
    programs.answers("status", ("", "status: Unknown job: clojars\n", 1))
    programs.answers("start", ("", "start: Unknown job: clojars\n", 1))

    upstart.stop("clojars")
    with pytest.raises(ServiceFailed, match="Unknown job"):
        upstart.start("clojars")


def test_a_running_job_is_stopped(programs: Programs, upstart: Upstart) -> None:
    programs.answers("stop", ("clojars stop/waiting", "", 0))

    upstart.stop("clojars")

    assert programs.calls == ["stop clojars"]


def test_to_stop_a_stopped_job_is_fine(programs: Programs, upstart: Upstart) -> None:
    programs.answers("stop", UNKNOWN_INSTANCE_OF_STOP)

    upstart.stop("clojars")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (("", "restart: Unknown job: nosuch\n", 1), "restart: Unknown job: nosuch"),
        (("prog stop/waiting\n", "restart: Job failed to restart\n", 1),
         "restart: Job failed to restart"),
        (("", f"restart: {REJECTED}", 1), "restart: Rejected send message"),
        (("", f"restart: {NO_BUS}", 1), "restart: Unable to connect to system bus"),
        (("", f"restart: {NO_UPSTART}", 1), "restart: Unable to connect to Upstart"),
        (("", "", 3), "exit status 3"),
        # Exit status 0 proves nothing: another's stop has overtaken the restart.
        (("prestart stop/pre-start, process 72\n", "", 0), "stop/pre-start"),
    ],
)  # fmt: skip
def test_a_restart_that_was_not_done_is_an_error_in_upstarts_words(
    programs: Programs, upstart: Upstart, said: Said, reason: str
) -> None:
    programs.answers("restart", said)

    with pytest.raises(ServiceFailed) as failed:
        upstart.restart("prestart")

    assert reason in str(failed.value)
    assert programs.calls == ["restart prestart"]


def test_a_start_that_fails_is_an_error(programs: Programs, upstart: Upstart) -> None:
    programs.answers("restart", UNKNOWN_INSTANCE)
    programs.answers("start", ("", "start: Job failed to start\n", 1))

    with pytest.raises(ServiceFailed, match=r"^start: Job failed to start$"):
        upstart.restart("clojars")


def test_a_stop_that_fails_is_an_error(programs: Programs, upstart: Upstart) -> None:
    programs.answers("stop", ("", "stop: Unknown job: nosuch\n", 1))

    with pytest.raises(ServiceFailed, match=r"^stop: Unknown job: nosuch$"):
        upstart.stop("nosuch")


def test_an_error_is_in_the_managers_own_words(programs: Programs, upstart: Upstart) -> None:
    programs.answers("restart", ("", "restart: \x1b[2Jno\x07", 1))

    with pytest.raises(ServiceFailed, match="no"):
        upstart.restart("clojars")


def test_the_programs_speak_english(
    programs: Programs, upstart: Upstart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    programs.does("status", 'echo "$LC_ALL"')

    assert upstart.status("clojars").said == "C"


# Programs that do not answer, and that are not there


def test_a_status_that_does_not_come_is_unknown(programs: Programs) -> None:
    programs.does("status", "exec sleep 1000")
    upstart = Upstart(bin=str(programs.bin), sudo=False, timeout=0.2)

    started = time.monotonic()
    found = upstart.status("clojars")

    assert (found.state, found.said) == ("unknown", "status clojars: no answer within 0.2 s")
    assert time.monotonic() - started < DEADLINE


@pytest.mark.parametrize("verb", ["restart", "start", "stop"])
def test_a_request_has_a_time_limit(programs: Programs, verb: str) -> None:
    programs.does(verb, "exec sleep 1000")
    upstart = Upstart(bin=str(programs.bin), sudo=False, timeout=0.2)

    with pytest.raises(ServiceFailed, match=f"^{verb} clojars: no answer within 0.2 s$"):
        getattr(upstart, verb)("clojars")


def test_a_program_that_reached_its_time_limit_is_ended(
    programs: Programs,
    upstart: Upstart,
    over_once: Callable[[Callable[[], object]], None],
    tmp_path: Path,
) -> None:
    pid = tmp_path / "pid"
    programs.does("restart", f"echo $$ >{shlex.quote(str(pid))}; exec sleep 1000")
    over_once(lambda: pid.exists() and pid.read_text().endswith("\n"))

    with pytest.raises(ServiceFailed):
        upstart.restart("clojars")

    wait_for(lambda: not lives(int(pid.read_text())), "the program has ended")


def test_without_upstarts_programs_the_state_is_unknown(tmp_path: Path) -> None:
    upstart = Upstart(bin=str(tmp_path), sudo=False, timeout=DEADLINE)

    found = upstart.status("clojars")

    assert (found.state, found.said) == ("unknown", f"{tmp_path}/status: No such file or directory")


@pytest.mark.parametrize("verb", ["restart", "start", "stop"])
def test_without_upstarts_programs_a_request_is_an_error(tmp_path: Path, verb: str) -> None:
    upstart = Upstart(bin=str(tmp_path), sudo=False, timeout=DEADLINE)

    with pytest.raises(ServiceFailed, match=f"^{tmp_path}/{verb}: No such file or directory$"):
        getattr(upstart, verb)("clojars")


def test_a_program_that_may_not_be_run_is_an_error(programs: Programs, upstart: Upstart) -> None:
    programs.answers("restart", RUNS)
    (programs.bin / "restart").chmod(0o644)

    with pytest.raises(ServiceFailed, match="Permission denied"):
        upstart.restart("clojars")


# sudo


ALLOWS = 'test "$1" = -n || exit 99\nshift\ntest "$1" = -l && { shift; echo "$*"; exit 0; }\n"$@"'
REFUSES = 'test "$2" = -l && exit 1\necho "sudo: a password is required" >&2\nexit 1'


@pytest.fixture
def sudo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a `sudo` first on PATH that runs the given script."""
    directory = tmp_path / "path"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")

    def put(script: str) -> None:
        program = directory / "sudo"
        log = shlex.quote(str(tmp_path / "sudo-calls"))
        program.write_text(f'#!/bin/sh\necho "$*" >>{log}\n{script}\n')
        program.chmod(0o755)

    return put


@pytest.fixture
def through_sudo(programs: Programs) -> Upstart:
    return Upstart(bin=str(programs.bin), sudo=True, timeout=DEADLINE)


def test_requests_go_through_sudo_with_the_exact_path_and_job(
    programs: Programs, through_sudo: Upstart, sudo: Callable[[str], None], tmp_path: Path
) -> None:
    sudo(ALLOWS)
    programs.answers("restart", UNKNOWN_INSTANCE)
    programs.answers("start", RUNS)
    programs.answers("stop", ("clojars stop/waiting", "", 0))

    through_sudo.restart("clojars")
    through_sudo.stop("clojars")

    assert (tmp_path / "sudo-calls").read_text().splitlines() == [
        f"-n {programs.bin}/restart clojars",
        f"-n {programs.bin}/start clojars",
        f"-n {programs.bin}/stop clojars",
    ]


def test_status_needs_no_sudo(
    programs: Programs, through_sudo: Upstart, sudo: Callable[[str], None]
) -> None:
    sudo(REFUSES)
    programs.answers("status", RUNS)

    assert through_sudo.status("clojars").state == "running"


def test_where_only_root_can_ask_status_goes_through_sudo(
    programs: Programs, through_sudo: Upstart, sudo: Callable[[str], None]
) -> None:
    sudo(ALLOWS)
    programs.answers("status", ("", f"status: {NO_BUS}", 1), RUNS)

    assert through_sudo.status("clojars") == Job("running", 3, RUNS[0])


def test_where_only_root_can_ask_and_sudo_refuses_the_state_is_unknown_with_the_reason(
    programs: Programs, through_sudo: Upstart, sudo: Callable[[str], None]
) -> None:
    sudo(REFUSES)
    programs.answers("status", ("", f"status: {NO_BUS}", 1))

    found = through_sudo.status("clojars")

    assert found.state == "unknown"
    assert "system bus" in found.said


def test_where_only_root_can_ask_and_there_is_no_sudo_that_is_the_reason(
    programs: Programs, through_sudo: Upstart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs.answers("status", ("", f"status: {NO_BUS}", 1))
    (tmp_path / "path").mkdir()
    for program in ("wc", "sh"):
        (tmp_path / "path" / program).symlink_to(str(shutil.which(program)))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))

    found = through_sudo.status("clojars")

    assert found.state == "unknown"
    assert "system bus" in found.said or "sudo" in found.said


def test_a_refusal_of_sudo_is_an_error_in_its_words(
    programs: Programs, through_sudo: Upstart, sudo: Callable[[str], None]
) -> None:
    sudo(REFUSES)
    programs.answers("restart", RUNS)

    with pytest.raises(ServiceFailed, match=r"^sudo: a password is required$"):
        through_sudo.restart("clojars")

    assert programs.calls == []


def test_what_sudo_remarks_first_does_not_hide_that_the_job_is_stopped(
    programs: Programs, through_sudo: Upstart, sudo: Callable[[str], None]
) -> None:
    remark = "sudo: unable to resolve host clojars: Name or service not known"
    sudo(f"echo {shlex.quote(remark)} >&2\n{ALLOWS}")
    programs.answers("restart", UNKNOWN_INSTANCE)
    programs.answers("start", RUNS)

    through_sudo.restart("clojars")

    assert programs.calls == ["restart clojars", "start clojars"]


def test_without_sudo_a_request_is_an_error(
    through_sudo: Upstart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(ServiceFailed, match=r"^sudo: No such file or directory$"):
        through_sudo.restart("clojars")


def commands(programs: Programs, *jobs: str) -> set[str]:
    return {f"{programs.bin}/{verb} {job}" for job in jobs for verb in ("restart", "start", "stop")}


def refused_of(services: Upstart, *jobs: str) -> set[str]:
    """The commands that are named as not allowed."""
    with pytest.raises(NotReady) as refused:
        services.refuse_what_would_fail(jobs)
    begins, ends = "sudo does not let this user run ", " without a password"
    assert refused.value.message.startswith(begins)
    assert refused.value.message.endswith(ends)
    return set(refused.value.message.removeprefix(begins).removesuffix(ends).split(", "))


def test_what_sudo_allows_is_not_refused(
    programs: Programs, through_sudo: Upstart, sudo: Callable[[str], None]
) -> None:
    sudo(ALLOWS)

    through_sudo.refuse_what_would_fail(["clojars", "clojars-backup"])

    assert programs.calls == []


def test_every_command_that_sudo_does_not_allow_is_named(
    programs: Programs, through_sudo: Upstart, sudo: Callable[[str], None]
) -> None:
    sudo(REFUSES)

    refused = refused_of(through_sudo, "clojars", "clojars-backup")

    assert refused == commands(programs, "clojars", "clojars-backup")


def test_only_what_sudo_does_not_allow_is_named(
    programs: Programs, through_sudo: Upstart, sudo: Callable[[str], None]
) -> None:
    sudo('case "$*" in *"/restart clojars") exit 0;; esac\nexit 1')

    refused = refused_of(through_sudo, "clojars", "clojars-backup")

    expected = commands(programs, "clojars", "clojars-backup") - {f"{programs.bin}/restart clojars"}
    assert refused == expected


def test_without_sudo_every_command_is_refused(
    programs: Programs, through_sudo: Upstart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert refused_of(through_sudo, "clojars") == commands(programs, "clojars")


def test_where_sudo_is_not_used_it_refuses_nothing(
    upstart: Upstart, sudo: Callable[[str], None]
) -> None:
    sudo(REFUSES)

    upstart.refuse_what_would_fail(["clojars"])


# The real sudo, with rules of the test's own: in a mount namespace, so that they are nobody else's

ASK_THE_REAL_SUDO = """
import os, sys
from deploy_clojars.errors import NotReady
from deploy_clojars.host.services.upstart import Upstart
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
os.setsid()  # without a terminal
try:
    Upstart(bin=sys.argv[1], sudo=True, timeout=60).refuse_what_would_fail(["clojars"])
except NotReady as refused:
    print(refused.message, refused.detail, refused.remedy, sep="\\n")
"""

ALLOWED = (
    "nobody ALL=(root) NOPASSWD: {bin}/restart clojars, {bin}/start clojars, {bin}/stop clojars"
)
ALL = "{bin}/restart clojars, {bin}/start clojars, {bin}/stop clojars"
WANTS_A_PASSWORD = "sudo: a password is required"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can write rules of sudo")
@pytest.mark.parametrize(
    ("rules", "refused", "said"),
    [
        ([ALLOWED], "", ""),
        (["nobody ALL=(ALL:ALL) NOPASSWD: ALL"], "", ""),
        (["nobody ALL=(ALL:ALL) CWD=* NOPASSWD: ALL"], "", ""),
        (["Defaults:nobody listpw=always", ALLOWED], "", ""),
        (["Defaults requiretty", ALLOWED, "Defaults:nobody !requiretty"], "", ""),
        ([ALLOWED, "Defaults requiretty"], ALL, "Defaults:nobody !requiretty"),
        ([ALLOWED, "nobody ALL=(ALL:ALL) ALL"], ALL, WANTS_A_PASSWORD),
        ([ALLOWED, "nobody ALL=(root) PASSWD: {bin}/stop *"], "{bin}/stop clojars",
         WANTS_A_PASSWORD),
        ([ALLOWED, "nobody ALL=(root) !{bin}/start"], "{bin}/start clojars", ""),
        ([ALLOWED.replace("clojars,", "clojars-backup,")],
         "{bin}/restart clojars, {bin}/start clojars", WANTS_A_PASSWORD),
        ([], ALL, WANTS_A_PASSWORD),
    ],
)  # fmt: skip
def test_the_real_sudo_is_asked_for_what_is_really_called(
    programs: Programs, rules: list[str], refused: str, said: str
) -> None:
    require_program("sudo", "unshare")
    for verb in ("restart", "start", "stop"):
        programs.does(verb, "")
    directory = Path(tempfile.mkdtemp(prefix="rules-"))
    try:
        directory.chmod(0o755)
        bin = directory / "bin"
        shutil.copytree(programs.bin, bin)
        (directory / "sudoers.d").mkdir(0o755)
        (directory / "sudoers.d/rules").write_text(
            "".join(f"{rule.format(bin=bin)}\n" for rule in rules)
        )
        (directory / "sudoers.d/rules").chmod(0o440)
        asked = subprocess.run(
            ["unshare", "-m", "sh", "-c",
             'mount --bind "$0" /etc/sudoers.d && mount -t tmpfs tmpfs /run && exec "$@"', directory / "sudoers.d",
             sys.executable, "-c", ASK_THE_REAL_SUDO, bin],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
    finally:
        shutil.rmtree(directory)

    assert asked.stderr == ""
    if refused:
        named = asked.stdout.splitlines()[0]
        assert named == (
            f"sudo does not let this user run {refused.format(bin=bin)} without a password"
        )
    else:
        assert asked.stdout == ""
    assert said in asked.stdout
    assert programs.calls == []


# The job's log


def test_the_end_of_a_jobs_log_is_shown_without_control_characters(tmp_path: Path) -> None:
    (tmp_path / "clojars.log").write_bytes(
        b"".join(b"line %d\n" % number for number in range(100)) + b"\x1b[31mred \xff\n"
    )
    upstart = Upstart(bin="/sbin", sudo=False, timeout=DEADLINE, logs=tmp_path)

    shown = upstart.last_log_lines("clojars").splitlines()

    assert shown[-2] == "line 99"
    assert "red" in shown[-1]


def test_a_log_that_cannot_be_read_is_an_empty_one(tmp_path: Path) -> None:
    upstart = Upstart(bin="/sbin", sudo=False, timeout=DEADLINE, logs=tmp_path)

    assert upstart.last_log_lines("clojars") == ""


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE:.0f} s: {what}"
        time.sleep(0.005)
