"""Pruning: what goes after a promotion and by hand, and what must stay whatever happens."""

from __future__ import annotations

import os
import signal

import pytest
from built_releases import keeping, promoted, written_down
from clojure_repository import ClojureRepository as Tags
from little_host import LittleHost, wait_for

from deploy_clojars import config
from deploy_clojars.deploy import prune
from deploy_clojars.errors import DeployError
from deploy_clojars.host.host import Host
from deploy_clojars.host.journal import Event, HostVersions, now
from deploy_clojars.host.releases import Releases
from deploy_clojars.run.run import Request, started
from deploy_clojars.screen.console import Console

FIRST, SECOND, THIRD = Tags.FIRST, Tags.SECOND, Tags.THIRD


def there(host: LittleHost) -> set[str]:
    """The versions of the releases that are there."""
    return {
        path.name.removeprefix("clojars-web-").removesuffix("-standalone.jar")
        for path in host.releases.glob("*-standalone.jar")
    }


def test_nothing_is_pruned_by_default_and_prune_says_so(light_host: LittleHost) -> None:
    result = light_host.done("prune")
    assert result.stderr == "keep_releases is 0: nothing is pruned\n"
    assert not light_host.deploy.exists()


def test_one_that_was_never_promoted_goes_and_is_named(three_built: LittleHost) -> None:
    keeping(three_built, 2)
    result = three_built.done("prune")
    assert f"  prune      {SECOND}, " in result.stderr
    assert there(three_built) == {FIRST, THIRD}
    kinds = [each["event"] for each in three_built.events if each.get("version") == SECOND]
    assert kinds == ["installed", "prune", "pruned"]
    assert three_built.events[-1]["outcome"] == "pruned"
    status = three_built.status
    assert status["ok"]
    assert (status["approved"], status["previous"]) == (THIRD, FIRST)

    events = three_built.events
    result = three_built.done("prune")
    assert result.stderr == "nothing to prune\n"
    assert three_built.events == events


def test_what_a_promotion_has_made_too_old_goes_last_and_is_never_previous_again(
    three_built: LittleHost,
) -> None:
    keeping(three_built, 1)
    result = three_built.done(SECOND, "--yes")
    in_production = result.stderr.index(f"{SECOND} is in production")
    assert in_production < result.stderr.index(f"  prune      {FIRST}, ")
    assert there(three_built) == {SECOND, THIRD}
    assert three_built.status["previous"] == THIRD

    three_built.done("rollback", "--yes")
    status = three_built.status
    assert (status["ok"], status["approved"], status["previous"]) == (True, THIRD, None)
    refused = three_built.run("rollback", "--yes")
    assert refused.returncode == 1
    assert "there is no previous release to roll back to" in refused.stderr


def test_one_that_was_not_made_by_this_tool_stays(three_built: LittleHost) -> None:
    three_built.have("0.0.9", three_built.jar(FIRST))
    by_hand = three_built.releases / f"clojars-web-{SECOND}-standalone.jar"
    with by_hand.open("ab") as jar:
        jar.write(b"another build, put in its place")
    keeping(three_built, 1)
    assert three_built.done("prune").stderr == "nothing to prune\n"
    assert there(three_built) == {"0.0.9", FIRST, SECOND, THIRD}


def test_nothing_is_pruned_on_a_host_that_needs_a_person(three_built: LittleHost) -> None:
    keeping(three_built, 1)
    three_built.control("stop", three_built.backup)
    result = three_built.run("prune")
    assert result.returncode == 4
    assert f"  first: deploy-clojars rollback {THIRD}\n" in result.stderr
    assert SECOND in there(three_built)


def test_nothing_is_pruned_while_what_an_instance_runs_is_not_known(
    three_built: LittleHost,
) -> None:
    keeping(three_built, 1)
    three_built.control("stop", three_built.backup)
    web, nailgun = three_built.ports[1::2]
    asleep = three_built.job_file(
        three_built.backup, web, nailgun, **{r"exec .*": "exec sleep 600"}
    )
    three_built.upstart.install(three_built.backup, asleep)
    three_built.control("start", three_built.backup)
    result = three_built.run("prune")
    assert result.returncode == 4
    assert "cannot tell what these run: clojars-backup (" in result.stderr
    assert SECOND in there(three_built)


