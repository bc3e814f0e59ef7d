"""The lines of a file that grows: whatever happens to it, they are the file's lines."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy_clojars.host import lines
from deploy_clojars.host.journal import Event, History, Journal, history_of
from deploy_clojars.host.lines import TailedFile, lines_backwards

VERSIONS = st.sampled_from(["A", "B", "C"]) | st.none()
EVENTS = st.builds(
    Event,
    event=st.sampled_from(
        (
            "adopted",
            "begin",
            "step",
            "done",
            "installed",
            "flip",
            "no return",
            "promoted",
            "rolled back",
            "end",
            "prune",
            "pruned",
            "of a later version",
        )
    ),
    run=st.sampled_from(["1", "2", "3"]),
    version=VERSIONS,
    previously=VERSIONS,
    commit=st.sampled_from(["a" * 40, "b" * 40]) | st.none(),
    bytes=st.integers(0, 9) | st.none(),
)


LINES = EVENTS.map(lambda event: msgspec.json.encode(event) + b"\n")
PIECES = LINES | st.binary(max_size=5)
# What may happen to the file between two looks.
HAPPENINGS = st.one_of(
    st.tuples(st.just("append"), st.lists(PIECES, max_size=5).map(b"".join)),
    st.tuples(st.just("append a part"), LINES, st.floats(0, 1)),
    st.tuples(st.just("cut"), st.floats(0, 1)),
    st.tuples(st.just("replace"), st.lists(PIECES, max_size=5).map(b"".join)),
    st.tuples(st.just("remove")),
)


def let_happen(file: Path, what: str, *details: object) -> None:
    """One of the happenings."""
    content = file.read_bytes() if file.exists() else b""
    match what, details:
        case "append", (bytes(piece),):
            with file.open("ab") as stream:
                stream.write(piece)
        case "append a part", (bytes(piece), float(share)):
            with file.open("ab") as stream:
                stream.write(piece[: int(len(piece) * share)])
        case "cut", (float(share),):
            if content:
                os.truncate(file, int(len(content) * share))
        case "replace", (bytes(piece),):
            other = file.with_name("other")
            other.write_bytes(piece)
            other.replace(file)
        case "remove", ():
            file.unlink(missing_ok=True)


@settings(max_examples=100, deadline=None)
@given(st.lists(HAPPENINGS, max_size=12))
def test_a_journal_says_the_same_whether_it_is_read_on_or_read_anew(
    tmp_path_factory: pytest.TempPathFactory, happenings: list[tuple[object, ...]]
) -> None:
    journal = Journal(tmp_path_factory.mktemp("journal") / "journal.jsonl")

    for what, *details in happenings:
        let_happen(journal.file, str(what), *details)

        assert journal.history() == all_of_it_added_up(journal)


def all_of_it_added_up(journal: Journal) -> History:
    """Every line decoded and added, from the beginning."""
    return history_of(reversed(list(journal.backwards())) if journal.file.exists() else ())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.binary(max_size=12), max_size=9).map(b"\n".join), st.integers(1, 8))
def test_the_lines_lines_backwards_are_the_lines_backwards(
    tmp_path: Path, content: bytes, block: int
) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)

    with pytest.MonkeyPatch.context() as small:
        small.setattr(lines, "BLOCK", block)
        small.setattr(lines, "CHUNK", block)
        tailed = TailedFile(file)
        read = [line for _, portion in tailed.new_lines() for line in portion]

        assert [*read, tailed.rest] == content.split(b"\n")
        assert list(lines_backwards(file)) == content.split(b"\n")[::-1]


def test_what_was_read_is_not_read_again(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one\ntwo\nthr")
    tailed = TailedFile(file)

    assert list(tailed.new_lines()) == [(True, []), (False, [b"one", b"two"])]
    assert tailed.rest == b"thr"
    assert list(tailed.new_lines()) == []
    with file.open("ab") as stream:
        stream.write(b"ee\nfour\n")
    assert list(tailed.new_lines()) == [(False, [b"three", b"four"])]


@pytest.mark.parametrize("content", [b"one\n", b"one\ntwx\nthree\n", b""])
def test_a_file_that_was_written_anew_in_its_place_is_read_anew(
    tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one\ntwo\n")
    tailed = TailedFile(file)
    list(tailed.new_lines())

    file.write_bytes(content)

    (anew, _), *portions = tailed.new_lines()
    assert anew
    assert b"\n".join([*(line for _, each in portions for line in each), b""]) == content


def test_a_pipe_in_its_place_is_an_error_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(OSError):
        list(TailedFile(tmp_path / "pipe").new_lines())
    with pytest.raises(OSError):
        Journal(tmp_path / "pipe").history()
