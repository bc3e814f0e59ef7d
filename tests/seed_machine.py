"""The host of the seed, whole, in the namespaces that `in_private_machine` made.

Upstart's stand-in runs it, with its programs in /sbin and throwaway copies over /etc, /home, /var
and where programs are. Or a real systemd does, with files of its own.
"""

from __future__ import annotations

import ctypes
import http.client
import os
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
from clojure_repository import ClojureRepository, make_repository
from little_host import Terminal, at_a_terminal, wait_for
from private_machine import (
    INSIDE,
    PROJECT,
    bring_loopback_up,
    lay_over,
    make_devices,
    mount,
    run,
    write,
)
from standin.upstart import INITCTL, PROGRAMS, Upstart
from systemd_machine import Machine as SystemdMachine

PYTHON = Path(sys.base_prefix)
PACKAGES = Path(msgspec.__file__).parents[1]
OPT = Path("/opt")
ANN = "ann"
MANAGER = "DEPLOY_CLOJARS_PRIVATE_MANAGER"  # names what runs the instances


class OfUpstart:
    """The stand-in, in the real machine's files with throwaway copies over them."""

    starts_jvm = "exec /usr/local/lib/clojars/java -Xmx512m -jar"  # in a job's file
    reloads_nginx = "service nginx reload"
    without_stream = "--nailgun balance"
    log_of_the_backup = "(root can read it: /var/log/upstart/clojars-backup.log)"
    # What clojars may run with sudo, and harms nobody; and what not.
    allowed = ("/sbin/status clojars", "/sbin/restart clojars-backup")
    refused = ("/sbin/restart clojars-balance", "/sbin/restart clojars X=1", "/sbin/restart")

    def __init__(self, upstart: Upstart, heard: list[str]) -> None:
        self._upstart = upstart
        self._heard = heard

    @classmethod
    @contextmanager
    def made(cls, scratch: Path) -> Iterator[OfUpstart]:
        """Lays the copies over, and starts Upstart."""
        for directory in ("/etc", "/var", "/tmp", "/usr/sbin", "/usr/local"):
            lay_over(Path(directory), scratch / "over")
        for directory in ("/home", "/opt", "/run"):
            mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", directory)
        make_devices(scratch)
        have_the_tool()
        with (
            Upstart.started(OPT / "upstart", root_only=True) as upstart,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log,
        ):
            log.bind("/dev/log")
            Path("/dev/log").chmod(0o666)
            for program in (*PROGRAMS, INITCTL):
                shutil.copy(upstart.bin / program, f"/usr/sbin/{program}")
            Path("/etc/init").symlink_to(upstart.jobs)
            Path("/var/log/upstart").symlink_to(upstart.logs)
            heard: list[str] = []
            # sudo's syslog(3) waits for a reader.
            threading.Thread(target=hear, args=(log, heard), daemon=True).start()
            yield cls(upstart, heard)

    def job_file(self, job: str) -> Path:
        return Path(f"/etc/init/{job}.conf")

    def install(self, job: str, text: str) -> None:
        self.job_file(job).write_text(text)

    def pid(self, job: str) -> int | None:
        return self._upstart.pid(job)

    def control(self, verb: str, job: str) -> None:
        run(f"/sbin/{verb}", job)

    def sets(self, job: str, variable: str) -> None:
        """Changes the job's environment, as an operator would."""
        self.install(job, f"{self.job_file(job).read_text()}\nenv {variable}\n")

    def loses_power(self) -> None:
        """Ends all of ann's and clojars' at once; Upstart then starts the jobs, as after a boot."""
        run("pkill", "-STOP", "-u", f"{ANN},clojars")  # none of them sees the end of another
        # The end of ann's shell, which leads the session, would wake the tool: it would revert.
        for user in ("clojars", ANN):
            run("pkill", "-KILL", "-u", user)

    def boot(self) -> None:
        """Starts both jobs, as a boot does: no respawn from before it counts."""
        for job in ("clojars", "clojars-backup"):
            subprocess.run(["/sbin/stop", job], capture_output=True, check=False)
            self.control("start", job)

    @contextmanager
    def nginx(self) -> Iterator[None]:
        with subprocess.Popen(["nginx", "-g", "daemon off;"]) as process:
            try:
                yield
            finally:
                process.terminate()

    @property
    def system_log(self) -> str:
        return "\n".join(self._heard)


