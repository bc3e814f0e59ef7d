"""A host that is hit again and again, and what must hold after each hit."""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clojure_repository import ClojureRepository, make_repository
from light_host import make_light_host
from little_host import LittleHost, wait_for
from sandbox_host import serving_sandbox
from systemd_machine import INSIDE_SYSTEMD, manager_of_a_host

from deploy_clojars import config
from deploy_clojars.commands import status
from deploy_clojars.host.host import Host
from torture.attempt import Attempt, Ended
from torture.hits import Course, Hit, Moment
from torture.watchers import Releases, Site

FIRST = ClojureRepository.FIRST
# Good tags of the repository that all kinds of host have in common, or have one for one.
OF_UPSTART = (FIRST, "0.2.0", "0.2.1")
TAGS = {"upstart": OF_UPSTART, "supervisor": (FIRST, "0.2.0", "0.3.0"), "systemd": OF_UPSTART}
# systemd is torn at in a machine of its own.
MANAGERS = ("systemd",) if INSIDE_SYSTEMD in os.environ else ("upstart", "supervisor")

# What is typed, with the answer to the question. A deploy that is declined reuses the release.
DEPLOY, DECLINED, ROLLBACK, RESTART = "deploy", "declined deploy", "rollback", "restart"
JAR, FETCHED = "deploy of a jar", "deploy by release.command"
INSTALL = "install"
COMMANDS = (DEPLOY, JAR, FETCHED, DECLINED, ROLLBACK, RESTART, INSTALL)

NEVER_HIT = (0, 7)


@dataclass(frozen=True)
class Before:
    """The host before a run."""

    current: str | None
    versions: tuple[str | None, str | None]
    pids: tuple[int | None, int | None]
    approved: str


