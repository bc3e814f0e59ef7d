"""The sandbox's supervisord: its configuration, starting it, and ending all that it started."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL, SIGTERM

import psutil

from deploy_clojars.config import HealthUrl
from deploy_clojars.errors import DeployError
from deploy_clojars.host import health
from deploy_clojars.host.services.supervisor import Supervisor
from deploy_clojars.machine import processes
from deploy_clojars.machine.shell import root_program
from deploy_clojars.sandbox import site
from deploy_clojars.sandbox.place import SOCKET, Sandbox, write

# Every process of a sandbox has the sandbox's directory in its environment under this name; it is
# how they are found, also when a crash has left no supervisord, no PID file and no sandbox.json.
MARK = "DEPLOY_CLOJARS_SANDBOX"

LET_THROUGH = ("PATH", "HOME", "USER", "LANG", "TMPDIR", "TZ", "VIRTUAL_ENV")

# Seconds for supervisord to start, or to end, and for the instances to answer; more than
# `stopwaitsecs`, and as much as the sandbox's configuration gives an instance.
PATIENCE = 20

# The sandbox's path is not in the text, where `;` and `#` would begin a comment.
DAEMON = """\
; supervisord's own part of the sandbox. Rewritten at every start.

[supervisord]
pidfile = %(here)s/supervisord.pid
logfile = %(here)s/logs/supervisord.log
logfile_maxbytes = 1MB
logfile_backups = 1
nocleanup = true
nodaemon = false
umask = 022
minfds = 1024
minprocs = 200

[unix_http_server]
; Through the working directory, which is the sandbox: the kernel takes 107 bytes at most.
file = /proc/self/cwd/supervisor.sock
chmod = 0700

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

; For `supervisorctl -c FILE`, in the sandbox.
[supervisorctl]
serverurl = unix:///proc/self/cwd/supervisor.sock
"""

PROGRAM = """
[program:{job}]
command = %(ENV_SANDBOX_PYTHON)s -I releases/clojars-web-current.jar
directory = %(here)s/home
environment = PORT="{web}",NAILGUN_PORT="{nailgun}"
; Before the first deploy there is nothing to start.
autostart = {autostart}
autorestart = true
startsecs = 1
startretries = 2
stopsignal = TERM
stopwaitsecs = 10
stopasgroup = true
killasgroup = true
redirect_stderr = true
stdout_logfile = %(here)s/logs/{job}.log
stdout_logfile_maxbytes = 1MB
stdout_logfile_backups = 1
"""


NGINX = """
[program:nginx]
command = {nginx} -p ./ -c nginx.conf -e logs/nginx.log
directory = %(here)s
autostart = true
autorestart = true
startsecs = 0
startretries = 3
stopsignal = QUIT
stopwaitsecs = 10
stopasgroup = true
killasgroup = true
redirect_stderr = true
stdout_logfile = %(here)s/logs/nginx.log
stdout_logfile_maxbytes = 0
"""


def configuration(sandbox: Sandbox, *, autostart: bool) -> str:
    """The text of supervisord.conf."""
    programs = [
        PROGRAM.format(
            job=job,
            web=getattr(sandbox.ports, role).web,
            nailgun=getattr(sandbox.ports, role).nailgun,
            autostart=str(autostart).lower(),
        )
        for role, job in sandbox.jobs.items()
    ]
    found = root_program("nginx")
    front = [NGINX.format(nginx=shlex.quote(found))] if found else []
    return "".join([DAEMON, *programs, *front])


def start(sandbox: Sandbox) -> None:
    """Starts supervisord as a daemon, and the instances if there is a current release.

    Returns when its socket answers and the instances run; one that does not come up is left to
    `status`. Raises DeployError.
    """
    autostart = sandbox.link.exists()
    write(sandbox.supervisord, configuration(sandbox, autostart=autostart))
    site.write_configuration(sandbox)
    remove_leftovers(sandbox.directory)
    try:
        # It goes into the background by itself, and not before it listens on its socket.
        done = subprocess.run(
            [sys.executable, "-P", "-m", "supervisor.supervisord", "-c", str(sandbox.supervisord)],
            cwd=sandbox.directory,
            # supervisord splits the command like a shell
            env={
                **environment(sandbox.directory),
                "SANDBOX_PYTHON": shlex.quote(sys.executable),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # the terminal's end is not its end
            umask=0o077,  # between its bind() and its chmod() the socket is nobody else's either
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DeployError(f"supervisord did not start within {PATIENCE} s") from None
    if done.returncode != 0:
        raise DeployError(
            f"supervisord did not start (exit status {done.returncode})",
            detail=done.stdout.decode("utf-8", "replace"),
        )
    if autostart:
        wait_until_all_answer(sandbox)


def environment(directory: Path) -> dict[str, str]:
    """What the sandbox's processes get.

    Not the rest of the shell's: under Upstart a job gets none of that either, and a release must
    not come up because a MAIL_URL happens to be there.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name in LET_THROUGH or name.startswith("LC_")
    }
    return {**inherited, MARK: str(directory)}


