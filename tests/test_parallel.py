"""The tests and the build at the same time: what they wait for, what ends them, what is left of them."""

from __future__ import annotations

import json
import os
import re
import signal

import pytest
from clojure_repository import ClojureRepository
from conftest import NewHost
from little_host import LittleHost, wait_for
from programs import require_program

from deploy_clojars.deploy.at_once import is_room_for_both

FIRST, SECOND, THIRD = ClojureRepository.FIRST, ClojureRepository.SECOND, ClojureRepository.THIRD
GiB = 2**30

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("setting", "cores", "available", "used", "at_once"),
    [
        (True, 1, 0, None, True),
        (False, 8, 64 * GiB, GiB, False),
        ("auto", 2, 2 * GiB, GiB, True),
        ("auto", 1, 2 * GiB, GiB, False),
        ("auto", 2, 2 * GiB, None, False),  # the first time
        ("auto", 2, None, GiB, False),
        ("auto", 2, GiB, GiB, False),
    ],
)
def test_both_run_at_once_where_there_is_room_for_both(
    setting: bool, cores: int, available: int | None, used: int | None, at_once: bool
) -> None:
    assert is_room_for_both(setting, cores, available, used) == at_once


def with_commands(host: LittleHost, test: str, uberjar: str, *more: str) -> None:
    """The host has these commands; BUILT in one makes the jar, and THERE is a directory of the test's."""
    assert host.jars is not None
    made = f"mkdir target && cp {host.jars}/*-$(cat resources/clojars/version.txt)-* target"
    lines = [*more]
    if not any(line.startswith("parallel") for line in more):
        lines.append("parallel = true")
    for key, command in (("test", test), ("uberjar", uberjar)):
        command = command.replace("BUILT", made).replace("THERE", str(host.directory))
        lines.append(f"{key} = '''{command}'''")
    host.write_config(build="\n".join(lines))


def meets(own: str, other: str) -> str:
    """A command that ends when the other one is at work, too."""
    return f"touch THERE/{own}; until [ -e THERE/{other} ]; do sleep 0.02; done"


def steps(host: LittleHost) -> dict[str, dict[str, object]]:
    """How the tests and the build ended in the last run, as the journal has it."""
    run = host.events[-1]["run"]
    ends = [
        each for each in host.events if each["run"] == run and each["event"] in ("done", "failed")
    ]
    return {each["step"]: each for each in ends if each["step"] in ("test", "build")}


def log_of(host: LittleHost) -> str:
    """The log of the last run, and no other file is beside it."""
    logs = sorted(host.deploy.glob("logs/*"))
    assert not [log for log in logs if re.search(r"\.(test|build)\.log", log.name)]
    return logs[-1].read_text()


def test_both_are_at_work_at_once_in_checkouts_of_their_own(light_host: LittleHost) -> None:
    host = light_host
    # The build ends last: then its line is no longer the last one on the screen.
    done = 'done.*"step":"test"'
    tested = f"until grep -q '{done}' {host.deploy}/journal.jsonl; do sleep 0.02; done"
    with_commands(
        host,
        f"{meets('testing', 'building')}; pwd; git describe --tags --dirty; echo tested",
        f"{meets('building', 'testing')}; pwd; git describe --tags --dirty; echo built; {tested}; BUILT",
    )
    shown = host.done(SECOND, "--yes").stderr
    assert host.versions == (SECOND, SECOND)
    assert [each["event"] for each in steps(host).values()] == ["done", "done"]
    for name in ("test", "build"):  # its line, and below it how it ended
        assert len(re.findall(rf"^  {name} ", shown, re.MULTILINE)) == 2
    log = log_of(host)
    directories = set(re.findall(r"^/.*/checkouts/.*$", log, re.MULTILINE))
    assert len(directories) == 2
    assert log.count(f"\n{SECOND}\n") == 2  # and nothing is dirty
    for name, said in (("test", "tested"), ("build", "built")):
        output = log.split(f"{name}: its output\n")[1]
        assert re.search(rf"^{said}$", output, re.MULTILINE)
        other = {"test": "build", "build": "test"}[name]
        assert f"{other}: its output" not in output.partition(said)[0]
    assert list(host.deploy.glob("checkouts/*")) == []
    recent = json.loads(host.run("history", "--json").stdout)["runs"]
    took = {each["step"]: each["seconds"] for each in recent[0]["steps"] if each["done"]}
    assert took["test"] > 0 and took["build"] > 0


@pytest.mark.parametrize("failing", ["test", "build"])
def test_one_that_fails_ends_the_other_at_once(light_host: LittleHost, failing: str) -> None:
    host, other = light_host, {"test": "build", "build": "test"}[failing]
    fails = f"{meets('failing', 'other')}; echo why; touch failed; exit 3"
    goes_on = f"{meets('other', 'failing')}; setsid sleep 1000 & sleep 1000"
    with_commands(host, *((fails, goes_on) if failing == "test" else (goes_on, fails)))
    before = (host.current, host.versions, host.pid("primary"), host.pid("backup"))
    result = host.run(SECOND, "--yes")
    assert result.returncode == 5
    assert re.search(rf"the {failing}s? \(.*failed: exit status 3", result.stderr)
    assert "| why" in result.stderr
    assert host.processes_of_runs() == []
    assert (host.current, host.versions, host.pid("primary"), host.pid("backup")) == before
    ends = steps(host)
    assert ends[failing].get("outcome") is None
    assert (ends[other]["event"], ends[other]["outcome"]) == ("failed", "stopped")
    assert f"failed at {failing} (5)" in host.run("history").stdout
    [kept] = host.deploy.glob("checkouts/*")  # of the one that is worth a look
    assert (kept / "failed").exists()
    assert "\nwhy\n" in log_of(host)


