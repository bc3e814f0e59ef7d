"""`--dry-run`: all the reads of a command, and its changes as the commands that they would be.

Nothing is touched: no lock, no journal, no log, no mirror. What is refused is refused as in earnest.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from deploy_clojars.commands.rollback import refuse_an_unreadable_journal, target_of_rollback
from deploy_clojars.config import Config
from deploy_clojars.deploy import checkout, preflight
from deploy_clojars.deploy.pipeline import refuse_another_commit
from deploy_clojars.deploy.steps import is_settled_on
from deploy_clojars.errors import NotReady
from deploy_clojars.host import decisions, jars, releases
from deploy_clojars.host.host import Host
from deploy_clojars.host.instances import BACKUP, PRIMARY, Observation, Role
from deploy_clojars.host.look import Look
from deploy_clojars.host.releases import Current
from deploy_clojars.host.users import refuse_the_wrong_user
from deploy_clojars.machine.shell import printable
from deploy_clojars.run import lock
from deploy_clojars.screen.console import Console

Lines = Iterator[str]
Next = Callable[[decisions.InstanceHealth, decisions.InstanceHealth], Role | None]


def deploy(host: Host, console: Console, version: str, *, force: bool) -> list[str]:
    """What `deploy` would do, line by line; lines that change nothing begin with #.

    Raises DeployError as the deploy would before it builds.
    """
    refuse_what_begins_no_run(host, "deploy", version)
    look, cost = preflight.check_deploy(host, version, force=force)
    if cost:
        console.warn(cost)
    commit = checkout.remote_commit_of(host.config.repository, version, host.config.build.timeout)
    there = host.releases.has(version)
    if there:
        facts = jars.facts_of(host.releases.path(version), host.config.name)
        refuse_another_commit(host, version, commit, facts)
    changes = Changes(host, look)
    lines = [*changes.first(), *_fetch(host)]
    look = changes.look
    past_return = look.history.unfinished is not None and look.history.unfinished.past_return
    if there and is_settled_on(look, version) and not past_return:
        return [*lines, f"# {version} is in production already; nothing to do"]
    lines += (
        [f"# {host.releases.path(version)} is there"] if there else _build(host, version, commit)
    )
    if look.backup.is_healthy_on(version):
        lines += _flip(host, look.current.version, version)
    else:
        lines += changes.drain_of(BACKUP)
        lines += _flip(host, look.current.version, version)
        lines += changes.restart(BACKUP, version)
    if not (look.approved == version and look.primary.is_healthy_on(version)):
        lines.append(f"# ask: Promote {version}?")
    if not look.primary.is_healthy_on(version):
        lines += changes.drained_restart(PRIMARY, version)
    return [*lines, *changes.prefer_primary(), *_prune(host, look, version)]


def rollback(host: Host, console: Console, version: str | None) -> list[str]:
    """What `rollback` would do. Raises DeployError as the rollback would before its question."""
    refuse_what_begins_no_run(host, "rollback", version)
    look = preflight.ready_to_restart(host)
    refuse_an_unreadable_journal(console, look, version)
    target = target_of_rollback(host, look, version)
    changes = Changes(host, look)
    if look.history.unfinished is None and is_settled_on(look, target):
        done = f"# {target} is current, approved and runs on both instances already"
        return [*changes.prefer_primary(), done]
    lines = [f"# ask: Roll back to {target}?", *changes.first()]
    if changes.look.current.version != target:
        lines += _flip(host, changes.look.current.version, target)
    lines += changes.restarts(target, decisions.next_to_restart)
    return [*lines, *changes.prefer_primary()]


def restart(host: Host, *, force: bool) -> list[str]:
    """What `restart` would do. Raises DeployError as the restart would before its question."""
    refuse_what_begins_no_run(host, "restart", None)
    look, approved = preflight.check_restart(host)
    left: list[Role] = [PRIMARY, BACKUP]

    def next_of(primary: decisions.InstanceHealth, backup: decisions.InstanceHealth) -> Role | None:
        role = decisions.next_to_stop_and_start(primary, backup, left, force=force)
        if role is not None:
            left.remove(role)
        return role

    changes = Changes(host, look)
    lines = [f"# ask: Restart both on {approved}?", *changes.first()]
    return [*lines, *changes.restarts(approved, next_of, by_stop_and_start=True)]


def as_text(lines: list[str]) -> str:
    """The lines as they are shown."""
    return "\n".join(map(printable, lines))


def refuse_what_begins_no_run(host: Host, command: str, version: str | None) -> None:
    """What a run refuses before it takes the lock, and a lock that is taken.

    Raises UsageError (2), Locked (3), NotReady (4).
    """
    refuse_the_wrong_user(host, command, version)
    holder = lock.holder_of(host.lock_file)
    if holder is not None:
        raise lock.locked_by(holder)
    if not host.deploy.is_dir() and not os.access(host.home, os.W_OK | os.X_OK):
        raise NotReady(f"{host.deploy} cannot be made: {os.strerror(13)}")


# --- the changes, as commands -----------------------------------------------------------------


def _command(*words: str | Path) -> str:
    return shlex.join(map(str, words))


class Changes:
    """What is changed step by step, and with it what the host would look like: `look`."""

    def __init__(self, host: Host, look: Look) -> None:
        self.look = look
        self._host = host
        self._flag = look.drain_flag

    def first(self) -> Lines:
        """What every run does first: the tool's directory, and what an earlier run has left."""
        host, look = self._host, self.look
        if not host.deploy.is_dir():
            yield _command("mkdir", host.deploy)
        if look.primary_is_as_approved:
            yield from self.prefer_primary()
        cut_off = look.history.unfinished
        if cut_off is None or cut_off.past_return or not cut_off.flipped:
            return
        if host.way_back(look) != look.approved:
            return  # what the revert needs is gone, and this is a rollback to something else
        yield f"# the {cut_off.what} by {cut_off.by}, {cut_off.at}, was cut off; it is reverted first"
        if look.approved is None:
            if look.current.version in (None, cut_off.version):
                yield _command("rm", host.releases.link)
                yield _command(*host.services.words("stop", host.jobs[1]))
                stopped = Observation(BACKUP, host.jobs[1], "stopped", "")
                self.look = replace(look, current=Current(), backup=stopped)
            return
        yield from _flip(host, look.current.version, look.approved)
        yield from self.restarts(look.approved, decisions.next_to_restart)
        self.look = replace(self.look, current=Current(look.approved))

    def restarts(self, target: str, next_of: Next, *, by_stop_and_start: bool = False) -> Lines:
        """The restarts in their order, where each one comes up."""
        while (role := next_of(*self.look.health_on(target))) is not None:
            yield from self.drained_restart(role, target, by_stop_and_start=by_stop_and_start)

    def drained_restart(
        self, role: Role, version: str, *, by_stop_and_start: bool = False
    ) -> Lines:
        """With the waits for the requests that are in the instance."""
        yield from self.drain_of(role)
        yield from self.restart(role, version, by_stop_and_start=by_stop_and_start)
        if role == PRIMARY:
            yield from self.prefer_primary()

    def drain_of(self, role: Role) -> Lines:
        """nginx turned away from the instance, and the wait until no request is in it."""
        host, look = self._host, self.look
        instance, other = (
            (look.primary, look.backup) if role == PRIMARY else (look.backup, look.primary)
        )
        if role == BACKUP and other.serving and instance.serving:
            yield from self.prefer_primary()
        if not other.serving or not host.nginx.answers:
            return
        if role == PRIMARY and not self._flag:
            self._flag = True
            yield f"{_command('touch', host.nginx.flag)}  # nginx prefers {other.job}"
        if instance.serving:
            quiet = host.config.drain.quiet
            yield f"# wait until nginx has had no request in {instance.job} for {quiet:g} s"

    def prefer_primary(self) -> Lines:
        """The drain's flag removed, if it is there."""
        if self._flag:
            self._flag = False
            yield _command("rm", self._host.nginx.flag)

    def restart(self, role: Role, version: str, *, by_stop_and_start: bool = False) -> Lines:
        """The instance on the release, healthy."""
        observation = self.look.primary if role == PRIMARY else self.look.backup
        stopped = observation.state == "stopped"
        verbs = ["start"] if stopped else ["stop", "start"] if by_stop_and_start else ["restart"]
        for verb in verbs:
            yield _command(*self._host.services.words(verb, observation.job))
        yield f"# wait until {observation.job} is healthy on {version}"
        healthy = Observation(
            role,
            observation.job,
            "running",
            "",
            pid=0,
            running=version,
            open_releases=frozenset({version}),
        )
        if role == PRIMARY:
            self.look = replace(self.look, primary=healthy)
        else:
            self.look = replace(self.look, backup=healthy)


