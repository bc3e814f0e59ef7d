"""Back to a release that is there: which one, the question, and both instances on it."""

from __future__ import annotations

from deploy_clojars.deploy import drain, preflight
from deploy_clojars.deploy.ask import ask_to_roll_back
from deploy_clojars.deploy.revert import restart_what_is_not_healthy, revert_a_run_that_was_cut_off
from deploy_clojars.deploy.steps import (
    DATA_STAYS,
    finishing_notice,
    flip,
    is_settled_on,
    restart,
)
from deploy_clojars.errors import DeployError, HalfDone, NotHealthy, PrimaryDown
from deploy_clojars.host import decisions, jars
from deploy_clojars.host.host import Host
from deploy_clojars.host.instances import BACKUP, Role
from deploy_clojars.host.look import Look
from deploy_clojars.machine import signals
from deploy_clojars.run.run import Run, started, where_the_host_stands
from deploy_clojars.screen.console import Console


def rollback(
    host: Host, console: Console, version: str | None, *, yes: bool, why: str | None
) -> None:
    """Puts a release that is there back into production. Raises DeployError."""
    with started(host, console, "rollback", version) as run:
        run.reason = why
        drain.clear_stale_flag(run)
        look = preflight.ready_to_restart(host)
        refuse_an_unreadable_journal(console, look, version)
        target = run.version = target_of_rollback(host, look, version)
        if look.history.unfinished is None and is_settled_on(look, target):
            if host.nginx.flag_is_set:
                raise DeployError(f"the drain flag {host.nginx.flag} is still there")
            console.say(f"{target} is current, approved and runs on both instances already")
            return
        restart_failed = host.situation(look, locked=False).failed_restart
        ask_to_roll_back(run, look, target, yes=yes)
        if host.way_back(look) == look.approved:
            look = revert_a_run_that_was_cut_off(run) or look
        signals.check()
        run.journal_may_fail = True
        run.begin(look)
        run.state_on_failure = ""
        with signals.uninterruptible(finishing_notice(run, restarts=2)):
            roll_back(run, look, target, why)
        if restart_failed:
            # Only what was down has the new settings now.
            console.warn(f"the restart before this is not done: {host.command('restart')}")


def refuse_an_unreadable_journal(console: Console, look: Look, version: str | None) -> None:
    """Without the journal nobody knows where a bare rollback goes. Raises DeployError (1)."""
    if look.journal_error and version is None:
        raise DeployError(look.journal_error, remedy="name the release to roll back to")
    if look.journal_error:
        console.warn(look.journal_error)


def target_of_rollback(host: Host, look: Look, version: str | None) -> str:
    """The release to go back to, known to be there and sound. Raises DeployError (1)."""
    target = version or decisions.bare_rollback_target(
        look.history, look.approved, look.current.version,
        (look.primary.running, look.backup.running),
    )  # fmt: skip
    if target is None:
        raise DeployError("there is no previous release to roll back to", remedy=_listed(host))
    if not host.releases.has(target):
        raise DeployError(f"no release {target} in {host.releases.directory}", remedy=_listed(host))
    jars.facts_of(host.releases.path(target), host.config.name)
    return target


def _listed(host: Host) -> str:
    some = host.releases.some()
    return f"there are: {some}" if some else "there is no release at all"


def roll_back(run: Run, look: Look, target: str, why: str | None) -> None:
    """Points the link at the target and restarts what is not healthy on it.

    Raises NotHealthy (6) if the first instance does not come up and all was put back,
    PrimaryDown (8) and HalfDone (9) if the second one does not.
    """
    host = run.host
    nothing_served = not (look.primary.serving or look.backup.serving)
    run.no_return(target)
    flip(run, target)
    failed = restart_what_is_not_healthy(run, target)
    after = host.look()
    if (
        failed
        and not nothing_served
        and not (after.primary.is_healthy_on(target) or after.backup.is_healthy_on(target))
    ):
        raise put_back(run, look, target, failed)
    if after.primary.is_healthy_on(target):
        previously = look.approved if look.approved != target else look.current.version
        run.record("rolled back", version=target, previously=previously, why=why)
        drain.prefer_primary(run)  # where it needed no restart, and a run that was killed left it
    if not after.both_healthy_on(target):
        raise half_rolled_back(run, after, target, failed)
    run.now_left_with(current=target, primary=target, backup=target)
    run.outcome = "rolled back"
    run.console.say(f"{target} is in production; {DATA_STAYS}", "bold green")
    run.console.say(f"  {run.summary()}", "dim")
    if run.journal_failed:
        again = host.command("rollback", target)
        run.console.warn(f"this is not written down; when the journal can be written: {again}")


def put_back(run: Run, look: Look, target: str, failed: dict[Role, NotHealthy]) -> DeployError:
    """After the first instance failed: current as it was, and the backup if it was restarted."""
    (role, reason), *_ = failed.items()
    before = look.current.version
    run.console.say(f"{reason.message}; putting current back", "bold")
    try:
        if before is None:
            with run.step("flip", "remove the link: there was none"):
                run.record("flip", previously=target)
                run.host.releases.remove_link()
            run.now_left_with(current=None)
        else:
            flip(run, before)
            if role == BACKUP:
                restart(run, BACKUP, before)
    except DeployError as error:
        return HalfDone(
            f"{reason.message}; and {before} could not be put back: {error.message}",
            detail=reason.detail,
            remedy=where_the_host_stands(run.host),
        )
    return NotHealthy(
        f"{reason.message}; current is {before or 'absent'} as before",
        detail=reason.detail,
        remedy=where_the_host_stands(run.host),
    )


def half_rolled_back(
    run: Run, after: Look, target: str, failed: dict[Role, NotHealthy]
) -> DeployError:
    """What it means that the second instance did not come up."""
    reason = "; ".join(each.message for each in failed.values()) or after.why_not_both_healthy_on(
        target
    )
    detail = "\n".join(each.detail for each in failed.values())
    ways = [f"when the reason is mended: {run.host.command('rollback', target)}"]
    way_back = run.host.way_back(after)
    if way_back is not None and way_back != target:
        ways.append(f"to go back: {run.host.command('rollback', way_back)}")
    remedy = "\n".join(ways)
    if after.backup.is_healthy_on(target) and after.backup.serving:
        return PrimaryDown(
            f"{reason}; {after.backup.job} serves {target}", detail=detail, remedy=remedy
        )
    return HalfDone(
        f"the rollback to {target} is half done: {reason}", detail=detail, remedy=remedy
    )
