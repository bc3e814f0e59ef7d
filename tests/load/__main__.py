"""`make load`: the site under load while it is deployed to, and what that came to, as a table.

Each round is a deploy, a rollback and a restart, right after one another; then as many restarts by a
plain script. With an application that finishes what it has begun and with one that dies at once.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from clojure_jars import build_jar, write_lein_home
from clojure_repository import make_repository
from rich.console import Console
from rich.table import Table
from systemd_machine import manager_of_a_host

from load.account import Account
from load.site import FIRST, SECOND, Site, Stop, site_of

STOPS: tuple[Stop, ...] = ("graceful", "abrupt")


def main() -> None:
    """Runs the rounds and prints the table."""
    parser = argparse.ArgumentParser(prog="make load")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--scale", type=float, default=1.5)
    words = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="load-") as scratch:
        found = run(Path(scratch), words.rounds, words.scale)
    console = Console(width=120)
    console.print(table(found, words.rounds))


Found = dict[tuple[Stop, str], Account]


def run(directory: Path, rounds: int, scale: float) -> Found:
    """All rounds with both applications."""
    repository = make_repository(directory / "clojars-web")
    lein_home = write_lein_home(directory / "lein")

    def jar(tag: str) -> Path:
        return build_jar(repository, tag, directory / "jars", lein_home)

    found: Found = defaultdict(Account)
    for stop in STOPS:
        with (
            manager_of_a_host(directory / f"upstart-{stop}") as upstart,
            site_of(directory / stop, upstart, repository, jar, stop) as site,
        ):
            for number in range(rounds):
                for phase, account in one_round(site, scale).items():
                    found[stop, phase] += account
                print(f"{stop}: round {number + 1} of {rounds}", flush=True)
    return found


def one_round(site: Site, scale: float) -> dict[str, Account]:
    """One round by the tool, then one by the plain script, with a load for each."""
    host = site.host
    by_the_tool: dict[str, Callable[[], object]] = {
        "deploy": lambda: host.done(SECOND, "--yes"),
        "rollback": lambda: host.done("rollback", FIRST, "--yes"),
        "restart": lambda: host.done("restart", "--yes"),
    }
    plainly: dict[str, Callable[[], object]] = {
        "plain script, there": lambda: site.plainly(SECOND),
        "plain script, back": lambda: site.plainly(FIRST),
    }
    return under_load(site, scale, by_the_tool) | under_load(site, scale, plainly)


def under_load(
    site: Site, scale: float, phases: dict[str, Callable[[], object]]
) -> dict[str, Account]:
    """Runs one phase after the other; a request counts in the phase in which it began."""
    moments = []
    with site.under_load(scale) as load:
        for phase in phases.values():
            moments.append(time.monotonic())
            phase()
    moments[0] = 0.0
    ends = [*moments[1:], float("inf")]
    return {
        name: load.account(began, ended)
        for name, began, ended in zip(phases, moments, ends, strict=True)
    }


def table(found: Found, rounds: int) -> Table:
    """A row for each phase, and the sums."""
    drawn = Table(title=f"{rounds} rounds", title_justify="left")
    for column, justify in (
        ("application", "left"), ("phase", "left"), ("requests", "right"), ("failed", "right"),
        ("doubled", "right"), ("lost", "right"), ("longest", "right"), ("what failed", "left"),
    ):  # fmt: skip
        drawn.add_column(column, justify=justify)  # type: ignore[arg-type]
    for stop in STOPS:
        own = {phase: account for (each, phase), account in found.items() if each == stop}
        for phase, account in own.items():
            drawn.add_row(*row(stop, phase, account))
        for name, plain in (("the tool, all", False), ("plain script, all", True)):
            parts = [each for phase, each in own.items() if phase.startswith("plain") is plain]
            drawn.add_row(*row(stop, name, sum(parts, Account())), style="bold")
        drawn.add_section()
    return drawn


def row(stop: str, phase: str, account: Account) -> tuple[str, ...]:
    """One phase."""
    failed = ", ".join(f"{count} {what}" for what, count in sorted(account.failed.items()))
    doubled = ", ".join(f"{count} {what}" for what, count in sorted(account.doubled.items()))
    return (
        stop, phase, f"{account.requests:,}", str(account.failed.total()), doubled or "0",
        str(account.lost), f"{account.longest:.1f} s", failed,
    )  # fmt: skip


if __name__ == "__main__":
    main()
