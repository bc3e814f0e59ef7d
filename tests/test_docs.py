"""What docs/architecture.md and CONTRIBUTING.md name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
SOURCE = PROJECT / "src/deploy_clojars"
ARCHITECTURE = (PROJECT / "docs/architecture.md").read_text(encoding="utf-8")

KEPT_BY = re.findall(r"`([\w/]+\.py)`: ((?:`\w+`(?:, )?)+)", ARCHITECTURE)
SHOWN_BY = sorted(set(re.findall(r"`(test_\w+)`", ARCHITECTURE)))


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


@pytest.mark.parametrize("name", SHOWN_BY)
def test_the_test_that_is_named_is_there(name: str) -> None:
    files = (PROJECT / "tests").rglob("*.py")
    assert any(f"\ndef {name}(" in file.read_text(encoding="utf-8") for file in files)


def test_the_files_that_the_contributor_is_sent_to_are_there() -> None:
    text = (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:[a-z_]+/)*[a-z_.-]+\.(?:py|toml|md))`", text)
    assert len(named) > 10
    for name in named:
        assert any((place / name).exists() for place in (PROJECT, SOURCE)), name
    picture = text.split("```")[1]
    packages = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert packages <= set(re.findall(r"(\w+)/", picture))
