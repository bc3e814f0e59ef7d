"""The Clojure application that other tests deploy: each tag is what its name says."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from clojure_jars import (
    build_jar,
    require_clojure,
    run_lein,
    shared_directory,
    write_lein_home,
)
from clojure_repository import ClojureRepository, make_repository
from little_host import free_ports, wait_for
from programs import require_program
from system import lives

DEADLINE = 120.0  # seconds that anything may take on a busy machine


# The repository


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> ClojureRepository:
    require_program("git")
    return make_repository(tmp_path_factory.mktemp("clojure") / "clojars-web")


def test_the_same_commits_are_made_whatever_the_users_configuration(
    repository: ClojureRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / ".config" / "git").mkdir(parents=True)
    (home / ".config" / "git" / "ignore").write_text("*.clj\n")
    (home / ".gitconfig").write_text(
        "[user]\nname = Somebody\n[commit]\ngpgSign = true\n[tag]\ngpgSign = true\n"
        "[core]\nautocrlf = true\n[init]\ndefaultBranch = trunk\n"
    )
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "of-a-hook"))

    again = make_repository(tmp_path / "again")

    assert again.git("show-ref") == repository.git("show-ref")
    assert again.git("status", "--porcelain") == ""
    assert again.git("branch", "--show-current") == "main\n"


def test_tags_are_annotated_and_lightweight_and_each_names_a_commit(
    repository: ClojureRepository,
) -> None:
    kinds = dict(
        line.split()
        for line in repository.git(
            "for-each-ref", "--format=%(refname:short) %(objecttype)", "refs/tags"
        ).splitlines()
    )

    assert kinds[repository.FIRST] == "commit"
    assert kinds[repository.SECOND] == "tag"
    assert len({repository.commit(tag) for tag in kinds}) == len(kinds) == 9
    assert repository.git("cat-file", "-t", repository.commit(repository.SECOND)) == "commit\n"


def test_the_project_has_the_tags_version_but_for_one(repository: ClojureRepository) -> None:
    versions = {tag: project_version(repository, tag) for tag in repository.git("tag").splitlines()}

    assert versions.pop(repository.OTHER_VERSION) == "0.3.4"
    assert all(tag == version for tag, version in versions.items())


def test_a_branch_is_no_tag(repository: ClojureRepository) -> None:
    repository.git("rev-parse", "--verify", repository.BRANCH)
    with pytest.raises(subprocess.CalledProcessError):
        repository.commit(repository.BRANCH)


# Tests and builds


@pytest.fixture(scope="module")
def lein_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_clojure()
    return write_lein_home(tmp_path_factory.mktemp("lein"))


@pytest.fixture(scope="module")
def jar_of(
    repository: ClojureRepository, lein_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    jars = shared_directory(tmp_path_factory) / "clojure-jars"
    return lambda tag: build_jar(repository, tag, jars, lein_home)


def test_the_jar_knows_its_version_and_its_commit(
    repository: ClojureRepository, jar_of: Callable[[str], Path]
) -> None:
    jar = jar_of(repository.FIRST)

    assert jar.name == "clojars-web-0.1.0-standalone.jar"
    with zipfile.ZipFile(jar) as archive:
        properties = archive.read("META-INF/maven/clojars-web/clojars-web/pom.properties")
    lines = properties.decode().splitlines()
    assert "version=0.1.0" in lines
    assert f"revision={repository.commit(repository.FIRST)}" in lines


# The cache, with a `lein` of our own: how often it is called is what matters


@pytest.fixture
def fake_lein(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a shell script in the place of lein."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")

    def write(script: str) -> None:
        lein = programs / "lein"
        lein.write_text(f"#!/bin/sh -e\n{script}\n")
        lein.chmod(0o755)

    return write


def test_workers_that_want_the_same_jar_build_it_once(
    repository: ClojureRepository, tmp_path: Path, fake_lein: Callable[[str], None]
) -> None:
    calls = tmp_path / "calls"
    # As slow as it takes for all to meet here if nothing keeps them apart.
    fake_lein(f"echo $1 >>{calls}; sleep 0.3; mkdir target; echo >target/a-standalone.jar")

    def build(_: int) -> Path:
        return build_jar(repository, repository.FIRST, tmp_path / "jars", tmp_path)

    with ThreadPoolExecutor(4) as pool:
        [jar] = set(pool.map(build, range(4)))

    assert jar.is_file()
    assert calls.read_text() == "uberjar\n"


def test_a_failed_build_says_why_and_is_not_kept(
    repository: ClojureRepository, tmp_path: Path, fake_lein: Callable[[str], None]
) -> None:
    def build() -> Path:
        return build_jar(repository, repository.FIRST, tmp_path / "jars", tmp_path)

    fake_lein("echo out of cheese >&2; exit 3")
    with pytest.raises(RuntimeError, match=r"0\.1\.0 exited with 3:\nout of cheese"):
        build()

    fake_lein("mkdir target; echo >target/a-standalone.jar")
    assert build().is_file()


def test_nothing_of_a_build_outlives_its_time_limit(
    tmp_path: Path, fake_lein: Callable[[str], None]
) -> None:
    fake_lein("sleep 600 & echo $! >child.tmp; mv child.tmp child; wait")

    for timeout in (1, 5, 60):  # until it was enough to start the child
        with pytest.raises(subprocess.TimeoutExpired):
            run_lein("uberjar", checkout=tmp_path, lein_home=tmp_path, timeout=timeout)
        if (tmp_path / "child").exists():
            break

    child = int((tmp_path / "child").read_text())
    wait_for(lambda: not lives(child), "its child has ended", DEADLINE)


# Running it


@dataclass(frozen=True)
class Instance:
    """A JVM with the application, its two ports and what it has printed."""

    process: subprocess.Popen[bytes]
    web: int
    nailgun: int
    log: Path

    def request(self, method: str, path: str, body: bytes | None = None) -> str:
        """The body of a 200. Not urllib, which would send it to a proxy that is set."""
        connection = http.client.HTTPConnection("127.0.0.1", self.web, timeout=DEADLINE)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        assert response.status == 200, text
        return text

    def get(self, path: str) -> str:
        return self.request("GET", path)

    def serves(self) -> str | None:
        """The version that it serves, if it does."""
        try:
            return self.get("/version")
        except (OSError, http.client.HTTPException):
            self.must_live()
            return None

    def upload(self, data: bytes) -> str:
        """All that the TCP port answers to a client that shuts its sending side."""
        with socket.create_connection(("127.0.0.1", self.nailgun), DEADLINE) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            with connection.makefile() as answer:
                return answer.read()

    def has_printed(self, text: str) -> bool:
        return text in self.log.read_text()

    def must_live(self) -> None:
        status = self.process.poll()
        assert status is None, f"exited with {status}:\n{self.log.read_text()}"


StartInstance = Callable[..., Instance]


@pytest.fixture
def start(tmp_path: Path, jar_of: Callable[[str], Path]) -> Iterator[StartInstance]:
    """Starts a tag's jar; web=PORT for a port of the test's choice, STOP=… for the environment."""
    instances: list[Instance] = []

    def start(tag: str, *, web: int | None = None, **environment: str) -> Instance:
        jar = jar_of(tag)
        free_web, nailgun = free_ports(2)
        web = web or free_web
        log = tmp_path / f"{tag}.{nailgun}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["java", "-Xmx128m", "-XX:TieredStopAtLevel=1", "-jar", str(jar)],
                env=os.environ
                | {"PORT": str(web), "NAILGUN_PORT": str(nailgun), "STOP": "abrupt"}
                | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        instances.append(Instance(process, web, nailgun, log))
        return instances[-1]

    try:
        yield start
    finally:
        for instance in instances:
            instance.process.kill()
            instance.process.wait()


def test_a_good_tag_serves_its_version_on_both_ports(
    repository: ClojureRepository, start: StartInstance, tmp_path: Path
) -> None:
    upload_log = tmp_path / "uploads.log"
    instance = start(repository.FIRST, UPLOAD_LOG=str(upload_log))
    wait_for(instance.serves, "it serves", DEADLINE)

    assert "<h1>Clojars 0.1.0</h1>" in instance.get("/")
    assert instance.get("/version") == "0.1.0"
    assert instance.get("/pid") == str(instance.process.pid)
    assert instance.upload(b"") == "nailgun 0.1.0\n"
    assert instance.upload(b"a jar") == "nailgun 0.1.0\nreceived 5 bytes\n"

    megabyte = bytes(1_000_000)
    assert instance.request("PUT", "/upload/a.jar", megabyte) == "1000000"
    assert instance.request("PUT", "/upload/a.jar", b"again") == "5"
    assert instance.request("POST", "/upload", megabyte) == "1000000"
    assert json.loads(instance.get("/uploads")) == {"-": 1, "a.jar": 2}
    assert upload_log.read_text() == "PUT a.jar 1000000\nPUT a.jar 5\nPOST - 1000000\n"


def test_both_ports_are_open_to_this_machine_only(
    repository: ClojureRepository, start: StartInstance
) -> None:
    instance = start(repository.FIRST)
    wait_for(instance.serves, "it serves", DEADLINE)

    listening = {
        (connection.laddr.ip, connection.laddr.port)
        for connection in psutil.Process(instance.process.pid).net_connections()
        if connection.status == psutil.CONN_LISTEN
    }

    # The JVM has 127.0.0.1 on IPv6 sockets: whoever looks for its ports must know that.
    assert {ip.removeprefix("::ffff:") for ip, _ in listening} == {"127.0.0.1"}
    assert {port for _, port in listening} == {instance.web, instance.nailgun}


def test_a_graceful_stop_finishes_the_request_in_flight(
    repository: ClojureRepository, start: StartInstance
) -> None:
    instance = start(repository.FIRST, STOP="graceful")
    with slow_request_in_flight(instance, ms=4000) as answer:
        instance.process.terminate()

        assert answer.result(DEADLINE) == "answered after 4000 ms"
    assert instance.process.wait(DEADLINE) == 143


def test_an_abrupt_stop_cuts_the_request_in_flight(
    repository: ClojureRepository, start: StartInstance
) -> None:
    instance = start(repository.FIRST, STOP="abrupt")
    with slow_request_in_flight(instance, ms=60_000) as answer:
        instance.process.terminate()

        assert instance.process.wait(DEADLINE) == 143
        with pytest.raises(ConnectionError):
            answer.result(DEADLINE)


def test_it_throws_at_the_start(repository: ClojureRepository, start: StartInstance) -> None:
    instance = start(repository.THROWS_AT_START)

    assert instance.process.wait(DEADLINE) == 1
    assert instance.has_printed("No settings.edn on the class path")


def test_it_serves_and_dies_after_three_seconds(
    repository: ClojureRepository, start: StartInstance
) -> None:
    started = time.monotonic()
    instance = start(repository.DIES)
    assert wait_for(instance.serves, "it serves", DEADLINE) == "0.3.3-dies"

    assert instance.process.wait(DEADLINE) == 1
    assert time.monotonic() - started > 3  # a busy machine sees late that it serves
    assert instance.has_printed("No memory left for the search index")


def test_it_lives_on_without_a_web_server_when_its_port_is_taken(
    repository: ClojureRepository, start: StartInstance
) -> None:
    old = start(repository.FIRST)
    wait_for(old.serves, "the old one serves", DEADLINE)

    new = start(repository.CANNOT_BIND, web=old.web)

    wait_for(
        lambda: new.has_printed("No web server: Failed to bind to"),
        "it says that it has no web server",
        DEADLINE,
    )
    assert new.upload(b"") == "nailgun 0.3.4-cannot-bind\n"
    assert new.get("/version") == "0.1.0"
    assert new.get("/pid") == str(old.process.pid)
    new.must_live()


def project_version(repository: ClojureRepository, tag: str) -> str:
    project = repository.git("show", f"{tag}:project.clj")
    match = re.match(r'\(defproject clojars-web "(.+)"', project)
    assert match, project
    return match[1]


@contextmanager
def slow_request_in_flight(instance: Instance, ms: int) -> Iterator[Future[str]]:
    """A request that the application has begun to handle, and its answer."""
    wait_for(instance.serves, "it serves", DEADLINE)
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(instance.get, f"/slow?ms={ms}")
        wait_for(
            lambda: instance.has_printed(f"answering in {ms} ms"),
            "it has begun to answer",
            DEADLINE,
        )
        assert not answer.done()
        yield answer
