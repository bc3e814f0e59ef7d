"""`status --watch`: live on a terminal, and refused everywhere else."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
from little_host import LittleHost, wait_for, without_escapes
from pictures import window


def test_it_is_drawn_until_ctrl_c_and_shows_what_changes(light_host: LittleHost) -> None:
    light_host.environment["TERM"] = "xterm"
    with light_host.typing("status", "--watch") as terminal:
        terminal.sees("every second; Ctrl-C ends it")
        assert "clojars: 0.1.0, serving" in terminal.shown
        light_host.control("stop", light_host.backup)
        terminal.sees("clojars-backup: stopped")
        terminal.presses("c")
        shown = terminal.ends(130)
    assert "Traceback" not in shown
    assert "error" not in shown


def test_a_hang_up_ends_it(light_host: LittleHost) -> None:
    light_host.environment["TERM"] = "xterm"
    with light_host.typing("status", "--watch") as terminal:
        terminal.sees("Ctrl-C ends it")
        terminal.kill(signal.SIGHUP)
        terminal.ends(129)


@pytest.mark.parametrize("words", [("--watch",), ("--watch", "--json")])
def test_without_a_terminal_it_is_refused(light_host: LittleHost, words: tuple[str, ...]) -> None:
    result = light_host.run("status", *words)
    assert result.returncode == 2
    assert "error: --watch" in result.stderr


def test_when_the_window_changes_nothing_old_is_left_and_the_end_is_what_is_shown(
    light_host: LittleHost, tmp_path: Path
) -> None:
    with window(light_host, tmp_path) as terminal:
        terminal.types("deploy-clojars status --watch")
        wait_for(lambda: terminal.shows("Ctrl-C ends it"), "it is drawn")
        for columns, lines, approved in ((45, 6, 0), (100, 40, 1)):
            terminal("resize-window", "-x", str(columns), "-y", str(lines))
            wanted = ["ok"] + ["approved"] * approved

            def is_shown(wanted: list[str] = wanted) -> bool:
                words = re.findall(r"\b(?:ok|approved)\b", without_escapes(terminal.screen))
                return sorted(words) == sorted(wanted)

            wait_for(is_shown, "it is drawn anew")
