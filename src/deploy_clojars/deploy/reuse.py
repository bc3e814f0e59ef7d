"""A release that is there already: reused if it is still what was built from the tag's commit."""

from __future__ import annotations

import shlex

from deploy_clojars.errors import DeployError
from deploy_clojars.host import decisions, manifest
from deploy_clojars.host.journal import Installed
from deploy_clojars.host.look import Look
from deploy_clojars.run.run import Run


def reused(run: Run, commit: str) -> str | None:
    """Reports that the release is reused, and returns how to build it again (empty if it must not be).

    None if it is to be built now. There is no rebuild in place: a release never changes. Raises
    DeployError (1).
    """
    host, version = run.host, run.version
    if not host.releases.has(version):
        return None
    look = host.look()
    obstacle = decisions.rebuild_obstacle(look.history, version, look.in_use)
    rebuild = "" if obstacle else host.command("deploy", version, "--rebuild")
    if run.request.rebuild:
        if obstacle:
            raise DeployError(
                f"release {version} cannot be built again: {obstacle}",
                remedy=f"give the commit a new tag, or deploy the release as it is: "
                f"{host.command('deploy', version)}",
            )
        return None
    path = host.releases.path(version)
    installed = look.history.installed.get(version) or Installed("", None, None)
    with run.step("reuse", path.name) as becomes:
        if installed.sha256 is not None:
            _refuse_a_changed_jar(run, installed, rebuild)
        facts = manifest.facts_of(path, host.config.name, sound=installed.sha256 is None)
        becomes("not built again")
    known = installed.commit or facts.revision
    if known != commit:
        raise DeployError(
            f"release {version} was built from {known[:10] if known else 'an unknown commit'}, "
            f"the tag is at {commit[:10]} now; {who_runs(look, version)}",
            remedy=f"give the new commit a new tag{_or_instead(run, look, rebuild)}"
            f"\nto use the release that is there: {host.command('rollback', version)}",
        )
    if installed.sha256 is None:
        run.console.say(
            "  the journal has no checksum for it, so it may have changed since it was built"
        )
    how = f"to build it again: {rebuild}" if rebuild else ""
    if how:
        run.console.say(f"  {how}")
    return how


def _refuse_a_changed_jar(run: Run, installed: Installed, rebuild: str) -> None:
    """Raises DeployError (1)."""
    digest = run.host.releases.sha256(run.version)
    if digest == installed.sha256:
        return
    raise DeployError(
        f"release {run.version} has changed since it was built at {installed.at}: its SHA-256 is {digest}, "
        f"the journal has {installed.sha256}",
        remedy=f"build it again: {rebuild}"
        if rebuild
        else f"restore the jar that was built: {run.host.releases.path(run.version)}",
    )


def who_runs(look: Look, version: str) -> str:
    """Which instances run the release, for a message."""
    jobs = [each.job for each in look.instances if version in each.open_releases]
    unknown = [each.job for each in look.instances if not each.running_is_known]
    if not jobs and not unknown:
        return "no instance runs the release"
    verb = "run" if len(jobs) > 1 else "runs"
    parts = [f"{' and '.join(jobs)} {verb} the release"] if jobs else []
    return "; ".join([*parts, *(f"what {job} runs is not known" for job in unknown)])


def _or_instead(run: Run, look: Look, rebuild: str) -> str:
    """Another way to a release of the new commit; empty if the old release may be in use."""
    if rebuild:
        return f", or build it again: {rebuild}"
    if look.in_use is None or run.version in look.in_use:
        return ""
    path = run.host.releases.path(run.version)
    return f", or {shlex.join(['mv', str(path), f'{path}.old'])}, and deploy again"
