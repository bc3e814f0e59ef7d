"""Tables for people: side by side or stacked on a terminal, plain lines everywhere else."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploy_clojars.screen.text import printable

if TYPE_CHECKING:
    import rich.table

GAP = 2  # blanks between two columns
LEAST_FOLDED = 24  # characters; a text that is folded into less is hard to read
LEAST_STACKED = 48  # characters; with fewer there is one column


@dataclass(frozen=True)
class Column:
    """A column. One that `folds` is a text, which may be broken into lines."""

    name: str
    folds: bool = False


@dataclass(frozen=True)
class Table:
    """What is shown. `stacked` says which columns become one where there is no room for all."""

    columns: tuple[Column, ...]
    rows: Sequence[tuple[str, ...]]
    stacked: tuple[tuple[int, ...], ...]


def as_text(table: Table) -> str:
    """The table as standard output has room for it."""
    # Before it is laid out: what cannot be printed has no width.
    table = Table(table.columns, [tuple(map(printable, row)) for row in table.rows], table.stacked)
    return _for_a_terminal(table) if can_be_drawn_on() else _plain(table)


def coloured(text: str) -> str:
    """A table's text with its header in bold; in a stacked one a blank line ends the header."""
    header, gap, rows = text.partition("\n\n" if "\n\n" in text else "\n")
    return f"\x1b[1m{header}\x1b[0m{gap}{rows}"


def can_be_drawn_on() -> bool:
    """Whether standard output is a terminal that knows escape codes."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def can_be_coloured() -> bool:
    """Whether standard output is such a terminal, and colours are wanted (no-color.org)."""
    return can_be_drawn_on() and not os.environ.get("NO_COLOR")


def _plain(table: Table) -> str:
    """One line a row, whatever its length."""
    lines = [[column.name for column in table.columns], *table.rows]
    widths = _widths(lines)
    return "\n".join(
        (" " * GAP).join(map(str.ljust, line, widths)).rstrip()  # by characters, as grep counts
        for line in lines
    )


def _widths(lines: Iterable[Sequence[str]]) -> list[int]:
    return [max(map(len, cells)) for cells in zip(*lines, strict=True)]


def _for_a_terminal(table: Table) -> str:
    import io

    import rich.console

    console = rich.console.Console(
        # Colour is added later, whatever the variables that rich obeys say.
        file=io.StringIO(), force_terminal=False, highlight=False, markup=False, emoji=False
    )  # fmt: skip
    if _least_width(table) <= console.width:
        console.print(_side_by_side(table))
    elif console.width >= LEAST_STACKED:
        console.print(_stacked(table, table.stacked))
    else:
        console.print(_stacked(table, [tuple(range(len(table.columns)))]))
    assert isinstance(console.file, io.StringIO)
    # Blanks up to the terminal's edge would be broken into lines when it is made smaller.
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()).rstrip()


def _least_width(table: Table) -> int:
    """What the columns need beside one another, in characters."""
    widths = _widths([[column.name for column in table.columns], *table.rows])
    needed = [
        min(width, max(LEAST_FOLDED, len(column.name))) if column.folds else width
        for column, width in zip(table.columns, widths, strict=True)
    ]
    return sum(needed) + GAP * (len(needed) - 1)


def _side_by_side(table: Table) -> rich.table.Table:
    shown = _empty_table()
    for column in table.columns:
        shown.add_column(column.name, overflow="fold", no_wrap=not column.folds)
    for row in table.rows:
        shown.add_row(*map(_cell, row))
    return shown


def _stacked(table: Table, groups: Sequence[tuple[int, ...]]) -> rich.table.Table:
    """Columns that belong together as one, their cells below one another."""
    shown = _empty_table(below=1)
    height = max(map(len, groups))
    for group in groups:
        names = [table.columns[place].name for place in group]
        # rich stands headers on the ground, and what they are of begins at the top.
        shown.add_column("\n".join([*names, *[""] * (height - len(names))]), overflow="fold")
    for row in table.rows:
        cells = ("\n".join(filter(None, (row[place] for place in group))) for group in groups)
        shown.add_row(*map(_cell, cells))
    return shown


def _empty_table(below: int = 0) -> rich.table.Table:
    import rich.table

    return rich.table.Table(box=None, pad_edge=False, padding=(0, GAP, below, 0))


def _cell(text: str) -> rich.text.Text:
    import rich.text

    return rich.text.Text(text)
