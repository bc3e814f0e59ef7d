"""Ctrl-Z for longer than a time limit: what happened in time counts when the tool goes on."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from clojure_repository import ClojureRepository as Tags
from little_host import LittleHost, wait_for

from deploy_clojars.deploy import drain
from deploy_clojars.host import services
from deploy_clojars.host.nginx import BACKUP_FIRST, PRIMARY_FIRST

FIRST, SECOND = Tags.FIRST, Tags.SECOND

CAPTURE = """
import sys
from deploy_clojars.machine import shell
script = f"touch began; while [ ! -e done ]; do sleep 0.05; done; echo done"
print(shell.capture(["/bin/sh", "-c", script], timeout=4).out, end="")
"""

STREAM = """
import os, pathlib
from deploy_clojars.machine import shell
script = "touch began; while [ ! -e done ]; do sleep 0.05; done; echo done"
with open("log", "ab", buffering=0) as log:
    with shell.running(["/bin/sh", "-c", script], log=log, cwd=pathlib.Path.cwd(),
                       env=os.environ, timeout=4, silence=4) as command:
        command.wait()
print(pathlib.Path("log").read_text(), end="")
"""

GET = """
import pathlib
from deploy_clojars.machine import web
pathlib.Path("began").touch()
print(web.get("{url}", timeout=4, max_body=100).body.decode())
"""


@contextlib.contextmanager
def suspended(process: subprocess.Popen[str], seconds: float) -> Iterator[None]:
    """The process sleeps while the block runs, for so long at least."""
    process.send_signal(signal.SIGSTOP)
    wait_for(lambda: state_of(process.pid) == "T", "it sleeps")
    started = time.monotonic()
    yield
    time.sleep(max(0.0, seconds - (time.monotonic() - started)))  # longer than its limit
    process.send_signal(signal.SIGCONT)


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def started(directory: Path, program: str) -> subprocess.Popen[str]:
    """A Python program in the directory, when it has begun what it is about."""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for((directory / "began").exists, "it has begun")
    return process


@pytest.mark.parametrize("program", [CAPTURE, STREAM])
def test_a_command_that_ended_meanwhile_did_not_take_too_long(tmp_path: Path, program: str) -> None:
    with started(tmp_path, program) as process:
        with suspended(process, 4.5):
            (tmp_path / "done").touch()
        output, _ = process.communicate(timeout=60)
    assert output == "done\n"


def test_an_answer_that_came_meanwhile_did_not_take_too_long(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        with started(tmp_path, GET.format(url=url)) as process:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n")
                with suspended(process, 4.5):
                    # More than is read at once.
                    connection.sendall(b"Long: %s\r\n\r\ndone" % (b"x" * 20_000))
                output, _ = process.communicate(timeout=60)
    assert output == "done\n"


def test_an_answer_that_never_comes_takes_too_long(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        with started(tmp_path, GET.format(url=url).replace(".body.decode()", "")) as process:
            connection, _ = server.accept()
            with connection:
                with suspended(process, 4.5):
                    pass
                output, _ = process.communicate(timeout=60)
    assert output == "timed out\n"


def test_an_instance_that_came_up_meanwhile_came_up_in_time(
    light_host: LittleHost, tmp_path: Path
) -> None:
    host = light_host
    host.have(SECOND)
    # Looks at the service manager take so long that the stop hits one that has asked the
    # instance already, when it was not up yet.
    programs = tmp_path / "programs"
    shutil.copytree(host.upstart.bin, programs)
    (programs / "status").write_text(f'#!/bin/sh\nsleep 0.7\nexec {host.upstart.bin}/status "$@"\n')
    host.options["services"] = f'bin = "{programs}"\nsudo = false\ntimeout = 20'
    host.options["health"] = "timeout = 8\nsettle = 0.2\ninterval = 0.2"
    host.write_config()
    before = host.pid("backup")
    with subprocess.Popen(
        [*host.command, SECOND, "--yes"],
        env=host.whole_environment, cwd=host.directory, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        wait_for(lambda: host.pid("backup") not in (before, None), "the backup restarts")
        with suspended(process, 9):
            wait_for(lambda: host.version("backup") == SECOND, "the backup is up")
            # The primary has no more than the eight seconds, and they are its own.
            (programs / "quick").symlink_to(host.upstart.bin / "status")
            (programs / "quick").replace(programs / "status")
        _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert host.versions == (SECOND, SECOND)


class Clock:
    """Time as the tool sees it; `passes` is Ctrl-Z in the middle of a look."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def passes(self) -> None:
        self.now += 1000.0


def test_a_job_that_has_stopped_meanwhile_stopped_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    states = iter(["stopping", "stopped"])

    class Stops:
        def status(self, job: str) -> services.Job:
            state = next(states)
            clock.passes()
            return services.Job(cast(services.State, state))

    services.wait_while_it_stops(cast(Any, Stops()), "clojars", timeout=90)
    assert list(states) == []


def test_nginx_that_has_followed_meanwhile_followed_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    answers = iter([PRIMARY_FIRST, BACKUP_FIRST])

    class Front:
        flag = "flag"

        def answer(self) -> str:
            clock.passes()
            return next(answers)

    host = SimpleNamespace(nginx=Front())
    drain._wait_until_followed(cast(Any, SimpleNamespace(host=host)))
    assert list(answers) == []


def test_time_in_which_nobody_looked_is_not_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    looks: list[float] = []

    class Doors:
        def visits(self) -> SimpleNamespace:
            looks.append(clock.now)
            if len(looks) == 1:
                clock.passes()  # and who came in then is still there
            requests = ("a visitor",) if len(looks) == 2 else ()
            clock.now += 0.1
            return SimpleNamespace(
                requests=requests, nailgun=(), past_nginx=(), since_a_request=1000.0, holders=[]
            )

    settings = SimpleNamespace(quiet=1, timeout=5000)
    host = SimpleNamespace(config=SimpleNamespace(drain=settings))
    instance = SimpleNamespace(job="clojars", doors=Doors)
    drain._wait_until_quiet(cast(Any, SimpleNamespace(host=host)), cast(Any, instance))
    assert len(looks) > 3
