"""Archives of a release's classes: what a JVM does with them, and what the tool and its `java` do."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from java_application import JavaApplication
from little_host import ETC, LittleHost, at_a_terminal, free_ports, wait_for
from standin.upstart import Upstart
from systemd_kit import bare_machine

from deploy_clojars.deploy import class_data
from deploy_clojars.errors import DeployError
from deploy_clojars.host.releases import Releases

RECORDS = class_data.RECORDS
FIRST, SECOND, THIRD = "0.1.0", "0.2.0", "0.3.0"  # the last one has no archive
A_SECOND = (1704067200 * 10**9, 1704067200 * 10**9)  # times of a file, in nanoseconds

JAVA = ETC / "lib/clojars/java"
PROGRAM = Path(shutil.which("java") or "/usr/bin/java").resolve()


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> JavaApplication:
    return JavaApplication(tmp_path_factory.mktemp("java"))


@dataclass
class Directory:
    """A directory with releases, whose jars have one size and one time."""

    releases: Releases
    application: JavaApplication

    def jar(self, version: str) -> Path:
        """The release's file."""
        return self.releases.path(version)

    def have(self, version: str) -> None:
        """Adds the release."""
        shutil.copyfile(self.application.jar(version), self.jar(version))
        os.utime(self.jar(version), ns=A_SECOND)

    def point_to(self, version: str) -> None:
        """Makes the release current."""
        self.releases.flip(version)

    def dump(self, version: str, archive: Path, jar: Path | None = None) -> None:
        """Makes an archive of the release's classes."""
        with self.running(
            "java", "-XX:+RecordDynamicDumpInfo", "-jar", jar or self.jar(version)
        ) as jvm:
            words = ["jcmd", str(jvm.pid), "VM.cds", "dynamic_dump", str(archive)]
            subprocess.run(words, check=True, capture_output=True)

    def add_archive(self, version: str) -> Path:
        """Adds an archive of the release's classes, as the tool does."""
        with self.releases.class_data_added(version, PROGRAM) as archive:
            self.dump(version, archive)
        return self.archive(version)

    def archive(self, version: str) -> Path:
        """The archive of the release's classes."""
        [found] = archives_of(self.releases, version)
        return found

    @contextmanager
    def running(self, *words: str | Path) -> Iterator[subprocess.Popen[bytes]]:
        """A JVM with the application, which serves."""
        web, nailgun = free_ports(2)
        env = {**os.environ, "PORT": str(web), "NAILGUN_PORT": str(nailgun)}
        curl = ["curl", "-fsS", f"http://127.0.0.1:{web}/"]
        with subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL) as process:
            try:
                wait_for(lambda: said_by(curl), "it serves")
                yield process
                assert process.poll() is None
            finally:
                process.terminate()  # after a KILL jcmd's socket would stay in /tmp


def archives_of(releases: Releases, version: str) -> list[Path]:
    """The archives of a release's classes."""
    return [*releases.directory.glob(f"{releases.path(version).name}.*.jsa")]


@pytest.fixture(scope="module")
def directory(application: JavaApplication, tmp_path_factory: pytest.TempPathFactory) -> Directory:
    made = Directory(Releases(tmp_path_factory.mktemp("releases"), "clojars-web"), application)
    for version in (FIRST, SECOND, THIRD):
        made.have(version)
    for version in (FIRST, SECOND):
        made.add_archive(version)
    made.point_to(FIRST)
    return made


def said_by(words: list[str]) -> bytes:
    """What a program prints, however it ends."""
    return subprocess.run(words, capture_output=True, check=False).stdout


