"""The releases that are there: how large, from where, built and promoted when, and used how."""

from __future__ import annotations

import os
from dataclasses import dataclass

import msgspec
from rich.filesize import decimal

from deploy_clojars.commands.history import moment
from deploy_clojars.config import Role
from deploy_clojars.errors import DeployError
from deploy_clojars.host import decisions
from deploy_clojars.host.host import Host
from deploy_clojars.host.look import Look
from deploy_clojars.host.users import user_name
from deploy_clojars.screen import tables
from deploy_clojars.screen.tables import Column, Table
from deploy_clojars.versions import numbers


@dataclass(frozen=True)
class Release:
    """A release, as far as this user can see it, and as `releases --json` has it."""

    version: str
    bytes: int | None
    commit: str | None
    source: str | None  # "tag", "jar" or "command"; None: not installed by this tool
    sha256: str | None
    built: str | None
    promoted: str | None
    current: bool
    approved: bool
    previous: bool
    running: tuple[Role, ...] | None  # None: it is not known what an instance runs
    prunable: bool | None


@dataclass(frozen=True)
class Listing:
    """The newest releases and all that are in use."""

    releases: list[Release]
    more: int  # that are left out
    remarks: list[str]  # what could not be seen


def listing(host: Host, count: int | None) -> Listing:
    """The `count` newest releases (None: all), and those in use. Raises DeployError."""
    directory = host.releases.directory
    if directory.exists() and not os.access(directory, os.R_OK | os.X_OK):
        raise DeployError(f"{directory} is not visible to {user_name()}")
    look = host.look()
    versions = newest_first(host.releases.versions(), [*look.history.installed])
    used = look.named_or_running
    count = len(versions) if count is None else count
    shown = [*versions[:count], *(each for each in versions[count:] if each in used)]
    may_go = _prunable(host, look, versions)
    return Listing(
        [_release(host, look, version, may_go) for version in shown],
        len(versions) - len(shown),
        _remarks(look),
    )


def newest_first(there: list[str], installed: list[str]) -> list[str]:
    """By the journal's order; those that this tool did not make come last, by their numbers."""
    built = dict.fromkeys(reversed(installed))
    known = set(there)
    others = sorted(known.difference(built), key=numbers, reverse=True)
    return [*(version for version in built if version in known), *others]


def _prunable(host: Host, look: Look, versions: list[str]) -> set[str] | None:
    """What the journal lets go, or None if that is not known."""
    if look.in_use is None or look.journal_error:
        return None
    history = look.history
    may_go = decisions.prunable(
        set(versions), history.installed, history.promoted, look.in_use,
        host.config.keep_releases, history.waiting,
    )  # fmt: skip
    return {*may_go}


def _release(host: Host, look: Look, version: str, may_go: set[str] | None) -> Release:
    installed = look.history.installed.get(version)
    running = tuple(each.role for each in look.instances if version in each.open_releases)
    return Release(
        version=version,
        bytes=host.releases.size(version),
        commit=installed.commit if installed is not None else None,
        source=installed.source if installed is not None else None,
        sha256=installed.sha256 if installed is not None else None,
        built=installed.at or None if installed is not None else None,
        promoted=look.history.promoted.get(version) or None,
        current=version == look.current.version,
        approved=version == look.approved,
        previous=version == look.history.previous,
        running=running if all(each.running_is_known for each in look.instances) else None,
        prunable=None if may_go is None else version in may_go and host.is_as_built(look, version),
    )


def _remarks(look: Look) -> list[str]:
    unknown = (each for each in look.instances if not each.running_is_known)
    remarks = [
        f"what {each.job} runs is not known to {user_name()}: {each.said}" for each in unknown
    ]
    return [*remarks, *([look.journal_error] if look.journal_error else [])]


# --- as it is shown ---------------------------------------------------------------------------


def as_json(listing: Listing) -> str:
    """For programs; keys are only ever added."""
    document = {"releases": listing.releases, "more": listing.more > 0}
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()


def as_text(listing: Listing) -> str:
    """For people."""
    if not listing.releases:
        return "\n".join(["no release", *listing.remarks])
    columns = (
        Column("release"), Column("size"), Column("source"), Column("commit"), Column("built (UTC)"),
        Column("promoted (UTC)"), Column("state", folds=True),
    )  # fmt: skip
    rows = [_row(release) for release in listing.releases]
    lines = [tables.as_text(Table(columns, rows, stacked=((0, 1, 2, 3), (4, 5), (6,))))]
    if listing.more:
        lines.append(f"and {listing.more} more: -n NUMBER or --all")
    return "\n".join([*lines, *listing.remarks])


def _row(release: Release) -> tuple[str, ...]:
    words = ("current", "approved", "previous", "prunable")
    state = [word for word in words if getattr(release, word)]
    return (
        release.version,
        "" if release.bytes is None else decimal(release.bytes),
        release.source or "",
        (release.commit or "")[:10],
        moment(release.built),
        moment(release.promoted),
        ", ".join([*state, *(release.running or ())]),
    )
