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
from typing import IO, TYPE_CHECKING

from deploy_clojars.errors import DeployError
from deploy_clojars.machine import processes, signals, threads

if TYPE_CHECKING:
    import sh

# What a terminal sends to the whole foreground process group.
TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)

TICK = 0.05  # seconds between two checks of a running program
MEASURED_EVERY = 0.5  # seconds between two looks at its memory
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


class Running:
    """A long command at work, started by `running`."""

    def __init__(
        self, command: sh.RunningCommand, program: str, end: tuple[int, ...], log: IO[bytes],
        timeout: float, silence: float | None,
    ) -> None:  # fmt: skip
        self.end = end  # a file that can be read when it has ended
        self.memory = 0  # bytes; the most that its processes were seen to use together
        self._command = command
        self._program = os.path.basename(program)
        self._log = log
        self._timeout = timeout
        # Without a log, nobody knows what was printed.
        self._silence = silence if stat.S_ISREG(os.fstat(log.fileno()).st_mode) else None
        self._started = self._last_heard = time.monotonic()
        self._heard = (0, 0)
        self._measured = self._started

    def wait(self, watch: Callable[[], None] = lambda: None) -> None:
        """Waits for its end; `watch` is called every TICK.

        Raises TookTooLong, Silent, Interrupted if a signal comes.
        """
        while not self.has_ended():
            watch()
            signals.wait(TICK, *self.end)

    def has_ended(self) -> bool:
        """For callers that wait for more than its end; to be asked every TICK. Raises TookTooLong, Silent."""
        now = time.monotonic()  # before the look: Ctrl-Z may make it an old one
        if not self._command.process.is_alive()[0]:
            return True
        if now - self._measured >= MEASURED_EVERY:
            self.memory = max(self.memory, processes.memory_of(self._command.pid))
            self._measured = now
        if now - self._started > self._timeout:
            raise TookTooLong(f"not done within {self._timeout:g} s")
        if self._silence is not None:
            self._listen(now, self._silence)
        return False

    def _listen(self, now: float, silence: float) -> None:
        # A server that is still at work may send nothing but keep-alives, which git does not
        # show. ssh's own do not count: its server may live while git's hangs.
        read = processes.bytes_read(self._command.pid, self._program)
        heard = (os.fstat(self._log.fileno()).st_size, read)
        if heard != self._heard:
            self._heard, self._last_heard = heard, now
        elif now - self._last_heard > silence:
            raise Silent(f"nothing heard for {silence:g} s")

    @property
    def status(self) -> int:
        """The exit status (-N: killed by signal N), after the block."""
        import sh

        with suppress(sh.ErrorReturnCode):
            self._command.wait()
        return int(self._command.exit_code)


@contextmanager
def running(
    argv: Sequence[str],
    *,
    log: IO[bytes],
    cwd: Path,
    env: Mapping[str, str],
    timeout: float,
    nice: int = 0,
    oom_score_adj: int = 0,
    silence: float | None = None,
) -> Iterator[Running]:
    """Starts a long command in a new session; it is at work while the block runs.

    Its output goes straight into `log`, without a copy through this process. It gets no input.
    `timeout` and `silence` (no new output, and nothing read by the program or by helpers whose names
    start with its name) are in seconds; exceeding them raises TookTooLong and Silent. However the
    block ends, no process of the command's group is left.
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
            started = program(
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
        # With polling alone each step would take up to a TICK longer.
        with processes.end_of(started.pid) as end:
            yield Running(started, argv[0], end, log, timeout, silence)
    finally:
        processes.end_group(started.pid, GRACE)


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
