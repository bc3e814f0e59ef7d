"""The README's pictures: real screens, taken by `make pictures`."""

from __future__ import annotations

import re
from pathlib import Path

from little_host import LittleHost, wait_for
from pictures import PICTURES, picture, window

README = Path(__file__).parents[1] / "README.md"


def test_the_readme_shows_every_picture_and_no_other() -> None:
    shown = re.findall(r"\(docs/pictures/(\w+\.svg)\)", README.read_text(encoding="utf-8"))
    assert shown
    assert sorted(shown) == sorted(path.name for path in PICTURES.iterdir())


def test_a_picture_is_what_a_terminal_showed(light_host: LittleHost, tmp_path: Path) -> None:
    with window(light_host, tmp_path) as terminal:
        terminal.types("deploy-clojars status")
        wait_for(lambda: terminal.shows("clojars-backup"), "the answer")
        wait_for(lambda: terminal.is_at_prompt, "all of it")
        picture(terminal.screen, "status", tmp_path)
    svg = (tmp_path / "status.svg").read_text(encoding="utf-8")
    text = re.sub(r"<[^>]*>|&#160;", " ", svg)
    assert "clojars-backup" in text
    assert "url(http" not in svg
    assert re.findall(r"fill: #(?!c5c8c6|608b4e)[0-9a-f]{6}", svg), "there are colours"
