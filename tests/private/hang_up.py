"""A terminal that is closed under real sudo, a power cut, and an old host; run inside by test_seed_command_line.py."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from clojure_repository import ClojureRepository as Tags
from little_host import Terminal, wait_for
from private_machine import run, write
from seed_machine import OPT, Machine
from zip_application import zip_jar

FIRST, SECOND = Tags.FIRST, Tags.SECOND
HOME = Path("/home/clojars")
RELEASES = HOME / "releases"
BUILDING = HOME / "building"
OLD_SCRIPT = "#!/bin/sh\necho the old script\n"


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """An old host, file for file, on which `setup` ran; its releases need no JVM."""
    with Machine.made() as machine:
        an_old_host(machine)
        jars = OPT / "jars"
        for tag in (SECOND, Tags.THIRD):
            zip_jar(tag, machine.repository.commit(tag), jars)
        the_old_nginx_site_is_found(machine)
        machine.set_up()
        with Path("/etc/deploy-clojars.toml").open("a") as config:
            config.write(
                "[build]\nisolate = false\n"  # the tests of a tag tell this test that they run
                'test = "touch ~/building && sleep $(cat /opt/build-seconds)"\n'
                "uberjar = "
                f'"mkdir target && cp {jars}/*-$(cat resources/clojars/version.txt)-* target"\n'
            )
        write(OPT / "build-seconds", "0")
        without_jvm(machine)
        for job in ("clojars", "clojars-backup"):
            machine.manager.control("start", job)
        for port in (8001, 8002):
            wait_for(lambda port=port: version(machine, port) == FIRST, "the old host serves")  # type: ignore[misc]
        yield machine


def an_old_host(machine: Machine) -> None:
    """What the shell script of former times left: foreign jars, an absolute link, itself."""
    run("groupadd", "people")
    run("useradd", "--create-home", "--shell", "/bin/bash", "--gid", "people", "clojars")
    for directory in (RELEASES, HOME / "bin"):
        directory.mkdir()
    write(HOME / "bin/deploy-clojars", OLD_SCRIPT, 0o755)
    for number in range(1, 31):
        zip_jar(str(number), "0" * 40, RELEASES)
    first = zip_jar(FIRST, machine.repository.commit(FIRST), RELEASES)
    (RELEASES / "clojars-web-current.jar").symlink_to(first)
    run("chown", "-R", "clojars:", str(HOME))


def the_old_nginx_site_is_found(machine: Machine) -> None:
    """nginx itself only warns of two sites with one name, and takes the first."""
    old = Path("/etc/nginx/sites-enabled/000-old")
    old.symlink_to("../sites-available/old")
    write(
        Path("/etc/nginx/sites-available/old"), "server { listen 80; server_name clojars.org; }\n"
    )
    result = setup()
    assert result.returncode == 1, result.stdout
    assert f"{old} is another site for clojars.org" in result.stdout
    assert f"rm {old} && {machine.manager.reloads_nginx}" in result.stdout
    found = subprocess.run(["deploy-clojars", "check"], capture_output=True, text=True, check=False)
    assert f"{old} is another site for clojars.org" in found.stdout
    elsewhere = Path("/etc/nginx/old-sites/old.conf")
    elsewhere.parent.mkdir(parents=True)
    old.rename(elsewhere)
    write(Path("/etc/nginx/conf.d/elsewhere.conf"), "include /etc/nginx/old-sites/*.conf;\n")
    result = setup()
    assert f"{elsewhere} is another site for clojars.org" in result.stdout
    assert f"remove that server from {elsewhere}" in result.stdout
    Path("/etc/nginx/conf.d/elsewhere.conf").unlink()
    elsewhere.rename(old)
    # Nobody is told to run the old script with the argument `check`.
    assert f"next: mv {HOME}/bin/deploy-clojars" in result.stdout
    assert "next: sudo deploy-clojars check" in result.stdout
    assert "sudo -iu clojars deploy-clojars check" not in result.stdout + found.stdout
    old.unlink()


def setup() -> subprocess.CompletedProcess[str]:
    """`deploy-clojars setup` by root."""
    return subprocess.run(["deploy-clojars", "setup"], capture_output=True, text=True, check=False)


def without_jvm(machine: Machine) -> None:
    """The job files as they are but for the program that they start."""
    jvm = machine.manager.starts_jvm
    for job in ("clojars", "clojars-backup"):
        text = machine.manager.job_file(job).read_text()
        assert jvm in text
        python = jvm.replace("/usr/local/lib/clojars/java -Xmx512m -jar", "/usr/bin/python3 -I")
        machine.manager.install(job, text.replace(jvm, python))


def version(machine: Machine, port: int) -> str | None:
    """What an instance says that it is."""
    return machine.get(f"http://127.0.0.1:{port}/version")


def status(machine: Machine) -> dict[str, object]:
    """`status --json`, as clojars."""
    result = machine.as_clojars("deploy-clojars", "status", "--json")
    assert result.returncode in (0, 11), result.stderr
    document = json.loads(result.stdout)
    assert isinstance(document, dict)
    return document


def test_an_old_host_is_adopted(machine: Machine) -> None:
    # A login shell has ~/bin first.
    assert "the old script" in run("sudo", "-iu", "clojars", "deploy-clojars", SECOND)
    found = machine.as_clojars("deploy-clojars", "check")
    assert found.returncode == 11
    assert f"mv {HOME}/bin/deploy-clojars" in found.stdout
    (HOME / "bin/deploy-clojars").rename(HOME / "bin/deploy-clojars.old")
    jars = sorted(path.name for path in RELEASES.iterdir())
    assert os.readlink(RELEASES / "clojars-web-current.jar").startswith("/")
    with machine.ann_types(SECOND) as terminal:
        terminal.asked()
        terminal.types("yes")
        terminal.ends(0)
    assert version(machine, 8001) == SECOND
    # A jar that the tool did not make can be rolled back to, by its number.
    with machine.ann_types("rollback", "17") as terminal:
        terminal.asked()
        terminal.types("yes")
        terminal.ends(0)
    assert version(machine, 8001) == "17"
    with machine.ann_types("rollback", FIRST) as terminal:
        terminal.asked()
        terminal.types("yes")
        terminal.ends(0)
    assert {*jars} <= {path.name for path in RELEASES.iterdir()}
    assert status(machine)["ok"]


@pytest.mark.parametrize("use_pty", [True, False], ids=["use_pty", "no use_pty"])
@pytest.mark.parametrize("moment", ["question", "build", "revert"])
def test_a_closed_terminal_puts_everything_back(
    machine: Machine, moment: str, use_pty: bool
) -> None:
    (HOME / "bin/deploy-clojars").unlink(missing_ok=True)
    write(Path("/etc/sudoers.d/pty"), f"Defaults {'' if use_pty else '!'}use_pty\n", 0o440)
    before = (machine.manager.pid("clojars"), version(machine, 8001))
    tag = Tags.THIRD if moment == "build" else SECOND
    write(OPT / "build-seconds", "300" if moment == "build" else "0")
    BUILDING.unlink(missing_ok=True)
    with machine.ann_types(tag) as terminal:
        until(terminal, moment)
        terminal.hangs_up()
        wait_for(lambda: status(machine)["lock"] is None, "the run ends")
    now = status(machine)
    assert now["ok"], now
    assert (machine.manager.pid("clojars"), version(machine, 8001)) == before
    assert version(machine, 8002) == before[1]
    assert processes("sleep 300") == []


def until(terminal: Terminal, moment: str) -> None:
    """Waits for the moment at which the window is closed."""
    if moment == "build":
        wait_for(BUILDING.exists, "the tests run")
        return
    terminal.asked()
    if moment == "revert":
        terminal.types("no")
        terminal.sees("flip")


def processes(command: str) -> list[str]:
    """The processes with that command line."""
    lines = subprocess.run(["pgrep", "-fx", command], capture_output=True, text=True, check=False)
    return lines.stdout.split()


def power_is_cut_at_the_question(machine: Machine) -> None:
    """And comes back: the units start from the link as it is."""
    (HOME / "bin/deploy-clojars").unlink(missing_ok=True)
    write(OPT / "build-seconds", "0")
    with machine.ann_types(SECOND) as terminal:
        terminal.asked()
        machine.manager.loses_power()
    machine.manager.boot()
    assert SECOND in os.readlink(RELEASES / "clojars-web-current.jar")  # nothing reverted first
    for port in (8001, 8002):
        wait_for(lambda port=port: version(machine, port) == SECOND, "both are up")  # type: ignore[misc]


def test_after_a_power_cut_at_the_question_status_and_check_name_the_way_back(
    machine: Machine,
) -> None:
    with machine.nginx():
        power_is_cut_at_the_question(machine)
        wait_for(lambda: machine.get("http://127.0.0.1/version") == SECOND, "nginx serves, too")
        assert Path("/run/clojars").owner() == "clojars"
        now = status(machine)
        assert (now["ok"], now["interrupted"], now["lock"]) == (False, True, None)
        assert (now["current"], now["approved"]) == (SECOND, FIRST)
        assert now["next"] == f"deploy-clojars rollback {FIRST}"
        found = machine.as_clojars("deploy-clojars", "check")
        assert found.returncode == 11
        assert f"deploy-clojars rollback {FIRST}" in found.stdout
        with machine.ann_types("rollback", FIRST, "--yes") as terminal:
            terminal.ends(0)
        assert machine.get("http://127.0.0.1/version") == FIRST
    assert (version(machine, 8001), version(machine, 8002)) == (FIRST, FIRST)
    assert status(machine)["ok"]


def test_after_a_power_cut_at_the_question_the_same_deploy_reverts_first(machine: Machine) -> None:
    power_is_cut_at_the_question(machine)
    with machine.ann_types(SECOND) as terminal:
        terminal.sees("reverting it first")
        terminal.sees(f"reverted: {FIRST} is current and runs on both instances")
        terminal.asked()
        assert version(machine, 8001) == FIRST
        terminal.types("yes")
        terminal.ends(0)
    assert (version(machine, 8001), version(machine, 8002)) == (SECOND, SECOND)
    assert status(machine)["ok"]
