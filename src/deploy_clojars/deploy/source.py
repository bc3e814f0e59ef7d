"""Where a release comes from: the tag in the repository, tested and built."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy_clojars.deploy import build, checkout
from deploy_clojars.deploy.build import Builder
from deploy_clojars.deploy.checkout import Mirror
from deploy_clojars.errors import Interrupted, NotReady
from deploy_clojars.run.run import Run, make_directory


class Source:
    """Makes the run's release out of its tag."""

    def __init__(self, run: Run) -> None:
        config = run.host.config
        self._run = run
        self._mirror = Mirror(run.host.deploy / "mirror.git", config.repository, run.id)
        self._builder = Builder(config.build, run.id, run.console)

    def fetch(self) -> str:
        """Brings the mirror up to date; returns the tag's commit. Raises DeployError (1)."""
        run, mirror = self._run, self._mirror
        log, timeout = run.console.log, run.host.config.build.timeout
        with run.step("fetch", run.host.config.repository) as becomes:
            if mirror.fetch(log, timeout):
                becomes("the mirror was broken and has been recreated")
            try:
                return mirror.commit_of(run.version)
            except checkout.Broken:
                mirror.recreate(log, timeout)
                return mirror.commit_of(run.version)

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
        directory = checkout.new_directory(checkouts, run.version)
        try:
            with run.step("check out", f"{run.version} is {commit[:10]}"):
                try:
                    self._mirror.check_out(commit, directory)
                except checkout.Broken:
                    checkout.remove(directory)
                    self._mirror.recreate(run.console.log, run.host.config.build.timeout)
                    self._mirror.check_out(commit, directory)
            yield directory
        except Interrupted:
            checkout.remove(directory)
            raise
        except BaseException:
            checkout.keep_last_failed(checkouts)
            raise
        checkout.remove(directory)

    def test(self, directory: Path) -> None:
        """Runs the tests. Raises BuildFailed (5), Interrupted."""
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