def said(*words: str | Path, cwd: Path | None = None, **env: str) -> str:
    """All that a program prints that must end well."""
    done = subprocess.run(
        words, env={**os.environ, **env}, cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def loaded_from(*words: str | Path, log: Path) -> str:
    """Where a JVM that starts like this has its main class from."""
    said(*words[:1], f"-Xlog:class+load:file={log}", *words[1:])
    [line] = (line for line in log.read_text().splitlines() if " clojars.main " in line)
    return line.partition("source: ")[2]


SHARED = "shared objects file (top)"


# What the JVM itself does, and why the script is as it is


def test_a_jvm_that_is_started_through_the_link_runs_the_code_of_another_release(
    directory: Directory, tmp_path: Path
) -> None:
    """All that it compares are the path as it was given, the size and the second."""
    directory.point_to(FIRST)
    directory.dump(FIRST, tmp_path / "archive.jsa", jar=directory.releases.link)
    directory.point_to(THIRD)
    archive = f"-XX:SharedArchiveFile={tmp_path}/archive.jsa"
    assert said("java", archive, "-jar", directory.releases.link) == f"{FIRST}\n"
    later = A_SECOND[1] + 10**9
    os.utime(directory.jar(THIRD), ns=(later, later))
    assert said("java", archive, "-jar", directory.releases.link).endswith(f"\n{THIRD}\n")


def test_a_jvm_takes_an_archive_whether_its_jar_was_reached_through_the_link_or_not(
    directory: Directory, tmp_path: Path
) -> None:
    by_link = tmp_path / "by-link.jsa"
    link, jar = directory.releases.link, directory.jar(FIRST)
    directory.point_to(FIRST)
    directory.dump(FIRST, by_link, jar=link)
    for archive, start in ((by_link, jar), (directory.archive(FIRST), link)):
        option = f"-XX:SharedArchiveFile={archive}"
        assert loaded_from("java", option, "-jar", start, log=tmp_path / "log") == SHARED


def test_an_archive_that_is_replaced_or_removed_under_a_running_jvm_does_it_no_harm(
    directory: Directory, tmp_path: Path
) -> None:
    archive, other = tmp_path / "archive.jsa", tmp_path / "other.jsa"
    shutil.copyfile(directory.archive(FIRST), archive)
    option = f"-XX:SharedArchiveFile={archive}"
    with directory.running("java", option, "-jar", directory.jar(FIRST)) as jvm:
        shutil.copyfile(directory.archive(SECOND), other)
        os.replace(other, archive)
        archive.unlink()
        said("jcmd", str(jvm.pid), "GC.class_histogram")  # it goes through all classes


# Beside its release


def test_it_is_removed_with_its_release_and_with_no_other(tmp_path: Path) -> None:
    releases = Releases(tmp_path, "clojars-web")
    for version in ("1.2", "1.2-standalone.jar"):
        releases.path(version).touch()
        with releases.class_data_added(version, PROGRAM) as archive:
            archive.touch()
    [other] = archives_of(releases, "1.2-standalone.jar")
    assert releases.versions() == ["1.2", "1.2-standalone.jar"]
    releases.remove("1.2")
    assert set(tmp_path.iterdir()) == {releases.path("1.2-standalone.jar"), other}


def test_nothing_is_added_if_it_fails_or_the_release_is_another_file_by_then(
    tmp_path: Path,
) -> None:
    releases = Releases(tmp_path, "clojars-web")
    releases.path(FIRST).touch()
    with pytest.raises(TimeoutError), releases.class_data_added(FIRST, PROGRAM) as archive:
        archive.touch()
        raise TimeoutError
    with (
        pytest.raises(OSError, match="Stale"),
        releases.class_data_added(FIRST, PROGRAM) as archive,
    ):
        archive.touch()
        releases.path(FIRST).write_text("another one")
    assert list(tmp_path.iterdir()) == [releases.path(FIRST)]


def test_what_a_jvm_leaves_that_dies_half_way_is_not_added(tmp_path: Path) -> None:
    """This process is the JVM, and does not have the release open any more when it is looked at."""
    releases = Releases(tmp_path, "clojars-web")
    releases.path(FIRST).touch()
    own = Path(f"/tmp/.java_pid{os.getpid()}")
    asked = []

    def die_half_way(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            asked.append(connection.recv(4096))
            Path(asked[0].split()[-1].decode().rstrip("\0")).write_text("a part")
            connection.sendall(b"0\nDynamic dump:\n")

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(own))
        try:
            server.listen()
            threading.Thread(target=die_half_way, args=(server,), daemon=True).start()
            with pytest.raises(DeployError, match="Dynamic dump:"):
                class_data.make(releases, FIRST, os.getpid())
        finally:
            own.unlink()
    assert asked[0].startswith(b"1\0jcmd\0VM.cds dynamic_dump /")
    assert list(tmp_path.iterdir()) == [releases.path(FIRST)]


def test_none_is_begun_if_the_disk_might_fill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    releases = Releases(tmp_path, "clojars-web")
    releases.path(FIRST).write_text("x" * 1000)
    monkeypatch.setattr("deploy_clojars.host.releases.CLASS_DATA_PER_BYTE", 10**12)
    with pytest.raises(OSError, match="No space left"):
        class_data.make(releases, FIRST, os.getpid())


def test_check_knows_why_none_is_made(directory: Directory) -> None:
    assert class_data.why_none(os.getpid()) == "is not a JVM"
    with directory.running("java", "-jar", directory.jar(FIRST)) as jvm:
        assert class_data.why_none(jvm.pid) == "was started without -XX:+RecordDynamicDumpInfo"


# The script that the jobs start


def test_it_starts_the_release_that_the_link_names_with_its_own_archive(
    directory: Directory, tmp_path: Path
) -> None:
    for version in (SECOND, FIRST):
        directory.point_to(version)
        words = (JAVA, "-Xmx64m", "-jar", directory.releases.link)
        assert said(*words) == f"{version}\n"
        assert loaded_from(*words, log=tmp_path / "log") == SHARED


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[:1000],
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[: len(whole) // 2] + b"\xff" * 99 + whole[len(whole) // 2 + 99 :],
        lambda whole: bytes(len(whole)),
        lambda whole: whole.replace(b"64-Bit Server VM (", b"64-Bit Server VM +"),
    ],
    ids=["empty", "cut in the header", "half", "bytes changed", "zeros", "of another Java"],
)
def test_an_archive_that_is_no_good_is_not_used(
    damage: Callable[[bytes], bytes], directory: Directory, tmp_path: Path
) -> None:
    archive = directory.archive(FIRST)
    whole = archive.read_bytes()
    bad = damage(whole)
    assert bad != whole
    directory.point_to(FIRST)
    archive.unlink()
    archive.write_bytes(bad)
    words = (JAVA, "-Xmx64m", "-jar", directory.releases.link)
    try:
        # For some of them the JVM says first that it cannot use the archive.
        assert said(*words, cwd=tmp_path).endswith(f"{FIRST}\n")
    finally:
        archive.write_bytes(whole)
    assert not list(tmp_path.iterdir())  # no report of a crash
    assert loaded_from(*words, log=tmp_path / "log") == SHARED


