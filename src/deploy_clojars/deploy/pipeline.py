"""Deploy, from top to bottom as it happens.

Everything that it needs is imported here, before the lock is taken: an upgrade of the package
while the question is open must not break the revert.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from deploy_clojars.deploy import build, checkout, drain, preflight, prune
from deploy_clojars.deploy.ask import ask_to_promote
from deploy_clojars.deploy.build import Builder
from deploy_clojars.deploy.checkout import Mirror
from deploy_clojars.deploy.revert import revert_a_run_that_was_cut_off, reverted_on_failure
from deploy_clojars.deploy.steps import (
    finishing_notice,
    flip,
    is_settled_on,
    refuse_a_link_that_was_changed_meanwhile,
    restart,
)
from deploy_clojars.errors import (
    DeployError,
    HalfDone,
    Interrupted,
    NotHealthy,
    NotReady,
    PrimaryDown,
)
from deploy_clojars.host import jars
from deploy_clojars.host.host import Host
from deploy_clojars.host.instances import BACKUP, PRIMARY, Observation
from deploy_clojars.host.look import Look
from deploy_clojars.machine import signals
from deploy_clojars.run.run import Run, make_directory, started
from deploy_clojars.screen.console import Console
from deploy_clojars.screen.tables import decimal


def deploy(host: Host, console: Console, version: str, *, yes: bool, force: bool) -> None:
    """Puts the tag `version` into production. Raises DeployError with the exit status."""
    with started(host, console, "deploy", version) as run:
        drain.clear_stale_flag(run)
        revert_a_run_that_was_cut_off(run)
        look, cost = preflight.check_deploy(host, version, force=force)
        announce(run, look, cost)
        run.begin(look)
        obtain_release(run, version)
        meanwhile = host.look()  # the build took a while
        if is_done_already(run, meanwhile, version):
            return
        wait_for_requests_in_backup(run, meanwhile, version, force=force)
        run.state_on_failure = ""
        with reverted_on_failure(run, look.approved, version):
            flip(run, version)
            backup = bring_up_backup(run, version, force=force)
            ask_to_promote(run, version, yes=yes)
            refuse_a_backup_that_failed_meanwhile(run, version, backup)
            promote(run, version, backup, force=force)
        prune.after_promotion(run)


# --- the steps of a deploy ----------------------------------------------------------------------


def announce(run: Run, look: Look, cost: str | None) -> None:
    """Says what begins, from where, and what `--force` costs."""
    run.console.say(f"deploy {run.version} (approved now: {look.approved or 'none'})", "bold")
    if cost:
        run.console.warn(cost)


def obtain_release(run: Run, version: str) -> None:
    """The release in `releases/`: one that is there, or the tag tested, built and installed."""
    mirror, commit = fetch(run, version)
    if run.host.releases.has(version):
        reuse(run, version, commit)
        return
    with checked_out(run, mirror, version, commit) as directory:
        builder = Builder(run.host.config.build, run.id, run.console)
        with run.step("test", run.host.config.build.test):
            builder.test(directory)
        with run.step("build", run.host.config.build.uberjar):
            jar = builder.uberjar(directory)
        install(run, jar, version, commit)


def fetch(run: Run, version: str) -> tuple[Mirror, str]:
    """The mirror, up to date, and the tag's commit in it."""
    config = run.host.config
    mirror = Mirror(run.host.deploy / "mirror.git", config.repository, run.id)
    with run.step("fetch", config.repository) as becomes:
        if mirror.fetch(run.console.log, config.build.timeout):
            becomes("the mirror was broken and is made anew")
        try:
            commit = mirror.commit_of(version)
        except checkout.Broken:
            mirror.recreate(run.console.log, config.build.timeout)
            commit = mirror.commit_of(version)
    return mirror, commit


@contextmanager
def checked_out(run: Run, mirror: Mirror, version: str, commit: str) -> Iterator[Path]:
    """A fresh directory at the commit while the block runs; kept for a look if the block fails."""
    checkouts = run.host.deploy / "checkouts"
    if checkouts.is_symlink():
        # What is old in it gets removed, wherever a build has led it to.
        raise NotReady(
            f"{checkouts} is a symbolic link", remedy=f"rm {shlex.quote(str(checkouts))}"
        )
    make_directory(checkouts)
    directory = checkout.new_directory(checkouts, version)
    try:
        with run.step("check out", f"{version} is {commit[:10]}"):
            try:
                mirror.check_out(commit, directory)
            except checkout.Broken:
                checkout.remove(directory)
                mirror.recreate(run.console.log, run.host.config.build.timeout)
                mirror.check_out(commit, directory)
        yield directory
    except Interrupted:
        checkout.remove(directory)
        raise
    except BaseException:
        checkout.keep_last_failed(checkouts)
        raise
    checkout.remove(directory)


def install(run: Run, jar: Path, version: str, commit: str) -> None:
    """Copies the jar in as the release."""
    warning = build.inspect(jar, run.host.config.name, version, commit)
    if warning:
        run.console.warn(warning)
    size = jar.stat().st_size
    name = run.host.releases.path(version).name
    with run.step("install", f"{name}, {decimal(size)}"):
        run.record("install", version=version, commit=commit)
        digest = run.host.releases.install(jar, version)
        run.record("installed", version=version, commit=commit, sha256=digest, bytes=size)


def reuse(run: Run, version: str, commit: str) -> None:
    """Takes the release that is there if it was built from the tag's commit.

    There is no rebuild in place: a release never changes. Raises DeployError (1).
    """
    path = run.host.releases.path(version)
    with run.step("reuse", path.name):
        facts = jars.facts_of(path, run.host.config.name)
    refuse_another_commit(run.host, version, commit, facts)


