"""`history`: who did what, how long each step took and how it ended."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from clojure_repository import ClojureRepository as Tags
from conftest import NewHost
from hypothesis import given, settings
from hypothesis import strategies as st
from little_host import LittleHost

from deploy_clojars.commands import history
from deploy_clojars.commands.history import Step, runs_of
from deploy_clojars.host.host import Host
from deploy_clojars.host.journal import Event, History, Journal, history_of

FIRST, SECOND = Tags.FIRST, Tags.SECOND


def at(second: int) -> str:
    return f"2015-03-01T10:{second // 60:02}:{second % 60:02}Z"


def begin(
    run: str = "1", command: str = "deploy", version: str | None = "B", *, second: int = 0
) -> Event:
    return Event(event="begin", run=run, command=command, version=version, by="ann", at=at(second))


def line(event: str, second: int, run: str = "1", **fields: object) -> Event:
    return Event(event=event, run=run, by="ann", at=at(second), **fields)  # type: ignore[arg-type]


def step(name: str, begins: int, seconds: float | None = None) -> list[Event]:
    """A step; one without `seconds` is not done."""
    started = line("step", begins, step=name)
    done = line("done", begins + int(seconds or 0), step=name, seconds=seconds)
    return [started, *([done] if seconds is not None else [])]


def end(second: int, outcome: str, status: int = 0, why: str | None = None) -> Event:
    return line("end", second, outcome=outcome, status=status, why=why)


def test_who_did_what_and_when() -> None:
    [run] = runs_of([begin(), *step("test", 1, 2.5), end(90, "promoted")])

    assert (run.command, run.version, run.by) == ("deploy", "B", "ann")
    assert (run.began, run.ended, run.seconds) == (at(0), at(90), 90)
    assert (run.outcome, run.status, run.why) == ("promoted", 0, None)
    assert run.steps == [Step("test", at(1), 2.5, done=True)]


def test_a_question_takes_until_its_answer() -> None:
    [run] = runs_of(
        [
            begin(),
            *step("ask", 10),
            line("approved", 70),
            line("no return", 70),
            *step("primary", 70),
        ]
    )

    assert [(each.name, each.seconds, each.done) for each in run.steps] == [
        ("ask", 60, True), ("primary", None, False),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("events", "ended", "why"),
    [
        ([*step("test", 1, 2.0), end(3, "failed", 5, "the tests\nfailed")],
         "failed (5)", "the tests failed"),
        ([*step("fetch", 0, 0.1), *step("test", 1), end(3, "failed", 5)], "failed at test (5)", ""),
        ([*step("ask", 1), end(3, "declined", 7)], "declined (7)", ""),
        ([*step("ask", 1), end(3, "interrupted", 130)], "interrupted at ask (130)", ""),
        # What came after the failure is the revert.
        ([*step("backup", 1), *step("flip", 3, 0.1), *step("backup", 3, 2.0), end(6, "failed", 6)],
         "failed at backup (6)", ""),
        ([*step("ask", 1), line("approved", 2), *step("primary", 2), end(3, "failed", 8)],
         "failed at primary (8)", ""),
        ([*step("build", 1)], "cut off at build", ""),
        ([], "cut off", ""),
        ([*step("flip", 1), Event(event="end", run="1", by="bea", at=at(9), outcome="interrupted")],
         "cut off at flip", "reverted by bea"),
        ([line("rolled back", 1, version="A", why="slow"), end(3, "rolled back")],
         "rolled back", "slow"),
        ([line("pruned", 1, version="A"), line("pruned", 1, version="C"), end(3, "pruned")],
         "pruned", "removed A, C"),
    ],
)  # fmt: skip
def test_how_a_run_ended_and_why(events: list[Event], ended: str, why: str) -> None:
    [run] = runs_of([begin(), *events])

    row = history._row(run)

    assert (row[4], row[6]) == (ended, why)


def test_the_newest_run_comes_first_and_each_has_its_own_lines() -> None:
    runs = runs_of(
        [
            begin("1"), line("step", 1, "1", step="test"),
            begin("2", "rollback", "A"), line("step", 2, "2", step="flip"),
            line("done", 3, "0", step="build", seconds=9.0),
            Event(event="end", run="1", by="bea", at=at(4), outcome="interrupted"),
        ]
    )  # fmt: skip

    assert [(run.id, [step.name for step in run.steps]) for run in runs] == [
        ("2", ["flip"]), ("1", ["test"]),
    ]  # fmt: skip


def test_one_that_was_called_off_at_its_question_has_no_steps_and_took_nobody_knows_how_long() -> (
    None
):
    called_off = line(
        "called off", 9, command="rollback", version="A", outcome="declined", status=7, why="no"
    )
    [run] = runs_of([called_off])

    assert (run.command, run.version, run.by) == ("rollback", "A", "ann")
    assert (run.began, run.ended, run.seconds, run.steps) == (at(9), at(9), None, [])
    row = history._row(run)
    assert (row[3], row[4], row[6]) == ("", "declined (7)", "no")
    assert history_of([called_off]) == History()


def test_how_long_one_that_was_cut_off_took_is_not_known() -> None:
    [run] = runs_of(
        [begin(), Event(event="end", run="1", by="bea", at=at(9), outcome="interrupted")]
    )

    assert run.seconds is None


def test_a_step_that_failed_took_as_long_as_it_says_and_one_that_was_cut_off_is_not_known() -> None:
    started = line("step", 1, step="test")
    [failed] = runs_of(
        [begin(), started, line("failed", 9, step="test", seconds=7.6), end(9, "failed", 5)]
    )
    reverted_later = Event(event="end", run="1", by="ann", at=at(900), outcome="interrupted")
    [cut_off] = runs_of([begin(), started, reverted_later])

    assert failed.steps == [Step("test", at(1), 7.6)]
    assert failed.ended_at == "test"
    assert cut_off.steps == [Step("test", at(1), None)]


def test_a_clock_that_was_set_back_makes_nothing_take_less_than_no_time() -> None:
    [run] = runs_of([
        Event("begin", at="2026-11-28T10:00:00Z", run="r", command="deploy", version="1.0.0"),
        Event("step", at="2026-11-28T10:00:01Z", run="r", step="ask"),
        Event("approved", at="2026-11-28T09:00:00Z", run="r"),
        Event("step", at="2026-11-28T09:00:00Z", run="r", step="primary"),
        Event("end", at="2026-11-28T09:00:05Z", run="r", outcome="promoted", status=0),
    ])  # fmt: skip
    assert [step.seconds for step in run.steps] == [None, 5.0]
    assert run.seconds is None


def test_a_run_says_itself_how_long_it_took() -> None:
    [run] = runs_of([
        Event("begin", at="2026-11-28T10:00:00Z", run="r", command="deploy", version="1.0.0"),
        Event("end", at="2026-11-28T09:00:05Z", run="r", outcome="promoted", status=0, seconds=65.5),
    ])  # fmt: skip
    assert run.seconds == 65.5


def test_times_that_are_none_are_no_defect() -> None:
    runs = runs_of([Event(event="begin", run="1"), line("step", 1, step="x"), end(2, "failed", 1)])

    assert history.as_text(history.RecentRuns(runs, more=False))


ANYTHING = st.none() | st.text(max_size=8)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.builds(
            Event,
            event=st.sampled_from(["begin", "step", "done", "approved", "pruned", "end", "?"]),
            at=st.sampled_from(["", at(1), "2015-03-01T10:00:00", "9999-12-31"]) | st.text(),
            run=st.sampled_from(["1", "2"]),
            by=ANYTHING, command=ANYTHING, version=ANYTHING, step=ANYTHING, outcome=ANYTHING,
            why=ANYTHING, status=st.none() | st.integers(), seconds=st.none() | st.floats(),
        )
    )
)  # fmt: skip
def test_whatever_is_in_the_journal_it_can_be_shown(events: list[Event]) -> None:
    told = history.RecentRuns(runs_of(events), more=True)

    assert history.as_text(told)
    assert json.loads(history.as_json(told))["more"] is True


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (605, "10 min 5 s"), (7500, "2 h 5 min")],
)
def test_how_long_is_said_for_people(seconds: float, text: str) -> None:
    assert history.duration(seconds) == text


# Of a host


@pytest.fixture
def forty(new_light_host: NewHost) -> LittleHost:
    """A host with forty runs, the last of which was by somebody with an odd name."""
    host = new_light_host()
    host.deploy.mkdir()
    journal = Journal(host.deploy / "journal.jsonl")
    with journal.file.open("wb") as file:
        for number in range(40):
            run = [begin(str(number), version=f"1.{number}", second=number)]
            run += [line("step", number, str(number), step="test")]
            run += [line("end", number + 1, str(number), outcome="promoted", status=0)]
            if number == 39:
                run[0] = Event(
                    event="begin", run="39", command="deploy", version="é", by="a\x1b[2J"
                )
            file.writelines(msgspec.json.encode(each) + b"\n" for each in run)
    return host


def test_the_last_twenty_are_listed_and_more_for_the_asking(forty: LittleHost) -> None:
    text = forty.done("history").stdout.splitlines()
    assert text[0].split()[:4] == ["when", "(UTC)", "who", "what"]
    assert len(text) == 22
    assert text[2].startswith("2015-03-01 10:00  ann")
    assert text[-1] == "older ones: -n NUMBER or --all"
    assert len(forty.done("history", "-n", "3").stdout.splitlines()) == 5
    assert len(forty.done("history", "--all").stdout.splitlines()) == 41
    document = json.loads(forty.done("history", "--json").stdout)
    assert (len(document["runs"]), document["more"]) == (20, True)
    document = json.loads(forty.done("history", "--json", "-n", "40").stdout)
    assert (len(document["runs"]), document["more"]) == (40, False)


def test_the_json_has_the_keys_that_are_documented(forty: LittleHost) -> None:
    [_, run] = json.loads(forty.done("history", "--json", "-n", "2").stdout)["runs"]
    assert run == {
        "run": "38", "command": "deploy", "version": "1.38", "by": "ann", "began": at(38),
        "ended": at(39), "seconds": 1.0, "outcome": "promoted", "status": 0, "why": None,
        "source": None,
        "steps": [{"step": "test", "began": at(38), "seconds": 1.0, "done": False, "stopped": False}],
        "pruned": [],
    }  # fmt: skip


def test_nothing_of_it_reaches_the_terminal_as_a_command(forty: LittleHost) -> None:
    forty.environment.update(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    shown = forty.done("history", "-n", "1").stdout
    assert "\x1b" not in shown
    assert "deploy \\xe9" in shown


def test_a_run_at_work_is_told_from_one_that_was_cut_off(light_host: LittleHost) -> None:
    host = light_host
    host.have(SECOND)
    with host.typing(SECOND) as terminal:
        terminal.asked()
        [run] = json.loads(host.done("history", "--json").stdout)["runs"]
        assert (run["outcome"], run["ended"], run["steps"][-1]["step"]) == (
            "under way",
            None,
            "ask",
        )
        assert "under way at ask" in host.done("history").stdout
        terminal.types("no")
        terminal.ends(7)
    [run] = json.loads(host.done("history", "--json").stdout)["runs"]
    assert (run["outcome"], run["status"]) == ("declined", 7)


def test_without_a_journal_there_is_no_run(tmp_path: Path) -> None:
    from deploy_clojars.config import Config

    told = history.recent_runs(Host(Config(home=str(tmp_path))), 20)

    assert history.as_text(told) == "no run yet"
    assert json.loads(history.as_json(told)) == {"runs": [], "more": False}


def test_a_journal_that_cannot_be_read_is_an_error(light_host: LittleHost) -> None:
    (light_host.deploy / "journal.jsonl").mkdir(parents=True)
    result = light_host.run("history", "--json")
    assert (result.returncode, result.stdout) == (1, "")
    assert "journal.jsonl is not visible to" in result.stderr


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        ("60", ["when (UTC)        what         steps (s)", "10:00  deploy 1.38", "ann  "]),
        (
            "200",
            [
                "when (UTC)        who    what",
                "10:00  ann    deploy 1.38  1 s   promoted  test 1.0",
            ],
        ),
        ("30", ["when (UTC)\nwho\nwhat\n", "\nann\ndeploy 1.38\n1 s\n"]),
    ],
)
def test_on_a_terminal_it_fits_the_width(forty: LittleHost, columns: str, shown: list[str]) -> None:
    forty.environment.update(COLUMNS=columns, TERM="xterm", NO_COLOR="1")
    with forty.typing("history", "-n", "9") as terminal:
        text = "\n".join(line.rstrip() for line in terminal.ends(0).splitlines())
    for each in shown:
        assert each in text
    assert max(map(len, text.splitlines())) <= int(columns)


def test_a_dumb_terminal_gets_plain_lines(forty: LittleHost) -> None:
    forty.environment.update(TERM="dumb")
    with forty.typing("history", "-n", "9") as terminal:
        terminal.sees("older ones")
        assert "\x1b" not in (terminal.shown)
        terminal.ends(0)
