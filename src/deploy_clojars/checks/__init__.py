"""`deploy-clojars check`: is this host ready? All findings at once, each with its remedy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from deploy_clojars.checks import filesystem, front, programs, running, units, user
from deploy_clojars.checks.finding import Finding, Findings, Site
from deploy_clojars.host.host import Host
from deploy_clojars.machine import threads


def findings(host: Host) -> list[Finding]:
    """Everything that was looked at, in the order in which a host is built."""
    site = Site(host, host.look())
    parts: tuple[Callable[[], Findings], ...] = (
        programs.versions,
        lambda: programs.of_the_build(site),
        lambda: programs.manager(site),
        lambda: programs.nailgun(site),
        lambda: filesystem.directories(site),
        lambda: filesystem.disk(site),
        lambda: filesystem.installed_files(site),
        lambda: running.jobs(site),
        lambda: units.units(site),
        lambda: running.archives(site),
        lambda: running.releases(site),
        lambda: front.drain(site),
        lambda: front.sites(site),
        lambda: user.other_tools(site),
        lambda: user.as_the_production_user(site),
    )
    # Some of them wait for somebody else.
    at_work = [threads.started(partial(_all_of, part)) for part in parts]
    return [finding for found in at_work for finding in found.result()]


def _all_of(part: Callable[[], Findings]) -> list[Finding]:
    try:
        return list(part())
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return [Finding(f"{where}{error.strerror}", wrong=True)]


def with_one_remedy(found: list[Finding]) -> list[Finding]:
    """Findings that one command fixes are one: the later ones join the first."""
    joined: list[Finding] = []
    for finding in dict.fromkeys(found):
        same = [each for each in joined if each.wrong and finding.wrong and finding.remedy]
        first = next((each for each in same if each.remedy == finding.remedy), None)
        if first is None:
            joined.append(finding)
        else:
            both = Finding(f"{first.what}\n{finding.what}", True, first.remedy)
            joined[joined.index(first)] = both
    return joined


def as_text(found: list[Finding], *, quiet: bool = False) -> str:
    """One line for each, the remedy below it."""
    found = with_one_remedy(found)
    lines = []
    for finding in found:
        if quiet and not finding.wrong:
            continue
        mark = "!!" if finding.wrong else "ok"
        lines += [f"{mark}  {line}" for line in finding.what.splitlines()]
        lines += [f"      {line}" for line in finding.remedy.splitlines()]
    wrong = sum(finding.wrong for finding in found)
    lines.append("ready" if not wrong else f"{wrong} finding{'s' if wrong > 1 else ''}")
    return "\n".join(lines)
