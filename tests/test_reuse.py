"""A release that is there: reused if it is what was built, and built again if that is asked for."""

from __future__ import annotations

import os
import subprocess
import zipfile
from pathlib import Path

import pytest
from clojure_repository import ClojureRepository as Tags
from little_host import LittleHost

from deploy_clojars.config import BACKUP, PRIMARY
from deploy_clojars.deploy.reuse import who_runs
from deploy_clojars.host.decisions import rebuild_obstacle
from deploy_clojars.host.health import Observation
from deploy_clojars.host.journal import History, Installed
from deploy_clojars.host.look import Look
from deploy_clojars.host.releases import Current

FIRST, SECOND, THIRD = Tags.FIRST, Tags.SECOND, Tags.THIRD
REBUILD = f"deploy-clojars deploy {SECOND} --rebuild"


def release(host: LittleHost, version: str) -> Path:
    return host.releases / f"clojars-web-{version}-standalone.jar"


def changed(jar: Path, remark: str) -> bytes:
    """Makes it another jar of the same program and the same commit; returns its content."""
    another = jar.with_name("another")
    another.write_bytes(jar.read_bytes())
    with zipfile.ZipFile(another, "a") as archive:
        archive.comment = remark.encode()
    os.replace(another, jar)
    return jar.read_bytes()


def declined(host: LittleHost, *words: str) -> str:
    """What is shown by a deploy that is answered no."""
    with host.typing(*words) as terminal:
        terminal.asked()
        terminal.types("no")
        return terminal.ends(7)


def test_a_release_that_is_reused_says_so_and_how_to_build_it_again(light_host: LittleHost) -> None:
    host = light_host
    declined(host, SECOND)
    content = release(host, SECOND).read_bytes()
    changed(host.jar(SECOND), "what a build would make now")

    shown = declined(host, SECOND)

    assert f"clojars-web-{SECOND}-standalone.jar  not built again" in shown
    assert f"to build it again: {REBUILD}" in shown
    assert release(host, SECOND).read_bytes() == content


def test_a_reused_release_that_does_not_come_up_names_the_way_to_build_it_again(
    light_host: LittleHost,
) -> None:
    host = light_host
    host.does_not_start(SECOND, "backup")
    first = host.run(SECOND, "--yes")
    again = host.run(SECOND, "--yes", "-q")
    assert (first.returncode, again.returncode) == (6, 6)
    assert "--rebuild" not in first.stderr  # it was built just now
    assert f"the release was reused; to build it again: {REBUILD}" in again.stderr


def test_a_release_that_was_never_promoted_is_built_again(light_host: LittleHost) -> None:
    host = light_host
    declined(host, SECOND)
    before = release(host, SECOND).read_bytes()
    new = changed(host.jar(SECOND), "built rightly")

    lines = host.done(SECOND, "--rebuild", "--dry-run").stdout.splitlines()
    removed = lines.index(f"rm {release(host, SECOND)}")
    assert any(str(release(host, SECOND)) in line for line in lines[removed + 1 :])
    assert release(host, SECOND).read_bytes() == before

    host.done(SECOND, "--rebuild", "--yes")
    assert release(host, SECOND).read_bytes() == new
    assert host.versions == (SECOND, SECOND)
    changes = [each["event"] for each in host.events if each.get("version") == SECOND]
    assert [each for each in changes if each in ("installed", "prune", "pruned", "promoted")] == [
        "installed", "prune", "pruned", "installed", "promoted",
    ]  # fmt: skip


def test_a_rebuild_that_fails_leaves_the_release_that_is_there(light_host: LittleHost) -> None:
    host = light_host
    declined(host, SECOND)
    before = release(host, SECOND).read_bytes()
    host.write_config(build='test = "true"\nuberjar = "false"')

    assert host.run(SECOND, "--rebuild", "--yes").returncode == 5

    assert release(host, SECOND).read_bytes() == before


def test_a_rebuild_of_what_is_not_there_is_a_build(light_host: LittleHost) -> None:
    light_host.done(SECOND, "--rebuild", "--yes")

    assert light_host.versions == (SECOND, SECOND)


