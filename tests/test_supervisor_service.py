"""supervisord, driven by its XML-RPC: a real one, and what else may be at its socket."""

from __future__ import annotations

import gc
import gzip
import importlib
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
import warnings
import xmlrpc.client
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
from programs import skip_or_fail

from deploy_clojars.checks import running
from deploy_clojars.checks.finding import Site
from deploy_clojars.config import parse
from deploy_clojars.errors import NotReady
from deploy_clojars.host import services as all_services
from deploy_clojars.host.host import Host
from deploy_clojars.host.services import Job, ServiceFailed, services_of
from deploy_clojars.host.services.supervisor import Supervisor
from deploy_clojars.machine import processes

DEADLINE = 60.0  # seconds that anything may take on a busy machine
SHORT = 0.2  # seconds: the time limit of what is meant to reach it
PATIENT_CALL, LIMIT = 3.0, 0.6  # seconds: for one call, and for a stop when that has taken as long
LONG = 1000  # seconds: what is not meant to be waited for
HUGE = 300_000  # bytes of a log: far more than is meant to be read

REQUESTS = ("restart", "start", "stop")

# A program says when it has come up: supervisord's child loses a TERM that comes before its exec.
RUNS = f"echo up; exec sleep {LONG}"
IGNORES_TERM = f"trap '' TERM; echo up; exec sleep {LONG}"

Found = TypeVar("Found")

TOO_QUICKLY = "Exited too quickly (process log may have details)"


