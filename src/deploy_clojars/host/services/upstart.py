"""Upstart 1.13, driven through its four programs.

Their exit status proves little (0 for a stopped job's status, 0 for a restart whose program died
at once), so what counts is what they print.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from deploy_clojars.host.services import Job, ServiceFailed, State, sudo, wait_while_it_stops
from deploy_clojars.machine.shell import Answer, TookTooLong, capture, last_lines

# Where Upstart writes what a job prints (`console log`); root alone may read it by default.
LOGS = Path("/var/log/upstart")

STATUS_LINE = re.compile(
    r"^(?P<job>\S+)(?: \((?P<instance>[^)]*)\))? "
    r"(?P<goal>start|stop|respawn)/(?P<state>[a-z-]+),?"
    r"(?: \([a-z-]+\))?(?: ?process (?P<pid>\d+))?$"
)

# An answer that only says that the job is not in the state the command needs.
IS_STOPPED = "Unknown instance"
IS_BEING_STOPPED = "Job has already been stopped"
RUNS_ALREADY = "Job is already running"
UNKNOWN_JOB = "Unknown job"
# Of `stop`: the job has stopped, and its file is broken or gone.
NO_LONGER_KNOWN = 'Method "Get" with signature'

NO_BUS = "Unable to connect to system bus"


def parse_status(text: str, job: str) -> Job:
    """Reads what `status` prints: `clojars start/running, process 3`.

    Lines that start with a tab (of a post-start process) may follow. Only `start/running` is
    running; a job on its way has no PID here, for the process may be its pre-start script's.
    """
    lines = [line for line in text.splitlines() if line and not line.startswith("\t")]
    match = STATUS_LINE.match(lines[0]) if lines else None
    if match is None or match["job"] != job:
        return Job("unknown", said=text.strip() or "no answer")
    goal, state = match["goal"], match["state"]
    if (goal, state) == ("start", "running") and match["pid"]:
        return Job("running", int(match["pid"]), lines[0])
    if (goal, state) == ("stop", "waiting"):
        return Job("stopped", said=lines[0])
    on_its_way: State = "stopping" if goal == "stop" else "starting"
    return Job(on_its_way, said=lines[0])


class Upstart:
    """Upstart's programs in the directory `bin`; `timeout` is in seconds, for one call."""

    def __init__(self, *, bin: str, sudo: bool, timeout: float, logs: Path | None = None) -> None:
        self._bin = bin
        self._sudo = sudo
        self._timeout = timeout
        self._logs = logs or LOGS

    def status(self, job: str) -> Job:
        try:
            answer = capture([f"{self._bin}/status", job], timeout=self._timeout)
            if self._sudo and NO_BUS in answer.err:
                answer = self._status_by_root(job) or answer
        except TookTooLong as error:
            return Job("unknown", said=f"status {job}: {error}")
        except OSError as error:
            return Job("unknown", said=f"{self._bin}/status: {error.strerror}")
        if answer.status != 0:
            said = _one_line(answer, "status")
            return Job("unknown", said=said, visible=NO_BUS not in answer.err)
        return parse_status(answer.out, job)

    def _status_by_root(self, job: str) -> Answer | None:
        """Without D-Bus only root can ask; None if this user may not become root for it."""
        with suppress(TookTooLong, OSError):
            words = ["sudo", "-n", f"{self._bin}/status", job]
            answer = capture(words, timeout=self._timeout)
            return answer if answer.status == 0 else None
        return None

    def restart(self, job: str) -> None:
        # `restart` of a stopped job fails, and so does `start` of a running one.
        if not self._done_unless("restart", job, IS_STOPPED, IS_BEING_STOPPED):
            self.start(job)

    def start(self, job: str) -> None:
        # Of a job that is being stopped it waits for the end.
        if not self._done_unless("start", job, RUNS_ALREADY):
            self._done_unless("restart", job)

    def stop(self, job: str) -> None:
        if not self._done_unless("stop", job, IS_STOPPED, IS_BEING_STOPPED, NO_LONGER_KNOWN):
            wait_while_it_stops(self, job, self._timeout)

    def read_job_files_again(self, jobs: Iterable[str]) -> list[str]:
        """Has Upstart read its job files again if it does not know one of the jobs; root's to ask.

        Returns those that it does not know then: their files are broken or not there.
        """
        jobs = [*jobs]
        if self._unknown(jobs):
            with suppress(TookTooLong, OSError):
                capture([f"{self._bin}/initctl", "reload-configuration"], timeout=self._timeout)
        return self._unknown(jobs)

    def _unknown(self, jobs: Iterable[str]) -> list[str]:
        return [job for job in jobs if UNKNOWN_JOB in self.status(job).said]

    def read_changes(self) -> None:
        """Not needed."""

    def refuse_what_would_fail(self, jobs: Iterable[str]) -> None:
        if self._sudo:
            verbs = ("restart", "start", "stop")
            commands = [[f"{self._bin}/{verb}", job] for job in jobs for verb in verbs]
            sudo.refuse_what_it_refuses(commands, self._timeout)

    def words(self, verb: str, job: str) -> list[str]:
        sudo = ["sudo", "-n"] if self._sudo else []
        return [*sudo, f"{self._bin}/{verb}", job]

    def last_log_lines(self, job: str) -> str:
        log = self._logs / f"{job}.log"
        if log.exists() and not os.access(log, os.R_OK):
            return f"(root can read it: {log})"
        return last_lines(log, lines=10)

    def _done_unless(self, verb: str, job: str, *because: str) -> bool:
        """Runs `verb` and returns True; False if it was refused for a reason in `because`.

        False, too, if a stop takes longer than the time limit. Raises ServiceFailed for every other
        refusal.
        """
        try:
            answer = capture(self.words(verb, job), timeout=self._timeout)
        except TookTooLong:
            # Upstart goes on with the request: ending the client does not cancel it.
            state = self.status(job).state
            if verb == "stop" and state == "stopping":
                return False
            if verb != "stop" and state == "starting":
                return True  # whether it comes up is for the health checks to find out
            raise ServiceFailed(f"{verb} {job}: no answer within {self._timeout:g} s") from None
        except OSError as error:
            raise ServiceFailed(f"{error.filename or verb}: {error.strerror}") from None
        said = _one_line(answer, verb)
        if answer.status == 0:
            if verb != "stop" and parse_status(answer.out, job).state in ("stopped", "stopping"):
                raise ServiceFailed(said)  # another's stop has overtaken it
            return True
        if any(words in said for words in because):
            return False
        raise ServiceFailed(said)


def _one_line(answer: Answer, verb: str) -> str:
    """What the program said; sudo may have remarked something before."""
    lines = (answer.err.strip() or answer.out.strip()).splitlines()
    own = [line for line in lines if line.startswith(f"{verb}: ")]
    said = next(iter([*own, *lines]), f"exit status {answer.status}, no message")
    return said
