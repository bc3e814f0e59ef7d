"""Every signal at the start and at the end of every step; random instants are `make torture`."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from systemd_machine import run_inside
from torture.hits import EVERY, Hit
from torture.rig import COMMANDS, DECLINED, DEPLOY, FETCHED, INSTALL, JAR, Rigs


@pytest.fixture(scope="session")
def rigs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rigs]:
    """This worker's hosts."""
    rigs = Rigs(tmp_path_factory.mktemp)
    try:
        yield rigs
    finally:
        rigs.throw_away()


@pytest.mark.parametrize("hit", EVERY, ids=str)
@pytest.mark.parametrize("command", [each for each in COMMANDS if each != INSTALL])
def test_at_every_boundary_of_a_step_all_that_must_hold_holds(
    rigs: Rigs, command: str, hit: Hit
) -> None:
    # The steps of an install are a deploy's first ones. supervisord takes over a second for every start, so it has the shortest of the four;
    # `make torture` has all of them under both.
    manager = "supervisor" if command == DECLINED else "upstart"
    rig = rigs.of(manager)
    moments = rig.course(command).boundaries
    if command == DECLINED:
        # Up to its question it is a deploy as any other; what it adds is the revert.
        known = rig.course(DEPLOY).boundaries
        moments = [moment for moment in moments if moment not in known]
    own = {JAR: "install", FETCHED: "fetch"}.get(command)
    if own is not None:  # the rest is as after a build
        moments = [moment for moment in moments if moment.after and moment.after.of == own]
    for moment in moments:
        try:
            rig.attempt(command, hit, moment)
        except AssertionError as error:
            error.add_note(f"{command}: {hit}, {moment}")
            rigs.throw_away(manager)
            raise


@pytest.mark.slow
@pytest.mark.timeout(2000)
def test_a_few_random_hits_on_systemd(tmp_path: Path) -> None:
    ended = run_inside(
        tmp_path, "-m", "torture", "3", "--seed", "some", "--guarded",
        env={"TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1500,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout
    assert "3 hits in" in ended.stdout
    assert ", 0 violations" in ended.stdout
