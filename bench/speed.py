"""`make bench`: what the tool costs, compared with a plain script and with similar tools, in one run.

Times are in seconds, measured by turns (A B B A), as medians with their quartiles; ratios are taken pair by
pair. Nothing else should run at the same time. `python bench/speed.py --help`
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
from collections.abc import Callable, Iterable, Iterator
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
from deploy_clojars.host.host import Host

ROUNDS = 2
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
# The script of `setup` that starts a JVM with an archive of the release's classes.
JAVA = HERE.parent / "etc/lib/clojars/java"

SITE_RATE = 200  # requests a second
IDLE_SECONDS = 10.0


# --- start ------------------------------------------------------------------------------------


def start(results: Results, host: LittleHost, rounds: int) -> None:
    """How long the tool takes to start: compared with an import of click."""
    tool = host.command[0]
    python = str(Path(tool).with_name("python"))
    commands = {
        "click": [python, "-c", "import click"],
        "help": [tool, "--help"],
        "status": [tool, "status"],
    }
    turns = {name: partial(seconds, argv, host) for name, argv in commands.items()}
    by_turns(1, turns)  # what is read for the first time
    found = by_turns(rounds * 10, turns)
    results.add("python -c 'import click'", found["click"], "s")
    results.ratio("--help / import click", found["help"], found["click"], 1.15)
    results.ratio("status / import click", found["status"], found["click"], 3.0)


def seconds(argv: list[str], host: LittleHost) -> float:
    """How long a command takes."""
    return ran(argv, host.whole_environment).seconds


# --- deploy -----------------------------------------------------------------------------------


@contextmanager
def until_primary_serves(host: LittleHost, version: str) -> Iterator[Callable[[], float]]:
    """How long it takes from now until the primary serves the version, having not served it in between."""
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
    """Runs a command that must succeed."""
    done = subprocess.run(
        argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{argv[0]}: {done.stdout}{done.stderr}")


def by_tool(host: LittleHost, *words: str, serves: str) -> float:
    """Seconds until the primary serves, by the tool, without the backup's settle."""
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
    steps: dict[str, list[dict[str, float]]] = defaultdict(list)

    def by_tool_once(parallel: str) -> float:
        with having(host, "build", f"parallel = {parallel}"):
            taken = by_tool(host, SECOND, serves=SECOND)
        steps[parallel].append(last_steps(host))
        return taken

    turns: dict[str, Callable[[], float]] = {
        "false": partial(by_tool_once, "false"),
        "script": partial(by_script, host, host.repository_url, SECOND),
        "true": partial(by_tool_once, "true"),
    }
    peers: dict[str, Callable[[], float]] = {
        name: partial(by_peer, host, name) for name in installed_peers()
    }
    found: dict[str, list[float]] = defaultdict(list)

    def take(turns: Iterable[tuple[str, Callable[[], float]]]) -> None:
        for name, turn in turns:
            found[name].append(turn())
            back_to_first(host)

    for _ in range(rounds):
        take(turns.items())
        take(peers.items())
        take(reversed(turns.items()))
    script = found["script"]
    results.add("the plain script", script, "s")
    for parallel, bound in (("false", 1.0), ("true", 0.9)):
        results.add(f"the tool, build.parallel = {parallel}", found[parallel], "s")
        results.ratio("  / the plain script", found[parallel], script, bound)
        own = [
            taken - others(its, at_once=parallel == "true")
            for taken, its in zip(found[parallel], steps[parallel], strict=True)
        ]
        results.add("  own share: all but tests, build and the two starts", own, "s", 0.5)
        timeline(steps[parallel])
    around = [statistics.mean(pair) for pair in zip(script[::2], script[1::2], strict=True)]
    for name in peers:
        results.ratio(f"{name} / the plain script", found[name], around)
    print(f"  left out of the tool's: the backup's settle ({SETTLE} s here, 3 s by default)")


