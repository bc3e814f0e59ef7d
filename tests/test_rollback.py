"""Rolling back: to where, what is restarted, and what is refused."""

from __future__ import annotations

import json
import os
import resource
import signal

import pytest
from built_releases import built, promoted, written_down
from clojure_repository import ClojureRepository as Tags
from conftest import NewHost
from little_host import LittleHost, wait_for

from deploy_clojars.host.journal import Event, now

FIRST, SECOND, THIRD = Tags.FIRST, Tags.SECOND, Tags.THIRD


@pytest.fixture
def three(new_light_host: NewHost) -> LittleHost:
    """0.1.0, 0.2.0 and 0.2.1 were promoted, one after the other; so the journal says."""
    host = new_light_host()
    host.serving(THIRD)
    host.have(FIRST)
    host.have(SECOND)
    adopted = Event(event="adopted", at=now(), version=FIRST)
    written_down(host, adopted, *built(host, SECOND, THIRD), *promoted(SECOND, THIRD))
    return host


@pytest.fixture
def three_deployed(light_host: LittleHost) -> LittleHost:
    """The same, by three runs of the tool."""
    for tag in (SECOND, THIRD):
        light_host.have(tag)
        light_host.done(tag, "--yes")
    return light_host


def test_a_rollback_goes_to_the_previous_release(light_host: LittleHost) -> None:
    host = light_host
    host.have(SECOND)
    host.done(SECOND, "--yes")
    with host.typing("rollback", "-m", "it eats uploads") as terminal:
        terminal.asked()
        assert host.versions == (SECOND, SECOND)
        terminal.types("yes")
        shown = terminal.ends(0)
    assert "only the code is rolled back, not the data" in shown
    assert "users are logged out" in shown
    assert host.versions == (FIRST, FIRST)
    assert host.current == f"clojars-web-{FIRST}-standalone.jar"
    assert host.status["ok"]


@pytest.mark.any_manager
def test_back_back_back_ends_at_the_bottom(three_deployed: LittleHost) -> None:
    host = three_deployed
    for version in (SECOND, FIRST):
        host.done("rollback", "--yes")
        assert host.versions == (version, version)
    result = host.run("rollback", "--yes")
    assert result.returncode == 1
    assert "there is no previous release" in result.stderr
    assert host.versions == (FIRST, FIRST)


@pytest.mark.any_manager
def test_no_changes_nothing(three: LittleHost) -> None:
    before = (three.current, three.pid("primary"), three.pid("backup"), three.events)
    with three.typing("rollback") as terminal:
        terminal.asked()
        terminal.types("no")
        terminal.ends(7)
    *events, called_off = three.events
    assert (three.current, three.pid("primary"), three.pid("backup"), events) == before
    assert called_off["event"] == "called off"
    assert not three.status["interrupted"]


@pytest.mark.any_manager
@pytest.mark.parametrize("command", ["rollback", "restart"])
def test_who_said_no_and_who_pressed_ctrl_c_is_in_the_history(
    three: LittleHost, command: str
) -> None:
    three.environment["SUDO_USER"] = "alice"
    with three.typing(command) as terminal:
        terminal.asked()
        terminal.types("no")
        terminal.ends(7)
    with three.typing(command) as terminal:
        terminal.asked()
        terminal.presses("c")
        terminal.ends(130)
    interrupted, declined = json.loads(three.run("history", "--json", "-n", "2").stdout)["runs"]
    asked_about = SECOND if command == "rollback" else THIRD
    for run, outcome, status in ((declined, "declined", 7), (interrupted, "interrupted", 130)):
        assert (run["command"], run["version"], run["by"]) == (command, asked_about, "alice")
        assert (run["outcome"], run["status"]) == (outcome, status)
    assert declined["why"] == f"the {command} was declined"
    assert json.loads(three.run("history", "--json", "-n", "1").stdout)["more"]


@pytest.mark.any_manager
def test_ctrl_c_at_the_question_changes_nothing(three: LittleHost) -> None:
    before = (three.current, three.pid("primary"), three.pid("backup"))
    with three.typing("rollback") as terminal:
        terminal.asked()
        terminal.presses("c")
        terminal.ends(130)
    assert (three.current, three.pid("primary"), three.pid("backup")) == before
    assert three.status["ok"]


