"""An instance that runs and could not be restarted, because systemd does not take its file any more."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from little_host import wait_for
from systemd_kit import FIRST, SECOND, Kit, serving_kit

from deploy_clojars.config import BACKUP, parse
from deploy_clojars.deploy import steps
from deploy_clojars.errors import NotHealthy
from deploy_clojars.host.host import Host
from deploy_clojars.host.journal import Event, HostVersions, Journal, now
from deploy_clojars.host.services import Job
from deploy_clojars.run.run import Run

COMMANDS = (("deploy", SECOND), ("rollback", FIRST), ("restart",))
UNITS = {"primary": "clojars", "backup": "clojars-backup"}
FILE = "/etc/systemd/system/{}.service"
CONFIG = "/etc/deploy-clojars.toml"


@pytest.fixture(scope="module")
def kit() -> Iterator[Kit]:
    with serving_kit() as kit:
        kit.have(SECOND)
        yield kit


@pytest.fixture
def host(kit: Kit) -> Iterator[Kit]:
    """Both instances serve, and systemd takes their files."""
    for unit in UNITS.values():
        kit.machine.run("cp", FILE.format(unit), f"/root/{unit}")
    yield kit
    for unit in UNITS.values():
        kit.machine.run("rm", "-f", FILE.format(unit))
        kit.machine.run("cp", f"/root/{unit}", FILE.format(unit))
    kit.machine.run("sed", "-i", "s/^answer_timeout = .*/answer_timeout = 10/", CONFIG)
    kit.machine.run("rm", "-rf", "/home/clojars/deploy")
    kit.point_to(f"clojars-web-{FIRST}-standalone.jar")
    kit.systemctl("daemon-reload")
    kit.systemctl("restart", *UNITS.values())
    wait_for(lambda: kit.status["ok"], "both serve")


def spoil(host: Kit, unit: str, how: str) -> None:
    """Makes systemd refuse the file of a unit that goes on running."""
    file = FILE.format(unit)
    if how == "bad-setting":
        host.machine.write(file, "[Service]\n")
    else:
        host.machine.run("rm", file)
    if how == "masked":
        host.machine.run("ln", "-s", "/dev/null", file)
    host.systemctl("daemon-reload")


def hang(host: Kit, *pids: str) -> list[int]:
    """Stops processes and returns their PIDs here; the tool no longer waits long for an answer."""
    host.machine.run("sed", "-i", "s/^answer_timeout = .*/answer_timeout = 2/", CONFIG)
    outside = [host.machine.outside(int(pid)) for pid in pids]
    for pid in outside:
        os.kill(pid, signal.SIGSTOP)
    return outside


def pids(host: Kit) -> list[str]:
    """The main processes of both."""
    return host.systemctl("show", "--value", "-p", "MainPID", *UNITS.values()).split()


@pytest.mark.parametrize("how", ["bad-setting", "not-found", "masked"])
@pytest.mark.parametrize("roles", [["primary"], ["backup"], ["primary", "backup"]], ids=str)
def test_it_is_shown_and_nothing_is_restarted(host: Kit, how: str, roles: list[str]) -> None:
    before = pids(host)
    for role in roles:
        spoil(host, UNITS[role], how)
    whys = {
        role: f"{UNITS[role]} could not be restarted: {UNITS[role]}.service runs, but its file is now: {how}"
        for role in roles
    }  # fmt: skip
    text = host.tool("status").stdout
    for why in whys.values():
        assert f"\n{why}\n" in text
    status = host.status
    assert status["ok"] is True  # users are served as they should be
    for role, instance in status["instances"].items():
        assert (instance["obstacle"] is not None) is (role in roles)
        assert instance["serving"] is True
    verb = {"bad-setting": "systemctl status", "masked": "systemctl unmask", "not-found": "setup"}
    found = host.check()
    for role, why in whys.items():
        assert f"!!  {why}\n" in found
        unit = "" if how == "not-found" else f" {UNITS[role]}.service"
        assert f"{verb[how]}{unit}" in found
    for words in COMMANDS:
        refused = host.tool(*words, "--yes", by="clojars")
        assert refused.returncode == 4, refused.stderr
        for why in whys.values():
            assert why in refused.stderr
        assert "nothing was changed; " in refused.stderr
    assert pids(host) == before


def test_where_nothing_serves_a_rollback_starts_the_other_one(host: Kit) -> None:
    spoil(host, "clojars", "masked")
    host.systemctl("stop", "clojars-backup")
    [before, _] = pids(host)
    [hung] = hang(host, before)
    try:
        refused = host.tool("restart", "--yes", by="clojars")
        assert refused.returncode == 4
        assert "clojars could not be restarted" in refused.stderr
        assert host.status["next"] == f"deploy-clojars rollback {FIRST}"
        result = host.tool("rollback", SECOND, "--yes", by="clojars")
        assert result.returncode == 8, result.stderr
        assert f"clojars runs {FIRST}: is left alone" in result.stderr
        assert f"clojars-backup serves {SECOND}" in result.stderr
        assert "clojars could not be restarted: clojars.service runs" in result.stderr
    finally:
        os.kill(hung, signal.SIGCONT)
    assert pids(host)[0] == before
    assert host.status["instances"]["backup"]["serving"] is True


def test_where_nothing_serves_and_neither_could_be_restarted_a_rollback_is_refused(
    host: Kit,
) -> None:
    for unit in UNITS.values():
        spoil(host, unit, "masked")
    before = pids(host)
    hung = hang(host, *before)
    try:
        assert host.status["next"] == "deploy-clojars check"
        refused = host.tool("rollback", FIRST, "--yes", by="clojars")
        assert refused.returncode == 4, refused.stderr
    finally:
        for pid in hung:
            os.kill(pid, signal.SIGCONT)
    assert pids(host) == before


def test_a_restart_onto_a_broken_file_that_systemd_has_not_read_stops_nothing(host: Kit) -> None:
    host.machine.write(FILE.format("clojars-backup"), "[Service]\n")
    before = pids(host)
    # Which of the two depends on how long it has been running.
    assert re.search(
        r"!!  (systemd has not read the changed files of clojars-backup\.service|"
        r"/etc/systemd/system/clojars-backup\.service was changed after)",
        host.check(),
    )
    result = host.tool("restart", "--yes", by="clojars")
    assert result.returncode == 4, result.stderr
    assert "clojars-backup" in result.stderr
    assert "nothing was changed" in result.stderr
    assert "once it is fixed: as root: systemctl daemon-reload" in result.stderr
    assert pids(host) == before
    host.machine.run("cp", "/root/clojars-backup", FILE.format("clojars-backup"))
    host.systemctl("daemon-reload")
    done = host.tool("restart", "--yes", by="clojars")
    assert done.returncode == 0, done.stderr
    assert host.status["ok"] is True


def test_right_before_the_request_it_is_looked_at_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A drain may take a minute."""
    releases = tmp_path / "releases"
    releases.mkdir()
    (releases / f"clojars-web-{FIRST}-standalone.jar").touch()
    (releases / "clojars-web-current.jar").symlink_to(f"clojars-web-{FIRST}-standalone.jar")
    host = Host(parse({"home": str(tmp_path)}, "test"))
    spoilt = Job("running", 1, obstacle="its file is gone")
    monkeypatch.setattr(host.instances[BACKUP], "status", lambda: spoilt)
    run = cast(Run, SimpleNamespace(host=host))
    with pytest.raises(NotHealthy, match=r"^clojars-backup could not be restarted: its file is"):
        steps.refuse_a_restart(run, host.look(), BACKUP, FIRST, force=True)


