"""The seed's command line on a host that `setup` made; run inside by test_seed_command_line.py."""

from __future__ import annotations

import json
import os
import pwd
import socket
import subprocess
from pathlib import Path

from clojure_repository import ClojureRepository as Tags
from little_host import wait_for
from programs import another_time_limit
from seed_machine import ANN, OPT, Machine

FIRST, SECOND = Tags.FIRST, Tags.SECOND
SITE = "http://127.0.0.1/version"
JOURNAL = Path("/home/clojars/deploy/journal.jsonl")


def test_from_a_bare_host_to_a_release_and_back() -> None:
    with Machine.made() as machine:
        nothing_is_made_beside_what_nginx_refuses()
        what_nginx_refuses_is_taken_back(machine)
        machine.set_up()
        a_second_setup_changes_nothing()
        assert pwd.getpwnam("clojars").pw_dir == "/home/clojars"
        subprocess.run(["visudo", "-c"], check=True)
        with machine.nginx():
            users_are_asked_to_come_back(machine)
            deploy(machine, FIRST, "lein test")
            machine.has(SECOND)
            deploy(machine, SECOND, "not built again")
            a_release_that_does_not_start_says_why(machine)
            with machine.ann_types("rollback", FIRST) as terminal:
                terminal.asked()
                terminal.types("yes")
                terminal.ends(0)
            assert machine.get(SITE) == FIRST
            everybody_finds_it_ready(machine)
            before = machine.manager.pid("clojars")
            with Path("/etc/default/clojars").open("a") as settings:
                settings.write("OF_BOTH=1\n")
            machine.manager.sets("clojars", "OF_THIS_ONE=1")
            with machine.ann_types("restart") as terminal:
                terminal.asked()
                terminal.types("yes")
                terminal.ends(0)
            assert machine.manager.pid("clojars") != before
            assert {"OF_BOTH=1", "OF_THIS_ONE=1"} <= environment(machine, "clojars")
            assert {"OF_BOTH=1"} <= environment(machine, "clojars-backup")
            with machine.ann_types("status") as terminal:
                assert f"approved  {FIRST}" in terminal.ends(0)
            the_nailgun_port_answers()
            the_java_is_the_managers_own_process(machine)
            nothing_but_the_two_jobs_is_allowed(machine)
            the_message_of_the_day_teaches_the_command(machine)
        people = {json.loads(line).get("by") for line in JOURNAL.read_text().splitlines()}
        assert people == {ANN}
        log = machine.manager.system_log
        assert f"{ANN}: deploy {SECOND}: {SECOND} is in production" in log
        assert f"{ANN}: rollback {FIRST}: {FIRST} is in production again" in log


def setup() -> subprocess.CompletedProcess[str]:
    """`deploy-clojars setup` by root."""
    return subprocess.run(
        ["/usr/local/bin/deploy-clojars", "setup"], capture_output=True, text=True, check=False
    )


def nothing_is_made_beside_what_nginx_refuses() -> None:
    broken = Path("/etc/nginx/conf.d/broken.conf")
    broken.write_text("rubbish;\n")
    result = setup()
    assert result.returncode == 4
    assert "nginx already rejects its configuration; nothing was changed" in result.stderr
    assert 'unknown directive "rubbish"' in result.stderr
    assert "made" not in result.stdout
    broken.unlink()


def what_nginx_refuses_is_taken_back(machine: Machine) -> None:
    """A site that uses the nailgun port's own kind of block has one already."""
    broken = Path("/etc/nginx/modules-enabled/80-own.conf")
    broken.write_text("stream { }\n")
    result = setup()
    assert result.returncode == 4
    assert "the files were taken back" in result.stderr
    assert '"stream" directive is duplicate' in result.stderr
    assert machine.manager.without_stream in result.stderr
    for made in (machine.manager.job_file("clojars"), "/etc/sudoers.d/deploy-clojars",
                 "/etc/nginx/sites-enabled/clojars"):  # fmt: skip
        assert not os.path.lexists(made)
    broken.unlink()


