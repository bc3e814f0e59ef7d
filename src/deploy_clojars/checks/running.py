"""What runs: the jobs, the releases, and what the last run left."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from deploy_clojars import config
from deploy_clojars.checks.finding import Finding, Findings, Site, by_root
from deploy_clojars.deploy import class_data
from deploy_clojars.host import health
from deploy_clojars.host.health import Observation
from deploy_clojars.host.look import RESTS
from deploy_clojars.host.services.systemd import unit_of
from deploy_clojars.host.situation import Situation
from deploy_clojars.host.users import user_name
from deploy_clojars.machine import processes
from deploy_clojars.run import lock

START = "start supervisord, or set services.socket to the socket that it listens on"


def jobs(site: Site) -> Findings:
    """Both instances."""
    for observation in site.look.instances:
        job, approved = observation.job, site.look.approved
        if observation.state == "unknown" and not observation.visible:
            answers = all(check.ok for check in observation.checks)
            of_user = site.host.config.services.scope == "user"
            again = (site.by_user if of_user else by_root)(site.host.command("check"))
            yield Finding(f"job {job}: {observation.said}", not answers, again)
        elif observation.state == "unknown":
            yield Finding(f"job {job}: {observation.said}", True, _known_again(site, observation))
        elif observation is site.look.backup and site.look.backup_rests:
            said = f"job {job}: {RESTS}{observation.whose_ports}"
            yield Finding(said, bool(observation.strangers), _ended(site, observation))
        elif observation.why_hidden is not None and site.owner == os.geteuid():
            yield Finding(observation.why_hidden, True, health.HOW_TO_BE_SEEN)
        elif approved is None:
            said = f"job {job}: {observation.said}{observation.whose_ports}"
            yield Finding(said, bool(observation.strangers), _ended(site, observation))
        elif observation.serving and not observation.visible:
            yield Finding(f"{job} serves; what it runs is not visible to {user_name()}")
        else:
            yield _health(site, observation, approved)
        if observation.obstacle:
            why = observation.why_not_restarted or ""
            yield Finding(why, True, _known_again(site, observation))
        yield from _process(site, observation)


def _known_again(site: Site, observation: Observation) -> str:
    """What to do about a job whose state is unknown."""
    if site.is_upstarts:
        is_systemds = config.BOOTED.is_dir() and not site.host.config.services.bin
        of_systemd = f"this host has systemd: remove services.manager from {site.host.file}"
        return of_systemd if is_systemds else site.setup
    of_supervisord = site.host.config.services.chosen == "supervisor"
    said = site.host.instances[observation.role].status().remedy
    named = f"set instances.{observation.role}.job to the name of a unit that is there"
    return said or (START if of_supervisord else site.setup or named)


def _health(site: Site, observation: Observation, approved: str) -> Finding:
    job = observation.job
    why = observation.why_not_healthy_on(approved)
    if why is None:
        return Finding(f"{job} is healthy on {approved}")
    said = why if why.startswith(job) else f"{job}: {why}"
    if site.holder is not None:
        # The run at work restarts one after the other; users must be served all the same.
        nobody_serves = not (site.look.primary.serving or site.look.backup.serving)
        return Finding(f"{said} (a run is at work)", nobody_serves)
    setting = f"instances.{observation.role}.health in {site.host.file or config.DEFAULT_FILE}"
    wrong = health.why_urls_are_wrong(observation)
    if wrong is not None:
        return Finding(wrong, True, f"set {setting}")
    remedies = [_ended(site, observation)]
    if approved in observation.open_releases and not observation.serving:
        remedies.append(f"if {setting} is wrong, set it; otherwise:")
    remedies.append(site.way_back)
    return Finding(said, True, "\n".join(filter(None, remedies)))


def _ended(site: Site, observation: Observation) -> str:
    """The commands that end those who have the instance's ports."""
    return "\n".join(
        by_root(f"kill {each.pid}") if each.uid != os.geteuid() else f"kill {each.pid}"
        for each in observation.strangers
        if each.pid is not None
    ) or ("\n".join({by_root(site.host.command("check")) for _ in observation.strangers}))