class OfSystemd:
    """A real one, with its own files. This process goes inside and sees them; so does what it starts."""

    starts_jvm = "ExecStart=/usr/local/lib/clojars/java -Xmx512m -jar"
    reloads_nginx = "systemctl reload nginx"
    without_stream = "--nailgun none"
    log_of_the_backup = "No settings.edn on the class path"
    allowed = (
        "/usr/bin/systemctl reset-failed clojars.service",
        "/usr/bin/systemctl restart clojars-backup.service",
    )
    refused = (
        "/usr/bin/systemctl restart nginx.service",
        "/usr/bin/systemctl restart clojars.service clojars-backup.service",
        "/usr/bin/systemctl status clojars.service",
        "/usr/bin/systemctl restart",
    )

    def __init__(self, scratch: Path, power: ExitStack) -> None:
        self._scratch = scratch
        self._power = power

    @classmethod
    @contextmanager
    def made(cls, scratch: Path) -> Iterator[OfSystemd]:
        """Boots it."""
        files = scratch / "machine/over"  # that live longer than it
        files.mkdir(parents=True)
        mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(files))
        with ExitStack() as power:
            machine = cls(scratch, power)
            machine.boot()
            run("userdel", "--remove", "clojars")  # setup shall make it
            yield machine

    def boot(self) -> None:
        """Turns it on, and goes inside."""
        shared = (PROJECT, PYTHON, PACKAGES, self._scratch)
        machine = SystemdMachine.started(self._scratch / "machine", *shared)
        self._power.enter_context(inside(self._power.enter_context(machine).pid))
        have_the_tool()

    def loses_power(self) -> None:
        """All its processes are gone at once, and this one is outside again."""
        self._power.close()

    def job_file(self, job: str) -> Path:
        return Path(f"/etc/systemd/system/{job}.service")

    def install(self, job: str, text: str) -> None:
        self.job_file(job).write_text(text)
        run("systemctl", "daemon-reload")

    def pid(self, job: str) -> int | None:
        return int(run("systemctl", "show", "--value", "-p", "MainPID", f"{job}.service")) or None

    def control(self, verb: str, job: str) -> None:
        run("systemctl", verb, f"{job}.service")

    def sets(self, job: str, variable: str) -> None:
        drop_ins = self.job_file(job).with_suffix(".service.d")
        drop_ins.mkdir()
        write(drop_ins / "own.conf", f"[Service]\nEnvironment={variable}\n")

    @contextmanager
    def nginx(self) -> Iterator[None]:
        run("systemctl", "enable", "--quiet", "--now", "nginx.service")
        yield

    @property
    def system_log(self) -> str:
        return run("journalctl", "--no-pager", "--output=cat", "-t", "deploy-clojars")


@contextmanager
def inside(pid: int) -> Iterator[None]:
    """This process sees the files that the process sees, and starts its own where that one is."""
    libc = ctypes.CDLL(None, use_errno=True)
    with ExitStack() as stack:
        namespaces = {}
        for of in (pid, os.getpid()):
            namespaces[of] = [
                stack.enter_context(open(f"/proc/{of}/ns/{name}"))
                for name in ("pid", "net", "ipc", "uts", "cgroup", "mnt")
            ]

        def enter(of: int) -> None:
            for namespace in namespaces[of]:
                if libc.setns(namespace.fileno(), 0) != 0:
                    raise OSError(ctypes.get_errno(), "setns", namespace.name)

        enter(pid)
        try:
            yield
        finally:
            enter(os.getpid())


