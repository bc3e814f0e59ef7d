"""The tests and the build in bubblewrap, and what they see and can do there."""

from __future__ import annotations

import contextlib
import http.server
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from clojure_repository import ClojureRepository
from conftest import NewHost
from little_host import LittleHost, wait_for
from programs import require_program

from deploy_clojars.config import Config, parse
from deploy_clojars.deploy import isolation

FIRST, SECOND = ClojureRepository.FIRST, ClojureRepository.SECOND

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def bubblewrap() -> Iterator[None]:
    require_program("bwrap")
    yield
    isolation.why_not.cache_clear()


def in_tests_of(host: LittleHost, command: str, **more: str) -> str:
    """What the command prints as the tests of a tag, which then fail: isolated, or as `more` says."""
    settings = {"isolate": "true", **more}
    lines = [f"{key} = {value}" for key, value in settings.items()]
    lines += [f"test = '''{command}; false'''", 'uberjar = "false"']
    host.write_config(build="\n".join(lines))
    result = host.run(SECOND, "--yes")
    assert result.returncode == 5, result.stderr
    [log] = host.deploy.glob("logs/*.log")
    text = log.read_text(errors="replace")
    log.unlink()
    return text


def test_a_build_sees_neither_releases_nor_the_journal_nor_a_key(light_host: LittleHost) -> None:
    host = light_host
    secrets = [host.home / ".ssh/key", host.home / "data/db", host.directory / "socket"]
    for secret in secrets:
        secret.parent.mkdir(exist_ok=True)
        secret.write_text("SECRET")
    looked_at = [host.link, host.config, *secrets, host.deploy / "lock"]
    command = f"cat {' '.join(map(str, looked_at))}; ls -R {host.home}; ls -A /tmp /home /run"
    seen = in_tests_of(host, command)
    assert "SECRET" not in seen
    assert seen.count("No such file or directory") == len(looked_at)
    assert "journal.jsonl" not in seen
    assert "SECRET" in in_tests_of(host, command, isolate="false")


def test_a_build_can_neither_write_releases_nor_see_the_tool_nor_leave_a_process(
    light_host: LittleHost,
) -> None:
    host = light_host
    release = host.releases / f"clojars-web-{FIRST}-standalone.jar"
    content = release.read_bytes()
    seen = in_tests_of(
        host,
        f"mkdir -p {host.releases}; echo bad > {release}; touch /etc/written /usr/written;"
        " cat /proc/[0-9]*/cmdline | tr '\\0' ' '; setsid sleep 1000 & kill -9 -1",
    )
    assert release.read_bytes() == content
    assert not {"/etc/written", "/usr/written"} & {
        str(path) for path in Path("/").glob("*/written")
    }
    assert "'/etc/written': Read-only file system" in seen
    assert (
        "deploy-clojars " not in seen.partition("Read-only file system")[2].partition("failed")[0]
    )
    assert host.processes_of_runs() == []
    assert host.status["ok"]

    command = f"touch {host.releases}/written; cat /proc/[0-9]*/cmdline | tr '\\0' ' '"
    assert f" {SECOND} --yes " not in in_tests_of(host, command)
    assert not (host.releases / "written").exists()
    assert f" {SECOND} --yes " in in_tests_of(host, command, isolate="false")
    assert (host.releases / "written").exists()


def test_a_daemon_of_a_build_ends_with_a_tool_that_is_killed(light_host: LittleHost) -> None:
    host = light_host
    host.write_config(
        build="test = 'setsid sleep 1000 & sleep 1000'\nuberjar = 'false'\nisolate = true"
    )
    with host.typing(SECOND, "--yes") as terminal:
        # Not only forked: bubblewrap may not have asked yet to be ended with the tool.
        wait_for(lambda: sleeping(host) == 2, "the tests and their daemon run")
        terminal.kill(9)
        wait_for(lambda: host.processes_of_runs() == [], "nothing outlives the tool")


def sleeping(host: LittleHost) -> int:
    """How many processes of runs sleep."""
    sleeps = 0
    for pid in host.processes_of_runs():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            sleeps += Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep\0")
    return sleeps


