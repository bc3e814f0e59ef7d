"""Both instances stopped and started on the same release, one after the other."""

from __future__ import annotations

from deploy_clojars.deploy import drain, preflight
from deploy_clojars.deploy.ask import ask_to_restart
from deploy_clojars.deploy.steps import finishing_notice, restart
from deploy_clojars.errors import DeployError, HalfDone, NotHealthy, PrimaryDown
from deploy_clojars.host import decisions
from deploy_clojars.host.host import Host
from deploy_clojars.host.instances import BACKUP, PRIMARY, Role
from deploy_clojars.host.look import Look
from deploy_clojars.machine import signals
from deploy_clojars.run.run import Run, started
from deploy_clojars.screen.console import Console


def restart_both(host: Host, console: Console, *, yes: bool, force: bool) -> None:
    """Starts both instances anew on the approved release. Raises DeployError."""
    with started(host, console, "restart", None) as run:
        drain.clear_stale_flag(run)
        look, approved = preflight.check_restart(host)
        run.version = approved
        ask_to_restart(run, look, approved, yes=yes, force=force)
        signals.check()
        run.begin(look)
        run.state_on_failure = ""
        with signals.uninterruptible(finishing_notice(run, restarts=2)):
            stop_and_start_each(run, approved, force=force)


def stop_and_start_each(run: Run, version: str, *, force: bool) -> None:
    """Stops and starts one instance after the other, each exactly once.

    Raises NotHealthy (6) if the first one does not come up and the other one is spared,
    PrimaryDown (8) and HalfDone (9) if the second one does not.
    """
    host = run.host
    run.no_return(version)
    run.journal_may_fail = True  # an instance that is down must not wait for room on the disk
    left: list[Role] = [PRIMARY, BACKUP]
    failed: dict[Role, NotHealthy] = {}
    while True:
        role = decisions.next_to_stop_and_start(*host.look().health_on(version), left, force=force)
        if role is None:
            break
        left.remove(role)
        try:
            with drain.without_requests(run, role):
                restart(run, role, version, by_stop_and_start=True, force=force)
        except NotHealthy as error:
            failed[role] = error
    after = host.look()
    if after.both_healthy_on(version) and not left and not failed:
        run.outcome = "restarted"
        run.console.say(f"both instances were restarted on {version}", "bold green")
        run.console.say(f"  {run.summary()}", "dim")
        return
    raise half_restarted(run, after, version, failed, spared=bool(left))


def half_restarted(
    run: Run, after: Look, version: str, failed: dict[Role, NotHealthy], *, spared: bool
) -> DeployError:
    """What it means that an instance did not come up."""
    reason = "; ".join(each.message for each in failed.values()) or after.why_not_both_healthy_on(
        version
    )
    detail = "\n".join(each.detail for each in failed.values())
    remedy = (
        f"when the reason is mended: {run.host.command('rollback', version)}\n"
        f"and then once more: {run.host.command('restart')}"
    )
    serving = [each.job for each in (after.primary, after.backup) if each.serving]
    if spared and serving:
        message = f"{reason}; {serving[0]} serves alone and is left as it is"
        return NotHealthy(message, detail=detail, remedy=remedy)
    if not after.primary.serving and after.backup.serving:
        message = f"{reason}; {after.backup.job} serves {version}"
        return PrimaryDown(message, detail=detail, remedy=remedy)
    return HalfDone(f"the restart is half done: {reason}", detail=detail, remedy=remedy)
