"""`--dry-run`: the command itself, on a host that writes each change down instead of making it.

Nothing is touched: no lock, no journal, no log, no mirror. What is refused is refused as it would
be, and each step sees the host as the steps before it would have left it.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from deploy_clojars.deploy import checkout, isolation, migrate
from deploy_clojars.deploy.at_once import runs_both
from deploy_clojars.deploy.migrate import CarryOut
from deploy_clojars.deploy.resting import backup_rests_afterwards
from deploy_clojars.deploy.source import Command, Offer, Source, Tag, source_of
from deploy_clojars.errors import NotReady
from deploy_clojars.host.health import Observation
from deploy_clojars.host.host import Host
from deploy_clojars.host.instances import Instance
from deploy_clojars.host.journal import INSTALL, Event, History, Journal, history_of, now
from deploy_clojars.host.nginx import BACKUP_FIRST, PRIMARY_FIRST, Nginx
from deploy_clojars.host.releases import UNFINISHED, Copy, Current, Releases
from deploy_clojars.host.services import Job, State
from deploy_clojars.host.users import refuse_the_wrong_user
from deploy_clojars.host.visits import Doors
from deploy_clojars.machine.environment import environment
from deploy_clojars.machine.files import Input
from deploy_clojars.machine.processes import Process
from deploy_clojars.run import lock
from deploy_clojars.run.run import Request, Run
from deploy_clojars.screen.console import Console

Write = Callable[[str], None]


def rehearsal(host: Host, request: Request) -> RehearsedRun:
    """The run that the command would be. Raises UsageError (2), NotReady (4), Locked (3)."""
    refuse_the_wrong_user(host, request.command, request.version)
    holder = lock.holder_of(host.lock_file)
    if holder is not None:
        raise lock.locked_by(holder)
    lock.refuse_one_that_cannot_be_held(host.lock_file)
    if not host.deploy.is_dir() and not os.access(host.home, os.W_OK | os.X_OK):
        raise NotReady(f"{host.deploy} cannot be created: {os.strerror(errno.EACCES)}")
    lines: list[str] = []
    if not host.deploy.is_dir():
        lines.append(_command("mkdir", host.deploy))
    return RehearsedRun(host, request, lines)


def rehearse(run: RehearsedRun, command: Callable[..., None]) -> str:
    """What the command would do, line by line; lines that change nothing begin with #.

    Raises DeployError as the command would.
    """
    words: list[object] = []
    if run.request.command in ("deploy", INSTALL):
        words.append(_rehearsed(source_of(run), run, run.lines.append))
    if run.request.command == "deploy":
        words.append(_rehearsed_migration(run.lines.append))
    with backup_rests_afterwards(run):
        command(run, *words)
    return "\n".join(run.lines)


def _command(*words: str | Path) -> str:
    return shlex.join(map(str, words))


def _for_the_shell(pattern: str) -> str:
    """The pattern, quoted except for what the shell expands."""
    parts = re.split(r"(\*+|\?|\[[^\]]*\])", pattern)  # every second part is a wildcard
    return "".join(
        part if number % 2 or not part else shlex.quote(part) for number, part in enumerate(parts)
    )


class RehearsedConsole(Console):
    """Writes what a run says as comments, and answers its question with yes."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self._lines = lines

    def say(self, text: str, style: str = "") -> None:
        self._lines.append(f"# {text}")

    def warn(self, text: str) -> None:
        self._lines.append(f"# warning: {text}")

    def tell(self, text: str, style: str = "") -> None:
        pass  # the question alone says enough

    def page(self, lines: object, *, always: bool) -> None:
        pass

    def ask(self, question: str, watch: object) -> bool:
        self._lines.append(f"# ask: {question}")
        return True

    @contextmanager
    def step(
        self, name: str, what: str, usual_seconds: float | None = None
    ) -> Iterator[Callable[[str], None]]:
        before = len(self._lines)
        yield lambda _: None
        if len(self._lines) == before:  # nothing that it does is a command
            self._lines.append(f"# {name}: {what}")


