"""A stand-in for Upstart 1.13.2, which no current Debian has: real processes, its very texts.

What it says and does is what `upstart.md` beside it has as measured; "fact N" and "row" mean that
page. Where it is silent the code follows Upstart's published state machine and says "not measured".

    with Upstart.started(directory) as upstart:
        upstart.install("clojars", "exec /usr/bin/java -jar /home/clojars/current.jar")
        subprocess.run([upstart.bin / "start", "clojars"])

This file is also the program of the supervisor ("init"), which `started` runs as a process of its
own: in its own session, so that Ctrl-C on a test's terminal does not reach it, and tied to the test
by a socket, so that it ends with the test, however that ends. The four programs in `bin` and
`initctl`, of which there is `reload-configuration` alone, are thin clients of it: they send their
arguments and print what they are told.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import grp
import heapq
import itertools
import json
import os
import pwd
import re
import resource
import selectors
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

PROGRAMS = ("start", "stop", "restart", "status")
INITCTL = "initctl"

# Fact 8: with a job's `env` lines, UPSTART_JOB and UPSTART_INSTANCE, this is a job's environment.
BASE_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "TERM": "linux",
}
# The one variable that the real thing does not set: `close` knows the jobs' processes by it.
MARKER = "UPSTART_STANDIN"

# Upstart runs `exec` through a shell only if the command has one of these.
SHELL_CHARACTERS = frozenset("~`!$^&*()=|\\{}[];\"'<>?")
SCRIPT_FD = 9

# Fact 13: `stop` asks for the job's state when it has stopped, and by then there is no such job.
NO_LONGER_KNOWN = (
    'Method "Get" with signature "ss" on interface "org.freedesktop.DBus.Properties" doesn\'t exist'
)

# The order in which `status` names a job's processes; the first is on its first line.
PROCESSES = ("main", "pre-start", "post-start", "pre-stop", "post-stop")


# ---------------------------------------------------------------------------------------------
# Job files


class JobFileError(Exception):
    """What makes a .conf file no job: a syntax error, or a stanza that the stand-in lacks."""


@dataclasses.dataclass(frozen=True)
class Command:
    """What an `exec` or a `script` stanza says."""

    text: str
    is_script: bool


@dataclasses.dataclass
class JobClass:
    """One job file's definition, with Upstart's defaults. `limits` is resource: (soft, hard)."""

    name: str
    commands: dict[str, Command] = dataclasses.field(default_factory=dict)
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    instance: str = ""
    console: str = "log"
    setuid: str | None = None
    setgid: str | None = None
    chdir: str = "/"
    umask: int = 0o022
    nice: int | None = None
    oom_score: int | None = None
    limits: dict[int, tuple[int, int]] = dataclasses.field(default_factory=dict)
    respawn: bool = False
    respawn_limit: int = 10
    respawn_interval: int = 5
    normal_exits: set[int] = dataclasses.field(default_factory=set)
    kill_timeout: int = 5
    kill_signal: int = signal.SIGTERM


class JobFile:
    """A reader of Upstart's job syntax: words, quotes, comments, continued lines, script blocks."""

    def __init__(self, name: str, text: str) -> None:
        self.job = JobClass(name)
        self._text = text
        self._at = 0

    def parse(self) -> JobClass:
        while self._at_next_stanza():
            stanza = self._word()
            parse = self._STANZAS.get(stanza)
            if parse is None:
                raise JobFileError(f"Unknown stanza: {stanza}")
            parse(self)
            if self._more_words():
                raise JobFileError(f"Unexpected token after {stanza}")
        return self.job

    # -- the text

    def _skip_blanks(self) -> None:
        while self._text.startswith((" ", "\t", "\r", "\\\n"), self._at):
            self._at += 2 if self._text[self._at] == "\\" else 1

    def _skip_comment(self) -> None:
        if self._text.startswith("#", self._at):
            end = self._text.find("\n", self._at)
            self._at = len(self._text) if end < 0 else end

    def _more_words(self) -> bool:
        self._skip_blanks()
        self._skip_comment()
        return self._at < len(self._text) and self._text[self._at] != "\n"

    def _at_next_stanza(self) -> bool:
        while not self._more_words():
            if self._at >= len(self._text):
                return False
            self._at += 1
        return True

    def _token(self, ends: str, *, keep_quotes: bool) -> str:
        """The text up to an unquoted one of `ends`; a newline inside it becomes a space."""
        token, quote = "", ""
        while self._at < len(self._text):
            character = self._text[self._at]
            if character == "\\":
                escaped = self._text[self._at + 1 : self._at + 2]
                if not escaped:
                    raise JobFileError("Trailing slash")
                if escaped == "\n" and not quote and " " in ends:
                    break
                self._at += 2
                if escaped == "\n":
                    token += " "
                else:
                    token += "\\" + escaped if keep_quotes else escaped
                continue
            if quote:
                quote = "" if character == quote else quote
                is_quote = not quote
            else:
                if character in ends:
                    break
                is_quote = character in "\"'"
                quote = character if is_quote else ""
            if not is_quote or keep_quotes:
                token += " " if character == "\n" else character
            self._at += 1
        if quote:
            raise JobFileError("Unterminated quoted string")
        return token

    def _word(self) -> str:
        if not self._more_words():
            raise JobFileError("Expected token")
        return self._token("# \t\r\n", keep_quotes=False)

    def _words(self) -> list[str]:
        words = [self._word()]
        while self._more_words():
            words.append(self._word())
        return words

    def _number(self, low: int, high: int, base: int = 10) -> int:
        word = self._word()
        try:
            number = int(word, base)
        except ValueError:
            raise JobFileError(f"Illegal number: {word}") from None
        if not low <= number <= high:
            raise JobFileError(f"Illegal number: {word}")
        return number

    def _expect(self, *words: str) -> str:
        word = self._word()
        if word not in words:
            raise JobFileError(f"Unexpected token: {word}")
        return word

    def _block(self) -> str:
        if self._more_words():
            raise JobFileError("Unexpected token after script")
        lines = self._text[self._at + 1 :].splitlines(keepends=True)
        consumed = self._at + 1
        for count, line in enumerate(lines):
            if re.fullmatch(r"end\s+script\s*(#.*)?", line.strip()):
                self._at = consumed + len(line.rstrip("\n"))
                return textwrap.dedent("".join(lines[:count]))
            consumed += len(line)
        raise JobFileError("Unterminated block")

    # -- the stanzas

    def _ignore_word(self) -> None:
        self._word()

    def _ignore_words(self) -> None:
        self._words()

    def _events(self) -> None:
        """`start on` and `stop on`: checked and ignored, since the stand-in has no events."""
        self._expect("on")
        depth, words = 0, [""]
        while self._at < len(self._text):
            if not self._more_words():
                if not depth:
                    break
                self._at += 1
            elif (character := self._text[self._at]) in "()":
                depth += 1 if character == "(" else -1
                self._at += 1
            else:
                words.append(self._token("# \t\r\n()", keep_quotes=False))
        if depth or words[-1] in ("", "and", "or"):
            raise JobFileError("Mismatched parentheses or missing event")

    def _env(self) -> None:
        key, assigned, value = self._word().partition("=")
        if assigned:
            self.job.environment[key] = value

    def _instance(self) -> None:
        self.job.instance = self._word()

    def _console(self) -> None:
        # `output` goes nowhere too: a test does not write on the machine's console.
        self.job.console = self._expect("log", "none", "output")

    def _setuid(self) -> None:
        self.job.setuid = self._word()

    def _setgid(self) -> None:
        self.job.setgid = self._word()

    def _chdir(self) -> None:
        self.job.chdir = self._word()

    def _umask(self) -> None:
        self.job.umask = self._number(0, 0o777, base=8)

    def _nice(self) -> None:
        self.job.nice = self._number(-20, 19)

    def _oom(self) -> None:
        self._expect("score")
        self._skip_blanks()
        if self._text.startswith("never", self._at):
            self._word()
            self.job.oom_score = -1000
        else:
            self.job.oom_score = self._number(-999, 1000)

    def _limit(self) -> None:
        name = self._word()
        number = getattr(resource, f"RLIMIT_{name.upper()}", None)
        if number is None:
            raise JobFileError(f"Unknown limit: {name}")
        soft, hard = (
            resource.RLIM_INFINITY if word == "unlimited" else self._as_limit(word)
            for word in (self._word(), self._word())
        )
        self.job.limits[number] = (soft, hard)

    @staticmethod
    def _as_limit(word: str) -> int:
        if not word.isdecimal():
            raise JobFileError(f"Illegal limit: {word}")
        return int(word)

    def _respawn(self) -> None:
        if not self._more_words():
            self.job.respawn = True
            return
        self._expect("limit")
        self._skip_blanks()
        if self._text.startswith("unlimited", self._at):
            self._word()
            self.job.respawn_limit = 0
        else:
            self.job.respawn_limit = self._number(0, 2**31)
            self.job.respawn_interval = self._number(0, 2**31)

    def _normal(self) -> None:
        self._expect("exit")
        for word in self._words():
            # A signal is kept in the higher byte, apart from the exit statuses.
            self.job.normal_exits.add(int(word) if word.isdecimal() else self._as_signal(word) << 8)

    def _kill(self) -> None:
        if self._expect("timeout", "signal") == "timeout":
            self.job.kill_timeout = self._number(1, 2**31)
        else:
            self.job.kill_signal = self._as_signal(self._word())

    @staticmethod
    def _as_signal(word: str) -> int:
        try:
            if word.isdecimal():
                return signal.Signals(int(word))
            return signal.Signals["SIG" + word.upper().removeprefix("SIG")]
        except (KeyError, ValueError):
            raise JobFileError(f"Illegal signal: {word}") from None

    def _exec(self, process: str = "main") -> None:
        if not self._more_words():
            raise JobFileError("Expected token")
        command = self._token("#\n", keep_quotes=True).strip()
        self.job.commands[process] = Command(command, is_script=False)

    def _script(self, process: str = "main") -> None:
        self.job.commands[process] = Command(self._block(), is_script=True)

    @staticmethod
    def _process(process: str) -> Callable[[JobFile], None]:
        def parse(file: JobFile) -> None:
            if file._expect("exec", "script") == "exec":
                file._exec(process)
            else:
                file._script(process)

        return parse

    _STANZAS: Mapping[str, Callable[[JobFile], None]] = {
        **dict.fromkeys(("description", "author", "version", "usage"), _ignore_word),
        **dict.fromkeys(("emits", "export"), _ignore_words),
        **dict.fromkeys(("start", "stop"), _events),
        "pre-start": _process("pre-start"),
        "post-start": _process("post-start"),
        "pre-stop": _process("pre-stop"),
        "post-stop": _process("post-stop"),
        "env": _env,
        "instance": _instance,
        "console": _console,
        "setuid": _setuid,
        "setgid": _setgid,
        "chdir": _chdir,
        "umask": _umask,
        "nice": _nice,
        "oom": _oom,
        "limit": _limit,
        "respawn": _respawn,
        "normal": _normal,
        "kill": _kill,
        "exec": _exec,
        "script": _script,
    }


