"""One run of a command that changes the host: its lock, its log, its journal and its end."""

from __future__ import annotations

import os
import secrets
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import IntEnum
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from deploy_clojars.errors import Declined, Defect, DeployError, Interrupted, NotReady, Status
from deploy_clojars.host.host import Host
from deploy_clojars.host.journal import (
    JAR,
    STOPPED,
    Event,
    History,
    HostVersions,
    LastRun,
    history_of,
    now,
)
from deploy_clojars.host.look import Look
from deploy_clojars.host.users import operator, refuse_the_wrong_user
from deploy_clojars.machine import files, processes, signals, threads
from deploy_clojars.run import hook, lock, system_log
from deploy_clojars.screen.console import Console, log_name

DECLINED, INTERRUPTED = "declined", "interrupted"  # outcomes

WAITED_FOR = 0.5  # seconds; the summary leaves shorter steps out
LOOKED_BACK = 500  # lines of the journal: some ten runs
LOGS_KEPT = 100
DESCRIPTORS = 32  # a run has a dozen open at most


@dataclass(frozen=True)
class Request:
    """What the operator asked for."""

    command: str
    version: str | None = None
    yes: bool = False
    force: bool = False
    rebuild: bool = False
    jar: files.Input | None = None  # the release, if it was built elsewhere
    sha256: str | None = None  # that the jar must have, in hexadecimal
    if_current: str | None = None  # only if this release is; empty: if none is
    migrate: bool = False  # even if the release was migrated before
    why: str | None = None


class Stage(IntEnum):
    """How far a run has come."""

    PREPARING = 0  # nothing is in the journal yet
    BEGUN = 1  # it is in the journal; nothing that runs was changed
    CHANGING = 2  # a failure is reverted
    REVERTING = 3
    NO_RETURN = 4  # a failure is not reverted


@dataclass
class Times:
    """How long the steps take, in seconds."""

    usual: Mapping[str, float]  # the last time
    took: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def add(self, step: str, seconds: float) -> None:
        """Adds to the time of a step."""
        self.took[step] = self.took.get(step, 0.0) + seconds

    def summary(self) -> str:
        """The whole time, and the steps that somebody waited for."""
        slow = [f"{name} {took:.1f}" for name, took in self.took.items() if took >= WAITED_FOR]
        of_which = f" ({', '.join(slow)})" if slow else ""
        return f"in {time.monotonic() - self.started:.1f} s{of_which}"


