"""Pruning: what goes after a promotion and by hand, and what must stay whatever happens."""

from __future__ import annotations

import pytest
from clojure_repository import ClojureRepository as Tags
from conftest import NewHost
from little_host import LittleHost, wait_for

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


def lines(host: LittleHost, *kinds: str) -> list[tuple[str, str | None]]:
    """The journal's events of these kinds, with their versions."""
    return [(each["event"], each.get("version")) for each in host.events if each["event"] in kinds]


@pytest.fixture
def three(new_light_host: NewHost) -> LittleHost:
    """Three releases that this tool has built, the third in production and the second declined."""
    host = new_light_host()
    host.done(FIRST, "--yes")
    with host.typing(SECOND) as terminal:
        terminal.asked()
        terminal.types("no")
        terminal.ends(7)
    host.done(THIRD, "--yes")
    assert there(host) == {FIRST, SECOND, THIRD}
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
    assert lines(three, "prune", "pruned") == [("prune", SECOND), ("pruned", SECOND)]
    assert three.events[-1]["outcome"] == "pruned"
    status = three.status
    assert status["ok"]
    assert (status["approved"], status["previous"]) == (THIRD, FIRST)

    events = three.events
    result = three.done("prune")
    assert result.stderr == "nothing to prune\n"
    assert three.events == events


def test_what_a_promotion_has_made_too_old_goes_last_of_all(three: LittleHost) -> None:
    keeping(three, 1)
    result = three.done(SECOND, "--yes")
    assert result.stderr.index(f"{SECOND} is in production") < result.stderr.index(
        f"  prune      {FIRST}, "
    )
    assert there(three) == {SECOND, THIRD}
    assert three.status["previous"] == THIRD


def test_previous_never_names_a_release_that_was_pruned(three: LittleHost) -> None:
    keeping(three, 1)
    three.done(SECOND, "--yes")
    three.done("rollback", "--yes")
    status = three.status
    assert (status["approved"], status["previous"]) == (THIRD, None)
    refused = three.run("rollback", "--yes")
    assert refused.returncode == 1
    assert "there is no previous release to roll back to" in refused.stderr


def test_one_that_was_not_made_by_this_tool_stays(light_host: LittleHost) -> None:
    host = light_host
    host.have("0.0.9", host.jar(FIRST))
    keeping(host, 1)
    for tag in (SECOND, THIRD):
        host.done(tag, "--yes")
    host.done("prune")
    assert there(host) == {"0.0.9", FIRST, SECOND, THIRD}


def test_one_that_was_put_by_hand_in_place_of_a_pruned_one_stays(three: LittleHost) -> None:
    three.have(SECOND, three.jar(FIRST))
    with (three.releases / f"clojars-web-{SECOND}-standalone.jar").open("ab") as jar:
        jar.write(b"another build")
    keeping(three, 1)
    three.done("prune")
    assert SECOND in there(three)


def test_a_failed_pruning_is_only_a_warning(three: LittleHost) -> None:
    keeping(three, 1)
    # The journal's line is there, so the promotion is known; only the jar cannot go.
    jar = three.releases / f"clojars-web-{FIRST}-standalone.jar"
    jar.unlink()
    jar.mkdir()
    result = three.done(SECOND, "--yes")
    assert f"{SECOND} is in production" in result.stderr
    assert three.status["ok"]


def test_nothing_is_pruned_on_a_host_that_needs_a_person(three: LittleHost) -> None:
    keeping(three, 1)
    three.control("stop", three.backup)
    result = three.run("prune")
    assert result.returncode == 4
    assert f"  first: deploy-clojars rollback {THIRD}\n" in result.stderr
    assert SECOND in there(three)


def test_nothing_is_pruned_while_what_an_instance_runs_is_not_known(three: LittleHost) -> None:
    keeping(three, 1)
    text = three.job_file(three.backup, *three.ports[1::2])
    three.control("stop", three.backup)
    sleeper = "\n".join(
        "exec sleep 600" if line.startswith("exec ") else line for line in text.splitlines()
    )
    assert sleeper != text
    three.upstart.install(three.backup, sleeper)
    three.control("start", three.backup)
    result = three.run("prune")
    assert result.returncode == 4
    assert "it is not known what is run by clojars-backup (" in result.stderr
    assert SECOND in there(three)


def test_an_instance_that_runs_an_old_release_keeps_it(three: LittleHost) -> None:
    """What was flipped by hand and restarted by hand: the host needs a person, too."""
    three.link.unlink()
    three.link.symlink_to(f"clojars-web-{SECOND}-standalone.jar")
    three.control("restart", three.backup)
    wait_for(lambda: three.version("backup") == SECOND, "the backup runs it")
    keeping(three, 1)
    assert three.run("prune").returncode in (0, 4)
    assert SECOND in there(three)


def test_a_lock_that_is_held_is_respected(three: LittleHost) -> None:
    keeping(three, 1)
    with three.typing("rollback") as terminal:
        terminal.asked()
        result = three.run("prune")
        assert result.returncode == 3
        assert SECOND in there(three)
        terminal.types("no")
        terminal.ends(7)


def test_a_pruning_that_was_killed_is_taken_up_by_the_next_one(three: LittleHost) -> None:
    keeping(three, 1)
    with (three.deploy / "journal.jsonl").open("a") as journal:
        journal.write('{"event":"begin","run":"1","command":"prune","by":"ann","v":1}\n')
        journal.write(f'{{"event":"prune","run":"1","version":"{SECOND}","v":1}}\n')
    assert three.status["interrupted"]
    assert "the prune by ann" in three.run("status").stdout
    result = three.done("prune")
    assert "the prune by ann" in result.stderr
    assert there(three) == {FIRST, THIRD}
    assert three.status["ok"]
