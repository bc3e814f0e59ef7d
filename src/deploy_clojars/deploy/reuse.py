"""An existing release: reused if it is still the jar that was installed, or the jar that is wanted."""

from __future__ import annotations

import shlex

from deploy_clojars.errors import DeployError
from deploy_clojars.host import decisions, manifest
from deploy_clojars.host.journal import JAR, Installed
from deploy_clojars.host.look import Look
from deploy_clojars.run.run import Run


def reused(run: Run, commit: str | None = None) -> str | None:
    """Reports that the release is reused, and returns how to replace it (empty if it must not be).

    None if it is to be installed now. `commit` is the tag's; None if the release has no tag.
    A release is never replaced in place. Raises DeployError (1).
    """
    host, version = run.host, run.version
    if not host.releases.has(version):
        return None
    look = host.look()
    if run.request.rebuild:
        _refuse_to_replace(run, look)
        return None
    replace = way_to_replace(run, look)
    path = host.releases.path(version)
    installed = look.history.installed.get(version) or Installed("", None, None)
    with run.step("reuse", path.name) as becomes:
        if installed.sha256 is not None:
            _refuse_a_changed_jar(run, installed, replace)
        facts = manifest.facts_of(path, host.config.name, sound=installed.sha256 is None)
        becomes("not built again" if commit else "already installed")
    if commit is None:
        _refuse_an_unsigned_jar(run, installed, replace)
    known = installed.commit or facts.revision
    if commit is not None and known != commit:
        raise DeployError(
            f"release {version} was built from {known[:10] if known else 'an unknown commit'}, "
            f"the tag is at {commit[:10]} now; {who_runs(look, version)}",
            remedy=f"give the new commit a new tag{_or_instead(run, look, replace)}"
            f"\nto use the existing release: {host.command('rollback', version)}",
        )
    warn_of_another_version(run, facts, has_tag=commit is not None)
    if installed.sha256 is None:
        run.console.say(
            "  the journal has no checksum for it, so it may have changed since it was built"
        )
    if replace:
        run.console.say(f"  to {replace}")
    return f"to {replace}" if replace else ""


def warn_of_another_version(run: Run, facts: manifest.JarFacts, *, has_tag: bool) -> None:
    """Not refused: two of clojars-web's 200 tags with a project.clj differ, and both are good."""
    if facts.version not in (None, run.version):
        noun = "tag" if has_tag else "version"
        run.console.warn(f"the jar says {facts.version}, the {noun} is {run.version}")


def _refuse_an_unsigned_jar(run: Run, installed: Installed, replace: str) -> None:
    """A jar that came before signatures were demanded has none. Raises DeployError (1)."""
    if run.host.config.verify.jars == "signed" and installed.signer is None:
        raise DeployError(
            f"release {run.version} was not signed when it was installed, as `verify.jars` requires",
            remedy="give a signed jar another version" + (f", or {replace}" if replace else ""),
        )
    run.signer = installed.signer or ""


def is_the_one_there(run: Run, digest: str) -> bool:
    """Whether the release that is there is the jar with this checksum; False if it is to be replaced.

    Raises DeployError (1) if it is another one.
    """
    look = run.host.look()
    if run.request.rebuild:
        _refuse_to_replace(run, look)  # somebody may have put an instance on it meanwhile
        return False
    there = run.host.releases.sha256(run.version)
    if there == digest:
        return True
    replace = way_to_replace(run, look)
    raise DeployError(
        f"release {run.version} already exists and is a different jar: its SHA-256 is {there}, "
        f"that of the new one is {digest}",
        remedy="give the new jar another version"
        + (f", or {replace}" if replace else "")
        + f"\nto use the existing release: {run.host.command('deploy', run.version)}",
    )


def way_to_replace(run: Run, look: Look) -> str:
    """What to do, and the command for it, to have another jar as this release; empty if it must stay."""
    host, version = run.host, run.version
    if decisions.rebuild_obstacle(look.history, version, look.in_use):
        return ""
    installed = look.history.installed[version]
    words = (run.request.command, version)
    if run.request.jar is not None or installed.source == JAR:
        return f"replace it: {host.command(*words, '--jar', 'FILE', '--rebuild')}"
    verb = "build" if host.config.release.command is None else "fetch"
    return f"{verb} it again: {host.command(*words, '--rebuild')}"


def _refuse_to_replace(run: Run, look: Look) -> None:
    """Raises DeployError (1)."""
    obstacle = decisions.rebuild_obstacle(look.history, run.version, look.in_use)
    if obstacle:
        raise DeployError(
            f"release {run.version} cannot be replaced: {obstacle}",
            remedy="use another version, or deploy the existing release: "
            f"{run.host.command('deploy', run.version)}",
        )


def _refuse_a_changed_jar(run: Run, installed: Installed, replace: str) -> None:
    """Raises DeployError (1)."""
    digest = run.host.releases.sha256(run.version)
    if digest == installed.sha256:
        return
    raise DeployError(
        f"release {run.version} has changed since it was installed at {installed.at}: its SHA-256 is {digest}, "
        f"the journal has {installed.sha256}",
        remedy=replace or f"restore the jar that was built: {run.host.releases.path(run.version)}",
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


def _or_instead(run: Run, look: Look, replace: str) -> str:
    """Another way to a release of the new commit; empty if the old release may be in use."""
    if replace:
        return f", or {replace}"
    if look.in_use is None or run.version in look.in_use:
        return ""
    path = run.host.releases.path(run.version)
    return f", or {shlex.join(['mv', str(path), f'{path}.old'])}, and deploy again"
