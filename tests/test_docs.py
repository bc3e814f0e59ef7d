"""What the documents besides the README and the host's page say is so."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from deploy_clojars import __version__
from deploy_clojars.cli import group

PROJECT = Path(__file__).parents[1]
PAGES = PROJECT / "docs/man"
SOURCE = PROJECT / "src/deploy_clojars"
ARCHITECTURE = (PROJECT / "docs/architecture.md").read_text(encoding="utf-8")

KEPT_BY = re.findall(r"`([\w/]+\.py)`: ((?:`\w+`(?:, )?)+)", ARCHITECTURE)
SECURITY = (PROJECT / "docs/security.md").read_text(encoding="utf-8")
SHOWN_BY = sorted(set(re.findall(r"`(test_\w+)`", ARCHITECTURE + SECURITY)))


def test_all_eight_invariants_have_their_code_and_their_tests() -> None:
    sections = re.split(r"^## ", ARCHITECTURE, flags=re.MULTILINE)
    of_invariants = [each for each in sections if re.match(r"I\d:", each)]
    assert [each[:2] for each in of_invariants] == [f"I{number}" for number in range(1, 9)]
    for section in of_invariants:
        assert re.search(r"^\| `[\w/]+\.py`: `\w+`.* \| `test_\w+`", section, re.MULTILINE), section


@pytest.mark.parametrize(("file", "names"), KEPT_BY)
def test_the_code_that_is_named_is_there(file: str, names: str) -> None:
    text = (SOURCE / file).read_text(encoding="utf-8")
    for name in re.findall(r"`(\w+)`", names):
        assert re.search(rf"^ *def {name}\(", text, re.MULTILINE), (file, name)


def test_what_the_text_between_the_tables_names_is_there() -> None:
    text = re.sub(r"^\|.*", "", ARCHITECTURE, flags=re.MULTILINE)
    source = "\n".join(file.read_text(encoding="utf-8") for file in SOURCE.rglob("*.py"))
    for file in re.findall(r"`([\w/]+\.py)`", text):
        assert (SOURCE / file).exists(), file
    calls = re.findall(r"`(?:run\.|Observation\.)?([a-z_]+)(?:\(\))?`", text)
    assert {"why_not_healthy_on", "no_return", "promote"} <= set(calls)
    for name in calls:
        if not name.startswith("test_"):
            assert re.search(rf"^ *def {name}\(", source, re.MULTILINE), name


@pytest.mark.parametrize("name", SHOWN_BY)
def test_the_test_that_is_named_is_there(name: str) -> None:
    files = (PROJECT / "tests").rglob("*.py")
    assert any(f"\ndef {name}(" in file.read_text(encoding="utf-8") for file in files)


def test_every_closed_door_has_its_test() -> None:
    rows = [line for line in SECURITY.splitlines() if line.startswith("| ")]
    without = [row for row in rows if "`test_" not in row and not row.endswith("shown by |")]
    # What both kinds of builds can do is open.
    assert without == ["| to read or to poison the build tool's cache | can | can | |"]


def test_the_files_that_the_contributor_is_sent_to_are_there() -> None:
    text = (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:[a-z_]+/)*[a-z_.-]+\.(?:py|toml|md))`", text)
    assert len(named) > 10
    for name in named:
        assert any((place / name).exists() for place in (PROJECT, SOURCE)), name
    picture = text.split("```")[1]
    packages = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert packages <= set(re.findall(r"(\w+)/", picture))


def test_every_command_has_a_man_page_that_says_what_its_help_says() -> None:
    commands: dict[str, click.Command] = {"deploy-clojars": group}
    commands |= {f"deploy-clojars-{name}": each for name, each in group.commands.items()}
    pages = {page.stem: page.read_text(encoding="utf-8") for page in PAGES.glob("*.1")}
    assert pages.keys() == commands.keys(), "run: make man"
    for name, command in commands.items():
        # Without roff's own lines and marks.
        shown = re.sub(r"^\.\w+$|\\f.|\\(?=-)", "", pages[name], flags=re.MULTILINE)
        options = [each for each in command.params if isinstance(each, click.Option)]
        for said in (command.help, *(each.help for each in options)):
            words = (said or "").replace("\b", "").split()
            assert " ".join(words) in " ".join(shown.split()), f"{name}: run: make man"
        for option in (word for each in options for word in each.opts):
            assert re.search(rf"^(\S+, )?{option}\b", shown, re.MULTILINE), (name, option)


def test_the_changelog_has_this_version_and_what_came_since() -> None:
    text = (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8")
    [unreleased, newest, *_] = re.findall(r"^## \[(.*)\](.*)$", text, re.MULTILINE)
    assert unreleased == ("Unreleased", "")
    assert newest[0] == __version__
    assert re.fullmatch(r" - \d{4}-\d\d-\d\d", newest[1])
    kinds = re.findall(r"^### (.*)$", text, re.MULTILINE)
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
