"""Where a release comes from: a tag that is tested and built, a jar file, or the site's command."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TypeVar

from deploy_clojars.deploy import build, checkout, isolation, signatures
from deploy_clojars.deploy.at_once import Work, carried_out, runs_both
from deploy_clojars.deploy.build import Builder
from deploy_clojars.deploy.checkout import Mirror
from deploy_clojars.deploy.reuse import reused, warn_of_another_version
from deploy_clojars.errors import (
    BuildFailed,
    DeployError,
    Interrupted,
    NotReady,
    UsageError,
    reason,
)
from deploy_clojars.host import manifest
from deploy_clojars.host.journal import JAR, TAG, Installed
from deploy_clojars.host.releases import Copy
from deploy_clojars.machine.files import STANDARD_INPUT, Input, opened
from deploy_clojars.run.run import Run, make_directory

T = TypeVar("T")

SHA256 = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True)
class Offer:
    """A jar that is to become the release, and what is known about how it must be."""

    jar: Input
    commit: str | None = None  # that it must be built from
    sha256: str | None = None
    signature: Path | None = None  # a detached one


class Source:
    """A release that exists already and has no tag. The subclasses add how to get one."""

    kind = ""  # as the journal has it

    def __init__(self, run: Run) -> None:
        self._run = run

    def refuse_what_is_missing(self) -> None:
        """Raises NotReady (4) if this host lacks a program that is needed."""

    def reused(self) -> str | None:
        """Reports that the existing release is used, and how to replace it, as `reuse.reused` does."""
        return reused(self._run)

    def offered(self) -> AbstractContextManager[Offer]:
        """The jar, while the block runs. Raises BuildFailed (5), DeployError (1), Interrupted."""
        raise NotImplementedError

    def check(self, offer: Offer, copy: Copy) -> str | None:
        """Checks the jar by its copy and returns the commit that it was built from, if known.

        Raises BuildFailed (5), DeployError (1) for a required signature that is missing or does not count.
        """
        name, version = offer.jar.name, self._run.version
        if offer.sha256 not in (None, copy.sha256):
            raise BuildFailed(
                f"{name} is not the expected jar: its SHA-256 is {copy.sha256}, "
                f"expected {offer.sha256}"
            )
        if copy.bytes == 0:
            raise BuildFailed(f"{name} is empty")
        settings = self._run.host.config.verify
        must_be_signed = settings.jars == "signed" and self.kind != TAG
        if must_be_signed:
            words = copy.path, name, offer.signature, settings
            self._run.signer = signatures.signer_of_file(*words)
        facts = build.inspect(copy.path, self._run.host.config.name, offer.commit, name)
        if must_be_signed and facts.version not in (None, version):
            # An older release, signed as well, must not pass for this one.
            raise DeployError(f"{name} is version {facts.version}, not {version}")
        warn_of_another_version(self._run, facts, has_tag=self.kind == TAG)
        return offer.commit or facts.revision


def source_of(run: Run) -> Source:
    """Where the run's release comes from."""
    if run.request.jar is not None:
        return JarFile(run)
    there = installed(run)
    if there is not None and there.source != TAG and not run.request.rebuild:
        return Source(run)
    return Tag(run) if run.host.config.release.command is None else Command(run)


def installed(run: Run) -> Installed | None:
    """What the journal says about the run's release, if the release is there."""
    with suppress(OSError):  # preflight refuses such a journal
        if run.host.releases.has(run.version):
            return run.host.journal.history().installed.get(run.version)
    return None


class JarFile(Source):
    """The file, pipe or socket that the operator named."""

    kind = JAR

    def reused(self) -> str | None:
        # Whether it is the same file is known only once it has been read.
        return reused(self._run) if self._run.request.rebuild else None

    @contextmanager
    def offered(self) -> Iterator[Offer]:
        jar = self._run.request.jar
        assert jar is not None
        # Before it is copied: it may be gigabytes of something else, or half a jar.
        if jar.size is not None and not manifest.ends_as_a_zip(jar.descriptor):
            raise BuildFailed(
                f"{jar.name} is not a valid jar: it is not a zip file, or is truncated"
            )
        signature = None if jar.path == STANDARD_INPUT else Path(f"{jar.path}.sig")
        yield Offer(jar, sha256=self._run.request.sha256, signature=signature)


