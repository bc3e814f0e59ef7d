"""What a shell offers at a press of TAB: the tags of the mirror or the site's list, and the releases.

Asked by any user, so nothing here runs git: the mirror's own configuration may name programs, and
a build may write it. Its files are read instead, which is also quicker.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem, get_completion_class

from deploy_clojars import versions
from deploy_clojars.errors import DeployError, UsageError
from deploy_clojars.versions import looks_like_a_version

if TYPE_CHECKING:
    from deploy_clojars.config import Config

PROGRAM = "deploy-clojars"
VARIABLE = "_DEPLOY_CLOJARS_COMPLETE"

# bash puts what is offered into the line as it is. A tag may be called `1;reboot`: names that need
# quotes are not offered, in any shell.
NEEDS_NO_QUOTES = re.compile(r"[A-Za-z0-9._+-]+", re.ASCII)

PACKED_TAG = re.compile(rb"^[0-9a-f]{40,64} refs/tags/(.+)$", re.MULTILINE)

LIST_SECONDS = 5.0  # for `release.list`: somebody waits for the shell

Items = list[CompletionItem[str]]


def script(shell: str, group: click.Group) -> str:
    """What the shell has to read to know the program's words."""
    complete = get_completion_class(shell)
    assert complete is not None
    source = complete(group, {}, PROGRAM, VARIABLE).source()
    # click's own script for fish cuts what a command does at its first comma, and sorts the tags.
    source = source.replace('string split "," ', 'string split --max 1 "," ')
    return source.replace("complete --no-files ", "complete --no-files --keep-order ")


def tags(context: click.Context, incomplete: str) -> Items:
    """The versions that `deploy` may be meant to get, the newest first."""
    config = _config(context)
    if config is None:
        return []
    mirror, release = config.deploy_directory / "mirror.git", config.release
    if release.list is not None and (release.command is not None or not mirror.is_dir()):
        # At a word that may be a command, the network is not asked.
        is_wanted = not isinstance(context.command, click.Group) or looks_like_a_version(incomplete)
        listed = listed_by(release.list) if is_wanted and _is_trusted(context) else []
        return _as_items(listed, incomplete)
    return _offered(tags_in(mirror), incomplete)


def releases(context: click.Context, incomplete: str) -> Items:
    """The releases that `rollback` may be meant to get, the newest first."""
    from deploy_clojars.host.releases import Releases

    config = _config(context)
    if config is None:
        return []
    there = Releases(config.releases_directory, config.name).versions()
    return _offered(there, incomplete)


def files(_: click.Context, incomplete: str) -> Items:
    """Whatever file the shell finds."""
    return [CompletionItem(incomplete, type="file")]


def directories(_: click.Context, incomplete: str) -> Items:
    """Whatever directory the shell finds."""
    return [CompletionItem(incomplete, type="dir")]


def tags_in(mirror: Path) -> set[str]:
    """The names of the tags in a bare repository that keeps its references in files.

    None where this user cannot read them.
    """
    found: set[str] = set()
    try:
        packed = (mirror / "packed-refs").read_bytes()
        found.update(name.decode("utf-8", "replace") for name in PACKED_TAG.findall(packed))
    except OSError:
        pass
    loose = mirror / "refs" / "tags"
    for directory, _, names in os.walk(loose):
        found.update(str(Path(directory, name).relative_to(loose)) for name in names)
    return found


def listed_by(command: str) -> list[str]:
    """The versions that the site's command prints, the newest first; none if it fails."""
    from deploy_clojars.machine import shell

    try:
        answer = shell.capture(["/bin/sh", "-c", command], timeout=LIST_SECONDS)
    except (DeployError, OSError):
        return []
    return answer.out.split()[::-1] if answer.status == 0 else []


def _is_trusted(context: click.Context) -> bool:
    """Whether a press of TAB may run what the configuration says: only root's, or one's own."""
    from deploy_clojars import config

    file = config.file_named(context.find_root().obj.config_file)
    try:
        return file is not None and os.stat(file).st_uid in (0, os.geteuid())
    except OSError:
        return False


def newest_first(names: Iterable[str]) -> list[str]:
    """By their numbers: 0.10.0 is newer than 0.9.0."""
    return sorted(names, key=versions.numbers, reverse=True)


def _offered(names: Iterable[str], incomplete: str) -> Items:
    return _as_items(newest_first(names), incomplete)


def _as_items(names: Iterable[str], incomplete: str) -> Items:
    return [
        CompletionItem(name)
        for name in names
        if name.startswith(incomplete)
        and NEEDS_NO_QUOTES.fullmatch(name)
        and versions.why_no_version(name) is None
    ]


def _config(context: click.Context) -> Config | None:
    """The configuration, or None if there is none to be had: TAB is no place for an error."""
    from deploy_clojars import config

    settings = context.find_root().obj
    try:
        return config.load(config.file_named(settings.config_file))
    except UsageError:
        return None
