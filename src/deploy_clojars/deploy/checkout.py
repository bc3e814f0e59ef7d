"""The tag, checked out: a cached bare mirror, and a fresh directory with a real `.git`."""

from __future__ import annotations

import configparser
import os
import shutil
from collections.abc import Iterable
from contextlib import closing, suppress
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import IO

# GitPython looks for git when it is imported and raises if there is none: preflight says it.
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

import git

from deploy_clojars.errors import DeployError
from deploy_clojars.machine import shell, signals
from deploy_clojars.machine.processes import RUN_VARIABLE

# A repository's configuration and a user's may name programs to run; none is run here.
SAFE = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "protocol.ext.allow=never",
    # The mirror is this tool's own; a host may forbid this for repositories of others.
    "protocol.file.allow=always",
    "core.askPass=",
    "log.showSignature=false",
    "gc.auto=0",
)
# A stalled server: less than 1,000 bytes a second for 30 s, or no word at all for 60 s.
SLOWEST, SLOW_SECONDS, SILENT_SECONDS = 1000, 30, 60.0
FAILED_TO_KEEP = 3
SUBJECTS = 12  # commits listed in the question

# Those name a repository of their own, or a program, and none of them is meant for this one.
UNWANTED = (
    "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_COMMON_DIR", "GIT_NAMESPACE", "GIT_PREFIX",
    "GIT_CONFIG_PARAMETERS", "GIT_CONFIG_COUNT", "GIT_EXTERNAL_DIFF", "GIT_SSH", "SSH_ASKPASS",
    "GIT_ALLOW_PROTOCOL", "GIT_PROTOCOL_FROM_USER",
)  # fmt: skip


@dataclass(frozen=True)
class Commits:
    """The commits between two releases."""

    count: int
    backwards: bool  # the new one is older
    subjects: tuple[str, ...]


def environment(run_id: str) -> dict[str, str]:
    """git's environment: never a prompt, messages in English, the run's id."""
    inherited = {key: value for key, value in os.environ.items() if key not in UNWANTED}
    return {
        **inherited,
        # A connection that stays would keep its starter's pipe open.
        "GIT_SSH_COMMAND": f"{_ssh()} -o BatchMode=yes -o ControlMaster=no",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "",
        "LC_ALL": "C",
        RUN_VARIABLE: run_id,
    }


def _ssh() -> str:
    """What git would use for ssh; the environment would overrule a configured command."""
    configured = ""
    with suppress(OSError, shell.TookTooLong):
        words = ["git", "-C", "/", "config", "--get", "core.sshCommand"]
        configured = shell.capture(words, timeout=10).out.strip()
    return os.environ.get("GIT_SSH_COMMAND") or configured or "ssh"


