"""Class data: an archive of the release's classes, made by the running backup while the operator reads.

A JVM that starts with it does not load and verify them again. Nothing waits for it, and what goes wrong is
only in the log. By jcmd, which Java 17 has: with -XX:+AutoCreateSharedArchive (Java 19) and with an
AOT cache (24) it is the end of an instance that writes, so that a restart waits for it.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
from rich.filesize import decimal

from deploy_clojars.errors import DeployError
from deploy_clojars.host.health import Observation
from deploy_clojars.machine import processes
from deploy_clojars.machine.shell import capture
from deploy_clojars.run.run import Run

RECORDS = "-XX:+RecordDynamicDumpInfo"  # the option with which a JVM can make the archive

SECONDS = 60.0  # for a large application on a busy host; the operator may read that long


def make_while_asking(run: Run, backup: Observation) -> None:
    """Begins to make the archive of the release that the backup runs, and returns at once.

    Not without a question: the next to come are then the users' requests, and while it makes
    the archive the JVM answers none, for half a second or more.
    """
    if run.request.yes or backup.pid is None or not run.host.config.jvm.class_data:
        return
    making = threading.Thread(target=_try_to_make, args=(run, backup.pid), daemon=True)
    with suppress(RuntimeError):  # the limit on the user's processes is reached
        making.start()


def _try_to_make(run: Run, pid: int) -> None:
    started = time.monotonic()
    try:
        jcmd = jcmd_of(pid)
        if jcmd is None:
            return
        size = make(run, pid, jcmd)
        said = f"{decimal(size)} in {time.monotonic() - started:.1f} s"
    except (DeployError, OSError, psutil.Error) as error:
        said = f"not made: {error}"
    with suppress(OSError, ValueError):  # the run may have ended meanwhile
        run.console.log.write(f"class data of {run.version}: {said}\n".encode())


def jcmd_of(pid: int) -> Path | None:
    """The jcmd of a JVM that can make the archive; None for any other process, or without a JDK."""
    process = psutil.Process(pid)
    jcmd = Path(process.exe()).with_name("jcmd")
    return jcmd if RECORDS in process.cmdline() and os.access(jcmd, os.X_OK) else None


def make(run: Run, pid: int, jcmd: Path) -> int:
    """Has the JVM make the archive of the release that it runs; returns its size in bytes.

    Raises DeployError or OSError; no archive was added then.
    """
    releases, version = run.host.releases, run.version
    environment = {**os.environ, processes.RUN_VARIABLE: run.id}
    with releases.class_data_added(version) as archive:
        words = [str(jcmd), str(pid), "VM.cds", "dynamic_dump", str(archive)]
        answer = capture(words, timeout=SECONDS, env=environment)
        # jcmd exits with 0 also if the JVM dies half-way, and leaves what it has written.
        tree = processes.tree(pid)
        still_runs = {file.identity for file in tree.files} if tree is not None else set()
        if answer.status != 0 or releases.identity(version) not in still_runs:
            raise DeployError(f"{answer.out}{answer.err}".strip())
        return archive.stat().st_size
