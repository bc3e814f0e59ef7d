"""What a run looks like on terminals wide and narrow, in a pipe, and where there is only ASCII."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pexpect
import pytest
from clojure_repository import ClojureRepository
from clojure_repository import ClojureRepository as Tags
from little_host import PROMPT, LittleHost, without_escapes
from zip_application import zip_jar

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
    shown = deployed(host, 60, COLUMNS="60")
    running = re.findall(r"[⠋-⠿] [^\r\n]*", without_escapes(shown))
    assert max(map(len, running)) == 60 - len("^C") - 1  # the cursor stays on the line after Ctrl-C
    left = lines_left(shown)
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
    assert re.search(r"test .*\b[1-9]\d* s \([1-9]\d* s last time\)", without_escapes(shown))


def test_no_variable_makes_a_pipe_a_terminal(host: LittleHost) -> None:
    host.have(SECOND)
    names = ("FORCE_COLOR", "CLICOLOR_FORCE", "CLICOLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    host.environment = dict.fromkeys(names, "1") | {"TERM": "xterm", "COLORTERM": "truecolor"}
    result = host.done("rollback", SECOND, "--yes")
    assert "\x1b" not in result.stderr
    step = r"^  flip       current: 0\.1\.0 -> 0\.2\.0  \d\.\d s$"
    assert re.search(step, result.stderr, re.MULTILINE)
    for word in ("status", "releases", "history", "check", "--help"):
        result = host.run(word)
        assert "\x1b" not in result.stdout + result.stderr, word


def test_no_variable_makes_a_terminal_a_pipe(host: LittleHost) -> None:
    host.have(SECOND)
    shown = deployed(host, 100, FORCE_COLOR="", TTY_COMPATIBLE="0", TTY_INTERACTIVE="0")
    assert any(line.startswith("✓ primary ") for line in lines_left(shown))


def test_no_color_is_obeyed_whatever_forces_colour(host: LittleHost) -> None:
    host.have(SECOND)
    shown = deployed(host, 100, NO_COLOR="1", FORCE_COLOR="1", CLICOLOR_FORCE="1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", shown)


def test_a_width_that_a_shell_exported_does_not_count(host: LittleHost) -> None:
    host.have(SECOND)
    left = lines_left(deployed(host, 60, COLUMNS="200", LINES="100"))
    assert max(len(line) for line in left if line.startswith(("✓", "    "))) < 60


def test_after_a_resize_lines_have_the_new_width(host: LittleHost) -> None:
    host.have(SECOND)
    host.environment = {"TERM": "xterm"}
    with host.typing(SECOND) as terminal:
        terminal.asked()
        before = len(terminal.shown)
        terminal.is_resized(24, 50)
        terminal.types("no")
        shown = terminal.ends(7)[before:]
    steps = [line for line in shown.splitlines() if line.startswith(("✓", "    "))]
    assert len(steps) >= 2, shown
    assert max(map(len, steps)) < 50
    assert host.versions == (FIRST, FIRST)


def test_a_terminal_that_does_not_know_its_size_is_used_all_the_same(host: LittleHost) -> None:
    host.have(SECOND)
    with host.typing(SECOND) as terminal:
        terminal.is_resized(0, 0)
        terminal.asked()
        terminal.types("no")
        terminal.ends(7)


def test_other_peoples_words_leave_room_for_the_question(
    host: LittleHost, repository: ClojureRepository, tmp_path: Path
) -> None:
    assert host.jars is not None
    other = ClojureRepository(tmp_path / "other")
    repository.checkout(FIRST, other.directory)
    version = other.directory / "resources/clojars/version.txt"
    version.write_text("9.0.0\n")
    long = "a word and another one, " * 400
    for number in range(15):
        other.git("commit", "--quiet", "--all", "--allow-empty", "-m", f"{number} {long}")
    other.git("tag", "9.0.0")
    zip_jar("9.0.0", other.commit("9.0.0"), host.jars)
    host.repository_url = other.url
    host.write_config()
    host.have("9.0.0")
    host.done("rollback", "9.0.0", "--yes")
    host.done("rollback", FIRST, "--yes", "-m", long)
    host.environment = {"TERM": "xterm"}
    with host.typing("9.0.0") as terminal:
        terminal.is_resized(24, 80)
        terminal.asked()
        page = terminal.shown[terminal.shown.index("────") :]
        terminal.types("no")
        terminal.ends(7)
    assert "0.1.0 -> 9.0.0, 15 commits" in page
    assert len(re.findall(r"^  [0-9a-f]{7,} \d+ a word and .*…\r?$", page, re.MULTILINE)) == 12
    assert "9.0.0 was rolled back on" in page
    assert len(page.splitlines()) <= 24
