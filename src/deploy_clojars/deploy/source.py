"""Where a release comes from: the tag in the repository, tested and built."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from deploy_clojars.deploy import build, checkout, isolation, signatures
from deploy_clojars.deploy.build import Builder
from deploy_clojars.deploy.checkout import Mirror
from deploy_clojars.errors import DeployError, Interrupted, NotReady
from deploy_clojars.run.run import Run, make_directory

T = TypeVar("T")


class Source:
    """Makes the run's release out of its tag."""

    def __init__(self, run: Run) -> None:
        config = run.host.config
        self._run = run
        self._mirror = Mirror(run.host.deploy / "mirror.git", config.repository, run.id)
        isolated = partial(isolation.isolated, config, run.host.file)
        self._builder = Builder(config.build, run.id, run.console, isolated)

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
        """Refuses a tag that nobody has signed whom the host trusts. Raises DeployError (1)."""
        run, settings = self._run, self._run.host.config.verify
        if settings.tags == "signed":
            with run.step("verify", run.version) as becomes:
                content = self._of_the_mirror(lambda: mirror.tag_object(run.version))
                run.signer = str(signatures.signer_of_tag(content, run.version, settings))
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
                # The reason may be another, such as a full disk.
                detail = "\n".join(filter(None, (error.detail, second.message, second.detail)))
                raise DeployError(error.message, detail=detail, remedy=second.remedy) from None
            return use()

    @contextmanager
    def checked_out(self, commit: str) -> Iterator[Path]:
        """A fresh directory at the commit while the block runs; kept for a look if that fails."""
        run = self._run
        checkouts = run.host.deploy / "checkouts"
        if checkouts.is_symlink():
            # What is old in it gets removed, wherever a build has led it to.
            raise NotReady(
                f"{checkouts} is a symbolic link", remedy=f"rm {shlex.quote(str(checkouts))}"
            )
        make_directory(checkouts)
        checkout.keep_last_failed(checkouts)  # those of runs that were killed count, too
        directory = checkout.new_directory(checkouts, run.version)
        try:
            with run.step("check out", f"{run.version} is {commit[:10]}"):
                warnings = self._of_the_mirror(lambda: self._checked_out(commit, directory))
            for warning in warnings:
                run.console.warn(warning)
            yield directory
        except Interrupted:
            checkout.remove(directory)
            raise
        except BaseException:
            checkout.keep_last_failed(checkouts)
            raise
        checkout.remove(directory)

    def _checked_out(self, commit: str, directory: Path) -> list[str]:
        checkout.remove(directory)  # what a broken mirror has left there
        timeout = self._run.host.config.build.timeout
        return self._mirror.check_out(commit, directory, self._run.console.log, timeout)

    def test(self, directory: Path) -> None:
        """Runs the tests. Raises BuildFailed (5), Interrupted."""
        why = isolation.why_not_wanted(self._run.host.config)
        if why is not None and self._run.host.config.build.isolate == "auto":
            self._run.console.say(f"  the tests and the build are not isolated: {why}")
        with self._run.step("test", self._run.host.config.build.test):
            self._builder.test(directory)

    def build(self, directory: Path, commit: str) -> Path:
        """Builds the release's jar. Raises BuildFailed (5), Interrupted."""
        run = self._run
        with run.step("build", run.host.config.build.uberjar):
            jar = self._builder.uberjar(directory)
        warning = build.inspect(jar, run.host.config.name, run.version, commit)
        if warning:
            run.console.warn(warning)
        return jar
