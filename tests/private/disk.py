"""Run by test_faults_disk.py, where what is mounted is nobody else's."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from clojure_repository import ClojureRepository
from clojure_repository import ClojureRepository as Tags
from conftest import NewHost
from front import in_front_of
from little_host import LittleHost, wait_for
from private_machine import INSIDE, mount, run

pytestmark = pytest.mark.skipif(INSIDE not in os.environ, reason="only in a private machine")

FIRST, SECOND = Tags.FIRST, Tags.SECOND
MIB = 1024 * 1024
NO_ROOM = "No space left on device"


@pytest.fixture(autouse=True)
def unmounted() -> Iterator[None]:
    """What a test mounted is gone after it."""
    yield
    for line in reversed(Path("/proc/mounts").read_text().splitlines()):
        device, directory, *_ = line.split()
        if device == "small":
            run("umount", "--lazy", directory)


def small(directory: Path, mib: int) -> None:
    """A file system of its own for the directory."""
    directory.mkdir(exist_ok=True)
    mount("-t", "tmpfs", "-o", f"size={mib}m,mode=755", "small", str(directory))


def fill(directory: Path) -> Path:
    """Takes all the room that there is, in the journal's last block, too."""
    journal = directory / "journal.jsonl"
    with journal.open("ab") as stream:
        stream.write(b"\n" * (-journal.stat().st_size % 4096))
    file = directory / "everything"
    with file.open("wb", buffering=0) as stream:
        for size in (MIB, 4096):
            try:
                while True:
                    stream.write(bytes(size))
            except OSError:
                continue
    return file


def unharmed(host: LittleHost) -> None:
    """Both instances serve what they served, and nothing is left half done."""
    assert host.versions == (FIRST, FIRST)
    assert host.current == f"clojars-web-{FIRST}-standalone.jar"
    assert host.status["ok"]
    assert [path for path in host.releases.iterdir() if path.name.startswith(".")] == []
    assert host.processes_of_runs() == []


def test_a_disk_that_is_full_after_half_a_checkout(
    light_host: LittleHost, repository: ClojureRepository
) -> None:
    repository.git("checkout", "--quiet", "--detach", SECOND)
    (repository.directory / "large").write_bytes(b"x" * (100 * MIB))  # 100 kB in git
    repository.git("add", "large")
    repository.git("commit", "--quiet", "-m", "Add what does not fit")
    repository.git("tag", "9.0.0")
    small(light_host.deploy, 80)
    result = light_host.run("9.0.0", "--yes")
    assert result.returncode == 1
    assert "cannot be checked out" in result.stderr
    assert "Out of diskspace" in result.stderr  # git's own words
    assert "nothing that runs was changed" in result.stderr
    unharmed(light_host)


def test_a_disk_that_the_tests_fill(new_light_host: NewHost) -> None:
    host = new_light_host(build='test = "head -c 200000000 /dev/zero > large"')
    host.serving(FIRST)
    small(host.deploy, 80)
    result = host.run(SECOND, "--yes")
    assert result.returncode == 5
    assert "the tests (head -c 200000000 /dev/zero > large) failed" in result.stderr
    unharmed(host)
    # The failed checkout is kept for a look and takes the room: that is said, and nothing breaks.
    again = host.run(SECOND, "--yes")
    assert again.returncode == 1
    assert "the disk is full" in again.stderr
    unharmed(host)


def test_a_release_that_does_not_fit_is_not_half_copied(new_light_host: NewHost) -> None:
    host = new_light_host()
    with zipfile.ZipFile(host.jar(SECOND), "a") as jar:
        jar.writestr("large", bytes(90 * MIB))
    small(host.releases, 70)
    host.serving(FIRST)
    result = host.run(SECOND, "--yes")
    assert result.returncode == 1
    assert f"release {SECOND} cannot be copied to {host.releases}: {NO_ROOM}" in result.stderr
    assert "nothing that runs was changed" in result.stderr
    unharmed(host)


def test_a_revert_and_a_rollback_on_a_full_disk(light_host: LittleHost) -> None:
    host = light_host
    host.have(SECOND)
    small(host.deploy, 80)
    with host.typing(SECOND) as terminal:
        terminal.asked()
        full = fill(host.deploy)
        terminal.types("no")
        shown = terminal.ends(7)
    assert "warning: the journal" in shown
    assert NO_ROOM in shown
    assert host.versions == (FIRST, FIRST)
    # The run's end could not be written: it counts as cut off until a rollback that can.
    refused = host.run(SECOND, "--yes")
    assert refused.returncode == 1
    assert "the disk is full" in refused.stderr
    rolled_back = host.run("rollback", SECOND, "--yes")
    assert rolled_back.returncode == 0, rolled_back.stderr
    assert "the journal does not say so; once it can be written, run: " in rolled_back.stderr
    assert host.versions == (SECOND, SECOND)
    full.unlink()
    host.done("rollback", SECOND, "--yes")
    assert host.status["ok"]
    assert host.status["approved"] == SECOND


