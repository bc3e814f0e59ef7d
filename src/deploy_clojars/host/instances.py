"""One instance: looking at it, restarting it, and waiting until it is healthy."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from urllib.parse import urlsplit

from deploy_clojars import config
from deploy_clojars.errors import NotHealthy, reason
from deploy_clojars.host import health
from deploy_clojars.host.releases import Releases
from deploy_clojars.host.services import Job, ServiceFailed, Services
from deploy_clojars.host.visits import Doors
from deploy_clojars.machine import connections, processes, signals, threads
from deploy_clojars.machine.sockets import is_local

SILENT = 1.0  # seconds between two looks at what does not listen yet and has not ended

# A JVM that dies after seconds is respawned for ever and looks `start/running` at every look.
DEATHS = 2


class Instance:
    """One of the two instances."""

    def __init__(
        self,
        role: config.Role,
        settings: config.Instance,
        limits: config.Health,
        services: Services,
        releases: Releases,
    ) -> None:
        self.role = role
        self.job = settings.job
        self.url = settings.url
        self._asked = settings.asked
        self._urls = settings.health_urls
        self._health = limits
        self._services = services
        self._releases = releases

    @property
    def health_hosts(self) -> list[str]:
        """The hosts that its health URLs name."""
        return list(dict.fromkeys(health.address_of(url)[0] for url in self._urls))

    def doors(self) -> Doors:
        """Where requests and nailgun clients come into it now.

        nginx may use other ports than the health URLs do, so every port on which it listens counts.
        """
        pid = self.status().pid
        tree = processes.tree(pid) if pid is not None else None
        own = tree.sockets if tree is not None and tree.visible else None
        listening = connections.listeners()
        web, nailgun = (
            frozenset(health.address_of(url)[1] for url in self._urls if urlsplit(url).scheme in of)
            for of in (health.WEB_SCHEMES, (health.NAILGUN_SCHEME,))
        )
        listened_on = {row.local[1] for row in listening if row.inode in (own or ())}
        elsewhere = [each for each in health.addresses_of(self._urls) if not is_local(each[0])]
        return Doors(
            (web | listened_on) - nailgun, nailgun, tuple(listening), own, frozenset(elsewhere)
        )

    def observe(self) -> health.Observation:
        """Looks at the instance now, and meanwhile asks its health URLs."""
        limit = self._health.answer_timeout
        checks = [threads.started(partial(health.check, url, limit)) for url in self._asked]
        job = self.status()
        try:
            tree = processes.tree(job.pid) if job.pid is not None else None
            listening = connections.listeners()
            if job.pid is not None and tree is None:
                job = Job("starting", said=f"{job.said} (that process has just ended)")
        except OSError as error:
            # Such as no descriptor left. An instance that cannot be inspected does not count as down.
            tree, listening = None, []
            job = Job(
                "unknown", said=f"{job.said}, but its process cannot be inspected: {reason(error)}"
            )
        observation = self._with_process(job, tree, listening)
        return replace(observation, checks=tuple(check.result() for check in checks))

    def status(self) -> Job:
        """What the service manager says of it."""
        return self._services.status(self.job)

    def _with_process(
        self, job: Job, tree: processes.Tree | None, listening: Sequence[connections.Row]
    ) -> health.Observation:
        listeners = self._that_could_answer(listening)
        if tree is None:
            # Whoever listens on the ports of a stopped instance keeps it from coming up.
            strangers = health.strangers(listeners) if job.state == "stopped" else ()
            return health.Observation(
                self.role, self.job, job.state, job.said, visible=job.visible, strangers=strangers
            )
        foreign_ports, unseen_ports, strangers = health.port_owners(listeners, tree)
        jars = [file for file in tree.files if file.name.endswith(".jar")]
        releases = self._releases.versions_of(
            (file.identity, file.name.rpartition("/")[2]) for file in jars
        )
        versions = [releases[jar.identity] for jar in jars if jar.identity in releases]
        # One that is in no directory is in memory only (memfd_create(2)).
        on_disk = (jar for jar in jars if jar.name.rpartition("/")[0])
        others = (jar.name for jar in on_disk if jar.identity not in releases)
        return health.Observation(
            role=self.role,
            job=self.job,
            state=job.state,
            said=job.said,
            obstacle=job.obstacle,
            pid=job.pid,
            process=tree.process,
            since=tree.since,
            running=next(iter([*versions, *others]), None),
            open_releases=frozenset(versions),
            visible=tree.visible,
            hidden=tree.hidden,
            foreign_ports=foreign_ports,
            unseen_ports=unseen_ports,
            strangers=strangers,
            silent_ports=tuple(port for port, rows in listeners.items() if not rows),
            other_doors=self._other_doors(listening, tree),
        )

    def _other_doors(
        self, listening: Sequence[connections.Row], tree: processes.Tree
    ) -> tuple[connections.Address, ...]:
        """The addresses at which it listens and that no health URL names."""
        named = {health.address_of(url)[1] for url in self._urls}
        own = (row.local for row in listening if row.inode in tree.sockets)
        return tuple(dict.fromkeys(each for each in own if each[1] not in named))

    def _that_could_answer(self, listening: Sequence[connections.Row]) -> health.Listeners:
        """The sockets that could answer its local health URLs, by port."""
        found: dict[int, list[connections.Row]] = {}
        for address, port in health.addresses_of(self._urls):
            if is_local(address):
                rows = found.setdefault(port, [])
                answering = connections.answering(listening, address, port)
                rows += (row for row in answering if row not in rows)
        return found

    def restart(self) -> None:
        """Asks for a restart, or a start if it is stopped. Raises NotHealthy (6)."""
        self._ask(self._services.restart, "restarted")

    def stop_and_start(self) -> None:
        """Asks for a stop and a start. Raises NotHealthy (6).

        Unlike Upstart's restart, which keeps the job's old definition, this reads a changed file.
        """
        self.stop()
        self._ask(self._services.start, "started")

    def stop(self) -> None:
        """Asks for a stop. Raises NotHealthy (6)."""
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
        before: processes.Process | None = None,
        timeout: float | None = None,
    ) -> health.Observation:
        """Waits until it is healthy on the release and stays so for `health.settle` seconds.

        `before` is its process from before the restart. Raises NotHealthy (6): at once if the job has
        ended or keeps dying, otherwise after `timeout` seconds (default: `health.timeout`); Interrupted
        if a signal comes.
        """
        timeout = self._health.timeout if timeout is None else timeout
        started = time.monotonic()
        healthy_since: float | None = None
        new: list[processes.Process] = []
        listens = False
        while True:
            pause = self._health.interval
            looked = time.monotonic()
            observation = self.observe()
            now = time.monotonic()
            why = observation.why_not_healthy_on(version, before)
            process = observation.process
            if process is not None and process not in (before, *new):
                new.append(process)
                healthy_since = None
            if why is None:
                healthy_since = now if healthy_since is None else healthy_since
                left = self._health.settle - (now - healthy_since)
                if left <= 0:
                    return observation
                pause = min(pause, left)
            else:
                healthy_since = None
                hopeless = self._why_hopeless(observation, new)
                # Not by `now`: after Ctrl-Z the look may be old.
                if hopeless is None and looked - started > timeout:
                    hopeless = why
                if hopeless is not None:
                    raise NotHealthy(
                        f"{self.job} did not come up on {version} within {now - started:.1f} s: "
                        f"{hopeless}",
                        detail=self._last_words(observation),
                    )
            # Once only: others may listen on these ports, at other addresses.
            if observation.pid is not None and observation.silent_ports and not listens:
                longest = max(pause, min(SILENT, timeout - (now - started)))
                with processes.end_of(observation.pid) as end:
                    listens = connections.wait_for_listeners(
                        observation.silent_ports, longest, *end
                    )
                if listens:
                    continue
            # Also after its end: a start may go through several processes.
            signals.wait(max(0.0, now + pause - time.monotonic()))

    @staticmethod
    def _why_hopeless(
        observation: health.Observation, new: Sequence[processes.Process]
    ) -> str | None:
        """Why it is no use to wait longer, or None."""
        if observation.state in ("stopped", "stopping"):
            return f"it has ended: {observation.said}{observation.whose_ports}"
        if len(new) > DEATHS:
            pids = ", ".join(str(each.pid) for each in new)
            return f"it keeps dying (PIDs {pids}){observation.whose_ports}"
        return None

    def _last_words(self, observation: health.Observation | None = None) -> str:
        """The last answers, the job's state and the end of its log, for the operator."""
        lines = []
        if observation is not None:
            lines.append("when it failed:")
            lines += [f"{check.url}: {check.detail}" for check in observation.checks]
            lines.append(f"job: {observation.said}")
        log = self._services.last_log_lines(self.job)
        return "\n".join([*lines, *([f"the end of its log:\n{log}"] if log else [])])
