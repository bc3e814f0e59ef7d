"""A whole little clojars.org in a directory: a home, two jobs of a manager, a configuration."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import termios
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pexpect

from deploy_clojars.run.lock import Holder, holder_of
from deploy_clojars.sandbox.ports import free

ETC = Path(__file__).parents[1] / "etc"
PROMPT = "[yes/no] "


class ServiceManager(Protocol):
    """Upstart's stand-in, the real Upstart, or a real systemd; a running job keeps its old file."""

    manager: str
    bin: Path

    def install(self, job: str, text: str) -> None: ...
    def control(self, verb: str, job: str) -> None: ...
    def pid(self, job: str) -> int | None: ...
    def printed(self, job: str) -> str: ...


# Every worker of pytest-xdist has 500 of its own, below what the kernel gives away by itself:
# an instance that is down must find its port free, and nobody else on it, when it comes back.
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
PORTS = itertools.cycle(range(10000 + 500 * (WORKER % 20), 10500 + 500 * (WORKER % 20)))


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, and that no other test will take for a while."""
    found: list[int] = []
    while len(found) < count:
        found += free(*itertools.islice(PORTS, count - len(found)))
    return found


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 180) -> Any:
    """Waits until `condition()` is true and returns its value; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)
    return value


def wait_for_its_lock(lock: Path, pid: int) -> None:
    """Waits until a run that has ended holds the lock no more.

    If it was killed while it started a program, that one has its lock until its exec.
    """
    wait_for(lambda: (holder_of(lock) or Holder()).pid != pid, "its lock is free")


