"""`releases`: what is there, where it came from, and what it is used for."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from built_releases import keeping, written_down
from clojure_repository import ClojureRepository as Tags
from little_host import LittleHost

from deploy_clojars import config
from deploy_clojars.commands import releases as listing
from deploy_clojars.commands.releases import newest_first
from deploy_clojars.host.health import Observation
from deploy_clojars.host.host import Host
from deploy_clojars.host.journal import Event, now

FIRST, SECOND, THIRD = Tags.FIRST, Tags.SECOND, Tags.THIRD


def listed(host: LittleHost, *words: str) -> dict[str, Any]:
    """What `releases --json` says, by version."""
    document = json.loads(host.done("releases", "--json", *words).stdout)
    return {each["version"]: each for each in document["releases"]}


@pytest.mark.parametrize(
    ("there", "installed", "order"),
    [
        # As they were built, whatever their numbers.
        (["0.1.0", "0.2.0", "0.3.0"], ["0.2.0", "0.3.0", "0.1.0"], ["0.1.0", "0.3.0", "0.2.0"]),
        # What this tool did not build comes last, by its numbers.
        (["0.10.0", "0.9.0", "a", "1.0"], ["a"], ["a", "1.0", "0.10.0", "0.9.0"]),
        (["0.1.0"], ["gone", "0.1.0", "gone, too"], ["0.1.0"]),
        (["1", "1a", "a1", "é", "1.²"], [], ["é", "a1", "1a", "1.²", "1"]),
        ([], ["0.1.0"], []),
    ],
)
def test_the_newest_come_first(there: list[str], installed: list[str], order: list[str]) -> None:
    assert newest_first(there, installed) == order


def test_a_release_is_told_with_all_that_is_known_of_it(three_built: LittleHost) -> None:
    written_down(three_built, Event(event="installed", at="2015-03-01T10:00:00Z", version=SECOND,
                              commit="c" * 40, bytes=three_built.jar(SECOND).stat().st_size))  # fmt: skip
    keeping(three_built, 1)
    releases = listed(three_built)
    assert list(releases) == [SECOND, THIRD, FIRST]
    assert releases[SECOND] == {
        "version": SECOND, "bytes": three_built.jar(SECOND).stat().st_size, "commit": "c" * 40,
        "source": "tag", "sha256": None,
        "built": "2015-03-01T10:00:00Z", "promoted": None, "current": False, "approved": False,
        "previous": False, "running": [], "prunable": True,
    }  # fmt: skip
    third = releases[THIRD]
    assert (third["current"], third["approved"], third["previous"]) == (True, True, False)
    assert (third["running"], third["prunable"]) == (["primary", "backup"], False)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", third["promoted"])
    assert (releases[FIRST]["previous"], releases[FIRST]["prunable"]) == (True, False)


def test_what_is_prunable_is_what_prune_removes(three_built: LittleHost) -> None:
    three_built.have("0.0.9", three_built.jar(FIRST))
    for count in (0, 1):
        keeping(three_built, count)
        before = listed(three_built)
        three_built.done("prune")
        removed = [version for version, each in before.items() if each["prunable"]]
        assert set(before) - set(listed(three_built)) == set(removed)
    assert removed == [SECOND]


def test_it_takes_no_lock_and_changes_nothing(light_host: LittleHost) -> None:
    result = light_host.done("releases")
    assert result.stderr == ""
    assert result.stdout.splitlines()[1].startswith(f"{FIRST} ")
    assert result.stdout.splitlines()[1].endswith("current, approved, primary, backup")
    assert not light_host.deploy.exists()


def test_the_newest_are_listed_and_always_those_in_use(three_built: LittleHost) -> None:
    for number in range(30):
        three_built.have(f"9.{number}", three_built.jar(FIRST))
        written_down(three_built, Event(event="installed", at=now(), version=f"9.{number}"))
    lines = three_built.done("releases", "-n", "2").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["release", "9.29", "9.28", THIRD, FIRST, "and"]
    assert lines[-1] == "and 29 more: -n NUMBER or --all"
    document = json.loads(three_built.done("releases", "--json", "--all").stdout)
    assert (len(document["releases"]), document["more"]) == (33, False)


def test_what_this_user_cannot_see_is_null(
    three_built: LittleHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping(three_built, 1)
    host = Host(config.load(three_built.config))
    hidden = Observation("primary", "clojars", "running", "start/running", pid=1, visible=False)
    look = replace(host.look(), primary=hidden)
    monkeypatch.setattr(host, "look", lambda: look)

    found = listing.listing(host, None)

    assert {(each.running, each.prunable) for each in found.releases} == {(None, None)}
    assert "what clojars runs" in listing.as_text(found)


def test_a_journal_that_cannot_be_read_leaves_what_it_says_out(light_host: LittleHost) -> None:
    (light_host.deploy / "journal.jsonl").mkdir(parents=True)
    [release] = listed(light_host).values()
    assert (release["commit"], release["built"], release["prunable"]) == (None, None, None)
    assert release["current"] is True
    assert "cannot be read: Is a directory" in light_host.done("releases").stdout


@pytest.mark.parametrize(
    ("columns", "header"),
    [("60", "release  built (UTC)"), ("200", "release  size    source  commit  built (UTC)")],
)
def test_on_a_terminal_it_fits_the_width(
    three_built: LittleHost, columns: str, header: str
) -> None:
    three_built.environment.update(COLUMNS=columns, TERM="xterm", NO_COLOR="1")
    with three_built.typing("releases") as terminal:
        text = terminal.ends(0)
    assert header in text
    assert max(map(len, text.splitlines())) <= int(columns)


def test_neither_git_nor_sh_is_imported_and_rich_only_on_a_terminal(
    light_host: LittleHost,
) -> None:
    for command in ("releases", "history"):
        script = (
            "import sys\n"
            "from deploy_clojars.cli import group\n"
            f"group.main(['{command}'], standalone_mode=False)\n"
            "print(*(set(sys.modules) & {'git', 'sh', 'rich.console', 'rich.table'}), file=sys.stderr)\n"
        )
        result = subprocess.run(
            [sys.executable, "-c", script], env=light_host.whole_environment,
            capture_output=True, check=True, text=True,
        )  # fmt: skip
        assert result.stderr.strip() == ""
