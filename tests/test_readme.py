"""What the README says is there."""

from __future__ import annotations

import re
from pathlib import Path

PROJECT = Path(__file__).parents[1]


def test_every_file_that_the_documents_name_is_there() -> None:
    for page in map(
        PROJECT.joinpath,
        ("README.md", "CONTRIBUTING.md", "docs/host.md", "docs/architecture.md", "docs/fleet.md"),
    ):
        links = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
        assert links
        missing = [link for link in links if not (page.parent / link).exists()]
        assert not missing, (page, missing)


def test_every_promise_names_a_test_that_has_tests() -> None:
    rows = re.findall(
        r"^\| .*\(tests/.*$", (PROJECT / "README.md").read_text("utf-8"), re.MULTILINE
    )
    assert len(rows) > 10
    for row in rows:
        assert re.search(r"\| all three(: .*)? \|$", row), row
        for file in re.findall(r"\((tests/\S+?\.py)\)", row):
            assert "\ndef test_" in (PROJECT / file).read_text(encoding="utf-8"), file
