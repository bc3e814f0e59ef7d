"""`make bench-growth`: large things compared with the same things small: times, ratios, and the tool's memory.

Many releases and a long journal, a large jar, a large repository, many connections to nginx. Two sandboxes
do the same by turns, so that whatever else the machine does affects both.
`python bench/growth.py --help`
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import msgspec
from figures import Results, arguments, by_turns, chosen, ran

from deploy_clojars import sandbox
from deploy_clojars.host.journal import Event, HostVersions

TOOL = str(Path(sys.executable).with_name("deploy-clojars"))
ROUNDS = 3
BOUND = 2.0  # large to small
MEGABYTES = 60  # of the tool's memory

RELEASES, LINES = 10_000, 100_000
JAR_BYTES = 500_000_000
TAGS, TAG_BYTES = 5_000, 200_000  # 1 GB
CONNECTIONS = 50_000
SMALL = 10

OLD, NEW, THIRD = "0.1.0", "0.2.0", "0.3.0"  # tags of the sandbox


class Place:
    """A sandbox with NEW in production, and OLD before it."""

    def __init__(self, directory: Path) -> None:
        self.made = sandbox.start(directory)
        self.peak = 0  # of the tool's memory, in bytes
        self.seconds(("deploy", OLD, "--yes"))
        self.seconds(("deploy", NEW, "--yes"))

    def seconds(self, words: Sequence[str | Path]) -> float:
        """How long a command takes; it must succeed."""
        done = ran([TOOL, "-c", self.made.config, *words])
        if done.status != 0:
            raise SystemExit(f"{words}: exit status {done.status}\n{done.said}")
        self.peak = max(self.peak, done.peak)
        return done.seconds

    def jar(self, version: str) -> Path:
        """The file of a release."""
        return self.made.releases / f"clojars-web-{version}-standalone.jar"

    @property
    def journal(self) -> Path:
        """The journal's file."""
        return self.made.home / "deploy" / "journal.jsonl"

    def last_steps(self) -> dict[str, float]:
        """The seconds of each step of the last run."""
        lines = self.journal.read_bytes().splitlines()
        events = [msgspec.json.decode(line, type=Event) for line in lines[-100:]]
        steps: dict[str, float] = defaultdict(float)
        for each in events:
            if each.run == events[-1].run and each.event == "done":
                steps[each.step or ""] += each.seconds or 0.0
        return steps


@contextmanager
def two_places(directory: Path) -> Iterator[tuple[Place, Place]]:
    """Two sandboxes: the one that stays small, and the other."""
    places = directory / "small", directory / "large"
    try:
        small, large = map(Place, places)
        yield small, large
    finally:
        for place in places:
            if place.exists():
                sandbox.stop(place)
                shutil.rmtree(place)


def both(
    results: Results, rounds: int, what: str, of: Callable[[Place], float], places: Sequence[Place],
    at_most: float | None = BOUND,
) -> None:  # fmt: skip
    """Measures it in both places by turns, and adds the seconds and the ratio."""
    small, large = places
    found = by_turns(rounds, {"small": partial(of, small), "large": partial(of, large)})
    results.add(f"{what}: small", found["small"], "s")
    results.ratio(f"{what}: large / small", found["large"], found["small"], at_most)


def memory(results: Results, place: Place) -> None:
    """Adds the tool's peak memory in a place."""
    results.add("the tool's memory at its peak", [place.peak / 1e6], "MB", MEGABYTES)


def require_disk(directory: Path, size: float) -> None:
    """Ends the bench if there is no room for what it creates."""
    free = shutil.disk_usage(directory).free
    if free < 1.2 * size:
        raise SystemExit(f"{directory}: {size / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB free")


# --- releases and journal -------------------------------------------------------------------------


