"""The drain, with the real nginx in front: who gets requests while the instances restart."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from clojure_repository import ClojureRepository as Tags
from front import Front, asked, in_front_of, request_in
from little_host import LittleHost, wait_for

FIRST, SECOND = Tags.FIRST, Tags.SECOND


@pytest.fixture
def front(light_host: LittleHost) -> Iterator[Front]:
    """nginx in front of a host that serves 0.1.0 and has 0.2.0."""
    light_host.have(SECOND)
    with in_front_of(light_host, quiet="0.2", timeout="120") as front:
        yield front


@pytest.fixture
def impatient_host(light_host: LittleHost, front: Front) -> LittleHost:
    """The drain waits one second, less than any request of its tests takes."""
    del front
    light_host.options["drain"] = light_host.options["drain"].replace(
        "timeout = 120", "timeout = 1"
    )
    light_host.write_config()
    return light_host


def who_serves(host: LittleHost, front: Front) -> str | None:
    """Which instance gets a request now."""
    pid = asked(front, "/pid")
    return next((role for role in ("primary", "backup") if str(host.pid(role)) == pid), None)


def done_and_begun(host: LittleHost) -> list[str]:
    """What the journal says of the flag, the link and restarts, in order."""
    kept = ("drain", "flip", "restart", "undrain")
    return [
        " ".join(filter(None, (event["event"], event.get("instance"))))
        for event in host.events
        if event["event"] in kept
    ]


def test_a_request_in_the_primary_is_answered_before_its_restart(
    light_host: LittleHost, front: Front
) -> None:
    host = light_host
    with request_in(host, front, "primary") as request, host.typing(SECOND, "--yes") as terminal:
        terminal.sees("nginx prefers clojars-backup")
        wait_for(lambda: who_serves(host, front) == "backup", "new requests go to the backup")
        assert host.version("primary") == FIRST
        assert request.is_let_go() == FIRST
        terminal.ends(0)
    assert not front.flag.exists()
    assert who_serves(host, front) == "primary"
    assert done_and_begun(host) == [
        "flip", "restart backup", "drain primary", "restart primary", "undrain primary",
    ]  # fmt: skip


def test_a_request_in_the_backup_is_answered_before_the_flip(
    light_host: LittleHost, front: Front
) -> None:
    host = light_host
    host.control("stop", host.primary)
    with request_in(host, front, "backup") as request:
        host.control("start", host.primary)
        wait_for(lambda: host.version("primary") == FIRST, "the primary is back")
        with host.typing(SECOND, "--yes") as terminal:
            wait_for(lambda: host.is_at("drain"), "the backup's requests are waited for")
            assert host.current == f"clojars-web-{FIRST}-standalone.jar"
            assert request.is_let_go() == FIRST
            terminal.ends(0)


@pytest.mark.parametrize(
    "command",
    [pytest.param(("rollback", SECOND), marks=pytest.mark.any_manager), ("restart",)],
)
def test_rollback_and_restart_drain_too(
    light_host: LittleHost, front: Front, command: tuple[str, ...]
) -> None:
    with (
        request_in(light_host, front, "primary") as request,
        light_host.typing(*command, "--yes") as terminal,
    ):
        terminal.sees("nginx prefers clojars-backup")
        assert request.is_let_go() == FIRST
        terminal.ends(0)
    assert light_host.status["ok"]


@pytest.mark.any_manager
def test_out_of_time_a_deploy_is_reverted_and_says_who_holds_it_up(
    impatient_host: LittleHost, front: Front
) -> None:
    host = impatient_host
    before = host.pid("primary")
    with request_in(host, front, "primary") as request:
        result = host.run(SECOND, "--yes")
        assert result.returncode == 6, result.stderr
        assert "clojars still had requests from nginx after 1 s" in result.stderr
        assert f"nginx: 1 connection to port {host.ports[0]}" in result.stderr
        assert not front.flag.exists()
        assert request.is_let_go() == FIRST
    assert host.pid("primary") == before
    assert host.versions == (FIRST, FIRST)
    assert host.status["ok"]


@pytest.mark.parametrize(
    "command",
    [(SECOND, "--force"), pytest.param(("rollback", SECOND), marks=pytest.mark.any_manager)],
)
def test_out_of_time_force_and_rollback_go_on(
    impatient_host: LittleHost, front: Front, command: tuple[str, ...]
) -> None:
    host = impatient_host
    with request_in(host, front, "primary") as request:
        result = host.done(*command, "--yes")
        assert "still had requests from nginx after 1 s; continuing" in result.stderr
        assert request.result() is None
    assert host.versions == (SECOND, SECOND)
    assert host.status["ok"]


@pytest.mark.any_manager
def test_a_flag_that_nginx_does_not_follow_stops_a_deploy_and_no_rollback(
    light_host: LittleHost, front: Front
) -> None:
    host = light_host
    other = front.flag.with_name("other")
    host.options["drain"] = host.options["drain"].replace(str(front.flag), str(other))
    host.write_config()
    result = host.run(SECOND, "--yes")
    assert result.returncode == 6, result.stderr
    assert f"nginx ignores the drain flag {other}: it still answers primary" in result.stderr
    assert host.versions == (FIRST, FIRST)
    result = host.done("rollback", SECOND, "--yes")
    assert "nginx ignores the drain flag" in result.stderr
    assert not other.exists()
    assert host.status["ok"]


@pytest.mark.any_manager
def test_a_flag_that_cannot_be_set_is_refused_before_the_build(
    light_host: LittleHost, front: Front
) -> None:
    host = light_host
    front.flag.parent.rmdir()
    result = host.run(SECOND, "--yes")
    assert result.returncode == 4, result.stderr
    assert "the drain flag's directory, does not exist" in result.stderr
    result = host.done(SECOND, "--yes", "--force")
    assert "the drain flag" in result.stderr
    assert host.status["ok"]


@pytest.mark.any_manager
def test_a_directory_in_the_flags_place_tells_nginx_nothing_and_is_refused(
    light_host: LittleHost, front: Front
) -> None:
    host = light_host
    front.flag.mkdir()
    assert host.status["ok"]
    result = host.run(SECOND, "--yes")
    assert result.returncode == 4, result.stderr
    assert f"the drain flag {front.flag} exists and is not a regular file" in result.stderr
    assert (
        host.done("rollback", SECOND, "--yes").stderr.count("cannot be created: Is a directory")
        == 1
    )
    assert host.status["ok"]


@pytest.mark.any_manager
def test_without_a_probe_there_is_no_drain_and_that_is_said_once(light_host: LittleHost) -> None:
    host = light_host
    host.have(SECOND)
    result = host.done(SECOND, "--yes")
    assert result.stderr.count("does not say which instance nginx prefers") == 1
    assert "drain primary" not in done_and_begun(host)


@pytest.mark.any_manager
def test_a_visitor_past_nginx_is_named_and_not_waited_for(
    light_host: LittleHost, front: Front
) -> None:
    host = light_host
    with socket.create_connection(("127.0.0.1", host.ports[0])) as visitor:
        address = "{}:{}".format(*visitor.getsockname())
        result = host.done(SECOND, "--yes")
    assert f"not waited for, as they bypass nginx: {address}" in result.stderr


def test_a_nailgun_client_is_waited_for_and_then_cut(
    impatient_host: LittleHost, front: Front
) -> None:
    host = impatient_host
    with socket.create_connection(("127.0.0.1", front.nailgun_port)) as client:
        assert client.recv(100)
        result = host.done(SECOND, "--yes")
        assert "1 nailgun connection is cut" in result.stderr
        assert client.recv(100) == b""


def test_a_primary_that_does_not_come_back_leaves_the_flag(
    light_host: LittleHost, front: Front
) -> None:
    host = light_host
    host.does_not_start(SECOND, "primary")
    result = host.run(SECOND, "--yes")
    assert result.returncode == 8, result.stderr
    assert f"the drain flag {front.flag} stays" in result.stderr
    assert front.flag.exists()
    assert who_serves(host, front) == "backup"
    Path(f"{host.releases}/clojars-web-{SECOND}-standalone.jar.refused").unlink()
    host.done(SECOND, "--yes")
    assert not front.flag.exists()
    assert who_serves(host, front) == "primary"
    assert host.status["ok"]


@pytest.mark.any_manager
def test_a_signal_in_the_drain_reverts_and_removes_the_flag(
    light_host: LittleHost, front: Front
) -> None:
    host = light_host
    before = host.pid("primary")
    with request_in(host, front, "primary") as request:
        with host.typing(SECOND, "--yes") as terminal:
            wait_for(front.flag.exists, "the drain")
            terminal.presses("c")
            terminal.ends(130)
        assert request.is_let_go() == FIRST
    assert not front.flag.exists()
    assert (host.pid("primary"), host.versions) == (before, (FIRST, FIRST))
    assert host.status["ok"]


@pytest.mark.parametrize(
    "command",
    [
        (SECOND,),
        pytest.param(("rollback", SECOND), marks=pytest.mark.any_manager),
        pytest.param(("restart",), marks=pytest.mark.any_manager),
    ],
)
def test_a_signal_after_the_drain_does_not_keep_the_flag_from_being_removed(
    light_host: LittleHost, front: Front, command: tuple[str, ...]
) -> None:
    host = light_host
    before = host.pid("primary")
    with host.typing(*command, "--yes") as terminal:
        with host.comes_up_late(FIRST if command == ("restart",) else SECOND, "primary"):
            wait_for(lambda: front.flag.exists() and host.pid("primary") != before, "its restart")
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
                terminal.kill(signum)
            terminal.sees("signal noted")
        terminal.ends(0)
    assert not front.flag.exists()
    assert host.status["ok"]


@pytest.mark.any_manager
def test_a_revert_that_cannot_put_the_link_back_removes_the_flag_all_the_same(
    light_host: LittleHost, front: Front
) -> None:
    host = light_host
    with request_in(host, front, "primary"):
        with host.typing(SECOND, "--yes") as terminal:
            wait_for(front.flag.exists, "the drain")
            (host.releases / f"clojars-web-{FIRST}-standalone.jar").unlink()
            terminal.presses("c")
            shown = terminal.ends(9)
        assert "stopped by SIGINT; the revert failed" in shown
    assert not front.flag.exists()
    assert asked(front, "/version") == FIRST  # and not what nobody said yes to


@pytest.mark.any_manager
def test_killed_in_the_drain_users_are_served_and_the_next_run_cleans_up(
    light_host: LittleHost, front: Front
) -> None:
    host = light_host
    with request_in(host, front, "primary") as request:
        with host.typing(SECOND, "--yes") as terminal:
            wait_for(front.flag.exists, "the drain")
            terminal.kill(signal.SIGKILL)
            terminal.ends(137)
        assert asked(front, "/version") == SECOND
        status = host.status
        assert (status["stale_drain_flag"], status["ok"]) == (True, False)
        assert status["next"] == f"deploy-clojars rollback {FIRST}"
        assert "a drain flag was left behind" in host.run("status").stdout
        assert request.is_let_go() == FIRST
    host.done("rollback", FIRST, "--yes")
    assert not front.flag.exists()
    assert who_serves(host, front) == "primary"
    assert host.status["ok"]


@pytest.mark.any_manager
def test_a_stale_flag_is_removed_by_the_command_that_status_names(
    light_host: LittleHost, front: Front
) -> None:
    host = light_host
    front.flag.touch()
    status = host.status
    assert (status["ok"], status["next"]) == (False, f"deploy-clojars rollback {FIRST}")
    assert "a drain flag was left behind" in host.run("status", "-q").stdout
    before = (host.pid("primary"), host.pid("backup"))
    done = host.done("rollback", FIRST, "--yes")
    assert f"removing a drain flag that was left behind: {front.flag}" in done.stderr
    assert not front.flag.exists()
    assert (host.pid("primary"), host.pid("backup")) == before
    assert host.status["ok"]


def test_a_stale_flag_stays_while_the_primary_is_down(light_host: LittleHost, front: Front) -> None:
    host = light_host
    host.control("stop", host.primary)
    front.flag.touch()
    assert host.run(SECOND, "--yes").returncode == 4
    assert front.flag.exists()
    host.done("rollback", FIRST, "--yes")
    assert not front.flag.exists()
    assert host.status["ok"]


@pytest.mark.any_manager
def test_the_backup_is_never_restarted_under_a_flag(light_host: LittleHost, front: Front) -> None:
    """A run that was killed after the primary came up on the new release has left it."""
    host = light_host
    host.done("rollback", SECOND, "--yes")
    host.done("rollback", FIRST, "--yes")
    host.link.unlink()
    host.link.symlink_to(f"clojars-web-{SECOND}-standalone.jar")
    for job in (host.primary, host.backup):
        host.control("restart", job)
    wait_for(lambda: host.versions == (SECOND, SECOND), "both are up")
    before = len(done_and_begun(host))
    front.flag.touch()
    host.done("rollback", FIRST, "--yes")
    assert done_and_begun(host)[before:] == [
        "flip", "undrain primary", "restart backup",
        "drain primary", "restart primary", "undrain primary",
    ]  # fmt: skip
    assert host.versions == (FIRST, FIRST)
    assert host.status["ok"]


def test_a_backup_that_dies_during_the_drain_keeps_the_primary_from_being_restarted(
    light_host: LittleHost, front: Front
) -> None:
    host = light_host
    before = host.pid("primary")
    with request_in(host, front, "primary") as request, host.typing(SECOND, "--yes") as terminal:
        wait_for(front.flag.exists, "the drain")
        host.control("stop", host.backup)
        assert request.is_let_go() == FIRST
        terminal.ends(6)
    assert host.pid("primary") == before
    assert not front.flag.exists()
    assert host.versions == (FIRST, FIRST)
    assert host.status["ok"]


def test_a_backup_that_dies_during_the_last_look_is_refused_before_nothing_is_reverted_any_more(
    light_host: LittleHost, front: Front
) -> None:
    host = light_host
    look = host.directory / "look"  # while it is there the primary does not answer
    url = f"http://127.0.0.1:{host.ports[0]}/until-gone?{look}"
    host.write_config(health="answer_timeout = 120", **{"instances.primary": f'health = ["{url}"]'})
    before = host.pid("primary")

    def the_primary_is_drained() -> bool:
        events = [
            (event["event"], event.get("step", event.get("instance"))) for event in host.events
        ]
        drained = (
            events[events.index(("drain", "primary")) :] if ("drain", "primary") in events else []
        )
        return ("done", "drain") in drained

    with (
        request_in(host, front, "primary") as request,
        host.typing(SECOND, "--yes") as terminal,
    ):
        wait_for(front.flag.exists, "the drain")
        look.touch()
        assert request.is_let_go() == FIRST
        wait_for(the_primary_is_drained, "the last look")
        host.control("stop", host.backup)
        look.unlink()
        shown = terminal.ends(6)
    assert f"reverted: {FIRST} is current and runs on both instances" in shown
    assert host.pid("primary") == before
    assert "no return" not in [event["event"] for event in host.events]
    assert host.status["ok"]


@pytest.mark.any_manager
def test_a_backup_that_dies_during_a_rollbacks_drain_keeps_the_primary_from_being_restarted(
    light_host: LittleHost, front: Front
) -> None:
    host = light_host
    host.have(SECOND)
    before = host.pid("primary")
    with (
        request_in(host, front, "primary") as request,
        host.typing("rollback", SECOND, "--yes") as terminal,
    ):
        wait_for(front.flag.exists, "the drain")
        host.control("stop", host.backup)
        assert request.is_let_go() == FIRST
        shown = terminal.ends(6)
    assert f"{host.backup} no longer serves, and {host.primary} serves alone" in shown
    assert f"{host.backup} did not stay healthy on {SECOND}; current is {FIRST} as before" in shown
    assert f"once the cause is fixed, run: deploy-clojars rollback {SECOND}" in shown
    assert host.pid("primary") == before
    assert host.current == f"clojars-web-{FIRST}-standalone.jar"
    assert host.versions == (FIRST, FIRST)
    assert host.status["ok"]
