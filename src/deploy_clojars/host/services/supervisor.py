"""supervisord, driven by its XML-RPC over its unix socket.

Not by supervisorctl: its exit status is 0 for a program that is still starting, and for the start
of one that runs already. What counts here are state names and the faults' numbers.

A program in STARTING runs like any other: supervisord only waits for its `startsecs` before it
believes in it, and these may be longer than every time limit of this tool, which has its own way
to find out whether an instance is well.
"""

from __future__ import annotations

import base64
import errno
import http.client
import os
import signal
import socket
import time
import xmlrpc.client
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from deploy_clojars.errors import NotReady
from deploy_clojars.host.services import Job, ServiceFailed, State, wait_while_it_stops
from deploy_clojars.machine import processes
from deploy_clojars.machine.shell import last_lines
from deploy_clojars.machine.sockets import Socket

LONGEST_SOCKET = 107

# supervisor.xmlrpc.Faults of supervisor 4.3
ALREADY_STARTED, NOT_RUNNING = 60, 70
DIED_AT_ONCE = 50  # SPAWN_ERROR: the reason is in the state
BAD_NAME = 10

UNAUTHORIZED = 401

# What to do where a program's state is unknown.
SET_PASSWORD = "set services.username and services.password as in its [unix_http_server]"
ADD = "add the program to supervisord's configuration, or set the instance's `job` to the program's name"

# supervisor.states.ProcessStates of supervisor 4.3. BACKOFF waits to be started once more; EXITED
# does so for a moment, and FATAL is not started again.
STATES: dict[str, State] = {
    "RUNNING": "running",
    "STARTING": "running",
    "BACKOFF": "starting",
    "STOPPING": "stopping",
    "STOPPED": "stopped",
    "EXITED": "stopped",
    "FATAL": "stopped",
}


# How long ago a program must have ended to be given up: with `autorestart` supervisord starts it
# again when it next looks, which it does every second. In seconds, which it counts as whole ones.
STARTS_AGAIN = 2


