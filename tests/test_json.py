"""`--json` of the commands that change the host: one object on standard output, whatever the end."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from clojure_repository import ClojureRepository as Tags
from little_host import LittleHost, at_a_terminal, wait_for

FIRST, SECOND, THIRD = Tags.FIRST, Tags.SECOND, Tags.THIRD

KEYS = (
    "outcome", "status", "changed", "from", "to", "seconds", "message", "detail", "remedy", "log",
)  # fmt: skip


def told(host: LittleHost, result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The object, checked against what standard error says."""
    return checked(host, result.stdout, result.stderr, result.returncode)


def checked(host: LittleHost, out: str, said: str, status: int) -> dict[str, Any]:
    ended: dict[str, Any] = json.loads(out)
    assert tuple(ended) == KEYS
    assert ended["status"] == status, said
    if status == 0:
        assert (ended["message"], ended["detail"], ended["remedy"]) == (None, [], None)
    else:
        assert f"error: {ended['message']}\n" in said
        assert all(f"\n  {line}\n" in said for line in (ended["remedy"] or "").splitlines())
        assert all(f"  | {line}\n" in said for line in ended["detail"])
    if ended["log"] is not None:
        assert Path(ended["log"]).parent == host.deploy / "logs"
        assert (ended["message"] or "") in Path(ended["log"]).read_text(encoding="utf-8")
    return ended


def run(host: LittleHost, *words: str) -> dict[str, Any]:
    return told(host, host.run(*words, "--json"))