class Run:
    """A run at work."""

    def __init__(
        self, host: Host, console: Console, request: Request, at_step: Callable[[str, str], None]
    ) -> None:
        self.host = host
        self.console = console
        self.request = request
        self.version = request.version or ""  # the release's version, once known
        self.by = operator()
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        self.id = f"{host.id_prefix}{stamp}.{secrets.token_hex(3)}"
        self.stage = Stage.PREPARING
        self.before: Look | None = None  # the host as the run found it
        self.left = HostVersions()  # what the run would leave if it ended now
        self.cut_off: LastRun | None = None  # the earlier run that this one has reverted
        self.installed = False  # whether this run installed the release
        self.signer = ""  # who signed the tag, where that is verified
        self.outcome = "failed"
        self.changed = False  # whether anything on the host was changed
        self.reverted = False  # whether this run was, after it had begun
        self.unwritten = False  # whether the journal lacks a line of this run
        self.times = Times(_usual_seconds(host) if console.is_alive else {})
        self.memory: dict[str, int] = {}  # the most that each step used, in bytes
        self.afterwards: list[Callable[[], None]] = []  # what nobody has to wait for
        self._open_steps: list[str] = []
        self._at_step = at_step  # tells the lock's readers
        self._warned: set[str] = set()

    @contextmanager
    def step(self, name: str, what: str) -> Iterator[Callable[[str], None]]:
        """One step: in the lock's file, in the journal before and after, and on screen.

        Raises Interrupted before it begins if a signal came.
        """
        signals.check()
        self._open_steps.append(name)
        self.at(name)
        started = time.monotonic()
        try:
            with self.console.step(name, what, self.times.usual.get(name)) as becomes:
                yield becomes
        except BaseException as error:
            self.times.add(name, time.monotonic() - started)
            if self.has_begun:
                how = STOPPED if isinstance(error, GeneratorExit) else None
                self._record_end("failed", name, started, outcome=how, may_fail=True)
            raise
        else:
            self.times.add(name, time.monotonic() - started)
            if self.has_begun:
                self._record_end("done", name, started)
        finally:
            self._open_steps.remove(name)
            if self._open_steps:  # at once with this one
                self._at_step(" and ".join(self._open_steps), self.version)

    def _record_end(self, event: str, step: str, started: float, **more: Any) -> None:
        seconds = round(time.monotonic() - started, 3)
        self.record(event, step=step, seconds=seconds, memory=self.memory.get(step), **more)

    def at(self, step: str) -> None:
        """Tells the lock's readers and the journal which step the run is at."""
        self._at_step(" and ".join(self._open_steps) or step, self.version)
        if self.has_begun:
            self.record("step", step=step)

    def begin(self, look: Look) -> None:
        """Writes down what counts as approved, if that was never done, and that the run begins.

        Nothing on the host is changed before this.
        """
        if not look.history.adopted and not look.journal_error:
            self.record("adopted", version=look.approved)
        # What the last run left still counts: a run that fails does not end drift.
        self.left = look.history.last.left if look.history.last is not None else look.left()
        self.record(
            "begin", command=self.request.command, version=self._version, left=self.left,
            why=self.request.why, source=JAR if self.request.jar is not None else None,
        )  # fmt: skip
        self.before = look
        self.stage = Stage.BEGUN

    def no_return(self) -> None:
        """The point of no return.

        Raises Interrupted if a signal came before it, DeployError if it cannot be written down.
        """
        if self.stage is not Stage.NO_RETURN:
            signals.check()
            self.record("no return", version=self._version)
            self.stage = Stage.NO_RETURN

    @contextmanager
    def reverting(self) -> Iterator[None]:
        """The block is a revert: no signal and no full disk may stop it."""
        stage, self.stage = self.stage, Stage.REVERTING
        try:
            with self.uninterruptible(restarts=2):
                yield
            self.reverted = self.has_begun
        finally:
            self.stage = stage

    def uninterruptible(self, restarts: int = 1) -> AbstractContextManager[None]:
        """A signal does not stop the block; that is said once, with the longest it can take."""
        config = self.host.config
        each = config.drain.timeout + config.health.timeout + config.services.timeout
        notice = f"signal noted; finishing, up to {restarts * each:g} s"
        return signals.uninterruptible(lambda: self.console.warn(notice))

    @property
    def has_begun(self) -> bool:
        """Whether the journal knows of the run."""
        return self.before is not None

    @property
    def journal_may_fail(self) -> bool:
        """Whether a journal that cannot be written is only a warning: users must not wait for it."""
        return self.request.command == "rollback" or self.stage >= Stage.REVERTING

    def record(self, event: str, *, may_fail: bool = False, **fields: Any) -> bool:
        """Writes a line into the journal; returns whether it is there.

        Raises DeployError unless it may fail (now).
        """
        line = Event(event=event, at=now(), run=self.id, by=self.by, **fields)
        written = True
        try:
            self.host.journal.append(line)
        except OSError as error:
            message = f"the journal {self.host.journal.file} cannot be written: {error.strerror}"
            if not (may_fail or self.journal_may_fail):
                raise DeployError(message) from error
            self.unwritten = True
            self.warn_once(message)
            written = False
        # Only now: what cannot be written down does not happen.
        self.changed = self.changed or line.changes_the_host
        said = system_log.line_of(line, self.request.command, self._version)
        if said is not None:
            system_log.tell(said)
        return written

    def close(self, cut_off: LastRun) -> None:
        """Writes the end of an earlier run that was cut off and is reverted now."""
        self.cut_off = cut_off
        line = Event(
            event="end", at=now(), run=cut_off.id, by=self.by, outcome="interrupted", left=self.left
        )
        try:
            self.host.journal.append(line)
        except OSError as error:
            self.console.warn(f"the journal cannot be written: {error.strerror}")

    def end(self, status: int, why: str | None) -> None:
        """Writes the run's end, with what it leaves; for a run that has not begun, that it was called off.

        A run that was refused before it began is not written down.
        """
        how: dict[str, Any] = {"outcome": self.outcome, "status": status, "why": why}
        what = {"version": self._version, "command": self.request.command}
        if self.has_begun:
            seconds = round(time.monotonic() - self.times.started, 3)
            self.record("end", **how, **what, left=self.left, seconds=seconds, may_fail=True)
        elif self.outcome in (DECLINED, INTERRUPTED):
            self.record("called off", **how, **what, may_fail=True)

    def succeeded(self, outcome: str, message: str) -> None:
        """Notes and says that what was asked is so now."""
        self.outcome = outcome
        self.console.say(message, "bold green")
        self.console.say(f"  {self.times.summary()}", "dim")

    def now_left_with(self, **changes: str | None) -> None:
        """Notes what current or an instance is from now on."""
        self.left = msgspec.structs.replace(self.left, **changes)

    def warn_once(self, text: str) -> None:
        """Warns, unless that was said in this run already."""
        if text not in self._warned:
            self._warned.add(text)
            self.console.warn(text)

    def what_stands(self, error: DeployError) -> str:
        """What to say after an error while nothing that runs was changed; empty afterwards."""
        if self.stage is Stage.BEGUN and self.before is not None:
            primary = self.before.primary
            runs = primary.running or "no release"
            reverted = self.cut_off is not None and self.cut_off.flipped
            but = "apart from the revert of the earlier run, " if reverted else ""
            return f"{but}nothing that runs was changed; {primary.job} runs {runs} as before"
        was_stopped = isinstance(error, Declined | Interrupted)
        untouched = self.stage is Stage.PREPARING and self.cut_off is None
        return "nothing was changed" if untouched and was_stopped else ""

    @property
    def _version(self) -> str | None:
        return self.version or None


