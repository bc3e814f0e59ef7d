"""A whole little clojars.org in one directory: no root, no JVM, nothing but Python and git.

A git repository with good tags and bad ones, both instances of its application under supervisord
or the user's own systemd, and a configuration file for this tool. Nothing of it is outside the
directory but systemd's units, while they run.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deploy_clojars import config
from deploy_clojars.errors import DeployError, NotReady, UsageError
from deploy_clojars.host.host import Host
from deploy_clojars.machine import processes
from deploy_clojars.machine.shell import root_program
from deploy_clojars.run import lock
from deploy_clojars.sandbox import configuration, place, ports, repository, supervisord, user_units
from deploy_clojars.sandbox.place import Sandbox

__all__ = ["Sandbox", "as_text", "start", "stop"]

TO_TRY = {
    "0.1.0": "the first deploy; nothing is being served yet",
    "0.2.0": "look at the backup, then answer yes or no",
    "0.2.1-failing-tests": "fails before anything changes",
    "0.2.2-does-not-build": "so does this one",
    "0.2.3-does-not-start": "the backup does not come up; everything is put back",
    "0.3.0": "another good one",
    "rollback": "back to the previous release",
    "status": "what runs where",
}


def start(directory: Path, *, systemd: bool = False) -> Sandbox:
    """Creates a sandbox in a directory that is empty or absent, or starts the one that is there.

    `systemd`: a new one is run by the user's own systemd and not by a supervisord.
    Raises UsageError (2) for a directory that is neither, NotReady (4) where supervisor or git is
    not installed or the user has no systemd, DeployError (1) for a sandbox that was moved or broken
    and for all else.
    """
    with _system_errors():
        directory = place.resolved(directory)
        _require_programs(directory, systemd=systemd or place.is_under_systemd(directory))
        directory.mkdir(parents=True, exist_ok=True)
        place.refuse_another_users(directory)
        with _one_at_a_time(directory):
            record = place.recorded(directory)
            if record is None or not record.made:
                systemd = systemd or (record is not None and record.systemd)
                return _running(_made(directory, systemd=systemd))
            place.refuse_moved(directory, record)
            if systemd and not record.systemd:
                raise UsageError(
                    f"{directory} is a sandbox under supervisord; nothing was changed",
                    remedy="for a sandbox under systemd, name another directory",
                )
            sandbox = Sandbox(Path(record.directory), record.ports, systemd=record.systemd)
            _refuse_broken(sandbox)
            return _running(sandbox)


def stop(directory: Path) -> tuple[str, ...]:
    """Ends all that runs of the sandbox, and returns the lines that say so.

    What a crash has left ends, too, and what runs of a sandbox that was moved, broken or removed.
    Raises UsageError (2) for a directory that is not a sandbox, Locked (3) while a run is at work in
    it, DeployError (1) for the copy of a sandbox.
    """
    with _system_errors():
        directory = place.resolved(directory)
        if not directory.exists():
            return _stopped(directory, _started_in(directory))
        place.refuse_another_users(directory)
        with _one_at_a_time(directory):
            return _stopped(directory, _started_in(directory))


def as_text(sandbox: Sandbox) -> str:
    """What is where, and what to try next, for people."""
    tool = shlex.join(["deploy-clojars", "-c", str(sandbox.config)])
    commands = {f"{tool} {words}": what for words, what in TO_TRY.items()}
    commands[place.command(sandbox.directory, "--stop")] = "stops it; the files are kept"
    return "\n".join(
        [
            f"a small clojars.org in {sandbox.directory}",
            *(f"  {line}" for line in sandbox.news),
            f"  site        {_site(sandbox)}",
            f"  primary     http://127.0.0.1:{sandbox.ports.primary.web}/",
            f"  backup      http://127.0.0.1:{sandbox.ports.backup.web}/",
            f"  repository  {sandbox.repository}",
            f"  logs        {_logs(sandbox)}",
            "try:",
            *(f"  # {what}\n  {words}" for words, what in commands.items()),
        ]
    )


def _site(sandbox: Sandbox) -> str:
    if root_program("nginx") is None:
        return "nginx is not installed: use the primary's address"
    return f"http://127.0.0.1:{sandbox.ports.site}/  (nginx: the primary, or else the backup)"


def _logs(sandbox: Sandbox) -> str:
    if sandbox.systemd:
        return f"journalctl --user -u '{place.unit_prefix(sandbox.directory)}*'"
    return str(sandbox.logs)


def _require_programs(directory: Path, *, systemd: bool) -> None:
    if systemd:
        user_units.require_manager(directory)
    elif importlib.util.find_spec("supervisor") is None:
        raise NotReady(
            "a sandbox needs the Python package supervisor",
            remedy="pip install 'deploy-clojars[sandbox]'",
        )
    if shutil.which("git") is None:
        raise NotReady("not on PATH: git")


@contextmanager
def _system_errors() -> Iterator[None]:
    """A full disk or a directory that cannot be written is no defect of this tool."""
    try:
        yield
    except OSError as error:
        raise DeployError(f"{error.filename or 'the sandbox'}: {error.strerror or error}") from None


@contextmanager
def _one_at_a_time(directory: Path) -> Iterator[None]:
    """Lets another `sandbox` command on the same directory wait until this one is done."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # NFS locks no directories; it is a convenience
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _made(directory: Path, *, systemd: bool) -> Sandbox:
    """Writes all that stays. If it is cut off in the middle, the next start makes it again."""
    sandbox = Sandbox(directory, ports.chosen(), news=("just created",), systemd=systemd)
    sandbox.save(made=False)
    repository.make(sandbox.repository)
    configuration.write_configuration(sandbox)
    sandbox.save(made=True)
    return sandbox


