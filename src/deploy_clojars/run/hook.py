"""The hook: the site's own command, which gets to know how a run ended when all of it is done."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.filesize import decimal

from deploy_clojars.config import Config
from deploy_clojars.errors import DeployError
from deploy_clojars.machine import processes, shell, signals
from deploy_clojars.machine.environment import environment
from deploy_clojars.screen.console import Console
from deploy_clojars.screen.text import printable

LONGEST = 4000  # characters of one variable; the kernel takes no more than 128 KiB
MOST_OUTPUT = 1_000_000  # bytes in the log

# `previous` is the release that `rollback` would go to now, `approved` the one that is approved
# now and `approved_before` when the run began; a run that was killed has no `status`.
NAMES = (
    "outcome", "command", "user", "version", "previous", "approved", "approved_before", "status",
    "why", "log",
)  # fmt: skip


def variables(**known: str | int | None) -> dict[str, str]:
    """How a run ended, as the hook gets it: DEPLOY_OUTCOME and so on for all of NAMES.

    One line each, empty where nothing is known.
    """
    return {f"DEPLOY_{name.upper()}": _one_line(known.get(name)) for name in NAMES}


def _one_line(value: str | int | None) -> str:
    text = "" if value is None else str(value)
    return printable(text.replace("\n", "; "))[:LONGEST]


def call(config: Config, console: Console, run_id: str, variables: Mapping[str, str]) -> None:
    """Runs the hook and waits for its end; nothing that it does is more than a warning.

    Its output goes into the log; it is ended once that is more than MOST_OUTPUT. None of its
    processes survives it. A signal does not cut it short: its time limit is short.
    """
    settings = config.hook
    if not settings.command:
        return

    def noted() -> None:
        console.warn(f"signal noted; waiting for the hook, up to {settings.timeout:g} s")

    try:
        with signals.uninterruptible(noted), console.step("hook", settings.command):
            with _leaving_little(console.log.fileno(), run_id) as refuse_too_much:
                with shell.running(
                    ["/bin/sh", "-c", settings.command],
                    log=console.log,
                    cwd=config.deploy_directory,
                    env={**environment(config.build.env, run_id), **variables},
                    timeout=settings.timeout,
                ) as hook:
                    hook.wait(refuse_too_much)
                status = hook.status
            if status != 0:
                raise DeployError(f"exit status {status}" if status > 0 else f"signal {-status}")
    except Exception as error:  # noqa: BLE001 # what is done is done, whatever the hook does
        _warn(console, str(error) or repr(error))


@contextmanager
def _leaving_little(log: int, run_id: str) -> Iterator[Callable[[], None]]:
    """Ends the processes that the block leaves, and cuts its output in the log to MOST_OUTPUT.

    The block gets a function that raises DeployError once there is more.
    """
    end = os.fstat(log).st_size + MOST_OUTPUT

    def is_too_much() -> bool:
        return os.fstat(log).st_size > end

    def refuse_too_much() -> None:
        if is_too_much():
            raise DeployError(f"it printed more than {decimal(MOST_OUTPUT)}")

    try:
        yield refuse_too_much
        refuse_too_much()
    finally:
        processes.end_strays(run_id)
        if is_too_much():
            os.ftruncate(log, end)


def _warn(console: Console, why: str) -> None:
    log = f"; its output: {console.log_file}" if console.log_file else ""
    console.warn(f"the hook failed: {why}{log}")
