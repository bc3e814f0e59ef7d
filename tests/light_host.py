"""A host whose releases need no JVM, under a manager; its build only has to be quick."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from clojure_repository import ClojureRepository, commits_of_tags
from little_host import LittleHost, ServiceManager
from zip_application import zip_jar


def make_light_host(
    directory: Path, upstart: ServiceManager, repository: ClojureRepository, **options: str
) -> LittleHost:
    """Makes the host in `directory`; `options` are further TOML lines, by table."""
    jars = directory / "jars"
    # Quick, but not so quick that a busy machine does nothing but look.
    health = "answer_timeout = 5\nsettle = 0.2\ninterval = 0.2"
    options = {"health": health, **options}
    host = LittleHost(
        directory / "host",
        upstart,
        repository.url,
        {},
        {
            "build": f'test = "true"\n'
            f'uberjar = "mkdir target && cp {jars}/*-$(cat resources/clojars/version.txt)-* target"',
            **options,
        },
        launcher=f"{os.path.realpath(sys.executable)} -IS",
    )
    for tag, commit in commits_of_tags(repository.directory).items():
        zip_jar(tag, commit, jars)
    host.jars = jars
    return host
