"""The first steps of a deploy: afterwards the release is there, and nothing that runs has changed."""

from __future__ import annotations

from deploy_clojars.deploy import drain, preflight
from deploy_clojars.deploy.pipeline import have_release
from deploy_clojars.deploy.revert import revert_a_run_that_was_cut_off
from deploy_clojars.deploy.source import Source, source_of
from deploy_clojars.run.run import Run


def install(run: Run, source: Source | None = None) -> None:
    """Makes sure that the release `run.version` is there. Raises DeployError with the exit status.

    Does not end drift and does not finish an interrupted run, but first reverts one that was cut off
    before its point of no return.
    """
    source = source or source_of(run)
    drain.clear_stale_flag(run)
    look = revert_a_run_that_was_cut_off(run) or run.host.look()
    preflight.check_install(run, source, look)
    run.console.say(f"install {run.version}", "bold")
    run.begin(look)
    have_release(run, source)
    deploy = run.host.command("deploy", run.version)
    if run.installed:
        run.succeeded("installed", f"{run.version} is installed; to deploy it: {deploy}")
    else:
        run.outcome = "nothing to do"
        run.console.say(f"{run.version} is already installed; nothing to do")
