"""A release to many hosts by the collection's playbooks, on light hosts by local connection."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from clojure_repository import ClojureRepository
from fleet_sandboxes import Control, Fleet, Load, fleet_of
from little_host import wait_for

FIRST, SECOND, THIRD = ClojureRepository.FIRST, ClojureRepository.SECOND, ClojureRepository.THIRD
HOSTS = 3  # in three batches

pytestmark = [pytest.mark.slow, pytest.mark.any_manager]


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Control:
    return Control(tmp_path_factory.mktemp("fleet") / "control")


@pytest.fixture
def fleet(control: Control, tmp_path: Path, repository: ClojureRepository) -> Iterator[Fleet]:
    """The hosts, under load: every request to nginx on every host is answered."""
    sites: dict[str, str] = {}
    with fleet_of(HOSTS, tmp_path, control, repository, sites) as fleet:
        with Load(sites) as load:
            yield fleet
        assert load.failed == []
        assert set(load.requests) == set(fleet.hosts)


def test_a_release_goes_to_every_host_and_twice_changes_nothing(fleet: Fleet) -> None:
    before = fleet.files
    fleet.write_inventory(fleet_batches=[1, 2])
    checked = fleet.play("deploy", SECOND, "--check", "--diff")
    assert (checked.status, checked.batches) == (0, 2), checked.output
    assert "-in production: 0.1.0\n+in production: 0.2.0" in checked.output
    assert set(checked.table.values()) == {"0.1.0 0.1.0 0.1.0 would go from 0.1.0 to 0.2.0"}
    assert fleet.files == before
    assert fleet.releases == [FIRST] * HOSTS

    fleet.write_inventory()
    deployed = fleet.play("deploy", SECOND)
    assert (deployed.status, deployed.batches) == (0, HOSTS), deployed.output
    assert set(deployed.table.values()) == {"0.2.0 0.2.0 0.2.0 promoted, had 0.1.0"}
    assert fleet.releases == [SECOND] * HOSTS
    assert fleet.copies == []

    before = fleet.files
    again = fleet.play("deploy", SECOND)
    assert (again.status, again.changed) == (0, 0), again.output
    assert set(again.table.values()) == {"0.2.0 0.2.0 0.2.0 had 0.2.0 already"}
    assert fleet.releases == [SECOND] * HOSTS


def test_a_bad_release_is_stopped_at_the_first_host(fleet: Fleet) -> None:
    for host in fleet.hosts.values():
        host.does_not_start(SECOND, "backup")

    stopped = fleet.play("deploy", SECOND)

    assert stopped.status == 2
    assert stopped.failed == ["app01"]
    assert "stopped by app01; not changed: 2, taken back: 0" in stopped.output
    assert stopped.table["app01"] == "0.1.0 0.1.0 0.1.0 reverted (status 6)"
    assert stopped.table["app03"] == "0.1.0 0.1.0 0.1.0 not changed"
    assert fleet.touched == ["app01"]
    assert fleet.releases == [FIRST] * HOSTS


def test_after_a_failure_in_a_later_batch_all_go_back(fleet: Fleet) -> None:
    fleet.hosts["app03"].does_not_start(SECOND, "primary")  # after the point of no return
    out, in_again = fleet.hook("out"), fleet.hook("in")

    stopped = fleet.play("deploy", SECOND, fleet_out=str(out), fleet_in=str(in_again))

    assert stopped.status == 2
    assert stopped.failed == ["app03"]
    assert "stopped by app03; not changed: 0, taken back: 3" in stopped.output
    assert stopped.table["app03"] == "0.1.0 0.1.0 0.1.0 failed (status 8), taken back to 0.1.0"
    assert stopped.table["app02"] == "0.1.0 0.1.0 0.1.0 promoted to 0.2.0, taken back to 0.1.0"
    assert fleet.releases == [FIRST] * HOSTS
    assert fleet.hooks_ran == {name: ["out", "in"] for name in fleet.hosts}


def test_a_host_that_does_not_serve_the_release_at_the_end_makes_it_fail(fleet: Fleet) -> None:
    """As soon as app02 is promoted somebody takes it back, and then app03 is cut off."""
    meanwhile = fleet.control.directory / "meanwhile.yml"
    tasks = [
        {
            "ansible.builtin.command": "{{ fleet_program }} -c {{ fleet_config }} rollback --yes",
            "when": "inventory_hostname == 'app02'",
        },
        {
            "ansible.builtin.shell": "echo 0 before >{{ cut_by }}",
            "when": "inventory_hostname == 'app03'",
        },
    ]
    meanwhile.write_text(json.dumps(tasks), encoding="utf-8")

    ended = fleet.play("deploy", SECOND, fleet_in=str(meanwhile))

    assert ended.status == 2
    assert ended.failed == ["app02", "app03"]
    assert "hosts that do not serve 0.2.0 as they should: app02" in ended.output
    assert "it is not known what runs on app03" in ended.output
    assert "run the same command again; hosts that are done are skipped" in ended.output

    fleet.cut("app03").unlink()
    hooks = {"fleet_out": str(fleet.hook("out")), "fleet_in": str(fleet.hook("in"))}
    again = fleet.play("deploy", SECOND, **hooks)

    assert again.status == 0, again.output
    assert fleet.releases == [SECOND] * HOSTS
    # An earlier run may have been cut off while a host was out.
    assert fleet.hooks_ran == {"app01": ["in"], "app02": ["out", "in"], "app03": ["in"]}


def test_nothing_begins_while_a_host_is_not_ready(fleet: Fleet) -> None:
    fleet.cut("app01").write_text("0 before", encoding="utf-8")
    fleet.variables["app02"]["fleet_program"] = str(fleet.with_a_full_disk("app02"))
    fleet.write_inventory()
    with fleet.hosts["app03"].typing("deploy", THIRD) as other:
        other.asked()

        stopped = fleet.play("deploy", SECOND)

        assert stopped.status == 2
        assert stopped.failed == ["app01", "app02", "app03"]
        assert "unreachable before anything was changed" in stopped.output
        assert "(status 1)" in stopped.output
        assert "locked: deploy 0.2.1 by" in stopped.output
        other.types("no")
        other.ends(7)
    assert fleet.releases == [FIRST] * HOSTS


def test_the_same_command_goes_on_where_the_network_was_lost(fleet: Fleet) -> None:
    fleet.cut("app02").write_text("3 before", encoding="utf-8")  # on the way back
    fleet.cut("app03").write_text("2 after", encoding="utf-8")  # while it is promoted

    stopped = fleet.play("deploy", SECOND)

    assert stopped.status == 2
    assert stopped.failed == ["app02", "app03"]
    assert stopped.table["app01"] == "0.1.0 0.1.0 0.1.0 promoted to 0.2.0, taken back to 0.1.0"
    assert stopped.table["app02"] == "? ? ? promoted to 0.2.0, NOT taken back to 0.1.0"
    assert "unreachable while it was being changed" in stopped.table["app03"]
    assert stopped.table["app03"].endswith("runs 0.1.0 or 0.2.0")
    assert "it is not known what runs on app02, app03" in stopped.output
    assert fleet.releases == [FIRST, SECOND, SECOND]

    for name in ("app02", "app03"):
        fleet.cut(name).unlink()
    done = fleet.play("deploy", SECOND)

    assert done.status == 0, done.output
    assert done.table["app02"] == "0.2.0 0.2.0 0.2.0 had 0.2.0 already"
    assert done.table["app01"] == "0.2.0 0.2.0 0.2.0 promoted, had 0.1.0"
    assert fleet.releases == [SECOND] * HOSTS


def test_after_ctrl_c_in_any_batch_the_same_command_goes_on(fleet: Fleet) -> None:
    for host in fleet.hosts.values():
        with fleet.typing("deploy", SECOND, fleet_lock_wait=60) as playing:
            wait_for(
                lambda host=host: any(event.get("step") == "backup" for event in host.events),  # type: ignore[misc]
                "the host of this batch is at work",
            )
            playing.presses("c")
            playing.ends((1, 99))

    # As if it had been cut off between the copy and the install.
    copy = fleet.hosts["app01"].directory / ".deploy-clojars-0.2.0.jar"
    copy.touch()
    done = fleet.play("deploy", SECOND, fleet_lock_wait=60)

    assert done.status == 0, done.output
    assert fleet.copies == []
    assert fleet.releases == [SECOND] * HOSTS
    assert all(host.status["ok"] for host in fleet.hosts.values())


def test_the_fleet_goes_back_and_an_unreachable_host_holds_up_nobody(fleet: Fleet) -> None:
    with fleet.hosts["app03"].typing("deploy", THIRD) as interrupted:
        interrupted.asked()
        interrupted.kill(signal.SIGKILL)
        interrupted.ends(128 + signal.SIGKILL)
    wait_for(lambda: fleet.hosts["app03"].status["interrupted"], "the run counts as interrupted")
    deployed = fleet.play("deploy", SECOND)
    assert deployed.status == 0, deployed.output
    assert fleet.releases == [SECOND] * HOSTS
    fleet.cut("app02").write_text("0 before", encoding="utf-8")

    back = fleet.play("rollback", FIRST, fleet_why="uploads fail")

    assert back.status == 2
    assert back.failed == ["app02"]
    assert back.table["app02"] == "? ? ? unreachable before anything was changed"
    assert back.table["app01"] == "0.1.0 0.1.0 0.1.0 rolled back, had 0.2.0"
    assert fleet.releases == [FIRST, SECOND, FIRST]
    assert any(event.get("why") == "uploads fail" for event in fleet.hosts["app03"].events)

    fleet.cut("app02").unlink()
    again = fleet.play("rollback", FIRST)
    assert (again.status, again.changed) == (0, 1), again.output
    assert again.table["app01"] == "0.1.0 0.1.0 0.1.0 had 0.1.0 already"
    missing = fleet.play("rollback", "9.9.9")
    assert missing.status == 2
    assert "no release 9.9.9 on this host; nothing was changed" in missing.output
    assert fleet.releases == [FIRST] * HOSTS
