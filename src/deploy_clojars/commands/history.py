"""The last runs: who, when, what, how long each step took, how it ended and why."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

import msgspec

from deploy_clojars.errors import DeployError
from deploy_clojars.host.host import Host
from deploy_clojars.host.journal import STOPPED, TAG, Event
from deploy_clojars.host.users import user_name
from deploy_clojars.run import lock
from deploy_clojars.screen import tables
from deploy_clojars.screen.tables import Column, Table

# Of a run that was declined or interrupted at its question all that is known is when it ended.
CALLED_OFF = "called off"
BEGINNINGS = ("begin", CALLED_OFF)

UNDER_WAY = "under way"
CUT_OFF = "cut off"

# Shorter ones are left out of the table; nobody waits for them.
SHORTEST = 0.05  # seconds


class Step(msgspec.Struct):
    """A step of a run, as `history --json` has it."""

    name: str = msgspec.field(name="step")
    began: str
    seconds: float | None = None
    done: bool = False
    stopped: bool = False  # since the other one at the same time failed, or by a signal


class PastRun(msgspec.Struct):
    """A run as the journal has it, and `history --json` too; keys are only ever added."""

    id: str = msgspec.field(name="run")
    command: str
    version: str | None
    by: str | None
    began: str | None
    ended: str | None = None
    seconds: float | None = None  # unknown for one that was cut off, whoever wrote its end
    outcome: str = CUT_OFF
    status: int | None = None
    why: str | None = None
    source: str | None = None  # of the release that it installed: "tag", "jar" or "command"
    steps: list[Step] = []
    pruned: list[str] = []

    @property
    def ended_at(self) -> str | None:
        """The step at which it failed, or is now: the first one that was not done."""
        not_done = [step for step in self.steps if not step.done]
        failed = (step.name for step in not_done if not step.stopped)
        return next(failed, not_done[0].name if not_done else None)


class RecentRuns(msgspec.Struct, frozen=True):
    """The last runs, the newest first, and whether there are older ones."""

    runs: list[PastRun]
    more: bool


def recent_runs(host: Host, count: int | None) -> RecentRuns:
    """The last `count` runs (None: all), read from the journal's end.

    Raises DeployError if the journal cannot be read.
    """
    holder = lock.holder_of(host.lock_file)
    events: list[Event] = []
    begun = 0
    try:
        for event in host.journal.backwards():
            begun += event.event in BEGINNINGS
            if count is not None and begun > count:
                break
            events.append(event)
    except FileNotFoundError:
        return RecentRuns([], more=False)
    except OSError as error:
        raise DeployError(
            f"the journal {host.journal.file} is not visible to {user_name()}: {error.strerror}"
        ) from None
    runs = runs_of(reversed(events))
    if runs and runs[0].ended is None and holder is not None and _is_of(holder, runs[0]):
        runs[0].outcome = UNDER_WAY
    return RecentRuns(runs, more=count is not None and begun > count)


def _is_of(holder: lock.Holder, run: PastRun) -> bool:
    """Whether it is this run that holds the lock, and not one that has not begun yet."""
    return holder.command == run.command and (run.began or "") >= (holder.since or "")


def runs_of(events: Iterable[Event]) -> list[PastRun]:
    """The runs that begin in these events, the newest first.

    A run that was cut off may have been ended by another one, far below.
    """
    runs: dict[str, PastRun] = {}
    for event in events:
        if event.event in BEGINNINGS:
            command = event.command or ""
            runs[event.run] = PastRun(
                event.run, command, event.version, event.by, event.at or None, why=event.why
            )
        if event.event == CALLED_OFF:
            _end(runs[event.run], event)
        elif event.run in runs:
            _add(runs[event.run], event)
    return [*runs.values()][::-1]


def _add(run: PastRun, event: Event) -> None:
    step = run.steps[-1] if run.steps else None
    if event.event in ("done", "failed"):  # there may be two steps at work
        step = next((each for each in reversed(run.steps) if each.name == event.step), None)
    goes_on = event.event not in ("step", "end", "approved")  # it is what the step itself writes
    is_own = event.event != "end" or event.status is not None  # and not of who reverts it
    if step is not None and step.seconds is None and is_own and not goes_on:
        # To the second; the step's own end is more exact, and a question has none.
        step.seconds = seconds_between(step.began, event.at)
    match event.event:
        case "step" if event.step:
            run.steps.append(Step(event.step, event.at))
        case "done" if step is not None:
            step.seconds, step.done = event.seconds, True
        case "failed" if step is not None:
            step.seconds, step.stopped = event.seconds, event.outcome == STOPPED
        case "approved" if step is not None and step.name == "ask":
            step.done = True
        case "rolled back":
            run.why = event.why or run.why
        case "installed":
            run.source = event.source or TAG
        case "pruned" if event.version:
            run.pruned.append(event.version)
        case "end":
            _end(run, event)
            if event.status is not None:
                run.seconds = event.seconds or seconds_between(run.began, event.at)
            else:
                run.outcome = CUT_OFF
                run.why = f"reverted by {event.by}"


def _end(run: PastRun, event: Event) -> None:
    run.ended, run.status = event.at, event.status
    run.outcome, run.why = event.outcome or "", event.why or run.why


def seconds_between(begin: str | None, end: str) -> float | None:
    """The seconds from one of the journal's times to another.

    None if one is not a time, or the clock was set back between them.
    """
    try:
        took = datetime.fromisoformat(end) - datetime.fromisoformat(begin or "")
    except (ValueError, TypeError):
        return None
    return took.total_seconds() if took >= timedelta() else None


# --- as it is shown ---------------------------------------------------------------------------


def as_json(recent_runs: RecentRuns) -> str:
    """For programs."""
    return msgspec.json.format(msgspec.json.encode(recent_runs), indent=2).decode()


def as_text(recent_runs: RecentRuns) -> str:
    """For people."""
    if not recent_runs.runs:
        return "no run yet"
    columns = (
        Column("when (UTC)"), Column("who"), Column("what"), Column("took"), Column("ended"),
        Column("steps (s)", folds=True), Column("why", folds=True),
    )  # fmt: skip
    rows = [_row(run) for run in recent_runs.runs]
    text = tables.as_text(Table(columns, rows, stacked=((0, 1), (2, 4, 3), (5, 6))))
    return f"{text}\nolder ones: -n NUMBER or --all" if recent_runs.more else text


def _row(run: PastRun) -> tuple[str, ...]:
    steps = (
        f"{step.name} {step.seconds:.1f}"
        for step in run.steps
        if step.seconds is not None and step.seconds >= SHORTEST
    )
    why = " ".join((run.why or "").split())
    removed = f"removed {', '.join(run.pruned)}" if run.pruned else ""
    source = f"from a {run.source}" if run.source not in (None, TAG) else ""
    return (
        moment(run.began),
        run.by or "",
        " ".join(filter(None, (run.command, run.version, source))),
        "" if run.seconds is None else duration(run.seconds),
        _how_it_ended(run),
        ", ".join(steps),
        "; ".join(filter(None, (why, removed))),
    )


def _how_it_ended(run: PastRun) -> str:
    at = run.ended_at
    where = f" at {at}" if at and run.outcome not in ("declined", "promoted") else ""
    status = f" ({run.status})" if run.status else ""
    return f"{run.outcome}{where}{status}"


def moment(at: str | None) -> str:
    """One of the journal's times, to the minute."""
    return (at or "")[:16].replace("T", " ")


def duration(seconds: float) -> str:
    """How long a run took, for people."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
