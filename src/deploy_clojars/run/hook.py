"""The hook: somebody's own command that is told how a run ended, when all of it is done."""

from __future__ import annotations

from dataclasses import dataclass

from deploy_clojars.config import Config
from deploy_clojars.machine import processes, shell, signals
from deploy_clojars.machine.environment import environment
from deploy_clojars.machine.shell import printable
from deploy_clojars.screen.console import Console

LONGEST = 4000  # characters of one variable; the kernel takes no more than 128 KiB


@dataclass(frozen=True)
class Outcome:
    """How a run ended. None: there is none, or it is not known."""

    outcome: str  # a word of `history`
    command: str
    user: str | None
    version: str | None = None
    previous: str | None = None  # the release that `rollback` would go to now
    approved: str | None = None  # the release that is approved now
    approved_before: str | None = None  # and when the run began
    status: int | None = None  # of a run that was killed there is none
    why: str | None = None
    log: str | None = None


def variables(outcome: Outcome) -> dict[str, str]:
    """The outcome as the hook gets it: one line each, empty where there is nothing to say."""
    values = {
        "DEPLOY_OUTCOME": outcome.outcome,
        "DEPLOY_COMMAND": outcome.command,
        "DEPLOY_USER": outcome.user,
        "DEPLOY_VERSION": outcome.version,
        "DEPLOY_PREVIOUS": outcome.previous,
        "DEPLOY_APPROVED": outcome.approved,
        "DEPLOY_APPROVED_BEFORE": outcome.approved_before,
        "DEPLOY_STATUS": None if outcome.status is None else str(int(outcome.status)),
        "DEPLOY_WHY": outcome.why,
        "DEPLOY_LOG": outcome.log,
    }
    return {name: _one_line(value or "") for name, value in values.items()}


def _one_line(text: str) -> str:
    readable = text.encode("utf-8", "backslashreplace").decode()
    return printable(readable.replace("\n", "; "))[:LONGEST]


def tell(config: Config, console: Console, run_id: str, outcome: Outcome) -> None:
    """Runs the hook and waits for its end; nothing that it does is more than a warning.

    Its output goes into the log, and none of its processes is left. It is not cut short by a
    signal: its time limit is short.
    """
    settings = config.hook
    if not settings.command:
        return

    def noted() -> None:
        console.warn(f"signal noted; the hook is waited for, up to {settings.timeout:g} s")

    try:
        with signals.uninterruptible(noted), console.step("hook", settings.command):
            status = shell.stream(
                ["/bin/sh", "-c", settings.command],
                log=console.log,
                cwd=config.deploy_directory,
                env={**environment(config.build.env, run_id), **variables(outcome)},
                timeout=settings.timeout,
            )
        if status != 0:
            how = f"exit status {status}" if status > 0 else f"signal {-status}"
            _warn(console, how)
    except Exception as error:  # noqa: BLE001 # what is done is done, whatever became of the news
        _warn(console, str(error) or repr(error))
    finally:
        processes.end_strays(run_id)


def _warn(console: Console, why: str) -> None:
    log = f"; its output: {console.log_file}" if console.log_file else ""
    console.warn(f"the hook failed: {why}{log}")
