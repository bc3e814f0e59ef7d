"""`make bench`: what the tool costs, as ratios to what was measured in the same run.

`python bench/speed.py [ROUNDS]`; medians. Times are in seconds. Nothing else should run meanwhile.
"""

from __future__ import annotations

import http.client
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from clojure_repository import ClojureRepository as Tags
from little_host import LittleHost, wait_for
from playground import clojure_host

ROUNDS = 5
FIRST, SECOND = Tags.FIRST, Tags.SECOND
SETTLE = 0.3  # of the little host's configuration
PLAIN = Path(__file__).with_name("plain-deploy")


def seconds(argv: list[str], env: dict[str, str] | None = None) -> float:
    """How long a command takes."""
    started = time.perf_counter()
    subprocess.run(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - started


def say(what: str, value: float, unit: str, bound: str = "") -> None:
    """One line of the result."""
    print(f"{what:<66} {value:>8.2f} {unit:<3} {bound}", flush=True)


# --- start ------------------------------------------------------------------------------------


def start(host: LittleHost, rounds: int) -> None:
    """`--help` and `status` against an import of click, by turns."""
    tool = host.command[0]
    python = str(Path(tool).with_name("python"))
    commands = {
        "click": [python, "-c", "import click"],
        "help": [tool, "--help"],
        "status": [tool, "status"],
    }
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds * 4):
        for name, argv in commands.items():
            taken[name].append(seconds(argv, host.whole_environment))
    median = {name: statistics.median(times) for name, times in taken.items()}
    say("python -c 'import click'", median["click"], "s")
    say("--help / import click", median["help"] / median["click"], "x", "(<= 2)")
    say("status / import click", median["status"] / median["click"], "x", "(<= 4)")


# --- deploy and rollback ----------------------------------------------------------------------


@contextmanager
def until_primary_serves(host: LittleHost, version: str) -> Iterator[Callable[[], float]]:
    """How long it takes from now on until the primary serves the version."""
    started = time.perf_counter()
    taken: list[float] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            if host.version("primary") == version:
                taken.append(time.perf_counter() - started)
                return
            time.sleep(0.02)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield lambda: taken[0]
    finally:
        stop.set()
        thread.join()


COMMITS, COMMIT_BYTES = 2000, 8000  # of the repository's history


def add_history(repository: Path) -> None:
    """Years of work, which a fresh clone has to fetch: a branch and a tag of random files."""
    dice = random.Random(0)
    commands = [b"reset refs/heads/history\n"]
    for number in range(COMMITS):
        content = dice.randbytes(COMMIT_BYTES)
        commands += [
            b"commit refs/heads/history\n",
            b"committer A <a@example.org> %d +0000\n" % (1_000_000_000 + number),
            b"data 1\nx\n",
            b"M 644 inline file-%d\ndata %d\n" % (number % 100, COMMIT_BYTES) + content + b"\n",
        ]
    subprocess.run(
        ["git", "fast-import", "--quiet"], cwd=repository, input=b"".join(commands), check=True
    )
    subprocess.run(["git", "tag", "history", "history"], cwd=repository, check=True)
    size = COMMITS * COMMIT_BYTES / 1e6
    print(f"the repository has {COMMITS} commits of {size:.0f} MB beside the application")


