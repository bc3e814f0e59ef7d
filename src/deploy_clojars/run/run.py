"""One run of a command that changes the host: its lock, its log, its journal and its end."""

from __future__ import annotations

import os
import secrets
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from deploy_clojars.errors import (
    Declined,
    Defect,
    DeployError,
    Interrupted,
    NotReady,
    Status,
)
from deploy_clojars.host.host import Host
from deploy_clojars.host.journal import Event, History, LastRun, Left, now
from deploy_clojars.host.look import Look
from deploy_clojars.host.users import operator, refuse_the_wrong_user
from deploy_clojars.machine import processes, signals
from deploy_clojars.run import hook, lock, system_log
from deploy_clojars.screen.console import Console, log_name

# A step that took less is not told of in the summary; in seconds.
WAITED_FOR = 0.5
LOOKED_BACK = 500  # lines of the journal: some ten runs


class Run:
    """A run at work. `left` is what it would leave if it ended now."""

    def __init__(
        self, host: Host, console: Console, command: str, version: str | None, held: lock.Lock
    ) -> None:
        self.host = host
        self.console = console
        self.command = command
        self.version = version
        self.by = operator()
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        self.id = f"{host.id_prefix}{stamp}.{secrets.token_hex(3)}"
        self.left = Left()
        self.outcome = "failed"
        # Where the host stands if the run fails now; said after the error.
        self.state_on_failure = ""
        # In a revert or a rollback a journal that cannot be written is a warning.
        self.journal_may_fail = False
        self.journal_failed = False
        self.said_no_drain = False
        self.approved_before: str | None = None
        # How it ended, and how the run that was cut off before it did; what the hook is told.
        self.status: int | None = None
        self.why: str | None = None
        self.reason: str | None = None  # that the operator gave
        self.cut_off: LastRun | None = None
        # From the first request to restart the primary on nothing is reverted.
        self.past_return = False
        self.took: dict[str, float] = {}  # seconds, by step
        self._started = time.monotonic()
        self._usual_seconds = _usual_seconds(host) if console.is_alive else {}
        self._begun = False
        self._lock = held

    @contextmanager
    def step(self, name: str, what: str) -> Iterator[Callable[[str], None]]:
        """One step: in the lock's file, in the journal before and after, and on screen.

        Raises Interrupted before it begins if a signal came.
        """
        signals.check()
        self.at(name)
        started = time.monotonic()
        try:
            with self.console.step(name, what, self._usual_seconds.get(name)) as becomes:
                yield becomes
        except BaseException:
            if self._begun:
                seconds = round(time.monotonic() - started, 3)
                self.record("failed", step=name, seconds=seconds, may_fail=True)
            raise
        seconds = time.monotonic() - started
        self.took[name] = self.took.get(name, 0.0) + seconds
        if self._begun:
            self.record("done", step=name, seconds=round(seconds, 3))

    def summary(self) -> str:
        """How long all took, and the steps that somebody waited for."""
        slow = [f"{name} {took:.1f}" for name, took in self.took.items() if took >= WAITED_FOR]
        of_which = f" ({', '.join(slow)})" if slow else ""
        return f"in {time.monotonic() - self._started:.1f} s{of_which}"

    def at(self, step: str) -> None:
        """Tells the lock's readers and the journal which step the run is at."""
        self._lock.at_step(step, self.version)
        if self._begun:
            self.record("step", step=step)

    def begin(self, look: Look) -> None:
        """Writes down what counts as approved, if that was never done, and that the run begins.

        Nothing on the host is changed before this.
        """
        self.approved_before = look.approved
        if not look.history.adopted and not look.journal_error:
            self.record("adopted", version=look.approved)
        # What the last run left goes on to count: drift does not end by a run that fails.
        self.left = look.history.last.left if look.history.last is not None else look.left()
        self.record("begin", command=self.command, version=self.version, left=self.left)
        self._begun = True
        runs = look.primary.running or "no release"
        self.state_on_failure = (
            f"nothing that runs was changed; {look.primary.job} runs {runs} as before"
        )

    def no_return(self, version: str) -> None:
        """The point of no return. Raises DeployError if it cannot be written down."""
        self.record("no return", version=version)
        self.past_return = True

    def record(self, event: str, *, may_fail: bool = False, **fields: Any) -> None:
        """Writes a line into the journal. Raises DeployError unless it may fail (now)."""
        line = Event(event=event, at=now(), run=self.id, by=self.by, **fields)
        said = system_log.line_of(line, self.command, self.version)
        if said is not None:
            system_log.tell(said)
        try:
            self.host.journal.append(line)
        except OSError as error:
            message = f"the journal {self.host.journal.file} cannot be written: {error.strerror}"
            if not (may_fail or self.journal_may_fail):
                raise DeployError(message) from error
            if not self.journal_failed:
                self.console.warn(message)
            self.journal_failed = True

    def close(self, cut_off: LastRun, left: Left) -> None:
        """Writes the end of an earlier run that was cut off and is reverted now."""
        self.cut_off = cut_off
        line = Event(
            event="end", at=now(), run=cut_off.id, by=self.by, outcome="interrupted", left=left
        )
        try:
            self.host.journal.append(line)
        except OSError as error:
            self.console.warn(f"the journal cannot be written: {error.strerror}")

    def end(self, status: int, why: str | None) -> None:
        """Writes the run's end, with what it leaves."""
        self.status, self.why = status, why
        if status == Status.DONE and self.outcome == "failed":
            self.outcome = "nothing to do"
        if not self._begun:
            return
        self.journal_may_fail = True
        self.record(
            "end", outcome=self.outcome, status=status, why=why, version=self.version,
            command=self.command, left=self.left,
        )  # fmt: skip

    def now_left_with(self, **changes: str | None) -> None:
        """Notes what current or an instance is from now on."""
        self.left = msgspec.structs.replace(self.left, **changes)


