"""What is decided, as tables: who may be restarted, where a rollback goes, what to type next."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from deploy_clojars.config import BACKUP, PRIMARY, Role
from deploy_clojars.errors import Status
from deploy_clojars.host.decisions import (
    InstanceHealth,
    adopted,
    bare_rollback_target,
    definition_since,
    deploy_obstacle,
    deploy_stops_the_only_serving_instance,
    has_drifted,
    next_to_restart,
    prunable,
)
from deploy_clojars.host.health import Check, Observation
from deploy_clojars.host.journal import History, HostVersions, LastRun, Restarted
from deploy_clojars.host.look import Look
from deploy_clojars.host.releases import Current
from deploy_clojars.host.situation import Situation

DOWN = InstanceHealth(serving=False, healthy=False)
SERVING = InstanceHealth(serving=True, healthy=False)  # another release than the one in question
HEALTHY = InstanceHealth(serving=True, healthy=True)
STATES = (DOWN, SERVING, HEALTHY)


# Since when a job has its definition, which a plain restart keeps

EARLY, NOON, LATER = "2026-01-01T08:00:00Z", "2026-01-01T12:00:00Z", "2026-01-01T15:00:00Z"


@pytest.mark.parametrize(
    ("last", "since", "definition"),
    [
        (None, NOON, NOON),
        (Restarted(NOON, EARLY), "2026-01-01T12:00:00Z", EARLY),
        (Restarted(NOON, EARLY), "2026-01-01T11:59:59Z", EARLY),  # of two clocks
        (Restarted(NOON, EARLY), "2026-01-01T12:01:30Z", EARLY),
        (Restarted(NOON, None), "2026-01-01T12:00:01Z", "2026-01-01T12:00:01Z"),
        # Somebody has started it since, or it was not the journal's restart that started it.
        (Restarted(NOON, EARLY), LATER, LATER),
        (Restarted(NOON, EARLY), "2026-01-01T11:00:00Z", "2026-01-01T11:00:00Z"),
    ],
)
def test_a_restart_keeps_the_definition_of_a_job(
    last: Restarted | None, since: str, definition: str
) -> None:
    assert definition_since(last, since, within=90) == definition


def test_what_cannot_be_looked_at_is_not_restarted() -> None:
    assert next_to_restart(DOWN, SERVING, unknown={PRIMARY}) is None  # the backup serves alone
    assert next_to_restart(SERVING, DOWN, unknown={BACKUP}) is None
    assert next_to_restart(DOWN, DOWN, unknown={PRIMARY}) == BACKUP
    assert next_to_restart(DOWN, DOWN, unknown={PRIMARY, BACKUP}) is None


# Deploy: the backup, the question, the primary


@pytest.mark.parametrize(
    ("primary", "backup", "stops_it"),
    [
        (SERVING, SERVING, False),
        (SERVING, HEALTHY, False),
        (SERVING, DOWN, False),
        (HEALTHY, SERVING, False),
        (HEALTHY, HEALTHY, False),
        (HEALTHY, DOWN, False),
        (DOWN, HEALTHY, False),  # the backup is not restarted: question, primary
        (DOWN, SERVING, True),
        (DOWN, DOWN, False),
    ],
)
def test_a_deploy_is_refused_only_if_it_would_restart_the_only_serving_instance(
    primary: InstanceHealth, backup: InstanceHealth, stops_it: bool
) -> None:
    assert deploy_stops_the_only_serving_instance(primary, backup) is stops_it


# Rollback and revert: only what is not healthy on the target is restarted


@pytest.mark.parametrize(
    ("primary", "backup", "first"),
    [
        (SERVING, SERVING, BACKUP),
        (SERVING, HEALTHY, PRIMARY),
        (SERVING, DOWN, BACKUP),
        (HEALTHY, SERVING, BACKUP),
        (HEALTHY, HEALTHY, None),
        (HEALTHY, DOWN, BACKUP),
        (DOWN, SERVING, PRIMARY),
        (DOWN, HEALTHY, PRIMARY),
        (DOWN, DOWN, PRIMARY),
    ],
)
def test_which_instance_is_restarted_first(
    primary: InstanceHealth, backup: InstanceHealth, first: Role | None
) -> None:
    assert next_to_restart(primary, backup) == first


@pytest.mark.parametrize(
    ("primary", "backup", "after", "restarts"),
    [
        # The primary serves: backup, wait, primary.
        (SERVING, SERVING, {}, [BACKUP, PRIMARY]),
        (SERVING, SERVING, {BACKUP: DOWN}, [BACKUP]),
        (SERVING, SERVING, {BACKUP: SERVING}, [BACKUP]),
        (SERVING, SERVING, {PRIMARY: DOWN}, [BACKUP, PRIMARY]),
        (SERVING, SERVING, {PRIMARY: SERVING}, [BACKUP, PRIMARY]),
        (SERVING, HEALTHY, {}, [PRIMARY]),
        (SERVING, HEALTHY, {PRIMARY: DOWN}, [PRIMARY]),
        (SERVING, DOWN, {}, [BACKUP, PRIMARY]),
        (SERVING, DOWN, {BACKUP: DOWN}, [BACKUP]),
        (HEALTHY, SERVING, {}, [BACKUP]),
        (HEALTHY, SERVING, {BACKUP: DOWN}, [BACKUP]),
        (HEALTHY, DOWN, {}, [BACKUP]),
        (HEALTHY, HEALTHY, {}, []),
        # Only the backup serves: primary, wait, backup.
        (DOWN, SERVING, {}, [PRIMARY, BACKUP]),
        (DOWN, SERVING, {PRIMARY: DOWN}, [PRIMARY]),
        (DOWN, SERVING, {PRIMARY: SERVING}, [PRIMARY]),
        (DOWN, SERVING, {BACKUP: DOWN}, [PRIMARY, BACKUP]),
        (DOWN, HEALTHY, {}, [PRIMARY]),
        (DOWN, HEALTHY, {PRIMARY: DOWN}, [PRIMARY]),
        # Nothing serves: primary; when it serves or has failed, backup.
        (DOWN, DOWN, {}, [PRIMARY, BACKUP]),
        (DOWN, DOWN, {PRIMARY: DOWN}, [PRIMARY, BACKUP]),
        (DOWN, DOWN, {BACKUP: DOWN}, [PRIMARY, BACKUP]),
        (DOWN, DOWN, {PRIMARY: DOWN, BACKUP: DOWN}, [PRIMARY, BACKUP]),
        # It came up too late or on another release: it has failed, and serves all the same.
        (DOWN, DOWN, {PRIMARY: SERVING}, [PRIMARY, BACKUP]),
    ],
)
def test_the_order_of_a_whole_rollback(
    primary: InstanceHealth,
    backup: InstanceHealth,
    after: dict[Role, InstanceHealth],
    restarts: Sequence[Role],
) -> None:
    """`after` says what a restart makes of an instance; it is healthy on the target otherwise."""
    assert restarts_of_a_rollback(primary, backup, after) == restarts


def restarts_of_a_rollback(
    primary: InstanceHealth, backup: InstanceHealth, after: dict[Role, InstanceHealth]
) -> list[Role]:
    seen: dict[Role, InstanceHealth] = {PRIMARY: primary, BACKUP: backup}
    failed: set[Role] = set()
    restarted: list[Role] = []
    while (role := next_to_restart(seen[PRIMARY], seen[BACKUP], failed)) is not None:
        assert role not in restarted
        restarted.append(role)
        seen[role] = after.get(role, HEALTHY)
        if not seen[role].healthy:
            failed.add(role)
    return restarted


@pytest.mark.parametrize(
    ("primary", "backup", "first", "should_rest"),
    [
        # Nobody needs it beside a primary that is healthy on the target.
        ("A", None, None, False),
        ("A", "A", None, True),
        ("A", "B", BACKUP, True),
        # It is needed for the primary's restart, or in its place.
        ("B", None, BACKUP, False),
        ("B", "A", PRIMARY, False),
        (None, None, PRIMARY, False),
        (None, "A", PRIMARY, False),
    ],
)
def test_a_backup_that_runs_only_while_deploying_rests_beside_a_healthy_primary(
    primary: str | None, backup: str | None, first: Role | None, should_rest: bool
) -> None:
    look = Look(
        Current("A"), instance(PRIMARY, primary), instance(BACKUP, backup), History(), "A",
        backup_may_rest=True,
    )  # fmt: skip

    assert next_to_restart(*look.health_on("A")) == first
    assert look.backup_should_rest("A") is should_rest
    assert not replace(look, backup_may_rest=False).backup_should_rest("A")


@pytest.mark.parametrize("failed", [(), (PRIMARY,), (BACKUP,), (PRIMARY, BACKUP)])
@pytest.mark.parametrize(("primary", "backup"), list(product(STATES, STATES)))
def test_nothing_healthy_or_failed_and_never_the_only_serving_instance_is_restarted(
    primary: InstanceHealth, backup: InstanceHealth, failed: Collection[Role]
) -> None:
    role = next_to_restart(primary, backup, failed)

    if role is not None:
        chosen, other = (primary, backup) if role == PRIMARY else (backup, primary)
        assert not chosen.healthy
        assert role not in failed
        assert other.serving or not chosen.serving


@pytest.mark.parametrize(
    ("primary", "backup", "failed", "then"),
    [
        (SERVING, DOWN, [BACKUP], None),
        (SERVING, SERVING, [BACKUP], None),
        (HEALTHY, DOWN, [BACKUP], None),
        (DOWN, SERVING, [PRIMARY], None),
        (DOWN, HEALTHY, [PRIMARY], None),
        (SERVING, HEALTHY, [PRIMARY], None),
        (DOWN, DOWN, [PRIMARY], BACKUP),
        (DOWN, DOWN, [BACKUP], PRIMARY),
        (DOWN, DOWN, [PRIMARY, BACKUP], None),
    ],
)
def test_after_a_failure_the_other_one_is_tried_if_nothing_serves(
    primary: InstanceHealth, backup: InstanceHealth, failed: Collection[Role], then: Role | None
) -> None:
    assert next_to_restart(primary, backup, failed) == then


# What counts as approved on a host without a journal


@pytest.mark.parametrize(
    ("primary_runs", "current", "approved"),
    [("A", "B", "A"), ("A", None, "A"), (None, "B", "B"), (None, None, None)],
)
def test_what_the_primary_runs_is_adopted_else_what_current_names(
    primary_runs: str | None, current: str | None, approved: str | None
) -> None:
    assert adopted(primary_runs, current) == approved


# Drift


def run(
    command: str = "deploy",
    version: str | None = "B",
    *,
    past_return: bool = False,
    ended: bool = False,
    status: int | None = None,
    left: HostVersions | None = None,
) -> LastRun:
    return LastRun(
        id="1", command=command, version=version, by="toby", at="2015-03-01T10:00:00Z",
        flipped=past_return, past_return=past_return, ended=ended, status=status,
        left=left or HostVersions(),
    )  # fmt: skip


ALL_A = HostVersions("A", "A", "A")


@pytest.mark.parametrize(
    ("left", "now", "drifted"),
    [
        (ALL_A, HostVersions("A", "A", "A"), False),
        (ALL_A, HostVersions("B", "A", "A"), True),
        (ALL_A, HostVersions(None, "A", "A"), True),
        (ALL_A, HostVersions("A", "B", "A"), True),
        (ALL_A, HostVersions("A", "A", "B"), True),
        (ALL_A, HostVersions("A", "/home/clojars/other.jar", "A"), True),
        # One that is down, or whose release is not visible, is no drift.
        (ALL_A, HostVersions("A", None, "A"), False),
        (ALL_A, HostVersions("A", None, None), False),
        # One that was down and has come up on the current release is none, on another it is.
        (HostVersions("A", "A", None), HostVersions("A", "A", "A"), False),
        (HostVersions("A", "A", None), HostVersions("A", "A", "B"), True),
        (HostVersions("A", None, None), HostVersions("A", "A", "A"), False),
        # The primary runs an older release than current, and that is how it was left.
        (HostVersions("B", "A", "B"), HostVersions("B", "A", "B"), False),
        (HostVersions("B", "A", "B"), HostVersions("B", "B", "B"), True),
        # Before the first deploy, and after it was reverted.
        (HostVersions(), HostVersions(), False),
        (HostVersions(), HostVersions("A", None, None), True),
        (HostVersions(), HostVersions(None, "A", None), True),
    ],
)
def test_drift_is_what_is_not_as_the_last_run_left_it(
    left: HostVersions, now: HostVersions, drifted: bool
) -> None:
    assert has_drifted(run(ended=True, left=left), now) is drifted


def test_without_a_run_there_is_no_drift() -> None:
    assert not has_drifted(None, ALL_A)


def test_while_a_run_has_no_end_there_is_no_drift() -> None:
    assert not has_drifted(run(left=ALL_A), HostVersions("B", "B", "B"))


# Whether a deploy may start after what earlier runs left


def after(last: LastRun | None = None, stack: tuple[str, ...] = ("A",)) -> History:
    return History(adopted=True, stack=stack, last=last)


@pytest.mark.parametrize(
    ("history", "version", "drifted", "may_start"),
    [
        (after(), "B", False, True),
        (after(run(ended=True)), "C", False, True),
        (after(run(ended=True, past_return=True, status=8)), "C", False, True),
        # Cut off before its point of no return: it is reverted first, so any tag may follow.
        (after(run("deploy", "B")), "C", False, True),
        (after(run("rollback", "A")), "C", False, True),
        # Cut off past it: only a deploy of the same version finishes it.
        (after(run("deploy", "B", past_return=True)), "B", False, True),
        (after(run("deploy", "B", past_return=True)), "C", False, False),
        (after(run("deploy", "B", past_return=True)), "A", False, False),
        (after(run("rollback", "A", past_return=True)), "C", False, False),
        (after(run("rollback", "B", past_return=True)), "B", False, True),
        # Drift: only a deploy of what is approved ends it.
        (after(run(ended=True)), "B", True, False),
        (after(run(ended=True)), "A", True, True),
        (after(stack=()), "B", True, False),
    ],
)
def test_a_deploy_of_another_tag_is_refused_over_drift_and_what_is_half_done(
    history: History, version: str, drifted: bool, may_start: bool
) -> None:
    assert (deploy_obstacle(history, version, drifted) is None) is may_start


def test_the_refusal_names_the_run_that_was_cut_off() -> None:
    why = deploy_obstacle(after(run("deploy", "B", past_return=True)), "C", False)

    assert why == "deploy B was cut off after its point of no return"


# Where rollback without a version goes


AB = ("A", "B")  # B is approved, A is previous


@pytest.mark.parametrize(
    ("history", "current", "runs", "target"),
    [
        # All is as approved: to the previous one.
        (after(stack=AB), "B", ("B", "B"), "A"),
        (after(stack=AB), "B", ("B", None), "A"),
        (after(stack=AB), "B", (None, None), "A"),
        (after(run(ended=True), AB), "B", ("B", "B"), "A"),
        # Anything else is current, running or interrupted: to the approved one.
        (after(stack=AB), "C", ("B", "B"), "B"),
        (after(stack=AB), "B", ("B", "C"), "B"),
        (after(stack=AB), "B", ("C", "B"), "B"),
        (after(stack=AB), "B", ("/home/clojars/other.jar", "B"), "B"),
        (after(run("deploy", "C"), AB), "B", ("B", "B"), "B"),
        (after(run("deploy", "C", past_return=True), AB), "C", ("B", "C"), "B"),
        (after(stack=("A",)), "B", ("A", "A"), "A"),
        # Nowhere to go.
        (after(stack=("A",)), "A", ("A", "A"), None),
        (after(stack=()), None, (None, None), None),
        (after(stack=()), "A", ("A", "A"), None),
    ],
)
def test_where_a_rollback_without_a_version_goes(
    history: History, current: str | None, runs: tuple[str | None, ...], target: str | None
) -> None:
    assert bare_rollback_target(history, history.approved, current, runs) == target


def test_without_a_journal_it_goes_to_what_the_primary_runs_if_current_is_another() -> None:
    assert bare_rollback_target(History(), "A", "B", ("A", "B")) == "A"


def test_a_b_c_rolled_back_twice_has_nothing_left_to_roll_back_to() -> None:
    rolled_back_to = ["C"]
    stack: tuple[str, ...] = ("A", "B", "C")
    while target := bare_rollback_target(after(stack=stack), stack[-1], stack[-1], ()):
        rolled_back_to.append(target)
        stack = stack[:-1]

    assert rolled_back_to == ["C", "B", "A"]


# What may be pruned


@pytest.mark.parametrize(
    ("installed", "promoted", "in_use", "keep", "go"),
    [
        # The newest promoted ones stay, and the oldest goes first.
        ("ABCDE", "ABCDE", "DE", 2, "ABC"),
        ("ABCDE", "ABCDE", "DE", 3, "AB"),
        ("ABCDE", "ABCDE", "DE", 5, ""),
        ("ABCDE", "ABCDE", "DE", 99, ""),
        ("ABCDE", "ABCDE", "DE", 0, ""),
        # How new it is counts from the last time that it was promoted.
        ("ABCDE", "BCDEA", "EA", 2, "BCD"),
        # Never one that is in use, whatever its age.
        ("ABCDE", "ABCDE", "AE", 1, "BCD"),
        ("ABCDE", "ABCDE", "ABCDE", 1, ""),
        # Never any if it is not known which are in use.
        ("ABCDE", "ABCDE", None, 1, ""),
        # Never one that this tool did not make; but it counts if it was promoted.
        ("CDE", "ABCDE", "DE", 2, "C"),
        ("BCDE", "BCDEA", "EA", 3, "BC"),
        ("", "ABCDE", "E", 1, ""),
        # Never promoted ones first.
        ("ABCDE", "ACE", "CE", 1, "BDA"),
        ("ABCDE", "ACE", "CE", 9, "BD"),
        ("ABCDE", "", "", 1, "ABCDE"),
        # What is not there neither goes nor counts.
        ("ABCDEXY", "ABCXDEY", "DE", 3, "AB"),
        ("", "", "", 1, ""),
    ],
)
def test_which_releases_may_go_and_in_which_order(
    installed: str, promoted: str, in_use: str | None, keep: int, go: str
) -> None:
    assert "".join(prunable("ABCDE", installed, promoted, in_use, keep)) == go


# What status says


def situation(
    last: LastRun | None = None,
    *,
    approved: str | None = "A",
    current: str | None = "A",
    primary_ok: bool = True,
    backup_ok: bool = True,
    drifted: bool = False,
    locked: bool = False,
) -> Situation:
    if drifted:
        last = run(ended=True, left=HostVersions(current="C"))
    history = History(adopted=True, stack=(approved,) if approved else (), last=last)
    primary, backup = (
        instance(role, approved if ok else None)
        for role, ok in ((PRIMARY, primary_ok), (BACKUP, backup_ok))
    )
    look = Look(Current(current), primary, backup, history, approved)
    return Situation(look, locked, way_back=approved)


def instance(role: Role, runs: str | None) -> Observation:
    """Serving the release, or stopped."""
    if runs is None:
        return Observation(role, role, "stopped", "stop/waiting")
    return Observation(role, role, "running", "", 1, running=runs, open_releases=frozenset({runs}))


def resting(seen: Situation) -> Situation:
    """With a backup that runs only while deploying."""
    return replace(seen, look=replace(seen.look, backup_may_rest=True))


CUT_OFF = run("deploy", "B")
CUT_OFF_PAST_RETURN = run("deploy", "B", past_return=True)


@pytest.mark.parametrize(
    ("seen", "ok"),
    [
        (situation(), True),
        (situation(run(ended=True)), True),
        (situation(primary_ok=False), False),
        (situation(backup_ok=False), False),
        (situation(current="B"), False),
        (situation(current=None), False),
        (situation(CUT_OFF), False),
        (situation(CUT_OFF_PAST_RETURN), False),
        (situation(approved=None), False),
        (situation(approved=None, current=None, primary_ok=False, backup_ok=False), False),
        # One that runs only while deploying may be stopped.
        (resting(situation(backup_ok=False)), True),
        (resting(situation()), True),
        (resting(situation(primary_ok=False, backup_ok=False)), False),
        (resting(situation(current="B", backup_ok=False)), False),
        (resting(situation(CUT_OFF, backup_ok=False)), False),
        # While the lock is held only the primary on the approved release counts.
        (situation(CUT_OFF, locked=True), True),
        (situation(CUT_OFF, current="B", backup_ok=False, locked=True), True),
        (situation(CUT_OFF, primary_ok=False, locked=True), False),
        (situation(CUT_OFF, approved=None, primary_ok=False, locked=True), False),
    ],
)
def test_ok_means_that_nothing_needs_a_person(seen: Situation, ok: bool) -> None:
    assert seen.ok is ok


STOPPED: dict[str, Any] = {
    "state": "stopped",
    "pid": None,
    "running": None,
    "open_releases": frozenset(),
}
IS_UNKNOWN = {**STOPPED, "state": "unknown"}
SILENT = {"checks": (Check("http://x/", ok=False, ms=1, detail="503"),)}
OBSTACLE = {"obstacle": "its file is gone"}


@pytest.mark.parametrize(
    ("primary", "backup", "unclear"),
    [
        ({}, {}, False),
        ({}, IS_UNKNOWN, True),
        ({}, OBSTACLE, True),
        (OBSTACLE, {}, True),
        (OBSTACLE, OBSTACLE, True),
        (OBSTACLE, STOPPED, True),
        # Where nothing serves, the other one may be restarted.
        (IS_UNKNOWN, STOPPED, False),
        ({**OBSTACLE, **SILENT}, STOPPED, False),
        (STOPPED, {**OBSTACLE, **SILENT}, False),
        ({**OBSTACLE, **SILENT}, IS_UNKNOWN, True),
    ],
)
def test_what_could_not_be_restarted_is_as_unclear_as_what_is_not_known(
    primary: dict[str, Any], backup: dict[str, Any], unclear: bool
) -> None:
    seen = situation()
    primary_seen = replace(seen.look.primary, **primary)
    backup_seen = replace(seen.look.backup, **backup)
    look = replace(seen.look, primary=primary_seen, backup=backup_seen)
    assert replace(seen, look=look).unclear is unclear


@pytest.mark.parametrize(
    ("seen", "interrupted"),
    [
        (situation(), False),
        (situation(run(ended=True)), False),
        (situation(CUT_OFF), True),
        (situation(CUT_OFF_PAST_RETURN), True),
        (situation(CUT_OFF, locked=True), False),
    ],
)
def test_interrupted_means_that_the_lock_is_free_and_the_last_run_has_no_end(
    seen: Situation, interrupted: bool
) -> None:
    assert seen.interrupted is interrupted


HALF_ROLLED_BACK = run("rollback", "B", past_return=True, ended=True, status=Status.PRIMARY_DOWN)


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        # Nothing to do, or a run is at work.
        (situation(), None),
        (situation(primary_ok=False, locked=True), None),
        (situation(CUT_OFF, current="B", locked=True), None),
        # Back to what is approved.
        (situation(primary_ok=False), ("rollback", "A")),
        (situation(backup_ok=False), ("rollback", "A")),
        (situation(current="B"), ("rollback", "A")),
        (situation(current=None), ("rollback", "A")),
        (situation(current="B", drifted=True), ("rollback", "A")),
        # A run that was cut off: reverted before its point of no return, finished after it.
        (situation(CUT_OFF), ("rollback", "A")),
        (situation(CUT_OFF, current="B", backup_ok=False), ("rollback", "A")),
        (situation(CUT_OFF_PAST_RETURN, current="B"), ("deploy", "B")),
        (situation(run("rollback", "B", past_return=True), current="B"), ("rollback", "B")),
        (situation(run("deploy", "A", past_return=True)), ("deploy", "A")),
        # It flips before it is past return: whoever put current back since went back for good.
        (situation(CUT_OFF_PAST_RETURN), ("rollback", "A")),
        # A rollback of which an instance did not come up is typed again.
        (situation(HALF_ROLLED_BACK, current="B", primary_ok=False), ("rollback", "B")),
        (situation(HALF_ROLLED_BACK, primary_ok=False), ("rollback", "A")),
        # A promotion that failed.
        (situation(run("deploy", "B", past_return=True, ended=True, status=8), current="B",
                   primary_ok=False), ("rollback", "A")),
        # Where no release is left to roll back to, the tag is built again.
        (replace(situation(current=None), way_back=None), ("deploy", "A")),
        (replace(situation(CUT_OFF, current=None), way_back=None), ("deploy", "A")),
        (replace(situation(), way_back=None, look=replace(
            situation().look, current=Current(visible=False))), None),
        # The first deploy was cut off; nothing was approved before it.
        (situation(CUT_OFF, approved=None, primary_ok=False), ("deploy", "B")),
        (situation(CUT_OFF_PAST_RETURN, approved=None, primary_ok=False), ("deploy", "B")),
    ],
)  # fmt: skip
def test_the_command_to_type_next(seen: Situation, words: tuple[str, str] | None) -> None:
    assert seen.next_words == words


@pytest.mark.parametrize("last", [None, run(ended=True), CUT_OFF, CUT_OFF_PAST_RETURN])
@pytest.mark.parametrize("current", ["A", "B", None])
@pytest.mark.parametrize(("primary_ok", "backup_ok"), list(product([True, False], repeat=2)))
def test_whatever_is_wrong_with_an_approved_release_there_is_a_command_with_a_version(
    last: LastRun | None, current: str | None, primary_ok: bool, backup_ok: bool
) -> None:
    seen = situation(last, current=current, primary_ok=primary_ok, backup_ok=backup_ok)

    assert seen.ok or seen.next_words in (("rollback", "A"), ("deploy", "B"))
