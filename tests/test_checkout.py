"""The tag, checked out: with real repositories, servers that misbehave and mirrors that broke."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import pytest
from programs import require_program
from system import files_no_larger_than

from deploy_clojars.deploy import checkout
from deploy_clojars.deploy.checkout import SUBJECTS, Broken, Mirror, keep_last_failed, new_directory
from deploy_clojars.errors import DeployError, Interrupted, Status
from deploy_clojars.machine import processes, shell, signals

require_program("git")

LIMIT = 120.0  # seconds for one fetch, and that anything may take on a busy machine
RUN_ID = f"test-{uuid4().hex}"


class Repository:
    """A repository that tags are fetched from."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def commit(self, subject: str, tag: str | None = None) -> str:
        """Commits a file with the subject in it, tags it if wanted, and returns its hash."""
        (self.directory / "file").write_text(f"{subject}\n")
        self.git("add", "file")
        self.git("commit", "--quiet", "--allow-empty", "--cleanup=verbatim", f"--message={subject}")
        if tag is not None:
            self.git("tag", tag)
        return self.git("rev-parse", "HEAD")

    def git(self, *words: str) -> str:
        return git("-C", str(self.directory), *words)


def git(*words: str) -> str:
    done = subprocess.run(["git", *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No git and no proxy configuration but the tests' own; returns the user's .gitconfig."""
    home = tmp_path / "home"
    home.mkdir()
    for name in list(os.environ):
        if name.startswith("GIT_") or name.lower().endswith("_proxy") or name == "SSH_ASKPASS":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setattr(shell, "TICK", 0.005)  # many fetches here, and each waits for its end
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "Toby")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "toby@example.org")
    return home / ".gitconfig"


def new_repository(directory: Path) -> Repository:
    git("init", "--quiet", "--initial-branch=master", str(directory))
    return Repository(directory)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the repository and its mirror are made that every test gets copies of."""
    return tmp_path_factory.mktemp("originals")


@pytest.fixture
def repository(tmp_path: Path, environment: Path, originals: Path) -> Repository:
    """A repository with the tags 0.1.0 and 0.1.1."""
    original = originals / "repository"
    if not original.exists():
        made = new_repository(original)
        made.commit("first", "0.1.0")
        made.commit("second", "0.1.1")
    return Repository(shutil.copytree(original, tmp_path / "repository"))


@pytest.fixture
def log(tmp_path: Path) -> Iterator[IO[bytes]]:
    with (tmp_path / "log").open("ab", buffering=0) as log:
        yield log


@pytest.fixture
def mirror(tmp_path: Path, repository: Repository) -> Mirror:
    """The repository's mirror before its first fetch."""
    return mirror_of(str(repository.directory), tmp_path)


@pytest.fixture
def fetched(mirror: Mirror, repository: Repository, originals: Path, log: IO[bytes]) -> Mirror:
    """The repository's mirror after its first fetch."""
    original = Mirror(originals / "mirror.git", str(repository.directory), RUN_ID)
    if not original.directory.exists():
        original.fetch(log, LIMIT)
    shutil.copytree(original.directory, mirror.directory)
    return mirror


def mirror_of(url: str, tmp_path: Path) -> Mirror:
    return Mirror(tmp_path / "deploy" / "mirror.git", url, RUN_ID)


# Tags and nothing else


def test_a_tag_is_its_commit(repository: Repository, fetched: Mirror) -> None:
    assert fetched.commit_of("0.1.0") == repository.git("rev-parse", "0.1.0")
    assert fetched.commit_of("0.1.1") == repository.git("rev-parse", "master")
    assert fetched.tags() == ["0.1.0", "0.1.1"]


def test_an_annotated_tag_is_its_commit_too(
    repository: Repository, mirror: Mirror, log: IO[bytes]
) -> None:
    repository.git("tag", "--annotate", "--message=signed off", "0.2.0", "0.1.0")

    mirror.fetch(log, LIMIT)

    assert mirror.commit_of("0.2.0") == repository.git("rev-parse", "0.1.0^{commit}")


@pytest.mark.parametrize(
    "word",
    ["master", "HEAD", "0.1.1~1", "0.1.1^0", "0.1.1@{0}", "0.1.1^{tree}", "0.1", "0.1.*",
     "tags/0.1.1", "refs/tags/0.1.1", ":0", "0.1.1:file", "@"],
)  # fmt: skip
def test_a_branch_a_commit_or_an_expression_is_no_tag(fetched: Mirror, word: str) -> None:
    with pytest.raises(DeployError, match=r"^no tag ") as refused:
        fetched.commit_of(word)

    assert refused.value.status == Status.FAILED
    assert not isinstance(refused.value, Broken)


def test_a_commits_hash_is_no_tag(repository: Repository, fetched: Mirror) -> None:
    commit = repository.git("rev-parse", "0.1.0")

    for word in (commit, commit[:10]):
        with pytest.raises(DeployError, match=r"^no tag "):
            fetched.commit_of(word)


def test_the_nearest_tags_are_offered_for_one_that_is_not_there(fetched: Mirror) -> None:
    with pytest.raises(DeployError) as refused:
        fetched.commit_of("0.1.2")

    assert refused.value.remedy.startswith("did you mean ")
    assert "0.1.0" in refused.value.remedy
    assert "0.1.1" in refused.value.remedy


def test_nothing_is_offered_where_nothing_is_near(fetched: Mirror) -> None:
    with pytest.raises(DeployError) as refused:
        fetched.commit_of("xyz")

    assert refused.value.remedy == ""


def test_a_tag_of_something_that_is_no_commit_is_an_error(
    repository: Repository, mirror: Mirror, log: IO[bytes]
) -> None:
    repository.git("tag", "0.2.0", "HEAD:file")
    mirror.fetch(log, LIMIT)

    with pytest.raises(DeployError, match=r"the tag 0\.2\.0 names a blob, not a commit") as refused:
        mirror.commit_of("0.2.0")
    assert not isinstance(refused.value, Broken)  # a new mirror would not help


# Bringing the mirror up to date


def test_a_new_tag_is_there_after_a_fetch(
    repository: Repository, fetched: Mirror, log: IO[bytes]
) -> None:
    commit = repository.commit("third", "0.1.2")

    assert fetched.fetch(log, LIMIT) is False

    assert fetched.commit_of("0.1.2") == commit


def test_a_tag_that_was_moved_is_moved(
    repository: Repository, fetched: Mirror, log: IO[bytes]
) -> None:
    repository.git("tag", "--force", "0.1.1", "0.1.0")

    assert fetched.fetch(log, LIMIT) is False

    assert fetched.commit_of("0.1.1") == fetched.commit_of("0.1.0")


def test_a_tag_that_was_deleted_is_gone(
    repository: Repository, fetched: Mirror, log: IO[bytes]
) -> None:
    repository.git("tag", "--delete", "0.1.0")

    assert fetched.fetch(log, LIMIT) is False

    assert fetched.tags() == ["0.1.1"]


def test_a_tag_can_be_of_a_commit_that_is_on_no_branch(
    repository: Repository, fetched: Mirror, log: IO[bytes]
) -> None:
    repository.git("checkout", "--quiet", "--detach")
    commit = repository.commit("a hotfix", "0.1.1.1")
    repository.git("checkout", "--quiet", "master")

    fetched.fetch(log, LIMIT)

    assert fetched.commit_of("0.1.1.1") == commit


@pytest.mark.parametrize(
    "variable",
    ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE",
     "GIT_COMMON_DIR"],
)  # fmt: skip
def test_a_repository_that_the_environment_names_is_not_meant(
    repository: Repository, mirror: Mirror, log: IO[bytes], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, variable: str,
) -> None:  # fmt: skip
    commit = repository.git("rev-parse", "0.1.0")
    another = new_repository(tmp_path / "another").directory / ".git"
    before = contents(another)
    monkeypatch.setenv(variable, str(another))

    mirror.fetch(log, LIMIT)
    assert mirror.commit_of("0.1.0") == commit
    mirror.check_out(commit, tmp_path / "checkout", log, LIMIT)

    assert (tmp_path / "checkout" / "file").read_text() == "first\n"
    assert contents(another) == before


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


# Mirrors that broke


def lose_the_objects(mirror: Path) -> None:
    for path in files_in(mirror / "objects"):
        path.unlink()


def damage_the_objects(mirror: Path) -> None:
    for path in files_in(mirror / "objects"):
        path.chmod(0o644)
        path.write_bytes(b"\x00" * path.stat().st_size)


def truncate_the_objects(mirror: Path) -> None:
    for path in files_in(mirror / "objects"):
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:10])


