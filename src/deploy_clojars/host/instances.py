"""One instance: what it runs, whether it is healthy, and restarting it."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import urlsplit

from deploy_clojars import config
from deploy_clojars.errors import NotHealthy
from deploy_clojars.host import health
from deploy_clojars.host.releases import Releases
from deploy_clojars.host.services import Job, ServiceFailed, Services, State
from deploy_clojars.machine import connections, processes, signals

Role = Literal["primary", "backup"]
PRIMARY: Role = "primary"
BACKUP: Role = "backup"

# A JVM that dies after seconds is respawned for ever and looks `start/running` at every look.
DEATHS = 2
LONGEST_COMMAND = 60  # characters of one in a message

Listeners = Mapping[int, Sequence[connections.Row]]  # by port


@dataclass(frozen=True)
class Listener:
    """Somebody else's process on an instance's port; no PID where this user may not see it."""

    port: int
    uid: int
    pid: int | None = None
    command: str = ""

    def __str__(self) -> str:
        if self.pid is None:
            return f"port {self.port} is taken by a process of user {self.uid}, and root sees which"
        shown = textwrap.shorten(self.command, LONGEST_COMMAND, placeholder="…")
        return f"port {self.port} is taken by PID {self.pid} ({shown}); to end it: kill {self.pid}"


@dataclass(frozen=True)
class Observation:
    """An instance at one moment."""

    role: Role
    job: str
    state: State
    said: str  # by the service manager
    pid: int | None = None
    since: str | None = None
    running: str | None = None  # a version, or the path of a jar that is not a release
    open_releases: frozenset[str] = frozenset()
    visible: bool = True  # whether this user may ask for its state and see what it has open
    checks: tuple[health.Check, ...] = ()
    foreign_ports: tuple[int, ...] = ()  # local health ports that somebody else listens on, too
    unseen_ports: tuple[int, ...] = ()  # those whose listener is not visible, nor all of the tree
    strangers: tuple[Listener, ...] = ()  # who that is

    @property
    def serving(self) -> bool:
        """Its process runs and its health URLs answer, whatever the release."""
        return self.state == "running" and all(check.ok for check in self.checks)

    def why_not_healthy_on(self, version: str, not_pid: int | None = None) -> str | None:
        """What keeps it from being healthy on the release, or None if nothing does.

        `not_pid` is the PID from before the restart: that process proves nothing.
        """
        if self.state != "running":
            return f"{self.job} is not running: {self.said}{self.whose_ports}"
        if self.pid == not_pid:
            return f"{self.job} is still the process from before the restart (PID {self.pid})"
        if version not in self.open_releases:
            if not self.visible:
                return f"what {self.job} has open is not visible to this user"
            if self.running is None:
                return (
                    f"{self.job} (PID {self.pid}) has no release open; "
                    "it must keep its jar open, as a JVM does"
                )
            return f"{self.job} runs {self.running}, not {version}"
        for check in self.checks:
            if not check.ok:
                return f"{check.url}: {check.detail}"
        if self.foreign_ports:
            ports = ", ".join(map(str, self.foreign_ports))
            return (
                f"{self.job} (PID {self.pid}) does not own port {ports}: "
                f"another process listens there and may be the one that answers{self.whose_ports}"
            )
        if self.unseen_ports:
            ports = ", ".join(map(str, self.unseen_ports))
            return (
                f"whether {self.job} (PID {self.pid}) owns port {ports} is not visible to this user"
            )
        return None

    @property
    def running_is_known(self) -> bool:
        """Whether it is sure what it runs; that a stopped one runs nothing is."""
        if self.pid is None:
            return self.state == "stopped"
        return self.visible and self.running is not None

    @property
    def whose_ports(self) -> str:
        """Who else has its ports, to be said after something else; empty if nobody has."""
        return "".join(f"; {each}" for each in self.strangers)

    def is_healthy_on(self, version: str) -> bool:
        """Whether nothing keeps it from being healthy on the release."""
        return self.why_not_healthy_on(version) is None


class Instance:
    """One of the two instances."""

    def __init__(
        self,
        role: Role,
        settings: config.Instance,
        limits: config.Health,
        services: Services,
        releases: Releases,
    ) -> None:
        self.role = role
        self.job = settings.job
        self.url = settings.url
        self._urls = settings.health
        self._health = limits
        self._services = services
        self._releases = releases

    @property
    def web_ports(self) -> list[int]:
        """The local ports that nginx sends requests to."""
        return self._local_ports(*health.WEB_SCHEMES)

    @property
    def nailgun_ports(self) -> list[int]:
        """The local ports beside them, of which only connections can be known."""
        return self._local_ports(health.NAILGUN_SCHEME)

    def _local_ports(self, *schemes: str) -> list[int]:
        """The ports of health URLs with these schemes, as far as they are this machine's."""
        urls = (url for url in self._urls if urlsplit(url).scheme in schemes)
        return [port for host, port in map(health.address_of, urls) if health.is_local(host)]

    def observe(self) -> Observation:
        """Looks at the instance now; its health URLs are asked at the same time."""
        with ThreadPoolExecutor(max_workers=len(self._urls)) as pool:
            checks = pool.map(health.check, self._urls)
            job = self.status()
            tree = processes.tree(job.pid) if job.pid is not None else None
            if job.pid is not None and tree is None:
                job = Job("starting", said=f"{job.said} (that process has just ended)")
            observation = self._with_process(job, tree)
            return replace(observation, checks=tuple(checks))

    def status(self) -> Job:
        """What the service manager says of it."""
        return self._services.status(self.job)

    def _with_process(self, job: Job, tree: processes.Tree | None) -> Observation:
        if tree is None:
            # Whoever has the ports of a stopped instance keeps it from coming up.
            strangers = _strangers(self._listeners()) if job.state == "stopped" else ()
            return Observation(
                self.role, self.job, job.state, job.said, visible=job.visible, strangers=strangers
            )
        listeners = self._listeners()
        foreign_ports = tuple(_foreign_ports(listeners, tree.sockets))
        strangers = _strangers(listeners, tree.sockets) if foreign_ports else ()
        unseen_ports: tuple[int, ...] = ()
        if not tree.visible:
            # As root's `su` in an old job file is not, though its java is: a listener that is not
            # visible either may be part of the tree. It proves nothing, for or against.
            strangers = tuple(each for each in strangers if each.pid is not None)
            known = {port for port, rows in listeners.items() if not rows}
            known |= {each.port for each in strangers}
            unseen_ports = tuple(port for port in foreign_ports if port not in known)
            foreign_ports = tuple(port for port in foreign_ports if port in known)
        versions, others = self._what_is_open(tree)
        return Observation(
            role=self.role,
            job=self.job,
            state=job.state,
            said=job.said,
            pid=job.pid,
            since=tree.since,
            running=next(iter([*versions, *others]), None),
            open_releases=frozenset(versions),
            visible=tree.visible,
            foreign_ports=foreign_ports,
            unseen_ports=unseen_ports,
            strangers=strangers,
        )

    def _what_is_open(self, tree: processes.Tree) -> tuple[list[str], list[str]]:
        """The releases and the other jars that the process or a descendant has open."""
        versions, others = [], []
        jars = [file for file in tree.files if file.name.endswith(".jar")]
        releases = self._releases.versions_of(
            (file.identity, file.name.rpartition("/")[2]) for file in jars
        )
        for file in jars:
            directory = file.name.rpartition("/")[0]
            version = releases.get(file.identity)
            if version is not None:
                versions.append(version)
            elif directory:
                others.append(file.name)
        return versions, others

    def _listeners(self) -> Listeners:
        """Who listens on its local health ports, at one moment."""
        return connections.listeners(*self._local_ports(*health.ALL_SCHEMES))

    def restart(self) -> None:
        """Asks for a restart, or a start if it is stopped. Raises NotHealthy (6)."""
        self._ask(self._services.restart, "restarted")

    def stop_and_start(self) -> None:
        """Asks for a stop and a start. Raises NotHealthy (6).

        Unlike a restart, with which Upstart keeps the job's old definition, this reads a job file
        that was changed.
        """
        self.stop()
        self._ask(self._services.start, "started")

    def stop(self) -> None:
        """Stops it. Raises NotHealthy (6)."""
        self._ask(self._services.stop, "stopped")

    def _ask(self, request: Callable[[str], None], done: str) -> None:
        try:
            request(self.job)
        except ServiceFailed as error:
            raise NotHealthy(
                f"{self.job} could not be {done}: {error}", detail=self._last_words()
            ) from None

    def wait_until_healthy(
        self,
        version: str,
        *,
        not_pid: int | None = None,
        timeout: float | None = None,
    ) -> Observation:
        """Waits until it is healthy on the release and stays so, unchanged, while it settles.

        Raises NotHealthy (6): at once if the job has ended or its PID keeps changing, otherwise
        after `timeout` seconds (default: `health.timeout`); Interrupted if a signal comes.
        """
        timeout = self._health.timeout if timeout is None else timeout
        started = time.monotonic()
        healthy_since: float | None = None
        pids: list[int] = []
        while True:
            pause = self._health.interval
            observation = self.observe()
            now = time.monotonic()
            why = observation.why_not_healthy_on(version, not_pid)
            pid = observation.pid
            if pid is not None and pid != not_pid and pid not in pids:
                pids.append(pid)
                healthy_since = None
            if why is None:
                healthy_since = now if healthy_since is None else healthy_since
                left = self._health.settle - (now - healthy_since)
                if left <= 0:
                    return observation
                pause = min(pause, left)
            else:
                healthy_since = None
                hopeless = self._why_hopeless(observation, pids)
                if hopeless is None and now - started > timeout:
                    hopeless = why
                if hopeless is not None:
                    raise NotHealthy(
                        f"{self.job} did not come up on {version} within {now - started:.1f} s: "
                        f"{hopeless}",
                        detail=self._last_words(observation),
                    )
            signals.wait(pause)

    @staticmethod
    def _why_hopeless(observation: Observation, pids: list[int]) -> str | None:
        """Why waiting longer is of no use, or None."""
        if observation.state in ("stopped", "stopping"):
            return f"it has ended: {observation.said}{observation.whose_ports}"
        if len(pids) > DEATHS:
            return f"it keeps dying (PIDs {', '.join(map(str, pids))}){observation.whose_ports}"
        return None

    def _last_words(self, observation: Observation | None = None) -> str:
        """The last answers, the job's state and the end of its log, for the operator."""
        lines = []
        if observation is not None:
            lines += [f"{check.url}: {check.detail}" for check in observation.checks]
            lines.append(f"job: {observation.said}")
        log = self._services.last_log_lines(self.job)
        return "\n".join([*lines, *([f"the end of its log:\n{log}"] if log else [])])


def _foreign_ports(listeners: Listeners, own: frozenset[int]) -> Iterator[int]:
    """The ports on which not every listening socket is the instance's own, or none listens."""
    for port, rows in listeners.items():
        if not rows or {row.inode for row in rows} - own:
            yield port


def _strangers(listeners: Listeners, own: frozenset[int] = frozenset()) -> tuple[Listener, ...]:
    """The processes that listen and are not the instance's own."""
    rows = [(port, row) for port in listeners for row in listeners[port] if row.inode not in own]
    pids = processes.having({row.inode for _, row in rows})
    found = {
        (port, row.uid, pid): Listener(
            port, row.uid, pid, processes.command_of(pid) if pid is not None else ""
        )
        for port, row in rows
        for pid in (pids.get(row.inode),)
    }
    return tuple(found.values())
