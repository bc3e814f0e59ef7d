"""`deploy-clojars sandbox`: real repositories, real supervisords, real deploys, and no JVM."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pexpect
import psutil
import pytest
from little_host import Terminal, wait_for
from programs import require_program, skip_or_fail
from system import lives

from deploy_clojars import sandbox
from deploy_clojars.errors import NotReady
from deploy_clojars.host.services import user_manager
from deploy_clojars.host.services.supervisor import Supervisor
from deploy_clojars.machine import connections
from deploy_clojars.machine.shell import root_program
from deploy_clojars.run import lock
from deploy_clojars.sandbox import repository, user_units
from deploy_clojars.sandbox.place import Pair, Ports, Sandbox
from deploy_clojars.sandbox.ports import chosen

pytestmark = pytest.mark.slow

TOOL = str(Path(sys.executable).with_name("deploy-clojars"))
ROLES = {"primary": "clojars", "backup": "clojars-backup"}

Site = tuple[str | None, tuple[str | None, str | None], int | None]


@pytest.fixture(scope="module", autouse=True)
def programs() -> None:
    require_program("git")
    if importlib.util.find_spec("supervisor") is None:
        skip_or_fail("not installed: the Python package supervisor")


@pytest.fixture(scope="module")
def first_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release 0.1.0, built as a deploy builds it."""
    directory = tmp_path_factory.mktemp("release") / "clojars-web"
    repository.make(directory)
    git(directory, "checkout", "--quiet", "0.1.0")
    subprocess.run([sys.executable, "build.py"], cwd=directory, check=True, capture_output=True)
    return directory / "target" / "clojars-web-0.1.0-standalone.jar"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory for sandboxes. All that runs in it is ended."""
    place = tmp_path.resolve()
    yield place
    # Looked for again and again: one that was starting another is not seen to have done so.
    wait_for(lambda: not killed_in(place), "all processes are gone")


@pytest.fixture
def empty(place: Path) -> Little:
    """A sandbox in which nothing was deployed yet."""
    little = Little(place / "sandbox")
    little.start()
    return little


@pytest.fixture
def serving(empty: Little, first_release: Path) -> Little:
    """A sandbox that serves 0.1.0 on both instances."""
    empty.serve(first_release)
    return empty


MARK = "DEPLOY_CLOJARS_SANDBOX"


def nginx_in(directory: Path) -> list[psutil.Process]:
    """The nginx processes of all sandboxes in a directory; they carry no mark."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.name() == "nginx" and Path(process.cwd()).is_relative_to(directory):
                found.append(process)
    return found


def marked(directory: Path) -> list[psutil.Process]:
    """The living processes of all sandboxes in a directory, found past the code under test.

    But for nginx, which carries the mark only until it has written its title over its environment.
    """
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            mark = process.environ().get(MARK, "")
            is_nginx = process.name() == "nginx"
            if Path(mark).is_relative_to(directory) and not is_nginx and lives(process.pid):
                found.append(process)
    return found


def killed_in(directory: Path) -> list[psutil.Process]:
    """Kills the processes of all sandboxes in a directory, and returns those that were there."""
    found = [*marked(directory), *nginx_in(directory)]
    for process in found:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return found


