"""`status --watch`: what runs where, redrawn in place every second."""

from __future__ import annotations

import signal
from datetime import UTC, datetime

import rich.console
import rich.live
import rich.table
from rich.text import Text

from deploy_clojars.commands import status
from deploy_clojars.errors import Interrupted, UsageError
from deploy_clojars.host.host import Host
from deploy_clojars.machine import signals
from deploy_clojars.screen import tables
from deploy_clojars.screen.line import environment
from deploy_clojars.screen.text import printable

INTERVAL = 1.0  # seconds
NAME_WIDTH = 9  # what `status` puts before a line


def watch(host: Host) -> None:
    """Watches until a signal comes, and then raises Interrupted, with nothing left to be said.

    Raises UsageError (2) where nothing can be drawn in place.
    """
    if not tables.can_be_drawn_on():
        raise UsageError(
            "--watch needs a terminal that can be drawn on",
            remedy=f"programs can use: {host.command('status', '--json')}",
        )
    console = rich.console.Console(
        highlight=False, markup=False, emoji=False, _environ=environment()
    )
    try:
        with signals.handled(), rich.live.Live(console=console, auto_refresh=False) as live:
            size = console.size
            while True:
                lines = printable(status.as_text(status.report(host))).split("\n")
                if console.size != size:
                    # What a terminal has wrapped again is not where rich looks for it.
                    size = console.size
                    console.clear()
                live.update(screen(console, lines, datetime.now(UTC)), refresh=True)
                signals.wait(INTERVAL)
    except Interrupted as error:
        error.shown = True  # who pressed Ctrl-C knows it
        raise
    except OSError:
        gone = Interrupted(signal.SIGHUP, "a terminal that is gone")
        gone.shown = True
        raise gone from None


def screen(console: rich.console.Console, lines: list[str], moment: datetime) -> rich.table.Table:
    """The report's lines; what is too long for the terminal goes on below itself.

    Where there is no room for all of it the end is shown: what to type stands there.
    """
    while True:
        grid = _grid(lines, moment)
        if len(lines) == 1 or len(console.render_lines(grid)) < console.height:
            return grid
        lines = lines[1:]


def _grid(lines: list[str], moment: datetime) -> rich.table.Table:
    grid = rich.table.Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=NAME_WIDTH, no_wrap=True)
    grid.add_column(overflow="fold")
    for line in lines:
        name, text = line[:NAME_WIDTH].strip(), line[NAME_WIDTH + 1 :]
        is_named = line[NAME_WIDTH : NAME_WIDTH + 1] == " " and " " not in name
        parts = (name, text) if is_named else ("", line)
        grid.add_row(*(Text.from_ansi(status.coloured(part)) for part in parts))
    grid.add_row(Text(), Text(f"{moment:%H:%M:%S} UTC, every second; Ctrl-C ends it", "dim"))
    return grid
