"""The drain: nginx prefers the backup, and the requests in an instance end before it is restarted.

nginx looks at a flag file at every request, so that no reload is needed, which would cut
connections that are kept alive. A POST that was sent to an instance is lost with it, and other
requests are sent twice: so none may be in it when it is restarted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from deploy_clojars.config import BACKUP, PRIMARY, Role
from deploy_clojars.errors import DeployError, NotDrained
from deploy_clojars.host.health import Observation
from deploy_clojars.host.instances import Instance
from deploy_clojars.host.look import Look
from deploy_clojars.host.nginx import BACKUP_FIRST, PRIMARY_FIRST
from deploy_clojars.host.visits import Visits
from deploy_clojars.machine import (
    processes,
    signals,
    web,  # noqa: F401 # what asks the probe imports it late, for `status`' sake
)
from deploy_clojars.run.run import Run

# Within it nginx has seen a flag: it looks at every request, the probe's own too. In seconds.
FOLLOWS_WITHIN = 3.0
# Between two looks; on a busy host the kernel's table of connections takes half of it to read.
INTERVAL = 0.1

# An upload that nginx was still taking in when the flag appeared comes late, and is over in a
# moment: for so long what has ended counts, too. Not for ever, for the connection that has ended may
# have been somebody else's: a health check of another program's. In seconds.
LATE = 10.0

SHOWN = 5  # visitors by address


def drain_primary(run: Run) -> Observation:
    """Before a promotion: no request is in the primary any more, unless it needs no restart.

    Returns the primary after the drain. The flag stays until the primary is back or a revert removes it.
    Raises NotDrained (6) if requests do not end, unless the operator said `--force`.
    """
    look = run.host.look()
    if look.primary.is_healthy_on(run.version):
        return look.primary
    was_drained = _turn_to_the_backup(run, look, vetoes=not run.request.force)
    return run.host.instances[PRIMARY].observe() if was_drained else look.primary


def drain_backup(run: Run) -> Look:
    """Before the backup's restart: no request is in it any more, unless it needs no restart.

    Returns the host after the drain. Raises NotDrained (6) as `drain_primary`.
    """
    look = run.host.look()
    needs_a_restart = not look.backup.is_healthy_on(run.version)
    if needs_a_restart and _wait_for_backup(run, look, vetoes=not run.request.force):
        return run.host.look()
    return look


def drain_backup_before_its_stop(run: Run) -> None:
    """No request and no nailgun client is in the backup any more. Raises NotDrained (6)."""
    _wait_for_backup(run, run.host.look(), vetoes=True, cuts_nailgun=False)


@contextmanager
def without_requests(run: Run, role: Role, look: Look) -> Iterator[None]:
    """The block restarts the instance, with none of nginx's requests in it as far as can be."""
    if role == BACKUP:
        _wait_for_backup(run, look, vetoes=False)
        yield
    else:
        with back_to_the_primary(run, look.primary):
            _turn_to_the_backup(run, look, vetoes=False)
            yield


@contextmanager
def back_to_the_primary(run: Run, before: Observation) -> Iterator[None]:
    """Removes the flag after the block, which restarts the primary; `before` is how that was.

    The flag stays if the primary did not come back.
    """
    primary = run.host.instances[PRIMARY]
    came_back = False
    try:
        yield
        came_back = True
    finally:
        with run.uninterruptible():
            pid = primary.status().pid
            was_not_restarted = pid is not None and processes.process(pid) == before.process
            if came_back or was_not_restarted:
                prefer_primary(run)
            elif run.host.nginx.flag_is_set:
                run.console.warn(
                    f"the drain flag {run.host.nginx.flag} stays: nginx prefers "
                    f"{run.host.instances[BACKUP].job} until {primary.job} is back"
                )


def nginx_answers(run: Run) -> bool:
    """Whether there is an nginx to be drained; if not, that is said once."""
    answer = run.host.nginx.answer()
    if answer in (PRIMARY_FIRST, BACKUP_FIRST):
        return True
    run.warn_once(
        f"no drain: {run.host.nginx.probe} does not say which instance nginx prefers ({answer}); "
        "requests in flight during a restart will be lost"
    )
    return False


def prefer_primary(run: Run) -> None:
    """Removes the flag, if it is there. One that cannot be removed is a warning."""
    if not run.host.nginx.flag_is_set:
        return
    try:
        run.host.nginx.remove_flag()
    except DeployError as error:
        run.console.warn(f"{error.message}; nginx still prefers the backup")
        return
    run.record("undrain", instance=PRIMARY, may_fail=True)


