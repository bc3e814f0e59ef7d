"""All that is shown: steps, notes, errors and questions on the terminal and in the run's log."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import termios
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from rich.text import Text

from deploy_clojars.errors import Declined, DeployError
from deploy_clojars.machine import signals
from deploy_clojars.screen.line import Line, LiveLine, LiveLines, PlainLine, Terminal, cut
from deploy_clojars.screen.stderr import SafeStderr
from deploy_clojars.screen.text import printable

ANSWERS = {b"yes": True, b"y": True, b"no": False, b"n": False}
NARROWEST, WIDEST = 40, 100  # characters of a line of prose
IFLAG, LFLAG = 0, 3  # of termios.tcgetattr()
# On a page before a question: a way to answer, where to look, and what needs a second thought.
WORTH_SEEING = {
    r"^  (yes|no)(?=  )": "bold",
    r"https?://[^\s]+": "underline",
    r"going BACK|was rolled back": "bold yellow",
}


class Console:
    """What a run says. Progress, questions and errors go to standard error and into the log."""

    def __init__(self, *, verbose: bool = False, quiet: bool = False) -> None:
        # An ASCII locale must not turn a tag's name into a crash.
        with suppress(AttributeError, ValueError, OSError):
            sys.stderr.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        self._stderr = SafeStderr(sys.stderr)
        self._terminal = Terminal(self._stderr)
        self.verbose = verbose
        self.quiet = quiet
        self._log: IO[bytes] | None = None
        self.log_file: Path | None = None
        self._live_lines = LiveLines(self._terminal)
        self._at_work: list[Line] = []  # the lines of steps

    @property
    def is_alive(self) -> bool:
        """Whether steps are shown on a line that changes."""
        return self._terminal.is_alive and not self.quiet

    @property
    def log(self) -> IO[bytes]:
        """Where a command's output goes: the run's log, or nowhere if it can't be written."""
        if self._log is None:
            self._log = open(os.devnull, "ab")  # noqa: SIM115 # closed with the process
        return self._log

    def never_waiting(self) -> AbstractContextManager[None]:
        """While the block runs, no reader of standard error can hold it up."""
        return self._stderr.never_waited_for()

    @contextmanager
    def logging_to(self, file: Path) -> Iterator[None]:
        """Writes all that is said into `file`, too. A log that can't be written is a warning."""
        try:
            if file.parent.is_symlink():
                raise NotADirectoryError(errno.ENOTDIR, "is reached through a symbolic link")
            file.parent.mkdir(parents=True, exist_ok=True)
            self._log = open(file, "a+b", buffering=0, opener=_private)  # noqa: SIM115
            self.log_file = file
        except OSError as error:
            self.warn(f"no log: {file}: {error.strerror}")
        try:
            yield
        finally:
            if self._log is not None:
                self._log.close()
            self._log = None

    def say(self, text: str, style: str = "") -> None:
        """Shows a line, unless the run is quiet."""
        self._into_log(text)
        if not self.quiet:
            self._show(text, style)

    def tell(self, text: str, style: str = "") -> None:
        """Shows a line that belongs to a question, also if the run is quiet."""
        self._into_log(text)
        self._show(text, style)

    def page(self, lines: Iterable[str], *, always: bool) -> None:
        """Shows what a person should read before a question; `always`: also if the run is quiet."""
        is_shown = always or not self.quiet
        if is_shown and self._terminal.is_alive:
            self._terminal.rule(style="dim")  # apart from the steps
        elif is_shown:
            self._show("")
        for line in lines:
            self._into_log(line)
            if is_shown:
                text = Text(self._folded(printable(line)))
                for pattern, style in WORTH_SEEING.items():
                    text.highlight_regex(pattern, style)
                self._show(text)

    def warn(self, text: str) -> None:
        """Shows what the operator should know although the run goes on."""
        self._into_log(f"warning: {text}")
        self._show(f"warning: {text}", "yellow")

    def error(self, error: DeployError) -> None:
        """Shows what ended the run, once: what others said, what happened, what to type next."""
        if error.shown:
            return
        error.shown = True
        for line in error.detail.splitlines():
            self._into_log(f"  | {line}")
            self._show(f"  | {line}", "dim")
        self._into_log(f"error: {error.message}")
        self._show(f"error: {error.message}", "bold red")
        for line in error.remedy.splitlines():
            self._into_log(f"  {line}")
            self._show(f"  {line}")

    def trace(self, traceback: str) -> None:
        """Writes a defect's traceback into the log."""
        self._into_log(traceback)

    @contextmanager
    def output_apart(self, name: str) -> Iterator[IO[bytes]]:
        """A file beside the log, for the output of one of two steps that run at the same time.

        At the end all of it goes into the log, under its heading. Only a run that is killed leaves the
        file behind.
        """
        file = (self.log_file or Path(os.devnull, "none")).with_suffix(f".{name}.log")
        try:
            output = open(file, "w+b", buffering=0, opener=_private)  # noqa: SIM115
        except OSError:
            yield self.log  # mixed rather than lost
            return
        try:
            yield output
        finally:
            self._into_log(f"{name}: its output")
            with suppress(OSError), output:
                output.seek(0)
                shutil.copyfileobj(output, self.log)
                file.unlink()

    @contextmanager
    def step(
        self, name: str, what: str, usual_seconds: float | None = None
    ) -> Iterator[Callable[[str], None]]:
        """Shows a step: its line when it starts, its time when it is done.

        `usual_seconds` is how long it took last time. The block gets a function that notes the
        result, which is shown with the time.
        """
        started = time.monotonic()
        result = ""

        def becomes(text: str) -> None:
            nonlocal result
            result = printable(text)

        def ended(how: str) -> str:
            seconds = f"{time.monotonic() - started:.1f} s"
            return ", ".join(part for part in (how, seconds) if part)

        self._into_log(f"{name}: {what}")
        line = self._line_of(name, printable(what), usual_seconds)
        try:
            yield becomes
        except BaseException as error:
            how = ended("stopped" if isinstance(error, GeneratorExit) else "failed")
            self._into_log(f"{name}: {how}")
            self._close(line, how, failed=True)
            raise
        self._into_log(f"{name}: {ended(result)}")
        self._close(line, ended(result), failed=False)

    def ask(self, question: str, watch: Callable[[], str | None]) -> bool:
        """Asks until the answer is yes or no. `watch` is called every second; what it returns
        is shown above the question.

        Raises Declined (7) at the end of input, Interrupted if a signal comes.
        """
        with suppress(termios.error, OSError, ValueError):
            # An answer typed before the question was shown is no answer to it.
            termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)
        prompt = f"{question} [yes/no] "
        self._into_log(prompt)
        try:
            with lines_typed_at(sys.stdin.fileno()), signals.noticing_fg() as has_continued:
                self._show(prompt, "bold", end="")
                return self._answer(prompt, watch, has_continued)
        except DeployError:
            self._show("")  # what comes next does not stand behind the question
            raise

    def _answer(
        self, prompt: str, watch: Callable[[], str | None], has_continued: Callable[[], bool]
    ) -> bool:
        typed = b""
        while True:
            if signals.wait(1.0, sys.stdin.fileno()):
                received = b""
                with suppress(OSError):  # of a terminal that is gone
                    received = os.read(sys.stdin.fileno(), 4096)
                if not received:
                    raise Declined("the input ended before an answer came")
                typed += received
            while b"\n" in typed:
                line, _, typed = typed.partition(b"\n")
                answer = ANSWERS.get(line.strip().lower())
                self._into_log(f"answered: {line.decode('utf-8', 'replace')}")
                if answer is not None:
                    return answer
                self._show("Please type yes or no.")
                self._show(prompt, "bold", end="")
            notice = watch()
            if has_continued():  # the shell has written below the question since
                self._show(prompt, "bold", end="")
            if notice:
                self._show("")
                self.warn(notice)
                self._show(prompt, "bold", end="")

    def _line_of(self, name: str, what: str, usual_seconds: float | None) -> Line | None:
        """The line of a step that begins; None if the run is quiet."""
        if self.quiet:
            return None
        self._pause()
        line: Line
        if self.is_alive:
            line = LiveLine(self._terminal, self._live_lines, name, what, usual_seconds)
        else:
            line = PlainLine(self._terminal, name, what)
        self._at_work.append(line)
        return line

    def _pause(self, but: Line | None = None) -> None:
        """Something other than the steps' lines is shown now."""
        for line in self._at_work:
            if line is not but:
                line.pause()

    def _close(self, line: Line | None, ending: str, *, failed: bool) -> None:
        if line is not None:
            self._pause(line)
            self._at_work.remove(line)
            line.end(ending, failed=failed)

    def _show(self, text: str | Text, style: str = "", end: str = "\n") -> None:
        self._pause()
        shown = Text(printable(text), style) if isinstance(text, str) else text
        self._terminal.print(shown, end=end)
        self._terminal.file.flush()

    @property
    def _width(self) -> int:
        return min(max(self._terminal.width, NARROWEST), WIDEST)

    def cut(self, text: str, lines: int = 1) -> str:
        """Other people's text, cut to so many lines of the terminal; a pipe gets all of it."""
        return cut(printable(text), lines * self._width) if self._terminal.is_terminal else text

    def _folded(self, text: str) -> str:
        """Prose in lines that end between words, on a terminal; a pipe gets it as it is."""
        if not self._terminal.is_terminal:
            return text
        # Behind a word that stands alone at the beginning, as in `  yes  restarts clojars`.
        begins = re.match(r" *(\S+ {2,})?", text)
        indent = " " * (begins.end() if begins and begins[1] else 2)
        lines = textwrap.wrap(
            text,
            self._width,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        return "\n".join(lines)

    def raw(self, text: str, name: str = "") -> None:
        """Shows a build's own output (`-v`), with a `name` before each line; the log gets it, too."""
        self._pause()
        for line in text.removesuffix("\n").split("\n"):
            self._terminal.print(Text(f"  {name}| {printable(line)}", "dim"))

    def _into_log(self, text: str) -> None:
        if self._log is None:
            return
        stamp = datetime.now(UTC).strftime("%H:%M:%S")
        with suppress(OSError, ValueError):
            descriptor = self._log.fileno()
            size = os.fstat(descriptor).st_size
            if size > 0 and os.pread(descriptor, 1, size - 1) != b"\n":
                self._log.write(b"\n")  # a program's last line may lack it
            for line in printable(text).split("\n"):
                self._log.write(f"{stamp} {line}\n".encode())


@contextmanager
def lines_typed_at(terminal: int) -> Iterator[None]:
    """While the block runs, Enter ends a line and Ctrl-C is heard, however the terminal was left.

    Without ICRNL, as after a program that was killed, no answer would ever be complete.
    """
    try:
        before = termios.tcgetattr(terminal)
        wanted = [*before]
        wanted[IFLAG] = before[IFLAG] & ~(termios.IGNCR | termios.INLCR) | termios.ICRNL
        wanted[LFLAG] |= termios.ICANON | termios.ECHO | termios.ISIG
    except (termios.error, OSError, ValueError):
        yield
        return
    try:
        _set(terminal, before, wanted)
        yield
    finally:
        _set(terminal, wanted, before)


def _set(terminal: int, now: list[Any], settings: list[Any]) -> None:
    if settings != now:  # a terminal may refuse any request
        with suppress(termios.error, OSError):
            termios.tcsetattr(terminal, termios.TCSANOW, settings)


def _private(file: str, flags: int) -> int:
    """Opens a log: for the user and its group, and never through a link."""
    descriptor = os.open(file, flags | os.O_NOFOLLOW, 0o640)
    os.fchmod(descriptor, 0o640)  # whatever the umask
    return descriptor


def log_name(command: str, version: str | None, moment: datetime) -> str:
    """The name of a run's log; in the order of time."""
    safe = re.sub(r"[^A-Za-z0-9._+-]", "_", version or "")
    stamp = moment.strftime("%Y-%m-%dT%H%M%SZ")
    return "-".join(part for part in (stamp, command, safe, str(os.getpid())) if part) + ".log"
