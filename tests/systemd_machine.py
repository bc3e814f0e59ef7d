"""A throwaway host with a real systemd as its process 1, in namespaces of its own.

Its files are an overlay of the real ones, gone with it; its network is a loopback of its own.
`run_tests_inside` runs tests in it: there the manager of every host is that systemd.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from clojure_jars import SHARED, shared_directory
from inherited import heed_all_signals
from little_host import wait_for
from private_machine import INSIDE, PROJECT, without_pytest
from programs import require_program, skip_or_fail
from standin.upstart import Upstart

# Tells tests and programs of the tests that process 1 is a systemd of theirs.
INSIDE_SYSTEMD = "DEPLOY_CLOJARS_ON_SYSTEMD"

CGROUPS = "deploy-clojars-test-"  # how their names begin
ABANDONED = 3600.0  # seconds, after which an empty one was left by a test that was killed

# With the root of the cgroup namespace set already; $1 is a directory for the machine's files, $2 one
# with the files of another machine that lie below its own, or nothing, and what follows are
# directories of the test's that the machine has, too.
BOOT = r"""
set -eu
root=$1/root
mkdir -p "$root"
# Whoever has made it keeps the machine's files over a power cut.
if [ ! -d "$1/over" ]; then
    mkdir "$1/over"
    mount -t tmpfs -o mode=755 tmpfs "$1/over"
fi
[ -d "$1/over/upper" ] || [ "$2" ] || first_boot=yes
mkdir -p "$1/over/upper" "$1/over/scratch"
lower=${2:+$2:}/
mount -t overlay -o "lowerdir=$lower,upperdir=$1/over/upper,workdir=$1/over/scratch" overlay "$root"
shift 2
cd "$root"
mount -t proc proc proc
# Else systemd-sysctl would set the real kernel's.
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
for name in dev run tmp; do mount -t tmpfs -o mode=755 tmpfs $name; done
chmod 1777 tmp
mkdir dev/pts
mkdir -m 1777 dev/shm
for name in null zero full random urandom tty; do
    touch dev/$name
    mount --bind /dev/$name dev/$name
done
mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s fd/0 dev/stdin
ln -s fd/1 dev/stdout
ln -s fd/2 dev/stderr
for shared; do
    mkdir -p "$root$shared"
    mount --bind "$shared" "$root$shared"
