"""systemd, driven through systemctl.

Its exit status proves little (0 for the start of a program that dies at once), so what counts is
what `systemctl show` says.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from deploy_clojars.errors import NotReady, reason
from deploy_clojars.host.services import Job, ServiceFailed, State, sudo, wait_while_it_stops
from deploy_clojars.host.services.user_manager import runtime_directory, without_one
from deploy_clojars.host.users import user_name
from deploy_clojars.machine.shell import TookTooLong, capture

PROPERTIES = (
    "LoadState", "ActiveState", "SubState", "MainPID", "InvocationID", "Result", "Job",
    "TriggeredBy",
)  # fmt: skip

# `show` needs no rights, only a connection to process 1, or to the user's own manager.
NO_BUS = "Failed to connect to bus"

OVERTAKEN = "canceled"  # by somebody else's request
NOT_LOADED = "not loaded"  # the unit has no failed start to be forgotten

# Of a unit that is started again and again: systemd itself has five lines for each start.
LOG_LINES, STARTS = 20, 3


def unit_of(job: str) -> str:
    """The unit of a job: `clojars` is `clojars.service`."""
    return job if job.endswith(".service") else f"{job}.service"


def parse_show(text: str) -> dict[str, str]:
    """Reads what `systemctl show` prints for one unit: lines `A=value`, in its own order."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals:  # one with several values has several lines
            found[key] = f"{found[key]}\n{value}" if key in found else value
    return found


def parse_shows(text: str) -> list[dict[str, str]]:
    """Reads what `systemctl show` prints for several units: an empty line parts them."""
    return [parse_show(each) for each in text.strip("\n").split("\n\n")]


def job_of(unit: str, shown: Mapping[str, str]) -> Job:
    """What the properties of a unit say about it."""
    load, active, sub = (shown.get(each, "") for each in ("LoadState", "ActiveState", "SubState"))
    result = shown.get("Result", "")
    said = f"{unit} {active} ({sub})" + (f": {result}" if active == "failed" else "")
    pid = int(shown.get("MainPID", "0"))
    if active in ("active", "reloading") and pid:
        obstacle = "" if load == "loaded" else f"{unit} runs, but its file is now: {load}"
        return Job("running", pid, f"{said}, PID {pid}", obstacle=obstacle)
    if load != "loaded":
        return Job("unknown", said=f"{unit}: {load or 'no answer'}")
    states: dict[str, State] = {
        "activating": "starting",
        "deactivating": "stopping",
        # A start that waits for another unit is a job and not yet a state.
        "inactive": "starting" if shown.get("Job", "") not in ("", "0") else "stopped",
        "failed": "stopped",
    }
    return Job(states.get(active, "unknown"), said=said)


def sockets_of(shown: Mapping[str, str]) -> list[str]:
    """The socket units that start a service."""
    return [each for each in shown.get("TriggeredBy", "").split() if each.endswith(".socket")]


def why_no_sockets(unit: str, sockets: Sequence[str]) -> str:
    """Why a service that sockets start cannot be deployed to."""
    return (
        f"{unit} is started by {', '.join(sockets)}, which listens while the service is stopped: "
        "a health check would start it, and it never owns the port alone"
    )