def a_second_setup_changes_nothing() -> None:
    files = [path for path in Path("/etc").rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    result = setup()
    assert result.returncode == 0, result.stderr
    assert "\nmade" not in result.stdout
    assert {path: path.stat().st_mtime_ns for path in files} == before
    assert Path("/home/clojars/releases").owner() == Path("/run/clojars").owner() == "clojars"
    settings = Path("/etc/default/clojars").stat()
    assert (settings.st_mode & 0o777, Path("/etc/default/clojars").group()) == (0o640, "clojars")


def users_are_asked_to_come_back(machine: Machine) -> None:
    """While no instance serves."""
    status, page = machine.answer(SITE)
    assert status == 503
    assert "please try again" in page


def deploy(machine: Machine, tag: str, shown: str) -> None:
    """`sudo -iu clojars deploy-clojars TAG`, and what users get then."""
    with machine.ann_types(tag) as terminal:
        terminal.asked()
        assert shown in terminal.shown
        terminal.types("yes")
        terminal.ends(0)
    assert machine.get(SITE) == tag


def a_release_that_does_not_start_says_why(machine: Machine) -> None:
    """Its log is shown, or who can read it."""
    machine.has(Tags.THROWS_AT_START)
    with machine.ann_types(Tags.THROWS_AT_START) as terminal:
        shown = terminal.ends(6)
    assert "the end of its log" in shown
    assert machine.manager.log_of_the_backup in shown
    assert machine.get(SITE) == machine.get("http://127.0.0.1:8002/version") == SECOND


def environment(machine: Machine, job: str) -> set[str]:
    """The variables of an instance, each with its value."""
    return set(Path(f"/proc/{machine.manager.pid(job)}/environ").read_text().split("\0"))


def everybody_finds_it_ready(machine: Machine) -> None:
    for result in (
        machine.as_clojars("deploy-clojars", "check"),
        subprocess.run(["deploy-clojars", "check"], capture_output=True, text=True, check=False),
    ):
        assert result.stdout.endswith("\nready\n"), result.stdout


def the_nailgun_port_answers() -> None:
    with socket.create_connection(("127.0.0.1", 7600), timeout=60):
        pass


def the_java_is_the_managers_own_process(machine: Machine) -> None:
    pid = machine.manager.pid("clojars")
    assert Path(f"/proc/{pid}/comm").read_text().strip() == "java"
    assert Path(f"/proc/{pid}").owner() == "clojars"


def nothing_but_the_two_jobs_is_allowed(machine: Machine) -> None:
    for allowed in machine.manager.allowed:
        result = machine.as_clojars("sudo", "-n", *allowed.split())
        assert result.returncode == 0, result.stderr
    wait_for(lambda: machine.get("http://127.0.0.1:8002/version"), "the backup is back")
    for refused in (*machine.manager.refused, "/bin/true", "/bin/sh"):
        result = machine.as_clojars("sudo", "-n", *refused.split())
        assert result.returncode == 1, refused
        assert "password is required" in result.stderr


def the_message_of_the_day_teaches_the_command(machine: Machine) -> None:
    limits = OPT / "limits"
    limits.mkdir()
    another_time_limit(limits, was=10, now=120)  # the start of a tool without bytecode takes long

    def shown() -> str:
        return subprocess.run(
            ["/etc/update-motd.d/60-deploy-clojars"],
            env={**os.environ, "PATH": f"{limits}:{os.environ['PATH']}"},
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip

    assert "sudo -iu clojars deploy-clojars TAG" in shown()
    assert "drift" not in shown()
    link = Path("/home/clojars/releases/clojars-web-current.jar")
    link.unlink()
    link.symlink_to(f"clojars-web-{SECOND}-standalone.jar")
    assert f"next: deploy-clojars rollback {FIRST}" in shown()
    link.unlink()
    link.symlink_to(f"clojars-web-{FIRST}-standalone.jar")
