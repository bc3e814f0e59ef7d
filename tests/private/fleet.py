"""A fleet of real hosts and ansible-playbook; run inside by test_fleet.py.

The tests follow one another on the same hosts: each begins where the one before has ended.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet_machines import Fleet, fleet_of_machines
from private_machine import INSIDE

pytestmark = pytest.mark.skipif(INSIDE not in os.environ, reason="only in a private network")


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with fleet_of_machines(Path(os.environ[INSIDE]) / "fleet", 8) as fleet:
        yield fleet


def test_every_host_is_another_one_over_ssh(fleet: Fleet) -> None:
    result = subprocess.run(
        [
            *(Path(sys.executable).with_name("ansible"), "all", "-i", fleet.inventory(), "-b"),
            *("--become-user", "clojars", "-a", "sh -c 'echo I am $(whoami) on $(hostname)'"),
        ],
        env={**os.environ, "ANSIBLE_HOME": str(fleet.directory / "ansible")},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    said = sorted(line for line in result.stdout.splitlines() if line.startswith("I am"))
    assert said == [f"I am clojars on app{number:02}" for number in range(1, 9)]