class Command(Source):
    """What the site's command leaves in a directory."""

    kind = "command"

    def refuse_what_is_missing(self) -> None:
        if self._run.request.rebuild or not self._has_checksum:
            refuse_missing_programs(build.missing_programs(self._line))

    def reused(self) -> str | None:
        is_known = self._run.request.rebuild or self._has_checksum
        return reused(self._run) if is_known else None

    @property
    def _has_checksum(self) -> bool:
        there = installed(self._run)
        return there is not None and there.sha256 is not None

    @contextmanager
    def offered(self) -> Iterator[Offer]:
        run, settings = self._run, self._run.host.config.release
        with fresh_directory(run) as directory:
            make_directory(directory)
            with run.step("fetch", self._line):
                builder = Builder(run.host.config.build, run)
                jar = builder.fetched(settings, run.version, directory)
                sha256 = None
                if settings.sha256 is not None:
                    words = "the command", directory, settings.sha256, "release.sha256"
                    sha256 = build.listed_sha256(build.one_file(*words), jar.name)
            with opened(jar) as original:
                yield Offer(original, sha256=sha256, signature=Path(f"{jar}.sig"))

    @property
    def _line(self) -> str:
        return self._run.host.config.release.command or ""


class Tag(Source):
    """The tag in the repository, tested and built."""

    kind = TAG

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        config = run.host.config
        self._mirror = Mirror(run.host.deploy / "mirror.git", config.repository, run.id)
        isolated = partial(isolation.isolated, config, run.host.file)
        self._builder = Builder(config.build, run, isolated)
        self._commit = ""

    def refuse_what_is_missing(self) -> None:
        settings = self._run.host.config.build
        missing = build.missing_programs(settings.test, settings.uberjar)
        refuse_missing_programs([*([] if shutil.which("git") else ["git"]), *missing])
        isolation.refuse_without_what_is_demanded(self._run.host.config)

    def reused(self) -> str | None:
        self._commit = self.fetch()
        return reused(self._run, self._commit)

    @contextmanager
    def offered(self) -> Iterator[Offer]:
        with (
            self.checked_out(self._commit) as directory,
            opened(self.test_and_build(directory)) as jar,
        ):
            yield Offer(jar, commit=self._commit)

    def fetch(self) -> str:
        """Brings the mirror up to date; returns the tag's commit. Raises DeployError (1)."""
        run, mirror = self._run, self._mirror
        with run.step("fetch", run.host.config.repository) as becomes:
            if mirror.fetch(run.console.log, run.host.config.build.timeout):
                becomes("the mirror was broken and has been recreated")
            commit = self._of_the_mirror(lambda: mirror.commit_of(run.version))
        self._verify(mirror)
        return commit

    def _verify(self, mirror: Mirror) -> None:
        """Refuses a tag that is not signed by anybody the host trusts. Raises DeployError (1)."""
        run, settings = self._run, self._run.host.config.verify
        if settings.tags == "signed":
            with run.step("verify", run.version) as becomes:
                content = self._of_the_mirror(lambda: mirror.tag_object(run.version))
                run.signer = signatures.signer_of_tag(content, run.version, settings)
                becomes(f"signed by {run.signer}")
            run.record("verified", version=run.version, signer=run.signer)

    def _of_the_mirror(self, use: Callable[[], T]) -> T:
        """What `use` returns, called again with a new mirror if this one turns out to be broken."""
        try:
            return use()
        except checkout.Broken as error:
            try:
                self._mirror.recreate(self._run.console.log, self._run.host.config.build.timeout)
            except Interrupted:
                raise
            except DeployError as second:
                # The cause may be a different one, such as a full disk.
                detail = "\n".join(filter(None, (error.detail, second.message, second.detail)))
                raise DeployError(error.message, detail=detail, remedy=second.remedy) from None
            return use()

    @contextmanager
    def checked_out(self, commit: str) -> Iterator[Path]:
        """A fresh checkout of the commit while the block runs; kept for inspection if the block fails."""
        run = self._run
        with fresh_directory(run) as directory:
            self._check_out(commit, directory)
            yield directory

    def _check_out(self, commit: str, directory: Path) -> None:
        run = self._run
        with run.step("check out", f"{run.version} is {commit[:10]}"):
            warnings = self._of_the_mirror(lambda: self._checked_out(commit, directory))
        for warning in warnings:
            run.console.warn(warning)

    def _checked_out(self, commit: str, directory: Path) -> list[str]:
        checkout.remove(directory)  # what a broken mirror or an earlier attempt has left there
        timeout = self._run.host.config.build.timeout
        return self._mirror.check_out(commit, directory, self._run.console.log, timeout)

    def test_and_build(self, directory: Path) -> Path:
        """The release's jar, if the tests pass. Raises BuildFailed (5), Interrupted."""
        run, config = self._run, self._run.host.config
        why = isolation.why_not_wanted(config)
        if why is not None and config.build.isolate == "auto":
            run.console.say(f"  the tests and the build are not isolated: {why}")
        if runs_both(run.host):
            jar = self._at_once(directory)
            if jar is not None:
                return jar
            self._check_out(self._commit, directory)
        carried_out(self._testing(directory))
        return carried_out(self._building(directory))[0]

    def _at_once(self, directory: Path) -> Path | None:
        """The tests and the build at the same time; None if there was too little memory for both."""
        with fresh_directory(self._run) as another:
            self._mirror.copy(directory, another)
            tests = _removing(another, self._testing(another, apart=True))
            build = _removing(directory, self._building(directory, apart=True))
            try:
                _, jar = carried_out(tests, build)
            except BuildFailed as error:
                if not error.lacked_memory:
                    raise
                self._run.console.warn(
                    f"{error.message}, perhaps for lack of memory; both now run one after the other"
                )
                return None
            return jar

    def _testing(self, directory: Path, *, apart: bool = False) -> Work[None]:
        """The tests, as Work; `apart`: at the same time as the build. Raises BuildFailed (5)."""
        with (
            self._run.step("test", self._run.host.config.build.test),
            self._output("test", apart) as output,
        ):
            yield from self._builder.testing(directory, output)

    def _building(self, directory: Path, *, apart: bool = False) -> Work[Path]:
        """The build, as Work; the result is the release's jar. Otherwise as `_testing`."""
        with (
            self._run.step("build", self._run.host.config.build.uberjar),
            self._output("build", apart) as output,
        ):
            return (yield from self._builder.building(directory, output))

    def _output(self, step: str, apart: bool) -> AbstractContextManager[IO[bytes] | None]:
        return self._run.console.output_apart(step) if apart else nullcontext()


