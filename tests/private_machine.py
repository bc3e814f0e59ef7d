"""A machine of its own for tests that need root: nothing that they do reaches the real one.

`in_private_machine(FILE)` runs the tests in FILE, with pytest, in mount, network and process
namespaces of their own. There `Machine.made` lays throwaway copies over /etc, /home, /var and where
programs are, and starts the Upstart stand-in with its programs in /sbin.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
import socket
import struct
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
from clojure_repository import ClojureRepository, make_repository
from little_host import Terminal, at_a_terminal, wait_for
from programs import require_program, skip_or_fail
from standin.upstart import INITCTL, PROGRAMS, Upstart

PROJECT = Path(__file__).parents[1]
OPT = Path("/opt")
ANN = "ann"

# Tells the tests that they are inside; its value is a directory that the real machine throws away.
INSIDE = "DEPLOY_CLOJARS_PRIVATE_MACHINE"


def in_private_machine(file: Path, scratch: Path) -> None:
    """Runs the tests in the file inside; fails with what they printed if one of them does."""
    if os.geteuid() != 0:
        skip_or_fail("needs root, for namespaces and for sudo's own files")
    require_program(
        "unshare", "sudo", "nginx", "visudo", "lein", "java", "useradd", "runuser", "setpriv"
    )
    namespaces = ("--net", "--pid", "--fork", "--kill-child", "--mount-proc")
    run_tests(file, scratch, *namespaces)


def with_private_mounts(file: Path, scratch: Path, *namespaces: str) -> None:
    """Runs the tests in the file where what they mount is theirs alone, and what `namespaces` name."""
    if os.geteuid() != 0:
        skip_or_fail("needs root, to mount")
    require_program("unshare", "mount", "git")
    run_tests(file, scratch, *namespaces)


def run_tests(file: Path, scratch: Path, *namespaces: str) -> None:
    """Runs pytest in namespaces of its own, for mounts and for what else is named."""
    result = subprocess.run(
        [
            *("unshare", "--mount", *namespaces),
            *("--propagation", "private", "--", sys.executable, "-m", "pytest", "-q", "-x"),
            *("-p", "no:xdist", "-p", "no:cacheprovider", "--basetemp", scratch / "tests"),
            *("-rs", file),
        ],
        env={**without_pytest(os.environ), INSIDE: str(scratch)},
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    assert "skipped" not in result.stdout, result.stdout


def without_pytest(environment: os._Environ[str]) -> dict[str, str]:
    """The environment without what tells a pytest that it is part of another one."""
    return {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}


@dataclass
class Machine:
    """The machine inside."""

    upstart: Upstart
    repository: ClojureRepository
    system_log: list[str]

    @classmethod
    @contextlib.contextmanager
    def made(cls) -> Iterator[Machine]:
        """The machine, with a person `ann` who may become clojars and nothing installed yet."""
        scratch = Path(os.environ[INSIDE])
        for directory in ("/etc", "/var", "/tmp", "/usr/sbin", "/usr/local"):
            lay_over(Path(directory), scratch / "over")
        for directory in ("/home", "/opt", "/run"):
            mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", directory)
        make_devices(scratch)
        bring_loopback_up()
        install_the_tool()
        Path("/etc/gitconfig").write_text("[safe]\n\tdirectory = *\n")
        Path("/etc/nginx/sites-enabled/default").unlink(missing_ok=True)
        run("useradd", "--create-home", "--shell", "/bin/bash", ANN)
        write(Path("/etc/sudoers.d/people"), f"{ANN} ALL=(clojars) NOPASSWD: ALL\n", 0o440)
        repository = make_repository(OPT / "clojars-web")
        write(
            Path("/etc/deploy-clojars.toml"),
            f'repository = "{repository.url}"\n[health]\ntimeout = 240\nsettle = 0.5\ninterval = 0.1\n',
        )
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
            yield cls(upstart, repository, heard)

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

    @contextlib.contextmanager
    def nginx(self) -> Iterator[None]:
        """The real nginx with the machine's own configuration."""
        Path("/var/lib/nginx").mkdir(exist_ok=True)
        with subprocess.Popen(["nginx", "-g", "daemon off;"]) as process:
            try:
                wait_for(lambda: self.get("http://127.0.0.1:8099/pool") == "primary", "nginx")
                yield
            finally:
                process.terminate()

    @contextlib.contextmanager
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

    @staticmethod
    def get(url: str) -> str | None:
        """What a web server answers; None if it does not."""
        request = urllib.request.Request(url, headers={"Host": "clojars.org"})
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return str(answer.read().decode().strip())
        except (OSError, ValueError):
            return None


def hear(log: socket.socket, heard: list[str]) -> None:
    """Takes down what the system's log is told."""
    with contextlib.suppress(OSError):
        while True:
            heard.append(log.recv(4096).decode("utf-8", "replace"))


def run(*words: str) -> str:
    """Runs a program and returns what it printed; fails if it fails."""
    result = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, f"{words}: {result.stdout}{result.stderr}"
    return result.stdout


def mount(*words: str) -> None:
    """Mounts, in this namespace alone."""
    run("mount", *words)


def lay_over(directory: Path, scratch: Path) -> Path:
    """A throwaway copy: what is written goes elsewhere, into the directory that is returned."""
    own = scratch / str(directory).strip("/").replace("/", "-")
    upper, work = own / "upper", own / "work"
    if not own.exists():
        own.mkdir(parents=True)
        mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(own))
        upper.mkdir()
        shutil.copymode(directory, upper)
        work.mkdir()
    options = f"lowerdir={directory},upperdir={upper},workdir={work}"
    mount("-t", "overlay", "-o", options, "overlay", str(directory))
    return upper


def make_devices(scratch: Path) -> None:
    """/dev with nothing in it but what programs need, so that /dev/log is this machine's own."""
    new = scratch / "dev"
    new.mkdir()
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(new))
    for name in ("null", "zero", "full", "random", "urandom", "tty"):
        (new / name).touch()
        mount("--bind", f"/dev/{name}", str(new / name))
    (new / "shm").mkdir(mode=0o1777)
    (new / "pts").mkdir()
    options = "newinstance,ptmxmode=0666,mode=620,gid=5"
    mount("-t", "devpts", "-o", options, "devpts", str(new / "pts"))
    (new / "ptmx").symlink_to("pts/ptmx")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        (new / name).symlink_to(f"/proc/self/fd/{number}")
    (new / "fd").symlink_to("/proc/self/fd")
    mount("--move", str(new), "/dev")


def bring_loopback_up() -> None:
    """A new network namespace has it, but down; iproute2 may not be installed."""
    set_flags, up_and_running = 0x8914, 0x41  # netdevice(7): SIOCSIFFLAGS, IFF_UP | IFF_RUNNING
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, set_flags, struct.pack("16sh14x", b"lo", up_and_running))


def install_the_tool() -> None:
    """/usr/local/bin/deploy-clojars, from where every user can read it."""
    packages = Path(msgspec.__file__).parents[1]
    for source, name in (
        (sys.base_prefix, "python"),
        (PROJECT / "src", "src"),
        (packages, "packages"),
    ):
        (OPT / name).mkdir()
        mount("--bind", str(source), str(OPT / name))
    python = OPT / "python/bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    write(
        Path("/usr/local/bin/deploy-clojars"),
        "#!/bin/sh\n"
        f"PYTHONPATH={OPT}/src:{OPT}/packages PYTHONDONTWRITEBYTECODE=1 "
        f'exec {python} -m deploy_clojars "$@"\n',
        0o755,
    )


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Writes a file with its mode."""
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
