"""`status --watch`: live on a terminal, and refused everywhere else."""

from __future__ import annotations

import signal

import pytest
from little_host import LittleHost


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
