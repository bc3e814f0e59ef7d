"""Back to the approved release: first the link, in one atomic step, then what runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from deploy_clojars.deploy import drain
from deploy_clojars.deploy.steps import finishing_notice, flip, restart
from deploy_clojars.errors import Declined, DeployError, HalfDone, Interrupted, NotHealthy, NotReady
from deploy_clojars.host import decisions
from deploy_clojars.host.instances import BACKUP, PRIMARY, Role
from deploy_clojars.host.look import Look
from deploy_clojars.machine import signals
from deploy_clojars.run.run import Run, where_the_host_stands

# For an instance that runs the target of a revert or a rollback and does not answer; in seconds.
PATIENCE = 15.0


def revert_a_run_that_was_cut_off(run: Run) -> Look | None:
    """Reverts an earlier run that was killed before its point of no return.

    Returns a new look at the host if there was one. Raises HalfDone (9).
    """
    look = run.host.look()
    cut_off = look.history.unfinished
    if cut_off is None or cut_off.past_return:
        return None
    if look.approved is not None and not run.host.releases.has(look.approved):
        raise NotReady(
            f"the {cut_off.what} was cut off, and the approved release "
            f"{look.approved} that it would be reverted to is gone",
            remedy=f"first: {run.host.command_back(look)}",
        )
    what = f"the {cut_off.what} by {cut_off.by}, {cut_off.at}, was cut off"
    run.left = look.left()
    current = look.current.version
    if look.approved is None and current not in (None, cut_off.version):
        run.console.say(f"{what}; current is {current} since, and stays so")
    elif cut_off.flipped:
        run.console.say(f"{what}; it is reverted first")
        with signals.uninterruptible(finishing_notice(run, restarts=2)):
            revert(run, look.approved, cut_off.version or "")
    else:
        run.console.say(f"{what} before it changed anything that runs")
    run.close(cut_off, run.left)
    return run.host.look()


@contextmanager
def reverted_on_failure(run: Run, approved: str | None, version: str) -> Iterator[None]:
    """Reverts if the block fails before the point of no return, whatever the reason.

    The reason goes on. Raises HalfDone (9) if the revert fails, too.
    """
    try:
        yield
    except BaseException as error:
        if run.past_return:
            raise
        if approved == version and isinstance(error, Declined | Interrupted):
            raise  # current is the approved release: nothing has to be put back
        if isinstance(error, DeployError):
            run.console.say(f"{error.message}; reverting", "bold")
        with signals.uninterruptible(finishing_notice(run, restarts=2)):
            revert(run, approved, version)
        raise


def revert(run: Run, approved: str | None, attempted: str) -> None:
    """Brings the host back to the approved release: first the link, then what runs.

    Raises HalfDone (9).
    """
    run.journal_may_fail = True
    if approved is None:
        revert_to_nothing(run, attempted)
        return
    try:
        flip(run, approved)
    except DeployError as error:
        raise HalfDone(
            f"the revert failed: {error.message}", remedy=where_the_host_stands(run.host)
        ) from None
    failed = restart_what_is_not_healthy(run, approved)
    look = run.host.look()
    if failed or not look.both_healthy_on(approved):
        reasons = [each.message for each in failed.values()] or [
            look.why_not_both_healthy_on(approved)
        ]
        raise HalfDone(
            f"the revert to {approved} is half done: {'; '.join(reasons)}",
            detail="\n".join(each.detail for each in failed.values()),
            remedy=where_the_host_stands(run.host),
        )
    run.now_left_with(current=approved, primary=approved, backup=approved)
    run.console.say(f"reverted: {approved} is current and runs on both instances")


def revert_to_nothing(run: Run, attempted: str) -> None:
    """Before any release was approved: no link, and no instance on the attempted release."""
    host = run.host
    try:
        with run.step("revert", "remove the link: no release was approved before"):
            run.record("flip", previously=attempted)
            host.releases.remove_link()
        run.now_left_with(current=None)
        look = host.look()
        for role, observation in ((PRIMARY, look.primary), (BACKUP, look.backup)):
            if role == BACKUP or attempted in observation.open_releases:
                with run.step("revert", f"stop {observation.job}"):
                    run.record("stop", instance=role, pid=observation.pid)
                    host.instances[role].stop()
                run.now_left_with(**{role: None})
    except DeployError as error:
        raise HalfDone(
            f"the revert failed: {error.message}", remedy=where_the_host_stands(run.host)
        ) from None


def restart_what_is_not_healthy(run: Run, target: str) -> dict[Role, NotHealthy]:
    """Restarts what is not healthy on the target, in the order that keeps users served.

    Returns the failures. Both instances are looked at again before each restart.
    """
    failed: dict[Role, NotHealthy] = {}
    restarted: set[Role] = set()
    wait_for_what_runs_the_target_already(run, target)
    while True:
        look = run.host.look()
        role = decisions.next_to_restart(*look.health_on(target), failed)
        if role is None:
            return failed
        try:
            if role in restarted:
                raise NotHealthy(f"{run.host.instances[role].job} did not stay healthy on {target}")
            restarted.add(role)
            with drain.without_requests(run, role):
                restart(run, role, target)
        except NotHealthy as error:
            failed[role] = error


def wait_for_what_runs_the_target_already(run: Run, target: str) -> None:
    """Gives an instance that runs the target and does not answer some time.

    A JVM that stalls for seconds beside a build is no reason to restart what serves the users, and
    one that was started again by itself comes up on the target.
    """
    look = run.host.look()
    for observation in (look.primary, look.backup):
        if target in observation.open_releases and not observation.is_healthy_on(target):
            with suppress(NotHealthy):
                instance = run.host.instances[observation.role]
                instance.wait_until_healthy(target, timeout=PATIENCE)
