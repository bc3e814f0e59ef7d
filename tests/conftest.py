"""What all tests share: the repository, its jars, Upstart, and hosts made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clojure_jars import (
    build_jar,
    lein_environment,
    require_clojure,
    shared_directory,
    write_lein_home,
)
from clojure_repository import ClojureRepository, make_repository
from little_host import LittleHost
from standin.upstart import RealUpstart, Upstart


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("upstart")
    group.addoption(
        "--real-upstart",
        nargs=2,
        metavar=("BIN", "JOBS"),
        help="test against a real Upstart: the directory of its programs, and of its job files",
    )


@pytest.fixture(scope="session")
def clojure(tmp_path_factory: pytest.TempPathFactory) -> Clojure:
    """The Clojure application's repository and its jars, built when they are first wanted."""
    require_clojure()
    return Clojure(shared_directory(tmp_path_factory), tmp_path_factory.mktemp("repository"))


class Clojure:
    """The application to deploy."""

    def __init__(self, shared: Path, own: Path) -> None:
        self.lein_home = write_lein_home(own / "lein")
        self.repository: ClojureRepository = make_repository(own / "clojars-web")
        self._jars = shared / "jars"

    def jar(self, tag: str) -> Path:
        """The tag's release jar."""
        return build_jar(self.repository, tag, self._jars, self.lein_home)

    @property
    def environment(self) -> dict[str, str]:
        """What Leiningen needs to build offline."""
        return lein_environment(self.lein_home)


@pytest.fixture
def upstart(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Upstart | RealUpstart]:
    """Upstart: the stand-in, or the real one if the option names it."""
    real = request.config.getoption("--real-upstart")
    if real:
        with RealUpstart.opened(Path(real[0]), Path(real[1])) as upstart:
            yield upstart
    else:
        with Upstart.started(tmp_path / "upstart") as standin:
            yield standin


@pytest.fixture
def new_host(
    tmp_path: Path, upstart: Upstart | RealUpstart, clojure: Clojure
) -> Callable[..., LittleHost]:
    """Makes a host on which nothing was ever deployed."""

    def make(**options: str) -> LittleHost:
        host = LittleHost(
            tmp_path / "host",
            upstart,
            clojure.repository.url,
            clojure.environment,
            options,
        )
        return host

    return make


@pytest.fixture
def host(new_host: Callable[..., LittleHost], clojure: Clojure) -> LittleHost:
    """A host that serves 0.1.0 on both instances, as the old shell script left it."""
    host = new_host()
    host.serving(clojure.repository.FIRST, clojure.jar(clojure.repository.FIRST))
    return host
