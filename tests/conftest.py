"""What all tests share: the repository, its jars, Upstart, and hosts made of them."""

from __future__ import annotations

import itertools
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import left_behind
import pytest
from built_releases import built, promoted, written_down
from clojure_jars import (
    build_jar,
    lein_environment,
    require_clojure,
    shared_directory,
    write_lein_home,
)
from clojure_repository import ClojureRepository, make_repository
from inherited import heed_all_signals
from light_host import make_light_host
from little_host import LittleHost, ServiceManager
from private_machine import INSIDE
from programs import require_program
from sandbox_host import serving_sandbox
from standin.upstart import RealUpstart
from systemd_machine import INSIDE_SYSTEMD, manager_of_a_host

from deploy_clojars.host.journal import Event, now

WATCHDOG = pytest.StashKey[subprocess.Popen[bytes]]()

# The fixtures that instances, and every host of them, are made of.
HAVE_INSTANCES = {"upstart", "clojure", "jar_of", "ready", "rigs"}
PROJECT = Path(__file__).parents[1]

heed_all_signals()


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.stash[WATCHDOG] = left_behind.mark_processes()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever has instances is slow. Of the share of each worker, what is long comes first."""
    for item in items:
        if HAVE_INSTANCES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
    long = [item for item in items if item.get_closest_marker("long")]
    others = iter([item for item in items if item not in long])
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    ordered: list[pytest.Item] = []
    for worker in range(workers):  # as pytest-xdist deals them out with --dist worksteal
        share = (len(items) - len(ordered)) // (workers - worker)
        first = long[worker::workers]
        ordered += [*first, *itertools.islice(others, max(0, share - len(first)))]
    items[:] = [*ordered, *others]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fails the run if a process is left, when the workers have ended."""
    if WATCHDOG not in session.config.stash:
        return
    mark = os.environ[left_behind.MARK]
    # The workers of pytest-xdist end by themselves, but not at once; nor does what was killed.
    deadline = time.monotonic() + (60 if session.config.getoption("numprocesses", None) else 5)
    while (left := left_behind.processes(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        terminal = session.config.get_terminal_writer()
        terminal.line(f"\nleft behind: process {left_behind.described(pid)}", red=True)
    watchdog = session.config.stash[WATCHDOG]
    assert watchdog.stdin is not None
    watchdog.stdin.close()
    watchdog.wait()


@pytest.fixture(scope="session", autouse=True)
def nothing_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fails, after the last test, if a file was left outside the temporary directory."""
    if INSIDE in os.environ:  # the private machine's are laid over those of the test outside
        yield
        return
    kept = (shared_directory(tmp_path_factory), PROJECT)
    files = left_behind.Files(tmp_path_factory.mktemp("over"), *kept)
    yield
    deadline = time.monotonic() + 5  # what ends removes its own
    while (left := files.left) and time.monotonic() < deadline:
        time.sleep(0.1)
    if left:
        pytest.fail(f"left behind: {', '.join(left)}")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("upstart")
    group.addoption(
        "--real-upstart",
        nargs=2,
        metavar=("BIN", "JOBS"),
        help="test against a real Upstart: the directory of its programs, and of its job files",
    )


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> ClojureRepository:
    """The Clojure application's repository, with its tags."""
    require_program("git")
    return make_repository(tmp_path_factory.mktemp("repository") / "clojars-web")


@pytest.fixture(scope="session")
def clojure(tmp_path_factory: pytest.TempPathFactory, repository: ClojureRepository) -> Clojure:
    """The Clojure application's jars, built when they are first wanted."""
    require_clojure()
    lein_home = write_lein_home(tmp_path_factory.mktemp("lein"))
    return Clojure(shared_directory(tmp_path_factory) / "clojure-jars", lein_home, repository)


class Clojure:
    """The application to deploy."""

    def __init__(self, jars: Path, lein_home: Path, repository: ClojureRepository) -> None:
        self._lein_home = lein_home
        self._jars = jars
        self.repository = repository

    def jar(self, tag: str) -> Path:
        """The tag's release jar."""
        return build_jar(self.repository, tag, self._jars, self._lein_home)

    @property
    def environment(self) -> dict[str, str]:
        """What Leiningen needs to build offline."""
        return lein_environment(self._lein_home)


@pytest.fixture
def upstart(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServiceManager]:
    """Upstart: the stand-in, or the real one if the option names it; systemd where it is process 1."""
    real = request.config.getoption("--real-upstart")
    if real:
        with RealUpstart.opened(Path(real[0]), Path(real[1])) as upstart:
            yield upstart
    else:
        with manager_of_a_host(tmp_path / "upstart") as manager:
            yield manager


NewHost = Callable[..., LittleHost]


@pytest.fixture
def new_host(tmp_path: Path, upstart: ServiceManager, clojure: Clojure) -> NewHost:
    """Makes a host for the Clojure application, on which nothing was ever deployed."""

    def make(**options: str) -> LittleHost:
        return LittleHost(
            tmp_path / "host",
            upstart,
            clojure.repository.url,
            clojure.environment,
            options,
        )

    return make


@pytest.fixture
def host(new_host: NewHost, clojure: Clojure) -> LittleHost:
    """A host that serves 0.1.0 on both instances, as the old shell script left it."""
    host = new_host()
    host.serving(clojure.repository.FIRST, clojure.jar(clojure.repository.FIRST))
    return host


@pytest.fixture
def new_light_host(
    tmp_path: Path, upstart: ServiceManager, repository: ClojureRepository
) -> NewHost:
    """Makes a host whose releases need no JVM; its build only has to be quick."""

    def make(**options: str) -> LittleHost:
        return make_light_host(tmp_path, upstart, repository, **options)

    return make


@pytest.fixture
def light_host(new_light_host: NewHost) -> LittleHost:
    """A host without a JVM that serves 0.1.0 on both instances."""
    host = new_light_host()
    host.serving(ClojureRepository.FIRST)
    return host


@pytest.fixture
def three_built(new_light_host: NewHost) -> LittleHost:
    """Three releases that this tool has built: the third is in production, after the first."""
    first, second, third = (
        ClojureRepository.FIRST, ClojureRepository.SECOND, ClojureRepository.THIRD,
    )  # fmt: skip
    host = new_light_host()
    host.serving(third)
    host.have(first)
    host.have(second)
    adopted = Event(event="adopted", at=now())
    written_down(host, adopted, *built(host, first, second, third), *promoted(first, third))
    return host


@pytest.fixture(params=["systemd"] if INSIDE_SYSTEMD in os.environ else ["upstart", "supervisor"])
def ready(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LittleHost]:
    """0.1.0 is in production, 0.2.0 and 0.2.1 are there.

    Under Upstart, and in a sandbox under supervisord; or under systemd. Where the test is marked so,
    it runs on JVMs under Upstart and systemd, and 0.2.1 is not there.
    """
    host: LittleHost
    if request.param == "supervisor":
        with serving_sandbox(tmp_path / "sandbox") as host:
            for tag in (ClojureRepository.SECOND, ClojureRepository.THIRD):
                host.have(tag)
            yield host
    elif request.node.get_closest_marker("jvm"):
        host = request.getfixturevalue("host")
        clojure: Clojure = request.getfixturevalue("clojure")
        host.have(ClojureRepository.SECOND, clojure.jar(ClojureRepository.SECOND))
        yield host
    else:
        host = request.getfixturevalue("light_host")
        for tag in (ClojureRepository.SECOND, ClojureRepository.THIRD):
            host.have(tag)
        yield host