def _usual_seconds(host: Host) -> dict[str, float]:
    """How long each step took the last time, as far as the end of the journal tells."""
    usual: dict[str, float] = {}
    with suppress(OSError):
        for event in islice(host.journal.backwards(), LOOKED_BACK):
            if event.event == "done" and event.step and event.seconds is not None:
                usual.setdefault(event.step, event.seconds)
    return usual


@contextmanager
def started(host: Host, console: Console, request: Request) -> Iterator[Run]:
    """Holds the lock and keeps the log while the block runs; shows and journals how it ended.

    What earlier runs left unfinished in files and processes is cleared first.
    Raises UsageError (2) for the wrong user, NotReady (4), Locked (3).
    """
    refuse_the_wrong_user(host, request.command, request.version)
    os.umask(0o022)  # whatever the operator's: what is made is for all to read, and ours to write
    holder = lock.Holder(
        pid=os.getpid(), user=operator(), since=now(), step="start",
        version=request.version, command=request.command,
    )  # fmt: skip
    if not files.can_open(DESCRIPTORS):
        raise NotReady(
            f"fewer than {DESCRIPTORS} more files can be opened, too few for a revert",
            remedy="raise the limit on open files (ulimit -n), or use another shell",
        )
    make_directory(host.deploy)
    log = host.logs / log_name(request.command, request.version, datetime.now(UTC))
    with (
        console.never_waiting(),
        threads.set_aside(),
        signals.handled(then_ignored=True),
        lock.held(host.lock_file, holder) as held,
        console.logging_to(log),
        processes.no_descendant_left(),
    ):
        processes.end_strays(host.id_prefix)
        _remove_old_logs(console.log_file)
        host.releases.clear_unfinished()
        host.releases.set_aside()
        run = Run(host, console, request, held.at_step)
        killed = _killed_in_its_hook(host, held.before)
        status: int | None = None
        why = request.why
        try:
            yield run
        except DeployError as error:
            run.outcome = _outcome_of(error)
            status, why = error.status, error.message
            run.end(status, why)
            console.error(error)
            stands = run.what_stands(error)
            if stands:
                console.say(f"  {stands}")
            raise
        except Exception as error:
            status, why = Status.DEFECT, repr(error)
            run.end(status, why)
            defect = known(run, error)
            console.error(defect)
            raise defect from error
        else:
            status = Status.DONE
            if run.outcome == "failed":
                run.outcome = "nothing to do"
            run.end(status, None)
        finally:
            processes.end_strays(run.id)
            if status is not None and host.config.hook.command:
                _call_the_hook(run, held, status, why, killed)
            for each in run.afterwards:
                each()


