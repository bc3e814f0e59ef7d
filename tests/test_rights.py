"""Who may read and write what, and what a build may lead the tool to."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from clojure_repository import ClojureRepository as Tags
from conftest import NewHost
from little_host import LittleHost, free_ports
from programs import require_program

FIRST, SECOND = Tags.FIRST, Tags.SECOND

SECRET = "correct-horse-battery-staple"


def mode(path: Path) -> int:
    """The permissions alone."""
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", ["000", "022", "077"])
def test_whatever_the_umask_everything_has_the_mode_that_it_needs(
    light_host: LittleHost, umask: str
) -> None:
    host = light_host
    result = subprocess.run(
        ["sh", "-c", f'umask {umask}; exec "$0" "$@"', *host.command, SECOND, "--yes"],
        env=host.whole_environment, cwd=host.directory, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert mode(host.releases / f"clojars-web-{SECOND}-standalone.jar") == 0o644
    assert mode(host.deploy) == 0o755
    for name in ("lock", "journal.jsonl"):
        assert mode(host.deploy / name) == 0o644
    [log] = (host.deploy / "logs").iterdir()
    assert mode(log) == 0o640
    for path in host.deploy.rglob("*"):
        if not path.is_symlink():
            assert not mode(path) & (stat.S_IWGRP | stat.S_IWOTH), path


def test_nothing_secret_from_the_environment_reaches_a_log(new_light_host: NewHost) -> None:
    host = new_light_host(build='test = "env; set; false"')
    host.environment.update(
        DATABASE_URL=f"postgres://clojars:{SECRET}@db/clojars", MAIL_URL=SECRET, KEY_FILE=SECRET,
        CLASSPATH=SECRET, AWS_SECRET_ACCESS_KEY=SECRET,
    )  # fmt: skip
    result = host.run(FIRST, "--yes", "-v")
    assert result.returncode == 5
    assert SECRET not in result.stderr + result.stdout
    for path in host.deploy.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A directory of somebody else's, with files and directories in it."""
    directory = tmp_path / "precious"
    for name in "abcdef":
        (directory / name).mkdir(parents=True)
        (directory / name / "file").write_text(name, encoding="utf-8")
    directory.chmod(0o700)
    return directory


def whole(directory: Path) -> dict[str, bytes | int]:
    """All that is in a directory, and the modes."""
    found: dict[str, bytes | int] = {".": mode(directory)}
    for path in directory.rglob("*"):
        found[str(path)] = path.read_bytes() if path.is_file() else mode(path)
    return found


DEPLOY, ROLLBACK = (SECOND, "--yes"), ("rollback", SECOND, "--yes")


@pytest.mark.parametrize(
    ("planted", "words"),
    [
        *((each, DEPLOY) for each in ("lock", "journal.jsonl", "logs", "release", "unfinished")),
        *((each, DEPLOY) for each in ("checkouts", "mirror.git")),
        *((each, ROLLBACK) for each in ("lock", "journal.jsonl", "logs", "release")),
    ],
)
def test_a_link_that_a_build_has_planted_is_not_followed(
    light_host: LittleHost, precious: Path, planted: str, words: tuple[str, ...]
) -> None:
    host = light_host
    host.have(SECOND)
    host.deploy.mkdir()
    places = {
        "release": host.releases / f"clojars-web-{SECOND}-standalone.jar",
        "unfinished": host.releases / ".deploy-clojars-planted.jar",
    }
    place = places.get(planted, host.deploy / planted)
    place.unlink(missing_ok=True)
    is_file = planted not in ("logs", "checkouts", "mirror.git")
    place.symlink_to(precious / "a/file" if is_file else precious)
    before = whole(precious)
    result = host.run(*words)
    assert "Traceback" not in result.stderr
    assert result.returncode in (0, 1, 4), result.stderr
    assert whole(precious) == before
    version = SECOND if result.returncode == 0 else FIRST
    assert host.versions == (version, version)


def test_a_release_that_the_build_has_put_there_itself_is_not_overwritten(
    new_light_host: NewHost, precious: Path
) -> None:
    host = new_light_host()
    path = host.releases / f"clojars-web-{SECOND}-standalone.jar"
    plant = f"ln -s {precious}/a/file {path}"
    host.write_config(build=host.options["build"].replace('test = "true"', f'test = "{plant}"'))
    host.serving(FIRST)
    result = host.run(SECOND, "--yes")
    assert result.returncode == 1
    assert f"{path} already exists" in result.stderr
    assert (precious / "a/file").read_text() == "a"
    assert host.versions == (FIRST, FIRST)


