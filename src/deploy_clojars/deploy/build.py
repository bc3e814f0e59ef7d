"""The tests, the build, and the command that fetches a release: any command lines, and the jar they leave."""

from __future__ import annotations

import os
import pwd
import re
import shlex
import shutil
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import IO

from deploy_clojars import config
from deploy_clojars.deploy.at_once import Work, carried_out
from deploy_clojars.errors import BuildFailed, DeployError, Interrupted, NotReady
from deploy_clojars.host import manifest
from deploy_clojars.host.manifest import JarFacts
from deploy_clojars.machine import processes, shell, signals
from deploy_clojars.machine.environment import environment
from deploy_clojars.run.run import Run
from deploy_clojars.screen.console import Console

# So that a shortage of memory ends the build and not the site (proc(5): -1000 to 1000).
OOM_SCORE_ADJ = 800

CHECKSUM = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")  # a line of sha256sum's
MOST_CHECKSUMS = 1024 * 1024  # bytes

PIECE = 64 * 1024  # bytes; as much of a build's output is shown at once


def program_of(command: str) -> str | None:
    """The program that a command line runs first, or None where that can't be told."""
    try:
        lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
        lexer.whitespace_split, lexer.commenters = True, ""
        words = list(lexer)
    except ValueError:
        return None
    named = (word for word in words if not re.match(r"[A-Za-z_]\w*=", word))
    first = next(named, None)
    return first if first is not None and re.search(r"\w", first) else None


def missing_programs(*commands: str) -> list[str]:
    """The programs that these command lines need and PATH does not have."""
    programs = {program_of(command) for command in commands} - {None}
    # A path inside the checkout can't be there yet.
    wanted = sorted(str(program) for program in programs if "/" not in str(program))
    if "lein" in wanted:
        wanted.append("java")
    return [program for program in wanted if not _is_there(program)]


def _is_there(program: str) -> bool:
    """Whether PATH has it, or the shell that runs the command line: `cd`, `if`."""
    if shutil.which(program) is not None:
        return True
    return shell.capture(["/bin/sh", "-c", 'command -v "$0"', program], timeout=10).status == 0


def refuse_a_user_without_a_home() -> None:
    """Raises NotReady (4) if neither the password database nor the environment names one."""
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        if "HOME" not in os.environ:
            raise NotReady(
                f"user {os.geteuid()} is not in the password database, and HOME is not set",
                remedy="set HOME: what a deploy runs needs it",
            ) from None


# The words before a command that isolate it, by its working directory and its environment.
Isolated = Callable[[Path, Mapping[str, str]], list[str]]


def _as_it_is(directory: Path, environment: Mapping[str, str]) -> list[str]:
    return []