class Supervisord:
    """A real supervisord on a socket in a directory, with the programs that a test adds to it."""

    def __init__(self, directory: Path, *, credentials: str = "") -> None:
        self.directory = directory
        self.path = str(directory / "s")  # a socket's path has 107 bytes at most
        configuration = directory / "supervisord.conf"
        configuration.write_text(
            f"[unix_http_server]\nfile={self.path}\n{credentials}"
            f"[supervisord]\nlogfile={directory}/log\npidfile={directory}/pid\nchildlogdir={directory}\n"
            "[rpcinterface:supervisor]\n"
            "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface\n"
            f"[include]\nfiles={directory}/*.program\n"
        )
        with (directory / "output").open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "supervisor.supervisord", "-n", "-c", str(configuration)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def wait_until_up(self) -> None:
        wait_for(self._answers, "supervisord answers")

    def _answers(self) -> bool:
        assert self._process.poll() is None, (self.directory / "output").read_text()
        with suppress(OSError):
            return bool(self.ask("getState")["statename"] == "RUNNING")
        return False

    def ask(self, method: str, *words: object) -> Any:
        """Calls a method through the package's own client."""
        package = importlib.import_module("supervisor.xmlrpc")
        transport = package.SupervisorTransport(None, None, f"unix://{self.path}")
        with xmlrpc.client.ServerProxy("http://supervisord", transport) as server:
            return getattr(server.supervisor, method)(*words)

    def has(self, program: str, script: str, *, group: str = "", **options: object) -> None:
        """Adds a program that runs a shell script; `options` are those of its section."""
        file = self.directory / f"{program}.sh"
        file.write_text(f"{script}\n")
        settings = {
            "command": f"sh {file}",
            "autostart": "false",
            "autorestart": "false",
            "startsecs": 0,
            "startretries": 0,
            "stopwaitsecs": 2,
            "stdout_logfile": self.log_of(program),
            **options,
        }
        lines = [f"[program:{program}]", *(f"{key}={value}" for key, value in settings.items())]
        if group:
            lines += [f"[group:{group}]", f"programs={program}"]
        (self.directory / f"{program}.program").write_text("\n".join([*lines, ""]))
        self.ask("reloadConfig")
        self.ask("addProcessGroup", group or program)

    def runs(self, program: str, script: str = RUNS, *, group: str = "", **options: object) -> int:
        """Adds a program, starts it, and returns its PID when it has come up."""
        self.has(program, script, group=group, **options)
        name = f"{group}:{program}" if group else program
        self.begins(name)
        wait_for(lambda: self.has_come_up(program), f"{name} has come up")
        return self.pid_of(name)

    def begins(self, program: str) -> None:
        """Starts a program, without waiting for what becomes of it."""
        with suppress(xmlrpc.client.Fault):  # it has died already
            self.ask("startProcess", program, False)

    def has_come_up(self, program: str) -> bool:
        log = self.log_of(program)
        return log.exists() and log.read_text().startswith("up\n")

    def log_of(self, program: str) -> Path:
        return self.directory / f"{program}.log"

    def state_of(self, program: str) -> str:
        return str(self.ask("getProcessInfo", program)["statename"])

    def pid_of(self, program: str) -> int:
        return int(self.ask("getProcessInfo", program)["pid"])

    def wait_until(self, program: str, state: str) -> None:
        wait_for(lambda: self.state_of(program) == state, f"{program} is {state}")

    def _does_nothing_more(self) -> bool:
        return processes.is_suspended(self._process.pid) or self._process.poll() is not None

    def end(self) -> None:
        """Kills it and all that it started."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGSTOP)  # so that it starts no other
            wait_for(self._does_nothing_more, "supervisord is stopped")
            started = psutil.Process(self._process.pid).children(recursive=True)
            for process in started:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            self._process.kill()
        self._process.wait(DEADLINE)


@pytest.fixture
def supervisord(tmp_path: Path) -> Iterator[Supervisord]:
    if importlib.util.find_spec("supervisor") is None:
        skip_or_fail("not installed: the Python package supervisor")
    supervisord = Supervisord(tmp_path)
    try:
        supervisord.wait_until_up()
        yield supervisord
    finally:
        supervisord.end()


@pytest.fixture
def services(supervisord: Supervisord) -> Supervisor:
    return Supervisor(path=supervisord.path, timeout=DEADLINE)


@pytest.fixture
def impatient(supervisord: Supervisord, monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    """It soon gives up what takes too long, but leaves a busy machine time for every call."""
    monkeypatch.setattr(all_services, "LONGEST_STOP", LIMIT / PATIENT_CALL)
    return Supervisor(path=supervisord.path, timeout=PATIENT_CALL)


# What status says


def test_a_program_that_was_never_started_is_stopped(
    supervisord: Supervisord, services: Supervisor
) -> None:
    supervisord.has("clojars", RUNS)

    assert services.status("clojars") == Job("stopped", None, "clojars STOPPED Not started")


def test_a_running_program_has_its_pid(supervisord: Supervisord, services: Supervisor) -> None:
    pid = supervisord.runs("clojars", f"echo up; echo $$; exec sleep {LONG}")

    found = services.status("clojars")

    assert (found.state, found.pid) == ("running", pid)
    assert found.said.startswith(f"clojars RUNNING pid {pid}, uptime 0:00:")
    wait_for(lambda: supervisord.log_of("clojars").read_text() == f"up\n{pid}\n", "its own word")


def test_a_program_that_has_not_run_for_its_startsecs_runs_all_the_same(
    supervisord: Supervisord, services: Supervisor
) -> None:
    pid = supervisord.runs("clojars", startsecs=LONG)

    assert services.status("clojars") == Job("running", pid, "clojars STARTING")


def test_a_program_that_waits_to_be_started_once_more_is_starting(
    supervisord: Supervisord, services: Supervisor
) -> None:
    supervisord.has("clojars", "exit 3", startsecs=LONG, startretries=9)
    supervisord.begins("clojars")

    found = wait_for(lambda: status_with("BACKOFF", services), "clojars is BACKOFF")

    assert found == Job("starting", None, f"clojars BACKOFF {TOO_QUICKLY}")


def test_a_program_that_was_given_up_is_stopped(
    supervisord: Supervisord, services: Supervisor
) -> None:
    supervisord.has("clojars", "exit 3", startsecs=LONG)
    supervisord.begins("clojars")
    supervisord.wait_until("clojars", "FATAL")

    found = services.status("clojars")

    assert found == Job("stopped", None, f"clojars FATAL {TOO_QUICKLY}")


def test_why_a_program_was_given_up_is_said(supervisord: Supervisord, services: Supervisor) -> None:
    missing = supervisord.directory / "missing"
    supervisord.has("clojars", "", command=missing, autostart="true")
    supervisord.wait_until("clojars", "FATAL")

    found = services.status("clojars")

    assert found == Job("stopped", None, f"clojars FATAL can't find command '{missing}'")


def test_a_program_that_failed_is_stopped_and_its_exit_status_is_said(
    supervisord: Supervisord, services: Supervisor
) -> None:
    supervisord.has("clojars", "exit 3")
    supervisord.begins("clojars")
    supervisord.wait_until("clojars", "EXITED")
    wait_for(lambda: services.status("clojars").state != "starting", "it is not started again")

    assert services.status("clojars") == Job("stopped", None, "clojars EXITED Bad exit code 3")


def test_a_program_that_has_just_ended_may_be_started_again_by_itself(
    supervisord: Supervisord, services: Supervisor
) -> None:
    once = supervisord.directory / "once"
    once.mkdir()
    # It ends at an odd moment: supervisord looks every second, and until then says EXITED.
    supervisord.has("clojars", f"rmdir {once} && sleep 0.3 && exit 3; {RUNS}", autorestart="true")
    supervisord.begins("clojars")
    seen = set()

    def runs_again() -> bool:
        found = services.status("clojars")
        seen.add(found.state)
        return not once.exists() and found.state == "running" and supervisord.has_come_up("clojars")

    wait_for(runs_again, "it was started again")

    assert "stopped" not in seen


def test_a_program_that_ended_well_is_stopped(
    supervisord: Supervisord, services: Supervisor
) -> None:
    supervisord.has("clojars", "exit 0")
    supervisord.begins("clojars")
    supervisord.wait_until("clojars", "EXITED")
    wait_for(lambda: services.status("clojars").state != "starting", "it is not started again")

    found = services.status("clojars")

    assert (found.state, found.pid) == ("stopped", None)
    assert found.said.startswith("clojars EXITED ")


def test_a_program_that_is_being_stopped_is_stopping(
    supervisord: Supervisord, services: Supervisor
) -> None:
    supervisord.runs("clojars", IGNORES_TERM, stopwaitsecs=LONG)
    supervisord.ask("stopProcess", "clojars", False)

    assert services.status("clojars") == Job("stopping", None, "clojars STOPPING")


def test_a_program_that_was_stopped_is_stopped(
    supervisord: Supervisord, services: Supervisor
) -> None:
    supervisord.runs("clojars")
    supervisord.ask("stopProcess", "clojars")

    found = services.status("clojars")

    assert (found.state, found.pid) == ("stopped", None)
    assert re.fullmatch(r"clojars STOPPED \w+ \d\d \d\d:\d\d [AP]M", found.said)


# Restart, start, stop


def test_a_running_program_is_restarted(supervisord: Supervisord, services: Supervisor) -> None:
    before = supervisord.runs("clojars")

    services.restart("clojars")

    assert supervisord.state_of("clojars") == "RUNNING"
    assert supervisord.pid_of("clojars") != before
    assert not lives(before)


def test_the_restart_of_a_program_that_was_never_started_starts_it(
    supervisord: Supervisord, services: Supervisor
) -> None:
    supervisord.has("clojars", RUNS)

    services.restart("clojars")

    assert supervisord.state_of("clojars") == "RUNNING"


def test_the_restart_of_a_program_that_has_ended_starts_it(
    supervisord: Supervisord, services: Supervisor
) -> None:
    supervisord.has("clojars", f"rmdir {supervisord.directory}/once && exit 3; {RUNS}")
    (supervisord.directory / "once").mkdir()
    supervisord.begins("clojars")
    supervisord.wait_until("clojars", "EXITED")

    services.restart("clojars")

    assert supervisord.state_of("clojars") == "RUNNING"


@pytest.mark.parametrize(("retries", "state"), [(0, "FATAL"), (100, "BACKOFF")])
@pytest.mark.parametrize("request_", ["restart", "start"])
def test_a_program_that_could_not_be_started_is_started(
    supervisord: Supervisord, services: Supervisor, retries: int, state: str, request_: str
) -> None:
    program = supervisord.directory / "program"
    supervisord.has("clojars", "", command=program, autostart="true", startretries=retries)
    supervisord.wait_until("clojars", state)
    program.write_text(f"#!/bin/sh\n{RUNS}\n")
    program.chmod(0o755)

    getattr(services, request_)("clojars")

    assert supervisord.state_of("clojars") == "RUNNING"


def test_a_start_does_not_wait_for_the_startsecs(
    supervisord: Supervisord, services: Supervisor
) -> None:
    supervisord.has("clojars", RUNS, startsecs=LONG)

    services.start("clojars")

    assert supervisord.state_of("clojars") == "STARTING"
    assert services.status("clojars").pid == supervisord.pid_of("clojars")


def test_the_start_of_a_running_program_restarts_it(
    supervisord: Supervisord, services: Supervisor
) -> None:
    before = supervisord.runs("clojars")

    services.start("clojars")

    assert supervisord.state_of("clojars") == "RUNNING"
    assert supervisord.pid_of("clojars") != before
    assert not lives(before)


def test_a_running_program_is_stopped(supervisord: Supervisord, services: Supervisor) -> None:
    pid = supervisord.runs("clojars")

    services.stop("clojars")

    assert supervisord.state_of("clojars") == "STOPPED"
    assert not lives(pid)


def test_a_program_that_is_still_starting_is_stopped(
    supervisord: Supervisord, services: Supervisor
) -> None:
    pid = supervisord.runs("clojars", startsecs=LONG)

    services.stop("clojars")

    assert supervisord.state_of("clojars") == "STOPPED"
    assert not lives(pid)


def test_a_program_that_ignores_the_request_to_end_is_stopped_after_its_stopwaitsecs(
    supervisord: Supervisord, services: Supervisor
) -> None:
    pid = supervisord.runs("clojars", IGNORES_TERM, stopwaitsecs=1)

    services.stop("clojars")

    assert supervisord.state_of("clojars") == "STOPPED"
    assert not lives(pid)


def test_to_stop_a_stopped_program_is_fine(supervisord: Supervisord, services: Supervisor) -> None:
    supervisord.has("clojars", RUNS)

    services.stop("clojars")

    assert supervisord.state_of("clojars") == "STOPPED"


def test_to_stop_a_program_that_has_ended_is_fine(
    supervisord: Supervisord, services: Supervisor
) -> None:
    supervisord.has("clojars", "exit 3")
    supervisord.begins("clojars")
    supervisord.wait_until("clojars", "EXITED")

    services.stop("clojars")


def test_a_program_that_waits_to_be_started_once_more_is_stopped(
    supervisord: Supervisord, services: Supervisor
) -> None:
    missing = supervisord.directory / "missing"
    supervisord.has("clojars", "", command=missing, autostart="true", startretries=100)
    supervisord.wait_until("clojars", "BACKOFF")

    services.stop("clojars")

    assert supervisord.state_of("clojars") == "STOPPED"


# A program that is being stopped already: by another, or by a run that was cut off


def test_to_stop_a_program_that_is_being_stopped_waits_for_its_end(
    supervisord: Supervisord, services: Supervisor
) -> None:
    pid = supervisord.runs("clojars", IGNORES_TERM, stopwaitsecs=1)
    supervisord.ask("stopProcess", "clojars", False)

    services.stop("clojars")

    assert supervisord.state_of("clojars") == "STOPPED"
    assert not lives(pid)


@pytest.mark.parametrize("request_", ["restart", "start"])
def test_a_program_that_is_being_stopped_is_started_when_it_has_ended(
    supervisord: Supervisord, services: Supervisor, request_: str
) -> None:
    before = supervisord.runs("clojars", IGNORES_TERM, stopwaitsecs=1)
    supervisord.ask("stopProcess", "clojars", False)

    getattr(services, request_)("clojars")

    assert supervisord.state_of("clojars") == "RUNNING"
    assert supervisord.pid_of("clojars") != before
    assert not lives(before)


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_program_that_is_being_stopped_is_not_waited_for_for_ever(
    supervisord: Supervisord, impatient: Supervisor, request_: str
) -> None:
    supervisord.runs("clojars", IGNORES_TERM, stopwaitsecs=LONG)
    supervisord.ask("stopProcess", "clojars", False)

    with pytest.raises(ServiceFailed, match=f"^clojars STOPPING: not stopped within {LIMIT:g} s$"):
        getattr(impatient, request_)("clojars")


@pytest.mark.parametrize("request_", ["restart", "start"])
def test_a_stop_that_takes_longer_than_the_time_limit_leaves_no_program_down(
    supervisord: Supervisord, request_: str
) -> None:
    before = supervisord.runs("clojars", IGNORES_TERM, stopwaitsecs=5)

    getattr(Supervisor(path=supervisord.path, timeout=3), request_)("clojars")

    assert supervisord.state_of("clojars") == "RUNNING"
    assert supervisord.pid_of("clojars") != before
    assert not lives(before)


# What fails


@pytest.mark.parametrize("script", ["exit 3", "exit 0"])
def test_a_program_that_dies_at_once_is_stopped_in_supervisords_words(
    supervisord: Supervisord, services: Supervisor, script: str
) -> None:
    supervisord.has("clojars", script, startsecs=LONG)  # whatever the machine takes for its end

    with suppress(ServiceFailed):  # supervisord may have seen its end already
        services.start("clojars")

    wait_for(lambda: services.status("clojars").state == "stopped", "clojars is given up")
    assert services.status("clojars").said == f"clojars FATAL {TOO_QUICKLY}"


def test_a_running_program_that_dies_at_its_restart_is_stopped(
    supervisord: Supervisord, services: Supervisor
) -> None:
    supervisord.runs("clojars", startsecs=LONG)
    (supervisord.directory / "clojars.sh").write_text("exit 3\n")

    with suppress(ServiceFailed):
        services.restart("clojars")

    wait_for(lambda: services.status("clojars").state == "stopped", "clojars is given up")
    assert services.status("clojars").said == f"clojars FATAL {TOO_QUICKLY}"


@pytest.mark.parametrize("request_", ["restart", "start"])
def test_a_program_that_is_not_there_is_an_error_that_names_it(
    supervisord: Supervisord, services: Supervisor, request_: str
) -> None:
    missing = supervisord.directory / "missing"
    supervisord.has("clojars", "", command=missing)

    with pytest.raises(ServiceFailed, match=f"clojars.*NO_FILE.*{missing}"):
        getattr(services, request_)("clojars")


def test_a_program_that_may_not_be_run_is_an_error_that_names_it(
    supervisord: Supervisord, services: Supervisor
) -> None:
    supervisord.has("clojars", "", command=supervisord.directory / "clojars.sh")

    with pytest.raises(ServiceFailed, match=r"clojars.*NOT_EXECUTABLE.*clojars\.sh"):
        services.start("clojars")


def test_a_program_that_cannot_be_spawned_is_an_error(
    supervisord: Supervisord, services: Supervisor
) -> None:
    logs = supervisord.directory / "logs"
    logs.mkdir()
    supervisord.has("clojars", RUNS, stdout_logfile=logs / "log")
    logs.rmdir()

    with pytest.raises(ServiceFailed, match=r"clojars.*SPAWN_ERROR"):
        services.start("clojars")


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_stop_has_a_time_limit(
    supervisord: Supervisord, impatient: Supervisor, request_: str
) -> None:
    pid = supervisord.runs("clojars", IGNORES_TERM, stopwaitsecs=LONG)

    with pytest.raises(ServiceFailed, match=f"not stopped within {LIMIT:g} s"):
        getattr(impatient, request_)("clojars")

    assert supervisord.state_of("clojars") == "STOPPING"
    assert lives(pid)


def test_a_job_that_supervisord_does_not_know_is_an_error_in_its_words(
    supervisord: Supervisord, services: Supervisor
) -> None:
    pid = supervisord.runs("clojars")

    for name in ("nosuch", "clojars:nosuch", "nosuch:clojars", "", "Clojars", "clo<&>jars"):
        found = services.status(name)
        assert (found.state, found.pid) == ("unknown", None)
        assert found.said.startswith(f"{name}: BAD_NAME")
        for request_ in REQUESTS:
            with pytest.raises(ServiceFailed, match=f"^{name}: BAD_NAME"):
                getattr(services, request_)(name)
        assert services.last_log_lines(name) == ""

    assert supervisord.pid_of("clojars") == pid


def test_a_name_that_xml_cannot_say_is_an_error(services: Supervisor) -> None:
    for name in ("clo\0jars", "clo\x1bjars", "\udc80"):
        found = services.status(name)
        assert (found.state, found.pid) == ("unknown", None)
        for request_ in REQUESTS:
            with pytest.raises(ServiceFailed):
                getattr(services, request_)(name)
        assert services.last_log_lines(name) == ""


def test_whoever_may_use_the_socket_may_use_all_of_it(services: Supervisor) -> None:
    services.refuse_what_would_fail(["clojars", "clojars-backup"])


# A command that starts the application without exec


LISTENS = (
    f'{sys.executable} -c \'import socket, time; s = socket.create_server(("127.0.0.1", 0)); '
    f'print("up", flush=True); time.sleep({LONG})\''
)


def test_a_shell_that_does_not_pass_a_stop_on_is_refused(
    supervisord: Supervisord, services: Supervisor
) -> None:
    pid = supervisord.runs("clojars", f"{LISTENS}\ntrue")
    with pytest.raises(NotReady, match=rf"only the main process of clojars \(PID {pid}, sh "):
        services.refuse_what_would_fail(["clojars"])


@pytest.mark.parametrize(
    ("script", "options"),
    [
        (f"exec {LISTENS}", {}),
        (f"trap 'kill $!' TERM\n{LISTENS} &\nwait", {}),
        (f"{LISTENS}\ntrue", {"stopasgroup": "true", "killasgroup": "true"}),
        (f"trap true INT\n{LISTENS}\ntrue", {"stopsignal": "INT"}),
    ],
)
def test_what_ends_with_its_shell_is_not(
    supervisord: Supervisord, services: Supervisor, script: str, options: dict[str, str]
) -> None:
    supervisord.runs("clojars", script, **options)
    services.refuse_what_would_fail(["clojars"])


# Programs in a group


def test_a_program_in_a_group_has_the_groups_name_before_its_own(
    supervisord: Supervisord, services: Supervisor
) -> None:
    before = supervisord.runs("clojars", group="site")

    assert services.status("site:clojars").pid == before
    assert services.status("site:clojars").said.startswith(f"site:clojars RUNNING pid {before}")
    assert services.last_log_lines("site:clojars") == "up"

    services.restart("site:clojars")

    after = services.status("site:clojars").pid
    assert after not in (None, before)
    assert not lives(before)

    wait_for(lambda: supervisord.log_of("clojars").read_text() == "up\nup\n", "it has come up")
    services.stop("site:clojars")

    assert services.status("site:clojars").state == "stopped"


def test_without_its_group_a_program_in_one_is_unknown(
    supervisord: Supervisord, services: Supervisor
) -> None:
    supervisord.runs("clojars", group="site")

    found = services.status("clojars")
    assert (found.state, found.said) == (
        "unknown", "clojars: BAD_NAME: clojars (supervisord's fault 10); it has site:clojars",
    )  # fmt: skip
    with pytest.raises(ServiceFailed, match="BAD_NAME"):
        services.stop("clojars")
    assert supervisord.state_of("site:clojars") == "RUNNING"


def test_each_of_a_programs_numprocs_has_a_name_of_its_own(
    supervisord: Supervisord, services: Supervisor
) -> None:
    supervisord.has(
        "clojars", RUNS, numprocs=2, process_name="%(program_name)s_%(process_num)02d",
        stdout_logfile=supervisord.directory / "log-%(process_num)02d",
    )  # fmt: skip

    services.start("clojars:clojars_01")

    assert services.status("clojars:clojars_00").state == "stopped"
    assert services.status("clojars:clojars_01").state == "running"
    assert services.status("clojars").state == "unknown"


def test_the_other_programs_are_left_alone(supervisord: Supervisord, services: Supervisor) -> None:
    backup = supervisord.runs("clojars-backup")
    supervisord.runs("clojars")

    services.stop("clojars")
    services.restart("clojars")

    assert services.status("clojars-backup").pid == backup
    assert lives(backup)


# The program's log


def test_the_end_of_a_programs_log_is_shown(supervisord: Supervisord, services: Supervisor) -> None:
    prints(supervisord, b"".join(b"line %d\n" % number for number in range(100)))

    shown = services.last_log_lines("clojars").splitlines()

    assert shown == [f"line {number}" for number in range(90, 100)]


def test_a_log_can_be_read_when_the_program_has_died(
    supervisord: Supervisord, services: Supervisor
) -> None:
    supervisord.has("clojars", "echo no database; exit 3", startsecs=LONG)
    supervisord.begins("clojars")
    supervisord.wait_until("clojars", "FATAL")

    assert services.last_log_lines("clojars") == "no database"


def test_the_log_of_a_program_that_was_never_started_is_empty(
    supervisord: Supervisord, services: Supervisor
) -> None:
    supervisord.has("clojars", RUNS)

    assert services.last_log_lines("clojars") == ""


def test_a_program_without_a_log_has_an_empty_one(
    supervisord: Supervisord, services: Supervisor
) -> None:
    supervisord.has("clojars", RUNS, stdout_logfile="NONE")
    services.start("clojars")

    assert services.last_log_lines("clojars") == ""


def test_what_a_program_says_of_its_end_is_shown_where_it_has_two_logs(
    supervisord: Supervisord, services: Supervisor
) -> None:
    supervisord.has(
        "clojars", "echo up; echo no database >&2; exit 3", startsecs=LONG,
        stderr_logfile=supervisord.directory / "clojars.err",
    )  # fmt: skip
    supervisord.begins("clojars")
    supervisord.wait_until("clojars", "FATAL")

    assert services.last_log_lines("clojars") == "up\nno database"


def test_a_log_that_is_a_pipe_without_a_reader_is_not_waited_for(
    supervisord: Supervisord, services: Supervisor
) -> None:
    os.mkfifo(supervisord.directory / "pipe")
    supervisord.has("clojars", RUNS, stdout_logfile=supervisord.directory / "pipe")

    assert services.last_log_lines("clojars") == ""


def test_a_pipe_that_nobody_reads_is_refused_before_supervisord_waits_for_a_reader(
    supervisord: Supervisord, services: Supervisor
) -> None:
    pipe = supervisord.directory / "pipe"
    os.mkfifo(pipe)
    supervisord.has("clojars", RUNS, stdout_logfile=pipe)

    with pytest.raises(NotReady, match=f"nobody reads the pipe {pipe}, the log of clojars"):
        services.refuse_what_would_fail(["clojars"])

    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    services.refuse_what_would_fail(["clojars"])
    os.close(reader)


def test_what_reads_a_pipe_until_its_writer_ends_outlives_a_restart(
    supervisord: Supervisord, services: Supervisor
) -> None:
    pipe, read = supervisord.directory / "pipe", supervisord.directory / "read"
    os.mkfifo(pipe)
    with (
        read.open("wb") as output,
        subprocess.Popen(["sh", "-c", f"exec cat {pipe}"], stdout=output) as reader,
    ):
        try:
            supervisord.has("clojars", RUNS, stdout_logfile=pipe)
            for count in (1, 2, 3):
                if count == 3:
                    services.stop("clojars")
                    services.start("clojars")
                else:
                    services.restart("clojars")
                wait_for(lambda: read.read_text().count("up\n") == count, "it is read")  # noqa: B023
            assert reader.poll() is None
            services.stop("clojars")
        finally:
            reader.kill()


def test_a_log_that_was_removed_is_an_empty_one(
    supervisord: Supervisord, services: Supervisor
) -> None:
    supervisord.runs("clojars")
    supervisord.log_of("clojars").unlink()

    assert services.last_log_lines("clojars") == ""


@pytest.mark.parametrize(
    ("line", "readable"),
    [
        (b"\x1b[31mred\x1b[0m \x07\x08\x0b", "red"),
        (b"nul\0nul", "nul"),
        ("CSI\x9b31m, right to left \u202e".encode(), "right to left"),
        ("no character \ufffe".encode(), "no character"),
    ],
)
def test_the_log_drives_no_terminal(
    supervisord: Supervisord, services: Supervisor, line: bytes, readable: str
) -> None:
    prints(supervisord, b"before\n" + line + b"\nafter\n")

    shown = services.last_log_lines("clojars").split("\n")

    assert (shown[0], shown[-1]) == ("before", "after")
    assert readable in shown[1]


@pytest.mark.parametrize("line", [b"Gr\xfc\xdfe in Latin-1", b"cut \xe2\x82"])
def test_a_log_need_not_be_text(
    supervisord: Supervisord, services: Supervisor, line: bytes
) -> None:
    prints(supervisord, b"before\n" + line + b"\nafter\n")

    shown = services.last_log_lines("clojars").split("\n")

    assert (shown[0], shown[-1]) == ("before", "after")


def test_a_log_may_have_any_characters(supervisord: Supervisord, services: Supervisor) -> None:
    prints(supervisord, "Grüße, €, 😀 <&>\n".encode())

    assert services.last_log_lines("clojars") == "Grüße, €, 😀 <&>"


def test_of_a_huge_line_only_the_end_is_shown(
    supervisord: Supervisord, services: Supervisor
) -> None:
    prints(supervisord, b"x" * HUGE + b"end\n")

    shown = services.last_log_lines("clojars")

    assert shown.endswith("xend")
    assert len(shown) < HUGE / 2


@pytest.mark.parametrize("shift", range(2))
def test_a_log_may_be_cut_in_the_middle_of_a_character(
    supervisord: Supervisord, services: Supervisor, shift: int
) -> None:
    # Wherever the cut is, it is inside a character in one of the two at least.
    prints(supervisord, "€".encode() * (HUGE // 3) + b"x" * shift + "\nlast €\n".encode())

    shown = services.last_log_lines("clojars").splitlines()

    assert shown[-1] == "last €"
    assert shown[0].endswith("€" + "x" * shift)


# supervisord itself is on its way, or gone


def test_a_supervisord_that_is_shutting_down_is_an_error_in_its_words(
    supervisord: Supervisord, services: Supervisor
) -> None:
    supervisord.runs("clojars", IGNORES_TERM, stopwaitsecs=LONG)
    supervisord.ask("shutdown")

    found = services.status("clojars")

    assert (found.state, found.pid) == ("unknown", None)
    assert "SHUTDOWN_STATE" in found.said
    for request_ in REQUESTS:
        with pytest.raises(ServiceFailed, match="SHUTDOWN_STATE"):
            getattr(services, request_)("clojars")
    assert services.last_log_lines("clojars") == ""


def test_a_supervisord_that_dies_during_a_request_is_an_error(
    supervisord: Supervisord, services: Supervisor
) -> None:
    supervisord.runs("clojars", IGNORES_TERM, stopwaitsecs=LONG)

    with ThreadPoolExecutor() as others:
        stop = others.submit(services.stop, "clojars")
        supervisord.wait_until("clojars", "STOPPING")
        supervisord.end()
        with pytest.raises(ServiceFailed, match=re.escape(supervisord.path)):
            stop.result(DEADLINE)


def test_a_supervisord_that_has_died_is_an_error(
    supervisord: Supervisord, services: Supervisor
) -> None:
    supervisord.runs("clojars")
    supervisord.end()

    assert Path(supervisord.path).is_socket()
    assert_that_all_fail(services, "Connection refused")


def test_without_a_supervisord_there_is_an_error_that_names_the_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "s")

    assert_that_all_fail(
        Supervisor(path=path, timeout=DEADLINE),
        f"supervisord cannot be reached at {path}: No such file or directory",
    )


def test_a_socket_that_nobody_listens_on_is_an_error(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)

    assert_that_all_fail(
        Supervisor(path=path, timeout=DEADLINE),
        f"supervisord cannot be reached at {path}: Connection refused",
    )


def test_a_file_that_is_no_socket_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "s").touch()

    assert_that_all_fail(Supervisor(path=str(tmp_path / "s"), timeout=DEADLINE), "refused")


def test_a_path_that_is_longer_than_a_sockets_address_is_reached(tmp_path: Path) -> None:
    directory = tmp_path / ("x" * 108)
    directory.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        (tmp_path / "s").rename(directory / "s")

        found = Supervisor(path=str(directory / "s"), timeout=0.1).status("clojars")

    assert "no answer within 0.1 s" in found.said


# What else may listen at the socket

Handler = Callable[[socket.socket, bytes], None]
Impostor = Callable[[Handler], str]


@pytest.fixture
def impostor(tmp_path: Path) -> Iterator[Impostor]:
    """Starts another server at supervisord's place and returns its socket's path."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor() as server:
        opened: list[socket.socket] = [listener]

        def started(handler: Handler) -> str:
            listener.bind(path)
            listener.listen()
            server.submit(serve, listener, handler, opened)
            return path

        try:
            yield started
        finally:
            for connection in opened:  # which ends every accept() and recv()
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