@pytest.mark.any_manager
def test_ctrl_c_after_the_answer_does_not_cut_it_short(three: LittleHost) -> None:
    with three.typing("rollback", FIRST) as terminal:
        terminal.asked()
        terminal.types("yes")
        terminal.sees("flip")
        terminal.presses("c")
        terminal.ends(0)
    assert three.versions == (FIRST, FIRST)


@pytest.mark.any_manager
def test_without_a_terminal_it_needs_yes(three: LittleHost) -> None:
    result = three.run("rollback")
    assert result.returncode == 2
    assert "--yes" in result.stderr
    assert three.versions == (THIRD, THIRD)


@pytest.mark.any_manager
def test_a_version_that_is_not_there_lists_those_that_are(three: LittleHost) -> None:
    result = three.run("rollback", "0.0.1", "--yes")
    assert result.returncode == 1
    assert f"available: {FIRST}, {SECOND}, {THIRD}" in result.stderr
    assert three.versions == (THIRD, THIRD)


@pytest.mark.any_manager
def test_a_damaged_release_is_refused(three: LittleHost) -> None:
    for version in (FIRST, SECOND):  # whose checksum the journal lacks, and has
        path = three.releases / f"clojars-web-{version}-standalone.jar"
        path.write_bytes(path.read_bytes()[:-100])
        result = three.run("rollback", version, "--yes")
        assert result.returncode == 1
        assert "is not a valid jar" in result.stderr
    assert three.versions == (THIRD, THIRD)


@pytest.mark.any_manager
def test_what_is_there_already_is_not_restarted(three: LittleHost) -> None:
    before = (three.pid("primary"), three.pid("backup"))
    three.done("rollback", THIRD, "--yes")
    assert (three.pid("primary"), three.pid("backup")) == before


def test_only_what_does_not_run_the_target_is_restarted(three: LittleHost) -> None:
    primary = three.pid("primary")
    three.control("stop", three.backup)
    three.done("rollback", THIRD, "--yes")
    assert three.pid("primary") == primary
    assert three.versions == (THIRD, THIRD)
    assert three.status["ok"]


def test_with_the_primary_down_it_is_started_first(three: LittleHost) -> None:
    three.control("stop", three.primary)
    result = three.done("rollback", FIRST, "--yes")
    assert result.stderr.index("start clojars ") < result.stderr.index("restart clojars-backup")
    assert three.versions == (FIRST, FIRST)


def test_with_both_down_both_are_started(three: LittleHost) -> None:
    three.control("stop", three.primary)
    three.control("stop", three.backup)
    status = three.status
    assert status["next"] == f"deploy-clojars rollback {THIRD}"
    three.done("rollback", THIRD, "--yes")
    assert three.versions == (THIRD, THIRD)
    assert three.status["ok"]


def test_a_first_instance_that_does_not_come_up_puts_current_back(three: LittleHost) -> None:
    three.have("0.0.9", three.jar(FIRST))
    three.does_not_start("0.0.9", "primary", "backup")
    before = (three.current, three.versions, three.pid("primary"))
    result = three.run("rollback", "0.0.9", "--yes")
    assert result.returncode == 6
    assert "as before" in result.stderr
    assert "once the cause is fixed, run: deploy-clojars rollback 0.0.9\n" in result.stderr
    assert (three.current, three.versions, three.pid("primary")) == before
    assert three.status["ok"]


@pytest.mark.any_manager
def test_current_goes_back_to_what_it_named_when_the_answer_came(three: LittleHost) -> None:
    three.have("0.0.9", three.jar(FIRST))
    three.does_not_start("0.0.9", "primary", "backup")
    with three.typing("rollback", "0.0.9") as terminal:
        terminal.asked()
        three.link.unlink()
        three.link.symlink_to(f"clojars-web-{SECOND}-standalone.jar")
        terminal.types("yes")
        shown = terminal.ends(6)
    assert f"current is {SECOND} as before" in shown
    assert three.current == f"clojars-web-{SECOND}-standalone.jar"


def test_with_both_down_at_the_answer_nothing_is_put_back(three: LittleHost) -> None:
    three.does_not_start(FIRST, "primary", "backup")
    with three.typing("rollback", FIRST) as terminal:
        terminal.asked()
        three.control("stop", three.primary)
        three.control("stop", three.backup)
        terminal.types("yes")
        shown = terminal.ends(9)
    assert f"to go back: deploy-clojars rollback {THIRD}" in shown