def lose_the_directory_of_objects(mirror: Path) -> None:
    shutil.rmtree(mirror / "objects")


def lose_the_refs(mirror: Path) -> None:
    shutil.rmtree(mirror / "refs")


def damage_a_ref(mirror: Path) -> None:
    (mirror / "refs" / "tags").mkdir(parents=True, exist_ok=True)
    (mirror / "refs" / "tags" / "0.1.0").write_bytes(b"\x00" * 41)


def damage_the_packed_refs(mirror: Path) -> None:
    (mirror / "packed-refs").write_bytes(b"\x00" * 200)


def lose_the_head(mirror: Path) -> None:
    (mirror / "HEAD").unlink()


def damage_the_head(mirror: Path) -> None:
    (mirror / "HEAD").write_bytes(b"\x00" * 23)


def lose_the_configuration(mirror: Path) -> None:
    (mirror / "config").unlink()


def damage_the_configuration(mirror: Path) -> None:
    (mirror / "config").write_bytes(b"\x00\xff[[[\n")


def empty_it(mirror: Path) -> None:
    shutil.rmtree(mirror)
    mirror.mkdir()


def put_a_file_in_its_place(mirror: Path) -> None:
    shutil.rmtree(mirror)
    mirror.write_text("not a directory\n")


def put_a_dangling_link_in_its_place(mirror: Path) -> None:
    shutil.rmtree(mirror)
    mirror.symlink_to("nowhere")


def put_a_working_copy_in_its_place(mirror: Path) -> None:
    shutil.rmtree(mirror)
    git("init", "--quiet", str(mirror))


def leave_locks_as_a_killed_git_does(mirror: Path) -> None:
    (mirror / "refs" / "tags").mkdir(parents=True, exist_ok=True)
    for name in ("packed-refs.lock", "shallow.lock", "config.lock", "refs/tags/0.1.2.lock"):
        (mirror / name).touch()