def serve(listener: socket.socket, handler: Handler, opened: list[socket.socket]) -> None:
    """Hands over every connection, with the request that came, until the listener is shut."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        opened.append(connection)
        with connection, suppress(OSError):
            request = b""
            while b"</methodCall>" not in request:
                received = connection.recv(4096)
                if not received:
                    break
                request += received
            handler(connection, request)


def says(answer: bytes) -> Handler:
    return lambda connection, _request: connection.sendall(answer)


def waits_for_the_end(connection: socket.socket, _request: bytes = b"") -> None:
    while connection.recv(4096):
        pass


def http(body: bytes, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", "Content-Type: text/xml", *headers, f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def answer(value: object) -> bytes:
    text = xmlrpc.client.dumps(
        value if isinstance(value, xmlrpc.client.Fault) else (value,),  # type: ignore[arg-type] # it marshals every value
        methodresponse=True,
        allow_none=True,
    )
    return http(text.encode())


def response(xml: str) -> bytes:
    return http(f"<methodResponse>{xml}</methodResponse>".encode())


NONSENSE = {
    "nothing": b"",
    "no HTTP": b"220 mail.clojars.org ESMTP\r\n",
    "line noise": b"\xff\xfe\0\x1b[2J\r\n\r\n",
    "a cut status line": b"HTTP/1.1",
    "an error": b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n",
    "an error to a terminal": b"HTTP/1.1 500 \x1b[2J\x9b31mno\r\nContent-Length: 0\r\n\r\n",
    "a missing page": b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnope",
    "a question for a password": b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n",
    "a redirection": b"HTTP/1.1 302 Found\r\nLocation: http://clojars.org/\r\n\r\n",
    "a bad length": b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n<a/>",
    "an empty page": http(b""),
    "plain text": http(b"hello"),
    "HTML": http(b"<!doctype html><title>hello</title><br>"),
    "other XML": http(b"<hello/>"),
    "no UTF-8": http(b"<methodResponse>\xff</methodResponse>"),
    "a cut answer": b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n<methodResponse><params>",
    "no value": response(""),
    "a number that is none": response("<params><param><value><int>x</int></value></param></params>"),
    "a fault that is none": response("<fault><value><int>3</int></value></fault>"),
    "an empty fault": response("<fault><value><struct></struct></value></fault>"),
    "no gzip": http(b"hello", "Content-Encoding: gzip"),
    "a cut gzip": http(gzip.compress(b"hello" * 9)[:-9], "Content-Encoding: gzip"),
}  # fmt: skip


@pytest.mark.parametrize("nonsense", NONSENSE.values(), ids=NONSENSE.keys())
def test_what_is_no_supervisord_is_an_error_that_names_the_socket(
    impostor: Impostor, nonsense: bytes
) -> None:
    path = impostor(says(nonsense))

    assert_that_all_fail(Supervisor(path=path, timeout=DEADLINE), path)


@pytest.mark.parametrize(
    "value",
    [
        "RUNNING",
        3,
        None,
        True,
        [],
        [{"statename": "RUNNING", "pid": 3}],
        {},
        {"statename": None},
        {"statename": ""},
        {"statename": 20, "pid": 3},
        {"statename": ["RUNNING"], "pid": 3},
        {"statename": "running", "pid": 3},
        {"statename": "UNKNOWN", "pid": 3},  # supervisord could not signal it
        {"statename": "FROZEN\x9b31m", "pid": 3},
    ],
    ids=repr,
)
def test_a_state_that_is_none_is_unknown(impostor: Impostor, value: object) -> None:
    services = Supervisor(path=impostor(says(answer(value))), timeout=DEADLINE)

    found = services.status("clojars")

    assert (found.state, found.pid) == ("unknown", None)
    assert found.said


@pytest.mark.parametrize("pid", [0, None, "", "x", [], [3], {"pid": 3}], ids=repr)
def test_a_pid_that_is_none_is_not_said(impostor: Impostor, pid: object) -> None:
    path = impostor(says(answer({"statename": "RUNNING", "pid": pid})))

    assert Supervisor(path=path, timeout=DEADLINE).status("clojars").pid is None


def test_a_fault_drives_no_terminal(impostor: Impostor) -> None:
    fault = xmlrpc.client.Fault(30, "FAILED:\x9b31m\u202e\nno\twords")

    services = Supervisor(path=impostor(says(answer(fault))), timeout=DEADLINE)

    found = services.status("clojars")
    assert (found.state, found.pid) == ("unknown", None)
    assert "FAILED" in found.said
    for request_ in REQUESTS:
        with pytest.raises(ServiceFailed, match="FAILED"):
            getattr(services, request_)("clojars")


def test_who_accepts_and_never_answers_reaches_the_time_limit(impostor: Impostor) -> None:
    services = Supervisor(path=impostor(waits_for_the_end), timeout=SHORT)

    started = time.monotonic()

    assert_that_all_fail(services, f"no answer within {SHORT} s")
    assert time.monotonic() - started < DEADLINE


def test_the_time_limit_is_for_the_whole_call(impostor: Impostor) -> None:
    def dribbles(connection: socket.socket, _request: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n")
        connection.settimeout(SHORT / 5)
        while True:
            connection.sendall(b" ")
            with suppress(TimeoutError):
                if not connection.recv(1):
                    return

    services = Supervisor(path=impostor(dribbles), timeout=SHORT)

    assert services.status("clojars") == Job(
        "unknown", None, f"supervisord: no answer within {SHORT} s (getProcessInfo clojars)"
    )


def test_a_queue_that_is_full_is_an_error(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(path)
        listener.listen(0)
        waiting.connect(path)

        assert_that_all_fail(Supervisor(path=path, timeout=SHORT), "supervisord")


@pytest.mark.parametrize("end", ["answer", "fault", "nonsense", "no answer"])
def test_a_call_leaves_no_connection_open(impostor: Impostor, end: str) -> None:
    handlers = {
        "answer": says(answer({"statename": "RUNNING", "pid": 3})),
        "fault": says(answer(xmlrpc.client.Fault(10, "BAD_NAME"))),
        "nonsense": says(http(b"hello")),
        "no answer": waits_for_the_end,
    }
    services = Supervisor(path=impostor(handlers[end]), timeout=SHORT)

    gc.collect()  # what other tests have left is not this one's
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with suppress(Exception):  # what it says is for the other tests
            services.status("clojars")
        gc.collect()

    assert [str(warning.message) for warning in warned] == []


# A program that comes and goes meanwhile


class Script:
    """A supervisord that gives prepared answers, and notes the calls that change something."""

    def __init__(self, *, stop: list[object], start: list[object]) -> None:
        self._answers = {"stopProcess": stop, "startProcess": start}
        self.calls: list[str] = []

    def __call__(self, connection: socket.socket, request: bytes) -> None:
        words, method = xmlrpc.client.loads(request.partition(b"\r\n\r\n")[2].decode())
        verb = str(method).removeprefix("supervisor.")
        if verb == "getProcessInfo":
            connection.sendall(answer({"statename": "STOPPED", "pid": 0}))
            return
        self.calls.append(f"{verb} {words[0]!s}")
        connection.sendall(answer(self._answers[verb].pop(0)))


STOP, START = "stopProcess clojars", "startProcess clojars"

ALREADY_STARTED = xmlrpc.client.Fault(60, "ALREADY_STARTED: clojars")
NOT_RUNNING = xmlrpc.client.Fault(70, "NOT_RUNNING: clojars")
FAILED = xmlrpc.client.Fault(30, "FAILED: no permission")


def test_a_stopped_program_that_was_started_meanwhile_is_restarted(impostor: Impostor) -> None:
    script = Script(stop=[NOT_RUNNING, True], start=[ALREADY_STARTED, True])

    Supervisor(path=impostor(script), timeout=DEADLINE).restart("clojars")

    assert script.calls == [STOP, START, STOP, START]


def test_a_running_program_that_ended_meanwhile_is_started(impostor: Impostor) -> None:
    script = Script(stop=[NOT_RUNNING], start=[ALREADY_STARTED, True])

    Supervisor(path=impostor(script), timeout=DEADLINE).start("clojars")

    assert script.calls == [START, STOP, START]


def test_a_program_that_comes_and_goes_is_not_followed_for_ever(impostor: Impostor) -> None:
    script = Script(stop=[True, True], start=[ALREADY_STARTED, ALREADY_STARTED])

    with pytest.raises(ServiceFailed, match="ALREADY_STARTED"):
        Supervisor(path=impostor(script), timeout=DEADLINE).restart("clojars")

    assert script.calls == [STOP, START, STOP, START]


def test_a_program_that_cannot_be_stopped_is_not_started(impostor: Impostor) -> None:
    script = Script(stop=[FAILED], start=[])

    with pytest.raises(ServiceFailed, match="FAILED: no permission"):
        Supervisor(path=impostor(script), timeout=DEADLINE).restart("clojars")

    assert script.calls == [STOP]


# A socket with a password


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Supervisord]:
    """A supervisord that wants a username and a password."""
    if importlib.util.find_spec("supervisor") is None:
        skip_or_fail("not installed: the Python package supervisor")
    supervisord = Supervisord(tmp_path, credentials="username=ops\npassword=secret:word\n")
    try:
        yield supervisord
    finally:
        supervisord.end()


def test_a_socket_with_a_password_is_used_with_the_configured_one(guarded: Supervisord) -> None:
    settings = {
        "manager": "supervisor", "socket": guarded.path,
        "username": "ops", "password": "secret:word",
    }  # fmt: skip
    services = services_of(parse({"services": settings}, "test"))

    wait_for(lambda: "BAD_NAME" in services.status("clojars").said, "supervisord answers")


@pytest.mark.parametrize(
    ("user", "password", "said"),
    [
        ("", "", "wants a username and password"),
        ("ops", "other", "refuses the username and password"),
        ("other", "secret:word", "refuses the username and password"),
    ],
)
def test_a_socket_that_wants_another_password_is_an_error_that_names_the_keys(
    guarded: Supervisord, user: str, password: str, said: str
) -> None:
    services = Supervisor(path=guarded.path, timeout=DEADLINE, user=user, password=password)
    wait_for(lambda: "reached" not in services.status("clojars").said, "supervisord answers")

    assert_that_all_fail(
        services,
        f"supervisord at {guarded.path} {said}: set services.username and services.password",
    )
    assert "secret" not in services.status("clojars").said


def test_check_says_what_to_do_about_each_reason_for_an_unknown_state(
    guarded: Supervisord, tmp_path: Path
) -> None:
    def remedies(**settings: str) -> dict[str, str]:
        settings = {"manager": "supervisor", "socket": guarded.path, **settings}
        host = Host(parse({"home": str(tmp_path), "services": settings}, "test"))
        site = Site(host, host.look())
        return {each.what: each.remedy for each in running.jobs(site) if each.wrong}

    password = {"username": "ops", "password": "secret:word"}
    wait_for(lambda: "BAD_NAME" in str(remedies(**password)), "supervisord answers")
    for settings, remedy in (
        ({}, "set services.username and services.password"),
        (password, "add the program to supervisord's configuration"),
        ({"socket": str(tmp_path / "none")}, "start supervisord"),
    ):
        found = remedies(**settings)
        assert len(found) == 2
        assert all(each.startswith(remedy) for each in found.values()), found


def test_a_password_is_not_on_a_command_line_that_is_shown() -> None:
    services = Supervisor(path="/s", timeout=DEADLINE, user="ops", password="secret")

    assert services.words("stop", "clojars") == [
        "supervisorctl", "-s", "unix:///s", "-u", "ops", "stop", "clojars",
    ]  # fmt: skip


# The configured service manager


def test_the_configuration_chooses_supervisor_and_its_socket(supervisord: Supervisord) -> None:
    settings = {"manager": "supervisor", "socket": supervisord.path}
    pid = supervisord.runs("clojars")

    services = services_of(parse({"services": settings}, "test"))

    assert services.status("clojars").pid == pid


# Helpers


def assert_that_all_fail(services: Supervisor, reason: str) -> None:
    """Status is unknown, every request an error, both for the reason; the log is empty."""
    found = services.status("clojars")
    assert (found.state, found.pid) == ("unknown", None)
    assert reason in found.said
    for request_ in REQUESTS:
        with pytest.raises(ServiceFailed) as failed:
            getattr(services, request_)("clojars")
        assert reason in str(failed.value)
    assert services.last_log_lines("clojars") == ""
    services.refuse_what_would_fail(["clojars"])


def prints(supervisord: Supervisord, text: bytes) -> None:
    """Lets the program `clojars` print bytes and waits until they are in its log."""
    file = supervisord.directory / "text"
    file.write_bytes(text)
    supervisord.has("clojars", f"exec cat {file}", stdout_logfile_maxbytes=0)
    supervisord.begins("clojars")
    log = supervisord.log_of("clojars")
    wait_for(lambda: log.exists() and log.stat().st_size == len(text), "all of it is in the log")


def status_with(state: str, services: Supervisor) -> Job | None:
    found = services.status("clojars")
    return found if found.said.startswith(f"clojars {state}") else None


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(condition: Callable[[], Found], what: str) -> Found:
    deadline = time.monotonic() + DEADLINE
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {DEADLINE:.0f} s: {what}"
        time.sleep(0.005)
    return found
