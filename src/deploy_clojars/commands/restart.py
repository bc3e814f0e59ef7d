"""Both instances stopped and started on the same release, one after the other."""

from __future__ import annotations

from contextlib import ExitStack

from deploy_clojars.config import BACKUP, PRIMARY, Role
from deploy_clojars.deploy import drain, preflight
from deploy_clojars.deploy.ask import ask_to_restart
from deploy_clojars.deploy.steps import half_done, refuse_a_restart, restart
from deploy_clojars.errors import NotHealthy
from deploy_clojars.host import decisions
from deploy_clojars.machine import signals
from deploy_clojars.run.run import Run, Stage, where_the_host_stands


def restart_both(run: Run) -> None:
    """Stops and starts both instances on the approved release. Raises DeployError."""
    drain.clear_stale_flag(run)
    look, run.version = preflight.check_restart(run.host)
    ask_to_restart(run, look)
    run.host.read_changed_jobs()  # now, so that one with an error keeps what runs from being stopped
    look, _ = preflight.check_restart(run.host)  # the question may have been open for long
    signals.check()
    run.begin(look)
    with ExitStack() as seen_through:
        stop_and_start_each(run, seen_through)


def stop_and_start_each(run: Run, seen_through: ExitStack) -> None:
    """Stops and starts one instance after the other, each exactly once.

    From the first request on no signal stops it, until `seen_through` is closed.

    Raises NotHealthy (6) if nothing could be restarted, or if the first one does not come up and
    the other one is spared; PrimaryDown (8) and HalfDone (9) if the second one does not.
    """
    host, version, force = run.host, run.version, run.request.force
    left: list[Role] = [PRIMARY, BACKUP]
    failed: dict[Role, NotHealthy] = {}
    while True:
        look = host.look()
        role = decisions.next_to_stop_and_start(*look.health_on(version), left, force=force)
        if role is None:
            break
        left.remove(role)
        try:
            with drain.without_requests(run, role, look):
                refuse_a_restart(run, host.look(), role, version, force=force)
                if run.stage is not Stage.NO_RETURN:
                    signals.check()
                    seen_through.enter_context(run.uninterruptible(restarts=2))
                    run.no_return()
                restart(run, role, version, by_stop_and_start=True, checked=True)
        except NotHealthy as error:
            if run.stage is not Stage.NO_RETURN:
                error.remedy = where_the_host_stands(run)
                raise
            failed[role] = error
    after = host.look()
    if left or failed or not after.both_healthy_on(version):
        remedy = (
            f"once the cause is fixed, run: {host.command('rollback', version)}\n"
            f"and then once more: {host.command('restart')}"
        )
        serving = [each.job for each in (after.primary, after.backup) if each.serving]
        spared = serving[0] if left and serving else None
        raise half_done(run, "the restart", version, failed, remedy, spared)
    run.succeeded("restarted", f"both instances were restarted on {version}")
