"""Nobody's text drives the terminal: every door to one, and each source whose text goes through."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from clojure_repository import ClojureRepository as Tags
from little_host import LittleHost

from deploy_clojars import cli
from deploy_clojars.errors import DeployError
from deploy_clojars.screen import tables
from deploy_clojars.screen.console import Console
from deploy_clojars.screen.tables import Column, Table
from deploy_clojars.screen.text import printable, printable_json

HARM = {
    "an escape": "\x1b[2J",
    "a title": "\x1b]0;owned\x07",
    "a carriage return": "\r",
    "a C1 control": "\x9b31m",
    "an override of direction": "\N{RIGHT-TO-LEFT OVERRIDE}",
    "a line separator": "\N{LINE SEPARATOR}",
    "a vertical tab": "\x0b",
    "a zero byte": "\0",
    "no Unicode": "\udc9b",
}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, café ✓", "plain, café ✓"),
        ("two\nlines", "two\nlines"),
        ("tab\tbed", "tab bed"),
        ("\x1b[2Jcleared", " [2Jcleared"),
        ("over\rwritten", "over written"),
        ("Continue? [yes/no] ", "Continue? [yes/no] "),
        ("\N{RIGHT-TO-LEFT OVERRIDE}gpj.exe", " gpj.exe"),
        ("latin \udce9", "latin \\udce9"),
    ],
)
def test_text_is_shown_without_control_characters(text: str, shown: str) -> None:
    assert printable(text) == shown


def step(console: Console, text: str) -> None:
    with console.step("fetch", text) as becomes:
        becomes(text)


DOORS: dict[str, Callable[[Console, str], object]] = {
    "say": lambda console, text: console.say(text),
    "tell": lambda console, text: console.tell(text),
    "warn": lambda console, text: console.warn(text),
    "page": lambda console, text: console.page([text], always=True),
    "raw": lambda console, text: console.raw(text),
    "error": lambda console, text: console.error(DeployError(text, remedy=text, detail=text)),
    "step": step,
    "trace": lambda console, text: console.trace(text),
}


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("door", DOORS)
def test_nothing_harmful_leaves_by_a_door_of_the_console(
    door: str, harm: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    console = Console()
    log = tmp_path / "logs" / "a.log"
    with console.logging_to(log):
        DOORS[door](console, f"before{HARM[harm]}after")
    shown = capfd.readouterr().err + log.read_bytes().decode()
    assert "before" in shown and "after" in shown
    assert all(line.isprintable() for line in shown.split("\n")), shown


def test_what_is_typed_at_a_question_reaches_the_log_without_its_controls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"\x1b[2J\x9b\nyes\n")
    os.close(writer)
    console, log = Console(), tmp_path / "logs" / "a.log"
    with os.fdopen(reader) as typed, console.logging_to(log):
        monkeypatch.setattr(sys, "stdin", typed)
        assert console.ask("Promote \x1b[31m1?", lambda: "\x1b[2Jnews")
    shown = capfd.readouterr().err + log.read_bytes().decode()
    assert "answered: " in shown
    assert all(line.isprintable() for line in shown.split("\n")), shown


@pytest.mark.parametrize("harm", HARM)
def test_nothing_harmful_is_in_a_result(harm: str, capfd: pytest.CaptureFixture[str]) -> None:
    text = f"before{HARM[harm]}after"
    cli._show_result(text)
    cli._show_result(tables.as_text(Table((Column("a"),), [(text,)], ((0,),))), tables.coloured)
    shown = capfd.readouterr().out
    assert shown.count("before") == shown.count("after") == 2
    assert all(line.isprintable() for line in shown.split("\n")), shown


@pytest.mark.parametrize("harm", [name for name in HARM if name != "no Unicode"])
def test_json_says_the_same_in_printable_characters(harm: str) -> None:
    document = {"detail": f"before{HARM[harm]}\U000e0001after", "a\nb": ["ünï"]}
    shown = printable_json(json.dumps(document, indent=2, ensure_ascii=False))
    assert json.loads(shown) == document
    assert all(line.isprintable() for line in shown.split("\n")), shown


# --- the sources ------------------------------------------------------------------------------


@pytest.fixture
def rude_server() -> Iterator[str]:
    """A server whose status line and body hold escape sequences; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(OSError):
                self.wfile.write(
                    b"HTTP/1.1 500 no\x1b[2J\x9bgood\r\nContent-Length: 5\r\n\r\n\x1b[31m"
                )

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_a_reason_phrase_drives_no_terminal(light_host: LittleHost, rude_server: str) -> None:
    light_host.write_config(health="timeout = 10")  # it never comes up
    config = light_host.config.read_text(encoding="utf-8")
    health = re.sub(
        r"(?s)(\[instances\.primary\].*?health = \[)", rf'\1"{rude_server}", ', config, count=1
    )
    assert health != config
    light_host.config.write_text(health, encoding="utf-8")
    for words in (["status"], ["status", "--json"], ["check"], ["rollback", Tags.FIRST, "--yes"]):
        result = light_host.run(*words)
        shown = result.stdout + result.stderr
        assert "500" in shown, shown
        assert all(line.isprintable() for line in shown.split("\n")), shown


def test_gits_words_drive_no_terminal(light_host: LittleHost) -> None:
    light_host.repository_url = f"file://{light_host.directory}/\u202enowhere"
    light_host.write_config()
    result = light_host.run(Tags.SECOND, "--yes")
    assert result.returncode == 1
    assert all(line.isprintable() for line in result.stderr.split("\n")), result.stderr


def test_the_last_lines_of_a_build_drive_no_terminal(light_host: LittleHost) -> None:
    light_host.write_config(build=r'''test = "printf 'no\\033[2J\\r\\233 good\\n'; exit 1"''')
    result = light_host.run(Tags.SECOND, "--yes")
    assert result.returncode == 5
    assert "good" in result.stderr
    assert all(line.isprintable() for line in result.stderr.split("\n")), result.stderr


def test_a_wrong_word_drives_no_terminal(light_host: LittleHost) -> None:
    result = light_host.run("--\x1b[2Jno", "deploy")
    assert result.returncode == 2
    assert all(line.isprintable() for line in result.stderr.split("\n")), result.stderr
