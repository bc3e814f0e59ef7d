"""What a run looks like on terminals wide and narrow, in a pipe, and where there is only ASCII."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pexpect
import pytest
from clojure_repository import ClojureRepository as Tags
from little_host import PROMPT, LittleHost, without_escapes

from deploy_clojars.screen.line import fitted

FIRST, SECOND = Tags.FIRST, Tags.SECOND


@pytest.mark.parametrize(
    ("what", "ending", "room", "expected"),
    [
        ("lein test", "2.4 s", 40, ("lein test", False)),
        ("restart clojars", "healthy on 0.2.0", 33, ("restart clojars", False)),
        ("restart clojars", "healthy on 0.2.0", 32, ("restart clojars", True)),
        ("https://example.org/a/long/url.git", "0.4 s", 33, ("https://example.org/a/lon…", False)),
        ("https://example.org/a/long/url.git", "a long ending", 25, ("https://example.org/a/lo…", True)),
        ("lein test", "", 9, ("lein test", False)),
        ("lein test", "", 4, ("lei…", True)),
    ],
)  # fmt: skip
def test_a_step_is_cut_to_its_line_and_its_ending_never_is(
    what: str, ending: str, room: int, expected: tuple[str, bool]
) -> None:
    assert fitted(what, ending, room) == expected


def deployed(host: LittleHost, columns: int, **environment: str) -> str:
    """All that a deploy of 0.2.0 writes to a terminal; it is promoted."""
    child = pexpect.spawn(
        host.command[0],
        [SECOND],
        env={**os.environ, **host.whole_environment, "TERM": "xterm", **environment},
        cwd=str(host.directory),
        encoding="utf-8",
        timeout=300,
        dimensions=(40, columns),
    )
    child.expect_exact(PROMPT)
    shown = child.before or ""
    child.sendline("yes")
    child.expect(pexpect.EOF)
    shown += PROMPT + (child.before or "")
    child.close()
    assert child.exitstatus == 0, shown
    return shown


@pytest.fixture
def host(light_host: LittleHost, monkeypatch: pytest.MonkeyPatch) -> LittleHost:
    """A host on which steps are alive: CI has none."""
    for name in ("CI", "NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    light_host.environment = {}
    return light_host


def lines_left(shown: str) -> list[str]:
    """What is left on the screen when every line that was written anew has been."""
    lines = [re.split(r"\r\x1b\[2K|\x1b\[1A\x1b\[2K", line)[-1] for line in shown.split("\n")]
    return [without_escapes(line).rstrip("\r") for line in lines]


def test_the_running_step_is_alive_and_what_is_left_of_it_is_one_line(host: LittleHost) -> None:
    shown = deployed(host, 200, COLUMNS="200")
    assert re.search(r"⠋|⠙|⠹|⠸", shown)
    assert "\x1b[?25l" not in shown  # a tool that is killed could not show the cursor again
    left = lines_left(shown)
    for name in ("fetch", "test", "build", "install", "flip", "backup", "primary"):
        assert sum(line.startswith(f"✓ {name} ") for line in left) == 1, (name, left)
    assert any(line.startswith("  in ") for line in left)


def test_at_sixty_columns_no_line_is_broken(host: LittleHost) -> None:
    host.have(SECOND)
    left = lines_left(deployed(host, 60, COLUMNS="60"))
    steps = [line for line in left if line.startswith(("✓", "    "))]
    assert max(map(len, steps)) < 60
    assert any(line.startswith("             healthy on 0.2.0 (PID") for line in left)


def test_no_color_has_no_colour(host: LittleHost) -> None:
    host.have(SECOND)
    shown = deployed(host, 100, NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", shown)


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"CI": "true"}])
def test_a_dumb_terminal_and_ci_get_plain_lines(
    host: LittleHost, environment: dict[str, str]
) -> None:
    host.have(SECOND)
    shown = deployed(host, 100, **environment)
    assert "⠋" not in shown
    assert "\x1b[2K" not in shown
    plain = without_escapes(shown)
    assert re.search(r"^  flip       current: 0\.1\.0 -> 0\.2\.0  \d\.\d s\r$", plain, re.MULTILINE)


def test_a_pipe_gets_no_escape_codes(host: LittleHost) -> None:
    host.have(SECOND)
    result = host.done(SECOND, "--yes")
    assert "\x1b" not in result.stderr
    assert result.stdout == ""


def test_where_there_is_only_ascii_nothing_else_is_shown(host: LittleHost) -> None:
    host.have(SECOND)
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    shown = deployed(host, 100, **plain)
    assert shown.isascii()
    assert any(line.startswith("+ primary ") for line in lines_left(shown))


def test_the_time_of_the_last_run_is_shown_beside_a_long_step(
    host: LittleHost, tmp_path: Path
) -> None:
    host.options["build"] = 'test = "sleep 2.2"\n' + host.options["build"].splitlines()[1]
    host.write_config()
    host.done(SECOND, "--yes")
    host.done("rollback", FIRST, "--yes")
    (host.releases / f"clojars-web-{SECOND}-standalone.jar").unlink()
    shown = deployed(host, 100)
    assert re.search(r"test .*[1-9] s \([1-9] s last time\)", without_escapes(shown))