def eat_inodes(directory: Path) -> Path:
    """Takes every inode that is left, as sessions or mails do; there is space all the same."""
    eaten = directory / "mail"
    eaten.mkdir()
    try:
        for number in range(100_000):
            (eaten / str(number)).touch()
    except OSError as error:
        assert error.strerror == NO_ROOM
    assert os.statvfs(directory).f_favail == 0
    return eaten


@pytest.fixture
def host_with_few_inodes(new_light_host: NewHost) -> LittleHost:
    """A host whose home has 2,000 inodes; 0.1.0 and 0.2.0 were approved, and 0.1.0 is."""
    host = new_light_host()
    mount("-t", "tmpfs", "-o", "size=300m,nr_inodes=2000,mode=755", "small", str(host.home))
    host.releases.mkdir()
    host.serving(FIRST)
    host.done(SECOND, "--yes")
    host.done("rollback", FIRST, "--yes")
    return host


def test_a_revert_when_the_inodes_went_while_the_question_was_open(
    host_with_few_inodes: LittleHost,
) -> None:
    host = host_with_few_inodes
    with host.typing(SECOND) as terminal:
        terminal.asked()
        (host.deploy / "reserve").unlink(missing_ok=True)  # the revert does not need it
        eat_inodes(host.home)
        terminal.types("no")
        shown = terminal.ends(7)
    assert f"reverted: {FIRST} is current and runs on both instances" in shown
    unharmed(host)


def test_a_rollback_without_a_free_inode(host_with_few_inodes: LittleHost) -> None:
    host = host_with_few_inodes
    eaten = eat_inodes(host.home)
    host.done("rollback", SECOND, "--yes")
    assert host.versions == (SECOND, SECOND)
    assert host.status["ok"]
    assert not (host.deploy / "reserve").exists()
    for path in eaten.iterdir():
        path.unlink()
    host.done("rollback", FIRST, "--yes")
    assert (host.deploy / "reserve").exists()
    unharmed(host)


def test_a_deploy_for_which_there_are_not_enough_inodes_is_refused_before_it_begins(
    host_with_few_inodes: LittleHost,
) -> None:
    host = host_with_few_inodes
    eat_inodes(host.home)
    result = host.run(SECOND, "--yes")
    assert result.returncode == 1
    assert "the disk is full: 0 inodes free" in result.stderr
    assert "(see df -i)" in result.stderr
    unharmed(host)


def test_a_flag_that_cannot_be_set_stops_no_rollback(host_with_few_inodes: LittleHost) -> None:
    host = host_with_few_inodes
    with in_front_of(host, quiet="0.2", timeout="20") as front:
        # The directory has the only inode.
        mount("-t", "tmpfs", "-o", "nr_inodes=1", "small", str(front.flag.parent))
        result = host.done("rollback", SECOND, "--yes")
    assert "the drain flag" in result.stderr
    assert f"cannot be created: {NO_ROOM}" in result.stderr
    assert host.versions == (SECOND, SECOND)
    assert host.status["ok"]


def test_after_a_rollback_that_could_not_be_written_down_status_does_not_name_the_deploy(
    light_host: LittleHost,
) -> None:
    host = light_host
    host.have(SECOND)
    journal = str(host.deploy / "journal.jsonl")
    with host.typing(SECOND) as terminal:
        terminal.asked()
        with host.comes_up_late(SECOND, "primary"):
            terminal.types("yes")
            wait_for(
                lambda: "no return" in [line["event"] for line in host.events], "the promotion"
            )
            # A full disk has room for some lines more in the journal's last block. The mount is made
            # read-only elsewhere: over the journal it is busy while a line is written.
            frozen = host.deploy / "frozen"
            frozen.touch()
            mount("--bind", journal, str(frozen))
            mount("-o", "remount,ro,bind", str(frozen))
            mount("--bind", str(frozen), journal)
        shown = terminal.ends(9)
    assert f"{SECOND} is in production, but that could not be written down" in shown
    assert host.status["next"].endswith(f"deploy {SECOND}")
    host.done("rollback", FIRST, "--yes")
    assert host.versions == (FIRST, FIRST)
    assert host.status["next"].endswith(f"rollback {FIRST}")
    mount("-o", "remount,rw,bind", journal)
    host.done("rollback", FIRST, "--yes")
    assert host.status["ok"]
    assert host.versions == (FIRST, FIRST)


@pytest.mark.parametrize("words", [(SECOND, "--yes"), ("rollback", SECOND, "--yes")])
def test_a_read_only_file_system_is_said_before_anything_is_done(
    light_host: LittleHost, words: tuple[str, ...]
) -> None:
    host = light_host
    host.have(SECOND)
    mount("--bind", str(host.home), str(host.home))
    mount("-o", "remount,bind,ro", str(host.home))
    try:
        result = host.run(*words)
        assert result.returncode == 4
        assert "Read-only file system" in result.stderr or "cannot be written" in result.stderr
        assert host.versions == (FIRST, FIRST)
        assert host.status["ok"]
    finally:
        run("umount", "--lazy", str(host.home))