class RehearsedRun(Run):
    """A run that holds no lock and tells nobody."""

    def __init__(self, host: Host, request: Request, lines: list[str]) -> None:
        self.lines = lines
        super().__init__(
            RehearsedHost(host, lines.append), RehearsedConsole(lines), request,
            at_step=lambda step, version: None,
        )  # fmt: skip

    def record(self, event: str, *, may_fail: bool = False, **fields: Any) -> bool:
        line = Event(event=event, at=now(), run=self.id, by=self.by, **fields)
        self.host.journal.append(line)
        self.changed = self.changed or line.changes_the_host
        return True

    def succeeded(self, outcome: str, message: str) -> None:
        pass  # it is not so now


class RehearsedHost(Host):
    """The host, on which each change is written down; what follows takes it as made."""

    def __init__(self, host: Host, write: Write) -> None:
        config, replace = host.config, msgspec.structs.replace
        # Nothing is done here, so nothing has to stay quiet or healthy, and no JVM makes an archive.
        drain, health = replace(config.drain, quiet=0), replace(config.health, settle=0)
        jvm = replace(config.jvm, class_data=False)
        pretended = replace(config, drain=drain, health=health, jvm=jvm)
        super().__init__(pretended, host.words, host.file)
        self.journal = RehearsedJournal(self.journal.file)
        self.releases = RehearsedReleases(self.releases, write)
        self.nginx = RehearsedNginx(self.nginx, write, self.jobs[1])
        for role, instance in self.instances.items():
            self.instances[role] = RehearsedInstance(instance, write, config.drain.quiet)

    def read_changed_jobs(self) -> None:
        pass  # nothing is brought into force


