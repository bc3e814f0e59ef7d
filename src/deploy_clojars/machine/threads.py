"""Calls that run beside one another, as far as the machine lets threads be started."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


def started(call: Callable[[], Result]) -> Future[Result]:
    """Runs the call in a thread of its own; the future has what it returns or raises.

    Where no thread can be started it has run when this returns: the limit of a user's processes
    counts threads, and a revert must not need one more of them than there are.
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
