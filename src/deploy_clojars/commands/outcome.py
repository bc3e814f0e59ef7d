"""How a command that changes the host ended, for programs: `--json`."""

from __future__ import annotations

from contextlib import suppress

import msgspec

from deploy_clojars.errors import Declined, DeployError, Interrupted, Status
from deploy_clojars.host.journal import INSTALL
from deploy_clojars.run.run import DECLINED, INTERRUPTED, Request, Run

REFUSED = "refused"
REVERTED = "reverted"
WOULD_CHANGE, NOTHING_TO_DO = "dry run", "nothing to do"


class Outcome(msgspec.Struct, frozen=True):
    """How a command ended; keys are only ever added."""

    outcome: str
    status: int
    changed: bool  # whether anything on the host was changed or, with `--dry-run`, would be
    # The release that was approved before; None also if that is unknown or does not matter.
    approved: str | None = msgspec.field(name="from")
    version: str | None = msgspec.field(name="to")  # the one that was asked for
    seconds: dict[str, float]  # by step
    message: str | None  # what went wrong
    detail: list[str]
    remedy: str | None
    log: str | None


def outcome_of(
    run: Run | None, request: Request | None, error: DeployError | None, *, dry_run: bool
) -> Outcome:
    """How the command ended; `run` is None if no run was started, `error` if all went well."""
    version = (run.version if run is not None else "") or (request.version if request else None)
    return Outcome(
        outcome=_word(run, error, dry_run=dry_run),
        status=int(error.status if error is not None else Status.DONE),
        changed=run is not None and run.changed,
        approved=_approved_before(run),
        version=version or None,
        seconds=_seconds(run) if not dry_run else {},
        message=_text(error.message) if error is not None else None,
        detail=_text(error.detail).splitlines() if error is not None else [],
        remedy=_text(error.remedy) or None if error is not None else None,
        log=_text(str(run.console.log_file)) if run is not None and run.console.log_file else None,
    )


def as_json(outcome: Outcome) -> str:
    """The outcome as one JSON object."""
    return msgspec.json.format(msgspec.json.encode(outcome), indent=2).decode()


def _word(run: Run | None, error: DeployError | None, *, dry_run: bool) -> str:
    if error is None:
        would_change = WOULD_CHANGE if run is not None and run.changed else NOTHING_TO_DO
        return would_change if dry_run or run is None else run.outcome
    if isinstance(error, Declined | Interrupted):
        return DECLINED if isinstance(error, Declined) else INTERRUPTED
    if run is None or not run.has_begun:
        return "failed" if error.status in (Status.HALF_DONE, Status.DEFECT) else REFUSED
    return REVERTED if run.reverted else "failed"


def _approved_before(run: Run | None) -> str | None:
    if run is None or run.request.command == INSTALL:
        return None
    if run.before is not None:
        return run.before.approved
    with suppress(OSError):
        return run.host.journal.history().approved
    return None


def _seconds(run: Run | None) -> dict[str, float]:
    took = run.times.took if run is not None else {}
    return {step: round(seconds, 3) for step, seconds in took.items()}


def _text(text: str) -> str:
    """Escapes what is not Unicode, as in the names of some files: JSON cannot hold it."""
    return text.encode("utf-8", "backslashreplace").decode()