def plainly(host: LittleHost, repository: str, tag: str) -> None:
    """The plain script."""
    words = [repository, tag, host.directory / "work", host.releases, host.upstart.bin]
    done = subprocess.run(
        [PLAIN, *map(str, words), *map(str, host.ports[:2])],
        env=host.whole_environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(done.stderr.decode())


def back_to_first(host: LittleHost) -> None:
    """As before a deploy: 0.1.0 everywhere, no 0.2.0, and a journal that agrees."""
    host.done("rollback", FIRST, "--yes")
    (host.releases / f"clojars-web-{SECOND}-standalone.jar").unlink(missing_ok=True)


def deploys(host: LittleHost, rounds: int) -> None:
    """The tool and the plain script by turns, on the same repository and application."""
    host.done("rollback", FIRST, "--yes")
    tool, plain, own, starts, back, plain_back = ([] for _ in range(6))
    for _ in range(rounds):
        with until_primary_serves(host, SECOND) as taken:
            host.done(SECOND, "--yes")
        tool.append(taken() - SETTLE)
        steps = {
            each["step"]: each["seconds"] for each in last_run(host) if each["event"] == "done"
        }
        with until_primary_serves(host, FIRST) as taken:
            host.done("rollback", FIRST, "--yes")
        back.append(taken() - SETTLE)
        back_to_first(host)

        with until_primary_serves(host, SECOND) as taken:
            plainly(host, host.repository_url, SECOND)
        plain.append(taken())
        with until_primary_serves(host, FIRST) as taken:
            plainly(host, "", FIRST)
        plain_back.append(taken())
        starts.append(plain_back[-1])  # it does nothing else
        own.append(tool[-1] - steps["test"] - steps["build"] - starts[-1])
        host.done("rollback", FIRST, "--yes")
        (host.releases / f"clojars-web-{SECOND}-standalone.jar").unlink()
    median = statistics.median
    say("deploy until the primary serves, by the tool", median(tool), "s")
    say("deploy until the primary serves, by the plain script", median(plain), "s")
    say("  tool / plain script", median(tool) / median(plain), "x", "(<= 1.00)")
    say("  the backup's settle, left out above", SETTLE, "s", "(3 s by default)")
    print("  (no nginx here, so no drain; its quiet spell is 1 s by default)")
    say("  the tool's own share", median(own), "s", "(< 1.5)")
    say("rollback until the primary serves, by the tool", median(back), "s")
    say("  tool / plain script, which is two JVM starts", median(back) / median(starts), "x")


def last_run(host: LittleHost) -> list[dict[str, Any]]:
    """The journal's lines of the last run."""
    events = host.events
    return [each for each in events if each["run"] == events[-1]["run"]]


# --- the live site beside a build ---------------------------------------------------------------


def latency(host: LittleHost, rounds: int) -> None:
    """The 99th percentile of the site's answers, idle, and beside a build with and without nice."""
    idle = percentile(answers_while(host, lambda: time.sleep(5)))
    say("p99 of the live site's answers, idle", idle * 1000, "ms")
    for nice in (10, 0):
        host.options["build"] = f"nice = {nice}"
        host.write_config()
        found = []
        for _ in range(max(rounds // 2, 1)):
            found += answers_while(host, lambda: host.run(Tags.FAILING_TESTS, "--yes"))
        value = percentile(found)
        say(f"p99 while a build runs, build.nice = {nice}", value * 1000, "ms")
        say("  / idle", value / idle, "x")
    del host.options["build"]
    host.write_config()


def percentile(times: list[float]) -> float:
    return statistics.quantiles(times, n=100)[98]


def answers_while(host: LittleHost, work: Callable[[], object]) -> list[float]:
    """How long answers took while the work was done, fifty a second."""
    done = threading.Event()

    def run() -> None:
        work()
        done.set()

    thread = threading.Thread(target=run)
    thread.start()
    times = []
    connection = http.client.HTTPConnection("127.0.0.1", host.ports[0], timeout=30)
    while not done.is_set():
        started = time.perf_counter()
        connection.request("GET", "/version")
        connection.getresponse().read()
        times.append(time.perf_counter() - started)
        time.sleep(0.02)
    thread.join()
    return times


# --- memory -------------------------------------------------------------------------------------


def memory(host: LittleHost) -> None:
    """The tool's own peak while a build prints 100 MB."""
    host.options["build"] = 'test = "yes 0123456789 | head -c 100000000; false"'
    host.write_config()
    process = subprocess.Popen(
        [*host.command, SECOND, "--yes"],
        env=host.whole_environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, peak_of(process.pid))
        time.sleep(0.01)
    assert process.returncode == 5
    say("the tool's own peak while a build prints 100 MB", peak / 1e6, "MB", "(< 60)")


def peak_of(pid: int) -> int:
    """The peak of a process's memory so far, in bytes."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    sizes = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(next(sizes, "0")) * 1024


def main() -> None:
    """Measures one after the other."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    with tempfile.TemporaryDirectory(prefix="speed-") as scratch:
        directory = Path(scratch)
        with clojure_host(directory) as (host, repository):
            print(f"medians of {rounds}; {os.cpu_count()} cores")
            add_history(repository.directory)
            start(host, rounds)
            deploys(host, rounds)
            wait_for(lambda: host.status["ok"], "all is well")
            latency(host, rounds)
            memory(host)


if __name__ == "__main__":
    main()
