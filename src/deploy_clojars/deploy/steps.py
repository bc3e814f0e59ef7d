"""The steps that deploy, rollback and restart share: the flip, one instance's restart, the question."""

from __future__ import annotations

from deploy_clojars.errors import NotHealthy
from deploy_clojars.host.instances import BACKUP, Observation, Role
from deploy_clojars.host.look import Look
from deploy_clojars.machine import signals
from deploy_clojars.run.run import Run

DATA_STAYS = "data stays as it is: only code is put back"


def flip(run: Run, version: str) -> None:
    """Points the link at the release."""
    before = run.host.releases.current().version
    with run.step("flip", f"current: {before or 'none'} -> {version}"):
        run.record("flip", version=version, previously=before)
        run.host.releases.flip(version)
    run.now_left_with(current=version)


def restart(
    run: Run, role: Role, version: str, *, by_stop_and_start: bool = False, force: bool = False
) -> Observation:
    """Restarts an instance and waits until it is healthy on the release.

    `by_stop_and_start`: stop and start, which reads a changed job file. `force`: also the only one that
    serves. Raises NotHealthy (6), Interrupted.
    """
    instance = run.host.instances[role]
    before = run.host.services.status(instance.job)
    verb = "stop and start" if by_stop_and_start else "restart"
    if before.state == "stopped":
        verb = "start"
    with run.step(role, f"{verb} {instance.job}") as becomes:
        refuse_a_link_that_was_changed_meanwhile(run, version)
        if not force:
            refuse_the_only_serving_instance(run, role)
        run.record("restart", instance=role, version=version, pid=before.pid)
        # Until it is healthy all that is known is that it starts on what is current.
        run.now_left_with(**{role: None})
        if by_stop_and_start:
            instance.stop_and_start()
        else:
            instance.restart()
        observation = instance.wait_until_healthy(version, not_pid=before.pid)
        run.now_left_with(**{role: version})
        becomes(f"healthy on {version} (PID {observation.pid})")
    return observation


def refuse_a_link_that_was_changed_meanwhile(run: Run, version: str) -> None:
    """Whatever is restarted starts on what current names, so that must be the release.

    Raises NotHealthy (6).
    """
    current = run.host.releases.current()
    if current.version != version:
        names = current.version or current.broken or "nothing"
        raise NotHealthy(f"current was changed by somebody else meanwhile: {names}, not {version}")


def refuse_the_only_serving_instance(run: Run, role: Role) -> None:
    """The other one may have died since it was decided that this one is restarted.

    Raises NotHealthy (6).
    """
    look = run.host.look()
    this, other = look.primary, look.backup
    if role == BACKUP:
        this, other = other, this
    if this.serving and not other.serving:
        raise NotHealthy(f"{other.job} does not serve any more, and {this.job} serves alone")


def finishing_notice(run: Run, restarts: int = 1) -> signals.Notice:
    """What is said, once, when a signal comes where the run must not stop."""
    config = run.host.config
    each = config.drain.timeout + config.health.timeout + config.services.timeout
    seconds = restarts * each
    return lambda: run.console.warn(f"signal noted; finishing, up to {seconds:g} s")


def is_settled_on(look: Look, version: str) -> bool:
    """Whether the release is current and approved, and both instances are healthy on it."""
    return (
        look.approved == version
        and look.current.version == version
        and look.both_healthy_on(version)
        and not look.drifted
    )
