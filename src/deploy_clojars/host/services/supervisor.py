"""supervisord, driven by its XML-RPC over its unix socket.

Not by supervisorctl: its exit status is 0 for a program that is still starting, and for the start
of one that runs already. What counts here are state names and the faults' numbers.
"""

from __future__ import annotations

import http.client
import os
import socket
import time
import xmlrpc.client
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploy_clojars.host.services import Job, ServiceFailed, State
from deploy_clojars.machine import signals
from deploy_clojars.machine.shell import last_lines

LONGEST_SOCKET = 107

# supervisor.xmlrpc.Faults of supervisor 4.3
ALREADY_STARTED, NOT_RUNNING = 60, 70
DIED_AT_ONCE = (40, 50)  # ABNORMAL_TERMINATION, SPAWN_ERROR: the reason is in the state

# supervisor.states.ProcessStates of supervisor 4.3. BACKOFF waits to be started once more; EXITED
# and FATAL are not started again.
STATES: dict[str, State] = {
    "RUNNING": "running",
    "STARTING": "starting",
    "BACKOFF": "starting",
    "STOPPING": "stopping",
    "STOPPED": "stopped",
    "EXITED": "stopped",
    "FATAL": "stopped",
}


class Supervisor:
    """The supervisord that listens on `path`; `timeout` is in seconds, for one call."""

    def __init__(self, *, path: str, timeout: float) -> None:
        self._path = path
        self._timeout = timeout

    def status(self, job: str) -> Job:
        try:
            info = self._call("getProcessInfo", job)
        except ServiceFailed as error:
            return Job("unknown", said=str(error))
        except xmlrpc.client.Fault as fault:
            return Job("unknown", said=_words(fault, job))
        if not isinstance(info, dict):
            return Job("unknown", said=f"{job}: {info!r} is no state")
        name = str(info.get("statename"))
        why = info.get("spawnerr") or info.get("description") or ""
        said = f"{job} {name} {why}".strip()
        state = STATES.get(name, "unknown")
        pid = info.get("pid")
        runs = state == "running" and isinstance(pid, int) and pid > 0
        return Job(state, pid if runs else None, said)

    def restart(self, job: str) -> None:
        # supervisord has no restart of one program.
        self.stop(job)
        self.start(job)

    def start(self, job: str) -> None:
        # It returns when the program has run for its `startsecs`, or has failed to.
        self._wait_while_it_stops(job)
        if not self._done_unless("startProcess", job, ALREADY_STARTED):
            self.stop(job)
            self._done_unless("startProcess", job, because=None)

    def stop(self, job: str) -> None:
        # A program that is being stopped counts as not running, and lives.
        if not self._done_unless("stopProcess", job, NOT_RUNNING):
            self._wait_while_it_stops(job)

    def _wait_while_it_stops(self, job: str) -> None:
        deadline = time.monotonic() + self._timeout
        while (found := self.status(job)).state == "stopping":
            if time.monotonic() > deadline:
                raise ServiceFailed(f"{found.said}: not stopped within {self._timeout:g} s")
            signals.wait(0.1)

    def refusals(self, jobs: Iterable[str]) -> list[str]:
        # Whoever may use the socket may use all of it; `status` finds out.
        return []

    def words(self, verb: str, job: str) -> list[str]:
        return ["supervisorctl", "-s", f"unix://{self._path}", verb, job]

    def last_log_lines(self, job: str) -> str:
        # The file itself: supervisord puts a log into XML as it is, and a log need not be text.
        try:
            info = self._call("getProcessInfo", job)
            return last_lines(Path(info["stdout_logfile"]), lines=10)
        except (ServiceFailed, xmlrpc.client.Fault, LookupError, TypeError):
            return ""

    def _done_unless(self, method: str, job: str, because: int | None) -> bool:
        """Calls a method that changes a program; False if it was refused for that fault.

        Raises ServiceFailed for every other refusal.
        """
        try:
            self._call(method, job)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode == because:
                return False
            why = self.status(job).said if fault.faultCode in DIED_AT_ONCE else ""
            raise ServiceFailed(", ".join(filter(None, (_words(fault, job), why)))) from None
        return True

    def _call(self, method: str, *words: Any) -> Any:
        """Raises ServiceFailed if supervisord cannot be asked, Fault if it refuses."""
        transport = _Transport(self._path, self._timeout)
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
            ) from None
        except xmlrpc.client.Fault:
            raise
        except Exception as error:  # noqa: BLE001 # what others answer breaks the parser in many ways
            raise ServiceFailed(
                f"{self._path}: that is no supervisord's answer: {error!r}"
            ) from None


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = _Socket(socket.AF_UNIX, socket.SOCK_STREAM)
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


class _Socket(socket.socket):
    """A socket whose time limit is for all that is received, not for each part of it."""

    deadline = 0.0

    def recv_into(self, *words: Any) -> int:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.settimeout(left)
        return super().recv_into(*words)


class _Transport(xmlrpc.client.Transport):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__()
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


def _words(fault: xmlrpc.client.Fault, job: str) -> str:
    return f"{job}: {fault.faultString} (supervisord's fault {fault.faultCode})"
