"""Pruning: what goes after a promotion and by hand, and what must stay whatever happens."""

from __future__ import annotations

import os
import signal

import pytest
from clojure_repository import ClojureRepository as Tags
from conftest import NewHost
from little_host import LittleHost, wait_for

from deploy_clojars import config, prune
from deploy_clojars.console import Console
from deploy_clojars.errors import DeployError
from deploy_clojars.host import Host
from deploy_clojars.journal import Event, Journal, now
from deploy_clojars.releases import Releases
from deploy_clojars.run import started

FIRST, SECOND, THIRD = Tags.FIRST, Tags.SECOND, Tags.THIRD


def keeping(host: LittleHost, count: int) -> None:
    """Sets `keep_releases`."""
    host.write_config(top=f'repository = "{host.repository_url}"\nkeep_releases = {count}')


def there(host: LittleHost) -> set[str]:
    """The versions of the releases that are there."""
    return {
        path.name.removeprefix("clojars-web-").removesuffix("-standalone.jar")
        for path in host.releases.glob("*-standalone.jar")
    }


def built(host: LittleHost, *versions: str) -> list[Event]:
    """What the journal says of releases that this tool has built."""
    sizes = {version: host.jar(version).stat().st_size for version in versions}
    return [
        Event(event="installed", at=now(), version=version, bytes=sizes[version])
        for version in versions
    ]


def promoted(*versions: str) -> list[Event]:
    """What the journal says of promotions."""
    return [Event(event="promoted", at=now(), version=version) for version in versions]


def written_down(host: LittleHost, *events: Event) -> None:
    """Puts lines into the journal."""
    host.deploy.mkdir(exist_ok=True)
    for event in events:
        Journal(host.deploy / "journal.jsonl").append(event)


@pytest.fixture
def three(new_light_host: NewHost) -> LittleHost:
    """Three releases that this tool has built; the third is in production, the second was declined."""
    host = new_light_host()
    host.serving(THIRD)
    host.have(FIRST)
    host.have(SECOND)
    adopted = Event(event="adopted", at=now())
    written_down(host, adopted, *built(host, FIRST, SECOND, THIRD), *promoted(FIRST, THIRD))
    return host


def test_nothing_is_pruned_by_default_and_prune_says_so(light_host: LittleHost) -> None:
    result = light_host.done("prune")
    assert result.stderr == "keep_releases is 0: nothing is pruned\n"
    assert not light_host.deploy.exists()


def test_one_that_was_never_promoted_goes_and_is_named(three: LittleHost) -> None:
    keeping(three, 2)
    result = three.done("prune")
    assert f"  prune      {SECOND}, " in result.stderr
    assert there(three) == {FIRST, THIRD}
    kinds = [each["event"] for each in three.events if each.get("version") == SECOND]
    assert kinds == ["installed", "prune", "pruned"]
    assert three.events[-1]["outcome"] == "pruned"
    status = three.status
    assert status["ok"]
    assert (status["approved"], status["previous"]) == (THIRD, FIRST)

    events = three.events
    result = three.done("prune")
    assert result.stderr == "nothing to prune\n"
    assert three.events == events


def test_what_a_promotion_has_made_too_old_goes_last_and_is_never_previous_again(
    three: LittleHost,
) -> None:
    keeping(three, 1)
    result = three.done(SECOND, "--yes")
    in_production = result.stderr.index(f"{SECOND} is in production")
    assert in_production < result.stderr.index(f"  prune      {FIRST}, ")
    assert there(three) == {SECOND, THIRD}
    assert three.status["previous"] == THIRD

    three.done("rollback", "--yes")
    status = three.status
    assert (status["ok"], status["approved"], status["previous"]) == (True, THIRD, None)
    refused = three.run("rollback", "--yes")
    assert refused.returncode == 1
    assert "there is no previous release to roll back to" in refused.stderr


def test_one_that_was_not_made_by_this_tool_stays(three: LittleHost) -> None:
    three.have("0.0.9", three.jar(FIRST))
    by_hand = three.releases / f"clojars-web-{SECOND}-standalone.jar"
    with by_hand.open("ab") as jar:
        jar.write(b"another build, put in its place")
    keeping(three, 1)
    assert three.done("prune").stderr == "nothing to prune\n"
    assert there(three) == {"0.0.9", FIRST, SECOND, THIRD}


def test_nothing_is_pruned_on_a_host_that_needs_a_person(three: LittleHost) -> None:
    keeping(three, 1)
    three.control("stop", three.backup)
    result = three.run("prune")
    assert result.returncode == 4
    assert f"  first: deploy-clojars rollback {THIRD}\n" in result.stderr
    assert SECOND in there(three)


def test_nothing_is_pruned_while_what_an_instance_runs_is_not_known(three: LittleHost) -> None:
    keeping(three, 1)
    three.control("stop", three.backup)
    web, nailgun = three.ports[1::2]
    asleep = three.job_file(three.backup, web, nailgun, **{r"exec .*": "exec sleep 600"})
    three.upstart.install(three.backup, asleep)
    three.control("start", three.backup)
    result = three.run("prune")
    assert result.returncode == 4
    assert "it is not known what is run by clojars-backup (" in result.stderr
    assert SECOND in there(three)


def test_one_that_an_instance_runs_stays(three: LittleHost) -> None:
    """Whatever the link and the journal say: somebody has flipped and restarted by hand."""
    written_down(three, *promoted(THIRD, FIRST, THIRD))
    three.link.unlink()
    three.link.symlink_to(f"clojars-web-{SECOND}-standalone.jar")
    three.control("restart", three.backup)
    wait_for(lambda: three.version("backup") == SECOND, "the backup runs it")
    keeping(three, 1)
    three.run("prune")
    assert there(three) == {FIRST, SECOND, THIRD}


def test_a_lock_that_is_held_is_respected(three: LittleHost) -> None:
    keeping(three, 1)
    with three.typing("rollback") as terminal:
        terminal.asked()
        assert three.run("prune").returncode == 3
        assert SECOND in there(three)
        terminal.types("no")
        terminal.ends(7)


def test_a_pruning_that_was_killed_is_taken_up_by_the_next_one(three: LittleHost) -> None:
    keeping(three, 1)
    written_down(
        three,
        Event(event="begin", at=now(), run="1", command="prune", by="ann"),
        Event(event="prune", at=now(), run="1", version=SECOND),
    )
    assert three.status["interrupted"]
    assert "the prune by ann" in three.run("status").stdout
    result = three.done("prune")
    assert "the prune by ann" in result.stderr
    assert there(three) == {FIRST, THIRD}
    assert three.status["ok"]


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
        (cannot_be_removed, f"not all was pruned: release {SECOND} cannot be removed", True),
        (is_a_defect, f"not all was pruned: RuntimeError('{SECOND}')", True),
        (is_removed_while_somebody_presses_ctrl_c, "", False),
    ],
)
def test_after_a_promotion_nothing_can_make_a_failure_of_it(
    three: LittleHost,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    removal: object,
    said: str,
    stays: bool,
) -> None:
    keeping(three, 1)
    host = Host(config.load(three.config))
    monkeypatch.setattr(Releases, "remove", removal)
    with started(host, Console(), "deploy", THIRD) as run:
        run.begin(host.look())
        prune.after_promotion(run)
    assert said in capfd.readouterr().err
    assert (SECOND in there(three)) is stays
    assert three.events[-1]["status"] == 0
