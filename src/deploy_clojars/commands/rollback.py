"""Back to a release that is there: which one, the question, and both instances on it."""

from __future__ import annotations

from deploy_clojars.config import BACKUP, Role
from deploy_clojars.deploy import drain, preflight
from deploy_clojars.deploy.ask import ask_to_roll_back
from deploy_clojars.deploy.revert import restart_what_is_not_healthy, revert_a_run_that_was_cut_off
from deploy_clojars.deploy.steps import (
    DATA_STAYS,
    flip,
    half_done,
    is_settled_on,
    remove_link,
    restart,
    ways_on,
)
from deploy_clojars.errors import DeployError, HalfDone, NotHealthy, Status
from deploy_clojars.host import decisions, manifest
from deploy_clojars.host.host import Host
from deploy_clojars.host.look import Look
from deploy_clojars.machine import signals
from deploy_clojars.run.run import Run, where_the_host_stands


def rollback(run: Run) -> None:
    """Puts a release that is there back into production. Raises DeployError."""
    host = run.host
    drain.clear_stale_flag(run)
    look = look_and_choose(run)
    restart_failed = host.situation(look, locked=False).failed_restart
    if look.history.unfinished is None and is_settled_on(look, run.version):
        if host.nginx.flag_is_set:
            raise DeployError(f"the drain flag {host.nginx.flag} is still there")
        where = look.where_it_runs
        run.console.say(f"{run.version} is current, approved and runs on {where} already")
    else:
        _ask_and_roll_back(run, look)
    if restart_failed:
        # Only what was down has the new settings now.
        run.console.warn(
            f"the restart before this did not finish; run it again: {host.command('restart')}"
        )


def _ask_and_roll_back(run: Run, look: Look) -> None:
    ask_to_roll_back(run, look)
    if not run.request.yes:
        look = look_and_choose(run)  # the question may have been open for long
    if run.host.way_back(look) == look.approved:
        look = revert_what_was_cut_off(run) or look
    signals.check()
    run.begin(look)
    with run.uninterruptible(restarts=2):
        roll_back(run, look)


def revert_what_was_cut_off(run: Run) -> Look | None:
    """Reverts an earlier run that was killed; returns a new look at the host if there was one.

    If that fails, a rollback to another release continues: it is the way out. Raises HalfDone (9) if
    this one is to the approved release.
    """
    try:
        return revert_a_run_that_was_cut_off(run)
    except HalfDone as error:
        look = run.host.look()
        if run.version == look.approved:
            raise
        run.console.warn(f"{error.message}; continuing with the rollback to {run.version}")
        return look


def look_and_choose(run: Run) -> Look:
    """Looks at the host, and notes where the rollback goes. Raises NotReady (4), DeployError (1)."""
    look = preflight.ready_to_restart(run.host, one_will_do=True)
    refuse_an_unreadable_journal(run, look)
    run.version = target_of_rollback(run, look)
    return look


def refuse_an_unreadable_journal(run: Run, look: Look) -> None:
    """Without the journal nobody knows where a bare rollback goes. Raises DeployError (1)."""
    if look.journal_error and not run.version:
        raise DeployError(look.journal_error, remedy="name the release to roll back to")
    if look.journal_error:
        run.warn_once(look.journal_error)


def target_of_rollback(run: Run, look: Look) -> str:
    """The release to go back to, known to be there and sound. Raises DeployError (1)."""
    host = run.host
    target = run.version or decisions.bare_rollback_target(
        look.history, look.approved, look.current.version,
        (look.primary.running, look.backup.running),
    )  # fmt: skip
    if target is None:
        raise DeployError("there is no previous release to roll back to", remedy=_listed(host))
    if not host.releases.has(target):
        ways = [_listed(host)]
        if not run.version:
            older = (each for each in reversed(look.history.stack) if each != look.approved)
            further = host.first_there(older)
            ways += [f"to go back further: {host.command('rollback', further)}"] if further else []
        if look.approved == target:
            ways.append(f"to build it again: {host.command('deploy', target)}")
        raise DeployError(
            f"no release {target} in {host.releases.directory}", remedy="\n".join(ways)
        )
    _refuse_a_damaged_jar(host, look, target)
    return target