def without_escapes(text: str) -> str:
    """What is left on a screen without colours."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@dataclass
class LittleHost:
    """The host. `jobs` are the names of the primary's and the backup's job."""

    directory: Path
    upstart: ServiceManager
    repository_url: str
    environment: dict[str, str]
    options: dict[str, str] = field(default_factory=dict)  # TOML lines by table
    launcher: str = "java -Xmx128m -XX:TieredStopAtLevel=1 -jar"
    primary: str = "clojars"
    backup: str = "clojars-backup"

    def __post_init__(self) -> None:
        self.jars: Path | None = None  # of a host without a JVM
        self.home = self.directory / "home"
        self.releases = self.home / "releases"
        self.deploy = self.home / "deploy"
        self.link = self.releases / "clojars-web-current.jar"
        self.config = self.directory / "deploy-clojars.toml"
        self.releases.mkdir(parents=True)
        self.ports = free_ports(4)
        self.write_config()
        for job, web, nailgun in (
            (self.primary, self.ports[0], self.ports[2]),
            (self.backup, self.ports[1], self.ports[3]),
        ):
            self.upstart.install(job, self.job_file(job, web, nailgun))

    def write_config(self, **options: str) -> None:
        """Writes the configuration; `options` are further TOML lines, by table ('top': none)."""
        lines = {
            "top": f'repository = "{self.repository_url}"\nhome = "{self.home}"',
            "services": f'manager = "{self.upstart.manager}"\nbin = "{self.upstart.bin}"\n'
            "sudo = false\ntimeout = 20",
            "build": "isolate = false",  # most builds of tests use what is beside the host
            "instances.primary": self._instance(self.primary, *self.ports[0::2]),
            "instances.backup": self._instance(self.backup, *self.ports[1::2]),
            "health": "timeout = 60\nanswer_timeout = 20\nsettle = 0.3\ninterval = 0.1",
        }
        for table, more in {**self.options, **options}.items():
            keys = {line.split("=")[0].strip() for line in more.splitlines()}
            old = lines.get(table, "").splitlines()
            kept = [line for line in old if line.split("=")[0].strip() not in keys]
            lines[table] = "\n".join([*kept, more])
        text = lines.pop("top") + "\n"
        text += "".join(f"[{table}]\n{body}\n" for table, body in lines.items())
        self.config.write_text(text, encoding="utf-8")
        self.config.chmod(0o644)

    @staticmethod
    def _instance(job: str, web: int, nailgun: int) -> str:
        web_url = f"http://127.0.0.1:{web}/"
        return (
            f'job = "{job}"\nurl = "{web_url}"\nhealth = ["{web_url}", "tcp://127.0.0.1:{nailgun}"]'
        )

    def job_file(self, job: str, web: int, nailgun: int, **changes: str) -> str:
        """The project's own job file with this host's paths and ports.

        `changes` are regular expressions and what stands there instead, or names of the
        environment and their values.
        """
        ports = {"PORT": str(web), "NAILGUN_PORT": str(nailgun)}
        names = {name: changes.pop(name) for name in [*changes] if name.isupper()}
        values = [f"{name}={value}" for name, value in {**ports, **names}.items()]
        if self.upstart.manager == "systemd":
            file = ETC / "systemd" / f"{job}.service"
            own = {
                r"^(User|Group)=.*\n": "",
                r"^Environment=PORT=.*\n": "",
                r"^EnvironmentFile=.*": "\n".join(f"Environment={value}" for value in values),
                r"^TimeoutStopSec=.*": "TimeoutStopSec=10",
                # Else PrivateTmp would hide it.
                r"^(ReadWritePaths=).*": rf"\1{self.directory}\nBindPaths={self.directory}",
            }
        else:
            file = ETC / "upstart" / f"{job}.conf"
            own = {
                r"^set[ug]id .*\n": "",
                rf"^env ({'|'.join({**ports, **names})})=.*\n": "",
                r"^script$": "".join(f"env {value}\n" for value in values) + "script",
                r"^kill timeout .*": "kill timeout 10",
            }
        text = file.read_text(encoding="utf-8")
        for pattern, new in {
            **own,
            r"/home/clojars": str(self.home),
            r"[\w/-]*java -Xmx512m -jar": self.launcher,
            **changes,
        }.items():
            text = re.sub(pattern, new, text, flags=re.MULTILINE)
        return text

    # --- the tool -----------------------------------------------------------------------------

    @property
    def command(self) -> list[str]:
        """The tool, as a user would call it."""
        return [str(Path(sys.executable).with_name("deploy-clojars"))]

    @property
    def whole_environment(self) -> dict[str, str]:
        """What the tool's process gets."""
        return {
            **os.environ,
            "DEPLOY_CLOJARS_CONFIG": str(self.config),
            "COLUMNS": "120",
            **self.environment,
        }

    def run(
        self, *words: str, timeout: float = 300, largest_file: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs the tool without a terminal; standard output and error are kept apart.

        With `largest_file` (bytes) it cannot write a file that is larger, as on a full disk.
        """

        def limit() -> None:
            if largest_file is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

        return subprocess.run(
            [*self.command, *words],
            env=self.whole_environment,
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            preexec_fn=limit,
        )

    def done(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs the tool and fails unless it ends with 0."""
        result = self.run(*words)
        assert result.returncode == 0, result.stderr
        return result

    @contextlib.contextmanager
    def typing(self, *words: str, timeout: float = 180) -> Iterator[Terminal]:
        """The tool on a terminal of its own, ended at the end if it is still there."""
        argv = [*self.command, *words]
        with at_a_terminal(argv, self.whole_environment, self.directory, timeout) as terminal:
            yield terminal
        wait_for_its_lock(self.deploy / "lock", terminal.pid)

    @property
    def status(self) -> dict[str, Any]:
        """What `status --json` says."""
        result = self.run("status", "--json")
        assert result.returncode in (0, 11), result.stderr
        document = json.loads(result.stdout)
        assert isinstance(document, dict)
        assert document["ok"] is (result.returncode == 0)
        return document

    # --- the host, looked at past the tool ----------------------------------------------------

    def jar(self, version: str) -> Path:
        """The jar that a build of the version makes, on a host without a JVM."""
        assert self.jars is not None
        return self.jars / f"clojars-web-{version}-standalone.jar"

    def have(self, version: str, jar: Path | None = None) -> None:
        """Puts a release where a deploy would have put it."""
        jar = jar or self.jar(version)
        shutil.copyfile(jar, self.releases / f"clojars-web-{version}-standalone.jar")

    def does_not_start(self, version: str, *roles: str) -> None:
        """Makes a release without a JVM end at its start as these instances from now on."""
        ports = [str(self.ports[0 if role == "primary" else 1]) for role in roles]
        release = self.releases / f"clojars-web-{version}-standalone.jar"
        Path(f"{release}.refused").write_text(" ".join(ports), encoding="utf-8")

    @contextlib.contextmanager
    def comes_up_late(self, version: str, role: str) -> Iterator[None]:
        """A release without a JVM does not serve as this instance before the block ends."""
        late = self.releases / f"clojars-web-{version}-standalone.jar.late"
        late.write_text(str(self.ports[0 if role == "primary" else 1]), encoding="utf-8")
        try:
            yield
        finally:
            late.unlink()

    def comes_back(self, role: str, version: str) -> None:
        """Waits until the instance serves this; started here if its manager has given it up."""
        job = self.primary if role == "primary" else self.backup

        def is_back() -> bool:
            if self.pid(role) is None:
                # Refused if the manager is just about to try again.
                with contextlib.suppress(subprocess.CalledProcessError, AssertionError):
                    self.control("start", job)
            return self.version(role) == version

        wait_for(is_back, f"the {role} is back on {version}")

    def serving(self, version: str, jar: Path | None = None) -> None:
        """A host that the old shell script served: a link made by hand, both jobs up on it."""
        self.have(version, jar)
        self.link.symlink_to(f"clojars-web-{version}-standalone.jar")
        for job in (self.primary, self.backup):
            self.control("start", job)
        wait_for(lambda: None not in self.versions, f"both serve {version}")

    def lets_the_backup_rest(self) -> None:
        """The backup runs only while deploying from now on, and is stopped."""
        text = self.config.read_text(encoding="utf-8")
        table = "[instances.backup]\n"
        text = text.replace(table, f"{table}only_while_deploying = true\n")
        self.config.write_text(text, encoding="utf-8")
        self.control("stop", self.backup)

    def control(self, verb: str, job: str) -> None:
        """The manager's own program, as an operator would type it."""
        self.upstart.control(verb, job)

    @property
    def current(self) -> str | None:
        """The link's text, to the letter."""
        return os.readlink(self.link) if self.link.is_symlink() else None

    def pid(self, role: str) -> int | None:
        """The PID that the manager has for an instance."""
        return self.upstart.pid(self.primary if role == "primary" else self.backup)

    def version(self, role: str) -> str | None:
        """What an instance says that it is, over HTTP; None if it does not answer."""
        port = self.ports[0 if role == "primary" else 1]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/version", timeout=20) as answer:
                return str(answer.read().decode().strip())
        except (OSError, ValueError, http.client.HTTPException):
            return None

    @property
    def versions(self) -> tuple[str | None, str | None]:
        """What the primary and the backup say that they are."""
        return self.version("primary"), self.version("backup")

    @property
    def events(self) -> list[dict[str, Any]]:
        """The journal."""
        file = self.deploy / "journal.jsonl"
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        # What comes after the last newline is being written.
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    @contextlib.contextmanager
    def lost_jvm(self, version: str) -> Iterator[subprocess.Popen[bytes]]:
        """A process on the backup's web port that the manager knows nothing of."""
        ports = {"PORT": str(self.ports[1]), "NAILGUN_PORT": str(free_ports(1)[0])}
        jar = self.releases / f"clojars-web-{version}-standalone.jar"
        with subprocess.Popen(
            ["java", "-jar", jar],
            env={**os.environ, **ports},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                wait_for(lambda: self.version("backup") == version, "the lost JVM answers")
                yield process
            finally:
                process.kill()

    def is_at(self, step: str) -> bool:
        """Whether the last line of the journal is the beginning of the step."""
        return bool(self.events) and self.events[-1].get("step") == step

    def processes_of_runs(self) -> list[int]:
        """The processes that carry a run's id of this host."""
        home = os.stat(self.home)
        wanted = f"DEPLOY_CLOJARS_RUN={home.st_dev:x}.{home.st_ino:x}.".encode()
        found = []
        for environment in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if wanted in environment.read_bytes():
                    found.append(int(environment.parent.name))
        return found


@contextlib.contextmanager
def at_a_terminal(
    argv: list[str], env: dict[str, str], cwd: Path, timeout: float
) -> Iterator[Terminal]:
    """A program on a terminal of its own, ended at the end if it is still there."""
    child = pexpect.spawn(
        argv[0],
        argv[1:],
        env=env,
        cwd=str(cwd),
        encoding="utf-8",
        timeout=timeout,
        dimensions=(50, 120),
    )
    try:
        yield Terminal(child)
    finally:
        try:
            child.close(force=True)
        except pexpect.ExceptionPexpect:  # it was killed, and is not gone a tenth of a second later
            child.wait()


class Terminal:
    """A person at the tool's terminal."""

    def __init__(self, child: pexpect.spawn[str]) -> None:
        self._child = child
        assert child.pid is not None
        self.pid: int = child.pid
        self.shown = ""

    def sees(self, text: str) -> None:
        """Waits until the text is on the screen."""
        try:
            self._child.expect_exact(text)
        except (pexpect.EOF, pexpect.TIMEOUT):
            shown = self.shown + (self._child.before or "")
            raise AssertionError(f"never shown: {text!r}\n{shown}") from None
        self.shown = without_escapes(self.shown + (self._child.before or "") + text)

    def asked(self) -> None:
        """Waits for the question."""
        self.sees(PROMPT)

    def types(self, line: str) -> None:
        """Types a line and the enter key."""
        self._child.sendline(line)

    def writes(self, text: str) -> None:
        """Types some keys, and not the enter key."""
        self._child.send(text)

    def presses(self, key: str) -> None:
        """Presses Ctrl and a key."""
        self._child.sendcontrol(key)

    @property
    def settings(self) -> list[Any]:
        """How the terminal is set, as termios.tcgetattr() says it."""
        return termios.tcgetattr(self._child.child_fd)

    @settings.setter
    def settings(self, settings: list[Any]) -> None:
        termios.tcsetattr(self._child.child_fd, termios.TCSANOW, settings)

    def is_resized(self, rows: int, columns: int) -> None:
        """The window gets another size; 0 is what a terminal says that does not know its own."""
        self._child.setwinsize(rows, columns)

    def hangs_up(self) -> None:
        """Closes the window; the kernel tells the tool."""
        self._child.ptyproc.fileobj.close()  # type: ignore[attr-defined] # not in the stubs

    def kill(self, signum: int) -> None:
        """Sends a signal to the tool alone."""
        os.kill(self.pid, signum)

    def ends(self, status: int | tuple[int, ...]) -> str:
        """Waits for the end and returns all that was shown."""
        try:
            self._child.expect(pexpect.EOF)
        except pexpect.TIMEOUT:
            raise AssertionError(f"does not end:\n{self.shown}{self._child.before}") from None
        self.shown += self._child.before or ""
        self._child.close()
        self.shown = without_escapes(self.shown)
        ended = self._child.exitstatus
        if ended is None:
            ended = 128 + (self._child.signalstatus or 0)
        expected = (status,) if isinstance(status, int) else status
        assert ended in expected, f"exit status {ended}, not {status}\n{self.shown}"
        return self.shown
