"""The service manager that runs the instances: one small protocol, one module for each."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, Protocol

from deploy_clojars.config import Config
from deploy_clojars.machine import signals

State = Literal["running", "starting", "stopping", "stopped", "unknown"]

# How long a stop may take, as a multiple of a call's time limit. The manager kills what does not stop
# (`kill timeout`, `stopwaitsecs`), so this is for what cannot be killed.
LONGEST_STOP = 10


@dataclass(frozen=True)
class Job:
    """What the manager says of a job."""

    state: State
    pid: int | None = None  # of the main process, while the state is running
    said: str = ""  # to the letter
    visible: bool = True  # whether this user may ask at all
    obstacle: str = ""  # why a running one could not be restarted
    remedy: str = ""  # what to do where the state is unknown, if the manager's module can tell


class ServiceFailed(Exception):
    """The manager did not do what it was asked; the message is what it said.

    `remedy` is the end of the message where that says what to do.
    """

    def __init__(self, said: str, remedy: str = "") -> None:
        super().__init__(f"{said}: {remedy}" if remedy else said)
        self.remedy = remedy


class Services(Protocol):
    """A service manager. Its word that a job runs says nothing of what the job serves."""

    def status(self, job: str) -> Job:
        """The job's state; `unknown` with the reason where it can't be had. Never raises."""

    def start(self, job: str) -> None:
        """Starts a job, or restarts it if it runs already. Raises ServiceFailed."""

    def restart(self, job: str) -> None:
        """Restarts a job, or starts it if it is stopped. Raises ServiceFailed."""

    def stop(self, job: str) -> None:
        """Stops a job; one that is stopped already is fine. Raises ServiceFailed."""

    def read_changes(self) -> None:
        """Reads changed files of jobs, where the manager does not by itself. Raises ServiceFailed."""

    def refuse_what_would_fail(self, jobs: Iterable[str]) -> None:
        """Raises NotReady (4) if a request that a run may need is known to fail."""

    def words(self, verb: str, job: str) -> list[str]:
        """The command that starts, restarts or stops a job, as a person would type it."""

    def last_log_lines(self, job: str) -> str:
        """The last lines of the job's log, or nothing where they can't be read."""


def wait_while_it_stops(services: Services, job: str, timeout: float) -> None:
    """Waits for the end of a job that is being stopped; `timeout` is that of one call, in seconds.

    If this gave up earlier, the job would still end, and nobody would start it again.
    Raises ServiceFailed.
    """
    limit = LONGEST_STOP * timeout
    deadline = time.monotonic() + limit
    while True:
        is_late = time.monotonic() > deadline  # before the look: Ctrl-Z may make it an old one
        found = services.status(job)
        if found.state != "stopping":
            return
        if is_late:
            raise ServiceFailed(f"{found.said}: not stopped within {limit:g} s")
        signals.wait(0.1)


def _owner(config: Config) -> int:
    """The production user's number; this process's while nothing is there."""
    with suppress(OSError):
        return os.stat(config.releases_directory).st_uid
    return os.geteuid()


def services_of(config: Config) -> Services:
    """The configured service manager."""
    settings = config.services
    if settings.chosen == "supervisor":
        from deploy_clojars.host.services.supervisor import Supervisor

        assert settings.socket is not None  # the configuration demands it
        return Supervisor(
            path=settings.socket,
            timeout=settings.timeout,
            user=settings.username or "",
            password=settings.password or "",
        )

    if settings.chosen == "systemd":
        from deploy_clojars.host.services.systemd import Systemd

        return Systemd(
            bin=settings.programs,
            sudo=settings.sudo,
            timeout=settings.timeout,
            user=_owner(config) if settings.scope == "user" else None,
        )

    from deploy_clojars.host.services.upstart import Upstart

    return Upstart(bin=settings.programs, sudo=settings.sudo, timeout=settings.timeout)