@dataclass
class Machine:
    """The machine inside."""

    manager: OfUpstart | OfSystemd
    repository: ClojureRepository

    @classmethod
    @contextmanager
    def made(cls) -> Iterator[Machine]:
        """The machine, with a person `ann` who may become clojars and nothing installed yet."""
        of = OfSystemd if os.environ[MANAGER] == "systemd" else OfUpstart
        bring_loopback_up()
        with of.made(Path(os.environ[INSIDE])) as manager:
            Path("/etc/gitconfig").write_text("[safe]\n\tdirectory = *\n")
            Path("/etc/nginx/sites-enabled/default").unlink(missing_ok=True)
            run("useradd", "--create-home", "--shell", "/bin/bash", ANN)
            write(Path("/etc/sudoers.d/people"), f"{ANN} ALL=(clojars) NOPASSWD: ALL\n", 0o440)
            repository = make_repository(OPT / "clojars-web")
            write(
                Path("/etc/deploy-clojars.toml"),
                f'repository = "{repository.url}"\n'
                "[health]\ntimeout = 240\nanswer_timeout = 30\nsettle = 0.5\ninterval = 0.1\n",
            )
            yield cls(manager, repository)

    def set_up(self) -> None:
        """`deploy-clojars setup`, as root, and what its last lines say."""
        result = run("/usr/local/bin/deploy-clojars", "setup")
        assert "next: sudo -iu clojars deploy-clojars TAG" in result
        lein = Path("/home/clojars/.lein")
        lein.mkdir()
        write(
            lein / "profiles.clj", '{:user {:local-repo "/usr/share/maven-repo" :offline? true}}\n'
        )
        run("chown", "-R", "clojars:", str(lein), str(self.repository.directory))
        with Path("/etc/default/clojars").open("a") as settings:
            settings.write("JAVA_TOOL_OPTIONS=-XX:TieredStopAtLevel=1\n")  # starts in less time

    def has(self, tag: str) -> None:
        """A release that was built before the test began is there, as if a deploy had installed it."""
        jar = f"clojars-web-{tag}-standalone.jar"
        there = f"/home/clojars/releases/{jar}"
        shutil.copy(Path(os.environ[INSIDE], "jars", jar), there)
        run("chown", "clojars:", there)

    @contextmanager
    def nginx(self) -> Iterator[None]:
        """The real nginx with the machine's own configuration."""
        Path("/var/lib/nginx").mkdir(exist_ok=True)
        with self.manager.nginx():
            wait_for(lambda: self.get("http://127.0.0.1:8099/pool") == "primary", "nginx")
            yield

    @contextmanager
    def ann_types(self, *words: str, timeout: float = 300) -> Iterator[Terminal]:
        """Ann at her terminal: `sudo -iu clojars deploy-clojars WORDS`."""
        typed = shlex.join(["sudo", "-iu", "clojars", "deploy-clojars", *words])
        # A shell of her own leads the session: the kernel tells it alone that the window was closed.
        ann = ["--reuid", ANN, "--regid", ANN, "--init-groups", "--", "bash", "--norc", "-i", "-c"]
        argv = ["setpriv", *ann, f"{typed}; exit $?"]
        env = {"PATH": os.environ["PATH"], "TERM": "xterm", "HOME": f"/home/{ANN}"}
        with at_a_terminal(argv, env, Path("/"), timeout) as terminal:
            yield terminal

    def as_clojars(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs a command as clojars, without a terminal."""
        return subprocess.run(
            ["runuser", "-u", "clojars", "--", *words],
            cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            timeout=300,
        )  # fmt: skip

    @classmethod
    def get(cls, url: str) -> str | None:
        """What a web server answers; None if it does not."""
        status, text = cls.answer(url)
        return text.strip() if status == 200 else None

    @staticmethod
    def answer(url: str) -> tuple[int, str]:
        """The status and the page of a web server; 0 if it does not answer."""
        request = urllib.request.Request(url, headers={"Host": "clojars.org"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except (OSError, ValueError, http.client.HTTPException):
            return 0, ""


def hear(log: socket.socket, heard: list[str]) -> None:
    """Takes down what the system's log is told."""
    with suppress(OSError):
        while True:
            heard.append(log.recv(4096).decode("utf-8", "replace"))


def have_the_tool() -> None:
    """/usr/local/bin/deploy-clojars, from where every user can read it."""
    for source, name in ((PYTHON, "python"), (PROJECT / "src", "src"), (PACKAGES, "packages")):
        (OPT / name).mkdir(exist_ok=True)
        mount("--bind", str(source), str(OPT / name))
    python = OPT / "python/bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    write(
        Path("/usr/local/bin/deploy-clojars"),
        "#!/bin/sh\n"
        f"PYTHONPATH={OPT}/src:{OPT}/packages PYTHONDONTWRITEBYTECODE=1 "
        f'exec {python} -m deploy_clojars "$@"\n',
        0o755,
    )
