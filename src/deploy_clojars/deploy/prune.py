"""Prune: old releases go, and never one that anybody could want back at once."""

from __future__ import annotations

from rich.filesize import decimal

from deploy_clojars.deploy import drain, preflight
from deploy_clojars.deploy.revert import revert_a_run_that_was_cut_off
from deploy_clojars.errors import DeployError, NotReady
from deploy_clojars.host import decisions
from deploy_clojars.host.host import Host
from deploy_clojars.host.look import Look
from deploy_clojars.machine import signals
from deploy_clojars.run.run import Request, Run, started
from deploy_clojars.screen.console import Console


def prune_releases(host: Host, console: Console) -> None:
    """Removes the releases that `keep_releases` lets go. Raises DeployError."""
    if host.config.keep_releases == 0:
        console.say("keep_releases is 0: nothing is pruned")
        return
    with started(host, console, Request("prune")) as run:
        drain.clear_stale_flag(run)
        look = revert_a_run_that_was_cut_off(run) or host.look()
        versions = candidates(host, look)
        if not versions:
            console.say("nothing to prune")
            return
        preflight.refuse_a_host_that_needs_a_person(host, look)
        run.begin(look)
        remove(run, versions)
        run.outcome = "pruned"


def candidates(host: Host, look: Look) -> list[str]:
    """The releases that may be removed, in that order. Raises NotReady (4), DeployError (1)."""
    preflight.refuse_a_journal_that_cannot_be_read(host, look)
    history = look.history
    return decisions.prunable(
        there=set(host.releases.versions()),
        installed=[version for version in history.installed if host.is_as_built(look, version)],
        promoted=history.promoted,
        in_use=in_use(look),
        keep=host.config.keep_releases,
        waiting=history.waiting,
    )


def in_use(look: Look) -> frozenset[str]:
    """What must never be removed. Raises NotReady (4) if what an instance runs is not known."""
    if look.in_use is None:
        unknown = [each for each in look.instances if not each.running_is_known]
        jobs = " and ".join(f"{each.job} ({each.said})" for each in unknown)
        raise NotReady(f"nothing was pruned: cannot tell what these run: {jobs}")
    return look.in_use


def remove(run: Run, versions: list[str]) -> None:
    """Removes the releases, one after the other; the host is looked at again before each.

    Raises NotReady (4), DeployError (1), Interrupted.
    """
    for version in versions:
        if version in in_use(run.host.look()):
            run.console.warn(f"{version} is now in use and stays")
            continue
        size = run.host.releases.size(version) or 0
        with run.step("prune", f"{version}, {decimal(size)}"):
            remove_one(run, version)


def remove_one(run: Run, version: str) -> None:
    """Removes a release that may go, and writes it down. Raises DeployError."""
    releases = run.host.releases
    size = releases.size(version) or 0
    run.record("prune", version=version)
    releases.remove(version)
    run.record("pruned", version=version, bytes=size)


def after_promotion(run: Run) -> None:
    """Prunes what a promotion has made too old. That it fails is only a warning."""
    if run.host.config.keep_releases == 0:
        return
    try:
        with signals.uninterruptible(lambda: run.console.warn("signal noted; finishing pruning")):
            remove(run, candidates(run.host, run.host.look()))
    except DeployError as error:
        run.console.warn(f"pruning did not finish: {error.message}")
    except Exception as error:  # noqa: BLE001 # the release is in production all the same
        run.console.warn(f"pruning did not finish: {error!r}")