def _fetch(host: Host) -> Lines:
    mirror = host.deploy / "mirror.git"
    if not mirror.is_dir():
        yield _command("git", "init", "--bare", mirror)
    tags = "+refs/tags/*:refs/tags/*"
    yield _command("git", "-C", mirror, "fetch", "--prune", host.config.repository, tags)


def _build(host: Host, version: str, commit: str) -> Lines:
    settings = host.config.build
    directory = checkout.new_directory(host.deploy / "checkouts", version)
    yield _command(
        "git", "clone", "--shared", "--no-checkout", host.deploy / "mirror.git", directory
    )
    yield _command("git", "-C", directory, "checkout", "--detach", commit)
    for command in (settings.test, settings.uberjar):
        yield f"cd {_command(directory)} && nice -n {settings.nice} /bin/sh -c {_command(command)}"
    temporary = host.releases.directory / f"{releases.UNFINISHED}new.jar"
    release = host.releases.path(version)
    # ** is bash's, and only if it is told so.
    copy = f"cp {settings.jar} {_command(temporary)}"
    yield f"cd {_command(directory)} && {_command('bash', '-O', 'globstar', '-c', copy)}"
    yield f"{_command('ln', temporary, release)} && {_command('rm', temporary)}"
    yield _command("rm", "-r", directory)


def _flip(host: Host, before: str | None, version: str) -> Lines:
    yield f"# current: {before or 'none'} -> {version}"
    temporary = host.releases.directory / f"{releases.UNFINISHED}new.link"
    link = _command("ln", "-s", host.releases.path(version).name, temporary)
    yield f"{link} && {_command('mv', '-T', temporary, host.releases.link)}"


def _prune(host: Host, look: Look, version: str) -> Lines:
    """The releases that would go after the promotion."""
    config: Config = host.config
    built = [each for each in look.history.installed if host.is_as_built(look, each)]
    there = {*host.releases.versions(), version}
    promoted = [*(each for each in look.history.promoted if each != version), version]
    in_use = {version, *filter(None, [look.approved])}
    for each in decisions.prunable(there, built, promoted, in_use, config.keep_releases):
        yield _command("rm", host.releases.path(each))