class Mirror:
    """The bare mirror of the repository's tags."""

    def __init__(self, directory: Path, url: str, run_id: str) -> None:
        self.directory = directory
        self._url = url
        self._environment = environment(run_id)

    def fetch(self, log: IO[bytes], timeout: float, silence: float = SILENT_SECONDS) -> bool:
        """Brings the mirror up to date; returns whether it had to be recreated.

        `timeout` is in seconds. Raises DeployError: no network, no such repository, a password
        asked for, a stalled server.
        """
        if not self._is_a_repository():
            was_there = self.directory.exists()
            self.recreate(log, timeout, silence)
            return was_there
        try:
            self._fetch(log, timeout, silence)
            return False
        except Stalled:
            raise
        except DeployError:
            # The mirror or the remote: if the remote answers, it is the mirror.
            if not self._remote_answers(log, timeout, silence):
                raise
        self.recreate(log, timeout, silence)
        return True

    def recreate(self, log: IO[bytes], timeout: float, silence: float = SILENT_SECONDS) -> None:
        """Replaces the mirror by a new one, once that is complete. Raises DeployError as `fetch`."""
        successor = copy(self)
        successor.directory = self.directory.with_name(f"{self.directory.name}.new")
        try:
            successor._make()
            successor._fetch(log, timeout, silence)
            _remove_whatever(self.directory)
            successor.directory.rename(self.directory)
        except OSError as error:
            raise DeployError(f"the mirror {self.directory} cannot be made: {error}") from None
        finally:
            remove(successor.directory)

    def _is_a_repository(self) -> bool:
        if self.directory.is_symlink():
            return False  # to whose tags `fetch` would do what it does to the mirror's
        try:
            with closing(git.Repo(self.directory, expand_vars=False)) as repository:
                return bool(repository.bare)
        except (git.InvalidGitRepositoryError, git.NoSuchPathError, OSError, ValueError):
            return False
        except configparser.Error:
            return False  # of GitPython's own reader

    def _make(self) -> None:
        try:
            _remove_whatever(self.directory)
            self.directory.parent.mkdir(parents=True, exist_ok=True)
            self._git(self.directory.parent).init("--bare", "--quiet", "--", str(self.directory))
        except (OSError, git.GitCommandError) as error:
            raise DeployError(f"the mirror {self.directory} cannot be made: {error}") from None

    def _fetch(self, log: IO[bytes], timeout: float, silence: float) -> None:
        # The tags and nothing else: a version is never a branch. A tag that was moved or deleted
        # on the server is so here, too.
        words = ["fetch", "--progress", "--prune", "--no-auto-gc", "--no-write-fetch-head"]
        self._remote([*words, "--", self._url, "+refs/tags/*:refs/tags/*"], log, timeout, silence)

    def _remote_answers(self, log: IO[bytes], timeout: float, silence: float) -> bool:
        try:
            words = ["ls-remote", "--tags", "--", self._url]
            # Not in the mirror, which may be what keeps git from answering.
            self._remote(words, log, timeout, silence, self.directory.parent)
        except DeployError:
            return False
        return True

    def _remote(
        self,
        words: list[str],
        log: IO[bytes],
        timeout: float,
        silence: float,
        cwd: Path | None = None,
    ) -> None:
        start = os.fstat(log.fileno()).st_size
        slow = (f"http.lowSpeedLimit={SLOWEST}", f"http.lowSpeedTime={SLOW_SECONDS}")
        options = [part for setting in (*SAFE, *slow) for part in ("-c", setting)]
        try:
            status = shell.stream(
                ["git", *options, *words],
                log=log, cwd=cwd or self.directory, env=self._environment,
                timeout=timeout, silence=silence,
            )  # fmt: skip
        except OSError as error:
            raise DeployError(f"git: {error.strerror}") from None
        except (shell.TookTooLong, shell.Silent) as error:
            raise Stalled(f"{self._url}: the server has stalled: {error}") from None
        if status != 0:
            said = shell.last_lines(Path(log.name), start, lines=5)
            raise DeployError(
                f"{self._url}: git {words[0]} failed (exit status {status})",
                detail=said,
                remedy=_hint(said),
            )

    def _git(self, directory: Path) -> git.Git:
        for name in UNWANTED:
            # GitPython adds to the process's own environment and cannot take from it.
            os.environ.pop(name, None)
        command = git.Git(str(directory))
        command.update_environment(**self._environment)
        command.set_persistent_git_options(c=list(SAFE))
        return command

    def tags(self) -> list[str]:
        """All tags of the mirror."""
        lines = self._git(self.directory).for_each_ref("refs/tags", format="%(refname:lstrip=2)")
        return str(lines).splitlines()

    def commit_of(self, tag: str) -> str:
        """The full hash of the tag's commit; a branch, a commit or `0.8.1~1` is not a tag.

        Raises DeployError with the nearest names.
        """
        reference = f"refs/tags/{tag}"
        command = self._git(self.directory)
        try:
            # rev-parse alone would take `0.8.1~1`.
            command.show_ref("--verify", "--quiet", "--", reference)
        except git.GitCommandError as error:
            if error.status != 1:
                raise Broken(f"the tag {tag} cannot be looked up: {_words(error)}") from None
            raise _no_tag(tag, self._url, self.tags()) from None
        try:
            return str(command.rev_parse("--verify", "--end-of-options", f"{reference}^{{commit}}"))
        except git.GitCommandError as error:
            raise Broken(f"the tag {tag} leads to no commit: {_words(error)}") from None

    def check_out(self, commit: str, directory: Path) -> None:
        """Makes `directory` with a real `.git` at the commit. Raises Broken, DeployError."""
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            self._git(directory.parent).clone(
                "--shared", "--no-checkout", "--quiet", "--", str(self.directory), str(directory)
            )
            self._git(directory).checkout("--quiet", "--detach", commit)
            # A file whose content is lost is left out, and git's exit status is 0.
            lost = str(self._git(directory).ls_files("--deleted")).splitlines()
        except git.GitCommandError as error:
            signals.check()  # Ctrl-C reaches git, too: its end says nothing of the mirror
            raise Broken(f"{commit[:10]} cannot be checked out: {_words(error)}") from None
        except OSError as error:
            raise DeployError(f"{directory} cannot be made: {error.strerror}") from None
        if lost:
            raise Broken(f"{commit[:10]} cannot be checked out: {len(lost)} files are lost")

    def commits_between(self, old: str, new: str) -> Commits | None:
        """The commits between two releases, or None if one of them is not in the mirror."""
        command = self._git(self.directory)
        try:
            ahead = int(command.rev_list("--count", f"{old}..{new}", "--"))
            backwards = ahead == 0 and old != new
            span = f"{new}..{old}" if backwards else f"{old}..{new}"
            count = int(command.rev_list("--count", span, "--"))
            lines = command.log(
                "--format=%h %s", "--no-decorate", f"--max-count={SUBJECTS}", span, "--"
            )
        except (git.GitCommandError, ValueError):
            return None
        # Not splitlines(): a subject may hold what that takes for the end of a line.
        subjects = tuple(line for line in str(lines).split("\n") if line)
        return Commits(count, backwards, subjects)


