"""What systemd's states and refusals are to the tool; with a real systemd 252 as process 1."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from little_host import wait_for
from system import Clock
from systemd_machine import Machine
from systemd_machine import Systemd as Host

from deploy_clojars.errors import NotReady
from deploy_clojars.host.services import ServiceFailed
from deploy_clojars.host.services.systemd import Systemd, job_of, parse_show
from deploy_clojars.machine import shell

DEADLINE = 60.0  # seconds that a call may take on a busy machine

UNIT = "[Unit]\nStartLimitIntervalSec={interval}\nStartLimitBurst={burst}\n[Service]\n{service}\n[Install]\nWantedBy=lab.target\n"
RUNS = "ExecStart=sleep 1000"


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """A systemd with no unit of the tests."""
    with tempfile.TemporaryDirectory(prefix="systemd-") as name:
        directory = Path(name)
        with Machine.started(directory / "machine") as machine:
            yield Host(machine, directory)


@pytest.fixture
def systemd(host: Host) -> Systemd:
    return Systemd(bin=str(host.bin), sudo=False, timeout=DEADLINE)


def has(host: Host, job: str, service: str, *, interval: int = 10, burst: int = 5) -> None:
    """Adds a unit with these lines in its [Service]."""
    host.install(job, UNIT.format(interval=interval, burst=burst, service=service))


def is_soon(systemd: Systemd, job: str, state: str) -> None:
    wait_for(lambda: systemd.status(job).state == state, f"{job} is {state}", DEADLINE)


def is_there(host: Host, path: str) -> None:
    """Waits for a file of the machine."""
    test = ("test", "-e", path)
    wait_for(lambda: host.machine.run(*test, check=False).returncode == 0, f"{path} is there")


# States


def test_a_running_unit_has_its_pid_and_a_stopped_one_has_none(
    host: Host, systemd: Systemd
) -> None:
    has(host, "plain", RUNS)
    assert systemd.status("plain").state == "stopped"
    systemd.start("plain")
    found = systemd.status("plain")
    assert (found.state, found.pid) == ("running", host.pid("plain"))
    assert found.said == f"plain.service active (running), PID {found.pid}"
    systemd.stop("plain")
    assert systemd.status("plain").said == "plain.service inactive (dead)"
    systemd.stop("plain")  # is fine


@pytest.mark.parametrize(
    ("service", "state", "said"),
    [
        ("ExecStart=/nonexistent", "stopped", "failed (failed): exit-code"),
        ("ExecStart=false", "stopped", "failed (failed): exit-code"),
        ("User=nobody-there\nExecStart=sleep 1", "stopped", "failed (failed): exit-code"),
        ("EnvironmentFile=/nonexistent\nExecStart=true", "stopped", "failed (failed): resources"),
        (f"ExecStartPre=sleep 1000\n{RUNS}", "starting", "activating (start-pre)"),
        (f"{RUNS}\nExecStartPost=sleep 1000", "starting", "activating (start-post)"),
        (f"Type=notify\n{RUNS}", "starting", "activating (start)"),
        ("ExecStart=false\nRestart=always\nRestartSec=1000", "starting", "activating (auto-restart)"),
        ("Type=oneshot\nRemainAfterExit=yes\nExecStart=true", "unknown", "active (exited)"),
        (f"Type=forking\nExecStart=sh -c '{RUNS.removeprefix('ExecStart=')} &'", "running", "active"),
        (f"Type=exec\n{RUNS}", "running", "active (running)"),
    ],
)  # fmt: skip
def test_every_state_has_its_name(
    host: Host,
    systemd: Systemd,
    service: str,
    state: str,
    said: str,
    request: pytest.FixtureRequest,
) -> None:
    job = f"state{abs(hash(service))}"
    has(host, job, service)
    host.machine.run("systemctl", "start", "--no-block", f"{job}.service")
    wait_for(
        lambda: said in systemd.status(job).said and systemd.status(job).state == state,
        f"{said}, and not {systemd.status(job)}", DEADLINE,
    )  # fmt: skip
    host.machine.run("systemctl", "kill", "-s", "KILL", f"{job}.service", check=False)
    host.machine.run("systemctl", "disable", "--now", f"{job}.service", check=False)


def test_a_unit_that_ignores_a_stop_is_stopping(host: Host, systemd: Systemd) -> None:
    ignores = "trap '' TERM; touch /run/stubborn; exec sleep 1000"
    has(host, "stubborn", f'ExecStart=sh -c "{ignores}"')
    systemd.start("stubborn")
    is_there(host, "/run/stubborn")  # before that it would end
    host.machine.run("systemctl", "stop", "--no-block", "stubborn.service")
    is_soon(systemd, "stubborn", "stopping")
    host.machine.run("rm", "/run/stubborn")
    with killed(host, "stubborn"):
        systemd.start("stubborn")  # waits for the end
    assert systemd.status("stubborn").state == "running"
    is_there(host, "/run/stubborn")
    with killed(host, "stubborn"):
        systemd.stop("stubborn")
    assert systemd.status("stubborn").state == "stopped"


@contextmanager
def killed(host: Host, job: str, then: Callable[[], object] = lambda: None) -> Iterator[None]:
    """What runs when the block begins, and no later one, is killed a second after `then`."""
    pid = host.pid(job)

    def kill() -> None:
        then()
        time.sleep(1)
        host.machine.run("kill", "-KILL", pid)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(kill)
        yield
    done.result()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[Service\n", "error"),
        ("[Service]\nType=simple\n", "bad-setting"),
        (None, "not-found"),
        ("masked", "masked"),
    ],
)
def test_a_unit_that_cannot_be_started_is_unknown_with_the_reason(
    host: Host, systemd: Systemd, text: str | None, said: str
) -> None:
    job = f"broken-{said}"
    if text == "masked":
        host.machine.run("systemctl", "mask", f"{job}.service")
    elif text is not None:
        host.install(job, text)
    found = systemd.status(job)
    assert (found.state, found.pid, found.said) == ("unknown", None, f"{job}.service: {said}")
    if text is not None:
        verb = "unmask" if text == "masked" else "status"
        assert f"systemctl {verb} {job}.service" in found.remedy
    with pytest.raises(ServiceFailed):
        systemd.restart(job)


def test_a_running_unit_whose_file_is_broken_runs_and_cannot_be_restarted(
    host: Host, systemd: Systemd
) -> None:
    has(host, "goes", RUNS)
    systemd.start("goes")
    assert systemd.status("goes").obstacle == ""
    host.install("goes", "[Service]\nType=simple\n")
    found = systemd.status("goes")
    assert (found.state, found.pid) == ("running", host.pid("goes"))
    assert found.obstacle == "goes.service runs, but its file is now: bad-setting"


def test_without_systemd_the_state_is_unknown(tmp_path: Path) -> None:
    found = Systemd(bin=str(tmp_path), sudo=False, timeout=DEADLINE).status("clojars")
    assert (found.state, found.visible) == ("unknown", True)
    assert found.said == f"{tmp_path}/systemctl: No such file or directory"
    assert found.remedy == "set services.bin to the directory that has systemctl"


def test_a_directory_without_systemctl_is_refused_before_sudo_is_asked(tmp_path: Path) -> None:
    systemd = Systemd(bin=str(tmp_path), sudo=True, timeout=DEADLINE)
    with pytest.raises(NotReady, match="systemctl does not exist") as refused:
        systemd.refuse_what_would_fail(["clojars"])
    assert refused.value.remedy == "set services.bin to the directory that has systemctl"


def test_who_has_no_way_to_process_1_may_not_ask(tmp_path: Path) -> None:
    program = tmp_path / "systemctl"
    program.write_text(
        "#!/bin/sh\necho 'Failed to connect to bus: Connection refused' >&2\nexit 1\n"
    )
    program.chmod(0o755)
    found = Systemd(bin=str(tmp_path), sudo=False, timeout=DEADLINE).status("clojars")
    assert (found.state, found.visible) == ("unknown", False)


def test_the_properties_come_in_any_order_and_may_have_equals_signs() -> None:
    shown = parse_show("MainPID=7\nActiveState=active\nLoadState=loaded\nJob=\nX=a=b\n\n")
    assert shown["X"] == "a=b"
    assert job_of("clojars.service", shown).pid == 7


def test_one_call_shows_several_units(host: Host, systemd: Systemd) -> None:
    has(host, "one", RUNS)
    has(host, "other", f"KillMode=process\n{RUNS}")
    shown = systemd.show(("KillMode", "Id"), "one", "gone", "other")
    assert [(each["Id"], each["KillMode"]) for each in shown] == [
        ("one.service", "control-group"),
        ("gone.service", "control-group"),
        ("other.service", "process"),
    ]


def test_a_start_that_waits_for_another_unit_is_on_its_way() -> None:
    shown = {"LoadState": "loaded", "ActiveState": "inactive", "SubState": "dead", "Job": "12"}
    assert job_of("clojars.service", shown).state == "starting"
    assert job_of("clojars.service", {**shown, "Job": "0"}).state == "stopped"


# Requests


def test_a_restart_is_a_new_process(host: Host, systemd: Systemd) -> None:
    has(host, "again", RUNS)
    systemd.restart("again")  # starts it
    before = host.pid("again")
    systemd.restart("again")
    assert host.pid("again") not in (None, before)
    systemd.start("again")  # restarts what runs
    assert host.pid("again") not in (None, before)


def test_no_number_of_restarts_reaches_the_start_limit(host: Host, systemd: Systemd) -> None:
    has(host, "limited", RUNS, interval=1000, burst=2)
    for _ in range(8):
        systemd.restart("limited")
        assert systemd.status("limited").state == "running"
    systemd.stop("limited")
    systemd.start("limited")
    assert systemd.status("limited").state == "running"


def test_a_start_after_a_loop_that_used_up_the_limit_works(host: Host, systemd: Systemd) -> None:
    has(host, "loop", "ExecStart=false\nRestart=always\nRestartSec=0", interval=1000, burst=2)
    systemd.restart("loop")
    is_soon(systemd, "loop", "stopped")
    host.install("loop", UNIT.format(interval=1000, burst=2, service=RUNS))
    systemd.restart("loop")
    assert systemd.status("loop").state == "running"


def test_a_start_that_fails_is_an_error_in_systemds_words(host: Host, systemd: Systemd) -> None:
    has(host, "pre", f"ExecStartPre=false\n{RUNS}")
    with pytest.raises(ServiceFailed, match=r"^Job for pre\.service failed because the control"):
        systemd.restart("pre")
    has(host, "env", f"EnvironmentFile=/nonexistent\n{RUNS}")
    with pytest.raises(ServiceFailed, match="unavailable resources"):
        systemd.start("env")


def test_a_changed_unit_and_its_first_drop_in_are_read_by_stop_and_start_and_not_by_a_restart(
    host: Host, systemd: Systemd
) -> None:
    has(host, "changed", RUNS)
    systemd.start("changed")
    drop_in = "/etc/systemd/system/changed.service.d/x.conf"
    host.machine.write(drop_in, "[Service]\nEnvironment=NEW=1\n")

    def runs(*words: str) -> str:
        """Its environment when it runs the command: until then it is a copy of process 1."""
        directory = f"/proc/{host.pid('changed')}"

        def command() -> str:
            return host.machine.run("cat", f"{directory}/cmdline").stdout

        wait_for(lambda: command().rstrip("\0").split("\0") == [*words], f"it runs {words}")
        return host.machine.run("cat", f"{directory}/environ").stdout

    systemd.restart("changed")
    assert "NEW=1" not in runs("sleep", "1000")
    systemd.stop("changed")
    systemd.start("changed")
    assert "NEW=1" in runs("sleep", "1000")
    host.machine.write("/etc/systemd/system/changed.service", "[Service]\nExecStart=sleep 2000\n")
    systemd.stop("changed")
    systemd.start("changed")
    assert runs("sleep", "2000")


def test_a_request_that_takes_longer_than_the_limit_goes_on_and_is_waited_for(
    host: Host, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(shell, "time", clock)
    has(host, "slow", "ExecStart=sh -c \"trap '' TERM; touch /run/slow; exec sleep 1000\"")
    systemd.start("slow")
    before = host.pid("slow")
    with longer_than_its_limit(host, "slow", clock):
        systemd.restart("slow")
    assert host.pid("slow") not in (None, before)
    with longer_than_its_limit(host, "slow", clock):
        systemd.stop("slow")
    assert systemd.status("slow").state == "stopped"


@contextmanager
def longer_than_its_limit(host: Host, job: str, clock: Clock) -> Iterator[None]:
    """The stop of the unit, whose program ignores it, takes a second longer than a call may."""
    is_there(host, f"/run/{job}")  # before that it does not ignore it
    host.machine.run("rm", f"/run/{job}")
    over = threading.Event()

    def stops() -> bool:
        asked = host.machine.run("systemctl", "is-active", f"{job}.service", check=False)
        if asked.stdout == "deactivating\n":
            over.set()
        return over.is_set()

    clock.skips_once(stops, 2 * DEADLINE)
    with killed(host, job, lambda: over.wait(2 * DEADLINE)):
        yield
    assert over.is_set()


def test_a_jvms_143_after_a_stop_is_stopped(host: Host, systemd: Systemd) -> None:
    has(host, "jvm", "ExecStart=sh -c 'trap \"exit 143\" TERM; while :; do sleep 0.1; done'")
    systemd.start("jvm")
    wait_for(lambda: host.pid("jvm"), "it runs")
    systemd.stop("jvm")
    assert systemd.status("jvm").state == "stopped"
    systemd.start("jvm")
    assert systemd.status("jvm").state == "running"


def test_a_program_that_dies_at_once_is_no_error_of_the_request(
    host: Host, systemd: Systemd
) -> None:
    has(host, "dies", "ExecStart=sh -c 'sleep 0.3; exit 1'")
    systemd.restart("dies")
    is_soon(systemd, "dies", "stopped")


def test_a_socket_that_starts_the_service_is_refused(host: Host, systemd: Systemd) -> None:
    has(host, "lazy", RUNS)
    systemd.refuse_what_would_fail(["lazy"])
    host.machine.write("/etc/systemd/system/lazy.socket", "[Socket]\nListenStream=/run/lazy\n")
    host.machine.run("systemctl", "daemon-reload")
    host.machine.run("systemctl", "start", "lazy.socket")
    with pytest.raises(NotReady, match=r"lazy\.service is started by lazy\.socket"):
        systemd.refuse_what_would_fail(["lazy"])


# The log


def test_the_last_lines_are_those_of_its_own_start(
    host: Host, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{host.bin}:/usr/bin:/bin")
    has(host, "talks", "ExecStart=sh -c 'echo first of $$PPID; sleep 1000'")
    systemd.start("talks")
    systemd.status("talks")
    wait_for(lambda: "first of" in systemd.last_log_lines("talks"), "its line is there", DEADLINE)
    # The journal asks the kernel whose line it is: of who has gone by then it cannot say it.
    has(host, "talks", f"ExecStart=sh -c 'echo second; {until('/run/heard')}; exit 3'")
    systemd.restart("talks")
    wait_for(lambda: "second" in systemd.last_log_lines("talks"), "its line is there", DEADLINE)
    host.machine.run("touch", "/run/heard")
    is_soon(systemd, "talks", "stopped")
    exited = "Main process exited, code=exited, status=3"
    wait_for(lambda: exited in systemd.last_log_lines("talks"), "systemd's is there", DEADLINE)
    shown = systemd.last_log_lines("talks")
    assert "second" in shown
    assert "first of" not in shown


def until(path: str) -> str:
    """A command of a shell that ends when the file is there."""
    return f"until test -e {path}; do sleep 0.1; done"


def test_the_last_lines_of_a_unit_that_is_started_again_and_again_say_why_it_died(
    host: Host, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{host.bin}:/usr/bin:/bin")
    dies_once = (
        "test -e /run/died && exec sleep 1000; touch /run/died; echo the reason; "
        f"{until('/run/told')}; exit 1"
    )
    has(host, "phoenix", f"ExecStart=sh -c '{dies_once}'\nRestart=always\nRestartSec=1")
    systemd.restart("phoenix")
    first = host.pid("phoenix")
    wait_for(
        lambda: "the reason" in systemd.last_log_lines("phoenix"), "its line is there", DEADLINE
    )
    host.machine.run("touch", "/run/told")
    wait_for(lambda: host.pid("phoenix") not in (None, first), "it is started again", DEADLINE)
    is_soon(systemd, "phoenix", "running")
    assert "the reason" in systemd.last_log_lines("phoenix")
    systemd.restart("phoenix")
    systemd.status("phoenix")
    assert "the reason" not in systemd.last_log_lines("phoenix")


def test_a_journal_that_cannot_be_read_says_why(
    systemd: Systemd, host: Host, tmp_path: Path
) -> None:
    has(host, "quiet", RUNS)
    systemd.start("quiet")
    systemd.status("quiet")
    program = host.bin / "journalctl"
    kept = program.read_text()
    try:
        program.write_text(
            "#!/bin/sh\necho 'No journal files were opened due to insufficient permissions.' >&2\nexit 1\n"
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", f"{host.bin}:/usr/bin:/bin")
            shown = systemd.last_log_lines("quiet")
    finally:
        program.write_text(kept)
    assert shown == (
        "(No journal files were opened due to insufficient permissions. "
        "as root: journalctl -u quiet.service)"
    )