def files_in(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


DAMAGES = [
    lose_the_objects,
    damage_the_objects,
    truncate_the_objects,
    lose_the_directory_of_objects,
    lose_the_refs,
    damage_a_ref,
    damage_the_packed_refs,
    lose_the_head,
    damage_the_head,
    lose_the_configuration,
    damage_the_configuration,
    empty_it,
    put_a_file_in_its_place,
    put_a_dangling_link_in_its_place,
    put_a_working_copy_in_its_place,
    leave_locks_as_a_killed_git_does,
]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("tag", ["0.1.0", "0.1.2"])
def test_a_mirror_that_broke_is_made_anew(
    repository: Repository, fetched: Mirror, log: IO[bytes], tmp_path: Path,
    damage: Callable[[Path], None], tag: str,
) -> None:  # fmt: skip
    """For a tag that it had, and for one that came later."""
    repository.commit("third", "0.1.2")
    damage(fetched.directory)

    directory = obtained(fetched, log, tag, tmp_path)

    assert (directory / "file").read_text() == {"0.1.0": "first\n", "0.1.2": "third\n"}[tag]


def obtained(mirror: Mirror, log: IO[bytes], tag: str, tmp_path: Path) -> Path:
    """What a deploy does: a mirror that turns out to be broken on the way is made anew once."""
    mirror.fetch(log, LIMIT)
    try:
        mirror.check_out(mirror.commit_of(tag), tmp_path / "checkout", log, LIMIT)
        return tmp_path / "checkout"
    except Broken:
        mirror.recreate(log, LIMIT)
        mirror.check_out(mirror.commit_of(tag), tmp_path / "again", log, LIMIT)
        return tmp_path / "again"


@pytest.mark.parametrize("content", [None, b"", b"\x00" * 20])
def test_a_file_that_is_lost_or_damaged_in_the_mirror_is_noticed_when_it_is_checked_out(
    repository: Repository, fetched: Mirror, log: IO[bytes], tmp_path: Path, content: bytes | None
) -> None:
    """git prints an error, exits with 0 and leaves the file out: that must not be built."""
    commit = fetched.commit_of("0.1.1")
    unpack_the_objects(fetched.directory)
    blob = repository.git("rev-parse", "0.1.1:file")
    file = fetched.directory / "objects" / blob[:2] / blob[2:]
    file.unlink()
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(Broken, match=commit[:10]):
        fetched.check_out(commit, tmp_path / "checkout", log, LIMIT)


def unpack_the_objects(mirror: Path) -> None:
    for pack in list((mirror / "objects" / "pack").glob("*.pack")):
        moved = pack.rename(mirror / pack.name)
        with moved.open("rb") as file:
            subprocess.run(
                ["git", "-C", str(mirror), "unpack-objects", "-q"], stdin=file, check=True
            )


def test_a_sound_mirror_is_not_made_anew(fetched: Mirror, log: IO[bytes]) -> None:
    before = fetched.directory.stat().st_ino

    assert fetched.fetch(log, LIMIT) is False

    assert fetched.directory.stat().st_ino == before


def test_a_mirror_that_was_never_there_is_not_said_to_be_made_anew(
    mirror: Mirror, log: IO[bytes]
) -> None:
    assert mirror.fetch(log, LIMIT) is False


@pytest.mark.parametrize("damage", [lose_the_head, put_a_file_in_its_place, damage_the_packed_refs])
def test_a_mirror_that_was_made_anew_is_said_to_be(
    fetched: Mirror, log: IO[bytes], damage: Callable[[Path], None]
) -> None:
    damage(fetched.directory)

    assert fetched.fetch(log, LIMIT) is True


# Servers


def failure(mirror: Mirror, log: IO[bytes], silence: float = LIMIT) -> DeployError:
    started = time.monotonic()
    with pytest.raises(DeployError) as failed:
        mirror.fetch(log, LIMIT, silence)
    assert time.monotonic() - started < LIMIT
    assert failed.value.status == Status.FAILED
    assert processes.strays(RUN_ID) == []
    return failed.value


def test_a_repository_that_is_not_there_is_an_error_in_gits_words(
    log: IO[bytes], tmp_path: Path
) -> None:
    nowhere = tmp_path / "nowhere"

    failed = failure(mirror_of(str(nowhere), tmp_path), log)

    assert failed.message == f"{nowhere}: git ls-remote failed (exit status 128)"
    assert "does not appear to be a git repository" in failed.detail


def test_a_repository_that_went_away_leaves_the_mirror_as_it_was(
    repository: Repository, fetched: Mirror, log: IO[bytes]
) -> None:
    repository.directory.rename(repository.directory.with_name("moved"))

    failed = failure(fetched, log)

    assert "does not appear to be a git repository" in failed.detail
    assert fetched.tags() == ["0.1.0", "0.1.1"]


def test_a_server_that_is_not_there_is_an_error(log: IO[bytes], tmp_path: Path) -> None:
    with socket.socket() as taken:  # by nobody who listens
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]

        failed = failure(mirror_of(f"git://127.0.0.1:{port}/x.git", tmp_path), log)

    assert "Connection refused" in failed.detail


@pytest.fixture
def silent_server() -> Iterator[str]:
    """The address of a server that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("protocol", ["git", "http"])
def test_a_server_that_never_answers_has_stalled(
    silent_server: str, log: IO[bytes], tmp_path: Path, protocol: str
) -> None:
    mirror = mirror_of(f"{protocol}://{silent_server}/x.git", tmp_path)

    failed = failure(mirror, log, silence=0.3)

    assert "the server has stalled" in failed.message


def test_a_server_that_stalls_leaves_the_mirror_as_it_was(
    fetched: Mirror, silent_server: str, log: IO[bytes], tmp_path: Path
) -> None:
    failed = failure(mirror_of(f"git://{silent_server}/x.git", tmp_path), log, silence=0.3)

    assert "the server has stalled" in failed.message
    assert fetched.tags() == ["0.1.0", "0.1.1"]


def test_a_fetch_has_a_time_limit_however_talkative_the_server_is(
    silent_server: str, log: IO[bytes], tmp_path: Path
) -> None:
    mirror = mirror_of(f"git://{silent_server}/x.git", tmp_path)

    with pytest.raises(DeployError, match=r"not done within 0\.3 s"):
        mirror.fetch(log, 0.3)

    assert processes.strays(RUN_ID) == []


class AskForAPassword(BaseHTTPRequestHandler):
    """Answers every request with 401."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="private"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def http_server(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_server_that_asks_for_a_password_is_an_error(log: IO[bytes], tmp_path: Path) -> None:
    with http_server(AskForAPassword) as url:
        failed = failure(mirror_of(f"{url}/private.git", tmp_path), log)

    assert "password" in failed.remedy


@pytest.mark.parametrize("asks", ["GIT_ASKPASS", "SSH_ASKPASS", "core.askPass"])
def test_no_program_is_run_to_ask_for_a_password(
    log: IO[bytes], tmp_path: Path, environment: Path, monkeypatch: pytest.MonkeyPatch, asks: str
) -> None:
    witness = Witness(tmp_path)
    if asks == "core.askPass":
        git("config", "--file", str(environment), asks, str(witness.program))
    else:
        monkeypatch.setenv(asks, str(witness.program))

    with http_server(AskForAPassword) as url:
        failure(mirror_of(f"{url}/private.git", tmp_path), log)

    assert not witness.was_run


# The checkout


def test_a_checkout_is_a_repository_at_the_tags_commit(
    repository: Repository, fetched: Mirror, log: IO[bytes], tmp_path: Path
) -> None:
    directory = tmp_path / "deep" / "down" / "checkout"

    fetched.check_out(fetched.commit_of("0.1.0"), directory, log, LIMIT)

    assert (directory / "file").read_text() == "first\n"
    assert git("-C", str(directory), "rev-parse", "HEAD") == repository.git("rev-parse", "0.1.0")
    assert git("-C", str(directory), "describe", "--tags") == "0.1.0"
    assert git("-C", str(directory), "status", "--porcelain") == ""


def test_a_commit_that_the_mirror_does_not_have_cannot_be_checked_out(
    fetched: Mirror, log: IO[bytes], tmp_path: Path
) -> None:
    with pytest.raises(Broken, match="0123456789 cannot be checked out"):
        fetched.check_out("0123456789" * 4, tmp_path / "checkout", log, LIMIT)


def test_a_directory_that_is_there_is_not_overwritten(
    fetched: Mirror, log: IO[bytes], tmp_path: Path
) -> None:
    (tmp_path / "checkout").mkdir()
    (tmp_path / "checkout" / "file").write_text("mine\n")

    with pytest.raises(DeployError):
        fetched.check_out(fetched.commit_of("0.1.0"), tmp_path / "checkout", log, LIMIT)

    assert (tmp_path / "checkout" / "file").read_text() == "mine\n"