def test_a_release_that_was_replaced_by_hand_does_not_get_the_archive_of_the_other(
    directory: Directory,
) -> None:
    jar = directory.jar(THIRD)
    directory.point_to(THIRD)
    directory.add_archive(THIRD)
    words = (JAVA, "-Xmx64m", "-jar", directory.releases.link)
    assert said(*words) == f"{THIRD}\n"
    shutil.copy2(directory.jar(FIRST), jar)  # in place: its name, inode, size and time stay
    try:
        assert said(*words) == f"{FIRST}\n"
    finally:
        directory.have(THIRD)


def test_a_java_that_cannot_record_starts_all_the_same(
    directory: Directory, tmp_path: Path
) -> None:
    directory.point_to(THIRD)
    words = (JAVA, "-Xmx64m", "-jar", directory.releases.link)
    # JAVA_TOOL_OPTIONS is what a site has in /etc/default.
    assert said(*words, JAVA_TOOL_OPTIONS="-Xshare:off").startswith(f"{THIRD}\n")
    old = tmp_path / "java"
    old.write_text('#!/bin/sh\ncase "$*" in *-XX:*) exit 1; esac\necho "old java: $*"\n')
    old.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    for version in (THIRD, FIRST):  # the archive of the second one was made by another java
        directory.point_to(version)
        assert said(*words, PATH=path) == f"old java: -Xmx64m -jar {directory.jar(version)}\n"
    directory.releases.link.unlink()
    without = subprocess.run(words, capture_output=True, text=True, check=False)
    assert "Unable to access jarfile" in without.stderr
    directory.point_to(FIRST)


# A deploy


@pytest.fixture(scope="module")
def host(
    application: JavaApplication, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LittleHost]:
    """It serves the first release."""
    place = tmp_path_factory.mktemp("host")
    with Upstart.started(place / "upstart") as upstart:
        launcher = f"{JAVA} -Xmx64m -jar"
        patient = {"health": "timeout = 60"}  # several JVMs start for each of its starts
        made = LittleHost(place / "host", upstart, "/nowhere", {}, patient, launcher)
        made.serving(FIRST, application.jar(FIRST))
        yield made
        for job in (made.primary, made.backup):
            made.control("stop", job)  # else the sockets of the JVMs would stay in /tmp


def command(host: LittleHost, role: str) -> list[str]:
    """The words that an instance was started with."""
    return psutil.Process(host.pid(role)).cmdline()


def test_the_archive_is_made_while_the_operator_reads_and_every_later_start_uses_it(
    host: LittleHost, application: JavaApplication
) -> None:
    releases = Releases(host.releases, "clojars-web")
    with host.typing("deploy", SECOND, "--jar", str(application.jar(SECOND))) as terminal:
        terminal.asked()
        [archive] = wait_for(lambda: archives_of(releases, SECOND), "the archive is made")
        assert stat.S_IMODE(archive.stat().st_mode) == 0o444
        terminal.types("yes")
        terminal.ends(0)
    shared = f"-XX:SharedArchiveFile={archive}"
    assert shared in command(host, "primary")
    assert RECORDS in command(host, "backup")
    host.done("rollback", FIRST, "--yes")
    assert host.versions == (FIRST, FIRST)
    host.done("rollback", SECOND, "--yes")
    assert shared in command(host, "primary")
    assert shared in command(host, "backup")
    assert host.versions == (SECOND, SECOND)


