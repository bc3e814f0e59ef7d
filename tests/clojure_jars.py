"""Jars of the Clojure application, each built once by the real Leiningen and kept."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from clojure_repository import ClojureRepository
from programs import require_program, skip_or_fail

# Where Debian's packages put the libraries; neither Clojars nor Maven Central is asked.
MAVEN_REPOSITORY = Path("/usr/share/maven-repo")
LIBRARIES = {
    "compojure/compojure": "libcompojure-clojure",
    "hiccup/hiccup": "libhiccup-clojure",
    "ring/ring-core": "libring-core-clojure",
    "ring/ring-jetty-adapter": "libring-jetty-adapter-clojure",
    "ring/ring-mock": "libring-mock-clojure",
}


# Tells a pytest that another one has started where that one's shared directory is.
SHARED = "DEPLOY_CLOJARS_SHARED"


def require_clojure() -> None:
    """Skip the test, or fail it in CI, unless the application can be built and run here."""
    require_program("git", "lein", "java")
    missing = [
        package
        for library, package in LIBRARIES.items()
        if not (MAVEN_REPOSITORY / library).is_dir()
    ]
    if missing:
        skip_or_fail(f"Debian packages not installed: {', '.join(missing)}")


def write_lein_home(directory: Path) -> Path:
    """Make `directory` a LEIN_HOME that builds offline from Debian's packages, and return it."""
    directory.mkdir(parents=True, exist_ok=True)
    # Offline, because Debian's poms name versions that exist nowhere else.
    (directory / "profiles.clj").write_text(
        f'{{:user {{:local-repo "{MAVEN_REPOSITORY}" :offline? true}}}}\n', encoding="utf-8"
    )
    return directory


def lein_environment(lein_home: Path) -> dict[str, str]:
    """The variables to add for `lein`. CLASSPATH must not be among the others."""
    return {
        "LEIN_HOME": str(lein_home),
        "LEIN_ROOT": "1",  # upstream's script asks root whether it means it
    }


def run_lein(
    *arguments: str, checkout: Path, lein_home: Path, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run `lein` in the checkout; standard output is both streams, in the order they came.

    Raises subprocess.TimeoutExpired after `timeout` seconds; nothing of the build goes on then.
    """
    environment = {name: value for name, value in os.environ.items() if name != "CLASSPATH"}
    with subprocess.Popen(
        ["lein", *arguments],
        cwd=checkout,
        env=environment | lein_environment(lein_home),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout)
        except BaseException:
            # lein is a shell with a JVM below it and another below that: without the shell
            # both would go on and still write the jar.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, output)


def build_jar(repository: ClojureRepository, tag: str, into: Path, lein_home: Path) -> Path:
    """Return the tag's standalone jar, under the name that Leiningen gave it.

    It is built only if `into` does not have it yet, whichever process built it. The cache goes by
    the commit, so that it may outlive the repository; a new JDK or Leiningen it does not notice.
    Raises RuntimeError with the end of the output if the build fails.
    """
    cached = into / repository.commit(tag)
    into.mkdir(parents=True, exist_ok=True)
    with _locked(cached.with_suffix(".lock")):
        if not cached.exists():
            _build(repository, tag, cached, lein_home)
    return _standalone_jar(cached)


def shared_directory(factory: pytest.TempPathFactory) -> Path:
    """The temporary directory of the whole test run, which pytest-xdist's workers have in common."""
    if SHARED in os.environ:
        return Path(os.environ[SHARED])
    own = factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def _build(repository: ClojureRepository, tag: str, cached: Path, lein_home: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="build-", dir=cached.parent) as scratch:
        checkout = repository.checkout(tag, Path(scratch, "checkout"))
        result = run_lein("uberjar", checkout=checkout, lein_home=lein_home)
        if result.returncode != 0:
            raise RuntimeError(
                f"lein uberjar of {tag} exited with {result.returncode}:\n{result.stdout[-4000:]}"
            )
        jar = _standalone_jar(checkout / "target")
        finished = Path(scratch, "finished")
        finished.mkdir()
        jar.rename(finished / jar.name)
        # Last and at once: a build that was killed on the way leaves nothing that looks cached.
        finished.rename(cached)


def _standalone_jar(directory: Path) -> Path:
    [jar] = directory.glob("*-standalone.jar")
    return jar


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