class Rig:
    """The host, its watchers and its records."""

    def __init__(self, host: LittleHost, manager: str, backup_rests: bool = False) -> None:
        self.host = host
        self._backup_rests = backup_rests
        self.tags = TAGS[manager]
        self._looker = Host(config.load(host.config))
        self._releases = Releases(host)
        self._site = Site(host)
        self._site.approved = {FIRST}
        self._courses: dict[str, Course] = {}

    @classmethod
    @contextmanager
    def made(
        cls, directory: Path, manager: str, backup_rests: bool = False, guarded: bool = False
    ) -> Iterator[Rig]:
        """A rig with a new host in the directory that serves 0.1.0, closed at the end.

        `backup_rests`: its backup runs only while deploying. `guarded`: tags must be signed, builds
        are isolated, and each release migrates the data; not under supervisord.
        """
        heed_signals()
        with _host(directory, manager) as host:
            if guarded and manager != "supervisor":
                guard(host)
            if backup_rests:
                host.lets_the_backup_rest()
            rig = cls(host, manager, backup_rests)
            watchers = (rig._releases, rig._site)
            for watcher in watchers:
                watcher.start()
            try:
                yield rig
            finally:
                for watcher in watchers:
                    watcher.close()

    # --- what is done -------------------------------------------------------------------------

    def course(self, command: str) -> Course:
        """How the command goes that nobody hits; found out once."""
        if command not in self._courses:
            ended = self.attempt(command)
            assert ended.status in NEVER_HIT, ended.shown
            self._courses[command] = ended.course
        return self._courses[command]

    def attempt(
        self,
        command: str,
        hit: Hit | None = None,
        moment: Moment | None = None,
        dice: random.Random | None = None,
    ) -> Ended:
        """Types the command, deals the hit at the moment, and judges all that must hold then.

        Afterwards nothing is left to be done on the host. Raises AssertionError.
        """
        before = self.before()
        target = self._target(command, before, dice or random.Random(command))
        self._prepare(command, target)
        answer = "no" if command == DECLINED else "yes"
        ended = self._typed(self._words(command, target), target, answer, hit, moment)
        try:
            self._judge(before, target, ended, hit)
            self._go_on(before, target, dice)
        except BaseException as error:
            error.add_note(f"{before}\n{ended.story}")
            raise
        return ended

    def _typed(
        self,
        words: tuple[str, ...],
        target: str,
        answer: str,
        hit: Hit | None,
        moment: Moment | None,
    ) -> Ended:
        def answering() -> None:
            if answer == "yes":
                self._site.approved.add(target)

        attempt = Attempt(self.host, words, answer, answering)
        return attempt.hit(hit, moment)

    def _target(self, command: str, before: Before, dice: random.Random) -> str:
        if command == RESTART:
            return before.approved
        return dice.choice([tag for tag in self.tags if tag != before.approved])

    def _prepare(self, command: str, target: str) -> None:
        """A deploy builds or brings a jar, all else needs the release. The operator's own doing, not the tool's."""
        path = self.host.releases / f"clojars-web-{target}-standalone.jar"
        aside = self.host.directory / path.name
        with self._releases.looking_away():
            if command in (DEPLOY, JAR, FETCHED, INSTALL):
                if path.exists():
                    path.rename(aside)
            elif not path.exists():
                if aside.exists():  # and no other: the journal has its checksum
                    aside.rename(path)
                else:
                    self.host.have(target)

    def _words(self, command: str, target: str) -> tuple[str, ...]:
        if command == RESTART:
            return ("restart",)
        if command == JAR:
            return ("deploy", target, "--jar", str(self.host.jar(target)))
        if command == FETCHED:
            return ("-c", str(self._config_that_fetches(target)), "deploy", target)
        if command == ROLLBACK:
            return ("rollback", target, "-m", "torture")
        return ("install" if command == INSTALL else "deploy", target)

    def _config_that_fetches(self, target: str) -> Path:
        """The host's configuration with a command that fetches the target's jar."""
        jar = shlex.quote(str(self.host.jar(target)))
        file = self.host.directory / "fetches.toml"
        line = f"sleep 0.2; cp {jar} ."
        command = f"[release]\ncommand = {json.dumps(line)}\n"
        file.write_text(self.host.config.read_text(encoding="utf-8") + command, encoding="utf-8")
        return file

    def _go_on(self, before: Before, target: str, dice: random.Random | None) -> None:
        """Types what `status` names, or another deploy: it needs no clean-up by hand."""
        found = self.status
        if found["next"] is not None:
            others = [tag for tag in self.tags if tag not in (before.approved, target)]
            past_return = self._past_return()
            if dice is not None and dice.random() < 0.5 and others and not past_return:
                self._must_work("deploy", others[0])
            else:
                name, *words = shlex.split(found["next"])
                assert name == "deploy-clojars", found["next"]
                self._must_work(*words)
        elif dice is not None:
            self._must_work("deploy", dice.choice(self.tags))
        self._judge_at_rest()

    def _past_return(self) -> bool:
        last = self._looker.journal.history().last
        return last is not None and last.cut_off is not None

    def _must_work(self, command: str, version: str) -> None:
        path = self.host.releases / f"clojars-web-{version}-standalone.jar"
        installs = command == "install"
        approved = self.status["approved"] if installs else version
        self._site.approved.add(approved)
        result = self.host.run(command, version, *([] if installs else ["--yes"]))
        assert result.returncode == 0, f"{command} {version}: {result.returncode}\n{result.stderr}"
        found = self.status
        assert (found["current"], found["approved"]) == (approved, approved), found
        assert path.exists()

    # --- what must hold -----------------------------------------------------------------------

    @property
    def status(self) -> dict[str, Any]:
        """What `status --json` says."""
        document = json.loads(status.as_json(status.report(self._looker)))
        assert isinstance(document, dict)
        return document

    def before(self) -> Before:
        """The host as it is, at rest."""
        approved = self.status["approved"]
        host = self.host
        pids = (host.pid("primary"), host.pid("backup"))
        self._site.approved = {approved}
        return Before(host.current, host.versions, pids, approved)

    def _judge(self, before: Before, target: str, ended: Ended, hit: Hit | None) -> None:
        """After the run has ended, by itself or not."""
        allowed = set(NEVER_HIT)
        if hit is not None:
            allowed |= hit.statuses
        assert ended.status in allowed, f"exit status {ended.status}\n{ended.shown}"
        self._judge_watchers()
        self._judge_journal(before, ended)
        found = self.status
        assert found["lock"] is None, found
        if hit is not None and ended.status == 137:
            self._judge_killed(before, target, ended, found)
            return
        assert self.host.processes_of_runs() == [], "I6: a process outlived the run"
        if ended.status in NEVER_HIT:
            assert not ended.was_hit_in_time, "the signal was lost"
        done = ended.status == 0 and not ended.installs  # which changes nothing that runs
        assert found["ok"], found
        version = target if done else before.approved
        assert found["current"] == found["approved"] == version, f"I8: {found}"
        versions = self.host.versions
        of_backup = None if self._backup_rests else version
        assert versions == (version, of_backup), f"I8: {versions}, not {version}"
        if not done:
            assert self.host.current == before.current
            assert self.host.pid("primary") == before.pids[0], "the primary was restarted"
        end = next((line for line in ended.lines if line["event"] == "end"), None)
        if end is not None:
            assert end["status"] == ended.status, f"ends with {ended.status}: {end}"

    def _judge_killed(
        self, before: Before, target: str, ended: Ended, found: dict[str, Any]
    ) -> None:
        """I5: `status` names the state correctly, and the command to type next."""
        begun, at_end = ended.wrote("begin"), ended.wrote("end")
        assert found["interrupted"] is (begun and not at_end), found
        assert found["drift"] is False, found
        assert (found["next"] is None) is found["ok"], found
        if found["interrupted"]:
            assert not found["ok"], found
            assert found["next"] is not None, found
            if not ended.wrote("no return"):
                words = ["install", target] if ended.installs else ["rollback", before.approved]
                assert found["next"].split()[1:] == words, found
        approved = target if ended.wrote("promoted") or ended.wrote("rolled back") else None
        assert found["approved"] == (approved or before.approved), found
        assert found["current"] in (before.approved, target), found

    def _judge_journal(self, before: Before, ended: Ended) -> None:
        """I7: whatever has changed was written down before."""
        flips = {line.get("version") for line in ended.lines if line["event"] == "flip"}
        named = {f"clojars-web-{version}-standalone.jar" for version in flips}
        seen = set(self._releases.links[1:]) - {before.current}
        assert seen <= named, f"I7: the link was {seen}, and the journal knows of {flips}"
        for role, pid in zip(("primary", "backup"), before.pids, strict=True):
            if self.host.pid(role) != pid:
                wrote = any(
                    line["event"] in ("restart", "stop") and line.get("instance") == role
                    for line in ended.lines
                )
                assert wrote, f"I7: the {role} is another process, and the journal is silent"
        assert all(line.get("by") and line["v"] == 1 for line in ended.lines), ended.lines

    def _judge_at_rest(self) -> None:
        """When all is done that was to be done."""
        wait_for(lambda: self.status["ok"], "all is well")
        self._judge_watchers()
        assert self.host.processes_of_runs() == [], "I6: a process outlived its run"
        left = [path.name for path in self.host.releases.iterdir() if path.name.startswith(".")]
        assert left == [], f"left behind in releases/: {left}"
        checkouts = self.host.deploy / "checkouts"
        kept = len(list(checkouts.iterdir())) if checkouts.exists() else 0
        assert kept <= 3 + 1, f"{kept} checkouts are kept"  # and that of a run that was killed
        self._releases.links[:-1] = []

    def _judge_watchers(self) -> None:
        self._releases.judge_all()
        violations = [*self._releases.violations, *self._site.violations]
        assert violations == [], "; ".join(violations)


