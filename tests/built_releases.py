"""Releases that this tool has built, as far as the journal and the directory go."""

from __future__ import annotations

import hashlib

from little_host import LittleHost

from deploy_clojars.host.journal import Event, Journal, now


def keeping(host: LittleHost, count: int) -> None:
    """Sets `keep_releases`."""
    host.write_config(top=f'repository = "{host.repository_url}"\nkeep_releases = {count}')


def built(host: LittleHost, *versions: str) -> list[Event]:
    """What the journal says of releases that this tool has built."""
    jars = {version: host.jar(version).read_bytes() for version in versions}
    return [
        Event(
            event="installed", at=now(), version=version, bytes=len(jar),
            sha256=hashlib.sha256(jar).hexdigest(),
        )
        for version, jar in jars.items()
    ]  # fmt: skip


def promoted(*versions: str) -> list[Event]:
    """What the journal says of promotions."""
    return [Event(event="promoted", at=now(), version=version) for version in versions]


def written_down(host: LittleHost, *events: Event) -> None:
    """Puts lines into the journal."""
    host.deploy.mkdir(exist_ok=True)
    for event in events:
        Journal(host.deploy / "journal.jsonl").append(event)
