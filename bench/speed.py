"""`make bench`: what the tool costs, next to a plain script and to others of its kind, in one run.

Times are in seconds, by turns (A B B A), as medians with their quartiles; ratios are taken pair by pair.
Nothing else should run meanwhile. `python bench/speed.py --help`
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import aiohttp

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from clojure_repository import ClojureRepository as Tags
from figures import Results, arguments, by_turns, chosen, ran
from front import in_front_of
from little_host import LittleHost, wait_for
from playground import clojure_host

from deploy_clojars import config

ROUNDS = 3
FIRST, SECOND = Tags.FIRST, Tags.SECOND
SETTLE = 0.3  # of the little host's configuration
HERE = Path(__file__).parent
PLAIN = HERE / "plain-deploy"

# They are installed for the bench alone, beside the test's own environment.
PEERS = Path(sys.prefix) / "peers"
PACKAGES = ("fabric", "pyinfra", "ansible-core")
PEER_COMMANDS: dict[str, list[str | Path]] = {
    "fabric": [PEERS / "bin/fab", "--search-root", HERE / "peers", "deploy"],
    "pyinfra": [PEERS / "bin/pyinfra", "-y", "@local", HERE / "peers/deploy.py"],
    "ansible": [PEERS / "bin/ansible-playbook", "-i", "localhost,", HERE / "peers/playbook.yml"],
}
PEER_ROUNDS = 2

SITE_RATE = 200  # requests a second
IDLE_SECONDS = 10.0


# --- start ------------------------------------------------------------------------------------


def start(results: Results, host: LittleHost, rounds: int) -> None:
    """How long the tool takes to start: against an import of click."""
    tool = host.command[0]
    python = str(Path(tool).with_name("python"))
    commands = {
        "click": [python, "-c", "import click"],
        "help": [tool, "--help"],
        "status": [tool, "status"],
    }
    turns = {name: partial(seconds, argv, host) for name, argv in commands.items()}
    by_turns(1, turns)  # what is read for the first time
    found = by_turns(rounds * 5, turns)
    results.add("python -c 'import click'", found["click"], "s")
    results.ratio("--help / import click", found["help"], found["click"], 1.15)
    results.ratio("status / import click", found["status"], found["click"], 3.0)


def seconds(argv: list[str], host: LittleHost) -> float:
    """How long a command takes."""
    return ran(argv, host.whole_environment).seconds


# --- deploy -----------------------------------------------------------------------------------


@contextmanager
def until_primary_serves(host: LittleHost, version: str) -> Iterator[Callable[[], float]]:
    """How long it takes from now on until the primary serves the version, after it did not."""
    started = time.perf_counter()
    taken: list[float] = []
    stop = threading.Event()

    def look() -> None:
        was_away = False
        while not stop.is_set():
            serves = host.version("primary") == version
            if serves and was_away:
                taken.append(time.perf_counter() - started)
                return
            was_away = was_away or not serves
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


def plain_words(host: LittleHost, repository: str, tag: str) -> list[str]:
    """The plain script's arguments, and its peers'."""
    words = [repository, tag, host.directory / "work", host.releases, host.upstart.bin]
    return [*map(str, words), *map(str, host.ports[:2])]


def by_script(host: LittleHost, repository: str, tag: str) -> float:
    """Seconds until the primary serves, by the plain script."""
    with until_primary_serves(host, tag) as taken:
        succeed([PLAIN, *plain_words(host, repository, tag)], host.whole_environment)
    return taken()


def by_peer(host: LittleHost, name: str) -> float:
    """Seconds until the primary serves, by one of the peers."""
    environment = {
        **host.whole_environment,
        "DEPLOY": " ".join(plain_words(host, host.repository_url, SECOND)),
        "ANSIBLE_HOME": str(host.directory / "ansible"),
        "PATH": f"{PEERS / 'bin'}:{os.environ['PATH']}",
    }
    with until_primary_serves(host, SECOND) as taken:
        succeed(PEER_COMMANDS[name], environment)
    return taken()


def succeed(argv: list[str | Path], environment: dict[str, str]) -> None:
    """Runs a command that must end well."""
    done = subprocess.run(
        argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{argv[0]}: {done.stdout}{done.stderr}")


def by_tool(host: LittleHost, *words: str, serves: str) -> float:
    """Seconds until the primary serves, by the tool, without the time that the backup settles."""
    with until_primary_serves(host, serves) as taken:
        host.done(*words, "--yes")
    return taken() - SETTLE


def back_to_first(host: LittleHost) -> None:
    """As before a deploy: 0.1.0 everywhere, no 0.2.0, and a journal that agrees."""
    host.done("rollback", FIRST, "--yes")
    release = host.releases / f"clojars-web-{SECOND}-standalone.jar"
    release.unlink(missing_ok=True)


def last_steps(host: LittleHost) -> dict[str, float]:
    """The seconds of each step of the last run, by the journal."""
    events = host.events
    steps: dict[str, float] = defaultdict(float)
    for each in events:
        if each["run"] == events[-1]["run"] and each["event"] == "done":
            steps[each["step"]] += each["seconds"]
    return steps


def deploys(results: Results, host: LittleHost, rounds: int) -> None:
    """A deploy until the primary serves: by the tool, the plain script and others."""
    peers = installed_peers()
    tools = {"tool": "parallel = false", "parallel": "parallel = true"}
    if not knows("build", "parallel"):
        del tools["parallel"]
    steps: dict[str, list[dict[str, float]]] = defaultdict(list)

    def tool(name: str) -> float:
        with having(host, "build", tools[name] if knows("build", "parallel") else ""):
            taken = by_tool(host, SECOND, serves=SECOND)
            steps[name].append(last_steps(host))
            back_to_first(host)
        return taken

    def other(deploy: Callable[[], float]) -> float:
        taken = deploy()
        back_to_first(host)
        return taken

    plainly = partial(other, partial(by_script, host, host.repository_url, SECOND))
    turns: dict[str, Callable[[], float]] = {
        "tool": partial(tool, "tool"), "plain": plainly,
        **{name: partial(tool, name) for name in tools if name != "tool"},
    }  # fmt: skip
    found: dict[str, list[float]] = defaultdict(list)
    by_peers: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds):
        for name, turn in turns.items():
            found[name].append(turn())
        between = []
        if number < PEER_ROUNDS:
            between = [(name, other(partial(by_peer, host, name))) for name in peers]
        for name, turn in reversed(turns.items()):
            found[name].append(turn())
        for name, taken in between:
            # The scripts' turns lie around the peers'.
            by_peers[name].append(taken / statistics.mean(found["plain"][-2:]))
    results.add("the plain script", found["plain"], "s")
    bounds = {"tool": 1.0, "parallel": 0.9}
    for name in tools:
        what = "the tool" if name == "tool" else "the tool, build.parallel"
        results.add(what, found[name], "s")
        results.ratio(f"{what} / the plain script", found[name], found["plain"], bounds[name])
    for name, ratios in by_peers.items():
        results.add(f"{name} / the plain script", ratios, "x")
    print(f"  left out of the tool's: the backup's settle ({SETTLE} s here, 3 s by default)")
    for name in tools:
        own = [taken - working(its) for taken, its in zip(found[name], steps[name], strict=True)]
        what = "own share" if name == "tool" else "own share, build.parallel"
        results.add(f"{what}: all but tests, build and the two starts", own, "s", 0.5)
        timeline(steps[name])


def working(steps: dict[str, float]) -> float:
    """The seconds of a deploy that are not the tool's own: tests, build, and the two starts.

    Of tests and build at the same time the longer one counts.
    """
    builds = steps["test"], steps["build"]
    together = max(builds) if len(steps) and steps.get("parallel") else sum(builds)
    # The primary's settle comes after it serves.
    return together + steps["backup"] - SETTLE + steps["promote"] - SETTLE + steps["drain"]


def timeline(runs: list[dict[str, float]]) -> None:
    """The medians of the steps."""
    medians = {name: statistics.median(each.get(name, 0.0) for each in runs) for name in runs[0]}
    print("  " + ", ".join(f"{name} {taken:.2f}" for name, taken in medians.items()))


def knows(table: str, key: str) -> bool:
    """Whether the configuration has the key."""
    return hasattr(getattr(config.Config(), table, None), key)


@contextmanager
def having(host: LittleHost, table: str, line: str) -> Iterator[None]:
    """The host has this line in its configuration while the block runs."""
    before = host.options.get(table)
    host.options[table] = "\n".join(filter(None, (before, line)))
    host.write_config()
    try:
        yield
    finally:
        if before is None:
            del host.options[table]
        else:
            host.options[table] = before
        host.write_config()


def installed_peers() -> list[str]:
    """The peers, in an environment of their own; none where pip cannot get them."""
    if not (PEERS / "complete").exists():
        venv.create(PEERS, with_pip=True, clear=True)
        pip = str(PEERS / "bin/pip")
        words = [pip, "install", "-qq", "--disable-pip-version-check", *PACKAGES]
        if subprocess.run(words, check=False).returncode != 0:
            print(f"  without {', '.join(PACKAGES)}, which pip cannot install")
            return []
        (PEERS / "complete").touch()
    return [*PEER_COMMANDS]


# --- rollback and restart -----------------------------------------------------------------------


def starts(results: Results, host: LittleHost, rounds: int) -> None:
    """Rollback and restart until the primary serves: a plain script does nothing but the two starts."""
    host.done(SECOND, "--yes")
    rolled_back = {
        "tool": lambda: there_and_back(lambda to: by_tool(host, "rollback", to, serves=to)),
        "script": lambda: there_and_back(partial(by_script, host, "")),
    }
    restarted = {
        "tool": lambda: by_tool(host, "restart", serves=SECOND),
        "script": lambda: by_script(host, "", SECOND),
    }
    for what, turns in (("rollback", rolled_back), ("restart", restarted)):
        found = by_turns(rounds, turns)
        results.add(f"{what} by the script", found["script"], "s")
        results.add(f"{what} by the tool", found["tool"], "s")
        results.ratio(f"{what}, tool / script", found["tool"], found["script"], 1.05)
    back_to_first(host)


def there_and_back(to: Callable[[str], float]) -> float:
    """The mean of both ways."""
    return statistics.mean([to(FIRST), to(SECOND)])


# --- the live site beside a deploy --------------------------------------------------------------


def latency(results: Results, host: LittleHost, rounds: int) -> None:
    """The site's answers during a whole deploy: through nginx, against idle."""
    del rounds  # one is minutes
    lost: dict[str, Counter[str]] = defaultdict(Counter)
    asked: dict[str, int] = defaultdict(int)

    def turn(name: str, work: Callable[[], object]) -> float:
        times, failures = asyncio.run(answers_while(front.site, work))
        lost[name] += failures
        asked[name] += len(times)
        if name != "idle":
            back_to_first(host)
        return statistics.quantiles(times, n=100)[98]

    def tool(nice: int) -> None:
        with having(host, "build", f"nice = {nice}"):
            host.done(SECOND, "--yes")

    work: dict[str, Callable[[], object]] = {
        "idle": lambda: time.sleep(IDLE_SECONDS),
        "nice = 10": lambda: tool(10),
        "nice = 0": lambda: tool(0),
        "script": lambda: by_script(host, host.repository_url, SECOND),
    }
    with in_front_of(host) as front:
        found = by_turns(1, {name: partial(turn, name, does) for name, does in work.items()})
    del host.options["drain"]
    host.write_config()
    results.add("p99 of the answers, idle", [each * 1000 for each in found["idle"]], "ms")
    for name in ("nice = 10", "nice = 0", "script"):
        what = f"by the tool, build.{name}" if name != "script" else "by the plain script"
        results.ratio(f"p99 during a deploy {what} / idle", found[name], found["idle"])
        print(f"  {asked[name]:,} requests; failed: {dict(lost[name]) or 'none'}")


