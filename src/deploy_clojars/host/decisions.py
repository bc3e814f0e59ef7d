"""What is decided: pure functions over what was seen. What is done is elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime

from deploy_clojars.config import BACKUP, PRIMARY, Role
from deploy_clojars.host.journal import History, HostVersions, LastRun, Restarted

# The kernel says when a process started by a clock that is off by up to this, in seconds.
CLOCKS_DIFFER = 2.0


@dataclass(frozen=True)
class InstanceHealth:
    """What decides whether an instance may be restarted, and must be."""

    serving: bool
    healthy: bool  # on the release in question


def deploy_stops_the_only_serving_instance(primary: InstanceHealth, backup: InstanceHealth) -> bool:
    """Whether a deploy, which restarts the backup unless that is healthy, would leave nobody up."""
    return not primary.serving and backup.serving and not backup.healthy


def next_to_restart(
    primary: InstanceHealth,
    backup: InstanceHealth,
    failed: Collection[Role] = (),
    unknown: Collection[Role] = (),
) -> Role | None:
    """Which instance a rollback or a revert restarts next; None if it is done or must stop.

    Asked again before every restart. Only what is not healthy on the target is restarted, the
    only serving instance never is, and after a failure the other one only if it serves nobody.
    An instance in `unknown` cannot be looked at, which is no reason to restart it.
    """
    seen = {PRIMARY: primary, BACKUP: backup}
    order = (BACKUP, PRIMARY) if primary.serving else (PRIMARY, BACKUP)
    for role in order:
        other = BACKUP if role == PRIMARY else PRIMARY
        needed = seen[role].serving and (not seen[other].serving or bool(failed))
        may = role not in failed and role not in unknown and not needed
        if may and not seen[role].healthy:
            return role
    return None


def next_to_stop_and_start(
    primary: InstanceHealth, backup: InstanceHealth, left: Collection[Role], *, force: bool = False
) -> Role | None:
    """Which of the instances that are left `restart` takes next; None if it must stop.

    Asked again before each one. The order is a rollback's; the only serving instance is spared
    unless `force` gives it up.
    """
    seen = {PRIMARY: primary, BACKUP: backup}
    for role in (BACKUP, PRIMARY) if primary.serving else (PRIMARY, BACKUP):
        other = BACKUP if role == PRIMARY else PRIMARY
        serves_alone = seen[role].serving and not seen[other].serving
        if role in left and (force or not serves_alone):
            return role
    return None


def adopted(primary_runs: str | None, current: str | None) -> str | None:
    """What counts as approved on a host without a journal."""
    return primary_runs or current


def has_drifted(last: LastRun | None, now: HostVersions) -> bool:
    """Whether `current` or a running instance has changed since the last run.

    An instance that is down, or not visible, is no drift, and neither is one that was down and
    has come up on the current release.
    """
    if last is None or not last.ended:
        return False
    left = last.left
    return (
        now.current != left.current
        or _differs(now.primary, left.primary or left.current)
        or _differs(now.backup, left.backup or left.current)
    )


def _differs(now: str | None, left: str | None) -> bool:
    return now is not None and now != left


def definition_since(last: Restarted | None, since: str, within: float) -> str:
    """Since when a job has the definition with which its process was started at `since`.

    Upstart's `restart`, which the journal's `last` one may be, keeps the definition of the process
    before. It takes up to `within` seconds.
    """
    if last is None or last.definition is None:
        return since
    later = datetime.fromisoformat(since) - datetime.fromisoformat(last.at)
    is_from_that = -CLOCKS_DIFFER <= later.total_seconds() <= within
    return last.definition if is_from_that else since


def deploy_obstacle(history: History, version: str, drifted: bool) -> str | None:
    """Why a deploy of `version` must not start, given what earlier runs left.

    A run that was cut off past its point of no return is finished by a deploy of the same version;
    drift is ended by a rollback, or by deploying what is approved.
    """
    cut_off = history.unfinished
    if cut_off is not None and cut_off.past_return and cut_off.version != version:
        return f"{cut_off.command} {cut_off.version} was cut off after its point of no return"
    if drifted and version != history.approved:
        return "`current` or a running instance has changed since the last run"
    return None


def bare_rollback_target(
    history: History, approved: str | None, current: str | None, runs: Collection[str | None]
) -> str | None:
    """Where `rollback` without a version goes; None if there is nowhere to go.

    To the approved release if anything else is current, running or interrupted, otherwise to
    the previous one.
    """
    others = {version for version in (current, *runs) if version is not None} - {approved}
    if approved is not None and (others or history.unfinished is not None):
        return approved
    return history.previous


def rebuild_obstacle(history: History, version: str, in_use: Collection[str] | None) -> str | None:
    """Why a release that is there must not be built again; `in_use` is None if that is not known.

    One that was in production once may be wanted back as it was.
    """
    if in_use is None:
        return "it is not known what the instances run"
    if version in in_use:
        return "it is current, approved, previous or running"
    if version in history.promoted or version in history.stack:
        return "it was in production"
    if version not in history.installed:
        return "it was not built by this tool, and may have been in production"
    return None


def prunable(
    there: Collection[str],
    installed: Iterable[str],
    promoted: Iterable[str],
    in_use: Collection[str] | None,
    keep: int,
    waiting: Iterable[str] = (),
) -> list[str]:
    """The releases that may be removed, in the order in which they go; none if `keep` is 0.

    `keep` promoted ones stay, `keep` of those that are `waiting` for their first deploy, those in
    use (None: not known, so all do) and those that are not `installed` by this tool. Never promoted
    ones go first. `installed`, `promoted` and `waiting` have the oldest first.
    """
    if keep == 0 or in_use is None:
        return []
    promoted, waiting = ([each for each in some if each in there] for some in (promoted, waiting))
    stay = {*in_use, *promoted[-keep:], *waiting[-keep:]}
    may_go = [version for version in installed if version in there and version not in stay]
    never = set(may_go).difference(promoted)
    once = set(may_go) - never
    return [
        *(version for version in may_go if version in never),
        *(version for version in promoted if version in once),
    ]
