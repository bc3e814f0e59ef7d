"""The tag, checked out: a cached bare mirror, and a fresh directory with a real `.git`."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

# GitPython looks for git when it is imported and raises if there is none: preflight says it.
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

import git

from deploy_clojars.deploy.git_login import login_of
from deploy_clojars.errors import DeployError
from deploy_clojars.machine import shell, signals
from deploy_clojars.machine.processes import RUN_VARIABLE
from deploy_clojars.masking import masked

# The host, the user and the mirror may have any settings of git. Those for the remote count:
# url.insteadOf, credentials, the ssh command, proxies. For local work these count instead, so that no
# program that the others name is run.
SAFE = (
    "clone.defaultRemoteName=origin",
    "core.attributesFile=/dev/null",
    "core.autocrlf=false",
    "core.eol=lf",
    "core.fsmonitor=false",
    "core.hooksPath=/dev/null",
    "core.symlinks=true",
    "gc.auto=0",
    "log.showSignature=false",
    "protocol.ext.allow=never",
    # The submodules of a repository on this host are on it, too, and git refuses those by default.
    "protocol.file.allow=always",
    "safe.bareRepository=all",
    "submodule.active=.",
    "submodule.recurse=false",
)
SILENT_SECONDS = 60.0  # after which a server that says nothing at all has stalled
FAILED_TO_KEEP = 3
SUBJECTS = 12  # commits listed in the question

# git's variables that are meant for the remote, or for no repository in particular. All others name a
# repository or a program of the caller's, or change how this repository is read.
WANTED = (
    "GIT_AUTHOR_", "GIT_COMMITTER_", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_NOSYSTEM",
    "GIT_CONFIG_SYSTEM", "GIT_CURL_VERBOSE", "GIT_EXEC_PATH", "GIT_HTTP_", "GIT_PROXY_",
    "GIT_PYTHON_", "GIT_SSH", "GIT_SSL_", "GIT_TRACE",
)  # fmt: skip

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\n"

REMOTE_TAG = re.compile(r"^([0-9a-f]{40}(?:[0-9a-f]{24})?)\trefs/tags/(.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Commits:
    """The commits between two releases."""

    count: int
    backwards: bool  # the new one is older
    subjects: tuple[str, ...]


def environment(run_id: str) -> dict[str, str]:
    """git's environment: never a prompt, messages in English, the run's id."""
    return {
        **{name: value for name, value in os.environ.items() if not _is_unwanted(name)},
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_DEFAULT_REF_FORMAT": "files",  # which a shell's completion reads
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "",
        "LC_ALL": "C",
        RUN_VARIABLE: run_id,
    }


def _is_unwanted(name: str) -> bool:
    """Whether git must not inherit the variable."""
    return name == "SSH_ASKPASS" or (name.startswith("GIT_") and not name.startswith(WANTED))


class Mirror:
    """The bare mirror of the repository's tags."""

    def __init__(self, directory: Path, url: str, run_id: str) -> None:
        self.directory = directory
        # A password in the URL stays out of the checkout and of what git prints about it.
        self._login = login_of(url)
        self.origin = self._login.url
        self._environment = environment(run_id)

    def fetch(self, log: IO[bytes], timeout: float, silence: float = SILENT_SECONDS) -> bool:
        """Brings the mirror up to date; returns whether it had to be recreated.

        `timeout` is in seconds. Raises DeployError: no network, no such repository, a password
        asked for, a stalled server.
        """
        was_there = self.directory.exists()
        if self._is_a_repository():
            try:
                self._fetch(log, timeout, silence)
                return False
            except Stalled:
                raise
            except DeployError:
                pass  # the mirror or the remote: if the remote answers, it is the mirror
        self.recreate(log, timeout, silence)
        return was_there

    def recreate(self, log: IO[bytes], timeout: float, silence: float = SILENT_SECONDS) -> None:
        """Replaces the mirror by a new one, once that is complete. Raises DeployError as `fetch`."""
        successor = copy(self)
        successor.directory = self.directory.with_name(f"{self.directory.name}.new")
        try:
            _remove_whatever(successor.directory)
            successor._make(successor.remote_tags(timeout, silence).values())
            successor._fetch(log, timeout, silence)
            _remove_whatever(self.directory)
            successor.directory.rename(self.directory)
        except OSError as error:
            raise DeployError(f"the mirror {self.directory} cannot be created: {error}") from None
        finally:
            remove(successor.directory)

    def remote_commit_of(
        self, tag: str, timeout: float, verify: Callable[[Mirror], object] = lambda mirror: None
    ) -> str:
        """The tag's commit, as the remote has it; needs no mirror, and changes none.

        `verify` may look at the tag in a mirror that has it alone.
        Raises DeployError as `fetch` and `commit_of`.
        """
        tags = self.remote_tags(timeout)
        if tag not in tags:
            raise _no_tag(tag, self.origin, tags)
        # The remote says which object a tag names, but not whether that is a commit.
        with _scratch() as directory:
            only_this = copy(self)
            only_this.directory = Path(directory, "mirror.git")
            only_this._make(tags.values())
            try:
                only_this._fetch(None, timeout, SILENT_SECONDS, tag, "--depth=1")
            except Stalled:
                raise
            except DeployError:  # a plain web server cannot send part of a history
                only_this._fetch(None, timeout, SILENT_SECONDS, tag)
            verify(only_this)
            return only_this.commit_of(tag)

    def remote_tags(self, timeout: float, silence: float = SILENT_SECONDS) -> dict[str, str]:
        """What the remote's tags name; `TAG^{}` is what an annotated one leads to.

        Asks as `fetch` does. Raises DeployError as `fetch`.
        """
        words = ["ls-remote", "--tags", "--", self.origin]
        said = self._run(words, None, timeout, silence, self._directory_to_ask_from)
        return {name: commit for commit, name in REMOTE_TAG.findall(said)}

    @property
    def _directory_to_ask_from(self) -> Path:
        """The mirror; without one, not the repository that the operator happens to be in."""
        return self.directory if self._is_a_repository() else Path("/")

    def _is_a_repository(self) -> bool:
        if self.directory.is_symlink():
            return False  # `fetch` would change the tags of the repository that it leads to
        try:
            with closing(git.Repo(self.directory, expand_vars=False)) as repository:
                return bool(repository.bare)
        except (git.InvalidGitRepositoryError, git.NoSuchPathError, OSError, ValueError):
            return False
        except configparser.Error:
            return False  # of GitPython's own reader

    def _make(self, objects: Iterable[str]) -> None:
        """Creates the mirror, with the object format of the remote's `objects`."""
        try:
            self.directory.parent.mkdir(parents=True, exist_ok=True)
            self._git(self.directory.parent).init(
                "--bare", *_init_options(next(iter(objects), "")), "--", str(self.directory)
            )
        except (OSError, git.GitCommandError) as error:
            raise DeployError(f"the mirror {self.directory} cannot be created: {error}") from None

    def _fetch(
        self, log: IO[bytes] | None, timeout: float, silence: float, tag: str = "*", *options: str
    ) -> None:
        # The tags and nothing else: a version is never a branch. A tag that was moved or deleted
        # on the server is so here, too.
        words = ["fetch", "--progress", "--prune", "--no-auto-gc", "--no-write-fetch-head"]
        tags = f"+refs/tags/{tag}:refs/tags/{tag}"
        words = [*words, *options, "--", self.origin, tags]
        self._run(words, log, timeout, silence, self.directory)

    def _run(
        self,
        words: list[str],
        log: IO[bytes] | None,
        timeout: float,
        silence: float | None,
        directory: Path,
    ) -> str:
        """Runs git where it may ask the remote, with a time limit, and returns what it said.

        Raises DeployError, Interrupted.
        """
        options = [part for setting in SAFE for part in ("-c", setting)]
        login = self._login
        # Not straight into the log: git may print a token that the URL has in place of a user.
        with open(os.memfd_create("git"), "w+b", buffering=0) as output:
            try:
                with shell.running(
                    ["git", *options, *login.options, *words],
                    log=output, cwd=directory,
                    env={**self._environment, **login.environment, "GIT_SSH_COMMAND": self._ssh},
                    timeout=timeout, silence=silence,
                ) as command:  # fmt: skip
                    command.wait()
                status = command.status
            except OSError as error:
                raise DeployError(f"git: {error.strerror}") from None
            except (shell.TookTooLong, shell.Silent) as error:
                raise Stalled(f"{self.origin}: the server has stalled: {error}") from None
            finally:
                output.seek(0)
                said = masked(output.read().decode("utf-8", "replace"))
                if log is not None:
                    with suppress(OSError):
                        log.write(said.encode())
        if status != 0:
            said = "\n".join(said.splitlines()[-5:])
            raise DeployError(
                f"{self.origin}: git {words[0]} failed (exit status {status})",
                detail=said,
                remedy=_hint(said),
            )
        return said

    @cached_property
    def _ssh(self) -> str:
        """The ssh command that git would use, with options; GIT_SSH_COMMAND, which hands it on, overrules all."""
        configured = ""
        with suppress(OSError, shell.TookTooLong):
            words = ["git", "-C", str(self._directory_to_ask_from), "config", "core.sshCommand"]
            configured = shell.capture(words, timeout=10, env=self._environment).out.strip()
        program = os.environ.get("GIT_SSH")
        command = (
            os.environ.get("GIT_SSH_COMMAND")
            or configured
            or (shlex.quote(program) if program else "ssh")
        )
        # This tool must not open a shared connection that outlives it.
        return f"{command} -o BatchMode=yes -o ControlMaster=no"

    def _git(self, directory: Path) -> git.Git:
        for name in filter(_is_unwanted, list(os.environ)):
            # GitPython adds to the process's own environment and cannot take from it.
            del os.environ[name]
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
            raise _no_tag(tag, self.origin, self.tags()) from None
        try:
            return str(command.rev_parse("--verify", "--end-of-options", f"{reference}^{{commit}}"))
        except git.GitCommandError as error:
            with suppress(git.GitCommandError):
                kind = command.cat_file("-t", f"{reference}^{{}}")
                if kind != "commit":
                    raise DeployError(f"the tag {tag} names a {kind}, not a commit") from None
            raise Broken(f"the tag {tag} leads to no commit: {_words(error)}") from None

    def tag_object(self, tag: str) -> bytes:
        """The content of an annotated tag, its signature too. Raises DeployError, Broken."""
        command, reference = self._git(self.directory), f"refs/tags/{tag}"
        try:
            kind = str(command.cat_file("-t", reference))
            if kind != "tag":
                raise DeployError(f"the tag {tag} is lightweight: it only names a {kind}, so it cannot "
                                  "be signed")  # fmt: skip
            content: bytes = command.cat_file(
                "tag", reference, stdout_as_string=False, strip_newline_in_stdout=False
            )
        except git.GitCommandError as error:
            raise Broken(f"the tag {tag} cannot be read: {_words(error)}") from None
        return content

    def check_out(self, commit: str, directory: Path, log: IO[bytes], timeout: float) -> list[str]:
        """Makes `directory` with a real `.git` at the commit, with its submodules and LFS files.

        Returns warnings about what the project's own settings leave out. Raises Broken, DeployError,
        Interrupted.
        """
        try:
            self._make_checkout(commit, directory)
            try:
                # Files in LFS come from the remote, and git shows no progress of them.
                words = ["checkout", "--quiet", "--detach", commit]
                self._run(words, log, timeout, None, directory)
            except Stalled:
                raise
            except DeployError as error:
                signals.check()
                why = (error.detail.splitlines() or [error.message])[-1]
                raise Broken(
                    f"{commit[:10]} cannot be checked out: {why}", remedy=error.remedy
                ) from None
            command = self._git(directory)
            # git leaves out a file whose content is lost, and exits with 0.
            lost = str(command.ls_files("--deleted")).splitlines()
            if lost:
                raise Broken(f"{commit[:10]} cannot be checked out: files missing: {len(lost)}")
            if "\n160000 " not in f"\n{command.ls_files('--stage')}":
                return self._lfs_files_left_out([directory])
            words = ["submodule", "update", "--init", "--recursive", "--", "."]
            self._run(words, log, timeout, SILENT_SECONDS, directory)
            lines = str(command.submodule("status", "--recursive")).splitlines()
            empty = [line.split(" ", 1)[1] for line in lines if line.startswith("-")]
            inner = str(command.submodule("--quiet", "foreach", "--recursive", "pwd")).splitlines()
            return [
                *(f"the submodule {name} is empty: its settings exclude it" for name in empty),
                *self._lfs_files_left_out([directory, *map(Path, inner)]),
            ]
        except git.GitCommandError as error:
            signals.check()  # Ctrl-C reaches git, too: its failure says nothing about the mirror
            raise Broken(f"{commit[:10]} cannot be checked out: {_words(error)}") from None
        except OSError as error:
            raise DeployError(f"{directory} cannot be created: {error.strerror}") from None

    def copy(self, checkout: Path, directory: Path) -> None:
        """Makes `directory` from a checkout in which nothing has run yet. Raises DeployError."""
        try:
            shutil.copytree(checkout, directory, symlinks=True)
        except shutil.Error as errors:  # a triple for each file
            raise DeployError(f"{directory} cannot be created: {errors.args[0][0][2]}") from None
        except OSError as error:
            raise DeployError(f"{directory} cannot be created: {error.strerror}") from None
        with suppress(git.GitCommandError):
            # The index describes the files of the other checkout.
            self._git(directory).update_index("--quiet", "--refresh")

    def _make_checkout(self, commit: str, directory: Path) -> None:
        """An empty repository with the mirror's objects and tags, as of a `clone --shared`.

        git's own clone treats the mirror like a stranger's repository: it applies the settings for
        URLs, protocols and servers, none of which is meant for the mirror. Raises OSError, GitCommandError.
        """
        directory.mkdir(parents=True)
        command = self._git(directory)
        command.init(*_init_options(commit))
        objects = directory / ".git/objects/info/alternates"
        objects.write_bytes(os.fsencode(self.directory / "objects") + b"\n")
        tags = self._git(self.directory).for_each_ref(
            "refs/tags", format="%(objectname) %(refname)", stdout_as_string=False
        )
        (directory / ".git/packed-refs").write_bytes(tags + b"\n" if tags else b"")
        command.remote("add", "--", "origin", self.origin)

    def _lfs_files_left_out(self, repositories: Sequence[Path]) -> list[str]:
        """A warning if files in Git LFS are pointers only. Raises DeployError without git-lfs."""
        pointers: list[str] = []
        for each in repositories:
            names = str(self._git(each).ls_files("-z", ":(attr:filter=lfs)")).split("\0")
            pointers += [name for name in names if name and _is_lfs_pointer(each / name)]
        if not pointers:
            return []
        shown = ", ".join([*pointers[:3], *(["..."] if len(pointers) > 3 else [])])
        if shutil.which("git-lfs") is None or not self._has_lfs_filter(repositories[0]):
            raise DeployError(
                f"git-lfs is not set up, and these files are in Git LFS: {shown}",
                remedy="install git-lfs, then as this user: git lfs install",
            )
        return [f"the settings of git-lfs exclude these files: {shown}"]

    def _has_lfs_filter(self, directory: Path) -> bool:
        with suppress(git.GitCommandError):  # nothing is configured
            self._git(directory).config("--get-regexp", r"^filter\.lfs\.(smudge|process)$")
            return True
        return False

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