class Rigs:
    """A rig for each service manager, made when it is wanted."""

    def __init__(
        self,
        new_directory: Callable[[str], Path],
        backup_rests: bool = False,
        guarded: bool = False,
    ) -> None:
        self._new_directory = new_directory
        self._settings = backup_rests, guarded
        self._made: dict[str, tuple[Rig, ExitStack]] = {}

    def of(self, manager: str) -> Rig:
        """The rig at work, or a new one."""
        if manager not in self._made:
            stack = ExitStack()
            directory = self._new_directory(manager)
            rig = stack.enter_context(Rig.made(directory, manager, *self._settings))
            self._made[manager] = rig, stack
        return self._made[manager][0]

    def throw_away(self, *managers: str) -> None:
        """Ends these hosts, or all; what was broken on one must not break the hits that come after."""
        for manager in managers or tuple(self._made):
            if manager in self._made:
                self._made.pop(manager)[1].close()


def guard(host: LittleHost) -> None:
    """Signs the tags and demands that, isolates the build, and has each release migrate something."""
    key = host.directory / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    signers = host.directory / "signers"
    signers.write_text(f"alice@example.org {key.with_suffix('.pub').read_text()}")
    repository = host.repository_url.removeprefix("file://")
    git = ["git", "-C", repository, "-c", "gpg.format=ssh", "-c", f"user.signingKey={key}",
           "-c", "user.name=Alice", "-c", "user.email=alice@example.org"]  # fmt: skip
    tags = subprocess.run([*git, "tag"], check=True, capture_output=True, text=True).stdout.split()
    for tag in tags:
        words = ["tag", "--force", "--sign", "--message", tag, tag, f"{tag}^{{commit}}"]
        subprocess.run([*git, *words], check=True, capture_output=True)
    build = host.options["build"]
    host.options |= {
        "verify": f'tags = "signed"\nsigners = "{signers}"',
        "build": f'{build}\nisolate = true\ncache = ["{host.jars}"]',
        "migrate": f'command = "sleep 0.2; echo $DEPLOY_VERSION >> {host.home}/migrated"',
    }
    host.write_config(health="timeout = 60\nsettle = 0.1\ninterval = 0.1")


def heed_signals() -> None:
    """What is inherited as ignored stays so until the tool heeds it; a hang-up even then (nohup)."""
    for signum in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(signum, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def _host(directory: Path, manager: str) -> Iterator[LittleHost]:
    if manager == "supervisor":
        with serving_sandbox(directory) as sandbox:
            yield sandbox
        return
    with manager_of_a_host(directory / "upstart") as upstart:
        repository = make_repository(directory / "clojars-web")
        host = make_light_host(directory, upstart, repository)
        host.write_config(health="timeout = 60\nsettle = 0.1\ninterval = 0.1")
        host.serving(FIRST)
        yield host