def test_one_that_an_instance_runs_stays(three_built: LittleHost) -> None:
    """Whatever the link and the journal say: somebody has restarted by hand, and flipped back."""
    written_down(three_built, *promoted(THIRD, FIRST, THIRD))
    for version in (SECOND, THIRD):
        three_built.link.unlink()
        three_built.link.symlink_to(f"clojars-web-{version}-standalone.jar")
        if version == SECOND:
            three_built.control("restart", three_built.backup)
            wait_for(lambda: three_built.version("backup") == SECOND, "the backup runs it")
    keeping(three_built, 1)
    three_built.run("prune")
    assert there(three_built) == {FIRST, SECOND, THIRD}
    # After a promotion nothing else keeps it: neither current nor approved nor previous.
    host = Host(config.load(three_built.config))
    assert prune.candidates(host, host.look()) == []
    with started(host, Console(), Request("deploy", THIRD)) as run:
        run.begin(host.look())
        prune.after_promotion(run)
        prune.remove(run, [SECOND])  # as if it had been started since
    assert there(three_built) == {FIRST, SECOND, THIRD}
    three_built.control("restart", three_built.backup)
    wait_for(lambda: three_built.version("backup") == THIRD, "the backup runs another one")
    with started(host, Console(), Request("deploy", THIRD)) as run:
        run.begin(host.look())
        prune.after_promotion(run)
    assert there(three_built) == {FIRST, THIRD}


def test_a_lock_that_is_held_is_respected(three_built: LittleHost) -> None:
    keeping(three_built, 1)
    with three_built.typing("rollback") as terminal:
        terminal.asked()
        assert three_built.run("prune").returncode == 3
        assert SECOND in there(three_built)
        terminal.types("no")
        terminal.ends(7)


def test_a_pruning_that_was_killed_is_taken_up_by_the_next_one(
    three_built: LittleHost,
) -> None:
    keeping(three_built, 1)
    written_down(
        three_built,
        Event(
            event="begin",
            at=now(),
            run="1",
            command="prune",
            by="ann",
            left=HostVersions(THIRD, THIRD, THIRD),
        ),
        Event(event="prune", at=now(), run="1", version=SECOND),
    )
    assert three_built.status["interrupted"]
    assert "the prune by ann" in three_built.run("status").stdout
    result = three_built.done("prune")
    assert "the prune by ann" in result.stderr
    assert there(three_built) == {FIRST, THIRD}
    assert three_built.status["ok"]


def cannot_be_removed(_: Releases, version: str) -> None:
    raise DeployError(f"release {version} cannot be removed: Operation not permitted")


def is_removed_while_somebody_presses_ctrl_c(releases: Releases, version: str) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    releases.path(version).unlink()


def is_a_defect(_: Releases, version: str) -> None:
    raise RuntimeError(version)


@pytest.mark.parametrize(
    ("removal", "said", "stays"),
    [
        (cannot_be_removed, f"pruning did not finish: release {SECOND} cannot be removed", True),
        (is_a_defect, f"pruning did not finish: RuntimeError('{SECOND}')", True),
        (is_removed_while_somebody_presses_ctrl_c, "", False),
    ],
)
def test_after_a_promotion_nothing_can_make_a_failure_of_it(
    three_built: LittleHost,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    removal: object,
    said: str,
    stays: bool,
) -> None:
    keeping(three_built, 1)
    host = Host(config.load(three_built.config))
    monkeypatch.setattr(Releases, "remove", removal)
    with started(host, Console(), Request("deploy", THIRD)) as run:
        run.begin(host.look())
        prune.after_promotion(run)
    assert said in capfd.readouterr().err
    assert (SECOND in there(three_built)) is stays
    assert three_built.events[-1]["status"] == 0


def test_the_newest_hundred_logs_are_kept_and_nothing_else_is_touched(
    light_host: LittleHost,
) -> None:
    host = light_host
    host.have(SECOND)
    logs = host.deploy / "logs"
    logs.mkdir(parents=True)
    for day in range(1, 29):
        for hour in range(5):
            (logs / f"2015-03-{day:02}T{hour:02}0000Z-deploy-0.1.0-1.log").touch()
    (logs / "notes.txt").touch()
    host.done("rollback", SECOND, "--yes")
    left = sorted(path.name for path in logs.iterdir())
    assert len(left) == 101
    assert left[0].startswith("2015-03-09T01")
    assert "rollback" in left[-2]
    assert left[-1] == "notes.txt"


def test_the_log_of_the_run_itself_stays_where_the_clock_was_set_back(
    light_host: LittleHost,
) -> None:
    host = light_host
    host.have(SECOND)
    logs = host.deploy / "logs"
    logs.mkdir(parents=True)
    for number in range(120):
        (logs / f"2999-01-01T000000Z-deploy-{number:03}-1.log").touch()
    host.done("rollback", SECOND, "--yes")
    [own] = logs.glob("*-rollback-*.log")
    assert f"{SECOND} is in production" in own.read_text()