def refuse_another_commit(host: Host, version: str, commit: str, facts: jars.JarFacts) -> None:
    """Raises DeployError (1) if the release that is there was not built from the commit."""
    path = host.releases.path(version)
    known = host.journal.history().commits.get(version) or facts.revision
    if known == commit:
        return
    look = host.look()
    users = [each.job for each in (look.primary, look.backup) if version in each.open_releases]
    used = f"run by {' and '.join(users)}" if users else "run by no instance"
    removable = not users and version not in (look.current.version, look.approved)
    removal = f"{shlex.join(['mv', str(path), f'{path}.old'])}, and deploy again"
    raise DeployError(
        f"release {version} was built from {known[:10] if known else 'an unknown commit'}, "
        f"the tag is at {commit[:10]} now; the release is {used}",
        remedy="give the new commit a new tag"
        + (f", or {removal}" if removable else "")
        + f"\nto use the release as it is: {host.command('rollback', version)}",
    )


def is_done_already(run: Run, look: Look, version: str) -> bool:
    """Whether the tag's release is approved and current, and both instances are healthy on it."""
    own = look.history.last
    if not is_settled_on(look, version) or (own is not None and own.cut_off is not None):
        return False  # a run that was cut off with nothing left to do but its end needs one
    run.outcome = "nothing to do"
    run.console.say(f"{version} is in production already; nothing to do")
    return True


def wait_for_requests_in_backup(run: Run, look: Look, version: str, *, force: bool) -> None:
    """Waits for what is in the backup, unless it needs no restart. Raises NotDrained (6)."""
    if not look.backup.is_healthy_on(version):
        drain.wait_for_backup(run, vetoes=not force)


def bring_up_backup(run: Run, version: str, *, force: bool) -> Observation:
    """The backup on the new release, healthy and settled; restarted unless it is already."""
    host = run.host
    look = host.look()
    if look.backup.is_healthy_on(version):
        backup = host.instances[BACKUP]
        with run.step(BACKUP, f"{backup.job} runs {version} already"):
            run.now_left_with(backup=version)
            return backup.wait_until_healthy(version)
    preflight.cost_of_force(host, look, version, force=force)
    return restart(run, BACKUP, version, force=force)


def refuse_a_backup_that_failed_meanwhile(run: Run, version: str, backup: Observation) -> None:
    """The process that the operator looked at must be the one that takes the traffic.

    Raises NotHealthy (6).
    """
    refuse_a_link_that_was_changed_meanwhile(run, version)
    now = run.host.instances[BACKUP].observe()
    why = now.why_not_healthy_on(version)
    if why is None and now.pid != backup.pid:
        why = f"it died and was started again (PID {backup.pid}, now {now.pid})"
    if why is not None:
        raise NotHealthy(f"{now.job} did not stay healthy until the answer: {why}")


def promote(run: Run, version: str, backup: Observation, *, force: bool) -> None:
    """Restarts the primary on the release when no request is in it.

    From the request to restart it on nothing is reverted. Raises NotDrained (6) before that, then
    PrimaryDown (8) or, if the backup does not serve either, HalfDone (9).
    """
    host = run.host
    needed = not host.instances[PRIMARY].observe().is_healthy_on(version)
    with ExitStack() as to_the_end:
        with drain.drained(run, needed=needed, vetoes=not force):
            refuse_a_backup_that_failed_meanwhile(run, version, backup)
            signals.check()
            run.no_return(version)
            to_the_end.enter_context(signals.uninterruptible(finishing_notice(run)))
            start_primary_on(run, version)
        try:
            run.record("promoted", version=version)
        except DeployError as error:
            raise HalfDone(
                f"{version} is in production, but that could not be written down: {error.message}",
                remedy=f"make room on the disk, then: {host.command('deploy', version)}",
            ) from None
        run.outcome = "promoted"
        run.console.say(f"{version} is in production", "bold green")
        run.console.say(f"  {run.summary()}", "dim")


def start_primary_on(run: Run, version: str) -> None:
    """The primary healthy on the release; restarted unless it is already.

    Raises PrimaryDown (8), HalfDone (9).
    """
    primary = run.host.instances[PRIMARY]
    # A full disk must not keep the primary from being waited for.
    run.journal_may_fail = True
    try:
        if primary.observe().is_healthy_on(version):
            with run.step("promote", f"{primary.job} runs {version} already"):
                primary.wait_until_healthy(version)
                run.now_left_with(primary=version)
        else:
            restart(run, PRIMARY, version)
    except NotHealthy as error:
        raise failed_promotion(run, version, error) from None
    run.journal_may_fail = False


def failed_promotion(run: Run, version: str, error: NotHealthy) -> DeployError:
    """What a primary that does not come up means, and the two ways on."""
    host = run.host
    look = host.look()
    ways = []
    if look.current.version == version:
        ways.append(f"to try {version} again: {host.command('deploy', version)}")
    if look.approved is not None:
        ways.append(f"to go back: {host.command('rollback', look.approved)}")
    remedy = "\n".join(ways)
    if look.backup.serving:
        serves = f"{look.backup.job} serves {look.backup.running or version}"
        return PrimaryDown(f"{error.message}; {serves}", detail=error.detail, remedy=remedy)
    return HalfDone(
        f"{error.message}; {look.backup.job} does not serve either",
        detail=error.detail,
        remedy=remedy,
    )