def answers(sandbox: Sandbox) -> bool:
    """Whether a supervisord answers on the sandbox's socket."""
    return _client(sandbox).status(sandbox.jobs["primary"]).state != "unknown"


def _client(sandbox: Sandbox) -> Supervisor:
    return Supervisor(path=str(sandbox.socket), timeout=5)


def wait_until_all_answer(sandbox: Sandbox) -> None:
    """Waits until both instances answer; one that does not come up is left to `status`."""
    deadline = time.monotonic() + PATIENCE
    pairs = (sandbox.ports.primary, sandbox.ports.backup)
    urls = [HealthUrl(f"http://127.0.0.1:{pair.web}/") for pair in pairs]
    while not all(health.check(url, 5).ok for url in urls):
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)


def living(directory: Path) -> list[psutil.Process]:
    """The processes of the sandbox that was started in the directory."""
    marked = processes.carrying(MARK, lambda value: value == str(directory))
    return [*{*marked, *filter(lambda each: _is_its_nginx(each, directory), psutil.process_iter())}]


def _is_its_nginx(process: psutil.Process, directory: Path) -> bool:
    """nginx writes its title over its environment; where it runs identifies it."""
    with suppress(psutil.Error, OSError):
        there = process.cwd().removesuffix(" (deleted)")
        return process.name() == "nginx" and there == str(directory)
    return False


def end_all(directory: Path) -> list[int]:
    """Ends every process of the sandbox and returns their PIDs.

    All are asked at the same time, supervisord first, so that it starts no instance again; an
    instance finishes the requests that it has begun. Raises DeployError if one survives.
    """
    found = living(directory)
    for signum in (SIGTERM, SIGKILL):
        _send_until_gone(directory, signum)
    left = [process.pid for process in living(directory)]
    if left:
        raise DeployError(f"these processes of {directory} cannot be ended: {left}")
    return sorted(process.pid for process in found)


def _send_until_gone(directory: Path, signum: int) -> None:
    deadline = time.monotonic() + PATIENCE
    asked: set[psutil.Process] = set()
    while (remaining := living(directory)) and time.monotonic() < deadline:
        for process in sorted(set(remaining) - asked, key=_is_supervisord, reverse=True):
            # psutil looks at the start time first: a PID that was given away again is not hit.
            with suppress(psutil.Error):
                process.send_signal(signum)
        asked.update(remaining)
        _wake(directory)
        time.sleep(0.02)


def _wake(directory: Path) -> None:
    """supervisord looks at signals and at its children once a second, or if somebody connects."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1)
        connection.connect(str(directory / SOCKET))


def _is_supervisord(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return "supervisor.supervisord" in process.cmdline()
    return False


def remove_leftovers(directory: Path) -> None:
    """Removes what a supervisord that was killed has left; only when none lives."""
    for name in ("supervisor.sock", "supervisord.pid", "nginx.pid"):
        with suppress(FileNotFoundError):
            (directory / name).unlink()
