"""What the tests inherit does not disturb them, and nothing of theirs outlives them."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

from little_host import wait_for
from private_machine import without_pytest
from programs import skip_or_fail
from system import lives

TESTS = Path(__file__).parent


def started(directory: Path, body: str, *under: str) -> subprocess.Popen[str]:
    """A pytest with this project's conftest that runs one test with the body, `under` a program."""
    file = directory / "test_it.py"
    file.write_text(
        f"import os, subprocess\nfrom pathlib import Path\ndef test_it():\n    {body}\n"
    )
    return subprocess.Popen(
        [
            *(*under, sys.executable, "-m", "pytest"),
            *("-q", "-p", "no:xdist", "-p", "no:cacheprovider"),
            *("-p", "conftest", "--rootdir", directory, "--basetemp", directory / "tests", file),
        ],
        env={**without_pytest(os.environ), "PYTHONPATH": str(TESTS)},
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_programs_have_all_signals_whatever_the_tests_inherit(tmp_path: Path) -> None:
    all_that_end = "HUP,INT,QUIT,TERM,CHLD"
    under = ("env", f"--ignore-signal={all_that_end}", f"--block-signal={all_that_end}")
    # 32 and 33 are glibc's own: no program can set them, nor does any get them.
    masks = "['grep', '-E', '^Sig(Blk|Ign)', '/proc/self/status']"
    body = (
        f"lines = subprocess.check_output({masks}, text=True).splitlines(); "
        "assert [int(line.split()[1], 16) & 0x7fffffff for line in lines] == [0, 0]"
    )
    with started(tmp_path, body, "setsid", "--wait", *under) as process:
        output, _ = process.communicate()
    assert process.returncode == 0, output


def test_a_process_that_is_left_fails_the_run_and_is_ended(tmp_path: Path) -> None:
    # In the instant of an exec, which may be long on a busy machine, a process shows no environment.
    body = (
        "sleep = subprocess.Popen(['sleep', '1000'], start_new_session=True); "
        "Path('pid').write_text(str(sleep.pid))\n"
        "    while not Path(f'/proc/{sleep.pid}/environ').read_bytes(): pass"
    )
    with started(tmp_path, body) as process:
        output, _ = process.communicate()
    assert process.returncode == 1, output
    pid = int((tmp_path / "pid").read_text())
    assert f"left behind: process {pid} sleep 1000" in output
    assert not lives(pid)


def test_a_file_that_is_left_fails_the_run_and_is_not_there(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        skip_or_fail("needs root, for mounts")
    left = Path("/var/tmp") / uuid.uuid4().hex
    with started(tmp_path, f"Path('{left}').touch()") as process:
        output, _ = process.communicate()
    assert process.returncode == 1, output
    assert f"left behind: {left}" in output
    assert not left.exists()


def test_after_a_sigkill_nothing_goes_on(tmp_path: Path) -> None:
    # Like nginx, which writes its title there, this child has no environment that shows the mark.
    unmarked = (
        "env -i sleep 1000 & until grep -q sleep /proc/$!/comm; do :; done; "
        "echo $! >new; mv new pid; wait"
    )
    body = f"subprocess.run(['setsid', '--wait', 'sh', '-c', '{unmarked}'])"
    with started(tmp_path, body) as process:
        wait_for((tmp_path / "pid").exists, "the test runs")
        sleep = int((tmp_path / "pid").read_text())
        assert lives(sleep)
        process.kill()
    wait_for(lambda: not lives(sleep), "the watchdog ends it")
