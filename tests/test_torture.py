"""Every signal at the start and at the end of every step; random instants are `make torture`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torture.hits import EVERY, Hit
from torture.rig import COMMANDS, DECLINED, DEPLOY, Rigs


@pytest.fixture(scope="session")
def rigs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rigs]:
    """This worker's hosts."""
    rigs = Rigs(tmp_path_factory.mktemp)
    try:
        yield rigs
    finally:
        rigs.throw_away()


@pytest.mark.parametrize("hit", EVERY, ids=str)
@pytest.mark.parametrize("command", COMMANDS)
def test_at_every_boundary_of_a_step_all_that_must_hold_holds(
    rigs: Rigs, command: str, hit: Hit
) -> None:
    # supervisord takes over a second for every start, so it has the shortest of the four;
    # `make torture` has all of them under both.
    manager = "supervisor" if command == DECLINED else "upstart"
    rig = rigs.of(manager)
    moments = rig.course(command).boundaries
    if command == DECLINED:
        # Up to its question it is a deploy as any other; what it adds is the revert.
        known = rig.course(DEPLOY).boundaries
        moments = [moment for moment in moments if moment not in known]
    for moment in moments:
        try:
            rig.attempt(command, hit, moment)
        except AssertionError as error:
            error.add_note(f"{command}: {hit}, {moment}")
            rigs.throw_away(manager)
            raise
