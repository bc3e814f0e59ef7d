"""What `status` tells: to people, to programs, and to users who may not see everything."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pexpect
import pytest
from clojure_repository import ClojureRepository as Tags
from conftest import NewHost
from little_host import ETC, LittleHost, wait_for
from programs import another_time_limit

from deploy_clojars import config
from deploy_clojars.commands import status
from deploy_clojars.host.host import Host

FIRST, SECOND = Tags.FIRST, Tags.SECOND


def test_the_json_has_the_keys_of_the_contract(light_host: LittleHost) -> None:
    document = light_host.status
    assert document == {
        "current": FIRST,
        "source": None,
        "approved": FIRST,
        "previous": None,
        "interrupted": False,
        "drift": False,
        "stale_drain_flag": False,
        "ok": True,
        "next": None,
        "lock": None,
        "instances": document["instances"],
    }
    assert set(document["instances"]) == {"primary", "backup"}
    for role, instance in document["instances"].items():
        keys = {"job", "state", "pid", "since", "running", "serving", "checks", "obstacle"}
        assert set(instance) == keys
        assert instance["obstacle"] is None
        assert instance["job"] == getattr(light_host, role)
        assert instance["state"] == "running"
        assert instance["pid"] == light_host.pid(role)
        assert instance["running"] == FIRST
        assert instance["serving"] is True
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", instance["since"])
        assert [set(check) for check in instance["checks"]] == [{"url", "ok", "ms", "detail"}] * 2


def test_an_instance_that_runs_and_could_not_be_restarted_is_shown(
    light_host: LittleHost,
) -> None:
    host = Host(config.load(light_host.config))
    report = status.report(host)
    backup = replace(report.look.backup, obstacle="its file is gone")
    assert status.as_one_line(report) == ""
    report = replace(report, look=replace(report.look, backup=backup))
    why = "clojars-backup could not be restarted: its file is gone"
    assert f"\n{why}\nok" in status.as_text(report)
    assert status.as_one_line(report) == why
    shown = json.loads(status.as_json(report))
    assert shown["instances"]["primary"]["obstacle"] is None
    assert shown["instances"]["backup"]["obstacle"] == "its file is gone"


def test_it_takes_no_lock_and_changes_nothing(light_host: LittleHost) -> None:
    light_host.done("status")
    assert not light_host.deploy.exists()


def test_people_get_lines_and_programs_get_json_on_standard_output(light_host: LittleHost) -> None:
    text = light_host.done("status")
    assert text.stderr == ""
    lines = text.stdout.splitlines()
    assert lines[:3] == [f"current   {FIRST}", f"approved  {FIRST}", "previous  none"]
    assert lines[-1] == "ok"


def test_a_stopped_backup_needs_a_person_and_the_command_is_named(light_host: LittleHost) -> None:
    light_host.control("stop", light_host.backup)
    result = light_host.run("status")
    assert result.returncode == 11
    assert "clojars-backup: stopped (clojars-backup stop/waiting)" in result.stdout
    assert f"next: deploy-clojars rollback {FIRST}" in result.stdout
    assert light_host.status["drift"] is False


def test_the_next_command_names_the_configuration_it_was_asked_with(
    light_host: LittleHost,
) -> None:
    light_host.control("stop", light_host.backup)
    result = light_host.run("-c", str(light_host.config), "status", "--json")
    following = json.loads(result.stdout)["next"]
    assert following == f"deploy-clojars -c {light_host.config} rollback {FIRST}"
    directory = Path(light_host.command[0]).parent
    for _ in range(2):  # typing it twice is harmless
        subprocess.run(
            ["sh", "-c", f"{following} --yes"],  # as an operator would paste it
            check=True,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PATH": f"{directory}:{os.environ['PATH']}"},
        )
    assert light_host.status["ok"]


def test_an_instance_on_another_release_is_drift(light_host: LittleHost) -> None:
    light_host.have(SECOND)
    light_host.done(SECOND, "--yes")
    light_host.control("stop", light_host.primary)
    light_host.link.unlink()
    light_host.link.symlink_to(f"clojars-web-{FIRST}-standalone.jar")
    light_host.control("start", light_host.primary)
    wait_for(lambda: light_host.version("primary") == FIRST, "the primary is up")
    document = light_host.status
    assert (document["drift"], document["ok"]) == (True, False)
    assert document["instances"]["primary"]["running"] == FIRST


def test_a_jar_that_is_no_release_is_told_by_its_path(light_host: LittleHost) -> None:
    jar = light_host.home / "hotfix.jar"
    jar.write_bytes(light_host.jar(SECOND).read_bytes())
    light_host.control("stop", light_host.backup)
    light_host.link.rename(light_host.link.with_suffix(".kept"))
    light_host.link.symlink_to(jar)
    light_host.control("start", light_host.backup)
    wait_for(lambda: light_host.version("backup") == SECOND, "the hotfix is up")
    document = light_host.status
    assert document["instances"]["backup"]["running"] == str(jar)
    assert document["current"] is None


def test_a_release_that_was_removed_under_its_process_is_told_by_its_path(
    light_host: LittleHost,
) -> None:
    (light_host.releases / f"clojars-web-{FIRST}-standalone.jar").unlink()
    running = light_host.status["instances"]["primary"]["running"]
    assert running == str(light_host.releases / f"clojars-web-{FIRST}-standalone.jar")


def test_a_check_that_fails_is_shown(light_host: LittleHost) -> None:
    os.kill(light_host.pid("backup") or 0, 19)  # SIGSTOP: it runs and does not answer
    try:
        started = time.monotonic()
        document = light_host.status
        backup = document["instances"]["backup"]
        assert (backup["state"], backup["serving"]) == ("running", False)
        assert "timed out" in backup["checks"][0]["detail"]
        assert time.monotonic() - started < 60  # it hangs for longer
    finally:
        os.kill(light_host.pid("backup") or 0, 18)


def test_without_upstart_the_state_is_unknown(new_light_host: NewHost, tmp_path: Path) -> None:
    host = new_light_host(services=f'bin = "{tmp_path}"')
    document = host.status
    assert {each["state"] for each in document["instances"].values()} == {"unknown"}
    assert (document["ok"], document["next"], document["drift"]) == (False, None, False)


def test_while_the_service_manager_cannot_be_reached_check_comes_next(
    ready: LittleHost,
) -> None:
    config = ready.config.read_text(encoding="utf-8")
    ready.config.write_text(
        re.sub(r'^(bin|socket) = ".*"', r'\1 = "/nowhere"', config, flags=re.MULTILINE),
        encoding="utf-8",
    )
    assert ready.status["next"] == "deploy-clojars check"
    found = ready.run("check")
    assert found.returncode == 11
    assert "!!  job clojars: " in found.stdout


def test_another_user_sees_what_is_public_and_no_drift(light_host: LittleHost) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")
    light_host.have(SECOND)
    light_host.done(SECOND, "--yes")
    for directory in (light_host.home, *light_host.home.parents):
        if directory.stat().st_uid == 0 and not directory.stat().st_mode & 0o001:
            directory.chmod(directory.stat().st_mode | 0o001)
    document, text = as_nobody(light_host)
    assert document["instances"]["primary"]["running"] is None
    assert document["instances"]["primary"]["serving"] is True
    assert (document["approved"], document["drift"], document["ok"]) == (SECOND, False, True)
    assert "what it runs is not visible to nobody" in text
    light_host.home.chmod(0o700)
    document, text = as_nobody(light_host)
    assert (document["current"], document["drift"], document["ok"]) == (None, False, False)
    assert "\nnot visible to nobody" in text
    assert "nothing is deployed" not in text


def test_to_another_user_who_may_not_ask_upstart_all_is_well_where_the_urls_answer(
    light_host: LittleHost, tmp_path: Path
) -> None:
    """Without D-Bus only root's socket answers."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")
    light_host.have(SECOND)
    light_host.done(SECOND, "--yes")
    for directory in (light_host.home, *light_host.home.parents):
        if directory.stat().st_uid == 0 and not directory.stat().st_mode & 0o001:
            directory.chmod(directory.stat().st_mode | 0o001)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/status").write_text(
        "#!/bin/sh\necho 'status: Unable to connect to system bus: Failed to connect' >&2\nexit 1\n"
    )
    (tmp_path / "bin/status").chmod(0o755)
    light_host.write_config(services=f'bin = "{tmp_path}/bin"')
    document, text = as_nobody(light_host)
    assert {each["state"] for each in document["instances"].values()} == {"unknown"}
    assert (document["ok"], document["drift"], document["next"]) == (True, False, None)
    assert "Unable to connect to system bus" in text
    light_host.control("stop", light_host.backup)
    document, _ = as_nobody(light_host)
    assert document["ok"] is False


