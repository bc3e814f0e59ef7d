"""The checkout's tests and its release jar: any two command lines."""

from __future__ import annotations

import os
import pwd
import re
import shlex
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

from deploy_clojars import config
from deploy_clojars.errors import BuildFailed, DeployError, Interrupted, NotReady
from deploy_clojars.host import manifest
from deploy_clojars.machine import shell, signals
from deploy_clojars.machine.environment import environment
from deploy_clojars.screen.console import Console

# So that a shortage of memory ends the build and not the site (proc(5): -1000 to 1000).
OOM_SCORE_ADJ = 800

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


def missing_programs(settings: config.Build) -> list[str]:
    """The programs that the tests and the build need and PATH does not have."""
    programs = {program_of(settings.test), program_of(settings.uberjar)} - {None}
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
                remedy="set HOME: the tests and the build need it",
            ) from None


# The words before a command that isolate it, by its working directory and its environment.
Isolated = Callable[[Path, Mapping[str, str]], list[str]]


def _as_it_is(directory: Path, environment: Mapping[str, str]) -> list[str]:
    return []


class Builder:
    """Runs the checkout's own commands, with output into the log and a time limit."""

    def __init__(
        self, settings: config.Build, run_id: str, console: Console, isolated: Isolated = _as_it_is
    ) -> None:
        self._settings = settings
        self._isolated = isolated
        self._run_id = run_id
        self._console = console

    def test(self, checkout: Path) -> None:
        """Runs the tests. Raises BuildFailed (5), Interrupted."""
        self._refuse_a_project_without_leiningen(checkout)
        self._run("the tests", self._settings.test, checkout)

    def uberjar(self, checkout: Path) -> Path:
        """Builds the release and returns its jar. Raises BuildFailed (5), Interrupted."""
        self._run("the build", self._settings.uberjar, checkout)
        return one_jar(checkout, self._settings.jar)

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

    def _run(self, what: str, command: str, checkout: Path) -> None:
        log = self._console.log
        start = os.fstat(log.fileno()).st_size
        follow = _Follower(log, start, self._console) if self._console.verbose else None
        variables = environment(self._settings.env, self._run_id)
        try:
            status = shell.stream(
                [*self._isolated(checkout, variables), "/bin/sh", "-c", command],
                log=log,
                cwd=checkout,
                env=variables,
                timeout=self._settings.timeout,
                nice=self._settings.nice,
                oom_score_adj=OOM_SCORE_ADJ,
                watch=follow,
            )
        except shell.TookTooLong as error:
            raise self._failed(f"{what} ({command}) took too long: {error}", start) from None
        except OSError as error:
            raise self._failed(f"{what} ({command}): {error.strerror}", start) from None
        finally:
            if follow is not None:
                with suppress(Interrupted):  # the next step raises it
                    follow(to_the_end=True)
        if status != 0:
            how = f"exit status {status}" if status > 0 else f"signal {-status}"
            raise self._failed(f"{what} ({command}) failed: {how}", start)

    def _failed(self, message: str, start: int) -> BuildFailed:
        shown = self._console.verbose
        last = "" if shown else shell.last_lines(Path(self._console.log.name), start)
        log = self._console.log_file
        return BuildFailed(message, detail=last, remedy=f"full output: {log}" if log else "")


class _Follower:
    """Shows what is added to the log while a command runs (`-v`)."""

    def __init__(self, log: IO[bytes], start: int, console: Console) -> None:
        self._path = Path(log.name)
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
                self._console.raw(as_a_terminal_shows(piece[:end].decode("utf-8", "replace")))


def as_a_terminal_shows(text: str) -> str:
    """The text with what a carriage return has overwritten left out: a progress bar's earlier states."""
    lines = text.split("\n")
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)


def one_jar(checkout: Path, pattern: str) -> Path:
    """The one file in the checkout that matches `pattern`. Raises BuildFailed (5)."""
    found = sorted(path for path in checkout.glob(pattern) if path.is_file())
    if len(found) != 1:
        names = ", ".join(str(path.relative_to(checkout)) for path in found[:5])
        raise BuildFailed(
            f"{len(found)} files match {pattern}: {names}"
            if found
            else f"the build left no file that matches {pattern}",
            remedy="build.jar in the configuration says where the release jar is",
        )
    jar = found[0]
    if not jar.resolve().is_relative_to(checkout.resolve()):
        raise BuildFailed(f"{jar} leads outside the checkout")
    return jar


def inspect(jar: Path, name: str, version: str, commit: str) -> str | None:
    """Checks a jar that was just built; returns a warning if its own version is another one.

    Raises BuildFailed (5) if it is no sound program or was built from another commit.
    """
    try:
        facts = manifest.facts_of(jar, name)
    except DeployError as error:
        raise BuildFailed(error.message) from None
    if facts.revision is not None and facts.revision != commit:
        raise BuildFailed(
            f"the jar says that it was built from {facts.revision[:10]}, the tag is {commit[:10]}"
        )
    if facts.version is not None and facts.version != version:
        # Two of clojars-web's 200 tags with a project.clj differ, and both are good.
        return f"the jar says {facts.version}, the tag is {version}"
    return None