done
# Nothing that the real machine starts is started here, but what this one enables.
if [ "${first_boot-}" ]; then
    rm -rf etc/systemd/system/*.wants var/log/journal
fi
: >etc/machine-id
ln -sf /dev/null etc/systemd/system/systemd-modules-load.service
enabled=$(ls etc/systemd/system/multi-user.target.wants 2>/dev/null | tr '\n' ' ')
cat >etc/systemd/system/lab.target <<END
[Unit]
Wants=dbus.socket systemd-journald.service systemd-tmpfiles-setup.service $enabled
Requires=basic.target
After=basic.target
AllowIsolate=yes
END
mkdir -p old
pivot_root . old
umount -l old
getent passwd clojars >/dev/null ||
    useradd --create-home --user-group --shell /bin/bash clojars
exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
    /lib/systemd/systemd --system --unit=lab.target --show-status=0 </dev/null
"""


@dataclass
class Machine:
    """The host; `pid` is that of its process 1, as the test sees it."""

    pid: int

    @classmethod
    @contextmanager
    def started(
        cls, directory: Path, *shared: Path, below: Path | None = None
    ) -> Iterator[Machine]:
        """Boots it, with its files in `directory`; `shared` directories are the test's and its own.

        Its files lie over those in `below`, what a machine that is down has written, and both over
        the real ones.
        """
        require_systemd()
        directory.mkdir(exist_ok=True)
        group = _cgroup_of_machines() / f"{CGROUPS}{uuid.uuid4().hex}"
        group.mkdir()
        console = directory / "console"
        words = [
            *("unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--cgroup", "--fork"),
            *("--kill-child", "--propagation", "private", "--"),
            *("sh", "-c", BOOT, "boot", directory, below or "", *shared),
        ]
        enter = f"echo 0 >{group}/cgroup.procs; exec {shlex.join(map(str, words))}"
        with console.open("wb") as output:
            parent = subprocess.Popen(
                ["sh", "-c", enter], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        try:
            machine = cls(_process_1_of(parent, console))
            state = machine.run("systemctl", "is-system-running", "--wait", check=False)
            if state.stdout.strip() != "running":
                failed = machine.run("systemctl", "--failed", "--plain", check=False)
                raise AssertionError(state.stdout + failed.stdout + console.read_text())
            yield machine
        finally:
            parent.kill()  # and the kernel its child, and all that is in there
            parent.wait()
            _remove(group)

    def command(self, *words: object) -> list[str]:
        """The words that run a command there."""
        enter = ["nsenter", "-t", str(self.pid), "-m", "-p", "-n", "-i", "-u", "-C", "--"]
        return [*enter, *map(str, words)]

    def run(
        self, *words: object, check: bool = True, timeout: float = 300, text: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command there as root; `text` is its standard input."""
        result = subprocess.run(
            self.command(*words), input=text or "", capture_output=True, text=True,
            timeout=timeout, check=False, cwd="/",
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                 "HOME": "/root", "LC_ALL": "C"},
        )  # fmt: skip
        assert not check or result.returncode == 0, f"{words}: {result.stderr}{result.stdout}"
        return result

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Writes a file there."""
        self.run("install", "-D", "-m", f"{mode:o}", "/dev/stdin", path, text=text)

    def outside(self, pid: int) -> int:
        """The test's own number for a process of the machine."""
        for process in psutil.Process(self.pid).children(recursive=True):
            with suppress(OSError):
                status = Path(f"/proc/{process.pid}/status").read_text()
                [numbers] = [line.split() for line in status.splitlines() if "NSpid" in line]
                if int(numbers[-1]) == pid:
                    return process.pid
        raise LookupError(pid)


def run_tests_inside(
    file: Path, factory: pytest.TempPathFactory, scratch: Path, *words: str
) -> None:
    """Runs the tests in the file in a machine; fails with what they printed if one of them does.

    `scratch` is a directory for what they write, and `words` are more arguments for pytest.
    """
    without = ("-p", "no:xdist", "-p", "no:cacheprovider")
    jars = shared_directory(factory)
    result = run_inside(
        scratch, "-m", "pytest", "-q", "-x", "-rs", *without,
        "--basetemp", str(scratch / "tests"), *words, str(file),
        shared=[jars], env={SHARED: str(jars)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1800,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
    assert "skipped" not in result.stdout, result.stdout


def run_inside(
    scratch: Path, *words: str, shared: Sequence[Path] = (), env: Mapping[str, str], **options: Any
) -> subprocess.CompletedProcess[str]:
    """Runs Python with these arguments in a machine that is started for it, from the project.

    What the machine has in common with the test are the project, its Python, `scratch` and the
    `shared` directories. `options` are those of subprocess.run().
    """
    # A Python on another file system is not in an overlay of /.
    root = os.stat("/").st_dev
    pythons = {Path(each) for each in (sys.prefix, sys.base_prefix) if os.stat(each).st_dev != root}
    directories = [*pythons, PROJECT, scratch, *shared]
    with Machine.started(scratch / "machine", *directories) as machine:
        return subprocess.run(
            machine.command("env", "--chdir", PROJECT, sys.executable, *words),
            env={**without_pytest(os.environ), INSIDE: str(scratch), INSIDE_SYSTEMD: "1", **env},
            stdin=subprocess.DEVNULL, check=False, **options,
        )  # fmt: skip


class RealSystemd:
    """Process 1 itself, as a service manager of hosts of the tests that run inside."""

    manager = "systemd"
    bin = Path("/usr/bin")
    units = Path("/etc/systemd/system")

    def __init__(self) -> None:
        self._installed: set[str] = set()
        self._began = time.time()

    @classmethod
    @contextmanager
    def opened(cls) -> Iterator[RealSystemd]:
        systemd = cls()
        try:
            yield systemd
        finally:
            systemd.close()

    def install(self, job: str, text: str) -> None:
        """Writes the unit, which is read unless it runs.

        It is enabled, as on a host: so systemd remembers what became of it.
        """
        unit = self.units / f"{job}.service"
        self._installed.add(unit.name)
        is_new = not unit.exists()
        unit.write_text(text)
        if is_new:
            self._call("enable", unit.name)
        elif self.pid(job) is None:
            self._call("daemon-reload")

    def control(self, verb: str, job: str) -> None:
        """Starts, restarts or stops a unit, as an operator would."""
        self._call("reset-failed")  # or one that failed again and again would not be started
        self._call(verb, f"{job}.service")

    def pid(self, job: str) -> int | None:
        """The PID of the unit's main process."""
        return int(self._call("show", "--value", "-p", "MainPID", f"{job}.service")) or None

    def printed(self, job: str) -> str:
        """What the unit has printed."""
        return subprocess.run(
            ["journalctl", "-q", "--no-pager", "-o", "cat", f"--since=@{self._began}", "-u", job],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip

    def close(self) -> None:
        """Stops the units; their files are left for the next host, which has its own."""
        if self._installed:
            self._call("stop", *self._installed)
            self._call("reset-failed")

    def _call(self, *words: str) -> str:
        result = subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"systemctl {' '.join(words)}: {result.stderr}"
        return result.stdout


def manager_of_a_host(directory: Path) -> AbstractContextManager[Upstart | RealSystemd]:
    """The manager for a host: systemd in a machine of its own, else Upstart's stand-in."""
    if INSIDE_SYSTEMD in os.environ:
        return RealSystemd.opened()
    return Upstart.started(directory)


def require_systemd() -> None:
    """Skips the test, or fails it in CI, where no systemd can be started."""
    if os.geteuid() != 0:
        skip_or_fail("needs root, for namespaces with a systemd in them")
    require_program("unshare", "nsenter", "systemctl", "dbus-daemon", "useradd")
    if not _cgroup_of_machines().exists():
        skip_or_fail("needs a cgroup of version 2 that root can write")


def _cgroup_of_machines() -> Path:
    found = Path("/sys/fs/cgroup/unified")
    return found if found.exists() else Path("/sys/fs/cgroup")


def _process_1_of(parent: subprocess.Popen[bytes], console: Path) -> int:
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")

    def booted() -> int | None:
        assert parent.poll() is None, console.read_text()
        for pid in children.read_text().split():
            # Before its exec it is where a systemd of the real machine has a socket, too.
            with suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text() != "systemd\n":
                    continue
            socket = ["nsenter", "-t", pid, "-m", "test", "-S", "/run/systemd/private"]
            if subprocess.run(socket, capture_output=True, check=False).returncode == 0:
                return int(pid)
        return None

    return int(wait_for(booted, "systemd is up"))


def _remove(group: Path) -> None:
    """Removes the cgroup, and those of machines whose tests were killed."""

    def is_gone() -> bool:
        _remove_what_is_empty(group)
        return not group.exists()

    wait_for(is_gone, "the machine's cgroup is empty")
    for other in group.parent.glob(f"{CGROUPS}*"):
        with suppress(OSError):  # removed meanwhile
            is_used = "populated 1" in (other / "cgroup.events").read_text()
            # One that boots this very moment has no process yet. One that runs must lose nothing:
            # its systemd makes a cgroup for a unit before there is a process for it.
            is_young = time.time() - other.stat().st_mtime < ABANDONED
            if not (is_used or is_young):
                _remove_what_is_empty(other)


def _remove_what_is_empty(group: Path) -> None:
    for directory, _, _ in os.walk(group, topdown=False):
        with suppress(OSError):  # in use
            os.rmdir(directory)


class Systemd:
    """The machine's systemd as tests of instances use it: like the Upstart stand-in."""

    def __init__(self, machine: Machine, directory: Path) -> None:
        self.machine = machine
        self.bin = directory / "bin"
        self.bin.mkdir()
        for program in ("systemctl", "journalctl"):
            path = self.bin / program
            path.write_text(f'#!/bin/sh\nexec {shlex.join(machine.command(program))} "$@"\n')
            path.chmod(0o755)

    def install(self, job: str, text: str) -> None:
        """Puts a unit file there that is enabled, so that systemd keeps what it knows of it."""
        self.machine.write(f"/etc/systemd/system/{job}.service", text)
        self.machine.run("systemctl", "daemon-reload")
        self.machine.run("systemctl", "enable", f"{job}.service", check=False)

    def pid(self, job: str) -> int | None:
        """The main process, by the machine's numbers."""
        shown = self.machine.run("systemctl", "show", "--value", "-p", "MainPID", f"{job}.service")
        return int(shown.stdout) or None


def kill(machine: Machine, pid: int, signum: signal.Signals = signal.SIGKILL) -> None:
    """Sends a signal to a process of the machine."""
    machine.run("kill", f"-{signum.value}", pid)


if __name__ == "__main__":  # python -m systemd_machine MODULE WORD…: that module, inside
    heed_all_signals()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the machine is ended, too
    with tempfile.TemporaryDirectory(prefix="systemd-") as name:
        ended = run_inside(Path(name), "-m", *sys.argv[1:], env={"TMPDIR": name})
    sys.exit(ended.returncode)
