"""What the kernel says of processes: their tree, their open files, whose run they belong to."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psutil

from deploy_clojars.machine import connections

# Every process of a checkout, a test run or a build carries it, which is how a stray is found.
RUN_VARIABLE = "DEPLOY_CLOJARS_RUN"

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


@dataclass(frozen=True)
class OpenFile:
    """An open regular file; the name is the one it had when it was opened."""

    identity: tuple[int, int]  # device, inode
    name: str


@dataclass(frozen=True)
class Process:
    """A process; when it has ended, another one may get its PID at once."""

    pid: int
    started: int | None  # in clock ticks after the boot; None if that is hidden


def process(pid: int) -> Process:
    """The process that has this PID now."""
    fields = _stat_of(pid)
    return Process(pid, None if fields is None else int(fields[19]))


@dataclass(frozen=True)
class Tree:
    """A process and its descendants, as far as this user may see them."""

    process: Process  # the first of them
    since: str | None  # when that started, ISO 8601, UTC; None if that is hidden
    hidden: str = ""  # why not all that they have open can be seen; empty if it can
    files: tuple[OpenFile, ...] = ()
    sockets: frozenset[int] = field(default_factory=frozenset)  # inodes

    @property
    def visible(self) -> bool:
        """Whether this user may see all that they have open."""
        return not self.hidden


def tree(pid: int) -> Tree | None:
    """Looks at a process and its descendants; None if it is gone.

    Raises OSError if this process itself lacks what it needs to look, such as a descriptor.
    """
    if not _exists(pid):
        return None
    files: list[OpenFile] = []
    sockets: set[int] = set()
    hidden = []
    for each in (pid, *descendants_of(pid)):
        try:
            _look_at_open_files(each, files, sockets)
        except (PermissionError, FileNotFoundError, ProcessLookupError):
            if _exists(each):
                hidden.append(_why_hidden(each))
    first = process(pid)
    if first.started is None and not _exists(pid):
        return None  # it has ended meanwhile; without its start it would count as another process
    return Tree(first, _since(first), next(iter(hidden), ""), tuple(files), frozenset(sockets))


def _exists(pid: int) -> bool:
    """Whether the process exists, even if a hidepid mount hides it (proc(5))."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    # One that has ended and was not waited for has nothing open any more.
    return (_stat_of(pid) or ["?"])[0] != "Z"


def _why_hidden(pid: int) -> str:
    """Why this user may not see what a process has open, to follow a colon."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as lines:
            uid = next(int(line.split()[1]) for line in lines if line.startswith("Uid:"))
    except OSError:
        return f"/proc hides PID {pid} from this user (its mount has hidepid)"
    if uid != os.geteuid():
        return f"PID {pid} is a process of user {uid}"
    return f"PID {pid} has more rights than its user, such as a file capability (see setcap(8))"


def _stat_of(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on (proc(5)); None if they cannot be read.

    psutil does not give them where a single other process is hidden.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:  # text takes twice the time
            return file.read().decode("utf-8", "replace").rpartition(")")[2].split()
    except (PermissionError, FileNotFoundError, ProcessLookupError):
        return None


@contextmanager
def end_of(pid: int) -> Iterator[tuple[int, ...]]:
    """A file that becomes readable when the process ends; none if it has ended already."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:  # it has ended, or the kernel is older than Linux 5.3
        yield ()
        return
    try:
        yield (descriptor,)
    finally:
        os.close(descriptor)


def descendants_of(pid: int, without: Collection[int] = ()) -> list[int]:
    """The PIDs of a process's descendants, except its children in `without` and their descendants.

    A process whose parent is hidden is not found.
    """
    # An instance has none as a rule, and a deploy looks dozens of times: to read what every process
    # of the machine has for a parent is a third of what a rollback costs.
    if _has_no_children(pid):
        return []
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and (fields := _stat_of(int(entry))) is not None:
            children.setdefault(int(fields[1]), []).append(int(entry))
    found = [each for each in children.get(pid, ()) if each not in without]
    for each in found:  # it grows meanwhile
        found += children.get(each, ())
    return found