def expand(text: str, environment: Mapping[str, str]) -> str:
    """`text` with $NAME and ${NAME} replaced, as in an `instance` stanza."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in environment:
            raise Refused(f"Unknown parameter: {name}")  # not measured
        return environment[name]

    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", value, text)


# ---------------------------------------------------------------------------------------------
# One job


class Refused(Exception):
    """A request that init answers with an error; the text comes after `PROGRAM: `."""


@dataclasses.dataclass
class Request:
    """One call of a program: who called it, with what, and where its answer goes."""

    connection: socket.socket
    argv: list[str]
    pid: int
    uid: int
    withheld: bool = False
    answer: tuple[int, str, str] | None = None

    @property
    def program(self) -> str:
        return self.argv[0]

    @property
    def job(self) -> str | None:
        return self.argv[1] if len(self.argv) > 1 else None

    def succeed(self, text: str) -> None:
        self._send(0, text + "\n", "")

    def say_nothing(self) -> None:
        self._send(0, "", "")

    def refuse(self, text: str) -> None:
        self._send(1, "", f"{self.program}: {text}\n")

    def release(self) -> None:
        self.withheld = False
        if self.answer is not None:
            self._send(*self.answer)

    def _send(self, status: int, output: str, error: str) -> None:
        self.answer = (status, output, error)
        if self.withheld:
            return
        reply = f"{status}\0{output}\0{error}".encode("utf-8", "surrogateescape")
        # A client that was killed does not hear the answer; its request went on (fact 6).
        with contextlib.suppress(OSError):
            self.connection.sendall(reply, socket.MSG_NOSIGNAL)
        self.connection.close()


class Job:
    """One instance of a job, which goes from state to state towards its goal.

    The states, the order and the corner cases are Upstart's. Two states wait for one turn of the
    event loop (`starting` and `stopping`), the others for a process.
    """

    def __init__(self, init: Init, job_class: JobClass, instance: str) -> None:
        self.init = init
        self.job_class = job_class
        self.instance = instance
        self.goal = "stop"
        self.state = "waiting"
        self.pids: dict[str, int] = {}
        self.environment: dict[str, str] = {}
        self.next_environment: dict[str, str] | None = None
        self._waiting: list[Request] = []
        self._has_failed = False
        self._kill_timer: Timer | None = None
        self._respawns = 0
        self._respawning_since = float("-inf")

    @property
    def name(self) -> str:
        return self.job_class.name + (f" ({self.instance})" if self.instance else "")

    def status(self) -> str:
        """What `status` prints, without the last newline."""
        if self.state == "waiting":
            # By then the instance is gone, and the job's plain name is all that is known.
            return f"{self.job_class.name} stop/waiting"
        text = f"{self.name} {self.goal}/{self.state}"
        running = [(process, self.pids[process]) for process in PROCESSES if process in self.pids]
        for position, (process, pid) in enumerate(running):
            if position:
                text += f"\n\t{process} process {pid}"
            elif process in ("main", "pre-start", "post-stop"):
                text += f", process {pid}"
            else:
                text += f", ({process}) process {pid}"
        return text

    # -- requests

    def start(self, request: Request, environment: dict[str, str]) -> None:
        if self.goal == "start":
            raise Refused(f"Job is already running: {self.name}")
        self._overtake(request, environment)
        self._change_goal("start")

    def stop(self, request: Request) -> None:
        if self.goal == "stop":
            raise Refused(f"Job has already been stopped: {self.name}")
        self._overtake(request, None)
        self._change_goal("stop")

    def restart(self, request: Request, environment: dict[str, str]) -> None:
        if self.goal == "stop":
            # Fact 12: the name is the instance's, and a job's only one has none.
            raise Refused(f"Job has already been stopped: {self.instance}")
        self._overtake(request, environment)
        self._change_goal("stop")
        self._change_goal("start")

    def _overtake(self, request: Request, environment: dict[str, str] | None) -> None:
        # A newer request answers the older ones, with success (row: overtaken by another's stop).
        self._answer(failed=False)
        self.next_environment = environment
        self._waiting.append(request)

    def _answer(self, *, failed: bool) -> None:
        waiting, self._waiting = self._waiting, []
        for request in waiting:
            if failed:
                what = {"stop": "while stopping"}.get(request.program, f"to {request.program}")
                request.refuse(f"Job failed {what}")
            else:
                # Later, because the program asks for the status after it was answered: it prints
                # what the overtaking request made of the job.
                self.init.later(partial(self._succeed, request))

    def _succeed(self, request: Request) -> None:
        if request.program == "stop" and not self.init.has_definition(self.job_class.name):
            request.refuse(NO_LONGER_KNOWN)
        else:
            request.succeed(self.status())

    # -- the state machine

    def _change_goal(self, goal: str) -> None:
        if goal == self.goal:
            return
        self.goal = goal
        rests = {"start": "waiting", "stop": "running"}
        if self.state == rests.get(goal):
            self._enter(self._next_state())

    def _next_state(self) -> str:
        if self.state in ("post-start", "pre-stop") and self.goal == "respawn":
            self.goal = "start"
            return "stopping"
        is_starting = self.goal == "start"
        match self.state:
            case "waiting":
                return "starting"
            case "starting":
                return "pre-start" if is_starting else "stopping"
            case "pre-start":
                return "spawned" if is_starting else "stopping"
            case "spawned":
                return "post-start" if is_starting else "stopping"
            case "post-start":
                return "running" if is_starting else "stopping"
            case "running":
                return "stopping" if is_starting or "main" not in self.pids else "pre-stop"
            case "pre-stop":
                # So a `restart` of a job with a pre-stop process restarts nothing: Upstart's own
                # defect (Launchpad 703800; from its source, not measured).
                return "running" if is_starting else "stopping"
            case "stopping":
                return "killed"
            case "killed":
                return "post-stop"
            case _:
                return "starting" if is_starting else "waiting"

    def _enter(self, state: str) -> None:
        while state != self.state:
            self.state = state
            match state:
                case "starting":
                    if self.next_environment is not None:
                        self.environment, self.next_environment = self.next_environment, None
                    self._has_failed = False
                    self.init.later(self._advance)
                case "stopping":
                    self.init.later(self._advance)
                case "spawned":
                    if not self._run("main"):
                        state = self._next_state()
                case "pre-start" | "post-start" | "pre-stop" | "post-stop":
                    if not self._run(state):
                        state = self._next_state()
                case "running":
                    self._answer(failed=False)
                case "killed":
                    if "main" in self.pids:
                        self._kill()
                    else:
                        state = self._next_state()
                case "waiting":
                    self._answer(failed=False)
                    self.init.forget(self)

    def _advance(self) -> None:
        self._enter(self._next_state())

    def _run(self, process: str) -> bool:
        command = self.job_class.commands.get(process)
        if command is None:
            return False
        self.pids[process] = self.init.spawn(self, process, command)
        return True

    def _fail(self) -> None:
        if not self._has_failed:
            self._has_failed = True
            self._answer(failed=True)

    def _kill(self) -> None:
        self._signal(self.job_class.kill_signal)
        self._kill_timer = self.init.after(
            self.job_class.kill_timeout, lambda: self._signal(signal.SIGKILL)
        )

    def _signal(self, number: int) -> None:
        # To the whole group: a grandchild goes too, unless it made a session of its own (fact 7).
        pid = self.pids["main"]
        self.init.log(f"Sending signal {number} to {self.name} main process ({pid})")
        with contextlib.suppress(ProcessLookupError):
            os.killpg(os.getpgid(pid), number)

    # -- what the processes do

    def executed(self, process: str) -> None:
        """`process` runs its program now: `spawned` is over, whatever the program does next."""
        if process == "main" and self.state == "spawned":
            self._advance()

    def not_executed(self, process: str) -> None:
        """`process` could not be set up or has no program."""
        del self.pids[process]
        if process in ("main", "pre-start", "post-stop"):
            self._fail()
            self._change_goal("stop")
        self._advance()

    def ended(self, process: str, status: int) -> None:
        """`process` ended with this exit status, or signal in the higher byte."""
        del self.pids[process]
        if process == "main" and self._kill_timer is not None:
            self._kill_timer.cancel()
            self._kill_timer = None
        if process == "main":
            self._main_ended(status)
            return
        if process in ("pre-start", "post-stop") and status:
            self._fail()
            self._change_goal("stop")
        self._advance()

    def _main_ended(self, status: int) -> None:
        if self.state == "killed":
            self._advance()
            return
        if self.state == "stopping":
            return
        # A post-start or pre-stop process holds the state until it ends itself.
        is_held = self.state in ("post-start", "pre-stop") and self.state in self.pids
        if self.goal == "start" and (status or self.job_class.respawn):
            is_failure = status not in self.job_class.normal_exits
            if is_failure and self.job_class.respawn and not self._respawns_too_fast():
                if is_held:
                    self._change_goal("respawn")
                else:
                    self._advance()
                return
            if is_failure:
                self._fail()
        was_running = self.state == "running"
        self._change_goal("stop")
        if not is_held and not was_running:
            self._advance()

    def _respawns_too_fast(self) -> bool:
        limit, interval = self.job_class.respawn_limit, self.job_class.respawn_interval
        if not limit or not interval:
            return False
        now = time.monotonic()
        if now - self._respawning_since >= interval:
            self._respawning_since = now
            self._respawns = 0
        self._respawns += 1
        if self._respawns > limit:
            self.init.log(f"{self.name} respawning too fast, stopped")
            return True
        return False


# ---------------------------------------------------------------------------------------------
# Init: the supervisor process


@dataclasses.dataclass(order=True)
class Timer:
    due: float
    order: int
    call: Callable[[], None] | None = dataclasses.field(compare=False)

    def cancel(self) -> None:
        self.call = None


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the test's side tells the supervisor on its command line."""

    socket: str
    jobs: str
    logs: str
    marker: str
    root_only: bool
    system_bus: bool


