"""Back to the approved release: first the link, in one atomic step, then what runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress

from deploy_clojars.config import BACKUP, PRIMARY, Role
from deploy_clojars.deploy import drain
from deploy_clojars.deploy.steps import DATA_STAYS, flip, half_done, remove_link, restart, stop
from deploy_clojars.errors import (
    Declined,
    Defect,
    DeployError,
    HalfDone,
    Interrupted,
    NotHealthy,
    NotReady,
)
from deploy_clojars.host import decisions
from deploy_clojars.host.look import Look
from deploy_clojars.run.run import Run, Stage, known, where_the_host_stands

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
    is_gone = look.approved is not None and not run.host.releases.has(look.approved)
    if is_gone and cut_off.flipped:
        if run.request.command == "deploy" and run.version == look.approved:
            return None  # it is built again, and both instances are put on it
        raise NotReady(
            f"the {cut_off.what} was cut off, and its approved release {look.approved} "
            "is gone, so it cannot be reverted",
            remedy=f"first: {run.host.command_back(look)}",
        )
    what = f"the {cut_off.what} by {cut_off.by}, {cut_off.at}, was cut off"
    run.left = look.left()
    current = look.current.version
    if look.approved is None and current not in (None, cut_off.version):
        run.console.say(f"{what}; current has been {current} since, and stays")
    elif cut_off.flipped:
        run.console.say(f"{what}; reverting it first")
        revert(run, look.approved, cut_off.version or "")
    else:
        run.console.say(f"{what} before it changed anything that runs")
        run.left = cut_off.left  # what has changed since then is drift
    run.close(cut_off)
    return run.host.look()


@contextmanager
def reverted_on_failure(run: Run) -> Iterator[None]:
    """Reverts to the approved release if the block fails, whatever the reason.

    The reason goes on. Raises HalfDone (9) if the revert fails, too.
    """
    assert run.before is not None  # the run has begun
    approved = run.before.approved
    # The link for the way back is created before the flip, so that a full disk stops no revert.
    link_back = run.host.releases.link_made_for(approved) if approved else nullcontext()
    with link_back:
        run.stage = Stage.CHANGING
        try:
            yield
        except BaseException as error:
            if approved == run.version and isinstance(error, Declined | Interrupted):
                drain.prefer_primary(run)
                raise  # current is the approved release: nothing has to be put back
            if isinstance(error, DeployError):
                run.console.say(f"{error.message}; reverting", "bold")
            try:
                revert(run, approved, run.version)
            except Exception as failure:
                if isinstance(error, Exception):
                    raise _after(known(run, error), known(run, failure)) from failure
                raise
            raise


def _after(first: DeployError, failure: DeployError) -> DeployError:
    """The failure of a revert, with all that is known about why there was one."""
    kind = Defect if isinstance(failure, Defect) else HalfDone
    remedy = dict.fromkeys([*first.remedy.splitlines(), *failure.remedy.splitlines()])
    return kind(
        f"{first.message}; {failure.message}",
        detail="\n".join(filter(None, (first.detail, failure.detail))),
        remedy="\n".join(remedy),
    )


def revert(run: Run, approved: str | None, attempted: str) -> None:
    """Brings the host back to the approved release: first the link, then what runs.

    No signal stops it. Raises HalfDone (9).
    """
    with run.reverting():
        try:
            if approved is None:
                _revert_to_nothing(run, attempted)
                return
            flip(run, approved)
        except DeployError as error:
            drain.prefer_primary(run)  # it still runs what is approved
            raise HalfDone(
                f"the revert failed: {error.message}",
                detail=error.detail,
                remedy=where_the_host_stands(run),
            ) from None
        drain.prefer_primary(run)
        failed = restart_what_is_not_healthy(run, approved)
        look = run.host.look()
        if failed or not look.both_healthy_on(approved):
            stands = where_the_host_stands(run)
            raise half_done(run, f"the revert to {approved}", approved, failed, stands)
        backup = None if look.backup_rests else approved
        run.now_left_with(current=approved, primary=approved, backup=backup)
        run.console.say(f"reverted: {approved} is current and runs on {look.where_it_runs}")
        if attempted in look.history.migrated:
            run.console.say(f"  {DATA_STAYS}: it was migrated for {attempted}")


def _revert_to_nothing(run: Run, attempted: str) -> None:
    """Before any release was approved: no link, and no instance on the attempted release."""
    host = run.host
    remove_link(run, "revert", "no release was approved before", previously=attempted)
    drain.prefer_primary(run)
    look = host.look()
    for role, observation in ((PRIMARY, look.primary), (BACKUP, look.backup)):
        if role == BACKUP or attempted in observation.open_releases:
            stop(run, role, force=True)


def restart_what_is_not_healthy(run: Run, target: str) -> dict[Role, NotHealthy]:
    """Restarts what is not healthy on the target, in the order that keeps users served.

    A backup that should rest by then is stopped instead. Returns the failures. Both instances are
    looked at again before each restart. One whose state is unknown, or that could not be restarted,
    does not count as down and is left alone.
    """
    failed: dict[Role, NotHealthy] = {}
    done: set[tuple[Role, bool]] = set()
    look = _look_when_what_runs_the_target_answers(run, target)
    while True:
        unknown = {each.role for each in look.instances if each.why_not_restarted}
        role = decisions.next_to_restart(*look.health_on(target), failed, unknown)
        if role is None:
            return failed
        is_to_rest = role == BACKUP and look.backup_should_rest(target)
        try:
            if (role, is_to_rest) in done:
                raise NotHealthy(f"{run.host.instances[role].job} did not stay healthy on {target}")
            done.add((role, is_to_rest))
            with drain.without_requests(run, role, look):
                if is_to_rest:
                    stop(run, role)
                else:
                    restart(run, role, target)
        except NotHealthy as error:
            failed[role] = error
        look = run.host.look()


def _look_when_what_runs_the_target_answers(run: Run, target: str) -> Look:
    """Gives an instance that runs the target and does not answer some time; returns the look after it.

    A JVM that stalls for seconds beside a build is no reason to restart what serves the users, and
    one that was started again by itself comes up on the target.
    """
    look = run.host.look()
    for observation in look.instances:
        if target in observation.open_releases and not observation.is_healthy_on(target):
            with suppress(NotHealthy):
                instance = run.host.instances[observation.role]
                instance.wait_until_healthy(target, timeout=PATIENCE)
            look = run.host.look()
    return look