def _process(site: Site, observation: Observation) -> Findings:
    """The manager must know the application's own process, and not the `su` that started it."""
    process = instead_of_the_application(site, observation)
    if process is None:
        return
    manager = "Upstart" if site.is_upstarts else "systemd"
    what = (
        f"{observation.job}: {manager} knows {process.name()} of {user_name(process.uids().real)} "
        f"(PID {observation.pid}) and not the application itself"
    )
    if site.is_upstarts:
        children = processes.descendants_of(process.pid)
        remedy = _with_the_new_job_file(site, observation.job, children)
        what += ", which can outlive a restart and keep its ports"
    else:
        remedy = _with_the_new_unit(site, observation.job)
        what += f": what it has open is hidden from {site.user}"
    yield Finding(what, True, remedy)


def instead_of_the_application(site: Site, observation: Observation) -> psutil.Process | None:
    """What the manager knows where it does not know the application's own process, such as `su`."""
    if observation.pid is None or not site.setup_makes_it:
        return None
    with suppress(psutil.Error):
        process = psutil.Process(observation.pid)
        is_others = site.is_upstarts and process.uids().real != site.owner  # a unit has User=
        if process.name() in ("su", "sudo", "runuser") or is_others:
            return process
    return None


def archives(site: Site) -> Findings:
    """Whether an archive of the next release's classes will be made; without one, nothing is wrong."""
    backup, host = site.look.backup, site.host
    if backup.pid is None or not backup.visible or not host.config.jvm.class_data:
        return
    with suppress(psutil.Error, OSError):
        why = class_data.why_none(backup.pid)
        if not why:
            yield Finding(f"class data: {backup.job} uses an archive, or can make one")
            return
        java = site.values.java if site.values is not None and site.setup_makes_it else ""
        start = f"; its job must start {java}, which `setup` writes, with Java 17 or newer"
        more = start if java and class_data.RECORDS in why else ""
        yield Finding(f"class data: no archives are made, since {backup.job} {why}{more}")


def _with_the_new_job_file(site: Site, job: str, children: list[int]) -> str:
    """The commands after which Upstart knows the application; the old one is ended on the way."""
    bin = site.host.config.services.programs
    file = f"/etc/init/{job}.conf"
    end = f" kill {' '.join(map(str, children))};" if children else ""
    return (
        f"{site.setup} puts the new job file beside the old one; then, while the other one serves:\n"
        + by_root(f"mv {file}.new {file} && {bin}/stop {job};{end} {bin}/start {job}")
    )


def _with_the_new_unit(site: Site, job: str) -> str:
    """The commands after which systemd runs the application itself."""
    unit = unit_of(job)
    file = f"/etc/systemd/system/{unit}"
    take = f"mv {file}.new {file} && systemctl daemon-reload && systemctl restart {unit}"
    return (
        f"{site.setup} puts the new unit beside the old one; then, while the other one serves:\n"
        + by_root(take)
    )


def releases(site: Site) -> Findings:
    """The link, the journal, and whether the last run left things as they are."""
    host, look = site.host, site.look
    if look.current.broken:
        mended = host.releases.mended_by(look.current, host.way_back(look))
        remedy = site.by_user(mended) if mended else _readable(site)
        yield Finding(look.current.broken, True, remedy)
    if look.journal_error:
        moved = moved_away(host.journal.file, stat.S_ISREG)
        yield Finding(look.journal_error, True, site.by_user(moved) if moved else _readable(site))
    if site.holder is not None:
        yield Finding(lock.locked_by(site.holder).message)
        return
    situation = host.situation(look, locked=False)
    command = host.next_command(look, situation)
    remedy = site.by_user(command) if command else ""
    yield from _left(site, situation, remedy)


def _left(site: Site, situation: Situation, remedy: str) -> Findings:
    last = site.look.history.last
    if situation.interrupted and last is not None:
        what = f"the {last.what} was cut off"
        yield Finding(what, True, f"{remedy}{_and_restart(site, last.command)}")
    if situation.drifted:
        what = "`current` or a running instance has changed since the last run"
        yield Finding(what, True, remedy)


def _and_restart(site: Site, command: str) -> str:
    """A rollback starts only what a `restart` left down."""
    again = site.by_user(site.host.command("restart"))
    return f"\nand then the restart again: {again}" if command == "restart" else ""


def moved_away(path: Path, is_right: Callable[[int], bool]) -> str:
    """The command that moves away what is not the kind of file that belongs at this path, or ''."""
    if not os.path.lexists(path) or is_right(os.lstat(path).st_mode):
        return ""
    return shlex.join(["mv", str(path), f"{path}.old"])


def _readable(site: Site) -> str:
    deploy = shlex.quote(str(site.host.deploy))
    return by_root(f"chown -R {site.user} {deploy} && chmod -R u+rwX,go+rX {deploy}")