def _scratch() -> TemporaryDirectory[str]:
    """A directory that is removed again. Raises DeployError."""
    try:
        return TemporaryDirectory()
    except OSError as error:
        raise DeployError(f"a temporary directory cannot be created: {error.strerror}") from None


def _init_options(an_object: str) -> list[str]:
    """The options of `git init` for the format of this object's name, whatever the user's defaults."""
    is_sha256 = len(an_object) == 64
    return ["--quiet", "--template=", f"--object-format={'sha256' if is_sha256 else 'sha1'}"]


def _is_lfs_pointer(file: Path) -> bool:
    """Whether the file is the pointer that git has in place of a file in Git LFS."""
    if file.is_symlink() or not file.is_file():
        return False
    with file.open("rb") as opened:
        return opened.read(len(LFS_POINTER)) == LFS_POINTER


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
    """A name that no checkout had before, and whose number is higher than that of any there."""
    number = 1 + max((_number(each) for each in _directories(checkouts)), default=0)
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H%M%S.%fZ")
    return checkouts / f"{number}-{stamp}-{version}"


def keep_last_failed(checkouts: Path, keep: int = FAILED_TO_KEEP) -> None:
    """Removes all but the newest failed checkouts, by their numbers: a clock may be set back."""
    directories = sorted(_directories(checkouts), key=lambda each: (_number(each), each.name))
    for directory in directories[: max(0, len(directories) - keep)]:
        remove(directory)


def _directories(checkouts: Path) -> list[Path]:
    try:
        return [path for path in checkouts.iterdir() if not path.is_symlink()]
    except OSError:
        return []


def _number(directory: Path) -> int:
    """What a checkout's name begins with: its number, or the year if it is from before 0.2."""
    number = directory.name.partition("-")[0]
    return int(number) if number.isdecimal() else 0


def remove(directory: Path) -> None:
    """Removes a directory that is no longer needed, even if a build has write-protected parts of it."""
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