class RehearsedJournal(Journal):
    """The journal, with lines that are nowhere but here."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self._events: list[Event] = []

    def append(self, event: Event) -> None:
        self._events.append(event)

    def history(self) -> History:
        return history_of(self._events, super().history())


class RehearsedInstance(Instance):
    """An instance whose restarts are written down, each of which makes it healthy."""

    def __init__(self, real: Instance, write: Write, quiet: float) -> None:
        vars(self).update(vars(real))
        self._write = write
        self._quiet = quiet
        self._pretended: Observation | None = None

    def status(self) -> Job:
        seen = self._pretended
        return super().status() if seen is None else Job(seen.state, seen.pid)

    def observe(self) -> Observation:
        return super().observe() if self._pretended is None else self._pretended

    def doors(self) -> Doors:
        self._write(f"# wait until nginx has had no request in {self.job} for {self._quiet:g} s")
        return Doors(frozenset(), frozenset())

    def restart(self) -> None:
        self._type("start" if self.status().state == "stopped" else "restart", "starting")

    def stop_and_start(self) -> None:
        if self.status().state != "stopped":
            self.stop()
        self._type("start", "starting")

    def stop(self) -> None:
        self._type("stop", "stopped")

    def _type(self, verb: str, state: State) -> None:
        self._write(_command(*self._services.words(verb, self.job)))
        self._pretended = Observation(self.role, self.job, state, "")

    def wait_until_healthy(
        self, version: str, *, before: Process | None = None, timeout: float | None = None
    ) -> Observation:
        if self._pretended is None:
            return super().wait_until_healthy(version, before=before, timeout=timeout)
        if self._pretended.state == "starting":
            self._write(f"# wait until {self.job} is healthy on {version}")
            self._pretended = Observation(
                self.role, self.job, "running", "",
                pid=0, running=version, open_releases=frozenset({version}),
            )  # fmt: skip
        return self.observe()


class RehearsedNginx(Nginx):
    """nginx as it would answer if the flag were set and removed."""

    def __init__(self, real: Nginx, write: Write, backup: str) -> None:
        vars(self).update(vars(real))
        self._write = write
        self._backup = backup
        self._is_set = real.flag_is_set

    @property
    def flag_is_set(self) -> bool:
        return self._is_set

    def set_flag(self) -> None:
        if not self._is_set:
            self._write(f"{_command('touch', self.flag)}  # nginx prefers {self._backup}")
        self._is_set = True

    def remove_flag(self) -> None:
        self._write(_command("rm", self.flag))
        self._is_set = False

    def answer(self) -> str:
        answer = super().answer()
        answers = answer in (PRIMARY_FIRST, BACKUP_FIRST)
        return (BACKUP_FIRST if self._is_set else PRIMARY_FIRST) if answers else answer


@dataclass(frozen=True)
class NotMadeYet(Input):
    """The jar that the run would make or fetch in the directory `path`."""

    pattern: str


class RehearsedReleases(Releases):
    """The releases as they would be."""

    def __init__(self, real: Releases, write: Write) -> None:
        vars(self).update(vars(real))
        self._write = write
        self._current = real.current()
        self._added: set[str] = set()
        self._removed: set[str] = set()

    def current(self) -> Current:
        return self._current

    def has(self, version: str) -> bool:
        return version in self._added or (version not in self._removed and super().has(version))

    def size(self, version: str) -> int | None:
        if not self.has(version):
            return None
        return 0 if version in self._added else super().size(version)

    def versions(self) -> list[str]:
        return sorted({*super().versions(), *self._added} - self._removed)

    def flip(self, version: str) -> None:
        self._write(f"# current: {self._current.version or 'none'} -> {version}")
        temporary = self.directory / f"{UNFINISHED}new.link"
        link = _command("ln", "-s", self.path(version).name, temporary)
        self._write(f"{link} && {_command('mv', '-T', temporary, self.link)}")
        self._current = Current(version, self.path(version).name)

    @contextmanager
    def link_made_for(self, version: str) -> Iterator[None]:
        yield  # nothing is reverted here

    def remove_link(self) -> None:
        self._write(_command("rm", self.link))
        self._current = Current()

    @contextmanager
    def copied(self, original: Input, version: str, patience: float) -> Iterator[Copy]:
        temporary = self.directory / f"{UNFINISHED}new.jar"
        if isinstance(original, NotMadeYet):
            pattern = _for_the_shell(str(Path(original.pattern)))  # without ./ and //
            copy = f"cp {_command(original.path)}/{pattern} {_command(temporary)}"
            # ** is bash's, if it is asked
            self._write(_command("bash", "-O", "globstar", "-c", copy))
            yield Copy(temporary, "", 0, Future())
        else:
            self._write(_command("cp", original.path, temporary))
            with TemporaryDirectory() as directory:
                elsewhere = Releases(Path(directory), "")
                with elsewhere.copied(original, version, patience) as made:
                    yield made
        if version not in self._added:
            self._write(_command("rm", temporary))

    def add(self, copy: Copy, version: str) -> None:
        temporary = self.directory / f"{UNFINISHED}new.jar"
        self._write(
            f"{_command('ln', temporary, self.path(version))} && {_command('rm', temporary)}"
        )
        self._added.add(version)
        self._removed.discard(version)

    def remove(self, version: str) -> None:
        self._write(_command("rm", self.path(version)))
        self._removed.add(version)


def _rehearsed(source: Source, run: Run, write: Write) -> Source:
    """The source, which makes nothing; a jar file is looked at as in earnest."""
    if isinstance(source, Tag):
        return RehearsedTag(run, write)
    return RehearsedCommand(run, write) if isinstance(source, Command) else source


def _rehearsed_migration(write: Write) -> CarryOut:
    """The migration as it would be typed, without the values of the application's environment."""

    def carry_out(run: Run) -> None:
        settings = run.host.config.migrate
        assert settings.command is not None
        file = settings.environment_file
        read = f"set -a && . {_command(file)} && " if file is not None else ""
        variables = (f"{name}={value}" for name, value in migrate.facts(run).items())
        typed = _command("env", *variables, "/bin/sh", "-c", settings.command)
        write(f"({read}cd {_command(run.host.home)} && {typed})")

    return carry_out