def test_a_build_that_leads_the_jar_out_of_the_checkout_is_refused(
    new_light_host: NewHost, precious: Path
) -> None:
    host = new_light_host()
    host.write_config(
        build='test = "true"\n'
        f'uberjar = "mkdir target; ln -s {precious}/a/file target/x-standalone.jar"'
    )
    result = host.run(FIRST, "--yes")
    assert result.returncode == 5
    assert "leads outside the directory of the build" in result.stderr


@pytest.mark.parametrize("words", [("status",), (SECOND, "--yes"), ("rollback", "--yes")])
def test_a_configuration_that_others_can_write_is_refused(
    light_host: LittleHost, words: tuple[str, ...]
) -> None:
    os.chmod(light_host.config, 0o664)
    result = light_host.run(*words)
    assert result.returncode == 2
    assert "can be written by others than its owner (mode 0664)" in result.stderr
    assert f"chmod go-w {light_host.config}" in result.stderr


# What of a job cannot be seen is no proof: an old job file has `exec su clojars -c …`, and the tree
# of root's su is not visible to the production user, though its own java is.


SERVER = r"""
use IO::Socket::INET;
open(my $jar, '<', shift) or die $!;
my @listening;
for my $port (@ARGV) {  # it survives a port that is taken, as an application may
    my $socket = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $port, Listen => 9,
                                       ReuseAddr => 1);
    push @listening, $socket if $socket;
}
$| = 1;
print "up\n";
$SIG{CHLD} = 'IGNORE';
for my $socket (@listening) {
    next if fork;
    while (my $client = $socket->accept) {
        sysread($client, my $request, 4096);
        print $client "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n";
        close $client;
    }
    exit;
}
sleep 1000;
"""

OBSERVE = """
import json, os, sys
import encodings.ascii, encodings.idna, encodings.latin_1  # while they can be read
from pathlib import Path
from types import SimpleNamespace
import concurrent.futures.thread
import deploy_clojars.machine.web
from deploy_clojars import config
from deploy_clojars.host.instances import Instance
from deploy_clojars.host.releases import Releases
from deploy_clojars.host.services import Job
pid, releases, web, nailgun, uid = sys.argv[1:]
health = (f"http://127.0.0.1:{web}/", f"tcp://127.0.0.1:{nailgun}")
settings = config.Instance(job="clojars", url="http://clojars.org/", health=health)
services = SimpleNamespace(status=lambda job: Job("running", int(pid), "clojars start/running"))
instance = Instance(
    "primary", settings, config.Health(), services, Releases(Path(releases), "clojars-web")
)
os.setgroups([])
os.setgid(65534)
os.setuid(int(uid))
seen = instance.observe()
print(json.dumps({
    "why": seen.why_not_healthy_on("0.1.0"), "visible": seen.visible,
    "running": seen.running, "foreign": seen.foreign_ports, "serving": seen.serving,
}))
"""

NOBODY = 65534
needs_su = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


@pytest.fixture
def old_host() -> Iterator[Path]:
    """A directory with `releases`, that every user can enter."""
    require_program("perl", "su")
    with tempfile.TemporaryDirectory(prefix="old-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        (directory / "releases").mkdir()
        (directory / "server").write_text(SERVER)
        for version in ("0.1.0", "0.0.9"):
            (directory / f"releases/clojars-web-{version}-standalone.jar").write_text(version)
        yield directory


@contextmanager
def serving(
    host: Path, version: str, *ports: int, as_root: bool = False, words: list[str] | None = None
) -> Iterator[int]:
    """The application, started by root's `su` unless it is root's itself; yields the first PID.

    Or it is started by other `words`.
    """
    jar = host / f"releases/clojars-web-{version}-standalone.jar"
    if words is None:
        words = ["perl", str(host / "server"), str(jar), *map(str, ports)]
        if not as_root:
            words = ["su", "nobody", "-s", "/bin/sh", "-c", " ".join(words)]
    with ExitStack() as stack:
        process = stack.enter_context(
            subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL,
                             start_new_session=True, text=True)
        )  # fmt: skip
        stack.callback(end_with_descendants, process.pid)
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield process.pid


