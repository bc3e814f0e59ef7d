"""What the journal's lines add up to, and its file whatever has happened to it."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import msgspec
import pytest
from system import files_no_larger_than

from deploy_clojars.errors import Status
from deploy_clojars.host.journal import Event, History, HostVersions, Journal, history_of, now


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.jsonl")


def written(*steps: str) -> History:
    """The history after steps such as `adopted none`, `promoted A` and `rolled back B`."""
    return history_of(Event(event=event, version=None if version == "none" else version)
                      for event, _, version in (step.rpartition(" ") for step in steps))  # fmt: skip


# What is approved, and what was before


ABC = ("adopted none", "promoted A", "promoted B", "promoted C")


@pytest.mark.parametrize(
    ("steps", "approved", "previous"),
    [
        ((), None, None),
        (("adopted none",), None, None),
        (("adopted A",), "A", None),
        (("adopted none", "promoted A"), "A", None),
        (("adopted A", "promoted A"), "A", None),
        (("adopted A", "promoted B"), "B", "A"),
        (ABC, "C", "B"),
        ((*ABC, "rolled back B"), "B", "A"),
        ((*ABC, "rolled back B", "rolled back A"), "A", None),
        ((*ABC, "rolled back A"), "A", None),
        ((*ABC, "rolled back C"), "C", "B"),
        ((*ABC, "rolled back B", "rolled back B"), "B", "A"),
        ((*ABC, "rolled back B", "promoted C"), "C", "B"),
        ((*ABC, "rolled back B", "promoted D"), "D", "B"),
        ((*ABC, "promoted C"), "C", "B"),
        ((*ABC, "promoted C", "promoted C", "rolled back B"), "B", "A"),
        ((*ABC, "promoted A"), "A", "C"),
        ((*ABC, "promoted A", "rolled back A"), "A", "C"),
        ((*ABC, "rolled back X"), "X", "C"),
        ((*ABC, "rolled back X", "rolled back C"), "C", "B"),
        (("adopted none", "rolled back X"), "X", None),
        (("adopted A", "rolled back X", "rolled back A"), "A", None),
    ],
)
def test_promotions_form_a_stack(
    steps: tuple[str, ...], approved: str | None, previous: str | None
) -> None:
    history = written(*steps)

    assert (history.approved, history.previous) == (approved, previous)


@pytest.mark.parametrize(
    ("steps", "stack"),
    [
        ((*ABC, "prune A"), ("B", "C")),
        ((*ABC, "prune A", "pruned A"), ("B", "C")),
        ((*ABC, "prune B"), ("A", "C")),
        ((*ABC, "prune X"), ("A", "B", "C")),
        # What stood around it twice is one entry again.
        ((*ABC, "promoted B", "prune C"), ("A", "B")),
        ((*ABC, "promoted B", "promoted D", "prune B"), ("A", "C", "D")),
        ((*ABC, "promoted B", "promoted C", "promoted D", "prune B"), ("A", "C", "D")),
        # A rollback does not come back to it, but to what was before.
        ((*ABC, "prune A", "pruned A", "rolled back B"), ("B",)),
        ((*ABC, "prune B", "pruned B", "rolled back A"), ("A",)),
        # Deployed again it is there like any other.
        ((*ABC, "prune A", "pruned A", "promoted A"), ("B", "C", "A")),
        ((*ABC, "prune A", "pruned A", "promoted A", "rolled back C"), ("B", "C")),
        ((*ABC, "prune A", "rolled back A", "rolled back B"), ("B",)),
    ],
)
def test_a_release_that_is_pruned_leaves_the_stack(
    steps: tuple[str, ...], stack: tuple[str, ...]
) -> None:
    assert written(*steps).stack == stack


def test_a_release_is_off_the_stack_before_it_is_removed_and_known_until_it_is() -> None:
    """Between the two lines the tool may be killed, and the release be there or not."""
    events = [Event(event=event, version="A") for event in ("installed", "promoted", "prune")]

    before = history_of(events)
    after = history_of([*events, Event(event="pruned", version="A")])

    assert (before.stack, set(before.installed), set(before.promoted)) == ((), {"A"}, {"A"})
    assert (after.stack, set(after.installed), set(after.promoted)) == ((), set(), set())


def test_a_promotion_that_failed_is_not_on_the_stack() -> None:
    history = history_of(
        [
            Event(event="adopted", version="A"),
            Event(event="begin", run="1", command="deploy", version="B"),
            Event(event="installed", run="1", version="B", commit="b" * 40),
            Event(event="flip", run="1", version="B", previously="A"),
            Event(event="approved", run="1", version="B", how="question"),
            Event(event="no return", run="1", version="B"),
            Event(event="end", run="1", version="B", status=Status.PRIMARY_DOWN),
        ]
    )

    assert (history.approved, history.previous) == ("A", None)


def test_what_counted_as_approved_before_the_first_run_is_known_to_be_written_down() -> None:
    assert not written().adopted
    assert written("adopted none").adopted


def test_the_order_is_the_files_and_not_the_clocks(journal: Journal) -> None:
    for version, at in (("A", "2030-01-01"), ("B", "2010-01-01"), ("C", "2020-01-01")):
        journal.append(Event(event="promoted", version=version, at=f"{at}T00:00:00Z"))

    history = journal.history()

    assert (history.approved, history.previous) == ("C", "B")


def test_the_commit_of_every_installed_release_is_known() -> None:
    history = history_of(
        [
            Event(event="install", version="A", commit="a" * 40),
            Event(event="installed", version="B", commit="b" * 40, sha256="c" * 64, bytes=3),
            Event(event="installed", version="C"),
        ]
    )

    assert history.commits == {"B": "b" * 40}


def test_when_a_release_was_installed_and_promoted_is_known_in_the_order_of_the_last_time() -> None:
    def events(*steps: str) -> list[Event]:
        return [
            Event(event=event, version=version, at=f"2015-03-0{day}T10:00:00Z")
            for day, (event, _, version) in enumerate((step.rpartition(" ") for step in steps), 1)
        ]

    history = history_of(
        events("installed A", "promoted A", "installed B", "promoted B", "rolled back A")
    )

    assert [(version, each.at[:10]) for version, each in history.installed.items()] == [
        ("A", "2015-03-01"), ("B", "2015-03-03"),
    ]  # fmt: skip
    assert [(version, at[:10]) for version, at in history.promoted.items()] == [
        ("B", "2015-03-04"), ("A", "2015-03-05"),
    ]  # fmt: skip


# A run in messages


@pytest.mark.parametrize(
    ("command", "version", "what"),
    [
        ("deploy", "0.2.0", "deploy of 0.2.0"),
        ("rollback", "0.2.0", "rollback to 0.2.0"),
        ("restart", "0.2.0", "restart on 0.2.0"),
        ("prune", None, "prune"),
    ],
)
def test_a_run_is_named_by_where_it_goes(command: str, version: str | None, what: str) -> None:
    begin = Event(event="begin", run="1", command=command, version=version)
    last = history_of([begin]).last
    assert last is not None
    assert last.what == what


# What was rolled back


def rolled_back(version: str, to: str, why: str | None = None) -> Event:
    return Event(
        event="rolled back", version=to, previously=version, at="2015-03-01T10:00:00Z", by="toby",
        why=why,
    )  # fmt: skip


def test_it_is_known_who_rolled_a_release_back_when_and_why() -> None:
    history = history_of([Event(event="promoted", version="B"), rolled_back("B", "A", "slow")])

    known = history.rolled_back["B"]

    assert (known.at, known.by, known.why) == ("2015-03-01T10:00:00Z", "toby", "slow")
    assert set(history.rolled_back) == {"B"}


def test_it_is_known_until_the_release_is_promoted_again() -> None:
    rolled = rolled_back("B", "A")

    assert set(history_of([rolled, Event(event="promoted", version="C")]).rolled_back) == {"B"}
    assert not history_of([rolled, Event(event="promoted", version="B")]).rolled_back


def test_it_is_known_until_somebody_rolls_back_to_the_release() -> None:
    assert set(history_of([rolled_back("B", "A"), rolled_back("A", "B")]).rolled_back) == {"A"}


def test_a_rollback_that_went_away_from_nothing_rolled_nothing_back() -> None:
    assert not history_of([Event(event="rolled back", version="A")]).rolled_back
    assert not history_of([rolled_back("A", "A")]).rolled_back


# The last run


BEGIN = Event(
    event="begin", run="1", command="deploy", version="B", by="toby", at="2015-03-01T10:00:00Z",
    left=HostVersions("A", "A", "A"),
)  # fmt: skip
FLIP = Event(event="flip", run="1", version="B")
NO_RETURN = Event(event="no return", run="1", version="B")
END = Event(event="end", run="1", status=0, left=HostVersions("B", "B", "B"))


def test_a_journal_without_runs_has_no_last_run() -> None:
    assert written("adopted A").last is None
    assert written("adopted A").unfinished is None


@pytest.mark.parametrize(
    ("events", "flipped", "past_return", "interrupted"),
    [
        ([BEGIN], False, False, True),
        ([BEGIN, FLIP], True, False, True),
        ([BEGIN, FLIP, NO_RETURN], True, True, True),
        ([BEGIN, NO_RETURN], False, True, True),
        ([BEGIN, END], False, False, False),
        ([BEGIN, FLIP, NO_RETURN, END], True, True, False),
    ],
)
def test_how_far_the_last_run_came(
    events: list[Event], flipped: bool, past_return: bool, interrupted: bool
) -> None:
    history = history_of(events)

    assert history.last is not None
    assert (history.last.flipped, history.last.past_return) == (flipped, past_return)
    assert (history.unfinished is not None) is interrupted


def test_who_began_the_last_run_and_what_for() -> None:
    last = history_of([BEGIN]).last

    assert last is not None
    assert (last.id, last.command, last.version, last.by, last.at) == (
        "1", "deploy", "B", "toby", "2015-03-01T10:00:00Z",
    )  # fmt: skip


def test_what_a_run_leaves_is_what_its_end_says_and_until_then_what_its_begin_says() -> None:
    begun, ended = history_of([BEGIN]).last, history_of([BEGIN, END]).last

    assert begun is not None
    assert ended is not None
    assert begun.left == HostVersions("A", "A", "A")
    assert ended.left == HostVersions("B", "B", "B")


@pytest.mark.parametrize("event", [FLIP, NO_RETURN, END])
def test_a_line_of_another_run_says_nothing_of_the_last_one(event: Event) -> None:
    another = msgspec.structs.replace(event, run="0")

    assert history_of([BEGIN, another]) == history_of([BEGIN])


def test_the_last_run_is_the_one_that_began_last() -> None:
    again = msgspec.structs.replace(BEGIN, run="2", version="C")

    last = history_of([BEGIN, FLIP, NO_RETURN, again]).last

    assert last is not None
    assert (last.version, last.past_return, last.ended) == ("C", False, False)


@pytest.mark.parametrize(
    ("command", "past_return", "status", "half"),
    [
        ("rollback", True, Status.PRIMARY_DOWN, True),
        ("rollback", True, Status.HALF_DONE, False),
        ("rollback", True, Status.DONE, False),
        ("rollback", True, Status.NOT_HEALTHY, False),
        ("rollback", False, Status.HALF_DONE, False),
        ("deploy", True, Status.PRIMARY_DOWN, False),
    ],
)
def test_whether_the_last_run_is_a_rollback_that_is_half_done(
    command: str, past_return: bool, status: Status, half: bool
) -> None:
    begin = msgspec.structs.replace(BEGIN, command=command)
    end = msgspec.structs.replace(END, status=int(status))

    last = history_of([begin, *([NO_RETURN] if past_return else []), end]).last

    assert last is not None
    assert last.half_rolled_back is half


# The file


def test_a_host_without_a_journal_has_an_empty_history(journal: Journal) -> None:
    assert journal.history() == History()
    assert not journal.file.exists()


def test_a_journal_that_cannot_be_read_is_not_taken_for_an_empty_one(journal: Journal) -> None:
    journal.file.mkdir()

    with pytest.raises(OSError, match="Is a directory"):
        journal.history()


def test_what_is_appended_is_read_again(journal: Journal) -> None:
    end = msgspec.structs.replace(END, why="a 'quoted' \"reason\",\nof two lines, in café")

    for event in (BEGIN, FLIP, end):
        journal.append(event)

    assert list(journal.backwards()) == [end, FLIP, BEGIN]


def test_every_line_is_one_json_object_with_its_format(journal: Journal) -> None:
    for event in (BEGIN, NO_RETURN, END):
        journal.append(event)

    lines = [json.loads(line) for line in journal.file.read_text().splitlines()]

    assert [line["event"] for line in lines] == ["begin", "no return", "end"]
    assert [line.get("v") for line in lines] == [1, 1, 1]


def test_a_reason_that_is_not_utf_8_is_written_all_the_same(journal: Journal) -> None:
    """`-m` with a Latin-1 é: at that point of a rollback nothing may stop it any more."""
    journal.append(Event(event="rolled back", version="A", previously="B", why="caf\udce9"))

    assert journal.history().approved == "A"


def test_the_time_is_iso_8601_in_utc() -> None:
    date, _, time = now().partition("T")

    assert len(date.split("-")) == 3
    assert time.endswith("Z")


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o000])
def test_everybody_can_read_it_and_its_owner_alone_write_it(journal: Journal, umask: int) -> None:
    before = os.umask(umask)
    try:
        journal.append(BEGIN)
    finally:
        os.umask(before)

    assert stat.S_IMODE(journal.file.stat().st_mode) == 0o644


def test_a_link_in_its_place_is_not_followed(journal: Journal, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("not a journal\n")
    other.chmod(0o600)
    journal.file.symlink_to(other)

    with pytest.raises(OSError):
        journal.append(BEGIN)

    assert other.read_text() == "not a journal\n"
    assert stat.S_IMODE(other.stat().st_mode) == 0o600


def test_a_link_to_nowhere_makes_no_file(journal: Journal, tmp_path: Path) -> None:
    journal.file.symlink_to(tmp_path / "nowhere")

    with pytest.raises(OSError):
        journal.append(BEGIN)

    assert not (tmp_path / "nowhere").exists()


# What it does not know


def test_unknown_events_change_nothing() -> None:
    known = [Event(event="adopted", version="A"), BEGIN, Event(event="promoted", version="B")]
    unknown = Event(event="drained", run="1", version="X", commit="x" * 40)

    mixed = [event for each in known for event in (unknown, each, unknown)]

    assert history_of(mixed) == history_of(known)


def test_unknown_keys_are_skipped(journal: Journal) -> None:
    journal.file.write_text(
        '{"v": 1, "event": "adopted", "version": "A", "host": {"name": ["x"]}}\n'
        '{"v": 2, "event": "promoted", "version": "B", "left": {"proxy": "y", "current": "B"}}\n'
    )

    history = journal.history()

    assert (history.approved, history.previous) == ("B", "A")


# Damage


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b" ",
        b'{"event": "promoted", "version": "X"',
        b'"event": "promoted", "version": "X"}',
        b'{"event": "promoted" "version": "X"}',
        b'{"event": "promoted", "version": 7}',
        b'{"event": "promoted", "version": "X\xff"}',
        b'{"event": 5}',
        b'{"version": "X"}',
        b"{}",
        b"[]",
        b"null",
        b"promoted X",
        b"\x00" * 64,  # what a power failure leaves of a block
        b"\xff\xfe\xfd",
    ],
)
def test_a_damaged_line_is_skipped(journal: Journal, line: bytes) -> None:
    journal.append(Event(event="adopted", version="A"))
    with journal.file.open("ab") as file:
        file.write(line + b"\n")
    journal.append(Event(event="promoted", version="B"))

    history = journal.history()

    assert (history.approved, history.previous) == ("B", "A")


def test_wherever_the_last_line_was_cut_off_the_next_one_is_whole(journal: Journal) -> None:
    journal.append(Event(event="adopted", version="A"))
    whole = journal.file.stat().st_size
    journal.append(Event(event="promoted", version="B"))
    content = journal.file.read_bytes()

    for size in range(whole, len(content)):
        journal.file.write_bytes(content[:size])
        journal.append(Event(event="promoted", version="C"))

        survived = "B" if size == len(content) - 1 else "A"
        assert journal.history().stack[-2:] == (survived, "C")


def test_a_line_for_which_there_is_no_room_is_an_error_and_harms_no_other(
    journal: Journal,
) -> None:
    journal.append(Event(event="adopted", version="A"))

    with files_no_larger_than(journal.file.stat().st_size + 10), pytest.raises(OSError):
        journal.append(Event(event="promoted", version="B"))
    journal.append(Event(event="promoted", version="C"))

    assert journal.history().stack == ("A", "C")


def test_a_rollback_to_what_is_approved_promotes_nothing_anew() -> None:
    promoted = Event(event="promoted", at="1", version="A")
    started_again = Event(event="rolled back", at="2", version="A")
    assert history_of([promoted, started_again]).promoted == {"A": "1"}