async def answers_while(site: str, work: Callable[[], object]) -> tuple[list[float], Counter[str]]:
    """How long the answers took while the work was done, also bad ones, and what was bad.

    Each request has a moment at which it is due, and its time runs from then: a site that stalls is
    not asked less.
    """
    times: list[float] = []
    failures: Counter[str] = Counter()
    timeout = aiohttp.ClientTimeout(total=30)

    async def ask(due: float) -> None:
        try:
            async with session.get(f"{site}/version") as answer:
                await answer.read()
                if answer.status != 200:
                    failures[str(answer.status)] += 1
        except (aiohttp.ClientError, TimeoutError) as error:
            failures[type(error).__name__] += 1
        times.append(loop.time() - due)

    loop = asyncio.get_running_loop()
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=timeout
    ) as session:
        working = asyncio.ensure_future(asyncio.to_thread(work))
        due = loop.time()
        asking: set[asyncio.Task[None]] = set()
        while not working.done():
            due += 1 / SITE_RATE
            await asyncio.sleep(due - loop.time())
            task = asyncio.create_task(ask(due))
            asking.add(task)
            task.add_done_callback(asking.discard)
        await asyncio.gather(*asking)
        await working
    return times, failures


# --- memory -------------------------------------------------------------------------------------


def memory(results: Results, host: LittleHost, rounds: int) -> None:
    """The tool's own memory: at its peak, while a build prints 100 MB."""
    del rounds
    with having(host, "build", 'test = "yes 0123456789 | head -c 100000000; false"'):
        failed = ran([*host.command, SECOND, "--yes"], host.whole_environment)
    if failed.status != 5:
        raise SystemExit(failed.said)
    results.add("peak of memory", [failed.peak / 1e6], "MB", 60)


def main() -> None:
    """Measures one part after the other."""
    words = arguments("make bench", ROUNDS).parse_args()
    results = Results()
    with tempfile.TemporaryDirectory(prefix="speed-") as scratch:
        directory = Path(scratch)
        with clojure_host(directory) as (host, repository):
            size = COMMITS * COMMIT_BYTES / 1e6
            print(f"{os.cpu_count()} cores; {COMMITS} commits of {size:.0f} MB in the repository")
            add_history(repository.directory)
            host.done("rollback", FIRST, "--yes")  # it adopts the host
            for part in chosen(words.only, start, deploys, starts, latency, memory):
                part(results, host, words.rounds)
                wait_for(lambda: host.status["ok"], "all is well")
    results.end(words.json)


if __name__ == "__main__":
    main()
