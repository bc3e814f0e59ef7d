"""Calls that run in parallel, as far as threads can be started."""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import TypeVar

Result = TypeVar("Result")


def started(call: Callable[[], Result]) -> Future[Result]:
    """Runs the call in a thread of its own; the future has what it returns or raises.

    If no thread can be started, the call has run when this returns: the limit on a user's processes
    counts threads, and a revert must not depend on one more.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 # whoever asks for the result gets it
            future.set_exception(error)

    try:
        threading.Thread(target=run, daemon=True).start()
    except RuntimeError:
        run()
    return future


SET_ASIDE = 32  # a look has six threads and two programs, and two may be at work at once
STACK = 256 * 1024  # bytes, of a thread that only waits

_are_released = threading.Event()


@contextmanager
def set_aside() -> Iterator[None]:
    """While the block runs, `release` can make room at the limit of processes.

    The limit on a user's processes counts the threads of all JVMs, and may be reached while a
    question is open. So this starts threads that only wait, and end when their place is needed.
    """
    _are_released.clear()
    usual = threading.stack_size(STACK)
    with suppress(RuntimeError):  # the limit is near already: some are better than none
        for _ in range(SET_ASIDE):
            _thread.start_new_thread(_are_released.wait, ())
    threading.stack_size(usual)
    try:
        yield
    finally:
        release()


def release() -> None:
    """Gives up what was set aside; the places are free in a moment."""
    _are_released.set()
