"""`deploy VERSION --jar FILE`: a release that was built elsewhere."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from clojure_repository import ClojureRepository as Tags
from conftest import Clojure
from little_host import LittleHost, at_a_terminal, wait_for

from deploy_clojars.checks import programs
from deploy_clojars.checks.finding import Site
from deploy_clojars.config import load
from deploy_clojars.deploy import source
from deploy_clojars.errors import DeployError, UsageError
from deploy_clojars.host.host import Host
from deploy_clojars.host.journal import Event, history_of
from deploy_clojars.host.releases import UNFINISHED
from deploy_clojars.machine.files import Input, opened
from deploy_clojars.run.lock import holder_of

FIRST, SECOND, THIRD = Tags.FIRST, Tags.SECOND, Tags.THIRD


@pytest.fixture
def host(light_host: LittleHost) -> LittleHost:
    """A host with no repository, and whose build would fail."""
    light_host.repository_url = "file:///nowhere"
    light_host.write_config(
        top=f'repository = "file:///nowhere"\nhome = "{light_host.home}"',
        build='test = "no-such-program"\nuberjar = "no-such-program"',
    )
    return light_host


@pytest.fixture
def jar(host: LittleHost, tmp_path: Path) -> Path:
    """The second release, as it comes from elsewhere."""
    return Path(shutil.copyfile(host.jar(SECOND), tmp_path / "from elsewhere.jar"))


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def release(host: LittleHost, version: str = SECOND) -> Path:
    return host.releases / f"clojars-web-{version}-standalone.jar"


def names(host: LittleHost) -> set[str]:
    return {path.name for path in host.releases.iterdir()}


def asked_by_check(host: LittleHost) -> str:
    """What `check` says about the programs that a release needs."""
    real = Host(load(host.config))
    return "\n".join(each.what for each in programs.of_the_build(Site(real, real.look())))


def with_jar(host: LittleHost, jar: Path | str, *words: str, version: str = SECOND) -> list[str]:
    return [*host.command, "deploy", version, "--jar", str(jar), *words]


def refused(host: LittleHost, status: int, jar: Path | str, *words: str) -> str:
    """What a deploy says that is refused and changes nothing."""
    before, pids = names(host), (host.pid("primary"), host.pid("backup"))
    result = host.run("deploy", SECOND, "--jar", str(jar), "--yes", *words)
    assert result.returncode == status, result.stderr
    assert names(host) == before
    assert host.current == release(host, FIRST).name
    assert (host.pid("primary"), host.pid("backup")) == pids
    return result.stderr


def installed(host: LittleHost) -> dict[str, object]:
    [event] = [each for each in host.events if each["event"] == "installed"]
    return event


# --- where it may come from -----------------------------------------------------------------------


def test_a_jar_is_deployed_without_git_and_without_a_build(
    host: LittleHost, jar: Path, repository: Tags
) -> None:
    host.environment["PATH"] = "/nowhere"

    result = host.done("deploy", SECOND, "--jar", str(jar), "--yes")

    assert f" from {jar}" in result.stderr
    assert host.versions == (SECOND, SECOND)
    assert release(host).read_bytes() == jar.read_bytes()
    assert not (host.deploy / "mirror.git").exists()
    event = installed(host)
    assert (event["source"], event["sha256"]) == ("jar", sha256(jar))
    assert event["commit"] == repository.commit(SECOND)  # the jar says so


def test_releases_history_and_status_say_where_a_release_came_from(
    host: LittleHost, jar: Path
) -> None:
    host.done("deploy", SECOND, "--jar", str(jar), "--yes")

    assert host.status["source"] == "jar"
    listed = json.loads(host.done("releases", "--json").stdout)["releases"]
    of = {each["version"]: (each["source"], each["sha256"]) for each in listed}
    assert of == {SECOND: ("jar", sha256(jar)), FIRST: (None, None)}
    [run] = json.loads(host.done("history", "--json").stdout)["runs"]
    assert run["source"] == "jar"
    assert f"deploy {SECOND} from a jar" in host.done("history").stdout
    assert any("  jar  " in line for line in host.done("releases").stdout.splitlines())


def test_check_does_not_ask_for_git_and_a_build_where_the_last_release_came_as_a_jar(
    host: LittleHost, jar: Path
) -> None:
    assert "not on PATH: no-such-program" in asked_by_check(host)
    host.done("deploy", SECOND, "--jar", str(jar), "--yes")
    assert asked_by_check(host) == ""


def test_a_release_of_a_journal_from_before_came_from_a_tag() -> None:
    history = history_of([Event(event="installed", version="A")])
    assert history.installed["A"].source == "tag"


def test_a_jar_comes_through_a_pipe(host: LittleHost, jar: Path) -> None:
    words = with_jar(host, "-", "--sha256", sha256(jar), "--yes")
    result = subprocess.run(
        words, input=jar.read_bytes(), env=host.whole_environment, capture_output=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert host.versions == (SECOND, SECOND)


def test_a_jar_comes_from_a_named_pipe(host: LittleHost, jar: Path, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: fifo.write_bytes(jar.read_bytes()))
    writer.start()
    host.done("deploy", SECOND, "--jar", str(fifo), "--yes")
    writer.join()
    assert release(host).read_bytes() == jar.read_bytes()


def test_a_jar_comes_from_another_file_system(host: LittleHost, jar: Path) -> None:
    elsewhere = Path(f"/dev/shm/{os.getpid()}.jar")
    if os.stat(elsewhere.parent).st_dev == os.stat(host.releases).st_dev:
        pytest.skip("/dev/shm is not another file system")
    try:
        shutil.copyfile(jar, elsewhere)
        host.done("deploy", SECOND, "--jar", str(elsewhere), "--yes")
    finally:
        elsewhere.unlink(missing_ok=True)
    assert host.versions == (SECOND, SECOND)


def test_a_link_to_a_jar_is_the_jar(host: LittleHost, jar: Path, tmp_path: Path) -> None:
    link = tmp_path / "latest.jar"
    link.symlink_to(jar.name)
    host.done("deploy", SECOND, "--jar", str(link), "--yes")
    assert release(host).read_bytes() == jar.read_bytes()
    assert not release(host).is_symlink()


def test_with_a_jar_on_standard_input_the_question_goes_to_the_terminal(
    host: LittleHost, jar: Path
) -> None:
    pipe = 'cat "$0" | "$@"'
    argv = ["/bin/sh", "-c", pipe, str(jar), *with_jar(host, "-")]
    with at_a_terminal(argv, host.whole_environment, host.directory, 180) as terminal:
        terminal.asked()
        terminal.types("no")
        terminal.ends(7)
    assert host.versions == (FIRST, FIRST)
    assert release(host).read_bytes() == jar.read_bytes()


@pytest.mark.parametrize("named", ["-", "file"])
def test_without_a_terminal_the_question_needs_yes(host: LittleHost, jar: Path, named: str) -> None:
    words = with_jar(host, "-" if named == "-" else jar)
    with jar.open("rb") as file:
        result = subprocess.run(
            words, stdin=file, env=host.whole_environment, capture_output=True, text=True,
            start_new_session=True, check=False,
        )  # fmt: skip
    assert result.returncode == 2
    assert "use --yes" in result.stderr
    assert not host.deploy.exists()


def test_the_jar_goes_before_the_command_of_the_configuration(host: LittleHost, jar: Path) -> None:
    host.write_config(release='command = "no-such-program"')
    host.done("deploy", SECOND, "--jar", str(jar), "--yes")
    assert installed(host)["source"] == "jar"


@pytest.mark.jvm
def test_the_application_is_deployed_as_it_was_built_elsewhere_and_rolled_back(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    clojure: Clojure = request.getfixturevalue("clojure")
    host: LittleHost = request.getfixturevalue("new_host")()
    host.serving(FIRST, clojure.jar(FIRST))
    jar = Path(shutil.copyfile(clojure.jar(SECOND), tmp_path / "application.jar"))
    migrated = tmp_path / "migrated"
    command = f"test -f $DEPLOY_JAR && echo $DEPLOY_APPROVED $DEPLOY_VERSION >> {migrated}"
    host.write_config(
        migrate=f'command = "{command}"', release=f'command = "cp {jar} ."\njar = "*.jar"'
    )

    with host.typing("deploy", SECOND, "--jar", str(jar), "--sha256", sha256(jar)) as terminal:
        terminal.asked()
        terminal.types("no")
        terminal.ends(7)
    assert host.versions == (FIRST, FIRST)
    host.done("deploy", SECOND, "--yes")
    assert host.versions == (SECOND, SECOND)
    assert migrated.read_text() == f"{FIRST} {SECOND}\n"

    host.done("rollback", "--yes")
    assert host.versions == (FIRST, FIRST)
    release(host).unlink()
    host.done("deploy", SECOND, "--yes")  # by the command
    assert host.versions == (SECOND, SECOND)
    assert [each["source"] for each in host.events if each["event"] == "installed"] == [
        "jar", "command",
    ]  # fmt: skip


# --- what is refused ------------------------------------------------------------------------------


def damaged(jar: Path) -> None:
    with zipfile.ZipFile(jar) as archive:
        entry = archive.getinfo("__main__.py")
    content = bytearray(jar.read_bytes())
    content[entry.header_offset + 100] ^= 1
    jar.write_bytes(content)


def truncated(jar: Path) -> None:
    os.truncate(jar, jar.stat().st_size - 30)


def empty(jar: Path) -> None:
    os.truncate(jar, 0)


def five_gigabytes_of_nothing(jar: Path) -> None:
    os.truncate(jar, 5 * 2**30)


def no_program(jar: Path) -> None:
    with zipfile.ZipFile(jar, "w") as archive:
        archive.writestr("readme.txt", "")


@pytest.mark.parametrize(
    ("spoilt", "why"),
    [
        (damaged, "is damaged: the checksum of '__main__.py' is wrong"),
        (truncated, "is not a valid jar: it is not a zip file, or is truncated"),
        (empty, "is not a valid jar: it is not a zip file, or is truncated"),
        (five_gigabytes_of_nothing, "is not a valid jar: it is not a zip file, or is truncated"),
        (no_program, "is not a program"),
    ],
)
def test_a_jar_that_cannot_run_is_refused(
    host: LittleHost, jar: Path, spoilt: object, why: str
) -> None:
    assert callable(spoilt)
    spoilt(jar)
    started = time.monotonic()
    said = refused(host, 5, jar)
    assert f"{jar} {why}" in said
    assert UNFINISHED not in said
    assert "nothing that runs was changed" in said
    assert time.monotonic() - started < 60  # most of it is the start, on a busy machine


@pytest.mark.parametrize(
    ("sent", "why"), [(b"", "standard input is empty"), (b"<html>", "is not a valid jar")]
)
def test_what_a_pipe_brings_instead_of_a_jar_is_refused(
    host: LittleHost, sent: bytes, why: str
) -> None:
    before = names(host)
    result = subprocess.run(
        with_jar(host, "-", "--yes"), input=sent, env=host.whole_environment, capture_output=True,
        check=False,
    )  # fmt: skip
    assert result.returncode == 5
    assert why in result.stderr.decode()
    assert names(host) == before


def test_a_jar_larger_than_the_disk_is_refused_before_it_is_copied(
    host: LittleHost, jar: Path
) -> None:
    free = os.statvfs(host.releases)
    content = jar.read_bytes()
    with jar.open("wb") as file:
        file.seek(2 * free.f_bavail * free.f_frsize)
        file.write(content)  # a zip may have anything before it
    said = refused(host, 1, jar)
    assert "No space left on device" in said


@pytest.mark.parametrize("kind", ["directory", "device", "none", "terminal"])
def test_what_is_not_a_file_is_refused_at_once(host: LittleHost, tmp_path: Path, kind: str) -> None:
    if kind == "terminal":
        with host.typing("deploy", SECOND, "--jar", "-") as terminal:
            assert "standard input is a terminal" in terminal.ends(2)
        return
    jar, why = {
        "directory": (tmp_path, f"{tmp_path} is not a file"),
        "device": (Path("/dev/zero"), "/dev/zero is not a file"),
        "none": (tmp_path / "none.jar", "none.jar cannot be read: No such file or directory"),
    }[kind]
    assert why in refused(host, 2, jar)
    assert not host.deploy.exists()


def test_an_empty_name_is_not_a_file() -> None:
    with pytest.raises(UsageError, match="--jar needs a file"):
        source.jar_named("", asks=False)


def test_a_jar_that_this_user_cannot_read_names_the_way_to_send_it(tmp_path: Path) -> None:
    jar = tmp_path / "a jar"
    jar.touch(mode=0o000)
    me = os.geteuid()
    with pytest.raises(UsageError) as refusal:
        if me == 0:
            os.seteuid(65534)
        try:
            source.jar_named(str(jar), asks=False)
        finally:
            os.seteuid(me)
    assert "cannot be read by this user" in refusal.value.message or not os.access(tmp_path, 0)
    assert refusal.value.remedy == f"let the shell open it: --jar - < '{jar}'"


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    jar = tmp_path / "growing.jar"
    jar.write_bytes(bytes(3_000_000))
    with opened(jar) as original:
        chunks = original.chunks(10)
        next(chunks)
        with jar.open("ab") as file:
            file.write(b"more")
        with pytest.raises(DeployError, match=r"growing.jar changed while it was read"):
            list(chunks)


def test_a_pipe_through_which_nothing_comes_is_not_waited_for_without_end(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    try:
        with pytest.raises(DeployError, match="no data for 1 s"):
            list(Input(tmp_path, reader).chunks(1))
    finally:
        os.close(reader)
        os.close(writer)


def test_the_checksum_decides(host: LittleHost, jar: Path) -> None:
    other = "0" * 64
    said = refused(host, 5, jar, "--sha256", other)
    assert f"its SHA-256 is {sha256(jar)}, expected {other}" in said

    host.done("deploy", SECOND, "--jar", str(jar), "--sha256", sha256(jar).upper(), "--yes")
    assert host.versions == (SECOND, SECOND)


@pytest.mark.parametrize("digest", ["", "abc", "g" * 64, "0" * 63, "0" * 65, " " + "0" * 63])
def test_what_is_no_checksum_is_refused_at_once(host: LittleHost, jar: Path, digest: str) -> None:
    said = refused(host, 2, jar, "--sha256", digest)
    assert "a SHA-256 has 64 hexadecimal digits" in said
    assert not host.deploy.exists()


def test_a_checksum_without_a_jar_is_refused(host: LittleHost) -> None:
    result = host.run("deploy", SECOND, "--sha256", "0" * 64, "--yes")
    assert result.returncode == 2
    assert "--sha256 needs --jar" in result.stderr


def test_a_jar_of_another_version_is_warned_of(host: LittleHost, jar: Path) -> None:
    for words in (("--jar", str(jar), "--dry-run"), ("--jar", str(jar), "--yes"), ("--yes",)):
        result = host.done("deploy", "1.0", *words)
        said = f"the jar says {SECOND}, the version is 1.0\n"
        assert (result.stderr + result.stdout).count(said) == 1


# --- a release that is there ----------------------------------------------------------------------


def declined(host: LittleHost, *words: str) -> str:
    with host.typing("deploy", SECOND, *words) as terminal:
        terminal.asked()
        terminal.types("no")
        return terminal.ends(7)


def another(jar: Path) -> Path:
    """Another jar of the same program."""
    other = jar.with_name("another.jar")
    shutil.copyfile(jar, other)
    with zipfile.ZipFile(other, "a") as archive:
        archive.comment = b"another"
    return other


def test_the_same_file_is_reused_and_another_one_refused(host: LittleHost, jar: Path) -> None:
    declined(host, "--jar", str(jar))
    assert "already installed, the same file" in declined(host, "--jar", str(jar))
    assert len([each for each in host.events if each["event"] == "installed"]) == 1
    content = jar.read_bytes()

    other = another(jar)
    said = refused(host, 1, other)
    assert sha256(jar) in said
    assert sha256(other) in said
    assert f"replace it: deploy-clojars deploy {SECOND} --jar FILE --rebuild" in said
    assert release(host).read_bytes() == content


def test_a_release_that_was_never_promoted_is_replaced_if_that_is_asked_for(
    host: LittleHost, jar: Path
) -> None:
    declined(host, "--jar", str(jar))
    other = another(jar)
    host.done("deploy", SECOND, "--jar", str(other), "--rebuild", "--yes")
    assert release(host).read_bytes() == other.read_bytes()

    host.done("rollback", FIRST, "--yes")
    result = host.run("deploy", SECOND, "--jar", str(jar), "--rebuild", "--yes")
    assert result.returncode == 1
    assert f"release {SECOND} cannot be replaced: it was in production" in result.stderr
    assert release(host).read_bytes() == other.read_bytes()


def test_a_bad_jar_replaces_nothing(host: LittleHost, jar: Path) -> None:
    declined(host, "--jar", str(jar))
    content = jar.read_bytes()
    damaged(jar)
    refused(host, 5, jar, "--rebuild")
    assert release(host).read_bytes() == content


def test_a_release_from_a_jar_is_deployed_again_without_the_jar_and_without_git(
    host: LittleHost, jar: Path
) -> None:
    declined(host, "--jar", str(jar))
    jar.unlink()
    host.environment["PATH"] = "/nowhere"

    result = host.done("deploy", SECOND, "--yes")

    assert "already installed" in result.stderr
    assert host.versions == (SECOND, SECOND)


def test_a_release_from_a_jar_that_was_changed_is_not_used(host: LittleHost, jar: Path) -> None:
    declined(host, "--jar", str(jar))
    os.replace(another(jar), release(host))
    result = host.run("deploy", SECOND, "--yes")
    assert result.returncode == 1
    assert f"release {SECOND} has changed since" in result.stderr
    assert host.versions == (FIRST, FIRST)


def test_a_deploy_that_is_killed_at_the_question_is_done_by_the_version_alone(
    host: LittleHost, jar: Path
) -> None:
    with host.typing("deploy", SECOND, "--jar", str(jar)) as terminal:
        terminal.asked()
        terminal.kill(signal.SIGKILL)
        terminal.ends(137)
    jar.unlink()
    host.done("deploy", SECOND, "--yes")
    assert host.versions == (SECOND, SECOND)


def test_a_deploy_that_is_killed_as_the_release_gets_its_name_is_done_by_the_version_alone(
    host: LittleHost, jar: Path
) -> None:
    declined(host, "--jar", str(jar))
    journal = host.deploy / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    place = next(n for n, line in enumerate(lines) if '"event":"installed"' in line)
    journal.write_text("".join(lines[:place]))  # the last that it wrote

    host.done("deploy", SECOND, "--yes")
    assert host.versions == (SECOND, SECOND)


def test_a_jar_that_is_in_production_is_nothing_to_do(host: LittleHost, jar: Path) -> None:
    host.done("deploy", SECOND, "--jar", str(jar), "--yes")
    pids = host.pid("primary"), host.pid("backup")
    result = host.done("deploy", SECOND, "--jar", str(jar), "--yes")
    assert "is in production already; nothing to do" in result.stderr
    assert (host.pid("primary"), host.pid("backup")) == pids


# --- the dry run ----------------------------------------------------------------------------------


def test_a_dry_run_looks_at_the_jar_and_its_commands_do_it(host: LittleHost, jar: Path) -> None:
    before = names(host)
    shown = host.done("deploy", SECOND, "--jar", str(jar), "--dry-run").stdout
    assert names(host) == before
    assert not host.deploy.exists()

    subprocess.run(["sh", "-e"], input=shown, text=True, check=True, capture_output=True)
    wait_for(lambda: host.versions == (SECOND, SECOND), "both serve the release")
    assert release(host).read_bytes() == jar.read_bytes()
    assert not [name for name in names(host) if name.startswith(UNFINISHED)]


def test_a_dry_run_refuses_what_the_deploy_would(host: LittleHost, jar: Path) -> None:
    refused(host, 5, jar, "--dry-run", "--sha256", "0" * 64)
    damaged(jar)
    refused(host, 5, jar, "--dry-run")
    host.have(SECOND)
    with jar.open("rb") as file:
        file_words = with_jar(host, "-", "--dry-run")
        result = subprocess.run(
            file_words, stdin=file, env=host.whole_environment, capture_output=True, check=False
        )
    assert result.returncode == 5


# --- interrupted ----------------------------------------------------------------------------------


@contextmanager
def copying(host: LittleHost, jar: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A deploy that has copied a part of the jar and waits for the rest."""
    with subprocess.Popen(
        with_jar(host, "-", "--yes", *words), stdin=subprocess.PIPE, env=host.whole_environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        try:
            process.stdin.write(jar.read_bytes()[:1000])
            process.stdin.flush()
            wait_for(lambda: unfinished(host), "the copy has begun")
            yield process
        finally:
            process.kill()


def unfinished(host: LittleHost) -> list[str]:
    return [name for name in names(host) if name.startswith(UNFINISHED)]


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_the_jar_is_copied_leaves_nothing(
    host: LittleHost, jar: Path, signum: int, status: int
) -> None:
    before = names(host)
    with copying(host, jar) as process:
        process.send_signal(signum)
        assert process.wait(60) == status
    assert names(host) == before
    assert host.versions == (FIRST, FIRST)
    assert host.status["ok"] is True


def test_what_a_killed_copy_has_left_the_next_run_removes(host: LittleHost, jar: Path) -> None:
    with copying(host, jar) as process:
        process.kill()
        process.wait(60)
    # A program that it was just starting has its lock until its exec.
    wait_for(lambda: holder_of(host.deploy / "lock") is None, "its lock is free")
    assert unfinished(host)
    assert host.current == release(host, FIRST).name

    host.done("deploy", SECOND, "--jar", str(jar), "--yes")

    assert not unfinished(host)
    assert host.versions == (SECOND, SECOND)


def test_a_sender_that_dies_leaves_half_a_jar_which_is_refused(host: LittleHost, jar: Path) -> None:
    before = names(host)
    with copying(host, jar) as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 5
    assert names(host) == before