@pytest.mark.any_manager
def test_a_release_that_is_gone_at_the_answer_is_refused_before_anything_is_done(
    three: LittleHost,
) -> None:
    with three.typing("rollback", FIRST) as terminal:
        terminal.asked()
        (three.releases / f"clojars-web-{FIRST}-standalone.jar").unlink()
        terminal.types("yes")
        shown = terminal.ends(1)
    assert f"no release {FIRST} in" in shown
    assert "begin" not in [event["event"] for event in three.events]
    assert three.versions == (THIRD, THIRD)


def test_a_second_instance_that_does_not_come_up_is_8_while_the_backup_serves(
    three: LittleHost,
) -> None:
    three.does_not_start(FIRST, "primary")
    result = three.run("rollback", FIRST, "--yes")
    assert result.returncode == 8
    assert three.version("backup") == FIRST
    status = three.status
    assert status["approved"] == THIRD
    assert status["next"] == f"deploy-clojars rollback {FIRST}"
    three.done("rollback", THIRD, "--yes")
    assert three.versions == (THIRD, THIRD)
    assert three.status["ok"]


@pytest.mark.any_manager
def test_the_next_deploy_says_who_rolled_it_back_and_why(three: LittleHost) -> None:
    three.environment["SUDO_USER"] = "alice"
    three.done("rollback", "--yes", "-m", "it eats uploads")
    with three.typing(THIRD) as terminal:
        terminal.asked()
        assert f"{THIRD} was rolled back on 20" in terminal.shown
        assert "by alice: it eats uploads" in terminal.shown
        terminal.types("no")
        terminal.ends(7)


@pytest.mark.any_manager
def test_foreign_jars_can_be_rolled_back_to(light_host: LittleHost) -> None:
    light_host.have("0.0.7", light_host.jar(FIRST))
    light_host.done("rollback", "0.0.7", "--yes")
    assert light_host.status["approved"] == "0.0.7"
    assert light_host.status["previous"] == FIRST


@pytest.mark.any_manager
def test_a_link_changed_by_hand_is_drift_and_the_bare_rollback_ends_it(
    three_deployed: LittleHost,
) -> None:
    three_deployed.link.unlink()
    three_deployed.link.symlink_to(f"clojars-web-{FIRST}-standalone.jar")
    status = three_deployed.status
    assert (status["drift"], status["ok"]) == (True, False)
    assert status["next"] == f"deploy-clojars rollback {THIRD}"
    refused = three_deployed.run(SECOND, "--yes")
    assert refused.returncode == 4
    assert f"rollback {THIRD}" in refused.stderr
    pids = (three_deployed.pid("primary"), three_deployed.pid("backup"))
    three_deployed.done("rollback", "--yes")
    assert (three_deployed.pid("primary"), three_deployed.pid("backup")) == pids
    assert three_deployed.status["ok"]


@pytest.mark.any_manager
def test_a_deploy_of_the_approved_release_ends_drift_too(three_deployed: LittleHost) -> None:
    host = three_deployed
    approved = host.status["approved"]
    *events, end = host.events
    end["left"] = {"current": FIRST, "primary": FIRST, "backup": FIRST}
    journal = "".join(f"{json.dumps(event)}\n" for event in (*events, end))
    (host.deploy / "journal.jsonl").write_text(journal, encoding="utf-8")
    assert host.status["drift"]
    pids = host.pid("primary"), host.pid("backup")
    host.done("deploy", approved, "--yes")
    assert not host.status["drift"]
    assert (host.pid("primary"), host.pid("backup")) == pids


@pytest.mark.any_manager
def test_a_rollback_does_not_need_a_journal_that_can_be_written(three: LittleHost) -> None:
    journal = three.deploy / "journal.jsonl"
    with journal.open("a") as file:
        file.write("\n" * 100_000)
    size = journal.stat().st_size
    result = three.run("rollback", FIRST, "--yes", largest_file=50_000)
    assert result.returncode == 0, result.stderr
    assert f"warning: the journal {journal} cannot be written" in result.stderr
    assert journal.stat().st_size == size
    assert three.versions == (FIRST, FIRST)


@pytest.mark.any_manager
def test_a_revert_does_not_need_a_journal_that_can_be_written(three: LittleHost) -> None:
    three.have("0.3.0-failing-tests")
    with three.typing("0.3.0-failing-tests") as terminal:
        terminal.asked()
        with (three.deploy / "journal.jsonl").open("a") as file:
            file.write("\n" * 100_000)
        resource.prlimit(terminal.pid, resource.RLIMIT_FSIZE, (50_000, 50_000))
        terminal.types("no")
        shown = terminal.ends(7)
    assert "warning: the journal" in shown
    assert three.versions == (THIRD, THIRD)


