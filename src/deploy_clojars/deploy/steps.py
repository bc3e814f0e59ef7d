"""The steps that deploy, rollback and restart share: the flip, one instance's restart, a bad end."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from deploy_clojars.config import BACKUP, PRIMARY, Role
from deploy_clojars.errors import DeployError, HalfDone, NotHealthy, PrimaryDown
from deploy_clojars.host import decisions
from deploy_clojars.host.health import Observation
from deploy_clojars.host.look import Look
from deploy_clojars.machine import processes
from deploy_clojars.run.run import Run, Stage

DATA_STAYS = "only the code is rolled back, not the data"


def flip(run: Run, version: str) -> None:
    """Points the link at the release; if it does so already, that is not shown as a step."""
    releases = run.host.releases
    before = releases.current()
    if before.text == releases.path(version).name:
        # A deploy that is cut off after this is reverted.
        run.record("flip", version=version, previously=version)
    else:
        with run.step("flip", f"current: {before.version or 'none'} -> {version}"):
            run.record("flip", version=version, previously=before.version)
            releases.flip(version)
    run.now_left_with(current=version)


def remove_link(run: Run, step: str, why: str, *, previously: str) -> None:
    """Leaves no release current, as before the first deploy."""
    with run.step(step, f"remove the link: {why}"):
        run.record("flip", previously=previously)
        run.host.releases.remove_link()
    run.now_left_with(current=None)


def restart(
    run: Run, role: Role, version: str, *, by_stop_and_start: bool = False, force: bool = False,
    checked: bool = False,
) -> Observation:  # fmt: skip
    """Restarts an instance and waits until it is healthy on the release.

    `by_stop_and_start` reads a changed job file or unit. `force`: also the only one that serves. `checked`:
    the caller has just made sure that nothing speaks against it. Raises NotHealthy (6), Interrupted.
    """
    instance = run.host.instances[role]
    job = instance.status()
    before = processes.process(job.pid) if job.pid is not None else None
    verb = "stop and start" if by_stop_and_start else "restart"
    if job.state == "stopped":
        verb = "start"
    with run.step(role, f"{verb} {instance.job}") as becomes:
        if not checked:
            refuse_a_restart(run, run.host.look(), role, version, force=force)
        kept = None if by_stop_and_start else _definition_since(run, role, job.pid)
        run.record("restart", instance=role, version=version, pid=job.pid, definition=kept)
        # Until it is healthy all that is known is that it starts on what is current.
        run.now_left_with(**{role: None})
        if by_stop_and_start:
            instance.stop_and_start()
        else:
            instance.restart()
        observation = instance.wait_until_healthy(version, before=before)
        run.now_left_with(**{role: version})
        becomes(f"healthy on {version} (PID {observation.pid})")
    return observation


def stop(run: Run, role: Role, *, force: bool = False) -> None:
    """Stops an instance; with `force` also the only one that serves.

    Raises NotHealthy (6), Interrupted.
    """
    instance = run.host.instances[role]
    with run.step("stop", instance.job):
        if not force:
            _refuse_the_only_serving_instance(run.host.look(), role)
        run.record("stop", instance=role, pid=instance.status().pid)
        instance.stop()
    run.now_left_with(**{role: None})


def _definition_since(run: Run, role: Role, pid: int | None) -> str | None:
    """Since when the job has the definition that a restart keeps; None if it is not running."""
    tree = processes.tree(pid) if pid is not None else None
    if tree is None or tree.since is None:
        return None
    last = None
    with suppress(OSError):
        last = run.host.journal.history().restarted.get(role)
    return decisions.definition_since(last, tree.since, run.host.config.services.timeout)


def keep(run: Run, role: Role, step: str) -> Observation:
    """Waits until an instance that runs the release already has settled. Raises NotHealthy (6)."""
    instance = run.host.instances[role]
    with run.step(step, f"{instance.job} runs {run.version} already"):
        observation = instance.wait_until_healthy(run.version)
        run.now_left_with(**{role: run.version})
    return observation


def refuse_a_restart(run: Run, look: Look, role: Role, version: str, *, force: bool) -> None:
    """By the last look before the request: something may have changed since the restart was decided.

    Raises NotHealthy (6).
    """
    refuse_a_link_that_was_changed_meanwhile(run, version)
    why_not = (look.primary if role == PRIMARY else look.backup).why_not_restarted
    if why_not:
        raise NotHealthy(why_not)
    if not force:
        _refuse_the_only_serving_instance(look, role)


def refuse_a_link_that_was_changed_meanwhile(run: Run, version: str) -> None:
    """Whatever is restarted starts on what current names, so that must be the release.

    Raises NotHealthy (6).
    """
    current = run.host.releases.current()
    if current.version != version:
        names = current.version or current.broken or "nothing"
        raise NotHealthy(f"someone else has changed current: it names {names}, not {version}")


def _refuse_the_only_serving_instance(look: Look, role: Role) -> None:
    """The other one may have died since it was decided that this one is restarted.

    Raises NotHealthy (6).
    """
    this, other = look.primary, look.backup
    if role == BACKUP:
        this, other = other, this
    if this.serving and not other.serving:
        raise NotHealthy(f"{other.job} no longer serves, and {this.job} serves alone")


def half_done(
    run: Run, what: str, version: str, failed: Mapping[Role, NotHealthy], remedy: str,
    spared: str | None = None,
) -> DeployError:  # fmt: skip
    """The error that says that not both instances are healthy on the release.

    NotHealthy (6) if the job that serves alone was `spared`; PrimaryDown (8) if the primary did
    not come up past the point of no return and the backup serves; otherwise HalfDone (9).
    """
    look = run.host.look()
    reason = "; ".join(each.message for each in failed.values())
    reason = reason or look.why_not_both_healthy_on(version)
    reason = "; ".join([reason, *(each for each in look.obstacles if each not in reason)])
    detail = "\n".join(each.detail for each in failed.values() if each.detail)
    if spared is not None:
        message = f"{reason}; {spared} serves alone and is left running"
        return NotHealthy(message, detail=detail, remedy=remedy)
    primary_down = run.stage is Stage.NO_RETURN and not look.primary.is_healthy_on(version)
    if primary_down and look.backup.serving:
        message = f"{reason}; {look.backup.job} serves {look.backup.running or version}"
        return PrimaryDown(message, detail=detail, remedy=remedy)
    return HalfDone(f"{what} is half done: {reason}", detail=detail, remedy=remedy)


def ways_on(run: Run, look: Look, command: str) -> str:
    """What to type when an instance did not come up: the same again, or back."""
    host, version = run.host, run.version
    ways = []
    if look.current.version == version:
        ways.append(f"once the cause is fixed, run: {host.command(command, version)}")
    way_back = host.way_back(look)
    if way_back is not None and way_back != version:
        ways.append(f"to go back: {host.command('rollback', way_back)}")
    return "\n".join(ways)


def is_settled_on(look: Look, version: str) -> bool:
    """Whether the release is current and approved, and both instances are healthy on it."""
    return (
        look.approved == version
        and look.current.version == version
        and look.both_healthy_on(version)
        and not look.drifted
    )
