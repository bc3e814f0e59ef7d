"""A fleet of real hosts and ansible-playbook; run inside by test_fleet.py.

The tests follow one another on the same hosts, under load: each begins where the one before has ended.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from fleet_machines import FleetHost, LoadInside, Machines, fleet_of_machines
from little_host import at_a_terminal, wait_for
from private_machine import INSIDE
from systemd_machine import kill

pytestmark = pytest.mark.skipif(INSIDE not in os.environ, reason="only in a private network")

FIRST, SECOND, BAD, THIRD = "0.1.0", "0.2.0", "0.3.0", "0.4.0"
COUNT = 8  # in three batches: app01; app02 to app04; app05 to app08
TWO = "app01:app08"
PRIMARY, BACKUP = 8001, 8002


@pytest.fixture(scope="module")
def fleet() -> Iterator[Machines]:
    with fleet_of_machines(Path(os.environ[INSIDE]) / "fleet", COUNT) as fleet:
        # One has little room for releases.
        fleet.hosts["app07"].machine.run(
            "mount", "-t", "tmpfs", "-o", "size=68m,uid=clojars,gid=clojars", "tmpfs", RELEASES
        )
        yield fleet


RELEASES = "/home/clojars/releases"
BALLAST = f"{RELEASES}/ballast"


@pytest.fixture
def load(fleet: Machines) -> Iterator[None]:
    """Requests to nginx on every host, all of which are answered."""
    with LoadInside([*fleet.hosts.values()]) as load:
        yield
    assert load.failed == []
    assert set(load.requests) == set(fleet.hosts)


@contextmanager
def a_run_at_its_question(host: FleetHost, *words: str) -> Iterator[int]:
    """A person's run of the tool on the host, which waits for an answer; its PID there."""
    argv = host.machine.command("sudo", "-iu", "clojars", "deploy-clojars", *words)
    with at_a_terminal(argv, dict(os.environ), Path("/"), 60) as terminal:
        terminal.asked()
        yield host.status["lock"]["pid"]


@contextmanager
def meanwhile(condition: Callable[[], bool], *then: Callable[[], None]) -> Iterator[None]:
    """Does something while the block runs, as soon as the condition is true."""
    ended = threading.Event()

    def wait() -> bool:
        while not ended.is_set():
            if condition():
                for each in then:
                    each()
                return True
            time.sleep(0.05)
        return False

    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(wait)
        try:
            yield
        finally:
            ended.set()
        assert done.result(), "it never came to what was waited for"


def test_the_first_deploy(fleet: Machines) -> None:
    deployed = fleet.play("deploy", FIRST)

    assert deployed.status == 0, deployed.output
    assert set(deployed.table.values()) == {"0.1.0 0.1.0 0.1.0 promoted, had none"}
    assert fleet.releases == [FIRST] * COUNT


def test_nothing_begins_while_a_host_is_locked_full_or_unreachable(
    fleet: Machines, load: None
) -> None:
    locked, full, unreachable = (fleet.hosts[name] for name in ("app06", "app07", "app08"))
    full.machine.run("fallocate", "-l", "5m", BALLAST)
    unreachable.leaves_the_network()
    with a_run_at_its_question(locked, "restart"):
        stopped = fleet.play("deploy", SECOND, fleet_lock_wait=0)
    unreachable.joins_the_network()
    full.machine.run("rm", BALLAST)

    assert stopped.status == 2
    assert stopped.failed == ["app06", "app07", "app08"]
    assert "locked: restart 0.1.0 by" in stopped.output
    assert "the disk is full" in stopped.output
    assert "unreachable before anything was changed" in stopped.output
    assert stopped.table["app01"] == "0.1.0 0.1.0 0.1.0 not changed"
    assert stopped.table["app06"].startswith("0.1.0 0.1.0 0.1.0 failed before anything was changed")
    assert stopped.table["app08"].startswith("? ? ? unreachable before anything was changed")
    assert fleet.releases == [FIRST] * COUNT


def test_after_a_failure_in_the_third_batch_all_that_can_be_reached_go_back(
    fleet: Machines, load: None
) -> None:
    lost, fails, out = (fleet.hosts[name] for name in ("app02", "app06", "app07"))
    interrupted = fleet.hosts["app03"]
    with a_run_at_its_question(interrupted, SECOND) as pid:
        kill(interrupted.machine, pid)
    wait_for(lambda: interrupted.status["interrupted"], "the run counts as interrupted")
    fails.does_not_start(SECOND, PRIMARY)  # after the point of no return

    with (
        ExitStack() as held,
        meanwhile(
            lambda: out.is_at(SECOND, "backup"),
            out.leaves_the_network,
            lost.leaves_the_network,
            held.close,
        ),
    ):
        held.enter_context(out.comes_up_late(SECOND, BACKUP))  # nor is its deploy over before
        stopped = fleet.play("deploy", SECOND)
        print(stopped.output)  # for whoever reads of a failure

    assert stopped.status == 2
    assert stopped.failed == ["app02", "app06", "app07"]
    assert "it is not known what runs on app02, app07" in stopped.output
    taken_back = "0.1.0 0.1.0 0.1.0 promoted to 0.2.0, taken back to 0.1.0"
    for name in ("app01", "app03", "app04", "app05", "app08"):
        assert stopped.table[name] == taken_back
    assert stopped.table["app02"] == "? ? ? promoted to 0.2.0, NOT taken back to 0.1.0"
    assert stopped.table["app06"] == "0.1.0 0.1.0 0.1.0 failed (status 8), taken back to 0.1.0"
    assert stopped.table["app07"].startswith("? ? ? unreachable while it was being changed")
    assert stopped.table["app07"].endswith("runs 0.1.0 or 0.2.0")
    wait_for(lambda: out.status["lock"] is None, "the tool has gone on by itself")
    assert fleet.releases == [FIRST, SECOND, FIRST, FIRST, FIRST, FIRST, SECOND, FIRST]

    fails.starts(SECOND)
    out.joins_the_network()
    lost.joins_the_network()