class Systemd:
    """The systemctl in the directory `bin`, of the system or of the own manager of `user`.

    `timeout` is in seconds, for one call.
    """

    def __init__(self, *, bin: str, sudo: bool, timeout: float, user: int | None = None) -> None:
        self._program = [f"{bin}/systemctl", *(["--user"] if user is not None else [])]
        self._sudo = sudo and user is None
        self._timeout = timeout
        self._user = user
        # Of the starts that were seen since the last request: systemd forgets that of a unit that
        # nothing refers to, and one that is started again and again has a new one each time.
        self._invocations: dict[str, list[str]] = {}

    @property
    def of_user(self) -> bool:
        """Whether it is a user's own manager."""
        return self._user is not None

    def status(self, job: str) -> Job:
        try:
            [shown] = self.show(PROPERTIES, job)
        except ServiceFailed as error:
            return self._unknown(str(error))
        invocation, seen = shown.get("InvocationID"), self._invocations.setdefault(job, [])
        if invocation and invocation not in seen:
            seen.append(invocation)
        found = job_of(unit_of(job), shown)
        return replace(found, remedy=self._remedy(job, shown.get("LoadState", "")))

    def _unknown(self, said: str) -> Job:
        """A job of which systemd says nothing."""
        may_ask = self._user in (None, os.geteuid())
        if self._user is not None and may_ask and NO_BUS in said:
            said, remedy = without_one(self._user, said)
            return Job("unknown", said=f"{said}; {remedy}", remedy=remedy)
        visible = may_ask and NO_BUS not in said
        remedy = self._wrong_bin or f"see: {self.typed('status')}"
        return Job("unknown", said=said, visible=visible, remedy=remedy)

    @property
    def _wrong_bin(self) -> str:
        """What to do about a `services.bin` without systemctl; empty if it is there."""
        is_there = os.path.exists(self._program[0])
        return "" if is_there else "set services.bin to the directory that has systemctl"

    def _remedy(self, job: str, load: str) -> str:
        """What to do about a unit's file that systemd does not take."""
        unit = unit_of(job)
        if load in ("loaded", "not-found"):  # for the latter, what to do depends on who wants it
            return ""
        if load == "masked":
            return self.typed("unmask", unit)
        see = f"{self.typed('status', unit)} says what is wrong with its file"
        return f"{see}; once it is fixed: {self.typed('daemon-reload')}"

    def typed(self, verb: str, *words: str) -> str:
        """What to type for a command of systemctl; all but `status` is for root, or for the user's own."""
        by_root = verb != "status" and not self.of_user and os.geteuid() != 0
        return f"{'as root: ' * by_root}{shlex.join([*self.words_typed, verb, *words])}"

    @property
    def words_typed(self) -> list[str]:
        """`systemctl` as a person types it."""
        return [*self._where, "systemctl", *(["--user"] * self.of_user)]

    def journal_of(self, job: str) -> str:
        """The command that shows what a job has logged."""
        unit = unit_of(job)
        # Not `--user -u`: that leaves out the system's journal, where without /var/log/journal all is.
        return f"journalctl {f'_SYSTEMD_USER_UNIT={unit}' if self.of_user else f'-u {unit}'}"

    def restart(self, job: str) -> None:
        self._forget_failed_starts(job)
        self._do("restart", job)

    def read_changes(self) -> None:
        # Not only if NeedDaemonReload says so: it does not for the first drop-in of a unit.
        self._call(["daemon-reload"])

    def start(self, job: str) -> None:
        self.read_changes()
        if self.status(job).state == "running":
            self.restart(job)
            return
        self._forget_failed_starts(job)
        self._do("start", job)

    def stop(self, job: str) -> None:
        self._do("stop", job)
        wait_while_it_stops(self, job, self._timeout)

    def refuse_what_would_fail(self, jobs: Iterable[str]) -> None:
        jobs = [*jobs]
        if self._sudo:
            if self._wrong_bin:  # before sudo refuses it, with a remedy that does not help
                raise NotReady(f"{self._program[0]} does not exist", remedy=self._wrong_bin)
            verbs = ("restart", "start", "stop", "reset-failed")
            commands = [[*self._program, verb, unit_of(job)] for job in jobs for verb in verbs]
            commands.append([*self._program, "daemon-reload"])
            sudo.refuse_what_it_refuses(commands, self._timeout)
        for job in jobs:
            self._refuse_socket_activation(job)

    def _refuse_socket_activation(self, job: str) -> None:
        try:
            [shown] = self.show(PROPERTIES, job)
        except ServiceFailed:
            return  # its state is unknown, which is refused with the reason
        sockets = sockets_of(shown)
        if sockets:
            raise NotReady(
                why_no_sockets(unit_of(job), sockets),
                remedy="have the application open its port itself\n"
                + self.typed("disable", "--now", *sockets),
            )

    def words(self, verb: str, job: str) -> list[str]:
        return [*self._where, *self._with_rights([verb, unit_of(job)])]

    def last_log_lines(self, job: str) -> str:
        self.status(job)  # a start that failed at once was not looked at
        invocations = self._invocations.get(job, [])[-STARTS:]
        if not invocations:
            return ""
        # Of what the application prints, and of what systemd says about it.
        names = (
            "_SYSTEMD_INVOCATION_ID",
            "USER_INVOCATION_ID" if self.of_user else "INVOCATION_ID",
        )
        fields = " + ".join(f"{name}={each}" for each in invocations for name in names).split()
        words = ["journalctl", "--quiet", "--no-pager", "--output=cat", f"--lines={LOG_LINES}"]
        try:
            answer = capture([*words, *fields], timeout=self._timeout)
        except (TookTooLong, OSError) as error:
            return f"({reason(error)})"
        if answer.out.strip():
            return answer.out.strip()
        why = answer.err.strip().splitlines()
        return f"({why[-1]} as root: {self.journal_of(job)})" if why else ""

    @property
    def _where(self) -> list[str]:
        """The words that tell systemctl where the user's own manager is, where nothing does yet."""
        if self._user is None:
            return []
        directory = runtime_directory(self._user)
        is_set = os.environ.get("XDG_RUNTIME_DIR") == directory
        return [] if is_set else ["env", f"XDG_RUNTIME_DIR={directory}"]

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, **dict(each.split("=", 1) for each in self._where[1:])}

    def _with_rights(self, words: list[str]) -> list[str]:
        return [*(["sudo", "-n"] if self._sudo else []), *self._program, *words]

    def show(self, properties: Sequence[str], *jobs: str) -> list[dict[str, str]]:
        """These properties of the jobs' units, asked in one call. Raises ServiceFailed."""
        if self._user not in (None, os.geteuid()):
            raise ServiceFailed(f"only {user_name(self._user)} can ask their own systemd")
        units = [unit_of(job) for job in jobs]
        words = [*self._program, "show", "--property", ",".join(properties), *units]
        try:
            answer = capture(words, timeout=self._timeout, env=self._environment)
        except TookTooLong as error:
            raise ServiceFailed(f"systemctl show {' '.join(units)}: {error}") from None
        except OSError as error:
            raise ServiceFailed(f"{words[0]}: {error.strerror}") from None
        if answer.status != 0:
            raise ServiceFailed(_one_line(answer.err, answer.status))
        return parse_shows(answer.out)

    def _forget_failed_starts(self, job: str) -> None:
        """Each start counts: the sixth in ten seconds would stop what runs."""
        self._invocations.pop(job, None)
        self._call(["reset-failed", unit_of(job)], but=NOT_LOADED)

    def _do(self, verb: str, job: str) -> None:
        """Has systemd start, restart or stop a unit. Raises ServiceFailed."""
        for again in (True, False):
            try:
                if self._call([verb, unit_of(job)], but=OVERTAKEN if again else ""):
                    return
            except TookTooLong:
                # systemd goes on with the request: ending the client does not cancel it.
                wait_while_it_stops(self, job, self._timeout)
                if verb == "stop" or self.status(job).state in ("starting", "running"):
                    return  # whether it comes up is for the health checks to find out
                raise ServiceFailed(
                    f"{verb} {unit_of(job)}: no answer within {self._timeout:g} s"
                ) from None

    def _call(self, words: list[str], but: str = "") -> bool:
        """Runs systemctl; False if it fails and says `but`.

        Raises ServiceFailed for every other failure, and TookTooLong.
        """
        try:
            answer = capture(self._with_rights(words), timeout=self._timeout, env=self._environment)
        except OSError as error:
            raise ServiceFailed(f"{error.filename or words[0]}: {error.strerror}") from None
        if answer.status == 0:
            return True
        if but and but in answer.err:
            return False
        raise ServiceFailed(_one_line(answer.err, answer.status))


def _one_line(said: str, status: int) -> str:
    """The first line; the rest says where to read more."""
    return next(iter(said.strip().splitlines()), f"exit status {status}, no message")
