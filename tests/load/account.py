"""What a load came to: how many requests, how many failed or were written twice, and how long."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from load.generator import UPLOAD, Client, Request

TESTS = Path(__file__).parents[1]


@dataclass
class Account:
    """The sum of many requests."""

    requests: int = 0
    failed: Counter[str] = field(default_factory=Counter)  # by method and failure
    doubled: Counter[str] = field(default_factory=Counter)  # by method
    lost: int = 0  # uploads that were answered well and never written
    longest: float = 0.0  # seconds
    sent_again: int = 0  # because a connection that was kept open had just been closed

    def __add__(self, other: Account) -> Account:
        return Account(
            self.requests + other.requests,
            self.failed + other.failed,
            self.doubled + other.doubled,
            self.lost + other.lost,
            max(self.longest, other.longest),
            self.sent_again + other.sent_again,
        )

    @property
    def is_clean(self) -> bool:
        """Whether every request was answered, and every upload written exactly once."""
        return not (self.failed or self.doubled or self.lost)


def account_of(requests: Iterable[Request], written: Counter[str]) -> Account:
    """Adds up requests; `written` is how often the application wrote each upload."""
    total = Account()
    for request in requests:
        total.requests += 1
        total.longest = max(total.longest, request.seconds)
        total.sent_again += request.sent_again
        if request.failure:
            total.failed[f"{request.method} {request.failure}"] += 1
        times = written[request.id]
        if request.method == "GET":
            continue
        if times > 1:
            total.doubled[request.method] += 1
        if times == 0 and not request.failure:
            total.lost += 1
    return total


def written_in(log: Path) -> Counter[str]:
    """How often the application wrote each upload, whole: its log has a line for each."""
    text = log.read_text(encoding="utf-8") if log.exists() else ""
    # What comes after the last newline is being written.
    rows = (line.split() for line in text[: text.rfind("\n") + 1].splitlines())
    return Counter(name for _, name, size in rows if int(size) == UPLOAD)


@dataclass
class Load:
    """A load at work. The requests are known when it has ended."""

    out: Path
    log: Path

    @property
    def requests(self) -> list[Request]:
        """All that was sent."""
        lines = self.out.read_text(encoding="utf-8").splitlines()
        return [Request(**json.loads(line)) for line in lines]

    def account(self, began: float = 0.0, ended: float = float("inf")) -> Account:
        """What came of the requests that began between two moments of time.monotonic()."""
        meant = (each for each in self.requests if began <= each.began < ended)
        return account_of(meant, written_in(self.log))


@contextmanager
def load_on(
    site: str,
    directory: Path,
    log: Path,
    scale: float = 1.0,
    client: Client = "strict",
    network_of: int | None = None,
) -> Iterator[Load]:
    """Puts load on the site while the block runs; at the end all requests are answered.

    The site is in the network of the process `network_of`, or else in this one's.
    """
    log.unlink(missing_ok=True)
    load = Load(directory / "requests.jsonl", log)
    load.out.unlink(missing_ok=True)
    enter = [] if network_of is None else ["nsenter", "-n", "-t", str(network_of), "--"]
    with subprocess.Popen(
        [*enter, sys.executable, "-m", "load.generator", site, load.out, str(scale), client],
        cwd=TESTS,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    ) as process:
        try:
            deadline = time.monotonic() + 180
            while not written_in(log):  # the load is on when the first slow upload has ended
                assert time.monotonic() < deadline and process.poll() is None, "no load"
                time.sleep(0.05)
            yield load
            process.terminate()
            assert process.wait(180) == 0
        finally:
            process.kill()
