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
from private_machine import ANN, Machine

FIRST, SECOND = Tags.FIRST, Tags.SECOND
SITE = "http://127.0.0.1/version"
JOURNAL = Path("/home/clojars/deploy/journal.jsonl")


def test_from_a_bare_host_to_a_release_and_back() -> None:
    with Machine.made() as machine:
        nothing_is_made_beside_what_nginx_refuses()
        what_nginx_refuses_is_taken_back()
        machine.set_up()
        a_second_setup_changes_nothing()
        assert pwd.getpwnam("clojars").pw_dir == "/home/clojars"
        subprocess.run(["visudo", "-c"], check=True)
        with machine.nginx():
            assert machine.get(SITE) is None
            deploy(machine, FIRST)
            deploy(machine, SECOND)
            with machine.ann_types("rollback", FIRST) as terminal:
                terminal.asked()
                terminal.types("yes")
                terminal.ends(0)
            assert machine.get(SITE) == FIRST
            everybody_finds_it_ready(machine)
            before = machine.upstart.pid("clojars")
            with machine.ann_types("restart") as terminal:
                terminal.asked()
                terminal.types("yes")
                terminal.ends(0)
            assert machine.upstart.pid("clojars") != before
            with machine.ann_types("status") as terminal:
                assert f"approved  {FIRST}" in terminal.ends(0)
            the_nailgun_port_answers()
            the_java_is_upstarts_own_process(machine)
            nothing_but_the_two_jobs_is_allowed(machine)
            the_message_of_the_day_teaches_the_command(machine)
        people = {json.loads(line).get("by") for line in JOURNAL.read_text().splitlines()}
        assert people == {ANN}
        log = "\n".join(machine.system_log)
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


def what_nginx_refuses_is_taken_back() -> None:
    """A site that uses the nailgun port's own kind of block has one already."""
    broken = Path("/etc/nginx/modules-enabled/80-own.conf")
    broken.write_text("stream { }\n")
    result = setup()
    assert result.returncode == 4
    assert "the files were taken back" in result.stderr
    assert '"stream" directive is duplicate' in result.stderr
    assert "--nailgun balance" in result.stderr
    for made in ("/etc/init/clojars.conf", "/etc/sudoers.d/deploy-clojars",
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


def deploy(machine: Machine, tag: str) -> None:
    """`sudo -iu clojars deploy-clojars TAG`, and what users get then."""
    with machine.ann_types(tag) as terminal:
        terminal.asked()
        assert "lein test" in terminal.shown
        terminal.types("yes")
        terminal.ends(0)
    assert machine.get(SITE) == tag


def everybody_finds_it_ready(machine: Machine) -> None:
    for result in (
        machine.as_clojars("deploy-clojars", "check"),
        subprocess.run(["deploy-clojars", "check"], capture_output=True, text=True, check=False),
    ):
        assert result.stdout.endswith("\nready\n"), result.stdout


def the_nailgun_port_answers() -> None:
    with socket.create_connection(("127.0.0.1", 7600), timeout=5):
        pass


def the_java_is_upstarts_own_process(machine: Machine) -> None:
    pid = machine.upstart.pid("clojars")
    assert Path(f"/proc/{pid}/comm").read_text().strip() == "java"
    assert Path(f"/proc/{pid}").owner() == "clojars"


def nothing_but_the_two_jobs_is_allowed(machine: Machine) -> None:
    for allowed in (["status", "clojars"], ["restart", "clojars-backup"]):
        result = machine.as_clojars("sudo", "-n", f"/sbin/{allowed[0]}", *allowed[1:])
        assert result.returncode == 0, result.stderr
    wait_for(lambda: machine.get("http://127.0.0.1:8002/version"), "the backup is back")
    for refused in (
        ["/sbin/restart", "clojars-balance"],
        ["/sbin/restart", "clojars", "X=1"],
        ["/sbin/restart"],
        ["/bin/true"],
        ["/bin/sh"],
    ):
        result = machine.as_clojars("sudo", "-n", *refused)
        assert result.returncode == 1, refused
        assert "password is required" in result.stderr


def the_message_of_the_day_teaches_the_command(machine: Machine) -> None:
    def shown() -> str:
        return subprocess.run(
            ["/etc/update-motd.d/60-deploy-clojars"], capture_output=True, text=True, check=True
        ).stdout

    assert "sudo -iu clojars deploy-clojars TAG" in shown()
    assert "drift" not in shown()
    link = Path("/home/clojars/releases/clojars-web-current.jar")
    link.unlink()
    link.symlink_to(f"clojars-web-{SECOND}-standalone.jar")
    assert f"next: deploy-clojars rollback {FIRST}" in shown()
    link.unlink()
    link.symlink_to(f"clojars-web-{FIRST}-standalone.jar")