def clear_stale_flag(run: Run) -> None:
    """Removes what an earlier run has left, if the primary serves the approved release."""
    nginx = run.host.nginx
    if not nginx.flag_is_set:
        return
    if run.host.look().primary_is_as_approved:
        run.console.say(f"removing a drain flag that was left behind: {nginx.flag}")
        prefer_primary(run)


def _turn_to_the_backup(run: Run, look: Look, *, vetoes: bool) -> bool:
    """Sets the flag and waits until no request is in the primary, if the backup can take them.

    Returns whether it has waited.
    """
    if not (look.backup.serving and nginx_answers(run)):
        return False
    primary = run.host.instances[PRIMARY]
    runs = look.primary.pid is not None
    try:
        with run.step("drain", f"{primary.job}: nginx prefers {look.backup.job}") as becomes:
            run.record("drain", instance=PRIMARY)
            run.host.nginx.set_flag()
            _wait_until_followed(run)
            becomes(
                _wait_until_quiet(run, primary)
                if runs
                else f"{primary.job} is down, nothing to drain"
            )
    except NotDrained as error:
        if vetoes and runs:
            raise
        _go_on(run, error)
    return True


def _wait_until_followed(run: Run) -> None:
    """Raises NotDrained, Interrupted."""
    nginx = run.host.nginx
    deadline = time.monotonic() + FOLLOWS_WITHIN
    while True:
        is_late = time.monotonic() > deadline  # before the look: Ctrl-Z may make it an old one
        answer = nginx.answer()
        if answer == BACKUP_FIRST:
            return
        if is_late:
            raise NotDrained(
                f"nginx ignores the drain flag {nginx.flag}: it still answers {answer}",
                remedy="its site must name this path and be in force, and nginx must be able to enter "
                f"the directory; see: {run.host.command('check')}",
            )
        signals.wait(INTERVAL)


def _wait_for_backup(run: Run, look: Look, *, vetoes: bool, cuts_nailgun: bool = True) -> bool:
    """Waits until the backup, which is restarted or stopped next, has none of nginx's requests.

    It may have served a moment ago, and nginx takes a while to forgive a primary that was down.
    The flag is not set while the backup restarts. Returns whether it has waited. Raises NotDrained (6)
    if `vetoes`.
    """
    backup = run.host.instances[BACKUP]
    if not (look.primary.serving and look.backup.serving):
        return False  # nobody else could take the requests, or there are none
    prefer_primary(run)
    if not nginx_answers(run):
        return False
    try:
        with run.step("drain", backup.job) as becomes:
            becomes(_wait_until_quiet(run, backup, cuts_nailgun=cuts_nailgun))
    except NotDrained as error:
        if vetoes:
            raise
        _go_on(run, error)
    return True


def _go_on(run: Run, error: NotDrained) -> None:
    run.console.warn(f"{error.message}; continuing; its in-flight requests will be lost")
    for line in error.detail.splitlines():
        run.console.warn(line)


def _wait_until_quiet(run: Run, instance: Instance, *, cuts_nailgun: bool = True) -> str:
    """Waits until nginx has been without a request in the instance for a while.

    nginx's flag does not reach the nailgun port: its clients are waited for as long, and then cut
    unless they hold it up as requests do. Returns what is worth saying. Raises NotDrained with the
    holders, Interrupted.
    """
    settings = run.host.config.drain
    started = last_request = time.monotonic()
    doors = instance.doors()
    while True:
        now = time.monotonic()  # before the look: the time of a Ctrl-Z must not count as quiet
        visits = doors.visits()
        if visits.requests:
            last_request = now
        elif now - started < LATE:
            last_request = max(last_request, now - visits.since_a_request)
        quiet = now - last_request >= settings.quiet
        out_of_time = now - started >= settings.timeout
        if quiet and ((out_of_time and cuts_nailgun) or not visits.nailgun):
            return _said(visits)
        if out_of_time:
            raise NotDrained(
                f"{instance.job} still had requests from nginx after {settings.timeout:g} s",
                detail="\n".join(visits.holders),
                remedy="retry when they have finished, or use --force to continue without them",
            )
        signals.wait(INTERVAL)


def _said(visits: Visits) -> str:
    """Who is connected and was not waited for, or not any longer."""
    said = []
    if visits.nailgun:
        count = len(visits.nailgun)
        said.append(f"{count} nailgun connection{'s are' if count > 1 else ' is'} cut")
    if visits.past_nginx:
        addresses = [each.address for each in visits.past_nginx[:SHOWN]]
        more = len(visits.past_nginx) - len(addresses)
        said.append(
            f"not waited for, as they bypass nginx: {', '.join(addresses)}"
            + (f" and {more} more" if more else "")
        )
    return "; ".join(said)
