"""The journal: one JSON object a line; what was done, by whom, and what is approved.

`History` is what the lines add up to. Its order is the journal's, never the clock's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from deploy_clojars.errors import Status

FORMAT = 1


class Left(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a run leaves behind: versions, or None where nothing is known to run."""

    current: str | None = None
    primary: str | None = None
    backup: str | None = None


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line. Which fields are set depends on `event`; unknown ones are skipped."""

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
    outcome: str | None = None
    status: int | None = None
    why: str | None = None
    sha256: str | None = None
    bytes: int | None = None
    how: str | None = None
    left: Left | None = None
    # Of the line's format. Not a plain default: that would be left out.
    v: int = msgspec.field(default_factory=lambda: FORMAT)


class RolledBack(msgspec.Struct, frozen=True):
    """That a release was rolled back."""

    at: str
    by: str | None
    why: str | None


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
    commits: dict[str, str] = {}
    rolled_back: dict[str, RolledBack] = {}
    last: LastRun | None = None

    @property
    def approved(self) -> str | None:
        """The release on which the primary was last made healthy by deploy or rollback."""
        return self.stack[-1] if self.stack else None

    @property
    def previous(self) -> str | None:
        """The release that `rollback` without a version goes to."""
        return self.stack[-2] if len(self.stack) > 1 else None

    @property
    def unfinished(self) -> LastRun | None:
        """The last run if it has no end. While the lock is held that is the run at work."""
        return self.last if self.last is not None and not self.last.ended else None


def after_promotion(stack: tuple[str, ...], version: str) -> tuple[str, ...]:
    """A promotion pushes; the same version twice is one entry."""
    return stack if stack[-1:] == (version,) else (*stack, version)


def after_rollback(stack: tuple[str, ...], version: str) -> tuple[str, ...]:
    """A rollback to a version on the stack pops down to it; to any other it pushes."""
    if version not in stack:
        return (*stack, version)
    while stack[-1] != version:
        stack = stack[:-1]
    return stack


def history_of(events: Iterable[Event]) -> History:
    """Adds up the journal's events; events of unknown kinds change nothing."""
    adopted, stack, last = False, (), None  # type: bool, tuple[str, ...], LastRun | None
    commits: dict[str, str] = {}
    rolled_back: dict[str, RolledBack] = {}
    for event in events:
        version = event.version
        match event.event:
            case "adopted":
                adopted, stack = True, (version,) if version else ()
            case "begin":
                cut_off = last.cut_off if last is not None else None
                last = LastRun(
                    id=event.run,
                    command=event.command or "",
                    version=version,
                    by=event.by,
                    at=event.at,
                    left=event.left or Left(),
                    follows=cut_off,
                )
            case "installed" if version and event.commit:
                commits[version] = event.commit
            case "promoted" if version:
                stack = after_promotion(stack, version)
                rolled_back.pop(version, None)
            case "rolled back" if version:
                stack = after_rollback(stack, version)
                rolled_back.pop(version, None)
                if event.previously and event.previously != version:
                    rolled_back[event.previously] = RolledBack(event.at, event.by, event.why)
            case "flip" if last is not None and last.id == event.run:
                last = msgspec.structs.replace(last, flipped=True)
            case "no return" if last is not None and last.id == event.run:
                last = msgspec.structs.replace(last, past_return=True)
            case "end" if last is not None and last.id == event.run:
                changed = last.flipped or last.past_return
                if last.follows is not None and not changed:
                    last = last.follows
                else:
                    left = event.left or last.left
                    last = msgspec.structs.replace(
                        last, ended=True, status=event.status, left=left, follows=None
                    )
    return History(adopted, stack, commits, rolled_back, last)


class Journal:
    """The journal's file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def events(self) -> Iterable[Event]:
        """The file's events; lines that are no events (cut off, damaged) are skipped."""
        decoder = msgspec.json.Decoder(Event)
        try:
            lines = self.file.read_bytes().splitlines()
        except FileNotFoundError:
            return
        for line in lines:
            try:
                yield decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue

    def history(self) -> History:
        """What the journal says. Raises OSError if the file is there and cannot be read."""
        return history_of(self.events())

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