class Builder:
    """Runs the commands that make or fetch a release, with output into the log and a time limit."""

    def __init__(self, settings: config.Build, run: Run, isolated: Isolated = _as_it_is) -> None:
        self._settings = settings
        self._isolated = isolated
        self._run = run
        self._console = run.console

    def testing(self, checkout: Path, output: IO[bytes] | None = None) -> Work[None]:
        """The tests at work, with output into the log or into a file of their own. Raises BuildFailed (5)."""
        self._refuse_a_project_without_leiningen(checkout)
        command = self._settings.test
        yield from self._at_work("test", f"the tests ({command})", command, checkout, output)

    def building(self, checkout: Path, output: IO[bytes] | None = None) -> Work[Path]:
        """The build at work; the result is the release's jar. As `testing`."""
        command = self._settings.uberjar
        yield from self._at_work("build", f"the build ({command})", command, checkout, output)
        return one_file("the build", checkout, self._settings.jar, "build.jar")

    def fetched(self, release: config.Release, version: str, directory: Path) -> Path:
        """Runs the site's command in the empty directory, and returns the jar that it left there.

        Raises BuildFailed (5), Interrupted.
        """
        assert release.command is not None
        # Not with its words, which may be a secret: everybody may read the journal.
        self.run("release.command", release.command, directory, {"DEPLOY_VERSION": version})
        return one_file("the command", directory, release.jar, "release.jar")

    def _refuse_a_project_without_leiningen(self, checkout: Path) -> None:
        """Tags of clojars-web after 2023 have no project.clj at all."""
        commands = (self._settings.test, self._settings.uberjar)
        if (
            commands == (config.Build().test, config.Build().uberjar)
            and not (checkout / "project.clj").exists()
        ):
            raise BuildFailed(
                "the tag has no project.clj, but the configured tests and build are Leiningen's",
                remedy="set build.test, build.uberjar and build.jar in the configuration",
            )

    def run(
        self,
        what: str,
        command: str,
        directory: Path,
        more: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Runs a command line in the directory, with `more` variables; `what` names it in errors.

        Raises BuildFailed (5), Interrupted.
        """
        carried_out(self._at_work("", what, command, directory, more=more))

    def _at_work(
        self,
        step: str,
        what: str,
        command: str,
        directory: Path,
        output: IO[bytes] | None = None,
        more: Mapping[str, str] = MappingProxyType({}),
    ) -> Work[None]:
        log = output or self._console.log
        start = os.fstat(log.fileno()).st_size
        name = f"{step} " if output is not None else ""
        follow = _Follower(log, start, self._console, name) if self._console.verbose else None
        variables = {**environment(self._settings.env, self._run.id), **more}
        killed_before = processes.killed_for_memory()
        try:
            with shell.running(
                [*self._isolated(directory, variables), "/bin/sh", "-c", command],
                log=log,
                cwd=directory,
                env=variables,
                timeout=self._settings.timeout,
                nice=self._settings.nice,
                oom_score_adj=OOM_SCORE_ADJ,
            ) as process:
                while not process.has_ended():
                    if process.memory:
                        self._run.memory[step] = process.memory
                    if follow is not None:
                        follow()
                    yield process.end
            status = process.status
        except shell.TookTooLong as error:
            raise self._failed(f"{what} took too long: {error}", log, start) from None
        except OSError as error:
            raise self._failed(f"{what}: {error.strerror}", log, start) from None
        finally:
            if follow is not None:
                with suppress(Interrupted):  # the next step raises it
                    follow(to_the_end=True)
        if status != 0:
            how = f"exit status {status}" if status > 0 else f"signal {-status}"
            failed = self._failed(f"{what} failed: {how}", log, start)
            # So the kernel frees memory, or a program such as earlyoom.
            is_killed = status in (-signal.SIGKILL, 128 + signal.SIGKILL)
            failed.lacked_memory = is_killed or processes.killed_for_memory() > killed_before
            raise failed

    def _failed(self, message: str, output: IO[bytes], start: int) -> BuildFailed:
        shown = self._console.verbose
        last = "" if shown else shell.last_lines(Path(str(output.name)), start)
        log = self._console.log_file
        return BuildFailed(message, detail=last, remedy=f"full output: {log}" if log else "")


class _Follower:
    """Shows what is added to the log while a command runs (`-v`), with a `name` before each line."""

    def __init__(self, log: IO[bytes], start: int, console: Console, name: str) -> None:
        self._path = Path(log.name)
        self._name = name
        self._position = start
        self._console = console

    def __call__(self, *, to_the_end: bool = False) -> None:
        """Shows the lines that are complete, or all there is. Raises Interrupted."""
        with self._path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            while self._position < size:
                signals.check()  # so that a signal is heard while much output is shown
                file.seek(self._position)
                piece = file.read(PIECE)
                # A carriage return ends a line, too, unless a line feed may follow it.
                end = max(piece.rfind(b"\n"), piece.rfind(b"\r", 0, -1)) + 1
                if end == 0 and (to_the_end or len(piece) == PIECE):
                    end = len(piece)
                if end == 0:
                    break
                self._position += end
                text = piece[:end].decode("utf-8", "replace")
                self._console.raw(as_a_terminal_shows(text), self._name)


def as_a_terminal_shows(text: str) -> str:
    """The text with what a carriage return has overwritten left out: a progress bar's earlier states."""
    lines = text.split("\n")
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)


def one_file(what: str, directory: Path, pattern: str, key: str) -> Path:
    """The one file that `what` left in the directory and that matches the pattern.

    `key` is the pattern's in the configuration. Raises BuildFailed (5).
    """
    found = sorted(path for path in directory.glob(pattern) if path.is_file())
    if len(found) != 1:
        names = ", ".join(str(path.relative_to(directory)) for path in found[:5])
        raise BuildFailed(
            f"{len(found)} files match {pattern}: {names}"
            if found
            else f"{what} left no file that matches {pattern}",
            remedy=f"set {key} in the configuration so that it matches exactly one file",
        )
    if not found[0].resolve().is_relative_to(directory.resolve()):
        raise BuildFailed(f"{found[0]} leads outside the directory of {what}")
    return found[0]


def listed_sha256(checksums: Path, name: str) -> str:
    """The SHA-256 of the file `name` in a list as sha256sum writes it. Raises BuildFailed (5).

    Directories in the list's names do not count: they are those of the machine that wrote it.
    """
    try:
        with checksums.open("rb") as file:
            text = file.read(MOST_CHECKSUMS).decode("utf-8", "replace")
    except OSError as error:
        raise BuildFailed(f"{checksums.name} cannot be read: {error.strerror}") from None
    lines = (CHECKSUM.fullmatch(line.rstrip()) for line in text.splitlines())
    found = {line[1].lower() for line in lines if line and line[2].rpartition("/")[2] == name}
    if len(found) != 1:
        how_many = "several checksums" if found else "no checksum"
        raise BuildFailed(f"{checksums.name} has {how_many} for {name}")
    return found.pop()


def inspect(jar: Path, name: str, commit: str | None, called: str) -> JarFacts:
    """Checks a jar that is to be a release, and returns what it says of itself.

    Raises BuildFailed (5) if it is no sound program or was built from another commit than
    `commit`, if that is known.
    """
    try:
        facts = manifest.facts_of(jar, name, called=called)
    except DeployError as error:
        raise BuildFailed(error.message) from None
    if commit is not None and facts.revision not in (None, commit):
        raise BuildFailed(
            f"the jar says that it was built from {str(facts.revision)[:10]}, "
            f"the tag is {commit[:10]}"
        )
    return facts