def _removing(directory: Path, work: Work[T]) -> Work[T]:
    """The work; removes its directory if it is stopped because the other one failed: nobody needs to inspect it."""
    try:
        return (yield from work)
    except GeneratorExit:
        checkout.remove(directory)
        raise


def refuse_missing_programs(missing: list[str]) -> None:
    """Raises NotReady (4) if any program is missing, or if the user has no home."""
    if missing:
        raise NotReady(f"not on PATH: {', '.join(missing)}", remedy="nothing was changed")
    build.refuse_a_user_without_a_home()


@contextmanager
def fresh_directory(run: Run) -> Iterator[Path]:
    """The path of a new directory, which the block makes; kept for inspection if the block fails.

    Otherwise it is removed at the end of the run, since a large one takes seconds.
    """
    checkouts = run.host.deploy / "checkouts"
    if checkouts.is_symlink():
        # Old directories in it are removed, wherever the link leads.
        raise NotReady(
            f"{checkouts} is a symbolic link", remedy=f"rm {shlex.quote(str(checkouts))}"
        )
    make_directory(checkouts)
    checkout.keep_last_failed(checkouts)  # those of killed runs count, too
    directory = checkout.new_directory(checkouts, run.version)
    try:
        yield directory
    except Interrupted:
        checkout.remove(directory)
        raise
    except BaseException:
        checkout.keep_last_failed(checkouts)
        raise
    run.afterwards.append(partial(checkout.remove, directory))


def jar_and_checksum(
    name: str | None, sha256: str | None, *, asks: bool
) -> tuple[Input | None, str | None]:
    """The jar and its checksum, as `--jar` and `--sha256` name them. Raises UsageError (2)."""
    if sha256 is not None and name is None:
        raise UsageError("--sha256 needs --jar")
    digest = None if sha256 is None else sha256_named(sha256)
    return None if name is None else jar_named(name, asks=asks), digest


def jar_named(name: str, *, asks: bool) -> Input:
    """Opens what `--jar` names; `-` is standard input. Raises UsageError (2).

    If the command `asks`, its question then goes to the controlling terminal.
    """
    if name == "-":
        jar = Input(STANDARD_INPUT, os.dup(sys.stdin.fileno()))
        if os.isatty(jar.descriptor):
            raise UsageError(
                "--jar -: standard input is a terminal", remedy="redirect a file to it"
            )
        if asks:
            with suppress(OSError):  # there is none; it is refused as for any other question
                terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
                os.dup2(terminal, sys.stdin.fileno())
                os.close(terminal)
        return jar
    if name == "":
        raise UsageError("--jar needs a file")  # `--jar "$UNSET"`
    try:
        # Does not wait for the writer of a named pipe; reading it does.
        jar = Input(
            Path(name).absolute(), os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        )
    except PermissionError:
        raise UsageError(
            f"{name} cannot be read by this user",
            remedy=f"let the shell open it: --jar - < {shlex.quote(name)}",
        ) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{name} cannot be read: {reason(error)}") from None
    mode = os.fstat(jar.descriptor).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
        raise UsageError(f"{name} is not a file")
    return jar


def sha256_named(digest: str) -> str:
    """The value of `--sha256` in lower case. Raises UsageError (2)."""
    if not SHA256.fullmatch(digest):
        raise UsageError(f"--sha256 {digest!r}: a SHA-256 has 64 hexadecimal digits")
    return digest.lower()