def test_a_no_does_not_wait_for_it_and_with_yes_it_is_made_after_the_promotion(
    host: LittleHost, application: JavaApplication
) -> None:
    with host.typing("deploy", THIRD, "--jar", str(application.jar(THIRD))) as terminal:
        terminal.asked()
        terminal.types("no")
        terminal.ends(7)
    assert host.versions == (SECOND, SECOND)
    fourth = "0.4.0"
    host.done("deploy", fourth, "--jar", str(application.jar(fourth)), "--yes")
    assert host.versions == (fourth, fourth)
    [archive] = archives_of(Releases(host.releases, "clojars-web"), fourth)
    # What a JVM wrote last that had to end is removed.
    assert not list(host.releases.glob(".deploy-clojars-*"))

    archive.unlink()
    for verb, job in (("restart", host.backup), ("stop", host.primary)):
        host.control(verb, job)
    wait_for(lambda: host.version("backup") == fourth, "it serves")
    host.done("deploy", fourth, "--yes", "--dry-run")
    assert not archive.exists()
    host.done("deploy", fourth, "--yes")
    assert archive.exists()


# Under the units of `setup`, with all their hardening


def test_the_production_user_has_the_archive_made_by_a_hardened_unit(
    application: JavaApplication, tmp_path: Path
) -> None:
    with bare_machine() as kit:
        machine = kit.machine
        machine.run("rm", "/usr/local/bin/java")
        machine.run("ln", "-sf", os.path.realpath("/usr/bin/java"), "/usr/bin/java")
        made = kit.tool("setup")
        assert made.returncode == 0, made.stderr + made.stdout
        for version in (FIRST, SECOND):
            name = f"home/clojars/releases/clojars-web-{version}-standalone.jar"
            shutil.copyfile(application.jar(version), kit.root / name)
            machine.run("chown", "clojars:", f"/{name}")
        kit.point_to(f"clojars-web-{FIRST}-standalone.jar")
        kit.systemctl("start", "clojars", "clojars-backup")
        wait_for(lambda: kit.status["ok"], "both serve")
        found = kit.tool("check", by="clojars").stdout
        assert "ok  class data: clojars-backup uses an archive, or can make one\n" in found
        deploy = machine.command("sudo", "-iu", "clojars", "deploy-clojars", "deploy", SECOND)
        jar = f"/home/clojars/releases/clojars-web-{SECOND}-standalone.jar"
        machine.run("mv", jar, "/home/clojars/new.jar")
        with at_a_terminal(
            [*deploy, "--jar", "/home/clojars/new.jar"], {**os.environ}, tmp_path, 300
        ) as terminal:
            terminal.asked()
            terminal.types("yes")  # at once, and so it waits for the rest
            terminal.ends(0)
        [archive] = (kit.root / "home/clojars/releases").glob("clojars-web-*.jsa")
        pid = kit.status["instances"]["primary"]["pid"]
        words = machine.run("cat", f"/proc/{pid}/cmdline").stdout.split("\0")
        assert f"-XX:SharedArchiveFile=/home/clojars/releases/{archive.name}" in words
        assert machine.run("stat", "-c", "%U", f"/home/clojars/releases/{archive.name}").stdout == (
            "clojars\n"
        )
        # A site's own filter, which would kill a JVM that opens that socket.
        machine.run("rm", f"/home/clojars/releases/{archive.name}")
        kit.drop_in("clojars-backup", "SystemCallFilter=~@chown")
        kit.systemctl("restart", "clojars-backup")
        wait_for(lambda: kit.status["ok"], "both serve")
        assert "since clojars-backup was started without -XX:" in kit.tool("check").stdout
        # That it does so not only because its trial of java was killed in time:
        machine.write("/opt/bin/java", '#!/bin/sh\necho "$*"\n', 0o755)
        script = ["/usr/local/lib/clojars/java", "-jar", kit.link.relative_to(kit.root)]
        said_of = []
        for group in ("@chown", "@swap"):
            unit = ["systemd-run", "--quiet", "--wait", "--pipe", "--working-directory=/",
                    "--setenv=PATH=/opt/bin:/usr/bin:/bin", f"--property=SystemCallFilter=~{group}"]  # fmt: skip
            said_of.append(machine.run(*unit, *script).stdout)
        assert [RECORDS in said for said in said_of] == [False, True]
