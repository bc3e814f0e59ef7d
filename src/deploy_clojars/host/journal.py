"""The journal: one JSON object a line; what was done, by whom, and what is approved.

`History` is what the lines add up to. Its order is the journal's, never the clock's.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from deploy_clojars.errors import Status
from deploy_clojars.host.lines import TailedFile, lines_backwards
from deploy_clojars.machine.files import sync
from deploy_clojars.masking import masked

FORMAT = 1

TAG = "tag"  # where a release comes from, unless its line says otherwise
JAR = "jar"

INSTALL = "install"  # the command that changes nothing that runs

STOPPED = "stopped"  # of a step: the other one at the same time failed, or a signal came


class HostVersions(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which version is current and which each instance runs; None if none, or not known."""

    current: str | None = None
    primary: str | None = None
    backup: str | None = None


class Event(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One line. Which fields are set depends on `event`; unknown ones are skipped.

    `gc=False`: it cannot be part of a cycle, and there may be a hundred thousand.
    """

    event: str
    at: str = ""  # ISO 8601, UTC
    run: str = ""
    by: str | None = None
    command: str | None = None
    version: str | None = None
    commit: str | None = None
    previously: str | None = None  # of a rollback or a flip: the version that it replaces
    step: str | None = None
    seconds: float | None = None
    memory: int | None = None  # bytes, of the tests and the build: the most that they used
    instance: str | None = None
    pid: int | None = None
    # Of a restart that kept the job's definition: since when the job had that.
    definition: str | None = None
    outcome: str | None = None
    status: int | None = None
    why: str | None = None
    sha256: str | None = None
    bytes: int | None = None
    how: str | None = None
    signer: str | None = None
    source: str | None = None  # of a release: "tag", "jar" or "command"; "tag" if it is not said
    left: HostVersions | None = None
    # The format's version. `omit_defaults` would leave out a plain default.
    v: int = msgspec.field(default_factory=lambda: FORMAT)

    @property
    def changes_the_host(self) -> bool:
        """Whether the line is about a change of what is there, what runs or what is approved."""
        return self.event in CHANGES and not (
            self.event == "flip" and self.version == self.previously
        )


# Of nginx's flag only its removal counts: a run that sets it restarts something as well, or removes it.
CHANGES = (
    "installed", "pruned", "flip", "restart", "stop", "undrain", "migrate", "promoted", "rolled back",
)  # fmt: skip

DECODER = msgspec.json.Decoder(Event)

# How lines of a step begin, which do not change the history. Most lines are of a step.
STEP_LINE = (b'{"event":"step",', b'{"event":"done",')


class RolledBack(msgspec.Struct, frozen=True):
    """When, by whom and why a release was rolled back."""

    at: str
    by: str | None
    why: str | None


class Installed(msgspec.Struct, frozen=True):
    """When a release was installed, from which commit and source, its size, its SHA-256 and its signer."""

    at: str
    commit: str | None
    bytes: int | None
    sha256: str | None = None
    source: str = TAG
    signer: str | None = None
    waits: bool = False  # it came by `install`, and no deploy has tried it yet


class Restarted(msgspec.Struct, frozen=True):
    """That an instance was restarted; `definition` as in the event."""

    at: str
    definition: str | None


class LastRun(msgspec.Struct, frozen=True):
    """The journal's last run, as far as it has come."""

    id: str
    command: str
    version: str | None
    by: str | None
    at: str
    why: str | None = None  # the operator's words
    flipped: bool = False
    past_return: bool = False
    ended: bool = False
    status: int | None = None
    left: HostVersions = HostVersions()
    source: str | None = None  # "jar" if the release was to come from one
    # The earlier run that counts again if this one changes nothing: one that was cut off past its
    # point of no return, which this one is to finish; before an `install` any.
    follows: LastRun | None = None

    @property
    def what(self) -> str:
        """The command and its version, for messages."""
        preposition = {"rollback": "to", "restart": "on"}.get(self.command, "of")
        return f"{self.command} {preposition} {self.version}" if self.version else self.command

    @property
    def cut_off(self) -> LastRun | None:
        """The run that was cut off past its point of no return: this one, or one it follows."""
        if self.ended or self.past_return:
            return None if self.ended else self
        return self.follows.cut_off if self.follows is not None else None

    @property
    def half_rolled_back(self) -> bool:
        """A rollback after which the backup came up and the primary did not."""
        failed = self.status == Status.PRIMARY_DOWN
        return self.command == "rollback" and self.past_return and failed


class History(msgspec.Struct, frozen=True):
    """What the journal's lines add up to."""

    adopted: bool = False  # whether the first run wrote down what was approved before it
    stack: tuple[str, ...] = ()  # of promotions, the approved release last
    # By version, without pruned releases; one whose file somebody else removed is still in them.
    installed: dict[str, Installed] = {}
    promoted: dict[str, str] = {}  # when it was last approved, in that order
    rolled_back: dict[str, RolledBack] = {}
    last: LastRun | None = None
    restarted: dict[str, Restarted] = {}  # the last time, by instance
    migrated: dict[str, str] = {}  # when each release's migration was last done

    @property
    def approved(self) -> str | None:
        """The release on which the primary was last made healthy by deploy or rollback."""
        return self.stack[-1] if self.stack else None

    @property
    def previous(self) -> str | None:
        """The release that `rollback` without a version goes to."""
        return self.stack[-2] if len(self.stack) > 1 else None

    @property
    def commits(self) -> dict[str, str]:
        """The commit that each release was built from, where that is known."""
        return {name: each.commit for name, each in self.installed.items() if each.commit}

    @property
    def waiting(self) -> list[str]:
        """The releases that wait for their first deploy, the newest last."""
        return [version for version, each in self.installed.items() if each.waits]

    @property
    def unfinished(self) -> LastRun | None:
        """The last run if it has no end: interrupted, or at work while the lock is held."""
        return self.last if self.last is not None and not self.last.ended else None


class Stack:
    """The stack of promotions, quick even where thousands are pruned."""

    def __init__(self, versions: Iterable[str] = ()) -> None:
        self.versions: list[str] = []
        self._times: Counter[str] = Counter()
        for version in versions:
            self.push(version)

    def push(self, version: str) -> None:
        """Puts a promoted version on top, unless it is there already."""
        if self.versions[-1:] != [version]:
            self.versions.append(version)
            self._times[version] += 1

    def roll_back_to(self, version: str) -> None:
        """Pops down to the version, or pushes it if it is not on the stack."""
        while self._times[version] and self.versions[-1] != version:
            self._times[self.versions.pop()] -= 1
        self.push(version)

    def remove(self, version: str) -> None:
        """Removes a pruned release; of equal entries that then meet, one is left."""
        for _ in range(self._times.pop(version, 0)):
            place = self.versions.index(version)  # near the bottom: the oldest are pruned
            del self.versions[place]
            around = self.versions[max(place - 1, 0) : place + 1]
            if len(around) == 2 and around[0] == around[1]:
                del self.versions[place]
                self._times[around[0]] -= 1


class HistoryBuilder:
    """Adds up events, one at a time, to a history."""

    def __init__(self, start: History = History()) -> None:  # noqa: B008 # it is frozen
        self._adopted = start.adopted
        self._stack = Stack(start.stack)
        self._installed = dict(start.installed)
        self._promoted = dict(start.promoted)
        self._rolled_back = dict(start.rolled_back)
        self._last = start.last
        self._restarted = dict(start.restarted)
        self._migrated = dict(start.migrated)

    def history(self) -> History:
        """The history after the events so far."""
        return History(
            self._adopted,
            tuple(self._stack.versions),
            dict(self._installed),
            dict(self._promoted),
            dict(self._rolled_back),
            self._last,
            dict(self._restarted),
            dict(self._migrated),
        )

    def add(self, event: Event) -> None:
        """Adds an event; one of an unknown kind changes nothing."""
        version = event.version
        last = self._last if self._last is not None and self._last.id == event.run else None
        match event.event:
            case "adopted":
                self._adopted, self._stack = True, Stack([version] if version else [])
            # The checksum is recorded before the release has its name: a run may be killed in between.
            case "install" | "installed" if version and (event.sha256 or event.event != "install"):
                self._installed.pop(version, None)  # it goes to the end of the order
                self._migrated.pop(version, None)  # it may be another jar
                self._installed[version] = Installed(
                    event.at, event.commit, event.bytes, event.sha256, event.source or TAG,
                    event.signer, waits=last is not None and last.command == INSTALL,
                )  # fmt: skip
            case "migrate" if version:
                self._migrated.pop(version, None)  # until it is done it is to be run again
            case "migrated" if version:
                self._migrated[version] = event.at
            case "promoted" if version:
                self._is_approved(version, event)
                self._stack.push(version)
            case "rolled back" if version:
                self._is_approved(version, event)
                self._stack.roll_back_to(version)
                if event.previously and event.previously != version:
                    rolled_back = RolledBack(event.at, event.by, event.why)
                    self._rolled_back[event.previously] = rolled_back
            case "prune" if version:
                # Written before the file is removed: `previous` never names a removed release.
                self._stack.remove(version)
            case "pruned" if version:
                self._stack.remove(version)
                self._installed.pop(version, None)
                self._migrated.pop(version, None)
                self._promoted.pop(version, None)
            case "begin":
                self._last = LastRun(
                    id=event.run,
                    command=event.command or "",
                    version=version,
                    by=event.by,
                    at=event.at,
                    why=event.why,
                    left=event.left or HostVersions(),
                    source=event.source,
                    follows=self._before(event.command),
                )
            case "restart" if event.instance:
                self._restarted[event.instance] = Restarted(event.at, event.definition)
            case "flip" if last:
                self._last = msgspec.structs.replace(last, flipped=True)
                if version is not None and (installed := self._installed.get(version)) is not None:
                    self._installed[version] = msgspec.structs.replace(installed, waits=False)
            case "no return" if last:
                self._last = msgspec.structs.replace(last, past_return=True)
            case "end" if last and last.follows and not (last.flipped or last.past_return):
                self._last = last.follows  # it changed nothing: what that one left still counts
            case "end" if last:
                self._last = msgspec.structs.replace(
                    last,
                    ended=True,
                    status=event.status,
                    left=event.left or last.left,
                    follows=None,
                )

    def _before(self, command: str | None) -> LastRun | None:
        """The run that counts again if the one that begins changes nothing that runs."""
        last = self._last
        if last is not None and last.command == INSTALL and not last.ended:
            last = last.follows  # it was cut off, and its end could not be written
        if last is None or command == INSTALL:
            return last
        return last.cut_off

    def _is_approved(self, version: str, event: Event) -> None:
        self._rolled_back.pop(version, None)
        if self._stack.versions[-1:] != [version] or version not in self._promoted:
            self._promoted.pop(version, None)
            self._promoted[version] = event.at


def history_of(events: Iterable[Event], start: History = History()) -> History:  # noqa: B008
    """What events add up to, after those of `start`."""
    builder = HistoryBuilder(start)
    for event in events:
        builder.add(event)
    return builder.history()


class Journal:
    """The journal's file; `history` reads only what was added since its last call."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lines = TailedFile(file)
        self._builder = HistoryBuilder()

    def backwards(self) -> Iterator[Event]:
        """The events, the last one first, without damaged lines; reads only as far as needed.

        Raises OSError.
        """
        return filter(None, map(event_in, lines_backwards(self.file)))

    def history(self) -> History:
        """What the journal says. Raises OSError if the file is there and cannot be read."""
        try:
            for is_another_file, lines in self._lines.new_lines():
                if is_another_file:
                    self._builder = HistoryBuilder()
                for line in lines:
                    # Not to decode lines of a step takes half the time.
                    if not line.startswith(STEP_LINE) and (event := event_in(line)) is not None:
                        self._builder.add(event)
        except FileNotFoundError:
            self._lines.start_over()
            self._builder = HistoryBuilder()
        # A last line that lacks only its line feed counts, but may still be continued.
        last = event_in(self._lines.rest)
        history = self._builder.history()
        return history if last is None else history_of([last], history)

    def append(self, event: Event) -> None:
        """Appends a line and syncs it to the disk. Raises OSError."""
        line = _as_line(event)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self.file, flags, 0o644)
        try:
            os.fchmod(descriptor, 0o644)  # whatever the umask: `status` runs as any user
            size = os.fstat(descriptor).st_size
            if size > 0 and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line  # after a crash in the middle of a write
            if os.write(descriptor, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.file))
            sync(descriptor)
        finally:
            os.close(descriptor)


def event_in(line: bytes) -> Event | None:
    """The event that a line holds, or None if the line is cut off or damaged."""
    try:
        return DECODER.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _as_line(event: Event) -> bytes:
    # Every user may read the journal, and git's words are in the reason of a failure.
    if event.why is not None:
        event = msgspec.structs.replace(event, why=masked(event.why))
    try:
        return msgspec.json.encode(event) + b"\n"
    except UnicodeEncodeError:
        # An argument that is not UTF-8 must not keep the run's end out of the journal.
        readable = {
            key: value.encode("utf-8", "backslashreplace").decode()
            for key, value in msgspec.structs.asdict(event).items()
            if isinstance(value, str)
        }
        return msgspec.json.encode(msgspec.structs.replace(event, **readable)) + b"\n"


def now() -> str:
    """The current time, ISO 8601 in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
