"""What 10,000 releases and 100,000 journal lines cost, against 10 of each.

Two sandboxes, asked the same things by turns, so that whatever else the machine does befalls both.
Prints medians in seconds and their ratios. `python bench/growth.py [ROUNDS]`
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec

from deploy_clojars import sandbox
from deploy_clojars.host.journal import Event, HostVersions

TOOL = str(Path(sys.executable).with_name("deploy-clojars"))
ROUNDS = 7
BOUND = 2.0

OLD, NEW = "0.1.0", "0.2.0"  # tags of the sandbox
COMMANDS = (
    ("status",),
    ("status", "--json"),
    ("releases",),
    ("releases", "--json"),
    ("history",),
    ("history", "--json"),
)
ROUND_TRIP = (("rollback", OLD, "--yes"), ("rollback", NEW, "--yes"))
NOTHING_TO_DO = ("rollback", NEW, "--yes")


class Grown:
    """A sandbox with as many releases and journal lines as one wants; NEW is in production."""

    def __init__(self, directory: Path, releases: int, lines: int) -> None:
        made = sandbox.start(directory)
        self._words = [TOOL, "-c", str(made.config)]
        self._journal = made.home / "deploy" / "journal.jsonl"
        for tag in (OLD, NEW):
            self.seconds("deploy", tag, "--yes")
        versions = [f"0.0.{number}" for number in range(releases - 2)]
        sizes = {tag: jar(made.releases, tag).stat().st_size for tag in (OLD, NEW)}
        for version in versions:
            jar(made.releases, version).write_bytes(b"never read")
        if lines < 3 * releases:
            versions = []  # they are there, and the journal does not know them
        a_run = lines // (len(versions) + 2)
        self._text = b"".join(
            msgspec.json.encode(event) + b"\n"
            for version in [*versions, OLD, NEW]
            for event in deploy(version, a_run, sizes.get(version, len(b"never read")))
        )
        self.forget()
        found = self._text.count(b"\n")
        assert abs(found - lines) <= lines / 10, f"{found} lines"

    def forget(self) -> None:
        """Takes back what the runs have written since."""
        self._journal.write_bytes(self._text)

    def seconds(self, *words: str) -> float:
        """How long a command takes; it must find all well."""
        started = time.perf_counter()
        done = subprocess.run([*self._words, *words], capture_output=True, text=True, check=False)
        taken = time.perf_counter() - started
        if done.returncode != 0:
            raise SystemExit(f"{words}: exit status {done.returncode}\n{done.stderr}")
        return taken


def jar(releases: Path, version: str) -> Path:
    """Where a release is."""
    return releases / f"clojars-web-{version}-standalone.jar"


def deploy(version: str, lines: int, size: int) -> Iterator[Event]:
    """As many lines of a deploy as are asked for, five at least; the rest are of its steps."""
    line = partial(Event, at="2026-01-02T03:04:05Z", run=f"fe00.1.{version}", by="ann")
    left = HostVersions(version, version, version)
    yield line(event="begin", command="deploy", version=version, left=left)
    for number in range(lines - 5):
        step = ("fetch", "test", "build", "backup")[number // 2 % 4]
        if number % 2:
            yield line(event="done", step=step, seconds=12.345)
        else:
            yield line(event="step", step=step)
    yield line(event="installed", version=version, commit="c" * 40, sha256="5" * 64, bytes=size)
    yield line(event="no return", version=version)
    yield line(event="promoted", version=version)
    yield line(
        event="end", command="deploy", version=version, outcome="promoted", status=0, left=left
    )


def measured(small: Grown, large: Grown, rounds: int) -> dict[str, tuple[float, float]]:
    """The medians of each command on both, asked by turns."""
    taken: dict[str, tuple[list[float], list[float]]] = {}
    for _ in range(rounds):
        for words in (*COMMANDS, NOTHING_TO_DO):
            name = " ".join(words) if words != NOTHING_TO_DO else "rollback, nothing to do"
            both = taken.setdefault(name, ([], []))
            for host, times in zip((small, large), both, strict=True):
                times.append(host.seconds(*words))
        both = taken.setdefault("rollback", ([], []))
        for host, times in zip((small, large), both, strict=True):
            times.extend(host.seconds(*words) for words in ROUND_TRIP)
            host.forget()
    return {
        name: (statistics.median(small), statistics.median(large))
        for name, (small, large) in taken.items()
    }


def main() -> None:
    """Makes both, asks, and prints the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    with tempfile.TemporaryDirectory(prefix="growth-") as directory:
        places = (Path(directory) / "small", Path(directory) / "large")
        try:
            small, large = Grown(places[0], 10, 10), Grown(places[1], 10_000, 100_000)
            results = measured(small, large, rounds)
        finally:
            for place in places:
                if place.exists():
                    sandbox.stop(place)
    print(f"{'':<24} {'10, 10':>9} {'10,000, 100,000':>16} {'ratio':>6}   (medians of {rounds})")
    for name, (before, after) in results.items():
        over = "" if after / before <= BOUND else f"   over {BOUND:g}"
        print(f"{name:<24} {before:>7.3f} s {after:>14.3f} s {after / before:>6.2f}{over}")


if __name__ == "__main__":
    main()
