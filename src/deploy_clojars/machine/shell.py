"""Runs other programs; the only module that imports `sh`."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from deploy_clojars.errors import DeployError
from deploy_clojars.machine import processes, signals, threads

# What a terminal sends to the whole foreground process group.
TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)

TICK = 0.05  # seconds between two checks of a running program
GRACE = 5.0  # seconds from TERM to KILL
LAST_LINES = 25
LAST_BYTES = 16 * 1024
ROOM_SECONDS = 1.0  # how long to wait at the limit of processes until one can be started


class TookTooLong(DeployError):
    """The program exceeded its time limit and was ended."""


class Silent(DeployError):
    """The program printed and received nothing for longer than allowed and was ended."""


@dataclass(frozen=True)
class Answer:
    """A short command's exit status (-N: signal N) and output."""

    status: int
    out: str
    err: str


def root_program(name: str) -> str | None:
    """The path of a program, which may be in a directory that only root's PATH has, or None."""
    path = os.environ.get("PATH", os.defpath)
    if "/usr/bin" in path.split(":"):  # a PATH without it is short on purpose
        path += ":/usr/sbin:/sbin"
    return shutil.which(name, path=path)


def capture(
    argv: Sequence[str],
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
    input: Path = Path(os.devnull),
) -> Answer:
    """Runs a short command and returns its answer; no shell, messages in English.

    subprocess and not `sh`: importing `sh` takes longer than all that `status` does.
    Raises TookTooLong, Interrupted, and FileNotFoundError or PermissionError if it can't be run.
    """
    deadline = time.monotonic() + timeout
    while True:
        with input.open("rb") as opened:
            answer = _captured(argv, timeout, os.environ if env is None else env, opened)
        # A signal from the terminal may reach the child before it has a session of its own. Then
        # the command has not begun, and its exit status says nothing.
        if -answer.status not in TERMINAL_SIGNALS or time.monotonic() > deadline:
            return answer
        signals.check()


def _started(
    argv: Sequence[str], env: Mapping[str, str], input: IO[bytes]
) -> subprocess.Popen[str]:
    """Starts a program. At the limit of processes, what was set aside makes room for it."""
    deadline = time.monotonic() + ROOM_SECONDS
    while True:
        is_late = time.monotonic() > deadline
        try:
            return subprocess.Popen(
                argv,
                stdin=input,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**env, "LC_ALL": "C"},
                start_new_session=True,  # Ctrl-C is for this tool to act on
                text=True,
                errors="replace",
            )
        except BlockingIOError:  # EAGAIN of fork(2)
            if is_late:
                raise
            threads.release()
            time.sleep(TICK)


def _captured(
    argv: Sequence[str], timeout: float, env: Mapping[str, str], input: IO[bytes]
) -> Answer:
    process = _started(argv, env, input)
    deadline = time.monotonic() + timeout
    try:
        while True:
            is_late = time.monotonic() > deadline  # before the look: Ctrl-Z may make it an old one
            with suppress(subprocess.TimeoutExpired):
                out, err = process.communicate(timeout=min(TICK * 4, timeout))
                return Answer(process.returncode, out, err)
            signals.check()
            if is_late:
                raise TookTooLong(f"no answer within {timeout:g} s", detail=shlex.join(argv))
    except BaseException:
        # Under sudo the command runs as root and cannot be killed; it is left running.
        with suppress(PermissionError, ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for pipe in filter(None, (process.stdout, process.stderr)):
            pipe.close()
        raise


def stream(
    argv: Sequence[str],
    *,
    log: IO[bytes],
    cwd: Path,
    env: Mapping[str, str],
    timeout: float,
    nice: int = 0,
    oom_score_adj: int = 0,
    silence: float | None = None,
    watch: Callable[[], None] | None = None,
) -> int:
    """Runs a long command in a new session and returns its exit status (-N: killed by signal N).

    Its output goes straight into `log`, without a copy through this process. It gets no input.
    `timeout` and `silence` (no new output, and nothing read by the program or by helpers whose names
    start with its name) are in seconds and raise TookTooLong and Silent; a signal raises Interrupted.
    However the call ends, no process of the command's group is left.
    `watch` is called every TICK.
    Raises FileNotFoundError if there is no such program, OSError if it cannot be started.
    """
    import sh

    def before_exec() -> None:
        # sh ignores it in the child, and the program would inherit that.
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.nice(nice)
        if oom_score_adj:
            with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
                file.write(str(oom_score_adj))

    try:
        program = sh.Command(argv[0])
    except sh.CommandNotFound:
        raise FileNotFoundError(2, "not found", argv[0]) from None
    with open(os.devnull, "rb") as nothing:
        try:
            running = program(
                *argv[1:],
                _bg=True,
                _bg_exc=False,
                _encoding="utf-8",  # of the arguments, whatever the locale
                _in=nothing,
                _out=log,
                _err_to_out=True,
                _new_session=True,
                _cwd=str(cwd),
                _env=dict(env),
                _preexec_fn=before_exec,
            )
        except (sh.ForkException, RuntimeError) as error:  # sh needs threads, too
            last = str(error).strip().splitlines()[-1]
            raise OSError(0, f"cannot be started: {last}", argv[0]) from None
    try:
        with _end_of(running.pid) as end:
            _wait_for_end(running, end, log, timeout, silence, watch, argv[0])
    finally:
        processes.end_group(running.pid, GRACE)
    with suppress(sh.ErrorReturnCode):
        running.wait()
    return int(running.exit_code)


@contextmanager
def _end_of(pid: int) -> Iterator[tuple[int, ...]]:
    """A file that becomes readable when the process ends; none if it has ended already.

    With polling alone each step would take up to a TICK longer.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:  # it has ended, or the kernel is older than Linux 5.3
        yield ()
        return
    try:
        yield (descriptor,)
    finally:
        os.close(descriptor)


def _wait_for_end(
    running: object,
    end: tuple[int, ...],
    log: IO[bytes],
    timeout: float,
    silence: float | None,
    watch: Callable[[], None] | None,
    program: str,
) -> None:
    process = running.process  # type: ignore[attr-defined] # sh has no public type for it
    started = last_heard = time.monotonic()
    heard = (0, 0)
    if not stat.S_ISREG(os.fstat(log.fileno()).st_mode):
        silence = None  # without a log, nobody knows what was printed
    while True:
        now = time.monotonic()  # before the look: Ctrl-Z may make it an old one
        if not process.is_alive()[0]:
            return
        if watch is not None:
            watch()
        if now - started > timeout:
            raise TookTooLong(f"not done within {timeout:g} s")
        if silence is not None:
            # A server that is still at work may send nothing but keep-alives, which git does not
            # show. ssh's own do not count: its server may live while git's hangs.
            read = processes.bytes_read(process.pid, os.path.basename(program))
            heard_now = (os.fstat(log.fileno()).st_size, read)
            if heard_now != heard:
                heard, last_heard = heard_now, now
            elif now - last_heard > silence:
                raise Silent(f"nothing heard for {silence:g} s")
        signals.wait(TICK, *end)


def last_lines(log: Path, start: int = 0, lines: int = LAST_LINES) -> str:
    """The last lines of a log after byte `start`."""
    try:
        with log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(start, end - LAST_BYTES))
            text = file.read(LAST_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