def history(results: Results, directory: Path, rounds: int, scale: float) -> None:
    """10,000 releases and 100,000 lines of the journal: compared with 10 of each."""
    commands = [
        (name, *more) for name in ("status", "releases", "history") for more in ((), ("--json",))
    ]
    with two_places(directory) as (small, large):
        texts = {
            small: grown(small, SMALL, SMALL),
            large: grown(large, int(RELEASES * scale), int(LINES * scale)),
        }
        places = small, large
        for words in (*commands, ("rollback", NEW, "--yes")):
            what = " ".join(words) if words[0] != "rollback" else "rollback, nothing to do"
            both(results, rounds, what, partial(Place.seconds, words=words), places)

        def there_and_back(place: Place) -> float:
            taken = sum(place.seconds(("rollback", tag, "--yes")) for tag in (OLD, NEW))
            place.journal.write_bytes(texts[place])
            return taken

        both(results, max(1, rounds // 2), "rollback, there and back", there_and_back, places)
        memory(results, large)


def grown(place: Place, releases: int, lines: int) -> bytes:
    """Gives the place that many releases and lines; returns the journal's text."""
    versions = [f"0.0.{number}" for number in range(releases - 2)]
    sizes = {tag: place.jar(tag).stat().st_size for tag in (OLD, NEW)}
    for version in versions:
        place.jar(version).write_bytes(b"never read")
    if lines < 3 * releases:
        versions = []  # they are there, and the journal does not know them
    a_run = lines // (len(versions) + 2)
    text = b"".join(
        msgspec.json.encode(event) + b"\n"
        for version in [*versions, OLD, NEW]
        for event in deploy(version, a_run, sizes.get(version, len(b"never read")))
    )
    place.journal.write_bytes(text)
    found = text.count(b"\n")
    assert abs(found - lines) <= lines / 10, f"{found} lines"
    return text


def deploy(version: str, lines: int, size: int) -> Iterator[Event]:
    """That many lines of a deploy, at least five; the others are those of its steps."""
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


# --- a large jar ----------------------------------------------------------------------------------


def jar(results: Results, directory: Path, rounds: int, scale: float) -> None:
    """A jar of 500 MB of random bytes: compared with the same application without them."""
    size = int(JAR_BYTES * scale)
    require_disk(directory, 3 * size)
    with two_places(directory) as (small, large):
        given = {small: directory / "small.jar", large: directory / "large.jar"}
        for file in given.values():
            shutil.copyfile(small.jar(NEW), file)
        with zipfile.ZipFile(given[large], "a") as archive, archive.open("blob", "w") as blob:
            for _ in range(size // 1_000_000):
                blob.write(os.urandom(1_000_000))
        again: list[float] = []

        def deployed(place: Place) -> float:
            taken = place.seconds(("deploy", "9.0.0", "--jar", given[place], "--yes"))
            place.seconds(("rollback", NEW, "--yes"))
            if place is large:
                again.append(place.seconds(("rollback", "9.0.0", "--yes")))
                place.seconds(("rollback", NEW, "--yes"))
            place.jar("9.0.0").unlink()
            return taken

        def plainly() -> float:
            file = directory / "copy.jar"
            commands = f"cp {given[large]} {file} && sync {file} && sha256sum {file}"
            taken = ran(["sh", "-c", commands]).seconds
            file.unlink()
            return taken

        turns: dict[str, Callable[[], float]] = {
            "small": partial(deployed, small), "large": partial(deployed, large), "plain": plainly,
        }  # fmt: skip
        found = by_turns(max(1, rounds // 2), turns)
        results.add("deploy --jar: small", found["small"], "s")
        results.ratio("deploy --jar: large / small", found["large"], found["small"])
        more = [one - other for one, other in zip(found["large"], found["small"], strict=True)]
        results.add("what the bytes add", more, "s")
        what = "what they add / cp, sync and sha256sum of the jar"
        results.ratio(what, more, found["plain"], BOUND)
        back = [small.seconds(("rollback", tag, "--yes")) for tag in (OLD, NEW)]
        results.ratio("rollback to it: large / small", again, [sum(back) / 2] * len(again), BOUND)
        memory(results, large)


# --- a large repository ---------------------------------------------------------------------------


def repository(results: Results, directory: Path, rounds: int, scale: float) -> None:
    """A repository of 1 GB with 5,000 tags: compared with one that has only the application."""
    tags = int(TAGS * scale)
    require_disk(directory, 4 * tags * TAG_BYTES)
    with two_places(directory) as (small, large):
        add_tags(large.made.repository, tags)
        cloned = directory / "clone.git"

        def first(place: Place) -> float:
            """How long the fetch takes without a mirror."""
            shutil.rmtree(place.made.home / "deploy" / "mirror.git")
            deployed(place)
            return fetched[place]

        def clone() -> float:
            words = ["git", "clone", "--quiet", "--mirror", "--no-local"]
            taken = ran([*words, large.made.repository, cloned]).seconds
            shutil.rmtree(cloned)
            return taken

        fetched: dict[Place, float] = {}

        def deployed(place: Place) -> float:
            taken = place.seconds(("deploy", THIRD, "--yes"))
            fetched[place] = place.last_steps()["fetch"]
            place.seconds(("rollback", NEW, "--yes"))
            place.jar(THIRD).unlink()
            return taken

        found = by_turns(1, {"tool": partial(first, large), "git": clone})
        results.add("git clone --mirror", found["git"], "s")
        results.ratio("the first fetch / git clone --mirror", found["tool"], found["git"], BOUND)
        places = small, large
        both(results, max(1, rounds // 2), "deploy with a mirror", deployed, places)
        dry_run = ("deploy", THIRD, "--dry-run")
        both(results, rounds, "deploy --dry-run", lambda place: place.seconds(dry_run), places)
        both(results, rounds, "TAB", pressed_tab, places, None)
        memory(results, large)


def add_tags(repository: Path, tags: int) -> None:
    """Adds a history of that many tagged commits, each with a file of random bytes."""
    dice = random.Random(0)
    # Neither compressed nor stored as deltas: random bytes gain nothing from either.
    words = ["git", "-c", "core.compression=0", "fast-import", "--quiet", "--depth=0"]
    with subprocess.Popen(words, cwd=repository, stdin=subprocess.PIPE) as git:
        assert git.stdin is not None
        git.stdin.write(b"reset refs/heads/history\n")
        for number in range(tags):
            git.stdin.write(
                b"commit refs/heads/history\ncommitter A <a@example.org> %d +0000\ndata 1\nx\n"
                b"M 644 inline file-%d\ndata %d\n%b\n"
                % (1_000_000_000 + number, number % 10, TAG_BYTES, dice.randbytes(TAG_BYTES))
            )
            git.stdin.write(b"reset refs/tags/9.%d\nfrom refs/heads/history\n\n" % number)
    assert git.returncode == 0
    subprocess.run(["git", "pack-refs", "--all"], cwd=repository, check=True)


def pressed_tab(place: Place) -> float:
    """A press of TAB after `deploy 0.`, in seconds."""
    environment = {
        **os.environ,
        "DEPLOY_CLOJARS_CONFIG": str(place.made.config),
        "_DEPLOY_CLOJARS_COMPLETE": "bash_complete",
        "COMP_WORDS": "deploy-clojars deploy 0.",
        "COMP_CWORD": "2",
    }
    done = ran([TOOL], environment)
    place.peak = max(place.peak, done.peak)
    return done.seconds


# --- many connections -----------------------------------------------------------------------------


# The connections of one process: often not even root can raise the limit of descriptors.
HELD = resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 2000

HOLD = """
import resource, socket, sys
port, number, source = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
held = [socket.create_connection(("127.0.0.1", port), 60, (source, 0)) for _ in range(number)]
print("open", flush=True)
sys.stdin.read()
"""


def connections(results: Results, directory: Path, rounds: int, scale: float) -> None:
    """50,000 connections to nginx while it drains: compared with 10."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # nginx inherits it
    wanted = int(CONNECTIONS * scale)
    with two_places(directory) as (small, large), ExitStack() as open_ones:
        for place, number in ((small, SMALL), (large, wanted)):
            allow_connections(place, number)
            open_ones.enter_context(connected(place, number))
            print(f"  {accepted(place.made.ports.site, number):,} connections to nginx", flush=True)
        drains: dict[Place, list[float]] = {small: [], large: []}

        def there_and_back(place: Place) -> float:
            taken = 0.0
            for tag in (OLD, NEW):
                with asked_meanwhile(place):
                    taken += place.seconds(("rollback", tag, "--yes"))
                drains[place].append(place.last_steps()["drain"])
            return taken

        both(results, rounds, "rollback, there and back", there_and_back, (small, large))
        results.add("its drains: small", drains[small], "s")
        results.ratio("its drains: large / small", drains[large], drains[small], BOUND)
        memory(results, large)


def allow_connections(place: Place, number: int) -> None:
    """Lets the place's nginx accept that many connections, and keep them while they are idle."""
    file = place.made.directory / "nginx.conf"
    text = file.read_text(encoding="utf-8")
    # Each worker accepts its own share (`reuseport`), at once: a connection that finds the queue full is lost.
    workers = number // (HELD * 3 // 4) + 1
    events = f"    worker_connections {HELD};\n    multi_accept on;\n"
    for old, new in (
        ("worker_processes 1;", f"worker_processes {workers};"),
        ("events {\n", f"events {{\n{events}"),
        ("http {\n", "http {\n    client_header_timeout 1h;\n"),
    ):
        text = text.replace(old, new)
    file.write_text(text, encoding="utf-8")
    site = place.made.directory / "nginx-site.conf"
    listen = f"listen 127.0.0.1:{place.made.ports.site}"
    text = site.read_text(encoding="utf-8").replace(
        f"{listen};", f"{listen} reuseport backlog=4096;"
    )
    site.write_text(text, encoding="utf-8")
    subprocess.run(
        ["nginx", "-p", "./", "-c", "nginx.conf", "-e", "logs/nginx.log", "-s", "reload"],
        cwd=place.made.directory, check=True,
    )  # fmt: skip


@contextmanager
def connected(place: Place, number: int) -> Iterator[None]:
    """Keeps that many connections to the place's site open while the block runs."""
    port = str(place.made.ports.site)
    with ExitStack() as processes:
        holders = []
        for each, first in enumerate(range(0, number, HELD)):
            # Each loopback address has its own ports.
            words = [port, str(min(HELD, number - first)), f"127.0.0.{2 + each}"]
            holder = subprocess.Popen(
                [sys.executable, "-c", HOLD, *words],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
            holders.append(processes.enter_context(holder))
        try:
            for holder in holders:
                assert holder.stdout is not None
                if holder.stdout.readline() != b"open\n":
                    raise SystemExit("the connections cannot be opened")
            yield
        finally:
            for holder in holders:
                assert holder.stdin is not None
                holder.stdin.close()


def accepted(port: int, wanted: int) -> int:
    """How many connections to the port its program has accepted, by the kernel's table.

    Waits up to a minute for all of them: the kernel takes them before the program accepts them.
    """
    local = f"0100007F:{port:04X}"
    deadline = time.monotonic() + 60
    while True:
        with open("/proc/self/net/tcp", encoding="ascii") as lines:
            rows = map(str.split, lines)
            found = sum(row[1] == local and row[3] == "01" and row[9] != "0" for row in rows)
        if found >= wanted or time.monotonic() > deadline:
            return found
        time.sleep(1)


@contextmanager
def asked_meanwhile(place: Place) -> Iterator[None]:
    """Requests something slow from the site, again and again, while the block runs."""
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            url = f"http://127.0.0.1:{place.made.ports.site}/slow?ms=200"
            with urllib.request.urlopen(url, timeout=30) as answer:
                answer.read()

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def main() -> None:
    """Measures one part after the other."""
    parser = arguments("make bench-growth", ROUNDS)
    parser.add_argument("--scale", type=float, default=1.0, help="less than 1 while developing")
    words = parser.parse_args()
    results = Results()
    with tempfile.TemporaryDirectory(prefix="growth-") as scratch:
        for part in chosen(words.only, history, jar, repository, connections):
            part(results, Path(scratch), words.rounds, words.scale)
    results.end(words.json)


if __name__ == "__main__":
    main()