def _typed(run: Run, directory: Path, before: Sequence[str], command: str) -> str:
    """A command of the build, as it would be typed; `before` are the words before the shell's."""
    nice = ("nice", "-n", str(run.host.config.build.nice))
    return f"cd {_command(directory)} && {_command(*nice, *before, '/bin/sh', '-c', command)}"


class RehearsedTag(Tag):
    """The tag's commit, asked of the remote, and what would be done with it."""

    def __init__(self, run: Run, write: Write) -> None:
        super().__init__(run)
        self._write = write

    def fetch(self) -> str:
        config, mirror = self._run.host.config, self._mirror.directory
        commit = self._mirror.remote_commit_of(
            self._run.version, config.build.timeout, self._verify
        )
        if not mirror.is_dir():
            format = ["--object-format=sha256"] if len(commit) == 64 else []
            self._write(_command("git", "init", "--bare", *format, mirror))
        tags = "+refs/tags/*:refs/tags/*"
        self._write(_command("git", "-C", mirror, "fetch", "--prune", config.repository, tags))
        return commit

    @contextmanager
    def offered(self) -> Iterator[Offer]:
        host, build = self._run.host, self._run.host.config.build
        with self.checked_out(self._commit) as directory:
            variables = environment(build.env, self._run.id)
            another = checkout.new_directory(directory.parent, self._run.version)

            def typed(command: str, where: Path) -> str:
                before = isolation.prefix(host.config, host.file, where, variables)
                return _typed(self._run, where, before, command)

            if runs_both(host):
                self._write(_command("cp", "-a", directory, another))
                tests, built = typed(build.test, another), typed(build.uberjar, directory)
                self._write(f"({built}) & ({tests}) && wait $!")
                self._write(_command("rm", "-r", another))
            else:
                self._write(typed(build.test, directory))
                self._write(typed(build.uberjar, directory))
            yield Offer(NotMadeYet(directory, -1, build.jar))

    @contextmanager
    def checked_out(self, commit: str) -> Iterator[Path]:
        checkouts, mirror = self._run.host.deploy / "checkouts", self._mirror.directory
        directory = checkout.new_directory(checkouts, self._run.version)
        self._write(_command("git", "clone", "--shared", "--no-checkout", mirror, directory))
        self._write(
            _command("git", "-C", directory, "remote", "set-url", "origin", self._mirror.origin)
        )
        self._write(_command("git", "-C", directory, "checkout", "--detach", commit))
        self._write(
            _command("git", "-C", directory, "submodule", "update", "--init", "--recursive")
        )
        yield directory
        self._write(_command("rm", "-r", directory))

    def check(self, offer: Offer, copy: Copy) -> str | None:
        return self._commit


class RehearsedCommand(Command):
    """What the site's command would be asked, which is not asked: it may do anything."""

    def __init__(self, run: Run, write: Write) -> None:
        super().__init__(run)
        self._write = write

    @contextmanager
    def offered(self) -> Iterator[Offer]:
        run, settings = self._run, self._run.host.config.release
        directory = checkout.new_directory(run.host.deploy / "checkouts", run.version)
        self._write(_command("mkdir", "-p", directory))
        variables = ("env", f"DEPLOY_VERSION={run.version}")
        self._write(_typed(run, directory, variables, self._line))
        if settings.sha256 is not None:
            checksums = _for_the_shell(settings.sha256)
            self._write(
                f"cd {_command(directory)} && sha256sum --ignore-missing --check {checksums}"
            )
        yield Offer(NotMadeYet(directory, -1, settings.jar))
        self._write(_command("rm", "-r", directory))

    def check(self, offer: Offer, copy: Copy) -> str | None:
        return None