def others(steps: dict[str, float], *, at_once: bool) -> float:
    """The seconds of a deploy that are not the tool's own: tests, build, the two starts and the drain.

    If tests and build run at the same time, only the longer one counts.
    """
    building = (max if at_once else sum)([steps["test"], steps["build"]])
    # The primary serves before it settles.
    starting = steps["backup"] - SETTLE + steps["primary"] - SETTLE
    return building + starting + steps["drain"]


def timeline(runs: list[dict[str, float]]) -> None:
    """Prints the medians of the steps."""
    medians = {name: statistics.median(each.get(name, 0.0) for each in runs) for name in runs[0]}
    print("  steps: " + ", ".join(f"{name} {taken:.2f}" for name, taken in medians.items()))


@contextmanager
def having(host: LittleHost, table: str, line: str) -> Iterator[None]:
    """Adds this line to the host's configuration while the block runs."""
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
    """The names of the peers, installed in a separate environment; none if pip cannot get them."""
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
    """Rollback and restart until the primary serves: compared with a script that only does the two starts."""
    host.done(SECOND, "--yes")
    with_archives = class_data_flag(host)
    have_archives(host, with_archives)
    rollback = ("rollback", lambda to: by_tool(host, "rollback", to, serves=to))
    restart = ("restart", lambda to: by_tool(host, "restart", serves=to))

    def turn(measure: Callable[[], float], *, archives: bool = False) -> float:
        if archives:
            with_archives.touch()
        try:
            return measure()
        finally:
            with_archives.unlink(missing_ok=True)

    for what, by in (rollback, restart):
        both = there_and_back if what == "rollback" else lambda by: by(SECOND)
        found = by_turns(
            rounds,
            {
                "tool": partial(turn, partial(both, by)),
                "script": partial(turn, partial(both, partial(by_script, host, ""))),
                "archives": partial(turn, partial(both, by), archives=True),
            },
        )
        results.add(f"{what} by the script", found["script"], "s")
        results.ratio("  the tool / the script", found["tool"], found["script"], 1.05)
        results.ratio("  with class data / the script", found["archives"], found["script"], 0.85)
    back_to_first(host)


def class_data_flag(host: LittleHost) -> Path:
    """A file; while it exists, both instances start with archives, if there are any."""
    flag, program = host.directory / "class-data", host.directory / "java"
    program.write_text(f'#!/bin/sh\n[ -e {flag} ] && exec {JAVA} "$@"\nexec java "$@"\n')
    program.chmod(0o755)
    host.launcher = host.launcher.replace("java", str(program), 1)
    for number, job in enumerate((host.primary, host.backup)):
        host.upstart.install(job, host.job_file(job, *host.ports[number::2]))
        host.control("stop", job)  # a restart would keep the old definition
        host.control("start", job)
        wait_for(lambda: None not in host.versions, "both serve")
    return flag


def have_archives(host: LittleHost, flag: Path) -> None:
    """Has the tool make the archives of both releases, as it does while it asks."""
    flag.touch()
    releases = Host(config.load(host.config)).releases
    for version, other in ((FIRST, SECOND), (SECOND, FIRST)):
        host.done("rollback", other, "--yes")
        jar = releases.path(version).rename(host.directory / "moved.jar")
        with host.typing("deploy", version, "--jar", str(jar)) as terminal:
            terminal.asked()
            wait_for(partial(has_archive, host, version), "the archive is there")
            terminal.types("yes")
            terminal.ends(0)
    flag.unlink()


def has_archive(host: LittleHost, version: str) -> bool:
    """Whether there is class data of the release."""
    return any(host.releases.glob(f"clojars-web-{version}-*.jsa"))


def there_and_back(to: Callable[[str], float]) -> float:
    """The mean of both directions."""
    return statistics.mean([to(FIRST), to(SECOND)])


# --- the live site beside a deploy --------------------------------------------------------------


def latency(results: Results, host: LittleHost, rounds: int) -> None:
    """The site's response times during a whole deploy: through nginx, compared with idle."""
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
    """How long the answers took while the work was done, failures included, and which failures there were.

    Each request is due at a fixed moment, and its time runs from then: a site that stalls does not get
    fewer requests.
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
    """The tool's own memory: its peak while a build prints 100 MB."""
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
