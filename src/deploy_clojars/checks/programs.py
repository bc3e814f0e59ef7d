"""Whether the programs are there, and new enough."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from deploy_clojars.checks.finding import Finding, Findings, Site, by_root
from deploy_clojars.deploy import build
from deploy_clojars.machine import connections
from deploy_clojars.machine.shell import TookTooLong, capture, root_program
from deploy_clojars.setup import in_the_way, validation
from deploy_clojars.setup.files import HALF_CLOSED

# Why not older: `fetch --no-write-fetch-head`; a POST is sent twice; `setuid` and `console log`;
# @system-service in the units' SystemCallFilter, and (232) the invocation that a log is of.
GIT_SINCE = (2, 29)
NGINX_SINCE = (1, 9, 13)
UPSTART_SINCE = (1, 4)
SYSTEMD_SINCE = (239,)

SECONDS = 20.0  # for a program, the git remote among them


def version_in(text: str) -> tuple[int, ...] | None:
    """The first version number in what a program says of itself."""
    match = re.search(r"\d+(?:\.\d+)*", text)
    return tuple(map(int, match[0].split("."))) if match else None


def judged(name: str, said: str, since: tuple[int, ...]) -> Finding:
    """Whether a program is new enough."""
    version = version_in(said)
    needed = ".".join(map(str, since))
    remedy = f"install {name} {needed} or newer"
    if version is None:
        return Finding(f"{name}: its version is unknown", True, remedy)
    shown = ".".join(map(str, version))
    if version < since:
        return Finding(f"{name} {shown} is too old", True, remedy)
    return Finding(f"{name} {shown}")


def versions() -> Findings:
    """What every host needs."""
    yield Finding(f"Python {sys.version.split()[0]}")  # an older one cannot run this
    nginx = validation.nginx()
    if nginx is None:
        yield Finding("nginx is not installed", True, by_root("apt-get install nginx"))
        return
    name = "nginx" if nginx.service == "nginx" else f"{nginx.service} (based on nginx)"
    yield judged(name, ".".join(map(str, nginx.version)), NGINX_SINCE)


def of_the_build(site: Site) -> Findings:
    """The programs that a release needs: git, the tests' and the build's, or those of release.command."""
    settings = site.host.config
    what, missing = "the tests and the build need", list[str]()
    if settings.release.command is not None:
        what, missing = "release.command needs", build.missing_programs(settings.release.command)
    elif site.deploys_tags:
        if shutil.which("git") is None:
            yield Finding("git is not on PATH", True, by_root("apt-get install git"))
        else:
            yield judged("git", said_by("git", "--version"), GIT_SINCE)
        missing = build.missing_programs(settings.build.test, settings.build.uberjar)
    if missing:
        yield Finding(
            f"not on PATH: {', '.join(missing)}",
            True,
            f"install {' and '.join(missing)}: {what} it",
        )


def manager(site: Site) -> Findings:
    """The service manager, where it is one of the system."""
    bin = site.host.config.services.programs
    if site.is_upstarts and os.access(f"{bin}/status", os.X_OK):
        yield judged("Upstart", said_by(f"{bin}/status", "--version"), UPSTART_SINCE)
    if site.systemd is not None and os.access(f"{bin}/systemctl", os.X_OK):
        yield judged("systemd", said_by(f"{bin}/systemctl", "--version"), SYSTEMD_SINCE)


def nailgun(site: Site, root: Path = Path("/")) -> Findings:
    """What serves the nailgun port on a host as `setup` makes it."""
    if not site.setup_makes_it or (site.is_upstarts and root_program("balance")):
        return
    services, nginx = site.host.config.services, site.nginx
    if site.values is not None and in_the_way.nailgun_there(site.values, root) == "balance":
        job = f"{site.values.site}-balance"
        yield Finding(
            f"balance is not installed, and the job {job} needs it",
            True,
            by_root(f"install balance, then {services.programs}/start {job}"),
        )
    elif nginx is not None and not nginx.has_stream and not _is_served(site):
        remedy = by_root(f"apt-get install libnginx-mod-stream && {site.host.command('setup')}")
        if site.is_upstarts:
            remedy += f"\nor install balance and run the same `setup`; {HALF_CLOSED}"
        yield Finding(
            "nothing can serve the nailgun port: this nginx is older than 1.21.4 or has no stream",
            True,
            remedy,
        )


def _is_served(site: Site) -> bool:
    """Whether some program serves the nailgun port already."""
    port = int(site.values.nailgun_port) if site.values is not None else None
    return any(row.local[1] == port for row in connections.listeners())


def said_by(*words: str) -> str:
    """All that a program prints."""
    try:
        answer = capture(words, timeout=SECONDS)
    except (OSError, TookTooLong):
        return ""
    return answer.out + answer.err