@pytest.mark.any_manager
def test_a_deploy_needs_a_journal_that_can_be_written(three: LittleHost) -> None:
    with (three.deploy / "journal.jsonl").open("a") as file:
        file.write("\n" * 100_000)
    result = three.run(SECOND, "--yes", largest_file=50_000)
    assert result.returncode == 1
    assert "cannot be written" in result.stderr
    assert three.versions == (THIRD, THIRD)


def test_a_rollback_killed_half_way_is_finished_by_the_same_rollback(
    light_host: LittleHost,
) -> None:
    host = light_host
    host.have(SECOND)
    host.done(SECOND, "--yes")
    with host.typing("rollback", FIRST, "-m", "it eats uploads") as terminal:
        terminal.asked()
        before = host.pid("backup")
        with host.comes_up_late(FIRST, "backup"):
            terminal.types("yes")
            wait_for(lambda: host.pid("backup") not in (before, None), "the backup restarts")
            terminal.kill(signal.SIGKILL)
            terminal.ends(137)
    assert host.status["interrupted"]
    assert host.status["next"] == f"deploy-clojars rollback {FIRST}"
    host.done("rollback", FIRST, "--yes")
    [rolled_back] = [event for event in host.events if event["event"] == "rolled back"]
    assert (rolled_back["previously"], rolled_back["why"]) == (SECOND, "it eats uploads")
    assert host.versions == (FIRST, FIRST)
    assert host.status["ok"]


@pytest.mark.any_manager
def test_no_release_at_all(new_light_host: NewHost) -> None:
    host = new_light_host()
    for words in (("rollback",), ("rollback", FIRST)):
        result = host.run(*words, "--yes")
        assert result.returncode == 1
        assert "no releases are installed" in result.stderr
    assert os.listdir(host.releases) == []


def test_an_instance_that_comes_back_after_a_failed_rollback_is_no_drift(
    three: LittleHost,
) -> None:
    three.have("0.0.9", three.jar(FIRST))
    three.does_not_start("0.0.9", "primary", "backup")
    three.control("stop", three.primary)
    assert three.run("rollback", "0.0.9", "--yes").returncode == 6
    three.comes_back("primary", THIRD)
    status = three.status
    assert (status["drift"], status["ok"]) == (False, True)
    three.done(SECOND, "--yes")
    assert three.versions == (SECOND, SECOND)


def test_with_both_down_a_release_that_does_not_start_is_not_the_only_way_on(
    three: LittleHost,
) -> None:
    three.does_not_start(FIRST, "primary", "backup")
    three.control("stop", three.primary)
    three.control("stop", three.backup)
    result = three.run("rollback", FIRST, "--yes")
    assert result.returncode == 9
    assert f"to go back: deploy-clojars rollback {THIRD}" in result.stderr
    assert three.status["next"] == f"deploy-clojars rollback {THIRD}"
    three.done("rollback", THIRD, "--yes")
    assert three.versions == (THIRD, THIRD)


@pytest.mark.any_manager
def test_a_dangling_link_is_never_mended_with_a_release_that_nobody_approved(
    three: LittleHost,
) -> None:
    three.have(Tags.DIES)
    with three.typing(Tags.DIES) as terminal:
        terminal.asked()
        terminal.types("no")
        terminal.ends(7)
    (three.releases / f"clojars-web-{THIRD}-standalone.jar").unlink()
    mend = f"ln -sfn clojars-web-{SECOND}-standalone.jar {three.link}"
    for words in ((Tags.DIES, "--yes"), ("rollback", SECOND, "--yes")):
        result = three.run(*words)
        assert result.returncode == 4
        assert mend in result.stderr
    assert three.status["next"] == mend


@pytest.mark.any_manager
def test_a_primary_that_serves_no_release_is_not_deployed_over(light_host: LittleHost) -> None:
    light_host.have(SECOND)
    (light_host.releases / f"clojars-web-{FIRST}-standalone.jar").rename(
        light_host.directory / "elsewhere.jar"
    )
    light_host.link.unlink()
    light_host.link.symlink_to(f"clojars-web-{SECOND}-standalone.jar")
    before = light_host.pid("primary")
    result = light_host.run(THIRD, "--yes")
    assert result.returncode == 4
    assert "which is not a release" in result.stderr
    assert light_host.pid("primary") == before
