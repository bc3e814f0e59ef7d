"""The releases' directory: the link, installing, removing."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shlex
import stat
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from system import files_no_larger_than

from deploy_clojars.errors import DeployError
from deploy_clojars.host.releases import UNFINISHED, Current, Releases
from deploy_clojars.machine.files import opened

NAME = "clojars-web"
MANIFEST = "META-INF/MANIFEST.MF"
POM = f"META-INF/maven/{NAME}/{NAME}/pom.properties"
POM_OF_A_LIBRARY = "META-INF/maven/ring/ring-core/pom.properties"


@pytest.fixture
def releases(tmp_path: Path) -> Releases:
    """A directory with the releases A and B and no link."""
    directory = tmp_path / "releases"
    directory.mkdir()
    releases = Releases(directory, NAME)
    for version in ("A", "B"):
        releases.path(version).write_bytes(version.encode())
    return releases


def link_to(releases: Releases, target: str | Path) -> None:
    releases.link.unlink(missing_ok=True)
    releases.link.symlink_to(target)


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


# What is there


def test_releases_are_regular_files_of_the_form_that_the_contract_has(releases: Releases) -> None:
    for name in (
        "clojars-web-A.jar",
        "clojars-web-standalone.jar",
        "clojars-web--standalone.jar",
        "clojars-web-x y-standalone.jar",
        "clojars-web-..-standalone.jar",
        "other-web-C-standalone.jar",
        "clojars-web-C-standalone.jar.part",
        f"{UNFINISHED}0123.jar",
    ):
        (releases.directory / name).touch()
    releases.path("link").symlink_to(releases.path("A"))
    releases.path("directory").mkdir()

    assert releases.versions() == ["A", "B"]


@pytest.mark.parametrize("version", ["0.1.0", "109", "0.8.1~1", "1.0-standalone", "é"])
def test_the_name_of_a_release_has_its_version_in_it(releases: Releases, version: str) -> None:
    assert releases.version_in(releases.path(version).name) == version


def test_without_a_directory_there_are_no_releases(tmp_path: Path) -> None:
    releases = Releases(tmp_path / "nowhere", NAME)

    assert releases.versions() == []
    assert releases.current() == Current()
    assert not releases.has("A")


def test_a_release_is_there_only_as_a_regular_file(releases: Releases) -> None:
    releases.path("link").symlink_to(releases.path("A"))
    releases.path("directory").mkdir()

    assert releases.has("A")
    assert not releases.has("link")
    assert not releases.has("directory")
    assert not releases.has("C")


# What the link is


def test_before_the_first_deploy_there_is_no_link(releases: Releases) -> None:
    assert releases.current() == Current()


@pytest.mark.parametrize(
    "target",
    [
        "clojars-web-A-standalone.jar",
        "./clojars-web-A-standalone.jar",
        "../releases/clojars-web-A-standalone.jar",
        "{directory}/clojars-web-A-standalone.jar",
        "{directory}/../releases//clojars-web-A-standalone.jar",
        "{other_name}/clojars-web-A-standalone.jar",
    ],
)
def test_the_link_names_a_release_however_its_target_is_spelt(
    releases: Releases, tmp_path: Path, target: str
) -> None:
    other_name = tmp_path / "other-name"
    other_name.symlink_to(releases.directory)
    text = target.format(directory=releases.directory, other_name=other_name)
    link_to(releases, text)

    assert releases.current() == Current("A", text)


def is_a_file(releases: Releases) -> None:
    releases.link.write_text("a jar that somebody copied\n")


def is_a_directory(releases: Releases) -> None:
    releases.link.mkdir()


def dangles(releases: Releases) -> None:
    link_to(releases, releases.path("gone").name)


def dangles_far_away(releases: Releases) -> None:
    link_to(releases, "/nowhere/at/all.jar")


def names_itself(releases: Releases) -> None:
    link_to(releases, releases.link.name)


def names_no_release(releases: Releases) -> None:
    (releases.directory / "notes.txt").touch()
    link_to(releases, "notes.txt")


def names_a_file_elsewhere(releases: Releases) -> None:
    other = releases.directory.parent / releases.path("A").name
    other.touch()
    link_to(releases, other)


def names_a_link(releases: Releases) -> None:
    releases.path("C").symlink_to(releases.path("A").name)
    link_to(releases, releases.path("C").name)


BREAKAGES = [
    is_a_file,
    is_a_directory,
    dangles,
    dangles_far_away,
    names_itself,
    names_no_release,
    names_a_file_elsewhere,
    names_a_link,
]


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_broken_link_is_broken_until_the_command_that_mends_it_is_typed(
    releases: Releases, breakage: Callable[[Releases], None]
) -> None:
    breakage(releases)

    current = releases.current()
    assert current.broken is not None
    assert str(releases.link) in current.broken
    assert current.version is None

    subprocess.run(shlex.split(releases.mended_by(current, "A")), check=True)
    assert releases.current().broken is None


@pytest.mark.parametrize("breakage", [dangles, names_itself, names_no_release])
def test_a_broken_link_is_mended_with_the_release_that_was_approved(
    releases: Releases, breakage: Callable[[Releases], None]
) -> None:
    breakage(releases)

    command = releases.mended_by(releases.current(), "A")
    subprocess.run(shlex.split(command), check=True)

    assert releases.current().version == "A"


# Flipping


def test_the_link_names_the_release_it_was_flipped_to(releases: Releases) -> None:
    releases.flip("A")
    releases.flip("B")

    assert releases.current() == Current("B", "clojars-web-B-standalone.jar")
    assert names_in(releases.directory) == {
        "clojars-web-A-standalone.jar", "clojars-web-B-standalone.jar", "clojars-web-current.jar",
    }  # fmt: skip


def test_an_absolute_link_becomes_relative_at_the_first_flip(releases: Releases) -> None:
    link_to(releases, releases.path("A"))
    assert releases.current().version == "A"

    releases.flip("A")

    assert os.readlink(releases.link) == "clojars-web-A-standalone.jar"


def test_the_link_is_never_absent_and_never_names_anything_else(releases: Releases) -> None:
    releases.flip("A")
    seen: set[str] = set()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            try:
                seen.add(os.readlink(releases.link))
            except OSError as error:
                seen.add(repr(error))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(200):
            releases.flip("B")
            releases.flip("A")
    finally:
        done.set()
        looking.join()

    assert seen <= {releases.path("A").name, releases.path("B").name}


def test_the_temporary_link_has_a_name_of_its_own(releases: Releases) -> None:
    """Two at the same time do not meet, so neither does one meet what a killed run left."""
    failures: list[Exception] = []

    def flip_often(version: str) -> None:
        try:
            for _ in range(100):
                releases.flip(version)
        except DeployError as error:
            failures.append(error)

    threads = [threading.Thread(target=flip_often, args=(version,)) for version in ("A", "B")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not failures
    assert not [name for name in names_in(releases.directory) if name.startswith(UNFINISHED)]


@pytest.mark.parametrize("version", ["C", "link", "directory"])
def test_the_link_is_not_flipped_to_a_release_that_is_not_there(
    releases: Releases, version: str
) -> None:
    releases.path("link").symlink_to(releases.path("A").name)
    releases.path("directory").mkdir()
    releases.flip("A")
    before = names_in(releases.directory)

    with pytest.raises(DeployError, match=f"release {version} is not in"):
        releases.flip(version)

    assert releases.current().version == "A"
    assert names_in(releases.directory) == before


def test_a_flip_that_fails_leaves_nothing_behind(releases: Releases) -> None:
    releases.link.mkdir()
    before = names_in(releases.directory)

    with pytest.raises(DeployError, match="was not replaced"):
        releases.flip("A")

    assert names_in(releases.directory) == before


def no_room(monkeypatch: pytest.MonkeyPatch, unless: Callable[[], bool] = lambda: False) -> None:
    """No link can be made any more, as on a disk without a free inode."""
    symlink = os.symlink

    def fail(target: str, link: Path) -> None:
        if not unless():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        symlink(target, link)

    monkeypatch.setattr(os, "symlink", fail)


def test_a_flip_back_needs_no_room(releases: Releases, monkeypatch: pytest.MonkeyPatch) -> None:
    releases.flip("A")
    with releases.link_made_for("A"):
        releases.flip("B")
        no_room(monkeypatch)
        releases.flip("A")
    assert os.readlink(releases.link) == "clojars-web-A-standalone.jar"
    assert not [name for name in names_in(releases.directory) if name.startswith(".")]


def test_a_link_that_was_not_needed_is_gone(releases: Releases) -> None:
    with releases.link_made_for("A"):
        releases.flip("B")
    assert releases.current().version == "B"
    assert not [name for name in names_in(releases.directory) if name.startswith(".")]


def test_without_room_for_the_link_back_nothing_is_begun(
    releases: Releases, monkeypatch: pytest.MonkeyPatch
) -> None:
    releases.flip("A")
    no_room(monkeypatch)
    with (
        pytest.raises(
            DeployError, match=r"a link in .* cannot be created: No space left on device"
        ),
        releases.link_made_for("A"),
    ):
        pytest.fail("there is no way back")


def test_on_a_full_disk_what_was_set_aside_makes_room_for_the_link(
    releases: Releases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve = tmp_path / "reserve"
    releases = Releases(releases.directory, NAME, reserve)
    releases.set_aside()
    assert reserve.stat().st_blocks > 0
    no_room(monkeypatch, unless=lambda: not reserve.exists())
    releases.flip("A")
    assert releases.current().version == "A"
    releases.set_aside()
    assert reserve.exists()


def test_a_link_can_be_removed_and_removed_again(releases: Releases) -> None:
    releases.flip("A")

    releases.remove_link()
    releases.remove_link()

    assert releases.current() == Current()
    assert releases.has("A")


# Which release an open file is


def identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def version_of(releases: Releases, opened: tuple[int, int], name: str) -> str | None:
    """Which release the open file is, if it is one."""
    return releases.versions_of([(opened, name)]).get(opened)


def test_an_open_file_is_the_release_with_its_inode(releases: Releases) -> None:
    assert version_of(releases, identity(releases.path("A")), releases.path("A").name) == "A"
    assert version_of(releases, identity(releases.path("A")), "clojars-web-current.jar") == "A"


def test_an_open_file_that_was_renamed_is_the_release_that_it_is_now(releases: Releases) -> None:
    opened = identity(releases.path("A"))
    releases.path("A").rename(releases.path("C"))

    assert version_of(releases, opened, releases.path("A").name) == "C"


def test_an_open_file_that_was_replaced_under_its_name_is_no_release(releases: Releases) -> None:
    with releases.path("A").open("rb") as file:
        opened = os.fstat(file.fileno())
        releases.path("A").unlink()
        releases.path("A").write_bytes(b"another one")

        found = version_of(releases, (opened.st_dev, opened.st_ino), releases.path("A").name)

    assert found is None


def test_an_open_file_that_was_moved_away_is_no_release(releases: Releases, tmp_path: Path) -> None:
    moved = releases.path("A").rename(tmp_path / releases.path("A").name)

    assert version_of(releases, identity(moved), moved.name) is None


def test_open_files_of_all_kinds_are_told_apart_at_one_look(
    releases: Releases, tmp_path: Path
) -> None:
    library = tmp_path / "rt.jar"
    library.touch()
    renamed = identity(releases.path("A"))
    releases.path("A").rename(releases.path("C"))
    opened = [
        (renamed, "clojars-web-A-standalone.jar"),
        (identity(releases.path("B")), "clojars-web-B-standalone.jar"),
        (identity(library), "rt.jar"),
    ]

    assert releases.versions_of(opened) == {opened[0][0]: "C", opened[1][0]: "B"}
    assert releases.versions_of([]) == {}


def test_a_message_does_not_name_thousands_of_releases(releases: Releases) -> None:
    assert releases.some() == "A, B"
    assert releases.some(1) == "A and 1 more (deploy-clojars releases --all)"


# Installing


@pytest.fixture
def jar(tmp_path: Path) -> Path:
    """What a build made: larger than one chunk."""
    jar = tmp_path / "built.jar"
    jar.write_bytes(os.urandom(3_000_000))
    return jar


def install(releases: Releases, jar: Path, version: str) -> str:
    """Copies the jar in as a release, and returns its SHA-256."""
    with opened(jar) as original, releases.copied(original, version, 10) as copy:
        releases.add(copy, version)
    return copy.sha256


def test_a_release_is_the_jar_to_the_byte(releases: Releases, jar: Path) -> None:
    digest = install(releases, jar, "C")

    assert releases.path("C").read_bytes() == jar.read_bytes()
    assert digest == hashlib.sha256(jar.read_bytes()).hexdigest()
    assert names_in(releases.directory) == {
        releases.path(version).name for version in ("A", "B", "C")
    }


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o000])
def test_everybody_can_read_a_release_and_its_owner_alone_write_it(
    releases: Releases, jar: Path, umask: int
) -> None:
    jar.chmod(0o600)
    before = os.umask(umask)
    try:
        install(releases, jar, "C")
    finally:
        os.umask(before)

    assert stat.S_IMODE(releases.path("C").stat().st_mode) == 0o644


def test_a_release_is_a_copy_with_an_inode_of_its_own(releases: Releases, jar: Path) -> None:
    install(releases, jar, "C")

    assert identity(releases.path("C")) != identity(jar)
    assert releases.path("C").stat().st_nlink == 1


def test_a_release_that_can_be_seen_is_complete(releases: Releases, tmp_path: Path) -> None:
    jar = tmp_path / "large.jar"
    jar.write_bytes(bytes(30_000_000))
    sizes: set[int] = set()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            for path in releases.directory.glob("*-C-standalone.jar"):
                sizes.add(path.stat().st_size)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        install(releases, jar, "C")
    finally:
        done.set()
        looking.join()

    assert sizes <= {30_000_000}


def file_there(path: Path) -> None:
    path.write_text("there already")


def link_there(path: Path) -> None:
    path.symlink_to("there-already")


def directory_there(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("put", [file_there, link_there, directory_there])
def test_a_release_never_replaces_what_is_there(
    releases: Releases, jar: Path, put: Callable[[Path], None]
) -> None:
    put(releases.path("C"))
    before = identity_of_name(releases.path("C"))
    names = names_in(releases.directory)

    with pytest.raises(DeployError, match="already exists"):
        install(releases, jar, "C")

    assert identity_of_name(releases.path("C")) == before
    assert names_in(releases.directory) == names


def identity_of_name(path: Path) -> tuple[int, int, int]:
    found = path.lstat()
    return found.st_mode, found.st_ino, found.st_size


def test_a_jar_that_is_a_link_is_not_copied(releases: Releases, jar: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.jar"
    link.symlink_to(jar)

    assert_not_installed(releases, link, f"{link} cannot be read: Too many levels of symbolic")


def test_a_directory_is_not_copied(releases: Releases, tmp_path: Path) -> None:
    assert_not_installed(releases, tmp_path, f"{tmp_path} cannot be read: Is a directory")


def test_a_release_cannot_be_copied_to_what_is_not_a_directory(jar: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()

    with pytest.raises(DeployError, match=r"release C cannot be copied to .*: Not a directory"):
        install(Releases(file, "clojars-web"), jar, "C")


def test_a_jar_that_is_gone_is_not_copied(releases: Releases, tmp_path: Path) -> None:
    gone = tmp_path / "gone.jar"
    assert_not_installed(releases, gone, f"{gone} cannot be read: No such file")


def test_a_jar_for_which_there_is_no_room_is_not_half_copied(releases: Releases, jar: Path) -> None:
    with files_no_larger_than(2_000_000):
        assert_not_installed(releases, jar, "release C cannot be copied")


def test_a_jar_that_the_disk_has_not_taken_is_no_release(
    releases: Releases, jar: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    assert_not_installed(releases, jar, "release C cannot be added to")


def assert_not_installed(releases: Releases, jar: Path, why: str) -> None:
    before = names_in(releases.directory)

    with pytest.raises(DeployError, match=re.escape(why)):
        install(releases, jar, "C")

    assert names_in(releases.directory) == before


def test_what_a_killed_run_was_writing_is_removed_and_nothing_else(releases: Releases) -> None:
    releases.flip("A")
    before = names_in(releases.directory)
    (releases.directory / f"{UNFINISHED}0123456789abcdef.jar").write_bytes(b"half a ja")
    (releases.directory / f"{UNFINISHED}0123456789abcdef.link").symlink_to("nowhere")

    releases.clear_unfinished()

    assert names_in(releases.directory) == before
