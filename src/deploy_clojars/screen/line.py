"""A step on the screen: a line that is alive while the step runs on a terminal, a plain one elsewhere."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import IO, Protocol, cast

import rich.console
from rich.cells import cell_len
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from deploy_clojars.screen.stderr import SafeStderr

NAME_WIDTH = 10  # of a step
INDENT = " " * (NAME_WIDTH + 3)
LEAST = 24  # characters of what a step does; with less room beside it the ending goes below

MARKS = {True: ("✓", "✗", "dots"), False: ("+", "x", "line")}  # by whether there is more than ASCII
PER_SECOND = 8  # looks of the running line


# Only the stream knows whether it is a terminal, and how wide: these variables claim to know it for
# every pipe, too, and for a window as it was when a shell exported them.
SAID_OF_ALL = ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES")


def environment() -> dict[str, str]:
    """The environment for rich, which then asks a stream itself what it is."""
    return {key: value for key, value in os.environ.items() if key not in SAID_OF_ALL}


class Terminal(rich.console.Console):
    """rich's console, which leaves the cursor as it is: a tool that is killed could not show it again."""

    def __init__(self, stream: SafeStderr) -> None:
        super().__init__(
            file=cast(IO[str], stream),
            highlight=False,
            markup=False,
            soft_wrap=True,
            emoji=False,
            _environ=environment(),
        )

    def show_cursor(self, show: bool = True) -> bool:  # rich's own signature
        return False

    @property
    def is_alive(self) -> bool:
        """Whether a line may change after it was shown."""
        return self.is_terminal and not self.is_dumb_terminal and "CI" not in os.environ

    @property
    def has_unicode(self) -> bool:
        """Whether more than ASCII can be shown."""
        return self.encoding.startswith("utf")


class Line(Protocol):
    """A step's line."""

    def pause(self) -> None:
        """Something else is shown now."""

    def end(self, ending: str, *, failed: bool) -> None:
        """The step is over."""


class PlainLine:
    """What the step does, and behind it how it ended, or below if something was shown between."""

    def __init__(self, terminal: Terminal, name: str, what: str) -> None:
        self._terminal = terminal
        self._name = name
        self._is_open = True
        terminal.print(self._head(what), end="")
        terminal.file.flush()

    def _head(self, what: str) -> Text:
        return Text.assemble("  ", (self._name.ljust(NAME_WIDTH), "bold"), " ", what)

    def pause(self) -> None:
        if self._is_open:
            self._terminal.print()
        self._is_open = False

    def end(self, ending: str, *, failed: bool) -> None:
        style = "red" if failed else "dim"
        if self._is_open:
            self._terminal.print(Text(f"  {ending}", style))
        else:
            self._terminal.print(self._head("").append(ending, style))


class LiveLines:
    """The lines of the steps at work, one below the other, and below all that was said before."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._lines: list[LiveLine] = []
        self._live: Live | None = None

    def __rich__(self) -> rich.console.Group:
        return rich.console.Group(*self._lines)

    def add(self, line: LiveLine) -> None:
        """Shows a line until it is removed."""
        self._lines.append(line)
        if self._live is not None:
            self._live.refresh()
            return
        self._live = Live(
            self,
            console=self._terminal,
            transient=True,
            refresh_per_second=PER_SECOND,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        with suppress(RuntimeError):  # no thread can be started: the lines stand still
            self._live.start(refresh=True)

    def remove(self, line: LiveLine) -> None:
        """Stops showing a line; what is printed next takes its place."""
        if self._lines == [line] and self._live is not None:
            self._live.stop()
            self._live = None
        self._lines.remove(line)


class LiveLine:
    """A line that says how long the step has run, and at its end how it ended."""

    def __init__(
        self, terminal: Terminal, lines: LiveLines, name: str, what: str,
        usual_seconds: float | None,
    ) -> None:  # fmt: skip
        self._terminal = terminal
        self._lines = lines
        self._name = name
        self._what = what
        self._usual = usual_seconds
        self._started = time.monotonic()
        self._done, self._failed, spinner = MARKS[terminal.has_unicode]
        self._spinner = Spinner(spinner)
        lines.add(self)

    def __rich__(self) -> Text:
        frame = self._spinner.render(time.monotonic())
        mark = frame.plain if isinstance(frame, Text) else ""
        elapsed = time.monotonic() - self._started
        usual = f" ({self._usual:.0f} s last time)" if self._usual else ""
        ending = f"{elapsed:.0f} s{usual}" if elapsed >= 1 else ""
        # On one line, with the ^C that the terminal may add: what is more would be left behind on the screen.
        what = cut(self._what, self._room - cell_len(ending) - 2 - len("^C"))
        return self._head(mark, "cyan", what).append(f"  {ending}", "dim")

    @property
    def _room(self) -> int:
        return self._terminal.width - len(INDENT) - 1

    def _head(self, mark: str, style: str, what: str) -> Text:
        name = self._name.ljust(NAME_WIDTH)
        return Text.assemble((mark, style), " ", (name, "bold"), " ", what, no_wrap=True)

    def pause(self) -> None:
        # What rich prints meanwhile stands above the line.
        pass

    def end(self, ending: str, *, failed: bool) -> None:
        self._lines.remove(self)
        mark, style = (self._failed, "red") if failed else (self._done, "green")
        what, goes_below = fitted(self._what, ending, self._room)
        head = self._head(mark, style, what)
        ending_style = "red" if failed else "dim"
        if goes_below:
            self._terminal.print(head)
            self._terminal.print(Text(f"{INDENT}{ending}", ending_style))
        else:
            self._terminal.print(head.append(f"  {ending}", ending_style))


def fitted(what: str, ending: str, room: int) -> tuple[str, bool]:
    """As much of `what` as there is room for, and whether `ending` goes on a line of its own.

    `room` is in characters. A long `what` is cut; nothing of an ending ever is.
    """
    beside = room - cell_len(ending) - 2 if ending else room
    if cell_len(what) <= beside:
        return what, False
    goes_below = cell_len(what) <= room or beside < LEAST
    return cut(what, room if goes_below else beside), goes_below


def cut(text: str, width: int) -> str:
    """The text in at most `width` characters."""
    cut_off = Text(text)
    cut_off.truncate(max(width, 1), overflow="ellipsis")
    return cut_off.plain