class Supervisor:
    """The supervisord that listens on `path`; `timeout` is in seconds, for one call.

    The user and the password are those of its [unix_http_server]; empty where it has none.
    """

    def __init__(self, *, path: str, timeout: float, user: str = "", password: str = "") -> None:
        self._path = path
        self._timeout = timeout
        self._user = user
        self._password = password
        self._held: dict[Path, int] = {}  # descriptors of pipes

    def status(self, job: str) -> Job:
        try:
            info = self._call("getProcessInfo", job)
        except ServiceFailed as error:
            may_ask = not isinstance(error.__cause__, PermissionError)
            return Job("unknown", said=str(error), visible=may_ask, remedy=error.remedy)
        except xmlrpc.client.Fault as fault:
            is_name = fault.faultCode == BAD_NAME
            said = _words(fault, job) + (self._names_like(job) if is_name else "")
            return Job("unknown", said=said, remedy=ADD if is_name else "")
        if not isinstance(info, dict):
            return Job("unknown", said=f"{job}: {info!r} is not a state")
        name = str(info.get("statename"))
        why = info.get("spawnerr") or info.get("description") or ""
        said = f"{job} {name} {why}".strip()
        state = STATES.get(name, "unknown")
        if name == "EXITED" and _has_just_ended(info):
            state = "starting"
        pid = info.get("pid")
        runs = state == "running" and isinstance(pid, int) and pid > 0
        return Job(state, pid if runs else None, said)

    def restart(self, job: str) -> None:
        # supervisord has no restart of one program.
        self.stop(job)
        self.start(job)

    def _names_like(self, job: str) -> str:
        """What the program may be called: in a group it has the group's name before its own."""
        try:
            programs = self._call("getAllProcessInfo")
            names = [f"{each['group']}:{each['name']}" for each in programs]
        except (ServiceFailed, xmlrpc.client.Fault, LookupError, TypeError):
            return ""
        like = [name for name in names if job in name.split(":")]
        return f"; it has {', '.join(like)}" if like else ""

    def start(self, job: str) -> None:
        wait_while_it_stops(self, job, self._timeout)
        if not self._done_unless("startProcess", job, ALREADY_STARTED):
            self.stop(job)
            self._done_unless("startProcess", job, because=None)

    def stop(self, job: str) -> None:
        self._hold_pipes(job)
        try:
            # A program that is being stopped counts as not running, and lives.
            if self._done_unless("stopProcess", job, NOT_RUNNING):
                return
        except ServiceFailed:
            if self.status(job).state != "stopping":
                raise
        wait_while_it_stops(self, job, self._timeout)

    def _hold_pipes(self, job: str) -> None:
        """Keeps the pipes open that the program logs to, as long as this process lives.

        What reads one ends when its last writer does. supervisord, which starts a program that dies
        again and again, would then wait for another reader and answer nobody.
        """
        for log in self._logs(job):
            if log.is_fifo() and log not in self._held:
                with suppress(OSError):  # it has no reader
                    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC
                    self._held[log] = os.open(log, flags)

    def read_changes(self) -> None:
        """Not needed."""

    def refuse_what_would_fail(self, jobs: Iterable[str]) -> None:
        # Whoever may use the socket may use all of it; `status` finds out.
        for job in jobs:
            for log in self._logs(job):
                if _has_no_reader(log):
                    raise NotReady(
                        f"nobody reads the pipe {log}, the log of {job}: supervisord would wait for "
                        "a reader and answer nobody",
                        remedy="first start what reads it",
                    )
            self._refuse_what_would_live_on(job)

    def _refuse_what_would_live_on(self, job: str) -> None:
        """A shell that runs the application without `exec` is all that a stop ends. Raises NotReady."""
        settings = self._settings(job)
        pid = self.status(job).pid
        # supervisord does not report stopasgroup; killasgroup is true wherever that is.
        if pid is None or settings.get("killasgroup", True):
            return
        left = processes.left_listening(pid, settings.get("stopsignal", signal.SIGTERM))
        if left:
            raise NotReady(
                f"supervisord stops only the main process of {job} (PID {pid}, "
                f"{processes.command_of(pid)}), which does not pass the signal on: PID {left[0]} "
                "would survive a restart and keep its ports",
                remedy="start the application with `exec` in that command, or set "
                "stopasgroup and killasgroup to true in the program's section; then restart the "
                "program by hand and end the processes that it leaves",
            )

    def _settings(self, job: str) -> dict[str, Any]:
        """What supervisord reports of a program's section; empty if it reports nothing."""
        try:
            programs = self._call("getAllConfigInfo")
            names = {(each["group"], each["name"]): each for each in programs}
        except (ServiceFailed, xmlrpc.client.Fault, LookupError, TypeError):
            return {}
        group, _, name = job.rpartition(":")
        found: dict[str, Any] = names.get((group or name, name), {})
        return found

    def words(self, verb: str, job: str) -> list[str]:
        user = ["-u", self._user] if self._user else []  # it asks for the password
        return ["supervisorctl", "-s", f"unix://{self._path}", *user, verb, job]

    def last_log_lines(self, job: str) -> str:
        # The files themselves: supervisord puts a log into XML as it is, and a log need not be
        # text. Nor need it be a file: a pipe would be waited for.
        texts = (last_lines(log, lines=10) for log in self._logs(job) if log.is_file())
        return "\n".join(filter(None, texts))

    def _logs(self, job: str) -> list[Path]:
        """Where what the program prints goes: one place or two, or none."""
        try:
            info = self._call("getProcessInfo", job)
            names = [info["stdout_logfile"], info["stderr_logfile"]]
            return [Path(name) for name in dict.fromkeys(names) if name.startswith("/")]
        except (ServiceFailed, xmlrpc.client.Fault, LookupError, TypeError, AttributeError):
            return []

    def _done_unless(self, method: str, job: str, because: int | None) -> bool:
        """Calls a method that changes a program; False if it was refused for that fault.

        Raises ServiceFailed for every other refusal.
        """
        # Not waited for: whether it comes up well is for the health checks to find out.
        waits = () if method == "stopProcess" else (False,)
        try:
            self._call(method, job, *waits)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode == because:
                return False
            why = self.status(job).said if fault.faultCode == DIED_AT_ONCE else ""
            raise ServiceFailed(", ".join(filter(None, (_words(fault, job), why)))) from None
        return True

    def _call(self, method: str, *words: Any) -> Any:
        """Raises ServiceFailed if supervisord cannot be asked, Fault if it refuses."""
        transport = _Transport(self._path, self._timeout, self._user, self._password)
        try:
            return self._ask(transport, method, *words)
        finally:
            transport.close()

    def _ask(self, transport: _Transport, method: str, *words: Any) -> Any:
        try:
            with xmlrpc.client.ServerProxy("http://supervisor", transport=transport) as server:
                return getattr(server.supervisor, method)(*words)
        except TimeoutError:
            request = " ".join(map(str, (method, *words)))
            raise ServiceFailed(
                f"supervisord: no answer within {self._timeout:g} s ({request})"
            ) from None
        except OSError as error:
            raise ServiceFailed(
                f"supervisord cannot be reached at {self._path}: {error.strerror or error}"
            ) from error
        except xmlrpc.client.Fault:
            raise
        except xmlrpc.client.ProtocolError as error:
            if error.errcode == UNAUTHORIZED:
                wants = (
                    "refuses the username and password"
                    if self._user
                    else "wants a username and password"
                )
                raise ServiceFailed(f"supervisord at {self._path} {wants}", SET_PASSWORD) from None
            raise self._is_not_supervisord(error) from None
        except Exception as error:  # noqa: BLE001 # what others answer breaks the parser in many ways
            raise self._is_not_supervisord(error) from None

    def _is_not_supervisord(self, error: Exception) -> ServiceFailed:
        return ServiceFailed(f"{self._path}: not an answer of supervisord: {error!r}")


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = Socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.deadline = time.monotonic() + (self.timeout or 0)
        self.sock.settimeout(self.timeout)
        with _short(self._path) as path:
            self.sock.connect(path)