def test_a_revert_leaves_it_alone_and_says_what_is_left_to_do(host: Kit) -> None:
    """A deploy was killed after the backup's restart, and the backup's file is broken since then."""
    journal = Journal(host.root / "home/clojars/deploy/journal.jsonl")
    host.machine.run("install", "-d", "-o", "clojars", "/home/clojars/deploy")
    left = HostVersions(current=FIRST, primary=FIRST, backup=FIRST)
    for event in (
        Event(event="adopted", at=now(), version=FIRST, left=left),
        Event(event="begin", at=now(), run="x", by="ann", command="deploy", version=SECOND),
        Event(event="flip", at=now(), run="x", version=SECOND, previously=FIRST),
    ):
        journal.append(event)
    host.machine.run("chown", "clojars:", "/home/clojars/deploy/journal.jsonl")
    host.point_to(f"clojars-web-{SECOND}-standalone.jar")
    host.systemctl("restart", "clojars-backup")
    wait_for(
        lambda: host.status["instances"]["backup"]["running"] == SECOND, f"it runs {SECOND}", 60
    )
    spoil(host, "clojars-backup", "bad-setting")
    before = pids(host)
    result = host.tool("deploy", SECOND, "--yes", by="clojars")
    assert result.returncode == 9, result.stderr
    assert f"the revert to {FIRST} is half done: clojars-backup runs {SECOND}, not {FIRST}" in result.stderr  # fmt: skip
    assert "clojars-backup could not be restarted: clojars-backup.service runs" in result.stderr
    assert os.readlink(host.link) == f"clojars-web-{FIRST}-standalone.jar"
    assert pids(host) == before
    # Once its file is right again, what is named is enough.
    host.machine.run("cp", "/root/clojars-backup", FILE.format("clojars-backup"))
    host.systemctl("daemon-reload")
    result = host.tool("rollback", FIRST, "--yes", by="clojars")
    assert result.returncode == 0, result.stderr
    assert host.status["ok"] is True