def test_a_release_that_was_in_production_is_not_built_again(light_host: LittleHost) -> None:
    host = light_host
    for version in (SECOND, THIRD):
        host.done(version, "--yes")
    host.done("rollback", FIRST, "--yes")
    before = {version: release(host, version).read_bytes() for version in (FIRST, SECOND, THIRD)}

    for version, why in {
        FIRST: "it is current, approved, previous or running",
        SECOND: "it was in production",
        THIRD: "it was in production",
    }.items():
        result = host.run(version, "--rebuild", "--yes")
        assert result.returncode == 1
        assert f"release {version} cannot be replaced: {why}" in result.stderr

    assert before == {version: release(host, version).read_bytes() for version in before}
    assert "to build it again" not in declined(host, SECOND)


def test_a_release_that_is_no_longer_what_was_built_is_not_used(light_host: LittleHost) -> None:
    host = light_host
    declined(host, SECOND)
    changed(release(host, SECOND), "by hand")

    result = host.run(SECOND, "--yes")

    assert result.returncode == 1
    assert f"release {SECOND} has changed since" in result.stderr
    assert f"build it again: {REBUILD}" in result.stderr
    assert host.versions == (FIRST, FIRST)
    host.done(SECOND, "--rebuild", "--yes")

    # In production it may be wanted back as it was.
    changed(release(host, SECOND), "by hand")
    host.done("rollback", FIRST, "--yes")
    result = host.run(SECOND, "--yes")
    assert result.returncode == 1
    assert f"restore the jar that was built: {release(host, SECOND)}" in result.stderr


def test_a_release_of_which_the_journal_has_no_checksum_says_so(light_host: LittleHost) -> None:
    light_host.have(SECOND)

    shown = declined(light_host, SECOND)

    assert "the journal has no checksum for it, so it may have changed since it was built" in shown
    assert "to build it again" not in shown


def test_a_tag_that_was_moved_can_be_built_again(light_host: LittleHost, tmp_path: Path) -> None:
    """Of a release that was never promoted."""
    host = light_host
    declined(host, SECOND)
    content = release(host, SECOND).read_bytes()
    git = ["git", "-C", str(tmp_path / "moved")]
    subprocess.run(["git", "clone", "-q", host.repository_url, git[-1]], check=True)
    subprocess.run([*git, "tag", "--force", SECOND, FIRST], check=True)
    host.repository_url = git[-1]
    host.write_config()

    result = host.run(SECOND, "--yes")

    assert result.returncode == 1
    assert "no instance runs the release" in result.stderr
    assert f"or build it again: {REBUILD}" in result.stderr
    assert release(host, SECOND).read_bytes() == content


@pytest.mark.parametrize(
    ("version", "in_use", "why"),
    [
        ("A", "", "in production"),  # adopted: it was promoted before there was a journal
        ("B", "", "in production"),
        ("C", "", None),
        ("C", "C", "current, approved, previous or running"),
        ("C", None, "not known what the instances run"),
        ("D", "", "not built by this tool"),
    ],
)
def test_what_is_built_again(version: str, in_use: str | None, why: str | None) -> None:
    built = Installed("", None, None)
    history = History(
        adopted=True, stack=("A",), installed={"A": built, "B": built, "C": built},
        promoted={"B": ""},
    )  # fmt: skip

    obstacle = rebuild_obstacle(history, version, in_use)

    assert (obstacle is None) == (why is None)
    assert (why or "") in (obstacle or "")


RUNS_A = Observation(
    PRIMARY, "clojars", "running", "", pid=1, running="A", open_releases=frozenset("A")
)
STOPPED = Observation(BACKUP, "clojars-backup", "stopped", "")
HIDDEN = Observation(BACKUP, "clojars-backup", "running", "", pid=2, visible=False)


@pytest.mark.parametrize(
    ("version", "backup", "who"),
    [
        ("A", STOPPED, "clojars runs the release"),
        ("B", STOPPED, "no instance runs the release"),
        ("A", HIDDEN, "clojars runs the release; what clojars-backup runs is not known"),
        ("B", HIDDEN, "what clojars-backup runs is not known"),
    ],
)
def test_who_runs_a_release_is_said_only_as_far_as_it_is_known(
    version: str, backup: Observation, who: str
) -> None:
    look = Look(Current("A"), RUNS_A, backup, History(), "A")

    assert who_runs(look, version) == who