class Witness:
    """A program that leaves a mark if anybody runs it."""

    def __init__(self, directory: Path) -> None:
        self._mark = directory / "was-run"
        self.program = directory / "witness"
        self.program.write_text(f'#!/bin/sh\necho "$0" >>{shlex.quote(str(self._mark))}\ncat\n')
        self.program.chmod(0o755)

    @property
    def was_run(self) -> bool:
        return self._mark.exists()

    def hooks(self, directory: Path) -> Path:
        """A directory in which it is every hook."""
        directory.mkdir(parents=True)
        for name in ("post-checkout", "reference-transaction", "post-index-change", "pre-auto-gc"):
            shutil.copy(self.program, directory / name)
        return directory


def hooks_of_a_template(witness: Witness, tmp_path: Path) -> dict[str, str]:
    witness.hooks(tmp_path / "template" / "hooks")
    return {"init.templateDir": str(tmp_path / "template")}


def hooks_of_the_user(witness: Witness, tmp_path: Path) -> dict[str, str]:
    return {"core.hooksPath": str(witness.hooks(tmp_path / "hooks"))}


def file_system_monitor(witness: Witness, tmp_path: Path) -> dict[str, str]:
    return {"core.fsmonitor": str(witness.program)}


@pytest.mark.parametrize(
    "configuration", [hooks_of_a_template, hooks_of_the_user, file_system_monitor]
)
def test_no_program_that_the_users_configuration_names_is_run(
    repository: Repository, mirror: Mirror, log: IO[bytes], tmp_path: Path, environment: Path,
    configuration: Callable[[Witness, Path], dict[str, str]],
) -> None:  # fmt: skip
    witness = Witness(tmp_path)
    for key, value in configuration(witness, tmp_path).items():
        git("config", "--file", str(environment), key, value)

    directory = obtained(mirror, log, "0.1.0", tmp_path)
    assert (directory / "file").read_text() == "first\n"
    assert not witness.was_run

    # It would have been: git by itself runs it.
    git("clone", "--quiet", str(repository.directory), str(tmp_path / "clone"))
    git("-C", str(tmp_path / "clone"), "status")
    assert witness.was_run


# The directories


@pytest.fixture
def checkouts(tmp_path: Path) -> Path:
    directory = tmp_path / "checkouts"
    directory.mkdir()
    return directory


def test_no_two_checkouts_have_the_same_directory_and_they_are_in_the_order_of_time(
    checkouts: Path,
) -> None:
    names = [new_directory(checkouts, version).name for version in ("9", "10", "1", "9")]

    assert len(set(names)) == 4
    assert names == sorted(names)
    assert [name.rpartition("-")[2] for name in names] == ["9", "10", "1", "9"]


@pytest.mark.parametrize("count", [0, 1, 3, 4, 7])
def test_the_last_three_failed_checkouts_are_kept(checkouts: Path, count: int) -> None:
    directories = [new_directory(checkouts, "0.1.0") for _ in range(count)]
    for directory in directories:
        (directory / "target").mkdir(parents=True)

    keep_last_failed(checkouts)

    assert sorted(checkouts.iterdir()) == directories[-3:]


def test_a_link_among_the_checkouts_is_not_followed(checkouts: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (checkouts / "0").symlink_to(other)
    for _ in range(5):
        new_directory(checkouts, "0.1.0").mkdir()

    keep_last_failed(checkouts)

    assert other.is_dir()


def test_where_no_checkout_ever_failed_there_is_nothing_to_remove(tmp_path: Path) -> None:
    keep_last_failed(tmp_path / "nowhere")
    checkout.remove(tmp_path / "nowhere")


# The commits between two releases


def test_the_commits_between_two_releases_are_counted_and_listed_newest_first(
    repository: Repository, mirror: Mirror, log: IO[bytes]
) -> None:
    repository.commit("a change")
    repository.commit("another change", "0.2.0")
    mirror.fetch(log, LIMIT)

    commits = mirror.commits_between(mirror.commit_of("0.1.1"), mirror.commit_of("0.2.0"))

    assert commits is not None
    assert (commits.count, commits.backwards) == (2, False)
    assert [subject.partition(" ")[2] for subject in commits.subjects] == [
        "another change", "a change",
    ]  # fmt: skip
    assert repository.git("rev-parse", "0.2.0").startswith(commits.subjects[0].split()[0])


def test_an_older_release_is_backwards(fetched: Mirror) -> None:
    commits = fetched.commits_between(fetched.commit_of("0.1.1"), fetched.commit_of("0.1.0"))

    assert commits is not None
    assert (commits.count, commits.backwards) == (1, True)
    assert commits.subjects[0].endswith(" second")


def test_between_a_release_and_itself_there_is_no_commit(fetched: Mirror) -> None:
    commit = fetched.commit_of("0.1.0")

    commits = fetched.commits_between(commit, commit)

    assert commits is not None
    assert (commits.count, commits.backwards, commits.subjects) == (0, False, ())


def test_of_two_branches_the_new_ones_commits_count(
    repository: Repository, mirror: Mirror, log: IO[bytes]
) -> None:
    repository.git("checkout", "--quiet", "--detach", "0.1.0")
    repository.commit("a hotfix", "0.1.0.1")
    mirror.fetch(log, LIMIT)

    commits = mirror.commits_between(mirror.commit_of("0.1.1"), mirror.commit_of("0.1.0.1"))

    assert commits is not None
    assert (commits.count, commits.backwards) == (1, False)


def test_between_a_release_and_one_that_is_not_in_the_mirror_nothing_is_known(
    fetched: Mirror,
) -> None:
    assert fetched.commits_between("0" * 40, fetched.commit_of("0.1.0")) is None
    assert fetched.commits_between(fetched.commit_of("0.1.0"), "0" * 40) is None


def test_no_more_than_a_screenful_of_subjects_is_listed(
    repository: Repository, mirror: Mirror, log: IO[bytes]
) -> None:
    for number in range(SUBJECTS + 2):
        repository.commit(f"change {number}", "0.2.0" if number == SUBJECTS + 1 else None)
    mirror.fetch(log, LIMIT)

    commits = mirror.commits_between(mirror.commit_of("0.1.1"), mirror.commit_of("0.2.0"))

    assert commits is not None
    assert (commits.count, len(commits.subjects)) == (SUBJECTS + 2, SUBJECTS)


def test_a_subject_is_one_line_without_control_characters(
    repository: Repository, fetched: Mirror, log: IO[bytes]
) -> None:
    characters = [
        "\x1b", "\x07", "\x7f", "\t", "\r", "\x0b", "\x0c", "\x1c", "\x1e", "\x85", "\x9b",
        "\N{LINE SEPARATOR}", "\N{PARAGRAPH SEPARATOR}", "\N{RIGHT-TO-LEFT OVERRIDE}",
    ]  # fmt: skip
    for number, character in enumerate(characters):
        repository.commit(f"harm{character}[2Jless", f"1.{number}")
    fetched.fetch(log, LIMIT)

    shown = {
        character: subjects_of(fetched, f"1.{number}^", f"1.{number}")
        for number, character in enumerate(characters)
    }

    assert {character: len(subjects) for character, subjects in shown.items()} == dict.fromkeys(
        characters, 1
    )


def subjects_of(mirror: Mirror, old: str, new: str) -> tuple[str, ...]:
    commits = mirror.commits_between(old, new)
    assert commits is not None
    return commits.subjects


# What keeps a sound mirror, and what a host may forbid


def test_a_sound_mirror_outlives_a_successor_that_does_not_come_about(
    repository: Repository, fetched: Mirror, log: IO[bytes]
) -> None:
    before = contents(fetched.directory)
    shutil.rmtree(repository.directory)

    with pytest.raises(DeployError):
        fetched.recreate(log, LIMIT)

    assert contents(fetched.directory) == before
    assert not fetched.directory.with_name("mirror.git.new").exists()


def test_a_fetch_for_which_there_is_no_room_costs_no_mirror(
    repository: Repository, fetched: Mirror, log: IO[bytes]
) -> None:
    before = contents(fetched.directory)
    (repository.directory / "large").write_bytes(os.urandom(200_000))
    repository.git("add", "large")
    repository.commit("Add what does not fit", "2.0")

    with files_no_larger_than(100_000):
        failure(fetched, log)

    assert fetched.tags() == ["0.1.0", "0.1.1"]
    assert before.items() <= contents(fetched.directory).items()
    fetched.fetch(log, LIMIT)
    assert "2.0" in fetched.tags()


def test_a_signal_in_a_checkout_is_no_word_against_the_mirror(
    fetched: Mirror, log: IO[bytes], tmp_path: Path
) -> None:
    with signals.handled():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted):
            fetched.check_out("0" * 40, tmp_path / "checkout", log, LIMIT)


