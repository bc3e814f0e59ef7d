"""`[release]`: the site's own command fetches what was built elsewhere."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from clojure_repository import ClojureRepository as Tags
from little_host import ETC, LittleHost, wait_for
from programs import require_program
from system import lives
from test_completion import offered_by_bash
from test_release_jar import asked_by_check

from deploy_clojars.deploy.build import listed_sha256
from deploy_clojars.errors import BuildFailed

FIRST, SECOND, THIRD = Tags.FIRST, Tags.SECOND, Tags.THIRD
EXAMPLES = ETC.parent / "examples/release"
COPY = "cp {jars}/clojars-web-$DEPLOY_VERSION-standalone.jar app.jar"


@pytest.fixture
def host(light_host: LittleHost) -> LittleHost:
    """A host with no repository, whose command copies a jar."""
    with_command(light_host, COPY)
    return light_host


def with_command(host: LittleHost, command: str, **settings: str) -> None:
    """Gives the host a command, in which {jars} is where the jars are."""
    lines = [f"{key} = '''{value}'''" for key, value in settings.items()]
    host.write_config(
        top=f'repository = "file:///nowhere"\nhome = "{host.home}"',
        build='test = "no-such-program"\nuberjar = "no-such-program"',
        release="\n".join([f"command = '''{command.format(jars=host.jars)}'''", *lines]),
    )


def release(host: LittleHost, version: str = SECOND) -> Path:
    return host.releases / f"clojars-web-{version}-standalone.jar"


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def refused(host: LittleHost, status: int, *words: str) -> str:
    """What a deploy says that is refused and changes nothing."""
    pids = host.pid("primary"), host.pid("backup")
    result = host.run(SECOND, "--yes", *words)
    assert result.returncode == status, result.stderr
    assert host.current == release(host, FIRST).name
    assert not release(host).exists()
    assert (host.pid("primary"), host.pid("backup")) == pids
    return result.stderr


def installed(host: LittleHost) -> list[dict[str, object]]:
    return [each for each in host.events if each["event"] == "installed"]


# --- the command ----------------------------------------------------------------------------------


def test_what_the_command_leaves_is_deployed_without_git_and_without_a_build(
    host: LittleHost, repository: Tags
) -> None:
    result = host.done(SECOND, "--yes")

    assert host.versions == (SECOND, SECOND)
    assert release(host).read_bytes() == host.jar(SECOND).read_bytes()
    [event] = installed(host)
    assert (event["source"], event["commit"]) == ("command", repository.commit(SECOND))
    assert "test " not in result.stderr
    assert not (host.deploy / "mirror.git").exists()
    assert not list((host.deploy / "checkouts").iterdir())
    assert host.status["source"] == "command"


def test_the_command_begins_in_an_empty_directory_with_the_builds_environment(
    host: LittleHost,
) -> None:
    seen = host.directory / "seen"
    host.environment.update(DATABASE_URL="postgres://live", AWS_PROFILE="clojars", JAVA_OPTS="-x")
    with_command(host, f"(ls -A; nice; env) > {seen}; {COPY}")
    host.write_config(
        top=f'repository = "file:///nowhere"\nhome = "{host.home}"',
        build='env = ["AWS_PROFILE"]\nnice = 7',
        release=f"command = '''(ls -A; nice; env) > {seen}; {COPY.format(jars=host.jars)}'''",
    )

    host.done(SECOND, "--yes")

    first, *lines = seen.read_text(encoding="utf-8").splitlines()
    assert int(first) >= 7  # so nothing was listed before it
    assert {f"DEPLOY_VERSION={SECOND}", "AWS_PROFILE=clojars", "JAVA_OPTS=-x"} <= set(lines)
    assert not [line for line in lines if line.startswith("DATABASE_URL")]


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("echo no such object; exit 3", "error: release.command failed: exit status 3"),
        ("kill -9 $$", "failed: "),
        ("true", "the command left no file that matches *.jar"),
        (f"{COPY}; cp app.jar other.jar", "2 files match *.jar: app.jar, other.jar"),
        ("ln -s {jars}/*-0.2.0-* app.jar", "leads outside the directory of the command"),
        (f"{COPY}; mv app.jar app; ln -s app app.jar", "cannot be read: Too many levels of symb"),
        (f"{COPY}; truncate -s -100 app.jar", "is not a valid jar"),
        ("mkdir app.jar", "left no file that matches"),
        ("mkfifo app.jar", "left no file that matches"),
    ],
)
def test_a_command_that_leaves_no_release_is_refused(
    host: LittleHost, command: str, why: str
) -> None:
    with_command(host, command)
    status = 1 if "Too many" in why else 5
    said = refused(host, status)
    assert why in said
    if "no such object" in command:
        assert "no such object\n" in said  # its last lines
        [kept] = (host.deploy / "checkouts").iterdir()  # for a look
        assert kept.name.endswith(f"-{SECOND}")
        assert not [each for each in host.events if "exit 3" in str(each)]


def test_a_command_that_hangs_is_ended_with_all_its_processes(host: LittleHost) -> None:
    with_command(host, "(setsid sleep 1000 & sleep 1000) & sleep 1000")
    host.write_config(
        top=f'repository = "file:///nowhere"\nhome = "{host.home}"',
        build="timeout = 1",
        release='command = "(setsid sleep 1000 & sleep 1000) & sleep 1000"',
    )
    assert "took too long: not done within 1 s" in refused(host, 5)
    assert host.processes_of_runs() == []


def test_a_daemon_of_the_command_does_not_outlive_the_run(host: LittleHost) -> None:
    pid = host.directory / "pid"
    daemon = f"env -i setsid sh -c 'echo $$ > {pid}; exec sleep 1000'"
    with_command(host, f"{daemon} & {COPY}; until [ -s {pid} ]; do sleep 0.01; done")
    host.done(SECOND, "--yes")
    assert not lives(int(pid.read_text()))


def test_ctrl_c_ends_the_command_and_leaves_nothing(host: LittleHost) -> None:
    with_command(host, "sleep 1000")
    with host.typing(SECOND, "--yes") as terminal:
        wait_for(lambda: host.is_at("fetch"), "the command is run")
        terminal.presses("c")
        terminal.ends(130)
    assert host.processes_of_runs() == []
    assert not list((host.deploy / "checkouts").iterdir())
    assert host.status["ok"] is True


def test_a_program_that_is_missing_is_refused_before_anything_is_done(host: LittleHost) -> None:
    with_command(host, "no-such-program fetch")
    said = refused(host, 4)
    assert "not on PATH: no-such-program\n  nothing was changed\n" in said


# --- the checksums --------------------------------------------------------------------------------


def test_a_jar_with_the_listed_checksum_is_deployed(host: LittleHost) -> None:
    with_command(host, f"{COPY}; sha256sum app.jar > sums.sha256", sha256="*.sha256")
    host.done(SECOND, "--yes")
    assert host.versions == (SECOND, SECOND)


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (f"{COPY}; sha256sum app.jar > a.sha256; printf x >> app.jar", "expected "),
        (f"{COPY}; cp app.jar b; sha256sum b > a.sha256", "a.sha256 has no checksum for app.jar"),
        (f"{COPY}; echo hello > a.sha256", "a.sha256 has no checksum for app.jar"),
        (COPY, "the command left no file that matches *.sha256"),
        (f"{COPY}; sha256sum app.jar | tee a.sha256 > b.sha256", "2 files match *.sha256"),
        (f"{COPY}; ln -s /etc/passwd a.sha256", "leads outside the directory of the command"),
    ],
)
def test_a_jar_without_its_checksum_is_refused(host: LittleHost, command: str, why: str) -> None:
    with_command(host, command, sha256="*.sha256")
    assert why in refused(host, 5)


A, B = "a" * 64, "b" * 64


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"{A}  app.jar\n", A),
        (f"{A} *app.jar\n{B} *other.jar", A),
        (f"{A.upper()}  target/app.jar\r\n", A),
        (f"# a remark\n\n{A}  ./app.jar\n{A}  app.jar\n", A),
        (f"{A}  app.jar\n{B}  dist/app.jar\n", None),
        (f"{A}  my-app.jar\n", None),
        (f"{A}\n", None),
        (f"{A[:-1]}  app.jar\n", None),
        ("", None),
    ],
)
def test_the_checksum_in_a_list(tmp_path: Path, text: str, found: str | None) -> None:
    checksums = tmp_path / "SHA256SUMS"
    checksums.write_text(text, encoding="utf-8")
    if found is None:
        with pytest.raises(BuildFailed, match=r"SHA256SUMS has .* for app\.jar"):
            listed_sha256(checksums, "app.jar")
    else:
        assert listed_sha256(checksums, "app.jar") == found


# --- a release that is there ----------------------------------------------------------------------


def declined(host: LittleHost, *words: str) -> str:
    with host.typing(SECOND, *words) as terminal:
        terminal.asked()
        terminal.types("no")
        return terminal.ends(7)


def test_a_release_that_is_there_is_not_fetched_again_unless_that_is_asked_for(
    host: LittleHost,
) -> None:
    calls = host.directory / "calls"
    with_command(host, f"echo >> {calls}; {COPY}")
    declined(host)
    shown = declined(host)
    assert "already installed" in shown
    assert f"to fetch it again: deploy-clojars deploy {SECOND} --rebuild" in shown
    assert calls.read_text() == "\n"

    host.done(SECOND, "--rebuild", "--yes")
    assert calls.read_text() == "\n\n"
    assert host.versions == (SECOND, SECOND)


def test_a_release_without_a_checksum_is_compared_with_what_the_command_fetches(
    host: LittleHost,
) -> None:
    host.have(SECOND)
    assert "already installed, the same file" in declined(host)

    with release(host).open("ab") as file:
        file.write(b"changed")
    result = host.run(SECOND, "--yes")
    assert result.returncode == 1
    assert sha256(release(host)) in result.stderr
    assert sha256(host.jar(SECOND)) in result.stderr
    assert installed(host) == []


# --- the dry run and check ------------------------------------------------------------------------


def test_the_commands_of_a_dry_run_do_it(host: LittleHost) -> None:
    with_command(host, f"{COPY}; sha256sum app.jar > sums.sha256", sha256="*.sha256")
    shown = host.done(SECOND, "--dry-run").stdout
    assert not host.deploy.exists()
    assert "git" not in shown

    subprocess.run(["sh", "-e"], input=shown, text=True, check=True, capture_output=True)
    wait_for(lambda: host.versions == (SECOND, SECOND), "both serve the release")
    assert not list((host.deploy / "checkouts").iterdir())


def test_check_asks_for_what_the_site_uses(host: LittleHost) -> None:
    assert asked_by_check(host) == ""
    with_command(host, "no-such-program")
    assert asked_by_check(host) == "not on PATH: no-such-program"
    host.write_config(build='test = "true"\nuberjar = "other-program"', release='jar = "*"')
    assert asked_by_check(host).startswith("git ")
    assert asked_by_check(host).endswith("not on PATH: other-program")


# --- completion -----------------------------------------------------------------------------------


def completing(home: Path, *lines: str) -> list[str]:
    """What bash offers for `deploy 0.` where the configuration has these lines."""
    config = home / "deploy-clojars.toml"
    if not config.exists():
        config.touch(mode=0o644)
    text = f'home = "{home}"\nrepository = "file:///nowhere"\n[release]\n'
    config.write_text(text + "\n".join(lines), encoding="utf-8")
    return offered_by_bash(home, "deploy", "0.")


def test_the_versions_that_the_sites_list_prints_are_completed(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    names = f"list = 'echo >> {calls}; printf %s\\\\n 0.9.0 0.10.0 1.0 \"0.1;reboot\" 0.2'"
    assert completing(tmp_path, names) == ["0.2", "0.10.0", "0.9.0"]  # the newest first
    assert offered_by_bash(tmp_path, "0.1") == ["0.10.0"]
    assert offered_by_bash(tmp_path, "rest") == ["restart"]
    assert calls.read_text() == "\n\n"  # where it may be a command, nothing is asked


@pytest.mark.parametrize("command", ["echo 0.1; exit 1", "echo 0.1; sleep 1000", "no-such-program"])
def test_a_list_that_fails_offers_nothing(tmp_path: Path, command: str) -> None:
    assert completing(tmp_path, f'list = "{command}"') == [""]


def test_a_list_is_asked_only_where_there_is_no_mirror_or_no_tag_is_deployed(
    tmp_path: Path,
) -> None:
    tags = tmp_path / "deploy/mirror.git/refs/tags"
    tags.mkdir(parents=True)
    (tags / "0.7").touch()
    assert completing(tmp_path, 'list = "echo 0.8"') == ["0.7"]
    assert completing(tmp_path, 'list = "echo 0.8"', 'command = "true"') == ["0.8"]


def test_a_list_in_somebody_elses_configuration_is_not_run(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    assert completing(tmp_path, 'list = "echo 0.8"') == ["0.8"]
    shutil.chown(tmp_path / "deploy-clojars.toml", 65534)
    assert completing(tmp_path, 'list = "echo 0.8"') == [""]


# --- the examples ---------------------------------------------------------------------------------


@pytest.fixture
def served(host: LittleHost, tmp_path: Path) -> Iterator[Path]:
    """A directory that a web server on port 0 serves, whose URL is in its file `url`."""
    directory = tmp_path / "served"
    directory.mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(directory))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        (directory / "url").write_text(f"http://127.0.0.1:{server.server_port}")
        yield directory
        server.shutdown()
        thread.join()


def program(directory: Path, name: str, text: str) -> None:
    """A program that stands in for one that needs an account."""
    directory.mkdir(exist_ok=True)
    file = directory / name
    file.write_text(f"#!/bin/sh\nset -eu\n{text}\n", encoding="utf-8")
    file.chmod(0o755)


def run_example(name: str, directory: Path, *words: str, **environment: str) -> str:
    return subprocess.run(
        [EXAMPLES / name, *words], cwd=directory, env={**os.environ, **environment}, check=True,
        capture_output=True, text=True,
    ).stdout  # fmt: skip


def test_the_example_for_a_maven_repository_deploys(host: LittleHost, served: Path) -> None:
    require_program("curl")
    jar = served / f"org/clojars/clojars-web/{SECOND}/clojars-web-{SECOND}-standalone.jar"
    jar.parent.mkdir(parents=True)
    shutil.copyfile(host.jar(SECOND), jar)
    Path(f"{jar}.sha256").write_text(sha256(jar))
    (jar.parents[1] / "maven-metadata.xml").write_text(
        "<metadata>\n<versioning>\n<latest>0.2.0</latest>\n<versions>\n  <version>0.1.0</version>\n"
        "  <version>0.2.0</version>\n</versions>\n</versioning>\n</metadata>\n"
    )
    place = f"{(served / 'url').read_text()}/org/clojars clojars-web"
    with_command(host, f"{EXAMPLES}/maven fetch {place}", sha256="*.sha256")

    host.done(SECOND, "--yes")
    assert host.versions == (SECOND, SECOND)
    assert host.run(THIRD, "--yes").returncode == 5
    assert run_example("maven", served, "list", *place.split()) == "0.1.0\n0.2.0\n"


def test_the_example_for_s3_asks_aws_for_the_jar_and_its_checksum(
    host: LittleHost, tmp_path: Path
) -> None:
    bucket, tools = tmp_path / "bucket", tmp_path / "tools"
    bucket.mkdir()
    jar = bucket / f"clojars-web-{SECOND}-standalone.jar"
    shutil.copyfile(host.jar(SECOND), jar)
    Path(f"{jar}.sha256").write_text(f"{sha256(jar)}  {jar.name}\n")
    program(
        tools, "aws",
        f'case "$2" in\ncp) exec cp "{bucket}/${{4#s3://builds/web/}}" "$5" ;;\n'
        f'ls) [ "$3" = s3://builds/web/ ] && echo "2026-02-01 10:00:00 9 clojars-web-0.2.0-standalone.jar\n'
        f'2026-01-01 10:00:00 9 clojars-web-0.10.0-standalone.jar\n2026-01-01 10:00:00 9 x.sha256" ;;\nesac',
    )  # fmt: skip
    host.environment["PATH"] = path = f"{tools}:{os.environ['PATH']}"
    with_command(host, f"{EXAMPLES}/s3 fetch s3://builds/web", sha256="*.sha256")

    host.done(SECOND, "--yes")
    assert host.versions == (SECOND, SECOND)
    assert run_example("s3", tmp_path, "list", "s3://builds/web", PATH=path) == "0.10.0\n0.2.0\n"


def test_the_example_for_a_github_release_asks_gh_for_its_assets(
    host: LittleHost, tmp_path: Path
) -> None:
    tools = tmp_path / "tools"
    program(
        tools, "gh",
        f'case "$2 $3 $4 $5" in\n"download {SECOND} --repo me/web")\n'
        f"cp {host.jars}/clojars-web-{SECOND}-standalone.jar .; sha256sum *.jar > app.sha256 ;;\n"
        '"list --repo me/web --limit") printf "%s\\n" 0.2.0 0.1.0 ;;\n*) exit 9 ;;\nesac',
    )  # fmt: skip
    host.environment["PATH"] = path = f"{tools}:{os.environ['PATH']}"
    with_command(host, f"{EXAMPLES}/github fetch me/web", sha256="*.sha256")

    host.done(SECOND, "--yes")
    assert host.versions == (SECOND, SECOND)
    assert host.run(THIRD, "--yes").returncode == 5
    assert run_example("github", tmp_path, "list", "me/web", PATH=path) == "0.1.0\n0.2.0\n"
