"""supervisord, driven by its XML-RPC over its unix socket.

Not by supervisorctl: its exit status is 0 for a program that is still starting, and for the start
of one that runs already. What counts here are state names and the faults' numbers.
"""

from __future__ import annotations

import http.client
import socket
import xmlrpc.client
from collections.abc import Iterable
from typing import Any

from deploy_clojars.services import Job, ServiceFailed, State
from deploy_clojars.shell import printable

# supervisor.xmlrpc.Faults of supervisor 4.3
ALREADY_STARTED, NOT_RUNNING = 60, 70

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

LOG_BYTES = 4096


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
        name = str(info.get("statename"))
        why = info.get("spawnerr") or info.get("description") or ""
        said = printable(f"{job} {name} {why}".strip())
        state = STATES.get(name, "unknown")
        pid = int(info.get("pid") or 0)
        return Job(state, pid if state == "running" and pid else None, said)

    def restart(self, job: str) -> None:
        # supervisord has no restart of one program.
        self.stop(job)
        self.start(job)

    def start(self, job: str) -> None:
        # It returns when the program has run for its `startsecs`, or has failed to.
        if not self._done_unless("startProcess", job, ALREADY_STARTED):
            self.stop(job)
            self._done_unless("startProcess", job, because=None)

    def stop(self, job: str) -> None:
        self._done_unless("stopProcess", job, NOT_RUNNING)

    def refusals(self, jobs: Iterable[str]) -> list[str]:
        # Whoever may use the socket may use all of it; `status` finds out.
        return []

    def last_log_lines(self, job: str) -> str:
        try:
            text = self._call("readProcessStdoutLog", job, -LOG_BYTES, 0)
        except (ServiceFailed, xmlrpc.client.Fault):
            return ""
        return "\n".join(printable(line) for line in str(text).splitlines()[-10:])

    def _done_unless(self, method: str, job: str, because: int | None) -> bool:
        """Calls a method that changes a program; False if it was refused for that fault.

        Raises ServiceFailed for every other refusal.
        """
        try:
            self._call(method, job)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode == because:
                return False
            raise ServiceFailed(_words(fault, job)) from None
        return True

    def _call(self, method: str, *words: Any) -> Any:
        """Raises ServiceFailed if supervisord cannot be asked, Fault if it refuses."""
        transport = _Transport(self._path, self._timeout)
        try:
            with xmlrpc.client.ServerProxy("http://supervisor", transport=transport) as server:
                return getattr(server.supervisor, method)(*words)
        except TimeoutError:
            raise ServiceFailed(f"supervisord: no answer within {self._timeout:g} s") from None
        except OSError as error:
            raise ServiceFailed(
                f"supervisord cannot be reached at {self._path}: {error.strerror or error}"
            ) from None
        except (http.client.HTTPException, xmlrpc.client.ProtocolError, ValueError) as error:
            raise ServiceFailed(f"{self._path}: that is no supervisord: {error!r}") from None


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class _Transport(xmlrpc.client.Transport):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__()
        self._path = path
        self._seconds = timeout

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        return _Connection(self._path, self._seconds)


def _words(fault: xmlrpc.client.Fault, job: str) -> str:
    return f"{job}: {printable(fault.faultString)} (supervisord's fault {fault.faultCode})"