def test_each_has_its_time_limit(light_host: LittleHost) -> None:
    with_commands(light_host, "sleep 1000", "BUILT", "timeout = 5")  # the build takes a moment
    result = light_host.run(SECOND, "--yes")
    assert result.returncode == 5
    assert "the tests (sleep 1000) took too long: not done within 5 s" in result.stderr
    assert steps(light_host)["build"]["event"] == "done"
    assert light_host.processes_of_runs() == []


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_both(light_host: LittleHost, signum: int, status: int) -> None:
    host = light_host
    with_commands(host, *2 * ["sleep 1000 & setsid sleep 1000; true"])
    with host.typing(SECOND) as terminal:
        wait_for(lambda: len(host.processes_of_runs()) == 6, "both run")
        lock = host.status["lock"]
        terminal.kill(signum)
        shown = terminal.ends(status)
    assert lock["step"] == "test and build"
    assert f"nothing that runs was changed; clojars runs {FIRST} as before" in shown
    assert host.processes_of_runs() == []
    assert list(host.deploy.glob("checkouts/*")) == []
    assert host.status["ok"]
    log_of(host)


def test_after_sigkill_the_next_run_ends_both(light_host: LittleHost) -> None:
    host = light_host
    with_commands(host, *2 * ["sleep 1000 & setsid sleep 1000; true"])
    with host.typing(SECOND) as terminal:
        wait_for(lambda: len(host.processes_of_runs()) == 6, "both run")
        terminal.kill(signal.SIGKILL)
        terminal.ends(137)
    assert host.processes_of_runs()
    assert host.status["interrupted"]
    host.done("rollback", FIRST, "--yes")
    assert host.processes_of_runs() == []
    assert host.status["ok"]


def test_both_are_isolated(light_host: LittleHost) -> None:
    require_program("bwrap")
    host = light_host
    with_commands(
        host,
        f"ls {host.home}; touch ../beside; echo in $(pwd)",
        f"ls {host.home}; touch ../beside; echo in $(pwd); BUILT",
        "isolate = true", f'cache = ["{host.jars}"]',
    )  # fmt: skip
    host.done(SECOND, "--yes")
    log = log_of(host)
    assert len(re.findall(r"^in /.*/checkouts/", log, re.MULTILINE)) == 2
    assert "releases" not in log.split("test: its output")[1].partition("in /")[0]
    assert host.versions == (SECOND, SECOND)


def test_one_that_is_killed_for_want_of_memory_is_tried_again_alone(
    light_host: LittleHost,
) -> None:
    host = light_host
    dies = "if [ -e THERE/alone ]; then BUILT; else touch THERE/alone left; kill -KILL $$; fi"
    with_commands(host, "[ ! -e target ] && [ ! -e left ] && echo tested", dies)
    result = host.done(SECOND, "--yes")
    assert (
        "failed: signal 9, perhaps for lack of memory; both now run one after the other"
        in result.stderr
    )
    assert host.versions == (SECOND, SECOND)
    assert list(host.deploy.glob("checkouts/*")) == []
    # Alone it is a failure like any other.
    (host.directory / "alone").unlink()
    with_commands(host, "true", dies, "parallel = false")
    assert host.run(THIRD, "--yes").returncode == 5


def test_once_their_memory_is_known_both_run_at_once(new_light_host: NewHost) -> None:
    host = new_light_host()
    host.serving(FIRST)
    auto = 'parallel = "auto"'
    with_commands(host, "sleep 2.5", "sleep 2.5; BUILT", auto)  # long enough to be measured
    host.done(SECOND, "--yes")
    assert "its output" not in log_of(host)
    for end in steps(host).values():
        assert 2**20 // 2 < int(str(end["memory"])) < 2**26
    with_commands(host, "true", "BUILT", auto)
    host.done(THIRD, "--yes")
    assert ("build: its output" in log_of(host)) is (len(os.sched_getaffinity(0)) > 1)


def test_the_screen_has_a_live_line_for_each(
    light_host: LittleHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    host = light_host
    with_commands(host, f"{meets('testing', 'seen')}", f"{meets('building', 'seen')}; BUILT")
    with host.typing(SECOND) as terminal:
        # A busy machine may not draw every second.
        both = r"test +touch .*  \d+ s\r\n. build +touch .*  \d+ s"

        def are_both_shown() -> bool:
            terminal.sees("build")
            return re.search(both, terminal.shown) is not None

        wait_for(are_both_shown, "both lines say how long")
        (host.directory / "seen").touch()
        terminal.asked()
        terminal.types("yes")
        shown = terminal.ends(0)
    assert re.search(both, shown)
    assert re.search(r"✓ test +touch .*  \d+\.\d s\r\n", shown)
    assert re.search(r"✓ build +touch .*  \d+\.\d s\r\n", shown)


def test_verbose_says_whose_output_it_is(light_host: LittleHost) -> None:
    with_commands(light_host, "echo tested", "echo built; BUILT")
    shown = light_host.done("-v", SECOND, "--yes").stderr
    assert "\n  test | tested\n" in shown
    assert "\n  build | built\n" in shown


def test_a_dry_run_shows_both(light_host: LittleHost) -> None:
    with_commands(light_host, "echo tested", "echo built; BUILT")
    shown = light_host.done(SECOND, "--dry-run").stdout
    assert re.search(
        r"^\(cd .*echo built.*\) & \(cd .*echo tested.*\) && wait \$!$", shown, re.MULTILINE
    )
    [(directory, copy)] = re.findall(r"^cp -a (\S+) (\S+)$", shown, re.MULTILINE)
    assert {*re.findall(r"^rm -r (\S+)$", shown, re.MULTILINE)} == {directory, copy}
