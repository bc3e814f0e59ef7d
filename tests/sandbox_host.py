"""A sandbox with the little host's face, so that the same tests run under supervisord, too."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clojure_repository import ClojureRepository, commits_of_tags
from little_host import LittleHost, wait_for
from zip_application import zip_jar

from deploy_clojars import sandbox
from deploy_clojars.host.services.supervisor import Supervisor
from deploy_clojars.run.lock import holder_of


class SandboxHost(LittleHost):
    """`deploy-clojars sandbox`, serving 0.1.0 on both instances."""

    def __init__(self, directory: Path) -> None:  # what it is made of is the sandbox's affair
        made = sandbox.start(directory)
        self.directory = directory
        self.environment = {}
        self.primary, self.backup = "clojars", "clojars-backup"
        self.home, self.releases, self.link = made.home, made.releases, made.link
        self.deploy = made.home / "deploy"
        self.config = made.config
        self.jars = directory / "jars"
        pairs = (made.ports.primary, made.ports.backup)
        self.ports = [*(pair.web for pair in pairs), *(pair.nailgun for pair in pairs)]
        self.repository_url = str(made.repository)
        self._services = Supervisor(path=str(made.socket), timeout=120)
        self._original = made.config.read_text(encoding="utf-8").replace(
            "settle = 0.5", "settle = 0.3"
        )
        self.write_config()
        # The tests' third good tag; the releases are the tests' own.
        self._git("tag", ClojureRepository.THIRD, "0.3.0")
        for tag, commit in commits_of_tags(made.repository).items():
            zip_jar(tag, commit, self.jars)

    def write_config(self, **options: str) -> None:
        """Writes the sandbox's configuration, with another repository if `top` has one."""
        text = self._original
        if "top" in options:
            lines = [line for line in text.splitlines() if not line.startswith("repository =")]
            text = "\n".join([options["top"], *lines, ""])
        self.config.write_text(text, encoding="utf-8")

    def control(self, verb: str, job: str) -> None:
        """Asks supervisord."""
        getattr(self._services, verb)(job)

    def pid(self, role: str) -> int | None:
        """The PID that supervisord has for an instance."""
        return self._services.status(self.primary if role == "primary" else self.backup).pid

    def _git(self, *words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=self.repository_url, check=True, capture_output=True, text=True
        ).stdout.strip()


@contextmanager
def serving_sandbox(directory: Path) -> Iterator[SandboxHost]:
    """A sandbox that serves 0.1.0, stopped at the end."""
    host = SandboxHost(directory)
    try:
        host.serving(ClojureRepository.FIRST)
        for role in ("primary", "backup"):
            wait_for(lambda role=role: host.pid(role), f"the {role} runs")  # type: ignore[misc]
        yield host
    finally:
        # A run may have been killed, and its lock is free an instant later.
        wait_for(lambda: holder_of(host.deploy / "lock") is None, "no run is at work")
        sandbox.stop(directory)