def end_with_descendants(pid: int) -> None:
    first = psutil.Process(pid)
    for process in [*first.children(recursive=True), first]:
        with suppress(psutil.NoSuchProcess):  # it has ended with its parent
            process.kill()


def seen_by(uid: int, host: Path, pid: int, *ports: int, proc: str | None = None) -> dict[str, Any]:
    """What an instance with this process and these ports looks like to the user.

    `proc` are the options with which /proc is mounted for it.
    """
    words = [sys.executable, "-c", OBSERVE, pid, host / "releases", *ports, uid]
    if proc is not None:
        mounts = f'mount -t proc -o {proc} proc /proc && exec "$0" "$@"'
        words = ["unshare", "--mount", "sh", "-c", mounts, *words]
    shown = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, timeout=300, check=False
    )
    assert shown.returncode == 0, shown.stderr
    found: dict[str, Any] = json.loads(shown.stdout)
    return found


@needs_su
def test_an_old_job_whose_java_has_the_ports_is_healthy(old_host: Path) -> None:
    ports = free_ports(2)
    with serving(old_host, "0.1.0", *ports) as pid:
        seen = seen_by(NOBODY, old_host, pid, *ports)

    assert seen == {
        "why": None, "visible": False, "running": "0.1.0", "foreign": [], "serving": True,
    }  # fmt: skip


@needs_su
def test_an_old_job_whose_ports_an_orphan_kept_is_not_healthy(old_host: Path) -> None:
    ports = free_ports(2)
    with serving(old_host, "0.0.9", *ports), serving(old_host, "0.1.0", *ports) as pid:
        seen = seen_by(NOBODY, old_host, pid, *ports)

    assert seen["serving"]  # which proves nothing
    assert seen["foreign"] == ports
    assert f"clojars (PID {pid}) does not own port {ports[0]}, {ports[1]}" in seen["why"]
    assert "to end it: kill" in seen["why"]


@needs_su
def test_an_old_job_whose_ports_are_of_somebody_who_cannot_be_seen_is_not_healthy(
    old_host: Path,
) -> None:
    ports = free_ports(2)
    with (
        serving(old_host, "0.0.9", *ports, as_root=True),
        serving(old_host, "0.1.0", *ports) as pid,
    ):
        seen = seen_by(NOBODY, old_host, pid, *ports)

    owns = f"whether clojars (PID {pid}) owns port {ports[0]}, {ports[1]} is not visible"
    assert owns in seen["why"]
    assert seen["foreign"] == []


@needs_su
def test_to_a_user_who_sees_none_of_it_no_port_is_foreign(old_host: Path) -> None:
    ports = free_ports(2)
    with serving(old_host, "0.1.0", *ports) as pid:
        seen = seen_by(NOBODY - 1, old_host, pid, *ports)

    assert (seen["visible"], seen["running"], seen["serving"]) == (False, None, True)
    assert seen["foreign"] == []
    assert "is not visible to this user" in seen["why"]


@needs_su
@pytest.mark.parametrize("proc", ["hidepid=1", "hidepid=2", "hidepid=2,subset=pid"])
def test_where_proc_hides_the_processes_of_others_its_own_are_seen(
    old_host: Path, proc: str
) -> None:
    ports = free_ports(2)
    with serving(old_host, "0.1.0", *ports) as pid:
        by_its_user = seen_by(NOBODY, old_host, pid, *ports, proc=proc)
        by_another = seen_by(NOBODY - 1, old_host, pid, *ports, proc=proc)

    assert (by_its_user["why"], by_its_user["running"]) == (None, "0.1.0")
    assert by_another["running"] is None
    assert "hides PID" in by_another["why"] or "is a process of user" in by_another["why"]


@needs_su
def test_a_program_with_more_rights_than_its_user_is_not_visible_and_that_is_said(
    old_host: Path,
) -> None:
    require_program("setcap", "setpriv")
    ports = free_ports(2)
    perl = old_host / "perl"
    shutil.copy(os.path.realpath(str(shutil.which("perl"))), perl)
    subprocess.run(["setcap", "cap_net_bind_service+ep", perl], check=True)
    words = [perl, old_host / "server", old_host / "releases/clojars-web-0.1.0-standalone.jar"]
    run_as = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    with serving(old_host, "0.1.0", *ports, words=[*run_as, *map(str, [*words, *ports])]) as pid:
        seen = seen_by(NOBODY, old_host, pid, *ports)

    assert not seen["visible"]
    assert f"PID {pid} has more rights than its user" in seen["why"]
