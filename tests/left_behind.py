"""Nothing that the tests start or write outlives them, however they end.

Processes: all carry the run's mark, or are children of such. A watchdog ends them when pytest has ended, also by SIGKILL.
Files, where the tests run as root: each worker of pytest-xdist has mounts of its own. There all is
read-only but the project and pytest's temporary directory; the directories of temporary and of
variable files have throwaway copies, in which `files` finds what a test has left.
"""

from __future__ import annotations

import ctypes
import os
import signal
import stat
import subprocess
import sys
import time
import uuid
from contextlib import ExitStack, suppress
from pathlib import Path

# The tool hands LC_* down to the tests and the build of a tag, and nearly nothing else.
MARK = "LC_TESTS_OF_DEPLOY_CLOJARS"
VARIABLE = ("/var", "/run", "/dev/shm", str(Path.home()), "/tmp")  # the copies may be in the last

# What programs write that know no other place, by the beginning of the path.
EXCUSED = (
    "/tmp/hsperfdata_",  # every JVM's own counters; the next one removes those of a dead one
)

CLONE_NEWNS, MS_BIND, MS_REC = 0x20000, 0x1000, 0x4000  # unshare(2), mount(2)


# --- processes ------------------------------------------------------------------------------------


def mark_processes() -> subprocess.Popen[bytes]:
    """Marks what this process starts from now on, and starts the watchdog."""
    mark = uuid.uuid4().hex
    os.environ.pop(MARK, None)
    # It ends when the other end of its standard input is closed, as the kernel does for the dead.
    watchdog = subprocess.Popen(
        [sys.executable, "-IS", __file__, mark], stdin=subprocess.PIPE, start_new_session=True
    )
    os.environ[MARK] = mark
    return watchdog


def processes(mark: str) -> list[int]:
    """The PIDs of the processes with the mark, and of all below them, but for this one.

    nginx writes its title over its environment: it is found as the child of who started it.
    """
    entry = f"{MARK}={mark}".encode()
    found = []
    children: dict[int, list[int]] = {}
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            pid = int(directory.name)
            state, parent = (directory / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                children.setdefault(int(parent), []).append(pid)
            if entry in (directory / "environ").read_bytes().split(b"\0"):
                found.append(pid)
    for pid in found:  # it grows
        found += [child for child in children.get(pid, []) if child not in found]
    return [pid for pid in found if pid != os.getpid()]


def described(pid: int) -> str:
    """The PID and its command line."""
    with suppress(OSError):
        return f"{pid} {Path(f'/proc/{pid}/cmdline').read_text().replace(chr(0), ' ')}"
    return str(pid)


def end(mark: str) -> None:
    """Kills every process with the mark, and all below them; those that they still start, too."""
    deadline = time.monotonic() + 30
    while (pids := processes(mark)) and time.monotonic() < deadline:
        with ExitStack() as stack:
            # The descriptors come first: what is asked then is of the processes that they name.
            descriptors = {}
            for pid in pids:
                with suppress(OSError):
                    descriptors[pid] = os.pidfd_open(pid)
                    stack.callback(os.close, descriptors[pid])
            for pid in processes(mark):  # one look for all: a dead parent shows no children
                with suppress(OSError, KeyError):
                    signal.pidfd_send_signal(descriptors[pid], signal.SIGKILL)
        time.sleep(0.01)


# --- files ----------------------------------------------------------------------------------------


class Files:
    """The throwaway copies, which are seen by this process and by all that it starts."""

    def __init__(self, scratch: Path, *kept: Path) -> None:
        """Makes them, with what they need in `scratch`; what is below `kept` is no copy."""
        from private_machine import lay_over, mount

        self._copies: dict[str, tuple[int, Path]] = {}  # the original, and what was written over it
        libc = ctypes.CDLL(None, use_errno=True)
        if os.geteuid() != 0 or libc.unshare(CLONE_NEWNS) != 0:
            return  # in a container root itself may not mount
        mount("--make-rprivate", "/")
        opened = [os.open(path, os.O_PATH) for path in kept]
        for name in VARIABLE:
            if Path(name).is_dir():
                original = os.open(name, os.O_PATH)
                self._copies[name] = original, lay_over(Path(name), scratch)
        for path, descriptor in zip(kept, opened, strict=True):
            # By its descriptor: a copy may lie over its path.
            source = f"/proc/self/fd/{descriptor}".encode()
            if libc.mount(source, bytes(path), None, MS_BIND | MS_REC, None) != 0:
                raise OSError(ctypes.get_errno(), "mount", str(path))
            os.close(descriptor)
        mount("-o", "remount,bind,ro", "/")

    @property
    def left(self) -> list[str]:
        """The files that were written outside the temporary directory and are there yet."""
        found = []
        for name, (original, upper) in self._copies.items():
            for directory, directories, files in os.walk(upper):
                for path in (Path(directory, each) for each in [*directories, *files]):
                    inside = path.relative_to(upper)
                    with suppress(
                        FileNotFoundError
                    ):  # a process that ends has removed it meanwhile
                        status = path.lstat()
                        deleted = stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
                        # What an old directory has in it is found by itself.
                        is_old = (
                            path.is_dir() and Path(f"/proc/self/fd/{original}", inside).is_dir()
                        )
                        if not deleted and not is_old:
                            found.append(str(Path(name, inside)))
        return [path for path in found if not path.startswith(EXCUSED)]


if __name__ == "__main__":
    sys.stdin.buffer.read()
    end(sys.argv[1])
