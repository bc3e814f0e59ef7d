"""Class data: an archive of the release's classes; a JVM that starts with it need not load and verify them again.

The running backup makes it while the operator reads the question or, with `--yes`, after the promotion. A
failure is only logged. The JVM is told through its own socket, as by `jcmd PID VM.cds dynamic_dump FILE`: the
jcmd of Java 17.0.15 looks for the socket of a unit with PrivateTmp= in the wrong /tmp, and a plain runtime has
no jcmd. With -XX:+AutoCreateSharedArchive (Java 19) or an AOT cache (24), each stop would wait for the writing.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import psutil
from rich.filesize import decimal

from deploy_clojars.errors import DeployError
from deploy_clojars.host.health import Observation
from deploy_clojars.host.releases import Releases
from deploy_clojars.machine import processes, signals
from deploy_clojars.run.run import Run

# With the first option a JVM can make an archive, with the second it uses one; the script `java` of `setup` chooses.
RECORDS = "-XX:+RecordDynamicDumpInfo"
USES = "-XX:SharedArchiveFile="

SECONDS = 60.0  # for a large application on a busy host
TICK = 0.05  # seconds between two checks whether it is made


@contextmanager
def made_meanwhile(run: Run, backup: Observation) -> Iterator[None]:
    """While the block runs, the backup makes the archive of the release that it runs.

    If the block succeeds, waits until the archive is made, which it usually is by then: meanwhile the JVM
    answers no request for half a second or more, and the next health check would find that it has failed.
    Raises Interrupted.
    """
    making = threading.Thread(target=_try_to_make, args=(run, backup.pid), daemon=True)
    if backup.pid is not None and run.host.config.jvm.class_data:
        with suppress(RuntimeError):  # the limit on the user's processes is reached
            making.start()
    yield
    while making.is_alive():
        signals.wait(TICK)


def make_unless_asked(run: Run, backup: Observation) -> None:
    """Has the archive made now that the primary serves, if nobody was asked."""
    if run.request.yes:
        noted = partial(run.console.warn, "signal noted; finishing the class data")
        with signals.uninterruptible(noted), made_meanwhile(run, backup):
            pass


def _try_to_make(run: Run, pid: int) -> None:
    started = time.monotonic()
    try:
        if RECORDS not in psutil.Process(pid).cmdline():
            return
        size = make(run.host.releases, run.version, pid)
        said = f"{decimal(size)} in {time.monotonic() - started:.1f} s"
    except (DeployError, OSError, psutil.Error) as error:
        said = f"not made: {error}"
    with suppress(OSError, ValueError):  # the run may have ended meanwhile
        run.console.log.write(f"class data of {run.version}: {said}\n".encode())


def make(releases: Releases, version: str, pid: int) -> int:
    """Has a JVM make the archive of the release that it runs; returns its size in bytes.

    Raises DeployError or OSError if no archive was added.
    """
    java = Path(f"/proc/{pid}/exe")
    with releases.class_data_added(version, java) as archive:
        answer = _told(pid, f"VM.cds dynamic_dump {archive}")
        # What a JVM leaves behind when it dies halfway looks like an archive.
        tree = processes.tree(pid)
        still_open = {file.identity for file in tree.files} if tree is not None else set()
        if releases.identity(version) not in still_open or not archive.exists():
            raise DeployError(answer.strip())
        return archive.stat().st_size


def _told(pid: int, command: str) -> str:
    """The JVM's answer to a command of jcmd. Raises OSError.

    The socket is in the JVM's own /tmp. The script `java` has the JVM open it at its start: opening it later
    takes a SIGQUIT, which kills a process that does not handle it.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(SECONDS)
        connection.connect(f"/proc/{pid}/root/tmp/.java_pid{pid}")
        # The protocol's version, the operation and its three arguments.
        connection.sendall(f"1\0jcmd\0{command}\0\0\0".encode())
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    return answer.decode("utf-8", "replace")


def why_none(pid: int) -> str:
    """Why an instance neither uses an archive nor can make one; empty if it does or can."""
    process = psutil.Process(pid)
    if process.name() != "java":
        return "is not a JVM"
    if not any(word == RECORDS or word.startswith(USES) for word in process.cmdline()):
        return f"was started without {RECORDS}"
    return ""
