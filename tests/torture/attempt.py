"""One run of the tool on a terminal, hit at a moment."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from little_host import PROMPT, LittleHost, wait_for_its_lock, without_escapes

from torture.hits import CTRL_C, Course, Hit, Mark, Moment
from torture.watchers import MODIFY, drain, watch

LOOK_SECONDS = 0.05  # between two looks if neither the journal nor the screen has changed
PATIENCE = 180.0  # seconds for a run to end


@dataclass(frozen=True)
class Ended:
    """How a run has ended: its exit status, its lines of the journal, its screen."""

    words: tuple[str, ...]
    status: int
    lines: list[dict[str, Any]]
    course: Course
    shown: str
    hit_at: float | None  # seconds from the start
    was_hit_in_time: bool  # at work and before the answer; after that a signal may be too late

    @property
    def story(self) -> str:
        """What is to be read after a violation: the screen, and the journal with its times."""
        times = (f"{at:.3f}" for _, at in self.course.lines)
        lines = (f"{at} {json.dumps(line)}" for at, line in zip(times, self.lines, strict=True))
        return "\n".join([" ".join(self.words), self.shown, f"hit at {self.hit_at}", *lines])

    @property
    def installs(self) -> bool:
        """Whether it only has a release ready."""
        return self.words[0] == "install"

    def wrote(self, event: str) -> bool:
        """Whether the run's journal has such a line."""
        return any(line["event"] == event for line in self.lines)


class Attempt:
    """A run on a terminal of its own, with somebody who answers its question.

    `answering` is called before the answer is typed.
    """

    def __init__(
        self,
        host: LittleHost,
        words: tuple[str, ...],
        answer: str,
        answering: Callable[[], None] = lambda: None,
    ) -> None:
        self._answering = answering
        self._words = words
        self._answer = answer
        self._journal = host.deploy / "journal.jsonl"
        self._lock = host.deploy / "lock"
        host.deploy.mkdir(mode=0o755, exist_ok=True)
        self._written = watch(host.deploy, MODIFY)
        self._read = self._journal.stat().st_size if self._journal.exists() else 0
        self._lines: list[dict[str, Any]] = []
        self._marks: list[tuple[Mark, float]] = []
        self._seen: Counter[tuple[str, str]] = Counter()
        self._shown = b""
        self.answered = False
        self._is_closed = False
        self._terminal, theirs = pty.openpty()
        self._started = time.monotonic()
        # It makes the terminal the tool's own, so that Ctrl-C is sent by the kernel.
        self._process = subprocess.Popen(
            ["setsid", "--ctty", *host.command, *words],
            env=host.whole_environment, cwd=host.directory,
            stdin=theirs, stdout=theirs, stderr=theirs,
        )  # fmt: skip
        os.close(theirs)

    def hit(self, hit: Hit | None = None, moment: Moment | None = None) -> Ended:
        """Deals the hit at the moment, and waits for the end."""
        blows = list(hit.blows) if hit is not None else []
        due: float | None = None
        hit_at: float | None = None
        at_work_and_unanswered = False
        deadline = self._started + PATIENCE
        try:
            while self._process.poll() is None:
                now = time.monotonic()
                assert now < deadline, f"does not end:\n{self.screen}\n{self._lines}"
                if blows and due is None and moment is not None:
                    due = self._time_of(moment)
                if blows and due is not None and now >= due:
                    if hit_at is None:
                        hit_at = now - self._started
                        at_work_and_unanswered = bool(self._lines) and not self.answered
                    self._deal(blows.pop(0))
                    due = now + (hit.pause if hit is not None else 0)
                    continue
                self._answer_if_asked()  # after a blow that is due at the question
                wait = LOOK_SECONDS if due is None or not blows else min(due - now, LOOK_SECONDS)
                self._look_at_the_screen(wait)
                self._look_at_the_journal()
            ended = time.monotonic() - self._started
            while self._look_at_the_screen(0):
                pass
            self._look_at_the_journal()
        finally:
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()
            os.close(self._terminal)
            os.close(self._written)
        wait_for_its_lock(self._lock, self._process.pid)
        code = self._process.returncode
        return Ended(
            self._words, code if code >= 0 else 128 - code, self._lines,
            Course(tuple(self._marks), ended), self.screen, hit_at,
            at_work_and_unanswered and self.answered,
        )  # fmt: skip

    @property
    def screen(self) -> str:
        """What the terminal has shown."""
        return without_escapes(self._shown.decode("utf-8", "replace"))

    def _time_of(self, moment: Moment) -> float | None:
        if moment.after is None:
            return self._started + moment.seconds
        at = next((at for mark, at in self._marks if mark == moment.after), None)
        return None if at is None else self._started + at + moment.seconds

    def _deal(self, blow: str) -> None:
        if blow == CTRL_C:
            os.write(self._terminal, b"\x03")
        else:
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.Signals[blow])

    def _look_at_the_screen(self, seconds: float) -> bool:
        """Waits until something happens, and returns whether it was something on the screen."""
        watched = [self._written] if self._is_closed else [self._written, self._terminal]
        readable = select.select(watched, [], [], seconds)[0]
        if self._written in readable:
            drain(self._written)
        if self._terminal not in readable:
            return False
        try:
            self._shown += os.read(self._terminal, 65536)
        except OSError:  # the tool has closed it
            self._is_closed = True
            return False
        return True

    def _answer_if_asked(self) -> None:
        if not self.answered and PROMPT.encode() in self._shown:
            self.answered = True
            self._answering()
            with suppress(OSError):  # the tool has closed it
                os.write(self._terminal, f"{self._answer}\n".encode())

    def _look_at_the_journal(self) -> None:
        if not self._journal.exists() or self._journal.stat().st_size <= self._read:
            return
        with self._journal.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            if line:
                self._note(json.loads(line))

    def _note(self, line: dict[str, Any]) -> None:
        self._lines.append(line)
        of = str(line.get("step") or line.get("instance") or "")
        self._seen[line["event"], of] += 1
        mark = Mark(line["event"], of, self._seen[line["event"], of])
        self._marks.append((mark, time.monotonic() - self._started))