def test_the_network_is_as_configured(light_host: LittleHost) -> None:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"REACHED")

        def log_message(self, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = f"curl --no-progress-meter http://127.0.0.1:{server.server_port}/"
        try:
            assert "REACHED" in in_tests_of(light_host, command)
            assert "REACHED" not in in_tests_of(light_host, command, network="false")
        finally:
            server.shutdown()


def test_a_build_keeps_what_it_writes_into_its_cache_only(
    light_host: LittleHost, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    command = f"echo kept > {cache}/file; echo lost > {tmp_path}/file; echo lost > ~/file"
    in_tests_of(light_host, command, cache=f'["{cache}"]')
    assert (cache / "file").read_text() == "kept\n"
    assert not (tmp_path / "file").exists()
    assert not Path("~/file").expanduser().exists()


def test_a_cache_that_cannot_be_created_is_named(light_host: LittleHost) -> None:
    host = light_host
    host.write_config(
        build="test = 'true'\nuberjar = 'false'\nisolate = true\ncache = ['/proc/cache']"
    )
    result = host.run(SECOND, "--yes")
    assert result.returncode == 4, result.stderr
    assert "the cache /proc/cache of an isolated build cannot be created" in result.stderr
    assert "nothing that runs was changed" in result.stderr


def test_git_works_in_an_isolated_checkout(light_host: LittleHost) -> None:
    seen = in_tests_of(light_host, "git log -1 --format=at:%H; git describe --tags")
    assert "at:" in seen
    assert f"\n{SECOND}\n" in seen


def test_a_real_build_is_isolated_by_default(new_host: NewHost, tmp_path: Path) -> None:
    host = new_host(build=f'isolate = "auto"\ncache = ["{tmp_path}/cache"]')
    result = host.run("deploy", SECOND, "--yes")
    assert result.returncode == 0, result.stderr
    assert "not isolated" not in result.stderr
    assert host.versions == (SECOND, SECOND)


def test_without_bubblewrap_it_is_said_once_or_refused(
    light_host: LittleHost, tmp_path: Path
) -> None:
    host = light_host
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "bwrap").write_text(
        "#!/bin/sh\necho 'No permissions to create new namespace' >&2\nexit 1\n"
    )
    (programs / "bwrap").chmod(0o755)
    host.environment = {**host.environment, "PATH": f"{programs}:{os.environ['PATH']}"}
    why = "bubblewrap does not work: No permissions to create new namespace"
    build = host.options["build"]
    host.write_config(build=f"{build}\nisolate = true")
    refused = host.run(SECOND, "--yes")
    assert refused.returncode == 4
    assert f"`build.isolate` is true, but {why}" in refused.stderr
    remedy = "let this user create namespaces, or set `build.isolate` to false"
    assert f"nothing was changed; {remedy}" in refused.stderr  # it is installed
    assert (
        f"!!  tests and builds are not isolated: {why}\n      {remedy}" in host.run("check").stdout
    )
    host.write_config(build=f'{build}\nisolate = "auto"')
    assert f"ok  tests and builds are not isolated: {why}" in host.run("check").stdout
    assert (
        host.done(SECOND, "--yes").stderr.count(f"the tests and the build are not isolated: {why}")
        == 1
    )


def words_for(toml: dict[str, object], environment: dict[str, str], tmp_path: Path) -> list[str]:
    config = parse({"home": str(tmp_path / "site"), "build": toml}, "FILE")
    return isolation.prefix(config, None, tmp_path / "site/deploy/checkouts/1", environment)


def bound(words: list[str], option: str) -> list[str]:
    return [words[at + 2] for at, word in enumerate(words) if word == option]


def test_programs_in_a_home_can_be_run_but_a_path_that_is_the_home_itself_stays_hidden(
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    (home / "bin").mkdir(parents=True)
    path = f"{home}/bin:{home}:{tmp_path}:/usr/bin:relative"
    words = words_for({}, {"HOME": str(home), "PATH": path}, tmp_path)
    assert str(home / "bin") in bound(words, "--ro-bind")
    assert not {str(home), str(tmp_path), "/usr/bin", "relative"} & {*bound(words, "--ro-bind")}


def test_a_home_that_is_a_link_leads_to_its_cache(tmp_path: Path) -> None:
    there, home = tmp_path / "disk", tmp_path / "home"
    (there / ".m2").mkdir(parents=True)
    (there / "key").touch()
    home.symlink_to(there)
    (tmp_path / "checkout").mkdir()
    config = parse({"home": str(home), "build": {"test": "mvn test", "uberjar": "mvn"}}, "FILE")
    words = isolation.prefix(config, None, tmp_path / "checkout", {"HOME": str(home)})
    listing = subprocess.run(
        [*words, "sh", "-c", f"touch {home}/.m2/fetched; ls -A {home}"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert listing == ".m2\n"
    assert (there / ".m2/fetched").exists()


@pytest.mark.parametrize(
    ("test", "caches"),
    [
        ("lein test", [".lein", ".m2"]),
        ("/opt/maven/bin/mvn test", [".m2"]),
        ("clojure -X:test", [".clojure", ".m2", ".gitlibs"]),
        ("make", []),
    ],
)
def test_the_cache_is_the_build_tools_own(test: str, caches: list[str], tmp_path: Path) -> None:
    home, checkout = tmp_path / "home", str(tmp_path / "site/deploy/checkouts/1")
    words = words_for({"test": test, "uberjar": "make"}, {"HOME": str(home)}, tmp_path)
    assert bound(words, "--bind") == [*(str(home / name) for name in caches), checkout]


def test_the_default_is_isolation_where_it_works() -> None:
    assert Config().build.isolate == "auto"
    assert isolation.why_not_wanted(Config()) is None