class JobFiles:
    """The job files that init has noticed (fact 11).

    It is told by the kernel of a file that was written and closed, and of one that was renamed into
    the directory. Of one that a link brought it hears only that there is a name, and waits in vain
    for somebody to write.
    """

    WRITTEN, MOVED_AWAY, MOVED_HERE, CREATED, DELETED = 0x8, 0x40, 0x80, 0x100, 0x200  # inotify(7)

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._noticed: set[str] = set()
        libc = ctypes.CDLL(None, use_errno=True)
        self._watch = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        events = self.WRITTEN | self.MOVED_AWAY | self.MOVED_HERE | self.CREATED | self.DELETED
        if self._watch < 0 or libc.inotify_add_watch(self._watch, bytes(directory), events) < 0:
            raise OSError(ctypes.get_errno(), f"inotify: {directory}")
        self.read_all()

    def read_all(self) -> None:
        """All that is there, as at init's own start."""
        self._heed_the_kernel()
        self._noticed = set(os.listdir(self._directory))

    def path_of(self, job: str) -> Path | None:
        self._heed_the_kernel()
        return self._directory / f"{job}.conf" if f"{job}.conf" in self._noticed else None

    def _heed_the_kernel(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                data = os.read(self._watch, 65536)
                while data:
                    _, event, _, length = struct.unpack_from("iIII", data)
                    name = os.fsdecode(data[16 : 16 + length].rstrip(b"\0"))
                    data = data[16 + length :]
                    if event & (self.WRITTEN | self.MOVED_HERE):
                        self._noticed.add(name)
                    elif event & (self.DELETED | self.MOVED_AWAY):
                        self._noticed.discard(name)


@dataclasses.dataclass
class Spawned:
    """A process that init started; `setup` is its pipe until it runs its program."""

    job: Job
    process: str
    setup: int | None
    terminal: int | None


class Init:
    """The supervisor: one thread, one event loop, no blocking call."""

    def __init__(self, settings: Settings, control: socket.socket) -> None:
        self.settings = settings
        self._control = control
        self._jobs: dict[tuple[str, str], Job] = {}
        self._spawned: dict[int, Spawned] = {}
        self._selector = selectors.DefaultSelector()
        self._deferred: deque[Callable[[], None]] = deque()
        self._timers: list[Timer] = []
        self._order = itertools.count()
        self._hanging: dict[tuple[str, str | None], bool] = {}
        self._held: list[Request] = []
        self._parent = os.getppid()
        self._is_closing = False
        self._job_files = JobFiles(Path(settings.jobs))

    def log(self, text: str) -> None:
        """The kernel log, which is where Upstart gives its reasons."""
        print(f"init: {text}", file=sys.stderr, flush=True)

    # -- the loop

    def later(self, call: Callable[[], None]) -> None:
        self._deferred.append(call)

    def after(self, seconds: float, call: Callable[[], None]) -> Timer:
        timer = Timer(time.monotonic() + seconds, next(self._order), call)
        heapq.heappush(self._timers, timer)
        return timer

    def run(self) -> None:
        """Serve until the test's side is gone or says so, then end every process."""
        self._adopt_orphans()
        self._watch_signals()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind("\0" + self.settings.socket)
        listener.listen(64)
        self._watch(listener.fileno(), lambda: self._accept(listener))
        self._watch(self._control.fileno(), self._obey)
        self._watch_parent()
        self._control.sendall(b"ready\n")
        try:
            while not self._is_closing:
                self._turn()
        finally:
            listener.close()
            end_children()

    def _turn(self) -> None:
        timeout = max(0.0, self._timers[0].due - time.monotonic()) if self._timers else None
        for key, _ in self._selector.select(timeout):
            # A call before this one may have closed the descriptor, and another have its number.
            if self._selector.get_map().get(key.fd) is key:
                self._do(key.data)
        while self._timers and self._timers[0].due <= time.monotonic():
            timer = heapq.heappop(self._timers)
            if timer.call is not None:
                self._do(timer.call)

    def _do(self, call: Callable[[], None]) -> None:
        """Like process 1, init does not die of one bad request."""
        self.later(call)
        while self._deferred:
            try:
                self._deferred.popleft()()
            except Exception:  # noqa: BLE001 - one bad request must not end every job
                traceback.print_exc()

    def _watch(self, descriptor: int, call: Callable[[], None]) -> None:
        self._selector.register(descriptor, selectors.EVENT_READ, call)

    def _unwatch(self, descriptor: int) -> None:
        self._selector.unregister(descriptor)

    def _adopt_orphans(self) -> None:
        """Become what process 1 is on a real host: the parent of every orphan of a job."""
        subreaper = 36
        if ctypes.CDLL(None, use_errno=True).prctl(subreaper, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")

    def _watch_signals(self) -> None:
        reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._close())

        def woken() -> None:
            os.read(reading, 4096)
            self._reap()

        self._watch(reading, woken)

    def _watch_parent(self) -> None:
        # The control socket's end is enough, unless a fork of the test still has the other one.
        if os.getppid() != self._parent:
            self._close()
        self.after(0.5, self._watch_parent)

    def _close(self) -> None:
        self._is_closing = True

    # -- what the test's side asks

    def _obey(self) -> None:
        try:
            line = self._control.recv(65536)
        except OSError:
            line = b""
        if not line:
            self._unwatch(self._control.fileno())
            self._close()
            return
        order = json.loads(line)
        if order["do"] == "hang":
            self._hanging[order["program"], order["job"]] = order["carried_out"]
        else:
            self._hanging.clear()
            held, self._held = self._held, []
            for request in held:
                if request.withheld:
                    request.release()
                else:
                    self._carry_out(request)
        self._control.sendall(b"done\n")

    # -- requests

    def _accept(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        self._watch(connection.fileno(), lambda: self._receive(connection))

    def _receive(self, connection: socket.socket) -> None:
        self._unwatch(connection.fileno())
        message = connection.recv(1 << 20)
        if not message:
            connection.close()
            return
        argv = message.decode("utf-8", "surrogateescape").split("\0")
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid, uid, _ = struct.unpack("3i", credentials)
        request = Request(connection, argv, pid, uid)
        for hanging in ((request.program, request.job), (request.program, None)):
            if hanging in self._hanging:
                request.withheld = self._hanging[hanging]
                self._held.append(request)
                if not request.withheld:
                    return
                break
        self._carry_out(request)

    def _carry_out(self, request: Request) -> None:
        try:
            self._decide(request)
        except Refused as refused:
            request.refuse(str(refused))

    def _decide(self, request: Request) -> None:
        program, name = request.program, request.job
        is_stranger = self.settings.root_only and request.uid != 0
        help_text = f"\nTry `{program} --help' for more information."
        for argument in request.argv[1:]:
            if argument.startswith("-"):
                raise Refused(f"invalid option: {argument}{help_text}")  # not measured
        if name is None:
            raise Refused(f"missing job name{help_text}")  # not measured
        if program == INITCTL and name != "reload-configuration":
            raise Refused(f"invalid command: {name}{help_text}")  # not measured
        if is_stranger and not self.settings.system_bus:
            raise Refused(
                "Unable to connect to system bus: Failed to connect to socket "
                "/run/dbus/system_bus_socket: No such file or directory"
            )
        if program == INITCTL:
            if is_stranger:
                raise Refused(rejection(request))  # not measured
            self._job_files.read_all()
            request.say_nothing()
            return
        job_class = self._class_of(name)
        if is_stranger and program in ("start", "restart"):
            raise Refused(rejection(request))

        environment = BASE_ENVIRONMENT | job_class.environment
        for argument in request.argv[2:]:
            key, assigned, value = argument.partition("=")
            if not assigned:
                raise Refused("Env must be KEY=VALUE pairs")  # not measured
            environment[key] = value
        instance = expand(job_class.instance, environment)
        job = self._jobs.get((name, instance))

        if program == "start":
            if job is None:
                job = self._jobs[name, instance] = Job(self, job_class, instance)
            job.start(request, environment)
        elif job is None:
            if program == "status" and len(request.argv) == 2:
                request.succeed(f"{name} stop/waiting")
            else:
                # The trailing space is Upstart's: the name of a job's only instance is empty.
                raise Refused(f"Unknown instance: {instance}")
        elif program == "status":
            request.succeed(job.status())
        elif is_stranger:
            raise Refused(rejection(request))
        elif program == "stop":
            job.stop(request)
        else:
            job.restart(request, environment)

    def _class_of(self, name: str) -> JobClass:
        """The definition that counts: the running one, else the file as it is now (fact 5)."""
        for job in self._jobs.values():
            if job.job_class.name == name:
                return job.job_class
        job_class = self._definition(name)
        if job_class is None:
            raise Refused(f"Unknown job: {name}")
        return job_class

    def has_definition(self, name: str) -> bool:
        return self._definition(name) is not None

    def _definition(self, name: str) -> JobClass | None:
        """What the job's file says now; None for one that is broken, gone or not noticed."""
        path = self._job_files.path_of(name)
        if path is None:
            return None
        try:
            return JobFile(name, path.read_text()).parse()
        except FileNotFoundError:
            pass
        except (OSError, UnicodeError, JobFileError) as error:
            self.log(f"{path}: {error}")
        return None

    def forget(self, job: Job) -> None:
        """`job` is stopped: the next `start` reads its file again (fact 5)."""
        del self._jobs[job.job_class.name, job.instance]

    # -- processes

    def spawn(self, job: Job, process: str, command: Command) -> int:
        """Start `command` as `process` of `job`; its state goes on when the program runs."""
        reading, writing = os.pipe2(os.O_CLOEXEC)
        script = None
        if command.is_script and "\n" in command.text.rstrip("\n"):
            # As Upstart does it, so that the shell does not put its last command in its place.
            script = os.memfd_create("script")
            os.write(script, f"exec {SCRIPT_FD}<&-\n{command.text}".encode())
        terminal, output = -1, -1
        if job.job_class.console == "log":
            # Without a terminal to be had there is no log, as in Upstart.
            with contextlib.suppress(OSError):
                terminal, output = os.openpty()

        pid = os.fork()
        if not pid:
            # Nothing of the supervisor may run on in the child, whatever happens.
            try:
                become(job, command, self.settings.marker, output, script, writing)
            finally:
                os._exit(255)

        os.close(writing)
        if script is not None:
            os.close(script)
        spawned = Spawned(job, process, reading, terminal if terminal >= 0 else None)
        self._spawned[pid] = spawned
        self._watch(reading, lambda: self._set_up(pid))
        if spawned.terminal is not None:
            os.close(output)
            os.set_blocking(terminal, False)
            self._watch(terminal, lambda: self._keep_output(spawned))
        return pid

    def _set_up(self, pid: int) -> None:
        """The pipe of a new process ended: empty at its exec, with the reason if that failed."""
        spawned = self._spawned[pid]
        if spawned.setup is None:
            return
        reason = os.read(spawned.setup, 4096).decode()
        self._unwatch(spawned.setup)
        os.close(spawned.setup)
        spawned.setup = None
        if reason:
            name = f"{spawned.job.name} {spawned.process}"
            self.log(f"Failed to spawn {name} process: {reason}")
            self._stop_output(self._spawned.pop(pid))
            spawned.job.not_executed(spawned.process)
        else:
            spawned.job.executed(spawned.process)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self.later(partial(self._ended, pid, status))

    def _ended(self, pid: int, status: int) -> None:
        if pid in self._spawned:
            # A program that dies at once was executed before: in that order the job hears it.
            self._set_up(pid)
        spawned = self._spawned.pop(pid, None)
        if spawned is None:
            return
        self._stop_output(spawned)
        what = (
            f"killed by signal {os.WTERMSIG(status)}"
            if os.WIFSIGNALED(status)
            else f"terminated with status {os.WEXITSTATUS(status)}"
        )
        self.log(f"{spawned.job.name} {spawned.process} process ({pid}) {what}")
        if os.WIFSIGNALED(status):
            spawned.job.ended(spawned.process, os.WTERMSIG(status) << 8)
        else:
            spawned.job.ended(spawned.process, os.WEXITSTATUS(status))

    def _keep_output(self, spawned: Spawned) -> None:
        """Fact 9: what a job prints is in JOB.log, for root and its group only."""
        if spawned.terminal is None:
            return
        output, is_at_end = b"", False
        try:
            # Not without an end: an orphan may go on writing as fast as this reads.
            for _ in range(64):
                output += os.read(spawned.terminal, 65536)
        except BlockingIOError:
            pass
        except OSError as error:
            # So a terminal says that nobody has its other end.
            is_at_end = error.errno == errno.EIO
        if output:
            job = spawned.job
            name = job.job_class.name + (f"-{job.instance}" if job.instance else "")
            path = Path(self.settings.logs, name.replace("/", "_") + ".log")
            with open(path, "ab", opener=open_log) as log:
                log.write(output)
        if is_at_end:
            self._close_terminal(spawned)

    def _stop_output(self, spawned: Spawned) -> None:
        self._keep_output(spawned)
        self._close_terminal(spawned)

    def _close_terminal(self, spawned: Spawned) -> None:
        if spawned.terminal is not None:
            self._unwatch(spawned.terminal)
            os.close(spawned.terminal)
            spawned.terminal = None


def open_log(path: str, flags: int) -> int:
    return os.open(path, flags, 0o640)


def rejection(request: Request) -> str:
    """D-Bus's answer to a user that is not root; the facts have its beginning only."""
    return (
        'Rejected send message, 1 matched rules; type="method_call", '
        f'sender=":1.{request.pid % 1000}" (uid={request.uid} pid={request.pid} '
        f'comm="{" ".join(request.argv)} ") interface="com.ubuntu.Upstart0_6.Job" '
        f'member="{request.program.capitalize()}" error name="(unset)" requested_reply="0" '
        'destination="com.ubuntu.Upstart" (uid=0 pid=1 comm="/sbin/init")'
    )


def become(
    job: Job, command: Command, marker: str, output: int, script: int | None, setup: int
) -> None:
    """In the new process: take on what the job file says and run the program.

    Returns only if that failed; the reason is then in the pipe `setup`, which an exec closes.
    """
    try:
        signal.set_wakeup_fd(-1)
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(output if output >= 0 else nothing, 1)
        os.dup2(output if output >= 0 else nothing, 2)
        if setup == SCRIPT_FD:
            setup = os.dup(setup)
        if script is not None:
            os.dup2(script, SCRIPT_FD)
            os.set_inheritable(SCRIPT_FD, True)
        take_on(job.job_class)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        environment = job.environment | {
            "UPSTART_JOB": job.job_class.name,
            "UPSTART_INSTANCE": job.instance,
            MARKER: marker,
        }
        argv = arguments(command, from_descriptor=script is not None)
        os.execvpe(argv[0], argv, environment)
    except BaseException as error:  # noqa: BLE001 - nothing may escape into the supervisor's code
        os.write(setup, repr(error).encode())


def take_on(job_class: JobClass) -> None:
    """Apply the stanzas about the process; one that fails ends the start (row: bad chdir)."""
    for limit, values in job_class.limits.items():
        resource.setrlimit(limit, values)
    os.umask(job_class.umask)
    if job_class.nice is not None:
        os.setpriority(os.PRIO_PROCESS, 0, job_class.nice)
    if job_class.oom_score is not None:
        Path("/proc/self/oom_score_adj").write_text(str(job_class.oom_score))
    os.chdir(job_class.chdir)
    user = pwd.getpwnam(job_class.setuid) if job_class.setuid else None
    # Fact 15: `setuid` alone leaves root's group.
    group = grp.getgrnam(job_class.setgid).gr_gid if job_class.setgid else None
    if os.geteuid() == 0 and user:
        os.initgroups(user.pw_name, os.getegid() if group is None else group)
    # Without root these two succeed only for who one is already, and otherwise end the start.
    if group is not None:
        os.setgid(group)
    if user:
        os.setuid(user.pw_uid)


def arguments(command: Command, *, from_descriptor: bool) -> list[str]:
    """The argument vector for `command`, with a shell where Upstart takes one."""
    if from_descriptor:
        return ["/bin/sh", "-e", f"/proc/self/fd/{SCRIPT_FD}"]
    if command.is_script:
        return ["/bin/sh", "-e", "-c", command.text.rstrip("\n"), "/bin/sh"]
    if '\\"' in command.text:
        # Fact 15; how it comes to what the shell gets is not known, and neither are its words.
        return ["/bin/sh", "-e", "-c", f'exec {command.text}"', "/bin/sh"]
    if SHELL_CHARACTERS.intersection(command.text):
        return ["/bin/sh", "-e", "-c", f"exec {command.text}", "/bin/sh"]
    return command.text.split()


def end_children(seconds: float = 30) -> None:
    """Kill children until there are none: each one's own become ours as it dies (subreaper)."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for pid in pids():
            with contextlib.suppress(OSError, IndexError, ValueError):
                # A child that nobody has waited for keeps its PID: no stranger is hit.
                stat = Path(f"/proc/{pid}/stat").read_text()
                if int(stat.rpartition(")")[2].split()[1]) == os.getpid():
                    os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        except ChildProcessError:
            return
        time.sleep(0.002)


def pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


# ---------------------------------------------------------------------------------------------
# The programs `start`, `stop`, `restart` and `status`, and `initctl`

# Imported, not run as a script: that would compile it anew for each test, which takes 20 ms.
SUPERVISOR = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import upstart
upstart.supervise()
"""

# In Perl, which every Debian has: the tool asks thirty times a deploy, the start of a Python takes
# 9 ms and this 2, and the real ones take as little. The numbers are AF_UNIX, SOCK_STREAM and
# MSG_NOSIGNAL; to load the module that has their names takes longer than all else.
CLIENT = r"""
#!/usr/bin/perl
# Upstart's `%(program)s`, from a test's stand-in: see %(source)s
use strict;

$SIG{PIPE} = 'DEFAULT';
binmode STDOUT;
binmode STDERR;
if ("@ARGV" eq '--version') {  # not measured: as its programs print it
    print "%(program)s (upstart 1.13.2)\n";
    exit 0;
}
my $reply = '';
my $init;
if (socket($init, 1, 1, 0) && connect($init, pack('Sa*', 1, "\0" . '%(socket)s'))) {
    send($init, join("\0", '%(program)s', @ARGV), 0x4000);
    1 while sysread($init, $reply, 65536, length $reply);
}
$reply ||= "1\0\0%(program)s: Unable to connect to Upstart: Failed to connect to socket "
    . "/com/ubuntu/upstart: Connection refused\n";
my ($status, $output, $error) = split(/\0/, $reply, 3);
print STDOUT $output;
print STDERR $error;
exit $status;
""".lstrip()


# ---------------------------------------------------------------------------------------------
# The test's side


class Programs:
    """What the stand-in and the real thing have in common: the programs in `bin`, logs in `logs`."""

    manager = "upstart"
    bin: Path
    logs: Path

    def control(self, verb: str, job: str) -> None:
        """Starts, restarts or stops a job, as an operator would."""
        subprocess.run([self.bin / verb, job], check=True, capture_output=True)

    def pid(self, job: str, *environment: str) -> int | None:
        """The PID of `job`'s main process, or None; `environment` tells an instance."""
        return main_pid(self.bin, job, *environment)

    def printed(self, job: str) -> str:
        """What the job has printed."""
        log = self.logs / f"{job}.log"
        return log.read_text(errors="replace") if log.exists() else ""


class Upstart(Programs):
    """A running stand-in: `bin` has the four programs, `jobs` the .conf files, `logs` JOB.log.

    Everything it writes is below the directory it was given. That directory must be open to
    whoever is to call the programs (pytest's `tmp_path` is for its owner only).
    """

    def __init__(
        self, directory: Path, *, root_only: bool = False, system_bus: bool = True
    ) -> None:
        directory = directory.resolve()
        self.bin = directory / "bin"
        self.jobs = directory / "init"
        self.logs = directory / "log"
        self.kernel_log = directory / "kernel.log"
        for folder in (self.bin, self.jobs, self.logs):
            folder.mkdir(parents=True)
            folder.chmod(0o755)
        self._marker = os.urandom(8).hex()
        # An abstract address: no file that stays behind, no limit of 108 bytes on a path, and
        # open to every user, as Upstart's own /com/ubuntu/upstart is.
        address = f"/standin/upstart/{self._marker}"
        settings = Settings(
            socket=address,
            jobs=str(self.jobs),
            logs=str(self.logs),
            marker=self._marker,
            root_only=root_only,
            system_bus=system_bus,
        )
        for program in (*PROGRAMS, INITCTL):
            path = self.bin / program
            path.write_text(CLIENT % {"program": program, "socket": address, "source": __file__})
            path.chmod(0o755)

        self._control, theirs = socket.socketpair()
        self._control.settimeout(60)
        with theirs, open(self.kernel_log, "ab") as kernel_log:
            self._init = subprocess.Popen(
                [sys.executable, "-IS", "-c", SUPERVISOR, json.dumps(dataclasses.asdict(settings))],
                stdin=theirs.fileno(),
                stdout=kernel_log,
                stderr=kernel_log,
                cwd="/",
                # None of the test's: a marker of the tool under test would make it kill this.
                env=BASE_ENVIRONMENT,
                start_new_session=True,
            )
        try:
            self._hear(b"ready\n")
        except BaseException:
            self.close()
            raise

    @classmethod
    @contextlib.contextmanager
    def started(
        cls, directory: Path, *, root_only: bool = False, system_bus: bool = True
    ) -> Iterator[Upstart]:
        """An Upstart in `directory`, closed at the end.

        With `root_only` it answers a caller that is not root as a host with D-Bus does (only
        `status` works), and with `system_bus=False` as one without.
        """
        upstart = cls(directory, root_only=root_only, system_bus=system_bus)
        try:
            yield upstart
        finally:
            upstart.close()

    @property
    def init_pid(self) -> int:
        """The supervisor's PID."""
        return self._init.pid

    def install(self, job: str, text: str) -> None:
        """Write `job`'s .conf; a running job keeps its old definition until stop and start."""
        write_job(self.jobs / f"{job}.conf", text)

    def hang(self, program: str, job: str | None = None, *, carried_out: bool = False) -> None:
        """From now on `program` (of `job`, or of any) gets no answer: its caller waits.

        What it asks waits too, until `unhang`; with `carried_out` it is done and only the answer
        waits. As with the real thing, killing the caller withdraws nothing (fact 6).
        """
        order = {"do": "hang", "program": program, "job": job, "carried_out": carried_out}
        self._tell(order)

    def unhang(self) -> None:
        """Carry out what waits, give the answers that wait, and hang nothing from now on."""
        self._tell({"do": "unhang"})

    def close(self) -> None:
        """End the supervisor and every process that it or a job started; close twice is once."""
        # A fork of the test may have this end of the socket too: closing it would not do.
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        self._control.close()
        try:
            self._init.wait(60)
        except subprocess.TimeoutExpired:
            self._init.kill()
            self._init.wait()
        # The supervisor leaves none; this is for one that was killed itself.
        end_marked(self._marker)

    def _tell(self, order: Mapping[str, object]) -> None:
        self._control.sendall(json.dumps(order).encode())
        self._hear(b"done\n")

    def _hear(self, expected: bytes) -> None:
        if self._control.recv(64) != expected:
            log = self.kernel_log.read_text(errors="replace")
            raise RuntimeError(f"the stand-in for Upstart has ended:\n{log}")


class RealUpstart(Programs):
    """The real thing with the stand-in's face, to hold the stand-in against it."""

    def __init__(self, bin: Path, jobs: Path) -> None:
        self.bin = bin
        self.jobs = jobs
        self.logs = Path("/var/log/upstart")
        self._installed: dict[str, Path] = {}

    @classmethod
    @contextlib.contextmanager
    def opened(cls, bin: Path, jobs: Path) -> Iterator[RealUpstart]:
        upstart = cls(bin, jobs)
        try:
            yield upstart
        finally:
            upstart.close()

    def install(self, job: str, text: str) -> None:
        """Write `job`'s .conf and have it read; a job of the host itself is refused."""
        path = self.jobs / f"{job}.conf"
        if job not in self._installed and path.exists():
            raise FileExistsError(f"{path} belongs to this host")
        self._installed[job] = path
        write_job(path, text)
        self._reload()

    def close(self) -> None:
        """Stop the jobs that `install` brought and remove their files."""
        for job, path in self._installed.items():
            stop = [str(self.bin / "stop"), job]
            subprocess.run(stop, capture_output=True, timeout=60, check=False)
            path.unlink(missing_ok=True)
        if self._installed:
            self._reload()
        self._installed = {}

    def _reload(self) -> None:
        # Upstart watches the folder, but a request can be faster than its notice.
        if (self.bin / "initctl").exists():
            reload = [str(self.bin / "initctl"), "reload-configuration"]
            subprocess.run(reload, timeout=60, check=True)


def write_job(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(textwrap.dedent(text))
    temporary.replace(path)


def main_pid(bin: Path, job: str, *environment: str) -> int | None:
    """The PID of `job`'s main process according to `status`."""
    command = [str(bin / "status"), job, *environment]
    status = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    # `, (post-start) process N` and a PID in pre-start or post-stop are not the main process.
    found = re.search(r" \w+/([\w-]+), process (\d+)$", status.stdout, re.MULTILINE)
    return int(found[2]) if found and found[1] not in ("pre-start", "post-stop") else None


def end_marked(marker: str, seconds: float = 30) -> None:
    """Kill every process whose environment has this stand-in's marker, and no other."""
    entry = f"{MARKER}={marker}".encode()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = False
        for pid in pids():
            # The descriptor comes first: what is read next is of the process that it names.
            with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
                descriptor = os.pidfd_open(pid)
                stack.callback(os.close, descriptor)
                if entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    found = True
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        if not found:
            return
        time.sleep(0.005)


def supervise() -> None:
    """The supervisor's program. Its standard input is the socket to the test's side."""
    os.umask(0o022)
    settings = Settings(**json.loads(sys.argv[1]))
    control = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    Init(settings, control).run()
