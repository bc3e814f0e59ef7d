"""`make demo`, as a newcomer runs it: a fresh clone, Python, git, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from programs import skip_or_fail

pytestmark = [pytest.mark.slow, pytest.mark.long]

PROJECT = Path(__file__).parents[1]

# What a minimal Debian has beside Python and git. No java, no lein, no nginx.
PROGRAMS = [
    "sh",
    "bash",
    "env",
    "make",
    "git",
    "dirname",
    "touch",
    "test",
    "printf",
    "cat",
    "rm",
    "mkdir",
    "ls",
    "id",
    "uname",
    "grep",
    "sed",
    "dpkg-query",
]


@pytest.fixture
def bare_path(tmp_path: Path) -> Path:
    """A directory for PATH with those programs only."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name in PROGRAMS:
        program = shutil.which(name)
        if program is not None:
            (directory / name).symlink_to(program)
    # Not a link: an environment that is made from a link looks for its library beside that.
    python = directory / "python3"
    python.write_text(f'#!/bin/sh\nexec "{Path(sys.base_prefix, "bin/python3")}" "$@"\n')
    python.chmod(0o755)
    return directory


def test_the_demo_runs_in_a_fresh_clone_with_nothing_but_python_and_git(
    tmp_path: Path, bare_path: Path
) -> None:
    if not (PROJECT / ".git").exists():
        skip_or_fail("not in a git checkout, which could be cloned")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", PROJECT, clone], check=True)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("DEPLOY_CLOJARS")
    } | {"PATH": str(bare_path)}
    try:
        result = subprocess.run(
            ["make", "demo"],
            cwd=clone,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stdout
        in_order = (
            f"$ deploy-clojars sandbox {clone}/sandbox",
            "nginx is not installed",
            "$ deploy-clojars 0.1.0 --yes",
            "0.1.0 is in production",
            "$ deploy-clojars 0.2.0 --yes",
            "0.2.0 is in production",
            "$ deploy-clojars 0.2.1-failing-tests --yes",
            "(exit status 5)",
            "$ deploy-clojars 0.2.3-does-not-start --yes",
            "reverted: 0.2.0 is current and runs on both instances",
            "(exit status 6)",
            '$ deploy-clojars rollback --yes -m "to see it work"',
            "0.1.0 is in production",
            "current   0.1.0",
            "Go on by hand",
        )
        position = 0
        for line in in_order:
            position = result.stdout.find(line, position)
            assert position >= 0, f"{line!r} is not where it should be\n{result.stdout}"
        assert "\x1b" not in result.stdout
    finally:
        tool = clone / ".venv/bin/deploy-clojars"
        if (clone / "sandbox").exists():
            subprocess.run([tool, "sandbox", "sandbox", "--stop"], cwd=clone, check=True)