def as_nobody(host: LittleHost) -> tuple[dict[str, Any], str]:
    """What `status` tells the user nobody, who may not see what root's processes have open."""
    reader, writer = os.pipe()
    loaded = Host(config.load(host.config))
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            report = status.report(loaded)
            answer = json.dumps([status.as_json(report), status.as_text(report)])
            os.write(writer, answer.encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        as_json, text = json.loads(pipe.read())
    os.waitpid(child, 0)
    return json.loads(as_json), text


def test_a_journal_that_cannot_be_read_does_not_hide_the_rest(light_host: LittleHost) -> None:
    light_host.deploy.mkdir()
    journal = light_host.deploy / "journal.jsonl"
    journal.mkdir()
    result = light_host.run("status")
    assert result.returncode == 11
    assert f"the journal {journal} cannot be read: Is a directory" in result.stdout
    assert f"clojars: {FIRST}, serving" in result.stdout
    refused = light_host.run(SECOND, "--yes")
    assert refused.returncode == 1
    assert f"error: the journal {journal} cannot be read" in refused.stderr


def test_a_reader_that_has_seen_enough_is_no_error(light_host: LittleHost) -> None:
    pipeline = f"{light_host.command[0]} status | true; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(
        ["bash", "-c", pipeline],
        env=light_host.whole_environment,
        capture_output=True,
        check=False,
        text=True,
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_a_server_that_drips_bytes_is_not_waited_for(light_host: LittleHost) -> None:
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        threading.Thread(target=drip, args=(server, stop), daemon=True).start()
        url = f"http://127.0.0.1:{port}/"
        light_host.write_config(**{"instances.backup": f'health = ["{url}"]'})
        checks = light_host.status["instances"]["backup"]["checks"]
        stop.set()
    assert [(check["ok"], check["detail"]) for check in checks] == [(False, "timed out")]
    assert 4000 < checks[0]["ms"] < 60_000  # it goes on for ever


def drip(server: socket.socket, stop: threading.Event) -> None:
    """Answers a byte every half second."""
    connection, _ = server.accept()
    with connection, suppress(OSError):
        while not stop.wait(0.5):
            connection.sendall(b"H")


@pytest.mark.parametrize(
    ("redirection", "status"), [(">&-", 0), ("2>&-", 0), ("<&-", 0), (">/dev/full", 1)]
)
def test_closed_and_full_streams_are_no_defects(
    light_host: LittleHost, redirection: str, status: int
) -> None:
    result = subprocess.run(
        ["sh", "-c", f"{light_host.command[0]} status {redirection}"],
        env=light_host.whole_environment,
        capture_output=True,
        check=False,
        text=True,
    )
    assert result.returncode == status
    assert "Traceback" not in result.stderr


def test_a_deploy_with_a_closed_input_needs_yes(light_host: LittleHost) -> None:
    result = subprocess.run(
        ["sh", "-c", f"{light_host.command[0]} {SECOND} <&-"],
        env=light_host.whole_environment,
        capture_output=True,
        check=False,
        text=True,
    )
    assert result.returncode == 2
    assert "standard input is not a terminal" in result.stderr


def test_quiet_says_nothing_if_all_is_well_and_one_line_if_not(light_host: LittleHost) -> None:
    host = light_host
    assert host.run("status", "-q").stdout == ""
    host.have(SECOND)
    host.done(SECOND, "--yes")
    host.control("stop", host.backup)
    host.link.unlink()
    host.link.symlink_to(f"clojars-web-{FIRST}-standalone.jar")
    result = host.run("-q", "status")
    assert result.returncode == 11
    [line] = result.stdout.splitlines()
    assert line.startswith("drift: ")
    assert line.endswith(f"next: deploy-clojars rollback {SECOND}")


def test_what_matters_is_in_colour_on_a_terminal_and_only_there(light_host: LittleHost) -> None:
    def shown(**environment: str) -> str:
        env = {**light_host.whole_environment, "TERM": "xterm", **environment}
        return str(
            pexpect.run(f"{light_host.command[0]} status", env=env, encoding="utf-8", timeout=180)
        )

    assert re.search(r"\x1b\[32m(\x1b\[1m)?ok\x1b\[0m", shown(NO_COLOR=""))
    assert "\x1b" not in shown(NO_COLOR="1")
    assert "\x1b" not in shown(NO_COLOR="", TERM="dumb")
    assert "\x1b" not in light_host.run("status").stdout


def test_a_login_says_which_instance_hangs(light_host: LittleHost, tmp_path: Path) -> None:
    directory = Path(light_host.command[0]).parent
    environment = {**light_host.whole_environment, "PATH": f"{directory}:{os.environ['PATH']}"}
    another_time_limit(tmp_path, was=10, now=60)  # to find out takes 5 s, and longer where all do
    backup = light_host.pid("backup") or 0
    os.kill(backup, signal.SIGSTOP)
    try:
        said = shown_at_a_login(tmp_path, **environment)
    finally:
        os.kill(backup, signal.SIGCONT)
    assert "clojars-backup: 0.1.0, NOT serving" in said
    assert "next: deploy-clojars rollback 0.1.0" in said


@pytest.mark.parametrize("script", ["exit 2", "exec sleep 60"])
def test_a_login_says_so_if_status_fails_or_hangs(script: str, tmp_path: Path) -> None:
    (tmp_path / "deploy-clojars").write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (tmp_path / "deploy-clojars").chmod(0o755)
    another_time_limit(tmp_path, was=10, now=0.5)  # not to wait for so long
    said = shown_at_a_login(tmp_path)
    assert said.endswith("the state is unknown, see: deploy-clojars status\n")


def shown_at_a_login(programs: Path, **environment: str) -> str:
    """The message of the day, with this directory first on PATH."""
    environment = {**os.environ, **environment}
    environment["PATH"] = f"{programs}:{environment['PATH']}"
    result = subprocess.run(
        [ETC / "update-motd.d" / "60-deploy-clojars"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return result.stdout
