"""Signals: a handler only sets a flag; the runner, the waits and the question look at it.

A handler that raises is no good here: with sudo's pseudo-terminal a closed window gives the
question its end of input first, and the hang-up then hits the middle of the clean-up.
The flag belongs to the process, as the handlers do, so it is the module's.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from deploy_clojars.errors import Interrupted

Notice = Callable[[], None]

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)

_caught: int | None = None
_uninterruptible: Notice | None = None
_wakeup_reader: int | None = None


def _note(signum: int, _frame: FrameType | None) -> None:
    global _caught
    if _caught is None:
        _caught = signum


@contextmanager
def handled(*, then_ignored: bool = False) -> Iterator[None]:
    """Catches the signals that end a program for as long as the block runs.

    `then_ignored`: afterwards the process only has to exit, and a signal in its last milliseconds
    must not change the exit status.
    """
    global _caught, _wakeup_reader
    _caught = None
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    # Under nohup a hang-up is ignored, and stays so. What a script runs in its background gets
    # Ctrl-C ignored, too, and `kill -INT` must stop it all the same.
    under_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    heeded = [each for each in HANDLED if each != signal.SIGHUP or not under_nohup]
    before = {signum: signal.signal(signum, _note) for signum in heeded}
    # The pipe ends a poll() at once, also when the signal came just before it began.
    wakeup_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    _wakeup_reader = reader
    try:
        yield
    finally:
        _wakeup_reader = None
        signal.set_wakeup_fd(wakeup_before)
        for signum, handler in before.items():
            signal.signal(signum, signal.SIG_IGN if then_ignored else handler)
        os.close(reader)
        os.close(writer)
        _caught = None


@contextmanager
def uninterruptible(notice: Notice) -> Iterator[None]:
    """Lets the block finish whatever signals come; `notice` is called once if a new one does."""
    global _uninterruptible, _caught
    outer, caught_before = _uninterruptible, _caught
    _caught = None

    def once() -> None:
        global _uninterruptible
        _uninterruptible = lambda: None
        notice()

    _uninterruptible = outer or once
    try:
        yield
    finally:
        _uninterruptible = outer
        if outer is None and caught_before is not None:
            _caught = caught_before


@contextmanager
def noticing_fg() -> Iterator[Callable[[], bool]]:
    """Yields a function: whether the process, once stopped (Ctrl-Z), has continued since its last call.

    wait() returns at once then.
    """
    continued = False

    def note(_signum: int, _frame: FrameType | None) -> None:
        nonlocal continued
        continued = True

    def has_continued() -> bool:
        nonlocal continued
        was, continued = continued, False
        return was

    before = signal.signal(signal.SIGCONT, note)
    try:
        yield has_continued
    finally:
        signal.signal(signal.SIGCONT, before)


def check() -> None:
    """Raises Interrupted (128 + N) if a signal was caught and the block may be interrupted."""
    if _caught is None:
        return
    if _uninterruptible is not None:
        _uninterruptible()
        return
    raise Interrupted(_caught, signal.Signals(_caught).name)


def wait(seconds: float, *files: int) -> Sequence[int]:
    """Waits until one of `files` can be read, a signal comes or `seconds` are over.

    Returns the files that can be read. Raises Interrupted as `check` does.
    """
    check()
    poll = select.poll()  # select() takes no descriptor above 1023, and there may be many open
    for file in files if _wakeup_reader is None else (*files, _wakeup_reader):
        poll.register(file, select.POLLIN)
    deadline = time.monotonic() + seconds
    ready = [file for file, _ in poll.poll(seconds * 1000)]
    if _wakeup_reader is not None and _wakeup_reader in ready:
        with suppress(BlockingIOError):
            while os.read(_wakeup_reader, 512):
                pass
        check()
        if not files:
            # Uninterruptible: the signal must not shorten the pause.
            return wait(max(0.0, deadline - time.monotonic()))
    return [file for file in ready if file in files]