def short(ended: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(ended[key] for key in ("outcome", "changed", "from", "to"))


def test_what_went_well_is_told_with_what_it_changed(light_host: LittleHost) -> None:
    host = light_host

    ended = told(host, dry := host.run("install", SECOND, "--dry-run", "--json"))
    assert short(ended) == ("dry run", True, None, SECOND)
    assert (ended["seconds"], ended["log"]) == ({}, None)
    assert "git -C " in dry.stderr  # and nothing but the object on standard output
    ended = run(host, "install", SECOND)
    assert short(ended) == ("installed", True, None, SECOND)
    assert {"fetch", "test", "build", "install"} <= set(ended["seconds"])
    assert short(run(host, "install", SECOND)) == ("nothing to do", False, None, SECOND)

    assert short(run(host, SECOND, "--dry-run")) == ("dry run", True, FIRST, SECOND)
    ended = run(host, SECOND, "--yes")
    assert short(ended) == ("promoted", True, FIRST, SECOND)
    assert {"fetch", "flip", "backup", "primary"} <= set(ended["seconds"])
    steps = {
        each["step"]: each["seconds"]
        for each in host.events
        if each["event"] == "done" and each["run"] == host.events[-1]["run"]
    }
    assert all(abs(ended["seconds"][step] - seconds) < 0.002 for step, seconds in steps.items())
    assert ended["log"] is not None
    for words in ((SECOND, "--yes"), (SECOND, "--dry-run")):
        assert short(run(host, *words)) == ("nothing to do", False, SECOND, SECOND)

    assert short(run(host, "restart", "--dry-run")) == ("dry run", True, SECOND, SECOND)
    assert short(run(host, "restart", "--yes")) == ("restarted", True, SECOND, SECOND)

    assert short(run(host, "rollback", "--dry-run")) == ("dry run", True, SECOND, FIRST)
    assert short(run(host, "rollback", "--yes")) == ("rolled back", True, SECOND, FIRST)
    ended = run(host, "rollback", FIRST, "--yes")
    assert short(ended) == ("nothing to do", False, FIRST, FIRST)
    assert host.status["ok"]


def test_at_a_terminal_the_question_and_the_steps_are_not_in_the_object(
    light_host: LittleHost, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    line = shlex.join([*light_host.command, "deploy", SECOND, "--json"])
    argv = ["/bin/sh", "-c", f"exec {line} > {shlex.quote(str(out))}"]
    environment = light_host.whole_environment
    with at_a_terminal(argv, environment, light_host.directory, 180) as terminal:
        terminal.asked()
        terminal.types("no")
        shown = terminal.ends(7).replace("\r", "")
    ended = checked(light_host, out.read_text(encoding="utf-8"), shown, 7)
    assert short(ended) == ("declined", True, FIRST, SECOND)
    assert ended["seconds"]["ask"] > 0


def test_what_is_refused_or_fails_is_told_with_its_remedy(light_host: LittleHost) -> None:
    host = light_host

    for words, to in (
        (("deploy", "status", "--yes"), None),
        (("deploy", SECOND, "--sha256", "1", "--yes"), None),
        (("deploy", SECOND), SECOND),  # there is no terminal
        (("deploy", SECOND, "-c", "/nowhere", "--yes"), SECOND),
        (("restart",), None),
    ):
        ended = run(host, *words)
        assert (ended["status"], ended["log"]) == (2, None)
        assert short(ended) == ("refused", False, None, to)
    assert host.run("deploy", "--json", "--no-such-option").stdout == ""
    assert not host.deploy.exists()

    ended = run(host, "rollback", "--yes")
    assert (ended["status"], *short(ended)) == (1, "refused", False, None, None)
    ended = run(host, "deploy", "no-such-tag", "--yes")
    assert (ended["status"], *short(ended)) == (1, "failed", False, FIRST, "no-such-tag")
    assert ended["seconds"]["fetch"] > 0

    host.write_config(build='test = "echo one; echo two; false"')
    ended = run(host, SECOND, "--yes")
    assert (ended["status"], *short(ended)) == (5, "failed", False, FIRST, SECOND)
    assert ended["detail"][-2:] == ["one", "two"]
    assert ended["seconds"]["test"] > 0
    host.write_config()

    host.have(THIRD)
    host.does_not_start(SECOND, "backup")
    ended = run(host, "deploy", SECOND, "--jar", str(host.jar(SECOND)), "--yes")
    assert (ended["status"], *short(ended)) == (6, "reverted", True, FIRST, SECOND)
    assert "did not come up" in ended["message"]
    assert host.versions == (FIRST, FIRST)

    host.does_not_start(THIRD, "primary")
    ended = run(host, "rollback", THIRD, "--yes")
    assert (ended["status"], *short(ended)) == (8, "failed", True, FIRST, THIRD)
    ended = run(host, "deploy", SECOND, "--yes")  # what is half done is to be finished first
    assert (ended["status"], ended["outcome"], ended["changed"]) == (4, "refused", False)


def test_a_signal_and_a_run_that_holds_the_lock_are_told(light_host: LittleHost) -> None:
    light_host.write_config(build='test = "sleep 600"\nuberjar = "false"')
    with subprocess.Popen(
        [*light_host.command, SECOND, "--yes", "--json"], env=light_host.whole_environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as tool:  # fmt: skip
        wait_for(lambda: light_host.is_at("test"), "the tests run")
        locked = run(light_host, "install", THIRD)
        tool.send_signal(signal.SIGTERM)
        out, said = tool.communicate()
    assert (locked["status"], *short(locked)) == (3, "refused", False, None, THIRD)
    assert f"kill -INT {tool.pid}" in locked["remedy"]
    ended = checked(light_host, out, said, 143)
    assert short(ended) == ("interrupted", False, FIRST, SECOND)


def test_nobody_needs_to_read_it(light_host: LittleHost) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "wb") as full:
        for out, said in ((writer, ""), (full.fileno(), "standard output cannot be written")):
            result = subprocess.run(
                [*light_host.command, "rollback", FIRST, "--yes", "--json"], stdout=out,
                stderr=subprocess.PIPE, env=light_host.whole_environment, text=True, check=False,
            )  # fmt: skip
            assert result.returncode == 0  # what was asked is so all the same
            assert said in result.stderr
    os.close(writer)


@pytest.mark.parametrize("file", [b"\xff.jar", b"a\nb", "ä\u202eb".encode()])
def test_a_name_that_is_no_text_is_told_as_far_as_it_can_be(
    light_host: LittleHost, file: bytes
) -> None:
    result = subprocess.run(
        [*light_host.command, "install", SECOND, "--json", "--jar", file], capture_output=True,
        env=light_host.whole_environment, check=False,
    )  # fmt: skip
    ended = json.loads(result.stdout)
    assert (ended["status"], ended["outcome"]) == (2, "refused")
    assert ended["message"].endswith(" cannot be read: No such file or directory")
