"""Deploy, from top to bottom as it happens.

Everything that it needs is imported here, before the lock is taken: an upgrade of the package
while the question is open must not break the revert.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from rich.filesize import decimal

from deploy_clojars.config import BACKUP, PRIMARY
from deploy_clojars.deploy import class_data, drain, preflight, prune
from deploy_clojars.deploy.ask import (
    ask_to_promote,
    commits_between,
    refuse_a_backup_that_failed_meanwhile,
)
from deploy_clojars.deploy.migrate import CarryOut, migrate
from deploy_clojars.deploy.reuse import is_the_one_there
from deploy_clojars.deploy.revert import reverted_on_failure
from deploy_clojars.deploy.source import Offer, Source, source_of
from deploy_clojars.deploy.steps import (
    flip,
    half_done,
    is_settled_on,
    keep,
    refuse_a_restart,
    restart,
    ways_on,
)
from deploy_clojars.errors import HalfDone, NotHealthy
from deploy_clojars.host.health import Observation
from deploy_clojars.host.look import Look
from deploy_clojars.machine import threads
from deploy_clojars.run.run import Run


def deploy(run: Run, source: Source | None = None, migration: CarryOut | None = None) -> None:
    """Puts the release `run.version` into production. Raises DeployError with the exit status."""
    source = source or source_of(run)
    preflight.prepare(run, source)
    to_replace = have_release(run, source)
    if is_done_already(run):
        migrate(run, None, migration)
        run.outcome = "nothing to do"
        run.console.say(f"{run.version} is in production already; nothing to do")
        return
    migrate(run, "before", migration)
    look = drain.drain_backup(run)
    with reverted_on_failure(run):
        flip(run, run.version)
        commits = threads.started(partial(commits_between, run, look))  # while the backup starts
        backup = bring_up_backup(run, look, to_replace)
        ask_to_promote(run, backup, commits)
        primary = drain.drain_primary(run)
        refuse_a_backup_that_failed_meanwhile(run, backup)
        run.no_return()
    promote(run, primary)
    migrate(run, "after", migration)
    class_data.make_unless_asked(run, backup)
    prune.after_promotion(run)


# --- the steps of a deploy ----------------------------------------------------------------------


def have_release(run: Run, source: Source) -> str:
    """Makes sure that the release is there: reused, or installed from its source.

    Returns how to replace one that was reused; empty if it must not be, or is new.
    """
    to_replace = source.reused()
    if to_replace is None:
        with source.offered() as offer:
            install(run, source, offer)
    return to_replace or ""


def install(run: Run, source: Source, offer: Offer) -> None:
    """Copies the jar in, looks at the copy and makes that the release, unless it is already."""
    releases, version = run.host.releases, run.version
    patience = run.host.config.build.timeout
    with run.step("install", releases.path(version).name) as becomes:
        with releases.copied(offer.jar, version, patience) as copy:
            commit = source.check(offer, copy)
            if releases.has(version):
                if is_the_one_there(run, copy.sha256):
                    becomes("already installed, the same file")
                    return
                prune.remove_one(run, version)
            what: dict[str, Any] = {
                "version": version, "commit": commit, "source": source.kind,
                "sha256": copy.sha256, "bytes": copy.bytes, "signer": run.signer or None,
            }  # fmt: skip
            run.record("install", **what)
            releases.add(copy, version)
        run.record("installed", **what)
        run.installed = True
        named = f" from {offer.jar.name}" if run.request.jar is not None else ""
        becomes(f"{decimal(copy.bytes)}{named}")


def is_done_already(run: Run) -> bool:
    """Whether the tag's release is approved and current, and both instances are healthy on it."""
    look = run.host.look()
    own = look.history.last
    had_drifted = run.before is not None and run.before.drifted  # while a run is at work none has
    cut_off = own is not None and own.cut_off is not None
    # After those what is left to be done is to write down how the host stands.
    return is_settled_on(look, run.version) and not had_drifted and not cut_off


def bring_up_backup(run: Run, look: Look, to_replace: str) -> Observation:
    """The backup on the new release, healthy and settled; restarted unless it is already.

    `look` is the last one. Raises NotHealthy (6), Interrupted.
    """
    if look.backup.is_healthy_on(run.version):
        return keep(run, BACKUP, BACKUP)
    cost = preflight.cost_of_force(run, look)
    if cost:  # the primary has died since the first look
        run.warn_once(cost)
    refuse_a_restart(run, look, BACKUP, run.version, force=run.request.force)
    try:
        return restart(run, BACKUP, run.version, checked=True)
    except NotHealthy as error:
        if to_replace:
            error.remedy = "\n".join(
                filter(None, (error.remedy, f"the release was reused; {to_replace}"))
            )
        raise


def promote(run: Run, primary: Observation) -> None:
    """The primary healthy on the release, restarted unless it is already; no signal stops it.

    What could be refused was refused before: nothing is reverted any more.
    Raises PrimaryDown (8), HalfDone (9).
    """
    host, version = run.host, run.version
    with run.uninterruptible():
        try:
            with drain.back_to_the_primary(run, primary):
                if primary.is_healthy_on(version):
                    keep(run, PRIMARY, "promote")
                else:
                    restart(run, PRIMARY, version, checked=True)
        except NotHealthy as error:
            ways = ways_on(run, host.look(), "deploy")
            raise half_done(run, "the promotion", version, {PRIMARY: error}, ways) from None
        if not run.record("promoted", version=version):
            raise HalfDone(
                f"{version} is in production, but that could not be written down",
                remedy=f"make room on the disk, then run: {host.command('deploy', version)}",
            )
        run.succeeded("promoted", f"{version} is in production")