def remote_commit_of(url: str, tag: str, timeout: float) -> str:
    """The tag's commit, asked of the remote; no mirror is needed, and none is changed.

    Raises DeployError as `fetch` and `commit_of`.
    """
    commits = remote_tags(url, timeout)
    if tag not in commits:
        raise _no_tag(tag, url, commits)
    return commits.get(f"{tag}^{{}}", commits[tag])  # what an annotated tag leads to


def remote_tags(url: str, timeout: float) -> dict[str, str]:
    """What the remote's tags name; `TAG^{}` is what an annotated one leads to.

    Asked with the settings of a fetch. Raises DeployError as `fetch`.
    """
    options = [part for setting in SAFE for part in ("-c", setting)]
    # Not in the repository that the operator happens to be in.
    words = ["git", "-C", "/", *options, "ls-remote", "--tags", "--", url]
    try:
        answer = shell.capture(words, timeout=timeout, env=environment(""))
    except OSError as error:
        raise DeployError(f"git: {error.strerror}") from None
    except shell.TookTooLong as error:
        raise Stalled(f"{url}: the server has stalled: {error}") from None
    if answer.status != 0:
        raise DeployError(
            f"{url}: git ls-remote failed (exit status {answer.status})",
            detail=answer.err, remedy=_hint(answer.err),
        )  # fmt: skip
    lines = (line.partition("\t") for line in answer.out.splitlines())
    return {name.removeprefix("refs/tags/"): commit for commit, _, name in lines}


def _no_tag(tag: str, url: str, tags: Iterable[str]) -> DeployError:
    near = get_close_matches(tag, list(tags), n=3, cutoff=0.5)
    remedy = f"did you mean {', '.join(near)}?" if near else ""
    return DeployError(f"no tag {tag} in {url}", remedy=remedy)


class Stalled(DeployError):
    """The server, not the mirror, is at fault."""


class Broken(DeployError):
    """The mirror lacks what it should have; recreated, it may have it."""


def _words(error: git.GitCommandError) -> str:
    text = str(error.stderr).strip().removeprefix("stderr:").strip(" '\n")
    return text.splitlines()[-1] if text else f"exit status {error.status}"


def _hint(said: str) -> str:
    """What may help; for the operator only, nothing is decided by git's wording."""
    if "terminal prompts disabled" in said or "Permission denied (publickey" in said:
        return "the repository asks for a password or a key, and this user has none for it"
    return ""


def new_directory(checkouts: Path, version: str) -> Path:
    """A name that no checkout had before."""
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H%M%S.%fZ")
    return checkouts / f"{stamp}-{version}"


def keep_last_failed(checkouts: Path, keep: int = FAILED_TO_KEEP) -> None:
    """Removes all but the newest failed checkouts; their names are in the order of time."""
    try:
        directories = sorted(path for path in checkouts.iterdir() if not path.is_symlink())
    except OSError:
        return
    for directory in directories[: max(0, len(directories) - keep)]:
        remove(directory)


def remove(directory: Path) -> None:
    """Removes a directory that is no longer needed, also what a build has protected from writing."""

    shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        with suppress(OSError):
            directory.chmod(0o700)
            for parent, names, _ in os.walk(directory):
                for path in (Path(parent, name) for name in names):
                    if not path.is_symlink():
                        path.chmod(0o700)
        shutil.rmtree(directory, ignore_errors=True)


def _remove_whatever(path: Path) -> None:
    """Removes a directory, a file or a link, if it is there. Raises OSError."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
