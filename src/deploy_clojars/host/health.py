"""What counts as healthy: what an instance is asked, and what is wanted of the answers."""

from __future__ import annotations

import ipaddress
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from deploy_clojars.config import HealthUrl, Role
from deploy_clojars.errors import reason
from deploy_clojars.host.services import State
from deploy_clojars.machine import connections, processes, sockets

CHECK_SECONDS = 5.0  # for a name server, or for a URL that is not from the configuration

WEB_SCHEMES, NAILGUN_SCHEME = ("http", "https"), "tcp"  # of health URLs
DEFAULT_PORTS = {"http": 80, "https": 443}
LONGEST_COMMAND = 60  # characters of one in a message

HOW_TO_BE_SEEN = (
    "the instance must run as the user who deploys, from a program that has no file capability, "
    "and /proc must show that user's processes"
)

Listeners = Mapping[int, Sequence[connections.Row]]  # those that could answer, by local port


@dataclass(frozen=True)
class Check:
    """One health URL's answer."""

    url: str
    ok: bool
    ms: float
    detail: str


@dataclass(frozen=True)
class Listener:
    """Another process on an instance's port; without a PID if this user may not see it."""

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
    """An instance at one moment, and the rules by which it is healthy."""

    role: Role
    job: str
    state: State
    said: str  # by the service manager
    pid: int | None = None
    process: processes.Process | None = None
    since: str | None = None
    running: str | None = None  # a version, or the path of a jar that is not a release
    open_releases: frozenset[str] = frozenset()
    visible: bool = True  # whether this user may ask for its state and see what it has open
    hidden: str = ""  # why this user cannot see what it has open
    checks: tuple[Check, ...] = ()
    foreign_ports: tuple[int, ...] = ()  # local health ports that are not its alone
    unseen_ports: tuple[int, ...] = ()  # those of which this user cannot see whose they are
    strangers: tuple[Listener, ...] = ()  # who else listens
    obstacle: str = ""  # why a running one could not be restarted
    silent_ports: tuple[int, ...] = ()  # local health ports on which nobody listens
    other_doors: tuple[connections.Address, ...] = ()  # where else it listens

    @property
    def why_not_restarted(self) -> str | None:
        """Why it must not be restarted, whatever it runs; None if it may."""
        if self.obstacle:
            return f"{self.job} could not be restarted: {self.obstacle}"
        if self.state == "unknown":
            return f"the state of {self.job} is unknown: {self.said}"
        return None

    @property
    def why_hidden(self) -> str | None:
        """Why it can never be seen to be healthy, whatever it runs; None if it can."""
        if self.pid is None or self.visible:
            return None
        if self.running is None:
            return f"what {self.job} has open is not visible to this user: {self.hidden}"
        if self.unseen_ports:
            ports = ", ".join(map(str, self.unseen_ports))
            return (
                f"whether {self.job} (PID {self.pid}) owns port {ports} is not visible to this "
                f"user: {self.hidden}"
            )
        return None

    @property
    def serving(self) -> bool:
        """Its process runs and its health URLs answer, whatever the release."""
        return self.state == "running" and all(check.ok for check in self.checks)

    def why_not_healthy_on(
        self, version: str, before: processes.Process | None = None
    ) -> str | None:
        """What keeps it from being healthy on the release, or None if nothing does.

        `before` is the process from before the restart, which must be another one.
        """
        if self.state != "running":
            return f"{self.job} is not running: {self.said}{self.whose_ports}"
        if before is not None and self.process == before:
            return f"{self.job} is still the process from before the restart (PID {self.pid})"
        if version not in self.open_releases:
            if self.running is None:
                return self.why_hidden or (
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
        return self.why_hidden

    @property
    def running_is_known(self) -> bool:
        """Whether it is certain what it runs; a stopped one certainly runs nothing."""
        if self.pid is None:
            return self.state == "stopped"
        return self.visible and self.running is not None

    @property
    def whose_ports(self) -> str:
        """Who else has its ports, to append to a message; empty if nobody has."""
        return "".join(f"; {each}" for each in self.strangers)

    def is_healthy_on(self, version: str) -> bool:
        """Whether nothing keeps it from being healthy on the release."""
        return self.why_not_healthy_on(version) is None


def check(asked: HealthUrl, timeout: float) -> Check:
    """Asks a health URL, for `timeout` seconds at most: http answers 2xx or 3xx, tcp connects."""
    started = time.monotonic()
    asks = _connects if urlsplit(asked.url).scheme == NAILGUN_SCHEME else _answers
    ok, detail = asks(asked, timeout)
    seconds = time.monotonic() - started
    if not ok and seconds >= timeout:
        detail = "timed out"
    return Check(asked.url, ok, round(seconds * 1000, 1), detail)


def _connects(asked: HealthUrl, timeout: float) -> tuple[bool, str]:
    try:
        with sockets.connect(*address_of(asked.url), timeout):
            return True, "connected"
    except OSError as error:
        return False, reason(error)


def _answers(asked: HealthUrl, timeout: float) -> tuple[bool, str]:
    # Imported in the thread that asks, while the main one waits for the service manager: this
    # saves a quarter of the time that `status` takes.
    from deploy_clojars.machine import web

    answer = web.get(asked.url, timeout, host=asked.host, ca=asked.ca)
    return answer.status is not None and 200 <= answer.status < 400, str(answer)


def why_urls_are_wrong(observation: Observation) -> str | None:
    """Why the health URLs cannot be those of a running instance; None if they can.

    Only one that answers at another of them, or elsewhere, counts: an instance that hangs before it
    listens needs a restart and not another configuration.
    """
    ports, doors = observation.silent_ports, observation.other_doors
    if not (ports and doors and observation.open_releases):
        return None
    answers = any(each.ok for each in observation.checks)
    if not answers and not any(_speaks_http(door) for door in doors):
        return None
    silent, others = (", ".join(map(str, each)) for each in (ports, [port for _, port in doors]))
    return (
        f"{observation.job} (PID {observation.pid}) does not listen on port {silent}, "
        f"which its health URLs name, but on port {others}"
    )


def _speaks_http(door: connections.Address) -> bool:
    from deploy_clojars.machine import web

    host, port = door
    if host.is_unspecified:
        host = ipaddress.ip_address("127.0.0.1" if host.version == 4 else "::1")
    name = f"[{host}]" if host.version == 6 else host
    return web.get(f"http://{name}:{port}/", CHECK_SECONDS).status is not None


def address_of(url: str) -> tuple[str, int]:
    """The host and the port that a health URL names."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or DEFAULT_PORTS.get(parts.scheme, 0)


def addresses_of(urls: Iterable[str]) -> list[connections.Address]:
    """Every address of every host that the URLs name, with its port; a name that is not found has none.

    All of it takes CHECK_SECONDS at most.
    """
    found = []
    deadline = time.monotonic() + CHECK_SECONDS
    for host, port in map(address_of, urls):
        with suppress(OSError):  # the health check says why
            left = max(0.0, deadline - time.monotonic())
            found += [(address, port) for address in sockets.addresses_of(host, left)]
    return found


def port_owners(
    listeners: Listeners, tree: processes.Tree
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[Listener, ...]]:
    """Whose the ports of an instance with this process tree are.

    Returns the foreign ports (somebody else listens there, too, or nobody), the unseen ones (its
    own or foreign), and who else listens.
    """
    ports = {port: {row.inode for row in rows} for port, rows in listeners.items()}
    foreign = tuple(
        port for port, inodes in ports.items() if not inodes <= tree.sockets or not inodes
    )
    others = strangers(listeners, tree.sockets) if foreign else ()
    if tree.visible:
        return foreign, (), others
    # In an old job file root's `su` is not visible, though its java is: a listener that is not
    # visible either may be part of the tree. It proves nothing, for or against.
    others = tuple(each for each in others if each.pid is not None)
    known = {each.port for each in others}.union(port for port in foreign if not ports[port])
    unseen = tuple(port for port in foreign if port not in known)
    return tuple(port for port in foreign if port in known), unseen, others


def strangers(listeners: Listeners, own: frozenset[int] = frozenset()) -> tuple[Listener, ...]:
    """The processes that listen with other sockets than the instance's own."""
    rows = [(port, row) for port in listeners for row in listeners[port] if row.inode not in own]
    pids = processes.pids_by_socket({row.inode for _, row in rows})
    found = {
        (port, row.uid, pid): Listener(
            port, row.uid, pid, processes.command_of(pid) if pid is not None else ""
        )
        for port, row in rows
        for pid in (pids.get(row.inode),)
    }
    return tuple(found.values())