def git(directory: Path, *words: str) -> str:
    """Runs git as a user would, with a name but no other settings."""
    settings = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    person = ["-c", "user.name=Me", "-c", "user.email=me@example.org"]
    return subprocess.run(
        ["git", *person, *words],
        cwd=directory,
        env={**os.environ, **settings},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


def sandbox_command(
    directory: Path, *words: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`deploy-clojars sandbox DIR`."""
    return subprocess.run(
        [TOOL, "sandbox", str(directory), *words],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


class Little:
    """A sandbox, as its user has it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "deploy-clojars.toml"
        self.repository = directory / "clojars-web"
        self.releases = directory / "home" / "releases"

    def start(self, **environment: str) -> str:
        """Starts it and returns what was said."""
        result = sandbox_command(self.directory, **environment)
        assert result.returncode == 0, result.stderr
        if self.config.exists():  # tests wait often
            text = self.config.read_text(encoding="utf-8")
            self.config.write_text(text.replace("settle = 0.5", "settle = 0.2"), encoding="utf-8")
        return result.stdout

    def stop(self) -> str:
        """Stops it and returns what was said."""
        result = sandbox_command(self.directory, "--stop")
        assert result.returncode == 0, result.stderr
        return result.stdout

    def fails(self, status: int, *words: str) -> str:
        """Runs the command and returns what it said when it failed, with that exit status."""
        result = sandbox_command(self.directory, *words)
        assert result.returncode == status, (result.stdout, result.stderr)
        assert "Traceback" not in result.stderr
        return result.stderr

    def serve(self, release: Path) -> None:
        """Puts 0.1.0 where a deploy puts it, and starts both instances."""
        shutil.copyfile(release, self.releases / release.name)
        (self.releases / "clojars-web-current.jar").symlink_to(release.name)
        threads = [
            threading.Thread(target=self.services.start, args=(job,)) for job in ROLES.values()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.wait_for("0.1.0", "0.1.0")

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs the tool on the sandbox, without a terminal."""
        return subprocess.run(
            [TOOL, "-c", str(self.config), *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def done(self, *words: str) -> str:
        """Runs the tool, fails unless it ends with 0, and returns what it said."""
        result = self.run(*words)
        assert result.returncode == 0, result.stderr
        return result.stderr

    @contextmanager
    def typing(self, *words: str) -> Iterator[Terminal]:
        """The tool on a terminal of its own."""
        child = pexpect.spawn(
            TOOL,
            ["-c", str(self.config), *words],
            encoding="utf-8",
            timeout=300,
            dimensions=(50, 120),
        )
        try:
            yield Terminal(child)
        finally:
            child.close(force=True)

    @property
    def status(self) -> dict[str, Any]:
        """What `status --json` says."""
        result = self.run("status", "--json")
        assert result.returncode in (0, 11), result.stderr
        document = json.loads(result.stdout)
        assert isinstance(document, dict)
        return document

    @property
    def services(self) -> Supervisor:
        """The sandbox's supervisord."""
        return Supervisor(path=str(self.directory / "supervisor.sock"), timeout=60)

    @property
    def ports(self) -> list[int]:
        """Both instances' ports: the primary's two, then the backup's."""
        ports = json.loads((self.directory / "sandbox.json").read_text(encoding="utf-8"))["ports"]
        return [ports[role][kind] for role in ROLES for kind in ("web", "nailgun")]

    def pid(self, role: str) -> int | None:
        """The PID that supervisord has for an instance."""
        return self.services.status(ROLES[role]).pid

    @property
    def pids(self) -> tuple[int | None, int | None]:
        """Both instances' PIDs."""
        return self.pid("primary"), self.pid("backup")

    def get(self, role: str, path: str) -> str | None:
        """What an instance answers; None if it does not."""
        port = self.ports[0 if role == "primary" else 2]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
                return str(answer.read().decode())
        except (OSError, ValueError):
            return None

    @property
    def versions(self) -> tuple[str | None, str | None]:
        """What both instances say that they are."""
        return self.get("primary", "/version"), self.get("backup", "/version")

    def wait_for(self, primary: str | None, backup: str | None) -> None:
        """Waits until the instances serve these."""
        wait_for(lambda: self.versions == (primary, backup), f"serving {primary}, {backup}")

    @property
    def site(self) -> Site:
        """The link's text, what both instances serve, and the primary's PID."""
        link = self.releases / "clojars-web-current.jar"
        text = os.readlink(link) if link.is_symlink() else None
        return text, self.versions, self.pid("primary")

    @property
    def supervisord(self) -> psutil.Process:
        """Its supervisord."""
        found = [each for each in marked(self.directory) if is_supervisord(each)]
        # What it forks is, for a moment, still called as it is.
        return min(found, key=psutil.Process.create_time)

    def crash(self) -> None:
        """Kills supervisord alone; the instances run on and nobody watches them."""
        daemon = self.supervisord
        daemon.kill()
        wait_for(lambda: not lives(daemon.pid), "supervisord is gone")

    def listens(self) -> list[int]:
        """Those of its ports on which somebody listens."""
        return [port for port in self.ports if connects(port)]


def is_supervisord(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return "supervisor.supervisord" in process.cmdline()
    return False


def only_a_supervisord_runs(directory: Path) -> None:
    """Waits until one supervisord is all that is marked.

    What it forks is, for a moment, called as it is, and marked, too.
    """
    wait_for(
        lambda: [is_supervisord(each) for each in marked(directory)] == [True],
        f"one supervisord in {directory}, and nothing else",
    )


def connects(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=60):
        return True
    return False


# --- what a user does in a sandbox ------------------------------------------------------------


def test_a_tour_through_good_and_bad_tags_in_a_directory_with_an_odd_name(place: Path) -> None:
    little = Little(place / "Zoë's „little“ ; #1 clojars")
    text = little.start()
    assert "just created" in text
    assert little.run("status").returncode == 11
    only_a_supervisord_runs(place)

    little.done("0.1.0", "--yes")
    assert little.versions == ("0.1.0", "0.1.0")
    little.done("0.2.0", "--yes")
    assert little.versions == ("0.2.0", "0.2.0")
    before = little.site
    for tag, expected, why in (
        ("0.2.1-failing-tests", 5, "FAILED (failures=1)"),
        ("0.2.2-does-not-build", 5, "SyntaxError"),
        ("0.2.3-does-not-start", 6, "KeyError: 'MAIL_URL'"),
    ):
        result = little.run(tag, "--yes")
        assert result.returncode == expected, result.stderr
        assert why in result.stderr
        assert little.site == before
    assert little.status["ok"]

    little.done("rollback", "--yes")
    assert little.versions == ("0.1.0", "0.1.0")
    status = little.status
    assert (status["ok"], status["approved"], status["current"]) == (True, "0.1.0", "0.1.0")


def test_two_at_once_each_with_a_deploy_at_its_question_do_not_disturb_each_other(
    place: Path, first_release: Path
) -> None:
    one, other = Little(place / "one"), Little(place / "other")
    for little in (one, other):
        little.start()
        little.serve(first_release)
    assert not set(one.ports) & set(other.ports)
    before = other.site
    with one.typing("0.2.0") as here, other.typing("0.2.0") as there:
        for terminal in (here, there):
            terminal.asked()
            assert "2 commits" in terminal.shown
        assert (one.versions, other.versions) == (("0.1.0", "0.2.0"),) * 2
        here.types("yes")
        there.types("no")
        here.ends(0)
        there.ends(7)
    assert one.versions == ("0.2.0", "0.2.0")
    assert other.site == before
    one.crash()
    one.stop()
    assert {each.environ()["DEPLOY_CLOJARS_SANDBOX"] for each in marked(place)} == (
        {str(other.directory)}
    )
    assert other.site == before
    assert other.status["ok"]


def test_a_tool_that_was_killed_at_the_question_leaves_a_command_to_type(serving: Little) -> None:
    with serving.typing("0.2.0") as terminal:
        terminal.asked()
        assert "locked: deploy 0.2.0" in serving.fails(3, "--stop")
        terminal.kill(signal.SIGKILL)
        terminal.ends(137)
    status = serving.status
    assert (status["interrupted"], status["ok"]) == (True, False)
    words = status["next"].split()
    assert words[:2] == ["deploy-clojars", "-c"]
    serving.done(*words[3:], "--yes")
    assert serving.versions == ("0.1.0", "0.1.0")
    assert serving.status["ok"]


def test_a_release_that_is_not_held_open_is_named(empty: Little) -> None:
    """What somebody sees who tries an application of their own."""
    main = empty.repository / "__main__.py"
    main.write_text(re.sub(r".*os\.open\(.*", "", main.read_text(encoding="utf-8")))
    git(empty.repository, "commit", "--quiet", "--all", "--message", "Do not hold the release open")
    git(empty.repository, "tag", "0.4.0")
    text = empty.config.read_text(encoding="utf-8")
    empty.config.write_text(text.replace("timeout = 20", "timeout = 2", 1), encoding="utf-8")
    result = empty.run("0.4.0", "--yes")
    assert result.returncode == 6, result.stderr
    assert "has no release open; it must keep its jar open, as a JVM does" in result.stderr
    assert empty.site == (None, (None, None), None)


def test_the_application_finishes_what_it_has_begun_and_takes_nothing_new(
    first_release: Path,
) -> None:
    # On a busy machine half a second may be over before anybody has looked.
    assert any(
        closes_its_listener_before_it_answers(first_release, ms) for ms in (500, 5000, 50000)
    )


def closes_its_listener_before_it_answers(release: Path, ms: int) -> bool:
    """Asks the application for something that takes so long, and meanwhile to stop.

    Returns whether its listener was seen to be closed before it had answered, which it must do.
    """
    ports = chosen()
    web = ports.primary.web
    answers: list[str] = []

    def ask() -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{web}/slow?ms={ms}", timeout=180) as answer:
            answers.append(answer.read().decode())

    with subprocess.Popen(
        [sys.executable, "-I", str(release)],
        env={"PORT": str(web), "NAILGUN_PORT": str(ports.primary.nailgun)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "clojars-web 0.1.0 serves\n"
            client = threading.Thread(target=ask)
            client.start()
            assert process.stdout.readline() == f"answering in {ms} ms\n"
            process.terminate()
            wait_for(lambda: not connects(web), "the listener is closed")
            is_first = answers == []
            client.join()
            assert answers == [f"answered after {ms} ms"]
            assert process.wait(60) == 0
        finally:
            process.kill()
    return is_first


# --- starting, stopping and going on ----------------------------------------------------------


def test_the_commands_to_try_can_be_pasted_into_a_shell(place: Path) -> None:
    little = Little(place / "it's mine")
    text = little.start()
    [line] = [line for line in text.splitlines() if line.endswith(" status")]
    script = line.replace("deploy-clojars", TOOL, 1)
    result = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (11, "")
    assert "clojars-backup: stopped" in result.stdout


def test_what_to_try_fits_a_terminal_of_80_columns() -> None:
    ports = Ports(Pair(8001, 7601), Pair(8002, 7602), 8000, 8099)
    lines = sandbox.as_text(Sandbox(Path("/home/ann/sandbox"), ports)).splitlines()
    tries = lines[lines.index("try:") + 1 :]
    assert [line[:4] == "  # " for line in tries] == [True, False] * (len(tries) // 2)
    assert all(line.startswith("  deploy-clojars ") for line in tries[1::2])
    assert max(map(len, lines)) <= 80


def test_run_again_it_changes_nothing_and_stopped_it_leaves_nothing_and_goes_on(
    serving: Little,
) -> None:
    before = (serving.pids, serving.supervisord.pid, serving.ports)
    config = serving.config.read_bytes()
    assert "it runs already; nothing was changed" in serving.start()
    assert (serving.pids, serving.supervisord.pid, serving.ports) == before
    assert serving.config.read_bytes() == config

    assert re.search(r"stopped: PID \d+(, \d+){2,}\n", serving.stop())
    assert marked(serving.directory) == []
    assert nginx_in(serving.directory) == []
    assert serving.listens() == []
    assert not (serving.directory / "supervisor.sock").exists()
    assert "nothing of it was running" in serving.stop()

    assert "started" in serving.start()
    assert serving.versions == ("0.1.0", "0.1.0")
    assert serving.ports == before[2]
    assert not set(serving.pids) & set(before[0])
    assert serving.status["ok"]


def test_what_it_starts_has_a_session_of_its_own_and_belongs_to_no_run(place: Path) -> None:
    little = Little(place / "sandbox")
    # As from a hook of git, in a run of the tool, by somebody who has settings.
    settings = place / "gitconfig"
    settings.write_text(
        "[core]\n\thooksPath = /nowhere\n\tautocrlf = true\n[tag]\n\tgpgSign = true\n"
    )
    little.start(
        DEPLOY_CLOJARS_RUN="1.2.3", GIT_DIR=str(place), GIT_CONFIG_GLOBAL=str(settings), PORT="1"
    )
    daemon = little.supervisord
    assert os.getsid(daemon.pid) not in (os.getsid(0), 0)
    assert daemon.terminal() is None
    assert "DEPLOY_CLOJARS_RUN" not in daemon.environ()
    assert git(little.repository, "status", "--porcelain") == ""
    plain = place / "plain"
    repository.make(plain)
    assert git(plain, "for-each-ref") == git(little.repository, "for-each-ref")
    assert "/hooks" not in git(plain, "ls-files")
    assert not (plain / ".git" / "hooks").exists()


def test_its_commits_are_the_same_with_a_git_whose_default_is_sha256(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of git 3 is."""
    repository.make(place / "usual")
    newer = place / "bin" / "git"
    newer.parent.mkdir()
    newer.write_text(f'#!/bin/sh\nGIT_DEFAULT_HASH=sha256 exec {shutil.which("git")} "$@"\n')
    newer.chmod(0o755)
    monkeypatch.setenv("PATH", f"{newer.parent}:{os.environ['PATH']}")

    repository.make(place / "newer")

    references = [git(place / name, "for-each-ref") for name in ("usual", "newer")]
    assert references[0] == references[1]


def test_whatever_the_umask_nobody_else_can_change_or_drive_it(place: Path) -> None:
    old = os.umask(0)
    try:
        made = sandbox.start(place / "sandbox")
    finally:
        os.umask(old)
    assert isinstance(made, Sandbox)
    assert made.config == place / "sandbox" / "deploy-clojars.toml"
    assert f"http://127.0.0.1:{made.ports.primary.web}/" in sandbox.as_text(made)
    assert stat.S_IMODE(made.config.stat().st_mode) == 0o644
    assert stat.S_IMODE(made.socket.stat().st_mode) == 0o700
    result = Little(made.directory).run("status")
    assert (result.returncode, result.stderr) == (11, "")
    assert sandbox.stop(place / "sandbox")[0].startswith("stopped: PID ")


def test_beside_a_sandbox_whose_instances_never_started_no_port_of_theirs_is_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(random, "sample", lambda choices, count: list(choices))
    first = chosen()
    with socket.create_server(("127.0.0.1", first.site)):
        assert not set(first.all) & set(chosen().all)


def test_a_port_that_somebody_has_taken_meanwhile_is_chosen_anew(empty: Little) -> None:
    empty.stop()
    old = empty.ports
    with empty.config.open("a") as config:
        config.write("# mine\n")
    with socket.create_server(("127.0.0.1", old[2])):
        text = empty.start()
    new = empty.ports
    assert f"port {old[2]} is taken by somebody else; now it is {new[2]}" in text
    assert (new[0], new[1], new[3]) == (old[0], old[1], old[3])
    assert empty.config.read_text(encoding="utf-8").endswith("# mine\n")
    checks = [
        check["url"] for each in empty.status["instances"].values() for check in each["checks"]
    ]
    assert checks == [
        f"{scheme}{port}{end}"
        for port, (scheme, end) in zip(
            new, [("http://127.0.0.1:", "/"), ("tcp://127.0.0.1:", "")] * 2, strict=True
        )
    ]
    assert f'PORT="{new[2]}",NAILGUN_PORT="{new[3]}"' in (
        empty.directory / "supervisord.conf"
    ).read_text(encoding="utf-8")


# --- crashes ----------------------------------------------------------------------------------


def test_after_a_crash_of_supervisord_its_orphans_end_with_the_next_start_or_stop(
    serving: Little,
) -> None:
    orphans = sorted(pid for pid in serving.pids if pid)
    serving.crash()
    assert serving.versions == ("0.1.0", "0.1.0")
    [line] = [each for each in serving.start().splitlines() if "had left" in each]
    assert "ended what a crash had left: PID " in line
    assert set(map(str, orphans)) <= set(re.findall(r"\d+", line))
    assert not any(lives(pid) for pid in orphans)
    assert serving.versions == ("0.1.0", "0.1.0")
    assert serving.status["ok"]

    serving.crash()
    serving.stop()
    assert marked(serving.directory) == []
    assert nginx_in(serving.directory) == []
    assert serving.listens() == []


def test_after_a_reboot_a_stranger_with_the_pid_of_supervisord_lives_on(empty: Little) -> None:
    wait_for(lambda: not killed_in(empty.directory), "all is gone")
    assert (empty.directory / "supervisor.sock").exists()
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        try:
            (empty.directory / "supervisord.pid").write_text(f"{stranger.pid}\n")
            empty.stop()
            (empty.directory / "supervisord.pid").write_text(f"{stranger.pid}\n")
            empty.start()
            assert empty.run("status").returncode == 11
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_a_start_that_was_cut_off_is_done_again(empty: Little) -> None:
    empty.stop()
    file = empty.directory / "sandbox.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"made": true', '"made": false'))
    shutil.rmtree(empty.repository / ".git" / "objects")
    empty.config.unlink()
    assert "just created" in empty.start()
    assert git(empty.repository, "tag").split()[:2] == ["0.1.0", "0.2.0"]
    assert empty.run("status").returncode == 11


# --- what is refused --------------------------------------------------------------------------


def test_a_sandbox_that_was_moved_says_where_it_belongs_and_can_be_stopped(empty: Little) -> None:
    moved = Little(empty.directory.with_name("moved"))
    empty.directory.rename(moved.directory)
    said = moved.fails(1)
    assert f"{moved.directory} was made as {empty.directory}" in said
    assert f"move it back: mv -T {moved.directory} {empty.directory}" in said
    moved.stop()
    assert marked(empty.directory.parent) == []
    moved.directory.rename(empty.directory)
    empty.start()


def test_a_copy_of_a_sandbox_does_not_touch_the_original(empty: Little) -> None:
    copy = Little(empty.directory.with_name("copy"))
    shutil.copytree(empty.directory, copy.directory, ignore=lambda *_: ["supervisor.sock"])
    daemon = empty.supervisord.pid
    for words in ((), ("--stop",)):
        assert f"is a copy of the sandbox {empty.directory}" in copy.fails(1, *words)
    assert empty.supervisord.pid == daemon


def test_broken_by_hand_it_says_what_and_what_to_do(empty: Little) -> None:
    aside = empty.directory / "aside"
    for name, status, message in (
        ("sandbox.json", 2, "looks like a sandbox, but sandbox.json is missing"),
        ("clojars-web", 1, "clojars-web is gone"),
        ("deploy-clojars.toml", 1, "deploy-clojars.toml is gone"),
    ):
        (empty.directory / name).rename(aside)
        said = empty.fails(status)
        assert message in said
        assert "put it back, or " in said
        aside.rename(empty.directory / name)
    empty.config.write_text("hme = 1\n")
    assert "hme: unknown key; did you mean home?" in empty.fails(2)
    only_a_supervisord_runs(empty.directory)


@pytest.mark.parametrize("text", [None, '{"v": 1, "directory": 3}'])
def test_what_runs_of_a_broken_sandbox_can_be_stopped(empty: Little, text: str | None) -> None:
    file = empty.directory / "sandbox.json"
    if text is None:
        file.unlink()
    else:
        file.write_text(text, encoding="utf-8")
        assert f"{file} is not what `sandbox` wrote" in empty.fails(1)
    assert "stopped: PID" in "\n".join(sandbox.stop(empty.directory))
    assert marked(empty.directory) == []


def test_the_remedy_for_a_broken_sandbox_works(empty: Little) -> None:
    shutil.rmtree(empty.repository)
    [line] = [line for line in empty.fails(1).splitlines() if "start over: " in line]
    remedy = line.partition("start over: ")[2]
    assert remedy.count("deploy-clojars") == 2
    script = remedy.replace("deploy-clojars", TOOL)
    subprocess.run(["sh", "-c", script], check=True, capture_output=True)
    assert git(empty.repository, "tag").split()[0] == "0.1.0"
    only_a_supervisord_runs(empty.directory)


def test_a_sandbox_that_was_removed_while_it_ran_can_still_be_stopped(empty: Little) -> None:
    def is_removed() -> bool:
        shutil.rmtree(empty.directory, ignore_errors=True)
        return not empty.directory.exists()

    wait_for(is_removed, "nothing is written into it any more")
    assert "stopped: PID" in empty.stop()
    assert marked(empty.directory) == []
    assert "is not a sandbox" in empty.fails(2, "--stop")


def test_no_directory_of_somebody_elses_is_touched(place: Path) -> None:
    (place / "notes.txt").write_text("mine")
    little = Little(place)
    assert f"{place} is not empty and is not a sandbox" in little.fails(2)
    assert "is not a sandbox" in little.fails(2, "--stop")
    assert os.listdir(place) == ["notes.txt"]
    assert "notes.txt is not a directory" in Little(place / "notes.txt").fails(2)
    for name in ("100%", "$HOME", "two\nlines"):
        assert "a control character, $ or % in a sandbox's path" in Little(place / name).fails(2)


def test_a_directory_with_a_path_longer_than_a_sockets_address_is_fine(place: Path) -> None:
    long = Little(place / ("x" * 120))
    long.start()
    assert long.run("status").returncode == 11


def test_what_is_not_installed_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda _: None)
        with pytest.raises(NotReady) as refused:
            sandbox.start(place / "sandbox")
    assert refused.value.remedy == "pip install 'deploy-clojars[sandbox]'"
    monkeypatch.setenv("PATH", str(place))
    with pytest.raises(NotReady, match="not on PATH: git"):
        sandbox.start(place / "sandbox")
    assert list(place.iterdir()) == []


def test_where_no_systemd_runs_one_under_it_is_refused_and_nothing_is_there(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_manager, "runtime_directory", lambda _: str(place))
    monkeypatch.setattr(user_units, "BOOTED", place / "run/systemd/system")
    with pytest.raises(NotReady, match="has no systemd of their own") as refused:
        sandbox.start(place / "sandbox", systemd=True)
    typed = f"deploy-clojars sandbox {place / 'sandbox'}"
    assert refused.value.remedy == f"under supervisord instead: {typed}"
    assert list(place.iterdir()) == []


def test_nginx_in_front_sends_users_to_the_backup_only_while_the_primary_is_down(
    serving: Little,
) -> None:
    if root_program("nginx") is None:
        skip_or_fail("not installed: nginx")
    record = json.loads((serving.directory / "sandbox.json").read_text())
    site = f"http://127.0.0.1:{record['ports']['site']}/pid"
    primary, backup = (serving.services.status(job).pid for job in ROLES.values())
    wait_for(lambda: text_of(site) == str(primary), "the primary answers")
    serving.services.stop("clojars")
    assert text_of(site) == str(backup)
    serving.services.start("clojars")
    again = wait_for(lambda: serving.services.status("clojars").pid, "the primary runs")
    wait_for(lambda: text_of(site) == str(again), "the users are back on the primary")
    # A host of supervisord's is none that `setup` makes.
    checked = serving.run("check")
    assert checked.stdout.endswith("\nready\n"), checked.stdout
    assert serving.run("setup").returncode == 2


def test_no_request_is_lost_over_a_deploy_a_rollback_and_a_restart(serving: Little) -> None:
    if root_program("nginx") is None:
        skip_or_fail("not installed: nginx")
    record = json.loads((serving.directory / "sandbox.json").read_text())
    site = f"http://127.0.0.1:{record['ports']['site']}/pid"
    wait_for(lambda: text_of(site), "the site answers")
    answers: list[str | None] = []
    is_over = threading.Event()

    def visit() -> None:
        while not is_over.is_set():
            answers.append(text_of(site))

    visitors = [threading.Thread(target=visit) for _ in range(3)]
    for visitor in visitors:
        visitor.start()
    try:
        for words in (("0.2.0",), ("rollback", "0.1.0"), ("restart",)):
            result = serving.run(*words, "--yes")
            assert result.returncode == 0, result.stderr
    finally:
        is_over.set()
        for visitor in visitors:
            visitor.join()
    assert len(answers) > 100
    assert None not in answers
    assert len(set(answers)) > 3  # of instances that came and went


def text_of(url: str) -> str | None:
    """What a page says, or None if it does not answer."""
    with suppress(OSError), urllib.request.urlopen(url, timeout=60) as answer:
        return str(answer.read().decode().strip())
    return None


def is_listened_on(port: int) -> bool:
    return port in [row.local[1] for row in connections.listeners()]


def test_what_a_killed_supervisord_leaves_of_nginx_ends_too(serving: Little) -> None:
    if root_program("nginx") is None:
        skip_or_fail("not installed: nginx")
    record = json.loads((serving.directory / "sandbox.json").read_text())
    port = record["ports"]["site"]
    wait_for(lambda: is_listened_on(port), "nginx listens")
    serving.crash()
    serving.stop()
    assert not is_listened_on(port)


def test_the_shell_s_variables_do_not_reach_the_instances(empty: Little) -> None:
    empty.stop()
    empty.start(MAIL_URL="smtp://127.0.0.1", DATABASE_URL="live")
    only_a_supervisord_runs(empty.directory)
    assert not {"MAIL_URL", "DATABASE_URL"} & set(empty.supervisord.environ())


def test_a_start_while_a_run_is_at_work_leaves_the_instances_to_it(serving: Little) -> None:
    lock_file = serving.directory / "home" / "deploy" / "lock"
    lock_file.parent.mkdir(exist_ok=True)
    with lock.held(lock_file, lock.Holder(pid=os.getpid(), command="deploy", version="0.2.0")):
        serving.crash()
        before = marked(serving.directory)
        assert "locked: deploy 0.2.0" in serving.fails(3)
        assert marked(serving.directory) == before