def _remove_old_logs(own: Path | None) -> None:
    """Removes all logs but the newest; their names are in the order of time."""
    if own is None:
        return
    with suppress(OSError):
        for log in sorted(own.parent.glob("*.log"))[:-LOGS_KEPT]:
            if log != own:  # the clock may have been set back
                log.unlink()


def _killed_in_its_hook(host: Host, before: lock.Holder) -> Event | None:
    """The end of the last run, if that one was killed before its hook had ended."""
    if before.step != "hook":
        return None
    end = None
    with suppress(OSError):
        lines = islice(host.journal.backwards(), LOOKED_BACK)
        end = next((event for event in lines if event.event in ("end", "called off")), None)
    same = end is not None and (end.by, end.command, end.version or "") == (
        before.user, before.command, before.version or "",
    )  # fmt: skip
    return end if same else None


def _call_the_hook(
    run: Run, held: lock.Lock, status: int, why: str | None, killed: Event | None
) -> None:
    """The last thing of a run; under the lock, so that the hook hears of two runs in their order."""
    held.at_step("hook", run.version)
    history = History()
    with suppress(OSError):
        history = run.host.journal.history()
    now_known = {
        "previous": history.previous,
        "approved": history.approved,
        "log": str(run.console.log_file or ""),
    }
    ends: list[dict[str, str | int | None]] = []
    if killed is not None:
        ends.append({
            "outcome": killed.outcome, "command": killed.command, "user": killed.by,
            "version": killed.version, "status": killed.status, "why": killed.why, "log": None,
        })  # fmt: skip
    if run.cut_off is not None:
        ends.append({
            "outcome": "interrupted", "command": run.cut_off.command, "user": run.cut_off.by,
            "version": run.cut_off.version, "why": f"it was cut off; reverted by {run.by}",
        })  # fmt: skip
    ends.append({
        "outcome": run.outcome, "command": run.request.command, "user": run.by,
        "version": run.version, "status": int(status), "why": why,
        "approved_before": run.before.approved if run.before is not None else None,
    })  # fmt: skip
    for end in ends:
        hook.call(run.host.config, run.console, run.id, hook.variables(**{**now_known, **end}))
    held.at_step("end")


def known(run: Run, error: Exception) -> DeployError:
    """The error as the operator gets it. Writes the traceback of a defect into the log."""
    if isinstance(error, DeployError):
        return error
    run.console.trace("".join(traceback.format_exception(error)))
    log = run.console.log_file
    remedy = f"the traceback: {log}" if log else ""
    with suppress(Exception):
        remedy = "\n".join([remedy, where_the_host_stands(run)])
    return Defect(f"a defect of deploy-clojars: {error!r}", remedy=remedy)


def where_the_host_stands(run: Run, otherwise: str = "") -> str:
    """What both instances run, what is current, and the command to type next, or else `otherwise`.

    The lock, and the run without an end in the journal, are this run's own: what counts is the state
    once it has ended.
    """
    host = run.host
    look = host.look()
    end = Event(event="end", run=run.id, left=run.left)
    look = replace(look, history=history_of([end], look.history))
    lines = [
        f"{each.job}: {each.state}, runs {each.running or 'nothing'}" for each in look.instances
    ]
    lines.append(f"current: {look.current.version or 'none'}")
    command = host.next_command(look, host.situation(look, locked=False)) or otherwise
    if command:
        lines.append(f"once the cause is fixed, run: {command}")
    return "\n".join(lines)


def _outcome_of(error: DeployError) -> str:
    if isinstance(error, Declined):
        return DECLINED
    return INTERRUPTED if isinstance(error, Interrupted) else "failed"


def make_directory(directory: Path) -> None:
    """Makes one of the tool's own directories. Raises NotReady (4)."""
    try:
        directory.mkdir(exist_ok=True)
        os.chmod(directory, 0o755)  # whatever the umask: `status` runs as any user
    except OSError as error:
        raise NotReady(f"{directory} cannot be created: {error.strerror}") from None
