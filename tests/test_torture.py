"""Every signal at the start and at the end of every step; random instants are `make torture`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from torture.hits import EVERY, Hit
from torture.rig import COMMANDS, DECLINED, DEPLOY, MANAGERS, Rig


class Rigs:
    """A host for each service manager, hit by all of this worker's tests."""

    def __init__(self, new_directory: Callable[[str], Path]) -> None:
        self._new_directory = new_directory
        self._made: dict[str, tuple[Rig, ExitStack]] = {}

    def of(self, manager: str) -> Rig:
        """The host at work, or a new one."""
        if manager not in self._made:
            stack = ExitStack()
            rig = stack.enter_context(Rig.made(self._new_directory(manager), manager))
            self._made[manager] = rig, stack
        return self._made[manager][0]

    def throw_away(self, *managers: str) -> None:
        """Ends the hosts; what was broken on one must not break the tests that come after."""
        for manager in managers:
            if manager in self._made:
                self._made.pop(manager)[1].close()


@pytest.fixture(scope="session")
def rigs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rigs]:
    """This worker's hosts."""
    rigs = Rigs(tmp_path_factory.mktemp)
    try:
        yield rigs
    finally:
        rigs.throw_away(*MANAGERS)


@pytest.mark.parametrize("hit", EVERY, ids=str)
@pytest.mark.parametrize("command", COMMANDS)
def test_at_every_boundary_of_a_step_all_that_must_hold_holds(
    rigs: Rigs, command: str, hit: Hit
) -> None:
    # supervisord takes over a second for every start, so it has the shortest of the four;
    # `make torture` has all of them under both.
    upstart, supervisor = MANAGERS
    manager = supervisor if command == DECLINED else upstart
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
