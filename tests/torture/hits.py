"""What a run is hit by, and when."""

from __future__ import annotations

import random
import signal
from dataclasses import dataclass

CTRL_C = "Ctrl-C"  # SIGINT to the terminal's whole group
INT, TERM, HUP, KILL = "SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"
ONE_BLOW = (CTRL_C, INT, TERM, HUP, KILL)

STATUS = {
    CTRL_C: 128 + signal.SIGINT,
    **{name: 128 + signal.Signals[name] for name in (INT, TERM, HUP, KILL)},
}


@dataclass(frozen=True)
class Hit:
    """One blow, or two with a pause of seconds between them."""

    blows: tuple[str, ...]
    pause: float = 0.0

    def __str__(self) -> str:
        return f" and {self.pause:.3f} s later ".join(self.blows)

    @property
    def is_deadly(self) -> bool:
        """Whether nothing can be put back by the run itself."""
        return KILL in self.blows

    @property
    def statuses(self) -> frozenset[int]:
        """The exit statuses with which a run may end that did not end by itself."""
        return frozenset(STATUS[blow] for blow in self.blows)


# What is dealt at every boundary in `make test`; two in a row come in `make torture`.
EVERY = tuple(Hit((blow,)) for blow in ONE_BLOW)


def any_hit(dice: random.Random) -> Hit:
    """One of all hits; every third one is two in a row."""
    if dice.random() < 2 / 3:
        return Hit((dice.choice(ONE_BLOW),))
    first = dice.choice([blow for blow in ONE_BLOW if blow != KILL])
    pause = dice.choice([0.0, 0.0, dice.uniform(0, 0.3)])
    return Hit((first, dice.choice(ONE_BLOW)), pause)


@dataclass(frozen=True)
class Mark:
    """A line of a run's journal: which event, of what, the how manieth such one."""

    event: str
    of: str
    number: int

    def __str__(self) -> str:
        again = f" ({self.number})" if self.number > 1 else ""
        return f"{self.event} {self.of}".strip() + again


@dataclass(frozen=True)
class Moment:
    """Some seconds after a line appeared in the journal, or after the start."""

    after: Mark | None
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.seconds:.3f} s after {self.after or 'the start'}"


@dataclass(frozen=True)
class Course:
    """How a run goes that nobody hits: its journal's lines, each with the seconds from the start."""

    lines: tuple[tuple[Mark, float], ...]
    seconds: float

    @property
    def boundaries(self) -> list[Moment]:
        """The start and the end of every step; where one follows another that is one instant."""
        ends_and_starts = [mark for mark, _ in self.lines if mark.event in ("step", "done", "end")]
        return [
            Moment(mark)
            for mark, following in zip(ends_and_starts, [*ends_and_starts[1:], None], strict=True)
            if mark.event != "done" or following is None or following.event != "step"
        ]

    @property
    def middles(self) -> list[Moment]:
        """The middle of every step."""
        ends = {(mark.of, mark.number): at for mark, at in self.lines if mark.event == "done"}
        return [
            Moment(mark, (ends.get((mark.of, mark.number), at) - at) / 2)
            for mark, at in self.lines
            if mark.event == "step"
        ]

    @property
    def lines_of_all_kinds(self) -> list[Moment]:
        """Every line: also what is written inside a step."""
        return [Moment(mark) for mark, _ in self.lines]

    def any_moment(self, dice: random.Random) -> Moment:
        """A boundary, a middle, a line, or any instant from the start to a little after the end."""
        instant = Moment(None, dice.uniform(0, self.seconds * 1.05))
        known = (self.boundaries, self.middles, self.lines_of_all_kinds)
        return dice.choice([instant, *(dice.choice(each) for each in known if each)])
