"""`--dry-run`: what it prints is what would be done, and it touches nothing."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from clojure_repository import ClojureRepository as Tags
from front import in_front_of
from little_host import LittleHost, wait_for

from deploy_clojars.commands.dry_run import RehearsedReleases, rehearsal, rehearse
from deploy_clojars.config import load
from deploy_clojars.deploy import pipeline
from deploy_clojars.host import health
from deploy_clojars.host.host import Host
from deploy_clojars.host.releases import Releases
from deploy_clojars.run.run import Request

FIRST, SECOND, THIRD = Tags.FIRST, Tags.SECOND, Tags.THIRD


def everything(host: LittleHost) -> dict[str, tuple[int, int, str]]:
    """Every file below the home, with what would tell a change."""
    found = {}
    for path in [host.home, *host.home.rglob("*")]:
        at = os.lstat(path)
        text = os.readlink(path) if path.is_symlink() else ""
        found[str(path)] = (at.st_mtime_ns, at.st_size, text)
    return found


def dry(host: LittleHost, *words: str) -> list[str]:
    """What a dry run prints; nothing may be touched by it."""
    before, pids = everything(host), (host.pid("primary"), host.pid("backup"))
    result = host.done(*words, "--dry-run")
    assert result.stderr == ""
    assert everything(host) == before
    assert (host.pid("primary"), host.pid("backup")) == pids
    return result.stdout.splitlines()


def changes(lines: list[str]) -> list[str]:
    return [line for line in lines if not line.startswith("#")]


def test_a_deploy_is_shown_as_its_commands_and_nothing_is_touched(light_host: LittleHost) -> None:
    host = light_host
    lines = dry(host, SECOND)
    joined = "\n".join(lines)
    kinds = [shlex.split(line)[:2][-1 if line.startswith("git") else 0] for line in changes(lines)]
    assert kinds[0] == "mkdir"
    places = [
        joined.index(text)
        for text in (
            f"git init --bare {host.deploy}/mirror.git\n",
            f"fetch --prune {host.repository_url} '+refs/tags/*:refs/tags/*'\n",
            "git clone --shared --no-checkout ",
            "/bin/sh -c true\n",
            "target/**/*-standalone.jar ",
            f"{host.releases}/clojars-web-{SECOND}-standalone.jar && rm ",
            f"# current: {FIRST} -> {SECOND}\n",
            f"ln -s clojars-web-{SECOND}-standalone.jar ",
            f"mv -T {host.releases}/.deploy-clojars-new.link {host.link}\n",
            f"{host.upstart.bin}/restart clojars-backup\n",
            f"# wait until clojars-backup is healthy on {SECOND}\n",
            f"# ask: Promote {SECOND}?\n",
            f"{host.upstart.bin}/restart clojars\n",
        )
    ]
    assert places == sorted(places)
    assert not host.deploy.exists()


def test_a_release_that_is_there_is_not_built(light_host: LittleHost) -> None:
    host = light_host
    host.done(SECOND, "--yes")
    host.done("rollback", "--yes")
    lines = dry(host, "deploy", SECOND)
    assert f"# reuse: clojars-web-{SECOND}-standalone.jar" in lines
    assert not any("clone" in line for line in lines)
    assert dry(host, FIRST)[-1] == f"# {FIRST} is in production already; nothing to do"


def test_the_commands_of_a_rollback_and_of_a_restart_do_it(light_host: LittleHost) -> None:
    host = light_host
    host.have(SECOND)
    pids = host.pid("primary"), host.pid("backup")

    lines = dry(host, "rollback", SECOND)
    for command in changes(lines):
        subprocess.run(["sh", "-ec", command], check=True, capture_output=True)
    assert host.current == f"clojars-web-{SECOND}-standalone.jar"
    wait_for(lambda: host.versions == (SECOND, SECOND), "both serve the release")

    lines = dry(host, "restart")
    assert [shlex.split(line)[0].rpartition("/")[2] for line in changes(lines)] == [
        "stop", "start", "stop", "start",
    ]  # fmt: skip
    assert changes(lines)[0].endswith("/stop clojars-backup")
    assert pids != (host.pid("primary"), host.pid("backup"))


def test_the_commands_of_a_deploy_do_it(light_host: LittleHost) -> None:
    host = light_host
    lines = dry(host, SECOND)
    subprocess.run(["sh", "-e"], input="\n".join(lines), text=True, check=True, capture_output=True)
    assert host.current == f"clojars-web-{SECOND}-standalone.jar"
    wait_for(lambda: host.versions == (SECOND, SECOND), "both serve the release")


def test_the_jar_is_copied_from_where_the_configuration_says_however_that_is_written(
    light_host: LittleHost,
) -> None:
    host = light_host
    tag = "$(cat resources/clojars/version.txt)"
    host.write_config(
        build=f'test = "true"\n'
        f"uberjar = \"mkdir 'the $target' && cp {host.jars}/*-{tag}-* 'the $target'\"\n"
        'jar = "./the $target//[!x]*-standalone.ja?"'
    )
    lines = dry(host, SECOND)
    subprocess.run(["sh", "-e"], input="\n".join(lines), text=True, check=True, capture_output=True)
    assert host.current == f"clojars-web-{SECOND}-standalone.jar"
    assert host.jar(SECOND).read_bytes() == host.link.read_bytes()


def test_a_release_that_was_pruned_is_not_there_any_more(light_host: LittleHost) -> None:
    written: list[str] = []
    real = Releases(light_host.releases, "clojars-web")
    releases = RehearsedReleases(real, written.append)
    assert releases.has(FIRST)
    releases.remove(FIRST)
    assert (releases.has(FIRST), releases.size(FIRST), releases.versions()) == (False, None, [])
    assert real.has(FIRST)
    assert written == [f"rm {real.path(FIRST)}"]


@pytest.mark.parametrize("words", [(SECOND,), ("rollback", SECOND), ("restart",)])
def test_with_yes_nothing_is_asked(light_host: LittleHost, words: tuple[str, ...]) -> None:
    light_host.have(SECOND)
    assert not any("?" in line for line in dry(light_host, *words, "--yes"))
    assert [line for line in dry(light_host, *words) if line.endswith("?")]


def test_an_instance_that_stalls_for_seconds_is_waited_for_as_in_earnest(
    light_host: LittleHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = light_host
    monkeypatch.setattr(health, "CHECK_SECONDS", 0.2)
    pid = host.pid("backup") or 0
    os.kill(pid, signal.SIGSTOP)
    goes_on = threading.Timer(3, os.kill, (pid, signal.SIGCONT))
    goes_on.start()
    try:
        shown = rehearse(
            rehearsal(Host(load(host.config)), Request("deploy", SECOND)), pipeline.deploy
        )
    finally:
        goes_on.join()
    assert f"{host.upstart.bin}/restart clojars-backup" in shown.splitlines()


def test_a_lock_that_cannot_be_held_is_refused_as_in_earnest(light_host: LittleHost) -> None:
    lock = light_host.deploy / "lock"
    lock.mkdir(parents=True)
    for words in ((SECOND, "--dry-run"), (SECOND, "--yes")):
        refused = light_host.run(*words)
        assert refused.returncode == 4
        assert f"the lock {lock} cannot be opened: Is a directory\n  mv {lock} " in refused.stderr


def test_the_drain_is_shown_with_its_waits_and_a_flag_that_was_left(
    light_host: LittleHost,
) -> None:
    host = light_host
    host.have(SECOND)
    with in_front_of(host) as front:
        touch, rm = f"touch {front.flag}", f"rm {front.flag}"
        lines = dry(host, "rollback", SECOND)
        left_out = ("mkdir ", "ln -s ", "# ask")
        shown = [line for line in lines if not line.startswith(left_out)]
        assert [line.replace(f"{host.upstart.bin}/", "") for line in shown] == [
            f"# current: {FIRST} -> {SECOND}",
            "# wait until nginx has had no request in clojars-backup for 1 s",
            "restart clojars-backup",
            f"# wait until clojars-backup is healthy on {SECOND}",
            f"{touch}  # nginx prefers clojars-backup",
            "# wait until nginx has had no request in clojars for 1 s",
            "restart clojars",
            f"# wait until clojars is healthy on {SECOND}",
            rm,
        ]
        front.flag.touch()
        assert dry(host, "rollback", SECOND).count(rm) == 2
        assert front.flag.exists()


def test_the_order_of_the_restarts_is_the_one_in_earnest(light_host: LittleHost) -> None:
    host = light_host
    host.have(SECOND)
    host.control("stop", host.primary)
    lines = changes(dry(host, "rollback", SECOND))
    assert [line.rpartition("/")[2] for line in lines[-2:]] == [
        "start clojars", "restart clojars-backup",
    ]  # fmt: skip


def killed_at_the_question(host: LittleHost) -> None:
    host.have(SECOND)
    with host.typing(SECOND) as terminal:
        terminal.asked()
        terminal.kill(9)
        terminal.ends(128 + 9)


def test_an_interrupted_run_is_shown_to_be_reverted_first(light_host: LittleHost) -> None:
    host = light_host
    killed_at_the_question(host)
    lines = dry(host, THIRD)
    assert lines[0].startswith(f"# the deploy of {SECOND} by ")
    assert lines[1] == f"# current: {SECOND} -> {FIRST}"
    assert changes(lines)[1].endswith("/restart clojars-backup")
    assert host.status["interrupted"]
    # What comes then is shown as it is after that; there is one flip.
    for words in (("rollback", FIRST), (FIRST,)):
        assert len([line for line in dry(host, *words) if line.startswith("# current: ")]) == 1
        restarts = [line for line in dry(host, *words) if "/restart " in line]
        assert [line.rpartition("/")[2] for line in restarts] == ["restart clojars-backup"]
    assert dry(host, FIRST)[-1] == f"# {FIRST} is in production already; nothing to do"


def test_what_the_revert_of_an_interrupted_run_mends_is_no_reason_to_refuse(
    light_host: LittleHost,
) -> None:
    host = light_host
    killed_at_the_question(host)
    host.control("stop", host.primary)
    typed = [line.rpartition("/")[2] for line in dry(host, THIRD) if line.startswith("/")]
    assert typed == [
        "start clojars", "restart clojars-backup",  # the revert
        "restart clojars-backup", "restart clojars",
    ]  # fmt: skip
    host.done(THIRD, "--yes")


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("deploy", "0.99"), 1),
        (("rollback", "0.99"), 1),
        (("rollback",), 1),
        (("deploy", "0.1/2"), 2),
    ],
)
def test_what_is_refused_is_refused_with_the_same_status_and_words(
    light_host: LittleHost, words: tuple[str, ...], status: int
) -> None:
    before = everything(light_host)
    pretended = light_host.run(*words, "--dry-run")
    assert everything(light_host) == before
    real = light_host.run(*words, "--yes")
    assert pretended.returncode == real.returncode == status
    error = next(line for line in real.stderr.splitlines() if line.startswith("error: "))
    assert error in pretended.stderr
    assert pretended.stdout == ""


def test_a_host_that_is_not_ready_is_refused(light_host: LittleHost) -> None:
    light_host.control("stop", light_host.primary)
    for words in ((SECOND,), ("restart",)):
        pretended = light_host.run(*words, "--dry-run")
        assert pretended.returncode == light_host.run(*words, "--yes").returncode, words


def test_a_repository_that_is_not_there_is_an_error(light_host: LittleHost, tmp_path: Path) -> None:
    light_host.repository_url = f"file://{tmp_path}/none"
    light_host.write_config()
    result = light_host.run(SECOND, "--dry-run")
    assert result.returncode == 1
    assert "git ls-remote failed" in result.stderr


def test_a_tag_that_is_no_commit_is_refused_as_in_earnest(
    light_host: LittleHost, tmp_path: Path
) -> None:
    host = light_host
    git = ["git", "-C", str(tmp_path / "another")]
    subprocess.run(["git", "clone", "-q", host.repository_url, git[-1]], check=True)
    subprocess.run([*git, "tag", "2-tree", f"{SECOND}^{{tree}}"], check=True)
    host.repository_url = git[-1]
    host.write_config()
    pretended = host.run("2-tree", "--dry-run")
    real = host.run("2-tree", "--yes")
    assert pretended.returncode == real.returncode == 1
    for result in (pretended, real):
        assert "error: the tag 2-tree names a tree, not a commit" in result.stderr


def test_while_a_run_is_at_work_it_is_refused(light_host: LittleHost) -> None:
    host = light_host
    host.have(SECOND)
    with host.typing("rollback", SECOND) as terminal:
        terminal.asked()
        result = host.run(SECOND, "--dry-run")
        terminal.types("no")
        terminal.ends(7)
    assert result.returncode == 3
    assert "error: locked: rollback" in result.stderr
