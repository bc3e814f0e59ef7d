"""Disks that are full or read-only, on small file systems that only these tests see."""

from __future__ import annotations

from pathlib import Path

import pytest
from private_machine import with_private_mounts

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1500)]


def test_full_and_read_only_file_systems(tmp_path: Path) -> None:
    with_private_mounts(Path(__file__).parent / "private" / "disk.py", tmp_path)
