"""A site under load: nginx, two real JVMs, and what restarts them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clojure_repository import ClojureRepository as Tags
from front import Front, in_front_of
from little_host import LittleHost, ServiceManager

from load.account import Load, load_on

Stop = Literal["graceful", "abrupt"]
# Without a repository it does what comes after a build.
PLAIN_DEPLOY = Path(__file__).parents[2] / "bench" / "plain-deploy"

FIRST, SECOND = Tags.FIRST, Tags.SECOND


@dataclass
class Site:
    """The site."""

    host: LittleHost
    front: Front

    @property
    def uploads(self) -> Path:
        """Where the application writes a line for every upload."""
        return self.host.directory / "uploads.log"

    @contextmanager
    def under_load(self, scale: float) -> Iterator[Load]:
        """The load, on nginx."""
        with load_on(self.front.site, self.host.directory, self.uploads, scale) as load:
            yield load

    def plainly(self, version: str) -> None:
        """What a plain script does after its build."""
        host = self.host
        web = map(str, host.ports[:2])
        programs = host.upstart.bin
        if host.upstart.manager == "systemd":
            programs = host.directory
            (programs / "restart").write_text(
                f'#!/bin/sh\n{host.upstart.bin}/systemctl restart "$1"\n'
            )
            (programs / "restart").chmod(0o755)
        subprocess.run(
            [PLAIN_DEPLOY, "", version, "", host.releases, programs, *web],
            check=True,
            capture_output=True,
            timeout=500,
        )


@contextmanager
def site_of(
    directory: Path,
    upstart: ServiceManager,
    repository: Tags,
    jar: Callable[[str], Path],
    stop: Stop,
    backup: str = "",
    **health: str,
) -> Iterator[Site]:
    """A site that serves 0.1.0; 0.2.0 is built by copying what Leiningen built before.

    `stop`: whether the application finishes what it has begun when it is asked to stop. `backup` is
    a further line of that one's table.
    """
    jars = {tag: jar(tag) for tag in (FIRST, SECOND)}
    built = directory / "built"
    built.mkdir(parents=True)
    for tag, path in jars.items():
        (built / f"{tag}-standalone.jar").symlink_to(path)
    host = LittleHost(
        directory / "host",
        upstart,
        repository.url,
        {},
        {
            "build": 'test = "true"\nuberjar = "mkdir target && '
            f'cp {built}/$(cat resources/clojars/version.txt)-standalone.jar target"',
            "instances.backup": backup,
            "health": "timeout = 60\n"
            + "\n".join(f"{key} = {value}" for key, value in health.items()),
        },
    )
    for job, web, nailgun in (
        (host.primary, host.ports[0], host.ports[2]),
        (host.backup, host.ports[1], host.ports[3]),
    ):
        more = {"UPLOAD_LOG": f"{host.directory}/uploads.log", "STOP": stop}
        upstart.install(job, host.job_file(job, web, nailgun, **more))
    with in_front_of(host) as front:
        host.serving(FIRST, jars[FIRST])
        yield Site(host, front)
