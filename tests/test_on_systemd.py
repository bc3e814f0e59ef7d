"""What is tested on Upstart's stand-in holds on a real systemd 252, too: the same tests run on it.

But for those that are marked `any_manager`; `python -m systemd_machine pytest FILE`, in this
directory, runs them all.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from systemd_machine import run_tests_inside

pytestmark = [pytest.mark.slow, pytest.mark.long]

TESTS = Path(__file__).parent


@pytest.mark.timeout(2000)
@pytest.mark.parametrize("name", ["killed", "question", "drain", "rollback", "restart", "load"])
def test_the_same_holds_on_systemd(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run_tests_inside(
        TESTS / f"test_{name}.py", tmp_path_factory, tmp_path, "-m", "slow and not any_manager"
    )
