"""A little host to deploy to by hand: `python tests/playground.py DIRECTORY`, Ctrl-C ends it.

It serves 0.1.0 of the Clojure application under the Upstart stand-in.
"""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from clojure_jars import build_jar, lein_environment, write_lein_home
from clojure_repository import ClojureRepository, make_repository
from little_host import LittleHost
from standin.upstart import Upstart


@contextmanager
def clojure_host(
    directory: Path,
    url: str | None = None,
    environment: Mapping[str, str] | None = None,
    options: Mapping[str, str] | None = None,
) -> Iterator[tuple[LittleHost, ClojureRepository]]:
    """A host below the directory that serves 0.1.0, and its repository, while the block runs.

    `url` is the repository's as the tool is told, if it is another one than its own; `environment`
    are further variables for the tool, and `options` TOML lines by table.
    """
    lein_home = write_lein_home(directory / "lein")
    repository = make_repository(directory / "clojars-web")
    with Upstart.started(directory / "upstart") as upstart:
        host = LittleHost(
            directory / "host",
            upstart,
            url or repository.url,
            lein_environment(lein_home) | dict(environment or {}),
            dict(options or {}),
        )
        first = ClojureRepository.FIRST
        host.serving(first, build_jar(repository, first, directory / "jars", lein_home))
        yield host, repository


def main() -> None:
    """Makes the host, says how to use it, and waits."""
    directory = Path(sys.argv[1]).absolute()
    directory.mkdir(parents=True)
    with clojure_host(directory) as (host, repository):
        variables = {**host.environment, "DEPLOY_CLOJARS_CONFIG": str(host.config)}
        for name, value in variables.items():
            print(f"export {name}={shlex.quote(value)}")
        print(f"# Upstart's programs: {host.upstart.bin}, the repository: {repository.directory}")
        print(f"# tags: {' '.join(repository.git('tag').split())}")
        print(f"# try: {host.command[0]} 0.2.0", flush=True)
        signal.sigwait([signal.SIGINT, signal.SIGTERM])


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
    main()
