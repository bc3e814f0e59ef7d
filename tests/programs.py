"""What a test does when a program that it needs is not installed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest


def require_program(*names: str) -> None:
    """Skip the test, or fail it where CI is set, unless every named program is on PATH."""
    missing = [name for name in names if shutil.which(name) is None]
    if missing:
        skip_or_fail(f"not installed: {', '.join(missing)}")


def skip_or_fail(reason: str) -> NoReturn:
    """Skip the test; where CI is set fail it, because a skip that nobody reads proves nothing."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def another_time_limit(programs: Path, was: int, now: float) -> None:
    """Puts a `timeout` there that takes so many seconds for so many others."""
    script = f'[ "$1" = {was} ] && shift && exec {shutil.which("timeout")} {now} "$@"'
    (programs / "timeout").write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (programs / "timeout").chmod(0o755)
