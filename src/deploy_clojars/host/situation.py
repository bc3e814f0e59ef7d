"""What a look at the host means: whether all is well, and which command to type if not."""

from __future__ import annotations

from dataclasses import dataclass

from deploy_clojars.errors import Status
from deploy_clojars.host.health import Observation
from deploy_clojars.host.journal import INSTALL, JAR, LastRun
from deploy_clojars.host.look import Look


@dataclass(frozen=True)
class Situation:
    """All that `status` judges by."""

    look: Look
    locked: bool
    # The release to go back to: the approved one, or if its jar is gone the last one before it.
    way_back: str | None

    @property
    def drifted(self) -> bool:
        """The lock is free, and the host is not as the last run left it."""
        return self.look.drifted and not self.locked

    @property
    def stale_flag(self) -> bool:
        """The lock is free, and a drain's flag is set."""
        return self.look.drain_flag and not self.locked

    @property
    def interrupted(self) -> bool:
        """The lock is free and the journal's last run has no end."""
        return not self.locked and self.look.history.unfinished is not None

    @property
    def failed_restart(self) -> bool:
        """The last run was a `restart` that changed something and was not seen through."""
        last = self.look.history.last
        if self.locked or last is None or last.command != "restart":
            return False
        return last.past_return and (not last.ended or last.status != Status.DONE)

    @property
    def unclear(self) -> bool:
        """An instance's state is unknown, or it runs and could not be restarted.

        Then nothing is restarted, unless neither serves and that is so of one only.
        """
        unknown = [each for each in self.look.instances if each.why_not_restarted]
        nothing_serves = not any(each.serving for each in self.look.instances)
        return bool(unknown) and not (nothing_serves and len(unknown) == 1)

    @property
    def ok(self) -> bool:
        """Nothing needs a person."""
        if not _serves(self.look.primary, self.look.approved):
            return False
        return self.locked or (self._is_settled and not self.interrupted and not self.stale_flag)

    @property
    def _is_settled(self) -> bool:
        """Both instances serve the approved release, and current is it."""
        if not _serves(self.look.primary, self.look.approved):
            return False
        backup_is_well = self.look.backup_rests or _serves(self.look.backup, self.look.approved)
        return backup_is_well and self.look.current.version == self.look.approved

    @property
    def next_words(self) -> tuple[str, ...] | None:
        """The command to type next: its name, its version, options; None if nothing is to be done.

        Typing it twice is harmless: the version is spelt out.
        """
        if self.ok or self.locked:
            return None
        cut_off, last = self.look.history.unfinished, self.look.history.last
        if cut_off is None or cut_off.command != INSTALL:
            return self._next_after(last, cut_off)
        # It changed nothing that runs: anything else that is wrong was left by the run before it.
        last = cut_off.follows
        wrong = None
        if not self._is_settled:
            wrong = self._next_after(last, last.cut_off if last is not None else None)
        again = (INSTALL, cut_off.version or "")
        return wrong or ((*again, "--jar", "FILE") if cut_off.source == JAR else again)

    def _next_after(self, last: LastRun | None, cut_off: LastRun | None) -> tuple[str, str] | None:
        """What to type after the `last` run that may have changed what runs; it or another was `cut_off`."""
        if cut_off is not None and cut_off.past_return and cut_off.version:
            if cut_off.command != "deploy":
                # `restart` is refused while a run is cut off; a rollback starts what it left down.
                return "rollback", cut_off.version
            if (
                self.look.current.version != self.look.approved
                or cut_off.version == self.look.approved
            ):
                return "deploy", cut_off.version
            # A deploy flips before it is past return: since then somebody went back, and could not
            # write it down.
        if (
            last is not None
            and last.half_rolled_back
            and self.look.current.version == last.version
            and last.version
        ):
            return "rollback", last.version
        if self.way_back is not None:
            return "rollback", self.way_back
        if self.look.approved is not None and self.look.current.visible:
            return "deploy", self.look.approved  # its jar is gone: the tag is built again
        if self.drifted and self.look.current.version is not None:
            return "rollback", self.look.current.version  # a deploy is refused while there is drift
        if (
            last is not None
            and last.version
            and (cut_off or self.look.current.version == last.version)
        ):
            return "deploy", last.version
        return None


def _serves(observation: Observation, approved: str | None) -> bool:
    """Whether it serves the approved release; what cannot be seen is not held against it."""
    if observation.state == "unknown" and not observation.visible:
        return all(check.ok for check in observation.checks)
    if not observation.serving or approved is None or observation.foreign_ports:
        return False
    releases = observation.open_releases
    return approved in releases or not (observation.visible or releases)