def _has_no_children(pid: int) -> bool:
    """Whether the kernel says so; False where it cannot be told.

    Its lists are exact only where they are empty: a child that ends while they are read hides another.
    """
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb", buffering=0) as children:
                if children.read(1):
                    return False
    except OSError:  # it is hidden or has ended, or the kernel has no such lists
        return False
    return True


def _since(process: Process) -> str | None:
    if process.started is None:
        return None
    # Not by /proc/stat, which a /proc with subset=pid lacks.
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    started = booted + process.started / os.sysconf("SC_CLK_TCK")
    return datetime.fromtimestamp(started, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _look_at_open_files(pid: int, files: list[OpenFile], sockets: set[int]) -> None:
    for entry in os.scandir(f"/proc/{pid}/fd"):
        try:
            # stat() through /proc reaches the open file itself, also one without a name.
            found = os.stat(entry.path)
            if stat.S_ISSOCK(found.st_mode):
                sockets.add(found.st_ino)
            elif stat.S_ISREG(found.st_mode):
                name = os.readlink(entry.path).removesuffix(" (deleted)")
                files.append(OpenFile((found.st_dev, found.st_ino), name))
        except FileNotFoundError:
            continue  # closed meanwhile


def sockets_of(pid: int) -> tuple[bool, frozenset[int]]:
    """Whether this user may see what the process has open, and the inodes of its sockets."""
    sockets: set[int] = set()
    try:
        _look_at_open_files(pid, [], sockets)
    except (FileNotFoundError, ProcessLookupError):
        pass  # it ended meanwhile
    except OSError:
        return False, frozenset()
    return True, frozenset(sockets)


def left_listening(pid: int, signum: int) -> list[int]:
    """The descendants that go on listening if a process alone gets a signal.

    The list is empty if the process does anything but die of the signal: it may pass the signal on.
    """
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as lines:
            masks = dict(line.split(":", 1) for line in lines)
    except OSError:
        return []
    taken = (int(masks[name], 16) for name in ("SigBlk", "SigIgn", "SigCgt"))
    if any(mask >> (signum - 1) & 1 for mask in taken):
        return []
    listening = {row.inode for row in connections.listeners()} - sockets_of(pid)[1]
    return [each for each in descendants_of(pid) if listening & sockets_of(each)[1]]


def pids_by_socket(sockets: Collection[int]) -> dict[int, int]:
    """Which process has each of these sockets (inodes) open, as far as this user may see."""
    found: dict[int, int] = {}
    for pid in psutil.pids() if sockets else ():
        for inode in sockets_of(pid)[1].intersection(sockets):
            found.setdefault(inode, pid)
    return found


def command_of(pid: int) -> str:
    """The process's command line, or its name if it has none; empty if it is gone."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return " ".join(process.cmdline()) or process.name()
    return ""


def bytes_read(pid: int, name: str) -> int:
    """How many bytes a process and its descendants whose names start with `name` have read.

    What they read from files counts, too.
    """
    total, pids = 0, [pid]
    while pids:
        each = pids.pop()
        with contextlib.suppress(OSError, ValueError):  # it ended meanwhile
            process = Path(f"/proc/{each}")
            if (process / "comm").read_text().startswith(name):
                total += int((process / "io").read_text().split()[1])  # rchar: proc(5)
            # Last: not every kernel has it.
            pids += map(int, (process / f"task/{each}/children").read_text().split())
    return total


def memory_of(pid: int) -> int:
    """The memory of a process and its descendants, in bytes: the sum of the most that each has used."""
    total = 0
    for each in (pid, *descendants_of(pid)):
        with contextlib.suppress(OSError, ValueError, StopIteration):  # it has ended meanwhile
            with open(f"/proc/{each}/status", "rb") as lines:
                peak = next(line for line in lines if line.startswith(b"VmHWM:"))
            total += int(peak.split()[1]) * 1024
    return total


def killed_for_memory() -> int:
    """How many processes of this machine the kernel has killed for want of memory; 0 if it does not say."""
    with contextlib.suppress(OSError), open("/proc/vmstat", "rb") as lines:
        return sum(int(line.split()[1]) for line in lines if line.startswith(b"oom_kill "))
    return 0


def is_suspended(pid: int) -> bool:
    """Whether the process was stopped with Ctrl-Z or SIGSTOP."""
    with contextlib.suppress(psutil.Error):
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    return False


def carrying(variable: str, matches: Callable[[str], bool]) -> list[psutil.Process]:
    """The other processes that have such a value in their environment, as far as they are visible."""
    name = f"{variable}=".encode()

    def is_wanted(process: psutil.Process) -> bool:
        entries = environment_of(process.pid).split(b"\0")
        own = [entry for entry in entries if entry.startswith(name)]
        return bool(own) and matches(os.fsdecode(own[0].removeprefix(name)))

    return _other_processes(is_wanted)


def environment_of(pid: int) -> bytes:
    """The process's environment: entries, each with a zero byte at its end.

    The kernel shows none for some microseconds of an exec; this waits until they are over, for a
    second at most. Raises OSError.
    """
    for _ in range(1000):
        with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:
            if environment := file.read():
                return environment
        fields = _stat_of(pid)
        if fields is None or fields[20] == "0":  # its memory: it has ended, or is the kernel's own
            break
        if fields[47] == fields[48] != "0":  # env_start and env_end: it was given none
            break
        time.sleep(0.001)
    return b""


def _other_processes(are_wanted: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        # Ended meanwhile, not this user's to look at, or without the variable.
        with contextlib.suppress(psutil.Error, OSError, KeyError):
            if process.pid != os.getpid() and are_wanted(process):
                found.append(process)
    return found


def strays(run_prefix: str) -> list[psutil.Process]:
    """The processes whose run's id starts with `run_prefix`, this one left out."""
    return carrying(RUN_VARIABLE, lambda run: run.startswith(run_prefix))


def end_strays(run_prefix: str, grace: float = 2.0) -> int:
    """Ends every process of `strays`, as `_end` does; returns how many there were."""
    return _end(lambda: strays(run_prefix), grace)


def end_group(group: int, grace: float) -> None:
    """Ends what is left of a process group, also processes that cleared their environment."""
    _end(
        lambda: _other_processes(
            lambda each: os.getpgid(each.pid) == group and each.status() != psutil.STATUS_ZOMBIE
        ),
        grace,
    )


def _end(find: Callable[[], list[psutil.Process]], grace: float) -> int:
    """Ends what is found, and returns how many there were.

    TERM first, and after `grace` seconds KILL until none is left: one may be forking meanwhile.
    """
    found = remaining = find()
    deadline = time.monotonic() + grace
    _send(found, signal.SIGTERM)
    while remaining and time.monotonic() < deadline:
        time.sleep(0.01)
        remaining = find()
    end_of_patience = time.monotonic() + 10
    while remaining and time.monotonic() < end_of_patience:
        _send(remaining, signal.SIGKILL)
        time.sleep(0.01)
        remaining = find()
    return len(found)


@contextmanager
def no_descendant_left(grace: float = 2.0) -> Iterator[None]:
    """Ends every descendant that the block leaves behind: TERM, then KILL.

    Meanwhile a process whose parent has ended becomes this one's child and not init's (prctl(2)):
    so a daemon is found that has cleared its environment. One that runs as root (under sudo)
    cannot be ended and is left running.
    """
    import ctypes  # `status` is quicker without it

    kernel = ctypes.CDLL(None)
    before = descendants_of(os.getpid())
    kernel.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        for signum in (signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):
            left = _descendants(before)
            _send(left, signum)
            psutil.wait_procs(left, grace)
        kernel.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _descendants(without: Collection[int]) -> list[psutil.Process]:
    found = []
    for pid in descendants_of(os.getpid(), without):
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            found.append(psutil.Process(pid))
    return found


def _send(processes: Iterable[psutil.Process], signum: int) -> None:
    for process in processes:
        # psutil checks the start time first, so that a reused PID is not hit.
        with contextlib.suppress(psutil.Error):
            process.send_signal(signum)
