"""The journal: one JSON object a line; what was done, by whom, and what is approved.

`History` is what the lines add up to. Its order is the journal's, never the clock's.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from deploy_clojars.errors import Status
from deploy_clojars.host.lines import TailedFile, from_the_end

FORMAT = 1


class Left(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a run leaves behind: versions, or None where nothing is known to run."""

    current: str | None = None
    primary: str | None = None
    backup: str | None = None


class Event(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One line. Which fields are set depends on `event`; unknown ones are skipped.

    Nothing in it can be part of a cycle, and a hundred thousand are no work for the collector.
    """

    event: str
    at: str = ""  # ISO 8601, UTC
    run: str = ""
    by: str | None = None
    command: str | None = None
    version: str | None = None
    commit: str | None = None
    # Of a rollback or a flip: the version it goes away from.
    previously: str | None = None
    step: str | None = None
    seconds: float | None = None
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
    left: Left | None = None
    # Of the line's format. Not a plain default: that would be left out.
    v: int = msgspec.field(default_factory=lambda: FORMAT)


DECODER = msgspec.json.Decoder(Event)

# How the lines begin that this tool writes of its steps; they change nothing in a history.
OF_A_STEP = (b'{"event":"step",', b'{"event":"done",')


class RolledBack(msgspec.Struct, frozen=True):
    """That a release was rolled back."""

    at: str
    by: str | None
    why: str | None


class Installed(msgspec.Struct, frozen=True):
    """That this tool built a release and copied it in."""

    at: str
    commit: str | None
    bytes: int | None


class Restarted(msgspec.Struct, frozen=True):
    """That an instance was restarted; `definition` as in the event."""

    at: str
    definition: str | None


class LastRun(msgspec.Struct, frozen=True):
    """The journal's last run."""

    id: str
    command: str
    version: str | None
    by: str | None
    at: str
    flipped: bool = False
    past_return: bool = False
    ended: bool = False
    status: int | None = None
    left: Left = Left()
    # An earlier run that was cut off past its point of no return and that this one follows.
    follows: LastRun | None = None

    @property
    def what(self) -> str:
        """What it was, for people."""
        return f"{self.command} of {self.version}" if self.version else self.command

    @property
    def cut_off(self) -> LastRun | None:
        """The run that was cut off past its point of no return: this one, or one it follows."""
        if self.ended:
            return None
        return self if self.past_return else self.follows

    @property
    def half_rolled_back(self) -> bool:
        """A rollback of which the primary did not come up, and the backup did."""
        primary_down = self.status == Status.PRIMARY_DOWN
        return self.command == "rollback" and self.past_return and primary_down


class History(msgspec.Struct, frozen=True):
    """What the journal's lines add up to."""

    adopted: bool = False  # what counted as approved before the first run is written down
    stack: tuple[str, ...] = ()
    # Neither tells whether the release is still there; one that was pruned is in none of them.
    installed: dict[str, Installed] = {}
    promoted: dict[str, str] = {}  # when it last became the approved one; in that order
    rolled_back: dict[str, RolledBack] = {}
    last: LastRun | None = None
    restarted: dict[str, Restarted] = {}  # the last time, by instance

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
        """The commits from which releases were built, as far as they are known."""
        known = self.installed.items()
        return {version: each.commit for version, each in known if each.commit}

    @property
    def unfinished(self) -> LastRun | None:
        """The last run if it has no end. While the lock is held that is the run at work."""
        return self.last if self.last is not None and not self.last.ended else None


class Stack:
    """The releases that were promoted, as a stack. Quick also where thousands are pruned."""

    def __init__(self, versions: Iterable[str] = ()) -> None:
        self.versions: list[str] = []
        self._times: Counter[str] = Counter()
        for version in versions:
            self.push(version)

    def push(self, version: str) -> None:
        """A promotion pushes; the same version twice is one entry."""
        if self.versions[-1:] != [version]:
            self.versions.append(version)
            self._times[version] += 1

    def roll_back_to(self, version: str) -> None:
        """A rollback to a version on the stack pops down to it; to any other it pushes."""
        while self._times[version] and self.versions[-1] != version:
            self._times[self.versions.pop()] -= 1
        self.push(version)

    def take_out(self, version: str) -> None:
        """A release that is pruned leaves it; what stood around it twice is one entry again."""
        for _ in range(self._times.pop(version, 0)):
            place = self.versions.index(version)  # near the bottom: the oldest ones are pruned
            del self.versions[place]
            around = self.versions[max(place - 1, 0) : place + 1]
            if len(around) == 2 and around[0] == around[1]:
                del self.versions[place]
                self._times[around[0]] -= 1


class HistoryBuilder:
    """What the lines so far add up to, from `start` on."""

    def __init__(self, start: History = History()) -> None:  # noqa: B008 # it is frozen
        self._adopted = start.adopted
        self._stack = Stack(start.stack)
        self._installed = dict(start.installed)
        self._promoted = dict(start.promoted)
        self._rolled_back = dict(start.rolled_back)
        self._last = start.last
        self._restarted = dict(start.restarted)

    def history(self) -> History:
        """The sum."""
        return History(
            self._adopted,
            tuple(self._stack.versions),
            dict(self._installed),
            dict(self._promoted),
            dict(self._rolled_back),
            self._last,
            dict(self._restarted),
        )

    def add(self, event: Event) -> None:
        """Adds a line; one of an unknown kind changes nothing."""
        version = event.version
        match event.event:
            case "adopted":
                self._adopted, self._stack = True, Stack([version] if version else [])
            case "installed" if version:
                self._installed.pop(version, None)  # the order is that of the last time
                self._installed[version] = Installed(event.at, event.commit, event.bytes)
            case "promoted" if version:
                self._is_approved(version, event)
                self._stack.push(version)
            case "rolled back" if version:
                self._is_approved(version, event)
                self._stack.roll_back_to(version)
                if event.previously and event.previously != version:
                    reason = RolledBack(event.at, event.by, event.why)
                    self._rolled_back[event.previously] = reason
            case "prune" if version:
                # Before it goes: `previous` never names a release that was removed.
                self._stack.take_out(version)
            case "pruned" if version:
                self._stack.take_out(version)
                self._installed.pop(version, None)
                self._promoted.pop(version, None)
            case "begin":
                self._last = LastRun(
                    id=event.run,
                    command=event.command or "",
                    version=version,
                    by=event.by,
                    at=event.at,
                    left=event.left or Left(),
                    follows=self._last.cut_off if self._last is not None else None,
                )
            case "restart" if event.instance:
                self._restarted[event.instance] = Restarted(event.at, event.definition)
            case "flip" | "no return" | "end":
                if self._last is not None and self._last.id == event.run:
                    self._last = _went_on(self._last, event)

    def _is_approved(self, version: str, event: Event) -> None:
        self._rolled_back.pop(version, None)
        if self._stack.versions[-1:] != [version] or version not in self._promoted:
            self._promoted.pop(version, None)
            self._promoted[version] = event.at


def _went_on(last: LastRun, event: Event) -> LastRun:
    """The last run after one more of its lines."""
    if event.event == "flip":
        return msgspec.structs.replace(last, flipped=True)
    if event.event == "no return":
        return msgspec.structs.replace(last, past_return=True)
    changed = last.flipped or last.past_return
    if last.follows is not None and not changed:
        return last.follows
    left = event.left or last.left
    return msgspec.structs.replace(last, ended=True, status=event.status, left=left, follows=None)


def history_of(events: Iterable[Event], start: History = History()) -> History:  # noqa: B008
    """Adds events to what is known already."""
    builder = HistoryBuilder(start)
    for event in events:
        builder.add(event)
    return builder.history()


class Journal:
    """The journal's file. What was read of it is not read again."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lines = TailedFile(file)
        self._builder = HistoryBuilder()

    def backwards(self) -> Iterator[Event]:
        """The events, the last one first; lines that are none (cut off, damaged) are skipped.

        Only as much of the file is read as is asked for. Raises OSError.
        """
        return filter(None, map(event_in, from_the_end(self.file)))

    def history(self) -> History:
        """What the journal says. Raises OSError if the file is there and cannot be read."""
        try:
            for from_start, lines in self._lines.news():
                if from_start:
                    self._builder = HistoryBuilder()
                self._add(lines)
        except FileNotFoundError:
            self._lines.forget()
            self._builder = HistoryBuilder()
        history = self._builder.history()
        unended = event_in(self._lines.rest)
        if unended is not None:
            # All of it is there but its end; so far it counts, and it may yet become another.
            history = history_of([unended], history)
        return history

    def _add(self, lines: list[bytes]) -> None:
        for line in lines:
            # Most lines; that they need not be decoded halves the time of a look.
            if line.startswith(OF_A_STEP):
                continue
            event = event_in(line)
            if event is not None:
                self._builder.add(event)

    def append(self, event: Event) -> None:
        """Writes one line and waits until it is on the disk. Raises OSError."""
        line = _as_line(event)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self.file, flags, 0o644)
        try:
            os.fchmod(descriptor, 0o644)  # whatever the umask: `status` runs as any user
            if self._is_cut_off(descriptor):
                line = b"\n" + line
            written = os.write(descriptor, line)
            if written != len(line):
                raise OSError(28, os.strerror(28), str(self.file))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @staticmethod
    def _is_cut_off(descriptor: int) -> bool:
        """Whether the last line lacks its end: a crash in the middle of a write."""
        size = os.fstat(descriptor).st_size
        return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"


def event_in(line: bytes) -> Event | None:
    """The event that a line holds, or None if it holds none."""
    try:
        return DECODER.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _as_line(event: Event) -> bytes:
    try:
        return msgspec.json.encode(event) + b"\n"
    except UnicodeEncodeError:
        # A word of the command line that is not UTF-8 must not keep an end from being written.
        readable = {
            key: value.encode("utf-8", "backslashreplace").decode()
            for key, value in msgspec.structs.asdict(event).items()
            if isinstance(value, str)
        }
        return msgspec.json.encode(msgspec.structs.replace(event, **readable)) + b"\n"


def now() -> str:
    """The time as the journal writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