def _refuse_a_damaged_jar(host: Host, look: Look, version: str) -> None:
    """Raises DeployError (1)."""
    installed = look.history.installed.get(version)
    # The jar was checked when it was installed. Its checksum takes a tenth of the time of its entries'.
    if installed is None or installed.sha256 != host.releases.sha256(version):
        manifest.facts_of(host.releases.path(version), host.config.name)


def _listed(host: Host) -> str:
    some = host.releases.some()
    return f"available: {some}" if some else "no releases are installed"


def roll_back(run: Run, before: Look) -> None:
    """Points the link at the target and restarts what is not healthy on it.

    Raises NotHealthy (6) if the first instance does not come up and all was put back,
    PrimaryDown (8) and HalfDone (9) if the second one does not.
    """
    host, target = run.host, run.version
    nothing_served = not (before.primary.serving or before.backup.serving)
    run.no_return()
    flip(run, target)
    failed = restart_what_is_not_healthy(run, target)
    after = host.look()
    neither_came_up = not (
        after.primary.is_healthy_on(target) or after.backup.is_healthy_on(target)
    )
    if failed and neither_came_up and not nothing_served:
        raise put_back(run, before, failed)
    if after.primary.is_healthy_on(target):
        # A deploy that was killed before its flip never had an instance on its release.
        cut_off = run.cut_off
        killed = cut_off.version if cut_off is not None and cut_off.flipped else None
        replaced = (before.approved, before.current.version, killed)
        previously = next((each for each in replaced if each not in (None, target)), None)
        run.record("rolled back", version=target, previously=previously, why=why(run, before))
        drain.prefer_primary(run)  # where it needed no restart, and a run that was killed left it
    if not after.both_healthy_on(target):
        ways = ways_on(run, after, "rollback")
        raise half_done(run, f"the rollback to {target}", target, failed, ways)
    backup = None if after.backup_rests else target
    run.now_left_with(current=target, primary=target, backup=backup)
    run.succeeded("rolled back", f"{target} is in production; {DATA_STAYS}")
    if run.unwritten:
        again = host.command("rollback", target)
        run.console.warn(f"the journal does not say so; once it can be written, run: {again}")


def why(run: Run, before: Look) -> str | None:
    """The operator's reason: given now, or earlier to the same rollback if that did not finish."""
    last = before.history.last
    if run.request.why is None and last is not None and last.status != Status.DONE:
        same = (last.command, last.version) == ("rollback", run.version)
        return last.why if same else None
    return run.request.why


def put_back(run: Run, before: Look, failed: dict[Role, NotHealthy]) -> DeployError:
    """After the first instance failed: current as it was, and the backup if it was restarted."""
    reason = "; ".join(each.message for each in failed.values())
    details = [each.detail for each in failed.values()]
    version = before.current.version
    run.console.say(f"{reason}; putting current back", "bold")
    try:
        if version is None:
            remove_link(run, "flip", "there was none", previously=run.version)
        else:
            flip(run, version)
            _, backup = run.host.look().health_on(version)
            if BACKUP in failed and not backup.healthy:
                restart(run, BACKUP, version)
    except DeployError as error:
        return HalfDone(
            f"{reason}; putting back what ran before failed, too: {error.message}",
            detail="\n".join(filter(None, (*details, error.detail))),
            remedy=where_the_host_stands(run),
        )
    run.reverted = True
    return NotHealthy(
        f"{reason}; current is {version or 'absent'} as before",
        detail="\n".join(filter(None, details)),
        remedy=where_the_host_stands(run, run.host.command("rollback", run.version)),
    )
