"""The host: its configuration, its releases, its journal and its two instances, as one thing."""

from __future__ import annotations

import os
import pwd
import shlex
from collections.abc import Iterable
from pathlib import Path

from deploy_clojars.config import BACKUP, PRIMARY, Config, Role
from deploy_clojars.errors import NotReady
from deploy_clojars.host import decisions, releases
from deploy_clojars.host.health import Observation
from deploy_clojars.host.instances import Instance
from deploy_clojars.host.journal import History, Journal
from deploy_clojars.host.look import Look
from deploy_clojars.host.nginx import Nginx
from deploy_clojars.host.releases import Current, Releases
from deploy_clojars.host.services import ServiceFailed, services_of
from deploy_clojars.host.situation import Situation
from deploy_clojars.machine import threads


class Host:
    """All that a command works on.

    `words` are what the operator typed before the subcommand, `file` is the configuration's.
    """

    def __init__(
        self,
        config: Config,
        words: tuple[str, ...] = ("deploy-clojars",),
        file: Path | None = None,
    ) -> None:
        self.config = config
        self.words = words
        self.file = file
        self._history = History()
        self.home = Path(config.home)
        self.deploy = config.deploy_directory
        self.lock_file = self.deploy / "lock"
        self.logs = self.deploy / "logs"
        self.journal = Journal(self.deploy / "journal.jsonl")
        self.releases = Releases(
            config.releases_directory, config.name, reserve=self.deploy / "reserve"
        )
        self.nginx = Nginx(config.drain)
        self.services = services_of(config)
        self.instances: dict[Role, Instance] = {
            role: Instance(role, settings, config.health, self.services, self.releases)
            for role, settings in (
                (PRIMARY, config.instances.primary),
                (BACKUP, config.instances.backup),
            )
        }

    @property
    def jobs(self) -> tuple[str, str]:
        """The jobs of the primary and the backup."""
        return self.instances[PRIMARY].job, self.instances[BACKUP].job

    def look(self) -> Look:
        """Looks at everything, both instances at the same time.

        A journal that cannot be read is noted; what was read of it earlier still counts.
        """
        primary = threads.started(self.instances[PRIMARY].observe)
        backup = threads.started(self.instances[BACKUP].observe)
        current = self.releases.current()
        journal_error = None
        try:
            self._history = self.journal.history()
        except OSError as error:
            journal_error = f"the journal {self.journal.file} cannot be read: {error.strerror}"
        history = self._history
        return Look(
            current=current,
            primary=primary.result(),
            backup=backup.result(),
            history=history,
            approved=self._approved(history, primary.result(), current),
            journal_error=journal_error,
            drain_flag=self.nginx.flag_is_set,
            backup_may_rest=self.config.instances.backup.only_while_deploying,
        )

    def _approved(self, history: History, primary: Observation, current: Current) -> str | None:
        if history.adopted or history.stack:
            return history.approved
        runs = primary.running if primary.running in primary.open_releases else None
        return decisions.adopted(runs, current.version)

    def is_as_built(self, look: Look, version: str) -> bool:
        """Whether a release is what this tool copied in, and nothing put in its place by hand."""
        installed = look.history.installed.get(version)
        return installed is not None and installed.bytes == self.releases.size(version)

    def read_changed_jobs(self) -> None:
        """Has the service manager read the jobs' files, which a restart brings into force.

        Raises NotReady (4).
        """
        try:
            self.services.read_changes()
        except ServiceFailed as error:
            raise NotReady(f"the jobs' files cannot be read again: {error}") from None

    def command(self, *words: str) -> str:
        """What to type for a command on this host, quoted for a shell."""
        return shlex.join([*self.words, *words])

    def next_command(self, look: Look, situation: Situation) -> str | None:
        """The command to type next, or None if nothing needs a person or a run is at work."""
        if situation.ok or situation.locked:
            return None
        if look.current.broken:
            return self.releases.mended_by(look.current, self.way_back(look)) or None
        words = situation.next_words
        if words and words[0] == "rollback" and look.current.visible:
            is_there = self.releases.has(words[1])
            words = words if is_there else ("deploy", words[1])  # which builds it again
        return self.command(*words) if words else None

    def situation(self, look: Look, *, locked: bool) -> Situation:
        """What `status` judges by."""
        return Situation(look, locked, self.way_back(look))

    def way_back(self, look: Look) -> str | None:
        """The approved release, or if its jar is gone the last one approved before that is there.

        Never one that nobody approved.
        """
        return self.first_there((look.approved, *reversed(look.history.stack)))

    def first_there(self, versions: Iterable[str | None]) -> str | None:
        """The first one of them whose jar is there."""
        there = (each for each in versions if each is not None and self.releases.has(each))
        return next(there, None)

    def command_back(self, look: Look) -> str:
        """The rollback to the way back, or if there is none the deploy that builds it again.

        VERSION stands in it where no release was ever approved.
        """
        way_back = self.way_back(look)
        if way_back is None and look.approved is not None:
            return self.command("deploy", look.approved)
        return self.command("rollback", way_back or "VERSION")

    def refuse_a_broken_link(self, look: Look) -> None:
        """Raises NotReady (4) with the command that mends the link."""
        if look.current.broken:
            way_back = self.way_back(look)
            remedy = self.releases.mended_by(look.current, way_back)
            if releases.RELEASE in remedy:
                remedy += f"\nRELEASE is one of: {self.releases.some() or 'none'}"
            raise NotReady(look.current.broken, remedy=remedy)

    @property
    def owner(self) -> int | None:
        """The production user's number: whose home it is, or else who has `releases/`.

        None if neither says it.
        """
        try:
            has_releases = os.stat(self.releases.directory).st_uid
        except OSError:
            has_releases = None
        home = os.path.normpath(self.home)
        at_home = [each.pw_uid for each in pwd.getpwall() if os.path.normpath(each.pw_dir) == home]
        if has_releases in at_home or not at_home:
            return has_releases
        return at_home[0]

    @property
    def id_prefix(self) -> str:
        """Begins the id of every run on this host, and of no run on another home."""
        home = os.stat(self.home)
        return f"{home.st_dev:x}.{home.st_ino:x}."
