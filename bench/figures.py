"""Figures that can be trusted on a noisy machine: medians with their quartiles, and ratios pair by pair.

What is compared is measured by turns, A B B A, so that a machine that gets slower or faster affects
both. Each A is then divided by the B next to it; the median is that of these ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import select
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

Part = Callable[..., None]


@dataclass(frozen=True)
class Figure:
    """One line of the result."""

    what: str
    unit: str
    median: float
    quartiles: tuple[float, float]
    values: tuple[float, ...]
    at_most: float | None = None

    @property
    def is_met(self) -> bool | None:
        """Whether the median is within the bound; None if there is no bound."""
        return None if self.at_most is None else self.median <= self.at_most

    def __str__(self) -> str:
        low, high = self.quartiles
        spread = f"{low:.2f} to {high:.2f}" if len(self.values) > 1 else ""
        bound = {None: "", True: "met", False: "NOT met"}[self.is_met]
        if self.at_most is not None:
            bound = f"<= {self.at_most:g}: {bound}"
        line = f"{self.what:<60} {self.median:>8.2f} {self.unit:<2} {spread:<18} {bound}"
        return line.rstrip()


class Results:
    """What a bench finds: printed as it is found and, if asked for, written to a file at the end."""

    def __init__(self) -> None:
        self.figures: list[Figure] = []

    def add(
        self, what: str, values: Sequence[float], unit: str, at_most: float | None = None
    ) -> Figure:
        """Prints the median of the values, their quartiles, and whether the bound is met."""
        middle = statistics.median(values)
        low, _, high = (
            statistics.quantiles(values, n=4, method="inclusive")
            if len(values) > 1
            else (middle, middle, middle)
        )
        figure = Figure(what, unit, middle, (low, high), tuple(values), at_most)
        print(figure, flush=True)
        self.figures.append(figure)
        return figure

    def ratio(
        self, what: str, values: Sequence[float], to: Sequence[float], at_most: float | None = None
    ) -> Figure:
        """The same for the ratios, pair by pair."""
        ratios = [one / other for one, other in zip(values, to, strict=True)]
        return self.add(what, ratios, "x", at_most)

    def write(self, file: Path) -> None:
        """Writes all figures as JSON, with every value."""
        document = {
            "machine": {
                "cores": os.cpu_count(), "kernel": platform.release(), "load": os.getloadavg(),
            },
            "figures": [{**asdict(each), "met": each.is_met} for each in self.figures],
        }  # fmt: skip
        file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    def end(self, file: Path | None) -> None:
        """Says which bounds are not met, and writes the file if one is named."""
        missed = [each.what.strip() for each in self.figures if each.is_met is False]
        bounds = sum(each.is_met is not None for each in self.figures)
        print(f"{bounds - len(missed)} of {bounds} bounds are met", end="")
        print(f"; not: {'; '.join(missed)}" if missed else "")
        if file is not None:
            self.write(file)


def by_turns(rounds: int, turns: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """What each returned, in pairs: each round goes through them forwards and then backwards."""
    found: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name in (*turns, *reversed([*turns])):
            found[name].append(turns[name]())
    return found


def arguments(prog: str, rounds: int) -> argparse.ArgumentParser:
    """The command-line options that all benches have."""
    parser = argparse.ArgumentParser(prog=prog)
    parser.add_argument("--rounds", type=int, default=rounds, help="each is A B B A")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    parser.add_argument("--only", nargs="+", metavar="PART", help="run only these parts")
    return parser


def chosen(only: Sequence[str] | None, *parts: Part) -> Iterator[Part]:
    """The parts of a bench to run, each under its heading."""
    for part in parts:
        if not only or part.__name__ in only:
            print(f"\n{(part.__doc__ or '').partition(':')[0].rstrip('.')}", flush=True)
            yield part


@dataclass(frozen=True)
class Ran:
    """A command that has ended: its seconds, its own peak memory in bytes, its status and its errors."""

    seconds: float
    peak: int
    status: int
    said: str


def ran(argv: Sequence[str | Path], env: Mapping[str, str] | None = None) -> Ran:
    """Runs a command and checks every few milliseconds how much memory it uses, without its children."""
    started = time.perf_counter()
    peak = 0
    with subprocess.Popen(
        argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        ended = select.poll()
        descriptor = os.pidfd_open(process.pid)
        said = b""
        try:
            ended.register(descriptor, select.POLLIN)
            ended.register(process.stderr, select.POLLIN)
            while True:
                events = dict(ended.poll(5))
                peak = max(peak, peak_of(process.pid))
                if process.stderr.fileno() in events:
                    part = os.read(process.stderr.fileno(), 65536)
                    said += part
                    if not part:
                        ended.unregister(process.stderr)
                if descriptor in events:
                    break
        finally:
            os.close(descriptor)
        seconds = time.perf_counter() - started
        status = process.wait()
    return Ran(seconds, peak, status, said.decode(errors="replace"))


def peak_of(pid: int) -> int:
    """A process's peak memory so far, in bytes; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    sizes = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(next(sizes, "0")) * 1024