def _refuse_broken(sandbox: Sandbox) -> None:
    """Raises DeployError (1) for what is gone, UsageError (2) for a configuration that is wrong."""
    if not (sandbox.repository / ".git").exists():
        raise place.broken(sandbox.directory, f"the repository {sandbox.repository} is gone")
    if not sandbox.config.exists():
        raise place.broken(sandbox.directory, f"the configuration {sandbox.config} is gone")
    config.load(sandbox.config)


def _running(sandbox: Sandbox) -> Sandbox:
    """Starts what does not run yet."""
    sandbox.releases.mkdir(parents=True, exist_ok=True)
    sandbox.logs.mkdir(exist_ok=True)
    news = [*sandbox.news]
    manager = user_units if sandbox.systemd else supervisord
    if manager.answers(sandbox):
        sandbox.news = (*news, "it runs already; nothing was changed")
        return sandbox
    if supervisord.living(sandbox.directory):
        _refuse_while_a_run_is_at_work(sandbox.directory)
        pids = supervisord.end_all(sandbox.directory)
        news.append(f"ended what a crash had left: {_pids(pids)}")
    _refuse_while_a_run_is_at_work(sandbox.directory)
    old = sandbox.ports
    sandbox = Sandbox(sandbox.directory, ports.chosen(old), systemd=sandbox.systemd)
    if sandbox.ports != old:
        configuration.change_ports(sandbox, old)
        sandbox.save(made=True)
        moves = zip(old.all, sandbox.ports.all, strict=True)
        news += [f"port {a} is taken by somebody else; now it is {b}" for a, b in moves if a != b]
    manager.start(sandbox)
    news.append("started" if sandbox.link.exists() else "started; nothing is deployed yet")
    if Host(config.load(sandbox.config)).journal.history().unfinished is not None:
        news.append("a run was cut off: `status` says what to type first")
    sandbox.news = tuple(news)
    return sandbox


def _refuse_while_a_run_is_at_work(directory: Path) -> None:
    """Raises Locked (3): the instances are that run's to restart."""
    holder = lock.holder_of(directory / "home" / "deploy" / "lock")
    if holder is not None:
        raise lock.locked_by(holder)


def _started_in(directory: Path) -> Path:
    """The directory in which a sandbox was when its processes were started."""
    try:
        record = place.recorded(directory)
        if record is None:
            raise place.no_sandbox(directory)
    except DeployError as error:
        if _is_at_work(directory) or place.looks_like_one(directory):
            return directory  # its processes say themselves whose they are
        raise (place.no_sandbox(directory) if isinstance(error, UsageError) else error) from None
    there = Path(record.directory)
    if (there / place.FILE).exists():
        place.refuse_moved(directory, record)  # of a copy nothing was ever started
    return there


def _is_at_work(directory: Path) -> bool:
    return bool(supervisord.living(directory) or user_units.files_of(directory))


def _end_all(directory: Path) -> list[int]:
    """Ends all that runs of the sandbox that was started in the directory, and returns the PIDs."""
    found = {each.pid for each in supervisord.living(directory)}
    user_units.remove(directory)
    return sorted(found | {*supervisord.end_all(directory)})


def _stopped(directory: Path, started_in: Path) -> tuple[str, ...]:
    home = directory / "home"
    _refuse_while_a_run_is_at_work(directory)
    # nginx is found by where it is now, all else by where it was started.
    pids = _end_all(started_in)
    if directory != started_in:
        pids += _end_all(directory)
    supervisord.remove_leftovers(directory)
    if home.exists():
        # Of tests and builds whose run was killed; the next run would have ended them.
        processes.end_strays(Host(config.Config(home=str(home))).id_prefix)
    done = f"stopped: {_pids(pids)}" if pids else "nothing of it was running"
    if (directory / place.FILE).exists() and directory == started_in:
        return done, f"to start it again: {place.command(directory)}"
    return (done,)


def _pids(pids: list[int]) -> str:
    return f"PID {', '.join(map(str, pids))}"
