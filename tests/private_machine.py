"""Namespaces for tests that need root: nothing that they do reaches the real machine.

`in_private_machine(FILE)` runs the tests in FILE, with pytest, in mount, network and process
namespaces of their own. What they find there is the real machine's until they lay a throwaway copy
over it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

import msgspec
from programs import require_program, skip_or_fail

PROJECT = Path(__file__).parents[1]
PYTHON = Path(sys.base_prefix)
PACKAGES = Path(msgspec.__file__).parents[1]
WHAT_THE_TESTS_RUN = (PROJECT, PYTHON, PACKAGES)
OPT = Path("/opt")
ANN = "ann"

# Tells the tests that they are inside; its value is a directory that the real machine throws away.
INSIDE = "DEPLOY_CLOJARS_PRIVATE_MACHINE"

# Namespaces for the network and for processes; the latter end with the first of them.
ALONE = ("--net", "--pid", "--fork", "--kill-child", "--mount-proc")


def in_private_machine(file: Path, scratch: Path, **environment: str) -> None:
    """Runs the tests in the file inside; fails with what they printed if one of them does."""
    if os.geteuid() != 0:
        skip_or_fail("needs root, for namespaces and for sudo's own files")
    require_program(
        "unshare", "sudo", "nginx", "visudo", "lein", "java", "useradd", "runuser", "setpriv"
    )
    run_tests(file, scratch, *ALONE, **environment)


def in_a_private_network(file: Path, scratch: Path) -> None:
    """Runs the tests in the file in namespaces of their own that need none of the programs of a host."""
    run_tests(file, scratch, *ALONE)


def with_private_mounts(file: Path, scratch: Path, *namespaces: str) -> None:
    """Runs the tests in the file where what they mount is theirs alone, and what `namespaces` name."""
    if os.geteuid() != 0:
        skip_or_fail("needs root, to mount")
    require_program("unshare", "mount", "git")
    run_tests(file, scratch, *namespaces)


def run_tests(file: Path, scratch: Path, *namespaces: str, **environment: str) -> None:
    """Runs pytest in namespaces of its own, for mounts and for what else is named."""
    result = subprocess.run(
        [
            *("unshare", "--mount", *namespaces),
            *("--propagation", "private", "--", sys.executable, "-m", "pytest", "-q", "-x"),
            *("-p", "no:xdist", "-p", "no:cacheprovider", "--basetemp", scratch / "tests"),
            *("-rs", file),
        ],
        env={**without_pytest(os.environ), INSIDE: str(scratch), **environment},
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1400,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    assert "skipped" not in result.stdout, result.stdout


def without_pytest(environment: os._Environ[str]) -> dict[str, str]:
    """The environment without what tells a pytest that it is part of another one.

    But its ports are those of that one's worker: it may share the network with the others.
    """
    kept = "PYTEST_XDIST_WORKER"
    return {
        name: value
        for name, value in environment.items()
        if name == kept or not name.startswith("PYTEST_")
    }


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


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Writes a file with its mode."""
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
