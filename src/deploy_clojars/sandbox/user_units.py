"""The sandbox's units of the user's own systemd: writing, starting and removing them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from deploy_clojars.config import BOOTED, Services
from deploy_clojars.errors import DeployError, NotReady
from deploy_clojars.host.services import ServiceFailed, user_manager
from deploy_clojars.host.services.systemd import Systemd
from deploy_clojars.machine.shell import TookTooLong, capture, root_program
from deploy_clojars.sandbox import site, supervisord
from deploy_clojars.sandbox.place import Sandbox, command, unit_prefix, write

SECONDS = 30.0  # for one request

UNIT = """\
# Rewritten at every start of the sandbox, and gone after a reboot.
[Unit]
Description=The sandbox in {directory}: {name}
StartLimitIntervalSec=60
StartLimitBurst=5

[Service]
WorkingDirectory={directory}/{place}
ExecStart={command}
KillSignal={signal}
Restart=always
RestartSec=1
TimeoutStopSec=10
"""


def require_manager(directory: Path) -> None:
    """Raises NotReady (4) if this user has no systemd of their own."""
    try:
        _systemctl("show", "--property=Version")
    except FileNotFoundError:
        raise NotReady("not on PATH: systemctl") from None
    except DeployError as error:
        what, remedy = user_manager.without_one(os.geteuid(), error.message)
        remedies = [remedy] if BOOTED.is_dir() else []
        remedies.append(f"under supervisord instead: {command(directory)}")
        raise NotReady(f"{what}; nothing was changed", remedy="\n".join(remedies)) from None


def texts(sandbox: Sandbox) -> dict[str, str]:
    """The units' texts by the names of their jobs."""
    found = {}
    for role, job in sandbox.jobs.items():
        ports = getattr(sandbox.ports, role)
        settings = [f"PORT={ports.web}", f"NAILGUN_PORT={ports.nailgun}"]
        found[job] = UNIT.format(
            name=role, directory=sandbox.directory, place="home", signal="SIGTERM",
            command=_command(
                sandbox, *settings, sys.executable, "-I", "releases/clojars-web-current.jar"
            ),
        )  # fmt: skip
    nginx = root_program("nginx")
    if nginx is not None:
        found[f"{unit_prefix(sandbox.directory)}nginx"] = UNIT.format(
            name="nginx", directory=sandbox.directory, place=".", signal="SIGQUIT",
            command=_command(sandbox, nginx, "-p", "./", "-c", "nginx.conf", "-e", "logs/nginx.log"),
        )  # fmt: skip
    return found


def _command(sandbox: Sandbox, *words: str) -> str:
    # The user's systemd may have all that the desktop's shell exports: nothing of it is passed on.
    inherited = supervisord.environment(sandbox.directory).items()
    variables = [f"{name}={value}" for name, value in inherited if value.isprintable()]
    return " ".join(map(_quoted, ("/usr/bin/env", "-i", *variables, *words)))


def _quoted(word: str) -> str:
    """A word of a unit's command; all that JSON escapes, systemd escapes in the same way."""
    return json.dumps(word, ensure_ascii=False).replace("%", "%%").replace("$", "$$")


def start(sandbox: Sandbox) -> None:
    """Writes the units and starts nginx and, if there is a current release, the instances.

    One that does not come up is left to `status`. Raises DeployError.
    """
    site.write_configuration(sandbox)
    supervisord.remove_leftovers(sandbox.directory)
    there = _directory()
    there.mkdir(parents=True, exist_ok=True)
    written = texts(sandbox)
    for job, text in written.items():
        write(there / f"{job}.service", text)
    _systemctl("daemon-reload")
    instances = sandbox.jobs.values()
    is_deployed = sandbox.link.exists()
    try:
        for job in written:
            if is_deployed or job not in instances:
                _client().start(job)
    except ServiceFailed as error:
        raise DeployError(f"systemd: {error}") from None
    if is_deployed:
        supervisord.wait_until_all_answer(sandbox)


def answers(sandbox: Sandbox) -> bool:
    """Whether systemd has the sandbox's units, and something of them runs."""
    is_known = _client().status(sandbox.jobs["primary"]).state != "unknown"
    return is_known and bool(supervisord.living(sandbox.directory))


def files_of(directory: Path) -> list[Path]:
    """The files of the units of the sandbox that was started in the directory."""
    return sorted(_directory().glob(f"{unit_prefix(directory)}*.service"))


def remove(directory: Path) -> None:
    """Stops the units and removes them. Raises DeployError."""
    files = files_of(directory)
    if files:
        _systemctl("stop", *(file.name for file in files))
        for file in files:
            file.unlink(missing_ok=True)
        _systemctl("daemon-reload")
        # Else systemd keeps those that had failed.
        _systemctl("reset-failed", f"{unit_prefix(directory)}*")


def _directory() -> Path:
    """Where the units of a user are that shall be gone after a reboot (systemd.unit(5))."""
    return Path(user_manager.runtime_directory(os.geteuid()), "systemd/user")


def _client() -> Systemd:
    return Systemd(bin=_programs(), sudo=False, timeout=SECONDS, user=os.geteuid())


def _programs() -> str:
    return Services(manager="systemd").programs


def _systemctl(*words: str) -> None:
    """Raises DeployError with what it said, and FileNotFoundError."""
    directory = user_manager.runtime_directory(os.geteuid())
    try:
        answer = capture(
            [f"{_programs()}/systemctl", "--user", *words],
            timeout=SECONDS, env={**os.environ, "XDG_RUNTIME_DIR": directory},
        )  # fmt: skip
    except TookTooLong as error:
        raise DeployError(f"systemctl --user {words[0]}: {error.message}") from None
    if answer.status != 0:
        said = answer.err.strip().splitlines() or [f"exit status {answer.status}"]
        raise DeployError(said[0])
