"""The hook: told of every outcome, and never more than a warning."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from clojure_repository import ClojureRepository as Tags
from little_host import ETC, LittleHost, wait_for
from programs import require_program

from deploy_clojars.run.hook import MOST_OUTPUT, variables

FIRST, SECOND, THIRD = Tags.FIRST, Tags.SECOND, Tags.THIRD
TELLS = 'env | grep -a ^DEPLOY_ | sort >> "$HOOK_FILE"; echo >> "$HOOK_FILE"'


def with_hook(host: LittleHost, command: str, timeout: float = 60) -> Path:
    """Gives the host a hook; returns the file that `$HOOK_FILE` names in it."""
    file = host.directory / "told"
    script = host.directory / "hook"
    script.write_text(f"HOOK_FILE={file}\n{command}\n", encoding="utf-8")
    hook = f'command = "sh {script}"\ntimeout = {timeout}'
    host.write_config(health="settle = 0", hook=hook)
    return file


def told(file: Path) -> list[dict[str, str]]:
    """What the hook was told, call by call."""
    calls = file.read_text(encoding="utf-8").strip().split("\n\n") if file.exists() else []
    return [dict(line.split("=", 1) for line in call.splitlines()) for call in calls]


def test_it_is_told_of_every_outcome(light_host: LittleHost) -> None:
    host = light_host
    host.have(SECOND)
    host.environment["SUDO_USER"] = "ann"
    file = with_hook(host, TELLS)

    host.done(SECOND, "--yes")
    host.done("rollback", "--yes", "-m", 'it is "slow"\nand $(reboot)')
    host.done("rollback", FIRST, "--yes")
    with host.typing(THIRD) as terminal:
        terminal.asked()
        terminal.types("no")
        terminal.ends(7)
    host.run("0.99", "--yes")

    calls = told(file)
    keys = ("OUTCOME", "COMMAND", "VERSION", "STATUS", "PREVIOUS", "APPROVED", "APPROVED_BEFORE")
    assert [tuple(call[f"DEPLOY_{key}"] for key in keys) for call in calls] == [
        ("promoted", "deploy", SECOND, "0", FIRST, SECOND, FIRST),
        ("rolled back", "rollback", FIRST, "0", "", FIRST, SECOND),
        ("nothing to do", "rollback", FIRST, "0", "", FIRST, ""),
        ("declined", "deploy", THIRD, "7", "", FIRST, FIRST),
        ("failed", "deploy", "0.99", "1", "", FIRST, FIRST),
    ]
    assert {call["DEPLOY_USER"] for call in calls} == {"ann"}
    assert calls[1]["DEPLOY_WHY"] == 'it is "slow"; and $(reboot)'
    assert calls[4]["DEPLOY_WHY"].startswith("no tag 0.99 in ")
    assert Path(calls[4]["DEPLOY_LOG"]).parent == host.deploy / "logs"
    assert [event["outcome"] for event in host.events if event["event"] == "end"] == [
        "promoted", "rolled back", "declined", "failed",
    ]  # fmt: skip


def test_a_signal_and_a_kill_are_told_as_interrupted(light_host: LittleHost) -> None:
    host = light_host
    host.have(SECOND)
    host.have(THIRD)
    file = with_hook(host, TELLS)
    with host.typing(SECOND) as terminal:
        terminal.asked()
        terminal.presses("c")
        terminal.ends(130)
    with host.typing(SECOND) as terminal:
        terminal.asked()
        terminal.kill(9)
        terminal.ends(128 + 9)
    host.done(THIRD, "--yes")

    calls = told(file)
    assert [(each["DEPLOY_OUTCOME"], each["DEPLOY_STATUS"]) for each in calls] == [
        ("interrupted", "130"), ("interrupted", ""), ("promoted", "0"),
    ]  # fmt: skip
    assert calls[1]["DEPLOY_VERSION"] == SECOND
    assert calls[1]["DEPLOY_WHY"].startswith("it was cut off; reverted by ")


def test_it_runs_when_all_is_done_and_the_lock_is_still_held(light_host: LittleHost) -> None:
    host = light_host
    file = with_hook(host, f'{host.command[0]} status --json > "$HOOK_FILE"')
    host.write_config(
        build='env = ["DEPLOY_CLOJARS_CONFIG"]',
        hook=f'command = "sh {host.directory}/hook"\ntimeout = 60',
    )
    host.done("restart", "--yes")
    document = json.loads(file.read_text(encoding="utf-8"))
    assert document["ok"]
    assert document["lock"]["step"] == "hook"
    assert [event["event"] for event in host.events][-1] == "end"


@pytest.mark.parametrize(
    ("command", "warning"),
    [
        ("echo broken; exit 3", "warning: the hook failed: exit status 3; its output: "),
        ("kill -9 $$", "warning: the hook failed: exit status 137"),
        ("setsid sleep 1000 & sleep 1000", "warning: the hook failed: not done within 0.3 s"),
    ],
)
def test_a_hook_that_fails_is_a_warning_and_leaves_nothing(
    light_host: LittleHost, command: str, warning: str
) -> None:
    with_hook(light_host, command, timeout=0.3 if "0.3 s" in warning else 60)
    result = light_host.done("rollback", FIRST, "--yes")
    assert warning in result.stderr
    assert re.search(r"^  hook .* failed, [0-9.]+ s$", result.stderr, re.MULTILINE)
    assert light_host.processes_of_runs() == []
    assert light_host.run("0.99", "--yes").returncode == 1
    if "broken" in command:
        log = min((light_host.deploy / "logs").iterdir())
        assert "broken" in log.read_text(encoding="utf-8")


def test_in_the_log_a_line_of_the_tool_never_stands_behind_a_programs_last_words(
    light_host: LittleHost,
) -> None:
    with_hook(light_host, "printf done")
    light_host.done("rollback", FIRST, "--yes")
    [log] = (light_host.deploy / "logs").iterdir()
    lines = log.read_text(encoding="utf-8").splitlines()
    assert "done" in lines, lines


def test_the_next_run_calls_it_again_for_one_that_was_killed_in_it(light_host: LittleHost) -> None:
    host = light_host
    host.have(SECOND)
    file = with_hook(
        host, f'{TELLS}; [ "$DEPLOY_VERSION" = {FIRST} ] || exec sleep 1000', timeout=1000
    )
    with host.typing(SECOND, "--yes") as terminal:
        wait_for(lambda: file.exists() and file.read_text().endswith("\n\n"), "the hook runs")
        terminal.kill(9)
        terminal.ends(128 + 9)
    assert host.status["ok"]
    with_hook(host, TELLS)
    host.done("rollback", "--yes", "-m", "slow")
    host.done("rollback", FIRST, "--yes")
    assert host.processes_of_runs() == []
    keys = ("OUTCOME", "VERSION", "STATUS", "WHY", "PREVIOUS")
    assert [tuple(call[f"DEPLOY_{key}"] for key in keys) for call in told(file)] == [
        ("promoted", SECOND, "0", "", FIRST),  # the one that was killed
        ("promoted", SECOND, "0", "", ""),
        ("rolled back", FIRST, "0", "slow", ""),
        ("nothing to do", FIRST, "0", "", ""),
    ]


@pytest.mark.parametrize("command", ["yes", "yes | head -c 3000000", "setsid yes & sleep 1000"])
def test_a_hook_that_prints_without_end_leaves_a_megabyte(
    light_host: LittleHost, command: str
) -> None:
    with_hook(light_host, command, timeout=60)
    result = light_host.done("rollback", FIRST, "--yes")
    warning = "the hook failed: it printed more than 1.0 MB; its output: "
    assert f"warning: {warning}" in result.stderr
    [log] = (light_host.deploy / "logs").iterdir()
    assert MOST_OUTPUT < log.stat().st_size < MOST_OUTPUT + 5000
    assert warning in log.read_text(encoding="utf-8").splitlines()[-1]
    assert light_host.processes_of_runs() == []


def test_a_signal_does_not_end_it_and_does_not_change_the_status(light_host: LittleHost) -> None:
    host = light_host
    file = with_hook(host, 'touch "$HOOK_FILE"; while [ ! -e go ]; do sleep 0.05; done')
    with host.typing("rollback", FIRST, "--yes") as terminal:
        wait_for(file.exists, "the hook runs")
        terminal.presses("c")
        terminal.sees("signal noted; waiting for the hook, up to 60 s")
        (host.deploy / "go").touch()
        assert "the hook failed" not in terminal.ends(0)


def test_it_gets_no_secret_of_the_login_shell(light_host: LittleHost) -> None:
    light_host.environment["DATABASE_URL"] = "postgres://live"
    file = with_hook(light_host, 'env > "$HOOK_FILE"')
    light_host.done("rollback", FIRST, "--yes")
    names = {line.split("=")[0] for line in file.read_text(encoding="utf-8").splitlines()}
    assert "DATABASE_URL" not in names
    assert {"PATH", "HOME", "DEPLOY_OUTCOME"} <= names


def test_a_variable_is_one_line_of_bounded_length() -> None:
    why = variables(why="a\nb\0\x1b[31m\udcff" + "x" * 10_000)["DEPLOY_WHY"]
    assert why.startswith("a; b  [31m\\udcff")
    assert len(why) == 4000


# --- the examples -----------------------------------------------------------------------------

HOSTILE = 'it\'s "x" \\ $(touch here) `touch here` größer\n\t%s; } {'


@contextmanager
def listening() -> Iterator[tuple[str, list[tuple[str, dict[str, str], str]]]]:
    """An HTTP server; its address, and what was posted to it."""
    posted: list[tuple[str, dict[str, str], str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            posted.append((self.path, dict(self.headers), body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}", posted
        server.shutdown()


def call(example: str, secret: str, directory: Path, outcome: dict[str, str]) -> int:
    require_program("curl")
    file = directory / "secret"
    file.write_text(secret + "\n", encoding="utf-8")
    environment = {"PATH": os.environ["PATH"], **outcome}
    argv = [str(ETC.parent / "examples/hooks" / example), str(file)]
    done = subprocess.run(argv, env=environment, cwd=directory, capture_output=True, check=False)
    assert list(directory.iterdir()) == [file]
    return done.returncode


def test_the_chat_example_posts_the_outcome_whatever_is_in_it(tmp_path: Path) -> None:
    outcome = variables(
        outcome="failed", command="deploy", user="ann", version="0.2.0", status=5, why=HOSTILE
    )
    with listening() as (address, posted):
        assert call("chat", f"http://{address}/hooks/T1", tmp_path, outcome) == 0
    [(path, _, body)] = posted
    assert path == "/hooks/T1"
    why = outcome["DEPLOY_WHY"]
    assert json.loads(body) == {"text": f"ann: deploy 0.2.0: failed. {why}"}


@pytest.mark.parametrize(
    ("outcome", "status", "level"),
    [("promoted", 0, "info"), ("failed", 9, "fatal"), ("failed", 5, "error"),
     ("declined", 7, "warning"), ("interrupted", None, "warning")],
)  # fmt: skip
def test_the_sentry_example_posts_an_envelope(
    tmp_path: Path, outcome: str, status: int | None, level: str
) -> None:
    event = variables(
        outcome=outcome, command="deploy", user="ann", version="0.2.0", approved="0.1.0",
        status=status, why=HOSTILE,
    )  # fmt: skip
    with listening() as (address, posted):
        assert call("sentry", f"http://abc@{address}/42", tmp_path, event) == 0
    [(path, headers, body)] = posted
    assert path == "/api/42/envelope/"
    assert headers["X-Sentry-Auth"].endswith("sentry_key=abc")
    head, kind, text = map(json.loads, body.splitlines())
    assert (kind, head["event_id"]) == ({"type": "event"}, text["event_id"])
    why = event["DEPLOY_WHY"]
    assert text["message"] == f"deploy 0.2.0: {outcome}: {why}"
    assert (text["level"], text["release"]) == (level, "clojars-web@0.1.0")


def test_an_example_that_reaches_nobody_fails(tmp_path: Path) -> None:
    started = time.monotonic()
    promoted = variables(outcome="promoted", command="deploy", user="ann")
    assert call("chat", "http://127.0.0.1:1/", tmp_path, promoted) != 0
    assert time.monotonic() - started < 60