def test_a_bad_release_is_stopped_at_the_first_host(fleet: Machines, load: None) -> None:
    before = fleet.releases
    runs = [len(host.events) for host in fleet.hosts.values()]
    for host in fleet.hosts.values():
        host.does_not_start(BAD, BACKUP)

    stopped = fleet.play("deploy", BAD)

    assert stopped.status == 2
    assert stopped.failed == ["app01"]
    assert "stopped by app01; not changed: 7, taken back: 0" in stopped.output
    assert stopped.table["app01"] == "0.1.0 0.1.0 0.1.0 reverted (status 6)"
    assert fleet.releases == before
    for host, count in zip([*fleet.hosts.values()][1:], runs[1:], strict=True):
        assert {event["command"] for event in host.events[count:] if "command" in event} == {
            "install"
        }


def test_the_same_command_goes_on_after_ctrl_c_in_any_batch(fleet: Machines, load: None) -> None:
    # A host of each batch, and those of later ones that do not serve it either.
    for name, later in (("app01", ["app03", "app05"]), ("app03", ["app05"]), ("app08", [])):
        # It is at work until the playbook has ended, however late Ctrl-C comes.
        held = fleet.hosts[name].comes_up_late(SECOND, BACKUP)
        with held, fleet.typing("deploy", SECOND) as playing:
            wait_for(
                lambda name=name: fleet.hosts[name].is_at(SECOND, "backup"),  # type: ignore[misc]
                "the batch is at work",
            )
            playing.presses("c")
            playing.ends((1, 2, 99, 130))
        assert not any(fleet.hosts[each].is_at(SECOND, "backup") for each in later)
    assert fleet.releases[:4] == [SECOND] * 4

    done = fleet.play("deploy", SECOND)
    assert done.status == 0, done.output
    assert fleet.releases == [SECOND] * COUNT
    assert all(host.status["ok"] for host in fleet.hosts.values())


def test_the_same_command_goes_on_after_the_death_of_the_control_node(
    fleet: Machines, load: None
) -> None:
    with fleet.typing("deploy", THIRD, fleet_hosts=TWO) as playing:
        wait_for(lambda: fleet.hosts["app08"].is_at(THIRD, "backup"), "the second host is at work")
        workers = psutil.Process(playing.pid).children(recursive=True)
        playing.kill(signal.SIGKILL)
        for worker in workers:
            with suppress(psutil.NoSuchProcess):  # it has ended with the playbook
                worker.kill()
    assert fleet.releases[0] == THIRD

    done = fleet.play("deploy", THIRD, fleet_hosts=TWO)
    assert done.status == 0, done.output
    assert [*done.table] == ["app01", "app08"]
    assert fleet.releases == [THIRD, *[SECOND] * (COUNT - 2), THIRD]
    assert all(host.status["ok"] for host in fleet.hosts.values())


def test_the_next_release_changes_only_hosts_that_do_not_serve_it(
    fleet: Machines, load: None
) -> None:
    before = {name: host.restarts for name, host in fleet.hosts.items()}

    deployed = fleet.play("deploy", THIRD)

    assert deployed.status == 0, deployed.output
    for name, host in fleet.hosts.items():
        served = name in ("app01", "app08")
        happened = "had 0.4.0 already" if served else "promoted, had 0.2.0"
        assert deployed.table[name] == f"0.4.0 0.4.0 0.4.0 {happened}"
        assert deployed.changed_on(name) == (0 if served else 4)  # copy, install, remove, promote
        assert host.restarts == before[name] + (0 if served else 2)
    assert fleet.releases == [THIRD] * COUNT


def test_twice_and_in_check_mode_nothing_changes(fleet: Machines, load: None) -> None:
    restarts = [host.restarts for host in fleet.hosts.values()]

    again = fleet.play("deploy", THIRD)
    assert (again.status, again.changed) == (0, 0), again.output
    assert set(again.table.values()) == {"0.4.0 0.4.0 0.4.0 had 0.4.0 already"}
    assert [host.restarts for host in fleet.hosts.values()] == restarts

    runs = [len(host.events) for host in fleet.hosts.values()]
    checked = fleet.play("deploy", FIRST, "--check", "--limit", "app01,app08")
    assert checked.status == 0, checked.output
    assert set(checked.table.values()) == {"0.4.0 0.4.0 0.4.0 would go from 0.4.0 to 0.1.0"}
    assert [len(host.events) for host in fleet.hosts.values()] == runs
    assert fleet.releases == [THIRD] * COUNT