@contextmanager
def _short(path: str) -> Iterator[str]:
    """A name of the socket that fits into the 107 bytes that the kernel takes (unix(7))."""
    if len(os.fsencode(path)) <= LONGEST_SOCKET:
        yield path
        return
    directory, _, name = path.rpartition("/")
    descriptor = os.open(directory or "/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{name}"
    finally:
        os.close(descriptor)


class _Transport(xmlrpc.client.Transport):
    def __init__(self, path: str, timeout: float, user: str, password: str) -> None:
        token = base64.b64encode(f"{user}:{password}".encode()).decode()
        super().__init__(headers=[("Authorization", f"Basic {token}")] if user else [])
        self._path = path
        self._seconds = timeout
        self._made: list[_Connection] = []

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        self._made.append(_Connection(self._path, self._seconds))
        return self._made[-1]

    def close(self) -> None:
        """Closes what was made; ServerProxy closes only what it keeps itself."""
        for connection in self._made:
            connection.close()


def _has_no_reader(log: Path) -> bool:
    """Whether it is a pipe that nobody reads; to open it would block (fifo(7))."""
    if not log.is_fifo():
        return False
    try:
        os.close(os.open(log, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.ENXIO
    return False


def _has_just_ended(info: dict[str, Any]) -> bool:
    now, stop = info.get("now"), info.get("stop")
    return isinstance(now, int) and isinstance(stop, int) and now - stop <= STARTS_AGAIN


def _words(fault: xmlrpc.client.Fault, job: str) -> str:
    return f"{job}: {fault.faultString} (supervisord's fault {fault.faultCode})"