def _usual_seconds(host: Host) -> dict[str, float]:
    """How long each step took the last time, as far as the end of the journal tells."""
    usual: dict[str, float] = {}
    with suppress(OSError):
        for event in islice(host.journal.backwards(), LOOKED_BACK):
            if event.event == "done" and event.step and event.seconds is not None:
                usual.setdefault(event.step, event.seconds)
    return usual


@contextmanager
def started(host: Host, console: Console, command: str, version: str | None) -> Iterator[Run]:
    """Holds the lock and keeps the log while the block runs; shows and journals how it ended.

    What earlier runs left unfinished in files and processes is cleared first.
    Raises UsageError (2) for the wrong user, NotReady (4), Locked (3).
    """
    refuse_the_wrong_user(host, command, version)
    os.umask(0o022)  # whatever the operator's: what is made is for all to read, and ours to write
    holder = lock.Holder(
        pid=os.getpid(), user=operator(), since=now(), step="start",
        version=version, command=command,
    )  # fmt: skip
    make_directory(host.deploy)
    log = host.logs / log_name(command, version, datetime.now(UTC))
    with (
        signals.handled(then_ignored=True),
        lock.held(host.lock_file, holder) as held,
        console.logging_to(log),
        processes.no_descendant_left(),
    ):
        processes.end_strays(host.id_prefix)
        host.releases.clear_unfinished()
        run = Run(host, console, command, version, held)
        try:
            yield run
        except DeployError as error:
            run.outcome = _outcome_of(error)
            run.end(error.status, error.message)
            console.error(error)
            if run.state_on_failure:
                console.say(f"  {run.state_on_failure}")
            raise
        except Exception as error:
            run.end(Status.DEFECT, repr(error))
            console.trace(traceback.format_exc())
            defect = _defect(run, error)
            console.error(defect)
            raise defect from error
        else:
            run.end(Status.DONE, None)
        finally:
            processes.end_strays(run.id)
            tell_the_hook(run, held)


def tell_the_hook(run: Run, held: lock.Lock) -> None:
    """The last thing of a run; the lock is held so that two runs are told of in their order."""
    if not run.host.config.hook.command or run.status is None:
        return
    held.at_step("hook", run.version)
    history = History()
    with suppress(OSError):
        history = run.host.journal.history()
    log = run.console.log_file
    common = partial(
        hook.Outcome, previous=history.previous, approved=history.approved, log=str(log or "")
    )
    outcomes = [
        common(
            run.outcome, run.command, run.by, run.version, status=run.status, why=run.why or run.reason,
            approved_before=run.approved_before,
        ),
    ]  # fmt: skip
    if run.cut_off is not None:
        cut_off = run.cut_off
        why = f"it was cut off; reverted by {run.by}"
        earlier = common("interrupted", cut_off.command, cut_off.by, cut_off.version, why=why)
        outcomes.insert(0, earlier)
    for outcome in outcomes:
        hook.tell(run.host.config, run.console, run.id, outcome)


def _defect(run: Run, error: Exception) -> Defect:
    """The error that still says where the host stands and what to type."""
    log = run.console.log_file
    remedy = f"the traceback: {log}" if log else ""
    with suppress(Exception):
        remedy = "\n".join([remedy, where_the_host_stands(run.host)])
    return Defect(f"a defect of deploy-clojars: {error!r}", remedy=remedy)


def where_the_host_stands(host: Host) -> str:
    """What both instances run, what is current, and the command to type next.

    The lock is this run's own, so what counts is what holds when it is free.
    """
    look = host.look()
    lines = [
        f"{each.job}: {each.state}, runs {each.running or 'nothing'}"
        for each in (look.primary, look.backup)
    ]
    lines.append(f"current: {look.current.version or 'none'}")
    command = host.next_command(look, host.situation(look, locked=False))
    if command is not None:
        lines.append(f"when the reason is mended: {command}")
    return "\n".join(lines)


def _outcome_of(error: DeployError) -> str:
    if isinstance(error, Declined):
        return "declined"
    return "interrupted" if isinstance(error, Interrupted) else "failed"


def make_directory(directory: Path) -> None:
    """Makes one of the tool's own directories. Raises NotReady (4)."""
    try:
        directory.mkdir(exist_ok=True)
        os.chmod(directory, 0o755)  # whatever the umask: `status` runs as any user
    except OSError as error:
        raise NotReady(f"{directory} cannot be made: {error.strerror}") from None
