"""What runs where: read, never changed; quick, and for any user."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import click
import msgspec

from deploy_clojars.host.health import Observation
from deploy_clojars.host.host import Host
from deploy_clojars.host.journal import INSTALL
from deploy_clojars.host.look import RESTS, Look
from deploy_clojars.host.situation import Situation
from deploy_clojars.host.users import user_name
from deploy_clojars.run import lock

# What matters in the report's text, and how it is shown on a terminal.
STYLES: dict[str, dict[str, Any]] = {
    r"(?m)^ok$": {"fg": "green", "bold": True},
    r"(?m)^(needs a person|nothing is deployed yet)$": {"fg": "red", "bold": True},
    r"(?m)^next: .*": {"bold": True},
    r"NOT serving": {"fg": "red", "bold": True},
    r"(?<=, )serving": {"fg": "green"},
}


@dataclass(frozen=True)
class Report:
    """All that `status` tells."""

    look: Look
    situation: Situation
    holder: lock.Holder | None
    next: str | None
    previous_is_gone: bool  # its jar, as far as this user can see

    @property
    def ok(self) -> bool:
        """Whether nothing needs a person."""
        return self.situation.ok and not self.look.journal_error


def report(host: Host) -> Report:
    """Looks at the host."""
    holder = lock.holder_of(host.lock_file)
    look = host.look()
    # A run may have begun, or ended, between the two.
    holder = holder or lock.holder_of(host.lock_file)
    situation = host.situation(look, locked=holder is not None)
    following = host.next_command(look, situation)
    refused = following is not None and situation.unclear  # as every other command would be
    if refused or (following is None and look.journal_error and not situation.locked):
        following = host.command("check")
    previous = look.history.previous
    gone = look.current.visible and previous is not None and not host.releases.has(previous)
    return Report(look, situation, holder, following, gone)


def as_json(report: Report) -> str:
    """The report as the contract has it; keys are only ever added."""
    look, situation = report.look, report.situation
    current = look.history.installed.get(look.current.version or "")
    document = {
        "current": look.current.version,
        "source": current.source if current is not None else None,  # of current
        "approved": look.approved,
        "previous": look.history.previous,
        "interrupted": situation.interrupted,
        "drift": situation.drifted,
        "stale_drain_flag": situation.stale_flag,
        "ok": report.ok,
        "next": report.next,
        "lock": report.holder,
        "instances": {each.role: _instance(each) for each in look.instances},
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()


def _instance(observation: Observation) -> dict[str, Any]:
    return {
        "job": observation.job,
        "state": observation.state,
        "pid": observation.pid,
        "since": observation.since,
        "running": observation.running,
        "serving": observation.serving,
        "obstacle": observation.obstacle or None,
        "checks": observation.checks,
    }


def as_text(report: Report) -> str:
    """The report for people: where things are, then what is wrong, then what to type."""
    look = report.look
    names = ("current", "approved", "previous")
    previous = f"{look.history.previous or 'none'}{' (its jar is gone)' * report.previous_is_gone}"
    values = (look.current.version, look.approved, previous)
    lines = [f"{name:<9} {value or 'none'}" for name, value in zip(names, values, strict=True)]
    for observation in look.instances:
        lines.append(f"{observation.role:<9} {_instance_line(look, observation)}")
        if not _rests(look, observation):
            lines += [
                f"{'':<9} {check.url}: {check.detail}"
                for check in observation.checks
                if not check.ok
            ]
    lines += _remarks(report)
    lines.append(_judgement(report))
    if report.next:
        lines.append(f"next: {report.next}")
    return "\n".join(lines)


def coloured(text: str) -> str:
    """The report's text with what matters in colour, for a terminal."""
    for pattern, style in STYLES.items():
        text = re.sub(pattern, click.style(r"\g<0>", **style), text)
    return text


def as_one_line(report: Report) -> str:
    """What a login shows: nothing if all is well, otherwise what is the matter and what to type."""
    if report.ok:
        return "; ".join(report.look.obstacles)
    down = [_instance_line(report.look, each) for each in report.look.instances if not each.serving]
    parts = [*(_remarks(report) or down or [_judgement(report)])]
    if report.next:
        parts.append(f"next: {report.next}")
    return "; ".join(parts)


def _judgement(report: Report) -> str:
    if report.ok:
        return "ok"
    if report.holder is not None:
        return "wait"
    look = report.look
    if not look.current.visible:
        return f"not visible to {user_name()}"
    if look.approved is None and look.current.text is None and look.history.unfinished is None:
        return "nothing is deployed yet"
    return "needs a person"


def _rests(look: Look, observation: Observation) -> bool:
    return observation is look.backup and look.backup_rests


def _instance_line(look: Look, observation: Observation) -> str:
    if _rests(look, observation):
        return f"{observation.job}: {RESTS}{observation.whose_ports}"
    if observation.pid is None:
        said = f"{observation.said}{observation.whose_ports}"
        return f"{observation.job}: {observation.state} ({said})"
    runs = observation.running or "no release"
    if not observation.visible:
        runs = f"what it runs is not visible to {user_name()}"
    serving = "serving" if observation.serving else "NOT serving"
    since = f" since {observation.since}" if observation.since else ""
    return f"{observation.job}: {runs}, {serving}, PID {observation.pid}{since}"


def _remarks(report: Report) -> list[str]:
    look, situation = report.look, report.situation
    remarks = []
    if report.holder is not None:
        remarks.append(lock.locked_by(report.holder).message)
    remarks += look.obstacles
    if situation.interrupted and look.history.last is not None:
        last = look.history.last
        where = f" {'after' if last.past_return else 'before'} its point of no return"
        if last.command == INSTALL:
            where = "; it changed nothing that runs"
        remarks.append(f"interrupted: the {last.what} by {last.by}, {last.at}, was cut off{where}")
    # A rollback starts what it left down; the other instance keeps its old settings.
    if situation.failed_restart:
        when = " after the command named next" if report.next else ""
        remarks.append(f"the restart did not finish: run it again{when}")
    if situation.drifted:
        remarks.append("drift: `current` or a running instance has changed since the last run")
    if situation.stale_flag:
        remarks.append(f"a drain flag was left behind, and nginx prefers {look.backup.job}")
    if look.journal_error:
        remarks.append(look.journal_error)
    if look.current.broken:
        remarks.append(look.current.broken)
    return remarks
