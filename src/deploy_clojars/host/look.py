"""The host at one moment."""

from __future__ import annotations

from dataclasses import dataclass

from deploy_clojars.host import decisions
from deploy_clojars.host.health import Observation
from deploy_clojars.host.journal import History, HostVersions
from deploy_clojars.host.releases import Current

# How a backup that is stopped on purpose is shown.
RESTS = "stopped (runs only while deploying)"


@dataclass(frozen=True)
class Look:
    """The host at one moment."""

    current: Current
    primary: Observation
    backup: Observation
    history: History
    approved: str | None
    journal_error: str | None = None  # why the journal cannot be read
    drain_flag: bool = False  # whether the flag makes nginx prefer the backup
    backup_may_rest: bool = False  # whether the backup runs only during a run

    @property
    def instances(self) -> tuple[Observation, Observation]:
        """The primary and the backup."""
        return self.primary, self.backup

    def left(self) -> HostVersions:
        """What the host would be left with now."""
        return HostVersions(self.current.version, self.primary.running, self.backup.running)

    def health_on(self, version: str) -> tuple[decisions.InstanceHealth, decisions.InstanceHealth]:
        """The primary and the backup, as what concerns a restart on `version` depends on them.

        A backup that rests beside a primary that is healthy on it needs none.
        """
        primary, backup = (
            decisions.InstanceHealth(each.serving, each.is_healthy_on(version))
            for each in self.instances
        )
        if primary.healthy and self.backup_rests:
            backup = decisions.InstanceHealth(serving=False, healthy=True)
        return primary, backup

    def both_healthy_on(self, version: str) -> bool:
        """Whether both instances are healthy on the release now, or the backup rests meanwhile."""
        return all(each.healthy for each in self.health_on(version))

    @property
    def where_it_runs(self) -> str:
        """Where the release runs that both instances are healthy on, for people."""
        return self.primary.job if self.backup_rests else "both instances"

    @property
    def backup_rests(self) -> bool:
        """Whether the backup is stopped as it should be between runs."""
        return self.backup_may_rest and self.backup.state == "stopped"

    def backup_should_rest(self, version: str) -> bool:
        """Whether the backup runs, and with the primary healthy on `version` nobody needs it."""
        runs = self.backup.state != "stopped" and self.backup.why_not_restarted is None
        return self.backup_may_rest and runs and self.primary.is_healthy_on(version)

    def why_not_both_healthy_on(self, version: str) -> str:
        """What keeps both from being healthy on the release, for people."""
        reasons = (each.why_not_healthy_on(version) for each in self.instances)
        return "; ".join(reason for reason in reasons if reason)

    @property
    def obstacles(self) -> list[str]:
        """Why instances that run could not be restarted; users notice nothing of it yet."""
        return [str(each.why_not_restarted) for each in self.instances if each.obstacle]

    @property
    def primary_is_as_approved(self) -> bool:
        """Whether the primary is healthy on the approved release; then no flag need be left."""
        return self.approved is not None and self.primary.is_healthy_on(self.approved)

    @property
    def named_or_running(self) -> frozenset[str]:
        """The releases that are current, approved, previous or run, as far as that is known."""
        named = (self.current.version, self.approved, self.history.previous)
        running = self.primary.open_releases | self.backup.open_releases
        return running.union(filter(None, named))

    @property
    def in_use(self) -> frozenset[str] | None:
        """The releases that must never be removed; None if what an instance runs is not known."""
        known = all(each.running_is_known for each in self.instances)
        return self.named_or_running if known else None

    @property
    def drifted(self) -> bool:
        """Whether the host is not as the last run left it. False while a run is at work."""
        return decisions.has_drifted(self.history.last, self.left())
