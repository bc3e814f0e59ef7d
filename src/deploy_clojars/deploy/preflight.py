"""All that can be known to fail before anything is changed."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from deploy_clojars import config
from deploy_clojars.deploy import drain, migrate, signatures
from deploy_clojars.deploy.revert import PATIENCE, revert_a_run_that_was_cut_off
from deploy_clojars.errors import DeployError, NotHealthy, NotReady, reason
from deploy_clojars.host import decisions, health
from deploy_clojars.host.host import Host
from deploy_clojars.host.look import Look
from deploy_clojars.host.releases import LEAST_FREE
from deploy_clojars.host.services.sudo import SudoRefuses
from deploy_clojars.machine import sockets
from deploy_clojars.run.run import Run

if TYPE_CHECKING:  # rollback and restart have no use for git, whose package takes long to import
    from deploy_clojars.deploy.source import Source

# A checkout, a plain jar, an uberjar and its copy; each about as large as the release.
RELEASES_THAT_MUST_FIT = 4
LEAST_INODES = 1000  # one a file; a checkout and its build need about as many


def prepare(run: Run, source: Source) -> None:
    """Ends what an earlier run has left, refuses what would fail, and begins the deploy.

    Raises NotReady (4), and DeployError (1) for a disk that is too full or a release that the operator
    did not expect to be current.
    """
    drain.clear_stale_flag(run)
    revert_a_run_that_was_cut_off(run)
    _refuse_another_current(run)
    look = check_deploy(run, source)
    cost = cost_of_force(run, look)
    run.console.say(f"deploy {run.version} (approved now: {look.approved or 'none'})", "bold")
    if cost:
        run.warn_once(cost)
    run.begin(look)


def _refuse_another_current(run: Run) -> None:
    """What the operator saw as current may have changed since. Raises DeployError (1).

    The deploy's own release may be: the same command typed again finishes what was cut off.
    """
    expected, found = run.request.if_current, run.host.releases.current()
    if expected is None or found.broken or (found.version or "") in (expected, run.version):
        return
    raise DeployError(
        f"current is {found.version or 'absent'}, but --if-current expects {expected or 'none'}",
        remedy=f"nothing was changed; to see what was done meanwhile: {run.host.command('history')}",
    )


def check_deploy(run: Run, source: Source) -> Look:
    """Looks at the host and returns what was seen. Raises NotReady (4), DeployError (1)."""
    host = run.host
    _refuse_what_no_release_comes_from(run, source)
    migrate.refuse_what_is_missing(run)
    refuse_a_full_disk(host)
    if not run.request.force:
        _refuse_a_flag_that_cannot_be_set(host)
    look = ready_to_restart(host)
    refuse_a_journal_that_cannot_be_read(host, look)
    _refuse_a_host_without_a_way_back(host, look, run.version)
    _refuse_an_instance_that_does_not_answer(host, look)
    why = decisions.deploy_obstacle(look.history, run.version, look.drifted)
    situation = host.situation(look, locked=False)
    if why is not None and not situation.ok:
        command = host.next_command(look, situation) or host.command_back(look)
        raise NotReady(why, remedy=f"first: {command}")
    return look


def check_install(run: Run, source: Source, look: Look) -> None:
    """What an install needs: it restarts nothing. Raises NotReady (4), DeployError (1)."""
    _refuse_what_no_release_comes_from(run, source)
    refuse_a_full_disk(run.host)
    refuse_a_journal_that_cannot_be_read(run.host, look)


def _refuse_what_no_release_comes_from(run: Run, source: Source) -> None:
    """Raises NotReady (4)."""
    source.refuse_what_is_missing()
    if run.host.config.verify.demands_signatures:
        signatures.refuse_unsafe_signers(run.host.config.verify)


def refuse_a_journal_that_cannot_be_read(host: Host, look: Look) -> None:
    """Raises DeployError (1)."""
    if look.journal_error:
        raise DeployError(look.journal_error, remedy=f"see: {host.command('check')}")


def ready_to_restart(host: Host, *, one_will_do: bool = False) -> Look:
    """What every command needs that restarts something. Raises NotReady (4).

    `one_will_do`: where nothing serves, an instance that must not be restarted does not keep the
    other one down.
    """
    try:
        host.services.refuse_what_would_fail(host.jobs)
    except NotReady as error:
        setup = f"as root: {host.command('setup')}\n" if isinstance(error, SudoRefuses) else ""
        error.remedy = f"nothing was changed; {setup}{error.remedy}"
        raise
    look = host.look()
    host.refuse_a_broken_link(look)
    refused = [each for each in look.instances if each.why_not_restarted]
    nothing_serves = not any(each.serving for each in look.instances)
    if refused and not (one_will_do and nothing_serves and len(refused) == 1):
        remedy = host.instances[refused[0].role].status().remedy or f"see: {host.command('check')}"
        raise NotReady(
            "\n".join(str(each.why_not_restarted) for each in refused),
            remedy=f"nothing was changed; {remedy}",
        )
    _refuse_names_that_are_not_found(host)
    _refuse_what_cannot_be_seen(look)
    _refuse_wrong_urls(host, look)
    return look


def _refuse_names_that_are_not_found(host: Host) -> None:
    """A health URL whose host has no address never answers. Raises NotReady (4)."""
    for instance in host.instances.values():
        for name in instance.health_hosts:
            try:
                sockets.addresses_of(name, health.CHECK_SECONDS)
            except OSError as error:
                raise NotReady(
                    f"the host {name} in a health URL of {instance.job} has no address: "
                    f"{reason(error)}",
                    remedy="nothing was changed; is the name server up? "
                    "An IP address in the health URL needs no name server",
                ) from None


def _refuse_what_cannot_be_seen(look: Look) -> None:
    """A restart waits until the instance is seen to be healthy. Raises NotReady (4)."""
    for each in look.instances:
        if each.why_hidden is not None:
            raise NotReady(each.why_hidden, remedy=f"nothing was changed; {health.HOW_TO_BE_SEEN}")


def _refuse_wrong_urls(host: Host, look: Look) -> None:
    """If both serve elsewhere than the configuration says, neither would ever be healthy.

    If only one does, the other serves meanwhile, and a restart may be what it needs.
    Raises NotReady (4).
    """
    reasons = [health.why_urls_are_wrong(each) for each in look.instances]
    if all(reasons):
        raise NotReady(
            "\n".join(filter(None, reasons)),
            remedy=f"nothing was changed; correct `health` in {host.file or config.DEFAULT_FILE}",
        )


def check_restart(host: Host) -> tuple[Look, str]:
    """Looks at the host and returns what was seen, and the approved release.

    Raises NotReady (4) unless that is what all is about, and DeployError (1).
    """
    look = ready_to_restart(host)
    refuse_a_journal_that_cannot_be_read(host, look)
    if look.approved is None:
        raise NotReady("no release has been approved yet", remedy=f"first: {host.command('TAG')}")
    situation = host.situation(look, locked=False)
    cut_off = look.history.unfinished
    why = None
    if cut_off is not None:
        why = f"the {cut_off.what} was cut off"
    elif look.drifted:
        why = "`current` or a running instance has changed since the last run"
    elif look.current.version != look.approved:
        why = f"current is {look.current.version or 'absent'}, and {look.approved} is approved"
    elif not host.releases.has(look.approved):
        why = f"the approved release {look.approved} is not in {host.releases.directory}"
    if why is not None:
        command = host.next_command(look, situation) or host.command_back(look)
        raise NotReady(why, remedy=f"first: {command}")
    return look, look.approved


def refuse_a_host_that_needs_a_person(host: Host, look: Look) -> None:
    """What is half done is finished before anything is removed. Raises NotReady (4)."""
    situation = host.situation(look, locked=False)
    if not situation.ok or situation.drifted:
        command = host.next_command(look, situation) or host.command_back(look)
        raise NotReady("the host is not in its approved state", remedy=f"first: {command}")


def cost_of_force(run: Run, look: Look) -> str | None:
    """Holds the table of who may be restarted against what was seen.

    Returns what it costs to continue if only `--force` allows it. Raises NotReady (4).
    """
    host = run.host
    if not decisions.deploy_stops_the_only_serving_instance(*look.health_on(run.version)):
        return None
    primary, backup = host.jobs
    if run.request.force:
        return f"--force: {backup} serves alone and is restarted; users get errors until it is up"
    remedy = f"a deploy restarts {backup} first, which would leave nothing serving"
    if look.approved is not None:
        start = host.command("rollback", look.approved)
        remedy += f"\nto start {primary}: {start}"
    raise NotReady(f"{primary} is down and {backup} serves alone", remedy=remedy)


def _refuse_a_flag_that_cannot_be_set(host: Host) -> None:
    """Where nginx answers the primary is drained before its restart, and that needs the flag."""
    why = host.nginx.why_no_flag
    if why is not None and host.nginx.answers:
        raise NotReady(
            f"{why}: {host.jobs[0]} could not be drained before its restart",
            remedy=f"as root: {host.command('setup')}\nor use --force to skip the drain",
        )


def _refuse_a_host_without_a_way_back(host: Host, look: Look, version: str) -> None:
    """A revert needs the approved release, and needs to know that users get a release at all.

    Raises NotReady (4), unless this deploy is the way back: it builds the approved release again,
    or finishes an interrupted run, or no release is installed.
    """
    if look.approved is not None and not host.releases.has(look.approved):
        cut_off = look.history.unfinished
        if version in (look.approved, cut_off.version if cut_off is not None else None):
            return
        other = "approve another release" if host.way_back(look) else "build it again"
        raise NotReady(
            f"the approved release {look.approved} is not in {host.releases.directory}: "
            "there would be nothing to revert to",
            remedy=f"put it back, or {other}: {host.command_back(look)}",
        )
    serves_no_release = look.primary.serving and not look.primary.open_releases
    if serves_no_release and look.primary.visible and host.releases.versions():
        raise NotReady(
            f"{look.primary.job} serves {look.primary.running or 'no jar that it keeps open'}, "
            "which is not a release, so a revert could not bring it back",
            remedy=f"put it on a release first: {host.command_back(look)}",
        )


def _refuse_an_instance_that_does_not_answer(host: Host, look: Look) -> None:
    """What runs the approved release must be healthy on it: otherwise nothing ever would be.

    A wrong health URL, or processes that this user cannot see, are known before anything that
    serves users is restarted for nothing. Raises NotReady (4).
    """
    approved = look.approved
    for observation in look.instances:
        runs_it = approved in observation.open_releases
        if approved is None or observation.state != "running" or not runs_it:
            continue
        if observation.is_healthy_on(approved):
            continue
        instance = host.instances[observation.role]
        with suppress(NotHealthy):  # a JVM may stall for seconds
            limit = min(PATIENCE, host.config.health.timeout)
            instance.wait_until_healthy(approved, timeout=limit)
        why = instance.observe().why_not_healthy_on(approved)
        if why is not None:
            raise NotReady(
                f"{instance.job} runs, but is not healthy as configured: {why}",
                remedy=f"if instances.{observation.role} in the configuration is wrong, fix it\n"
                f"if {instance.job} hangs: {host.command_back(look)}",
            )


def refuse_a_full_disk(host: Host) -> None:
    """Raises DeployError (1) if a deploy would not fit."""
    current = host.releases.current().version
    size = host.releases.path(current).stat().st_size if current else 0
    needed = max(LEAST_FREE, RELEASES_THAT_MUST_FIT * size)
    deploy = host.deploy if host.deploy.exists() else host.home  # the first run makes it
    for directory in (deploy, host.releases.directory):
        found = os.statvfs(directory)
        free = found.f_bavail * found.f_frsize
        if free < needed:
            raise DeployError(
                f"the disk is full: {free // 2**20} MiB free in {directory}, "
                f"a deploy needs {needed // 2**20} MiB"
            )
        # Some file systems do not count inodes, and report 0 of 0.
        if found.f_files > 0 and found.f_favail < LEAST_INODES:
            raise DeployError(
                f"the disk is full: {found.f_favail} inodes free in {directory} (see df -i), "
                f"a deploy needs {LEAST_INODES}"
            )
