"""The man pages, which click-man makes of click's own help: `make man`."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import click
from click_man.core import write_man_pages

from deploy_clojars import __version__
from deploy_clojars.cli import group

PROJECT = Path(__file__).parents[1]
PAGES = PROJECT / "docs/man"


def prepare(command: click.Command) -> None:
    """click-man cuts a summary after 45 characters, and joins the lines that \\b keeps apart."""
    text = inspect.cleandoc(command.help or "")
    first_sentence = re.split(r"\.(?: |$)", text.partition("\n\n")[0])[0]
    command.short_help = first_sentence.replace("\n", " ")
    command.help = re.sub(r"\x08\n(.*?)(?=\n\n|\Z)", r".nf\n\1\n.fi", text, flags=re.DOTALL)


def to_be_copied(page: str) -> str:
    """What is copied from a page can be typed: minus signs, and no word is hyphenated."""
    title, *lines = page.splitlines()
    lines = [
        line if re.match(r"\.(?!B )", line) else re.sub(r"(?<!\\)-", r"\\-", line) for line in lines
    ]
    return "\n".join([title, ".nh", *lines, ""])


def main() -> None:
    PAGES.mkdir(exist_ok=True)
    for old in PAGES.glob("*.1"):
        old.unlink()
    for command in (group, *group.commands.values()):
        prepare(command)
    # Not today: the pages change when the help does.
    changelog = (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.search(rf"^## \[{re.escape(__version__)}\] - (\S+)$", changelog, re.MULTILINE)
    assert released, "the version is in the changelog"
    write_man_pages(
        "deploy-clojars", group, version=__version__, target_dir=PAGES, date=released[1]
    )
    for page in PAGES.glob("*.1"):
        page.write_text(to_be_copied(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