@pytest.mark.parametrize("restriction", ["protocol.file.allow", "protocol.allow"])
def test_a_host_that_forbids_local_repositories_has_its_mirror_checked_out_all_the_same(
    fetched: Mirror, environment: Path, log: IO[bytes], tmp_path: Path, restriction: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    git("config", "--file", str(environment), restriction, "never")
    monkeypatch.setenv("GIT_ALLOW_PROTOCOL", "ssh:https")
    commit = fetched.commit_of("0.1.0")

    fetched.check_out(commit, tmp_path / "checkout", log, LIMIT)

    assert git("-C", str(tmp_path / "checkout"), "rev-parse", "HEAD") == commit


def test_a_checkout_with_write_protected_directories_is_removed() -> None:
    """By a user to whom permissions apply."""
    script = (
        "import os, pathlib, sys, tempfile\n"
        "from deploy_clojars.deploy.checkout import remove\n"
        "os.geteuid() or os.setuid(65534)\n"
        "top = pathlib.Path(tempfile.mkdtemp())\n"
        "inner = top / 'a/b/c'\n"
        "inner.mkdir(parents=True)\n"
        "(inner / 'file').touch()\n"
        "(top / 'a/link').symlink_to('/etc')\n"
        "for each in (inner, inner.parent, top / 'a'): each.chmod(0o500)\n"
        "remove(top)\n"
        "sys.exit(top.exists())\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("by", ["core.sshCommand", "GIT_SSH_COMMAND", "GIT_SSH"])
def test_the_users_own_ssh_command_is_used_and_asks_nothing(
    repository: Repository, log: IO[bytes], environment: Path, tmp_path: Path, by: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    ssh = tmp_path / "ssh-with-key"
    ssh.write_text(
        f'#!/bin/sh\necho "$*" >> {ssh}.words\nfor last; do :; done\nexec sh -c "$last"\n'
    )
    ssh.chmod(0o755)
    if by.startswith("GIT_"):
        monkeypatch.setenv(by, str(ssh))
    else:
        git("config", "--file", str(environment), by, str(ssh))
    url = f"git@localhost:{repository.directory}"

    mirror = mirror_of(url, tmp_path)
    mirror.fetch(log, LIMIT)

    assert mirror.tags() == ["0.1.0", "0.1.1"]
    assert mirror.remote_commit_of("0.1.0", LIMIT) == mirror.commit_of("0.1.0")
    words = Path(f"{ssh}.words").read_text(encoding="utf-8").splitlines()
    assert len(words) >= 2  # git also asks what kind of ssh it is
    assert all("BatchMode=yes" in line and "ControlMaster=no" in line for line in words)


# What is fetched beside the tag: submodules, files in LFS


def checked_out(mirror: Mirror, log: IO[bytes], tmp_path: Path) -> list[str]:
    """The warnings of a checkout of 0.2.0."""
    mirror.fetch(log, LIMIT)
    return mirror.check_out(mirror.commit_of("0.2.0"), tmp_path / "checkout", log, LIMIT)


def a_library(tmp_path: Path, name: str = "library") -> Repository:
    library = new_repository(tmp_path / name)
    library.commit(f"a {name}")
    return library


def with_submodule(repository: Repository, url: str, tag: str, *settings: str) -> str:
    """Tags a commit with a submodule at `vendor`."""
    repository.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", url, "vendor")
    for setting in settings:
        repository.git("config", "--file", ".gitmodules", *setting.split("="))
    repository.git("add", ".gitmodules")
    return repository.commit("Use a library", tag)


def test_relative_submodules_come_from_beside_the_repository_and_not_from_beside_the_mirror(
    repository: Repository, mirror: Mirror, log: IO[bytes], tmp_path: Path, environment: Path
) -> None:
    for setting in (
        "clone.defaultRemoteName=upstream",
        "submodule.recurse=true",
        "submodule.active=no",
    ):
        git("config", "--file", str(environment), *setting.split("="))
    a_library(tmp_path, "inner")
    library = a_library(tmp_path)
    with_submodule(library, "../inner", "1")
    with_submodule(repository, "../library", "0.2.0")

    assert checked_out(mirror, log, tmp_path) == []

    assert (tmp_path / "checkout/vendor/file").read_text() == "Use a library\n"
    assert (tmp_path / "checkout/vendor/vendor/file").read_text() == "a inner\n"
    origin = git("-C", str(tmp_path / "checkout"), "remote", "get-url", "origin")
    assert origin == str(repository.directory)


def lose_the_library(repository: Repository) -> None:
    shutil.rmtree(repository.directory.parent / "library")


def lose_the_commit_in_use(repository: Repository) -> None:
    lose_the_library(repository)
    a_library(repository.directory.parent)


@pytest.mark.parametrize("lose", [lose_the_library, lose_the_commit_in_use])
def test_a_submodule_that_cannot_be_fetched_is_an_error(
    repository: Repository, mirror: Mirror, log: IO[bytes], tmp_path: Path,
    lose: Callable[[Repository], None],
) -> None:  # fmt: skip
    a_library(tmp_path).commit("another", "1")
    with_submodule(repository, "../library", "0.2.0")
    mirror.fetch(log, LIMIT)
    lose(repository)

    with pytest.raises(DeployError, match="git submodule failed") as failed:
        mirror.check_out(mirror.commit_of("0.2.0"), tmp_path / "checkout", log, LIMIT)

    assert not isinstance(failed.value, Broken)  # the mirror has all that it should
    assert "vendor" in failed.value.detail


def test_a_submodule_without_an_address_is_an_error(
    repository: Repository, mirror: Mirror, log: IO[bytes], tmp_path: Path
) -> None:
    new_repository(repository.directory / "vendor").commit("inner")
    repository.git("add", "vendor")
    repository.commit("Add a repository as if it were a directory", "0.2.0")

    with pytest.raises(DeployError) as failed:
        checked_out(mirror, log, tmp_path)

    assert "no url found for submodule path 'vendor'" in failed.value.detail.lower()


def test_a_submodule_that_the_project_leaves_out_is_a_warning(
    repository: Repository, mirror: Mirror, log: IO[bytes], tmp_path: Path
) -> None:
    a_library(tmp_path)
    with_submodule(repository, "../library", "0.2.0", "submodule.vendor.update=none")

    assert checked_out(mirror, log, tmp_path) == [
        "the submodule vendor is empty: its settings exclude it"
    ]


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 14\n"


def with_an_lfs_file(repository: Repository, tag: str) -> str:
    (repository.directory / ".gitattributes").write_text("*.png filter=lfs -text\n")
    (repository.directory / "logo é.png").write_text(POINTER)
    (repository.directory / "small.png").write_text("in git as it is\n")
    repository.git("-c", "filter.lfs.clean=cat", "add", ".")
    return repository.commit("Add a logo", tag)


SetUpLfs = Callable[[str], None]


@pytest.fixture
def set_up_lfs(tmp_path: Path, environment: Path, monkeypatch: pytest.MonkeyPatch) -> SetUpLfs:
    """Sets up a stand-in for git-lfs, as `git lfs install` does the real one."""

    def set_up(smudge: str) -> None:
        program = tmp_path / "bin" / "git-lfs"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\n{smudge}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        git("config", "--file", str(environment), "filter.lfs.smudge", f"{program} smudge -- %f")
        git("config", "--file", str(environment), "filter.lfs.required", "true")

    return set_up


def test_a_file_in_lfs_comes_from_the_repository(
    repository: Repository, mirror: Mirror, log: IO[bytes], tmp_path: Path, set_up_lfs: SetUpLfs
) -> None:
    with_an_lfs_file(repository, "0.2.0")
    set_up_lfs("git config remote.origin.url")

    assert checked_out(mirror, log, tmp_path) == []

    assert (tmp_path / "checkout/logo é.png").read_text() == f"{repository.directory}\n"


@pytest.mark.parametrize("in_a_submodule", [False, True])
@pytest.mark.parametrize("lacks", ["git-lfs", "its filter"])
def test_a_file_in_lfs_without_git_lfs_is_an_error(
    repository: Repository, mirror: Mirror, log: IO[bytes], tmp_path: Path, environment: Path,
    set_up_lfs: SetUpLfs, lacks: str, in_a_submodule: bool,
) -> None:  # fmt: skip
    if in_a_submodule:
        with_an_lfs_file(a_library(tmp_path), "1")
        with_submodule(repository, "../library", "0.2.0")
    else:
        with_an_lfs_file(repository, "0.2.0")
    if lacks == "its filter":
        set_up_lfs("cat")
        environment.unlink()

    with pytest.raises(DeployError, match=r"in Git LFS: logo é\.png$") as failed:
        checked_out(mirror, log, tmp_path)

    assert not isinstance(failed.value, Broken)
    assert "git lfs install" in failed.value.remedy


def test_a_file_that_lfs_cannot_fetch_is_an_error(
    repository: Repository, mirror: Mirror, log: IO[bytes], tmp_path: Path, set_up_lfs: SetUpLfs
) -> None:
    with_an_lfs_file(repository, "0.2.0")
    set_up_lfs("exit 2")

    with pytest.raises(DeployError, match="smudge filter lfs failed"):
        checked_out(mirror, log, tmp_path)


def test_a_file_that_the_settings_of_lfs_leave_out_is_a_warning(
    repository: Repository, mirror: Mirror, log: IO[bytes], tmp_path: Path, set_up_lfs: SetUpLfs
) -> None:
    with_an_lfs_file(repository, "0.2.0")
    set_up_lfs("cat")

    assert checked_out(mirror, log, tmp_path) == [
        "the settings of git-lfs exclude these files: logo é.png"
    ]


class WithAPassword(SimpleHTTPRequestHandler):
    """Files, for those who know the password."""

    def do_GET(self) -> None:
        if self.headers.get("Authorization") == f"Basic {b64encode(b'deploy:s3cr=t').decode()}":
            super().do_GET()
        else:
            AskForAPassword.do_GET(self)  # type: ignore[arg-type]

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """The address of a web server for what is in the temporary directory; it wants a password."""
    handler = partial(WithAPassword, directory=str(tmp_path))
    with http_server(handler) as url:  # type: ignore[arg-type]
        yield url.replace("http://", "http://deploy:s3cr=t@")


def on_the_web(repository: Repository) -> str:
    git("-C", str(repository.directory), "update-server-info")
    return f"{repository.directory.name}/.git"


def test_the_password_of_the_repository_is_its_submodules_and_is_not_written_down(
    repository: Repository, web: str, log: IO[bytes], tmp_path: Path
) -> None:
    on_the_web(a_library(tmp_path))
    with_submodule(repository, "../library", "0.2.0", "submodule.vendor.url=../../library/.git")
    mirror = mirror_of(f"{web}/{on_the_web(repository)}", tmp_path)

    checked_out(mirror, log, tmp_path)

    assert (tmp_path / "checkout/vendor/file").read_text() == "a library\n"
    checkout_and_log = [*contents(tmp_path / "checkout").values(), Path(log.name).read_bytes()]
    assert not [content for content in checkout_and_log if b"s3cr" in content]


def test_what_a_submodule_lacks_is_said_without_the_password(
    repository: Repository, web: str, log: IO[bytes], tmp_path: Path
) -> None:
    a_library(tmp_path)
    with_submodule(repository, "../library", "0.2.0", "submodule.vendor.url=../../nowhere/.git")
    mirror = mirror_of(f"{web}/{on_the_web(repository)}", tmp_path)

    with pytest.raises(DeployError) as failed:
        checked_out(mirror, log, tmp_path)

    assert "nowhere" in failed.value.detail
    assert "s3cr" not in failed.value.detail
    assert b"s3cr" not in Path(log.name).read_bytes()


# Object formats


def sha256_repository(directory: Path) -> Repository:
    git("init", "--quiet", "--object-format=sha256", str(directory))
    return Repository(directory)


def test_a_repository_with_sha256_names_is_fetched_and_checked_out(
    log: IO[bytes], tmp_path: Path
) -> None:
    repository = sha256_repository(tmp_path / "sha256")
    commit = repository.commit("first", "0.1.0")
    mirror = mirror_of(str(repository.directory), tmp_path)

    mirror.fetch(log, LIMIT)
    mirror.check_out(mirror.commit_of("0.1.0"), tmp_path / "checkout", log, LIMIT)

    assert len(commit) == 64
    assert git("-C", str(tmp_path / "checkout"), "describe", "--tags") == "0.1.0"
    assert mirror.remote_commit_of("0.1.0", LIMIT) == commit


def test_a_repository_that_went_over_to_sha256_gets_a_new_mirror(
    repository: Repository, fetched: Mirror, log: IO[bytes]
) -> None:
    shutil.rmtree(repository.directory)
    commit = sha256_repository(repository.directory).commit("first", "0.1.0")

    assert fetched.fetch(log, LIMIT) is True

    assert fetched.commit_of("0.1.0") == commit


# Tags of what is not a commit


@pytest.mark.parametrize(
    ("options", "what"),
    [((), "HEAD^{tree}"), (("-a", "-m", "x"), "HEAD^{tree}"), ((), "HEAD:file")],
)
def test_a_tag_of_no_commit_is_refused_alike_without_a_mirror(
    repository: Repository, mirror: Mirror, log: IO[bytes], options: tuple[str, ...], what: str
) -> None:
    repository.git("tag", *options, "0.2.0", what)

    with pytest.raises(DeployError) as without:
        mirror.remote_commit_of("0.2.0", LIMIT)

    mirror.fetch(log, LIMIT)
    with pytest.raises(DeployError) as refused:
        mirror.commit_of("0.2.0")
    assert (without.value.message, without.value.status) == (
        refused.value.message, refused.value.status,
    )  # fmt: skip


def test_a_plain_web_server_is_asked_for_a_commit_without_a_mirror(
    repository: Repository, web: str, tmp_path: Path
) -> None:
    mirror = mirror_of(f"{web}/{on_the_web(repository)}", tmp_path)

    assert mirror.remote_commit_of("0.1.0", LIMIT) == repository.git("rev-parse", "0.1.0")
    assert not mirror.directory.exists()


# Settings of the user and the host


def test_a_checkout_is_as_the_project_has_it_whatever_the_user_has_set(
    repository: Repository, mirror: Mirror, log: IO[bytes], tmp_path: Path, environment: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "attributes").write_text("* eol=crlf ident\n")
    sparse = tmp_path / "template" / "info"
    sparse.mkdir(parents=True)
    (sparse / "sparse-checkout").write_text("/nothing\n")
    for setting in (
        "advice.detachedHead=true", "clone.defaultRemoteName=upstream", "clone.rejectShallow=true",
        "color.ui=always", "column.ui=always", "core.autocrlf=true", "core.eol=crlf",
        "core.quotePath=false", "core.sparseCheckout=true", "core.symlinks=false",
        f"core.attributesFile={tmp_path}/attributes", "fetch.all=true", "fetch.prune=false",
        "fetch.pruneTags=true", "fetch.recurseSubmodules=true", "fetch.unpackLimit=1",
        "format.pretty=fuller", "gc.auto=1", f"init.templateDir={tmp_path}/template",
        "init.defaultObjectFormat=sha256", "log.date=relative", "log.showSignature=true",
        "safe.bareRepository=explicit", "submodule.active=none", "submodule.recurse=true",
        "tag.gpgSign=true", "tag.sort=-v:refname", "transfer.fsckObjects=true",
        f"url.ssh://nowhere/.insteadOf={tmp_path}/deploy/", "protocol.file.allow=never",
    ):  # fmt: skip
        git("config", "--file", str(environment), *setting.split("=", 1))
    for name, value in {
        "GIT_DEFAULT_HASH": "sha256", "GIT_LITERAL_PATHSPECS": "1", "GIT_TRACE": "1",
        "GIT_TEMPLATE_DIR": f"{tmp_path}/template", "GIT_ALLOW_PROTOCOL": "https",
        "GIT_CEILING_DIRECTORIES": "/",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    plain = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_DEFAULT_HASH": "sha1"}
    (repository.directory / "link").symlink_to("file")
    (repository.directory / "text").write_text("one\ntwo\n")
    (repository.directory / ".gitattributes").write_text("text text\n")
    for words in (["add", "."], ["commit", "-qm", "Add a link"], ["tag", "-am", "x", "0.1.2"]):
        subprocess.run(["git", *words], cwd=repository.directory, env=plain, check=True)

    mirror.fetch(log, LIMIT)
    mirror.fetch(log, LIMIT)
    commit = mirror.commit_of("0.1.2")
    mirror.check_out(commit, tmp_path / "checkout", log, LIMIT)

    assert (tmp_path / "checkout/file").read_bytes() == b"second\n"
    assert (tmp_path / "checkout/text").read_bytes() == b"one\ntwo\n"
    assert (tmp_path / "checkout/link").is_symlink()
    done = subprocess.run(
        ["git", "describe", "--dirty"], cwd=tmp_path / "checkout", env=plain,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "0.1.2\n"
    commits = mirror.commits_between(mirror.commit_of("0.1.0"), commit)
    assert commits is not None
    assert [each.partition(" ")[2] for each in commits.subjects] == ["Add a link", "second"]
    assert mirror.remote_commit_of("0.1.2", LIMIT) == commit


@pytest.mark.parametrize(
    "setting",
    ["transfer.hideRefs=refs/tags", "uploadpack.hideRefs=refs/tags", "uploadpack.packObjectsHook=false",
     "url.ssh://nowhere/.insteadOf=/", "clone.rejectShallow=true", "protocol.allow=never"],
)  # fmt: skip
def test_a_checkout_of_the_mirror_is_no_business_of_settings_for_other_repositories(
    fetched: Mirror, log: IO[bytes], tmp_path: Path, environment: Path, setting: str
) -> None:
    git("config", "--file", str(environment), *setting.split("=", 1))

    fetched.check_out(fetched.commit_of("0.1.1"), tmp_path / "checkout", log, LIMIT)

    environment.unlink()
    assert git("-C", str(tmp_path / "checkout"), "describe", "--tags") == "0.1.1"


def test_settings_for_the_remote_count_in_a_fetch_and_without_a_mirror(
    repository: Repository, log: IO[bytes], tmp_path: Path, environment: Path
) -> None:
    git("config", "--file", str(environment), f"url.{tmp_path}/.insteadOf", "https://example.org/")
    mirror = mirror_of("https://example.org/repository", tmp_path)

    assert sorted(mirror.remote_tags(LIMIT)) == ["0.1.0", "0.1.1"]
    mirror.fetch(log, LIMIT)
    assert mirror.tags() == ["0.1.0", "0.1.1"]


def test_settings_for_the_mirror_alone_count_when_the_remote_is_asked(
    repository: Repository, log: IO[bytes], tmp_path: Path, environment: Path
) -> None:
    for_it = tmp_path / "for-the-mirror"
    git("config", "--file", str(for_it), f"url.{tmp_path}/.insteadOf", "https://example.org/")
    git("config", "--file", str(environment), "includeIf.gitdir:mirror.git/.path", str(for_it))
    mirror_of(str(repository.directory), tmp_path).fetch(log, LIMIT)

    mirror = mirror_of("https://example.org/repository", tmp_path)
    mirror.fetch(log, LIMIT)

    assert sorted(mirror.remote_tags(LIMIT)) == ["0.1.0", "0.1.1"]


# Signs of life


def ssh_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str) -> None:
    """An ssh command that is a script, with the remote's command line in $last."""
    ssh = tmp_path / "ssh"
    ssh.write_text(f"#!/bin/bash\nfor last; do :; done\n{does}\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("GIT_SSH_COMMAND", str(ssh))
    monkeypatch.setenv("GIT_SSH_VARIANT", "simple")


def test_a_server_that_is_busy_packing_has_not_stalled(
    repository: Repository,
    fetched: Mirror,
    log: IO[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It sends keep-alives, of which git shows nothing."""
    slow = tmp_path / "slow"
    slow.write_text('#!/bin/sh\nsleep 6\nexec "$@"\n')
    slow.chmod(0o755)
    serving = f"git -c uploadpack.keepAlive=1 -c uploadpack.packObjectsHook={slow} upload-pack"
    ssh_that(tmp_path, monkeypatch, f"{serving} {repository.directory}")
    repository.commit("third", "0.1.2")
    busy = mirror_of("host:x", tmp_path)

    busy.fetch(log, LIMIT, silence=5)

    assert "0.1.2" in busy.tags()


def test_that_ssh_is_alive_is_no_sign_of_the_git_behind_it(
    log: IO[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssh_that(tmp_path, monkeypatch, "while head -c 99 /dev/zero >/dev/null; do sleep 0.05; done")

    failed = failure(mirror_of("host:x", tmp_path), log, silence=0.5)

    assert "nothing heard for 0.5 s" in failed.message


def test_an_ssh_connection_that_stays_keeps_nobody_waiting(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = tmp_path / "pid"
    stays = f"setsid sh -c 'echo $$ >{pid}; exec sleep 1000' &\n"
    ssh_that(tmp_path, monkeypatch, f"{stays} until [ -s {pid} ]; do sleep 0.01; done; eval $last")

    started = time.monotonic()
    try:
        tags = mirror_of(f"host:{repository.directory}", tmp_path).remote_tags(LIMIT)
        assert time.monotonic() - started < LIMIT
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)
    assert sorted(tags) == ["0.1.0", "0.1.1"]


def test_the_ssh_command_is_asked_for_once_and_only_where_it_is_used(
    repository: Repository, fetched: Mirror, log: IO[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    capture = shell.capture

    def noted(words: list[str], **rest: Any) -> shell.Answer:
        asked.append(words[-1])
        return capture(words, **rest)

    monkeypatch.setattr(shell, "capture", noted)

    fetched.commits_between(fetched.commit_of("0.1.0"), fetched.commit_of("0.1.1"))
    assert asked == []

    fetched.remote_tags(LIMIT)
    fetched.recreate(log, LIMIT)
    assert asked == ["core.sshCommand"]


# A clock that was ahead


@pytest.mark.parametrize("old", ["2030-01-01T000000.000000Z-9", "12-2030-01-01T000000.000000Z-9"])
def test_the_newest_checkouts_are_kept_also_after_the_clock_was_set_back(
    checkouts: Path, old: str
) -> None:
    for number in range(3):
        (checkouts / f"{old}{number}").mkdir()
    newest = new_directory(checkouts, "0.1.0")
    newest.mkdir()

    keep_last_failed(checkouts)

    assert newest in checkouts.iterdir()
    assert len(list(checkouts.iterdir())) == 3
    assert newest.name.rpartition("-")[2] == "0.1.0"


def test_the_tenth_checkout_comes_after_the_ninth(checkouts: Path) -> None:
    made = []
    for _ in range(12):
        made.append(new_directory(checkouts, "0.1.0"))
        made[-1].mkdir()

    keep_last_failed(checkouts)

    assert sorted(checkouts.iterdir()) == sorted(made[-3:])
