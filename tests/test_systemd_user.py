"""A user's own systemd (`systemctl --user`): no root, no sudo; with a real systemd 252 and logind."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from little_host import wait_for
from programs import require_program
from systemd_machine import Machine

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[1]
TOOL = Path(sys.executable).with_name("deploy-clojars")
SANDBOX = "/home/clojars/my sandbox; #1"  # a name that has to be quoted
PREFIX = "deploy-clojars-sandbox-"
JOBS = ("clojars", "clojars-backup")

# What the host's page has for such a host.
PAGE = (PROJECT / "docs/host.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("## The user's own systemd\n")[2].partition("\n## ")[0]
UNIT = SECTION.partition("```ini\n")[2].partition("```")[0]
AS_ROOT, AS_CLOJARS = (
    [line.strip() for line in re.findall(r"(?m)^ {4}\S.*", part)]
    for part in SECTION.split("```ini")
)


class Host:
    """The machine as Ann has it, who becomes clojars by `sudo -iu clojars`, as the motd says."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.config = f"{SANDBOX}/deploy-clojars.toml"

    def type(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs a command as clojars, in Ann's session: clojars has none, and no variable of one."""
        line = shlex.join(words)
        return self.machine.run(
            "sudo", "-iu", "ann", "sudo", "-niu", "clojars", "sh", "-c", line,
            check=False, timeout=600,
        )  # fmt: skip

    def done(self, *words: str) -> str:
        """Runs a command as clojars, which must end with 0, and returns what it said."""
        result = self.type(*words)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout + result.stderr

    def fails(self, status: int, *words: str) -> str:
        """Runs a command as clojars that must end with this status, and returns what it said."""
        result = self.type(*words)
        assert result.returncode == status, result.stdout + result.stderr
        return result.stdout + result.stderr

    def tool(self, *words: str) -> list[str]:
        """The words that run the tool on the sandbox."""
        return ["deploy-clojars", "-c", self.config, *words]

    @property
    def status(self) -> dict[str, Any]:
        """What `status --json` says on the sandbox."""
        result = self.type(*self.tool("status", "--json"))
        assert result.returncode in (0, 11), result.stderr
        document = json.loads(result.stdout)
        assert isinstance(document, dict)
        return document

    @property
    def running(self) -> tuple[str | None, str | None]:
        """What the two instances run."""
        both = self.status["instances"]
        return both["primary"]["running"], both["backup"]["running"]

    @property
    def pids(self) -> tuple[int | None, int | None]:
        """The processes of the two instances."""
        both = self.status["instances"]
        return both["primary"]["pid"], both["backup"]["pid"]

    def serves(self, version: str) -> None:
        """Waits until both instances run it and answer, which comes later."""
        wait_for(
            lambda: self.running == (version, version) and self.status["ok"],
            f"both serve {version}",
        )

    @property
    def uid(self) -> str:
        """The number of clojars."""
        return self.machine.run("id", "-u", "clojars").stdout.strip()

    def systemctl(self, *words: str) -> str:
        """What `systemctl --user` of clojars says."""
        user = ["setpriv", "--reuid", self.uid, "--regid", self.uid, "--clear-groups"]
        where = ["env", f"XDG_RUNTIME_DIR=/run/user/{self.uid}", "systemctl", "--user"]
        return self.machine.run(*user, *where, *words, check=False).stdout

    @property
    def units(self) -> list[str]:
        """The units of sandboxes that systemd knows."""
        shown = self.systemctl("list-units", "--all", "--plain", "--no-legend", f"{PREFIX}*")
        return sorted(line.split()[0] for line in shown.splitlines())

    @property
    def left(self) -> tuple[list[str], list[str], str]:
        """Units of sandboxes, their files, and processes."""
        files = self.machine.run("find", "/run/user", "-name", f"*{PREFIX}*").stdout.split()
        marked = self.machine.run(
            "sh", "-c", "grep -l DEPLOY_CLOJARS_SANDBOX= /proc/[0-9]*/environ", check=False
        )
        return self.units, files, marked.stdout

    def lingers(self) -> None:
        """Has the manager run; returns when it does."""
        [command] = [line for line in AS_ROOT if "linger" in line]
        self.machine.run(*command.split())
        wait_for(lambda: self.systemctl("is-system-running").strip() == "running", "it runs")

    def has_no_manager(self) -> None:
        """Without lingering, and without a session, there is none."""
        self.machine.run("loginctl", "disable-linger", "clojars", check=False)
        there = ["test", "-e", f"/run/user/{self.uid}"]
        wait_for(lambda: self.machine.run(*there, check=False).returncode == 1, "it has ended")

    @contextmanager
    def logged_in(self) -> Iterator[None]:
        """A session of clojars."""
        with subprocess.Popen(
            self.machine.command("sudo", "-iu", "clojars", "sh", "-c", "echo in; exec cat"),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        ) as session:  # fmt: skip
            assert session.stdout is not None
            assert session.stdout.readline() == b"in\n"
            yield

    @contextmanager
    def as_a_host(self) -> Iterator[None]:
        """With units where those of a host are, enabled; the sandbox is stopped, its files serve."""
        config, units = "/home/clojars/host.toml", "/home/clojars/.config/systemd/user"
        [prefix] = [
            unit.removesuffix(end)
            for unit in self.units
            if unit.endswith(end := "clojars-backup.service")
        ]
        self.done("mkdir", "-p", units)
        for job in JOBS:
            lines = self.systemctl("cat", f"{prefix}{job}.service").splitlines()
            own = "\n".join(line for line in lines if line.startswith(("ExecStart", "WorkingDir")))
            text = re.sub(r"(?m)^WorkingDir.*\n", "", UNIT)
            text = re.sub(r"(?m)^ExecStart.*", own.replace("\\", r"\\"), text)
            self.machine.write(f"{units}/{job}.service", text)
        text = self.machine.run("cat", self.config).stdout
        text = text.replace(prefix, "").replace('manager = "systemd"', 'manager = "auto"')
        self.machine.write(config, text)
        self.done("deploy-clojars", "sandbox", SANDBOX, "--stop")
        assert len(AS_CLOJARS) == 3
        self.done("sh", "-c", " && ".join(AS_CLOJARS))  # sudo -i takes no line end
        self.systemctl("start", *JOBS)
        self.config, before = config, self.config
        try:
            yield
        finally:
            self.config = before
            self.systemctl("disable", "--now", *JOBS)
            self.machine.run("rm", "-r", units, config)


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """A host of today on which clojars has no session and no manager yet."""
    require_program("sudo", "loginctl", "git", "nginx", "setpriv")
    with tempfile.TemporaryDirectory(prefix="systemd-") as name:
        shared = [PROJECT, Path(sys.prefix)]
        with Machine.started(Path(name, "machine"), *shared) as machine:
            for path in (Path(sys.base_prefix), *shared):
                # Only on the way there: a shared directory is the real one.
                machine.run("chmod", "a+rx", *path.parents)
            machine.write("/etc/systemd/logind.conf.d/soon.conf", "[Login]\nUserStopDelaySec=0\n")
            machine.run("ln", "-s", TOOL, "/usr/local/bin/deploy-clojars")
            machine.run("useradd", "--create-home", "--shell", "/bin/bash", "ann")
            machine.write("/etc/sudoers.d/ann", "ann ALL=(clojars) NOPASSWD: ALL\n", 0o440)
            machine.run("loginctl", "enable-linger", "ann")  # or each of her commands starts hers
            yield Host(machine)


@pytest.fixture
def serving(host: Host) -> Host:
    """The host, with a sandbox under clojars's own systemd that serves 0.1.0."""
    host.lingers()
    host.done("deploy-clojars", "sandbox", SANDBOX, "--systemd")
    if host.running != ("0.1.0", "0.1.0"):
        host.done(*host.tool("0.1.0", "--yes"))
    return host


# The sandbox


def test_without_a_systemd_of_ones_own_the_sandbox_is_refused_and_nothing_is_there(
    host: Host,
) -> None:
    host.has_no_manager()
    assert "XDG_RUNTIME_DIR" not in host.done("env")
    said = host.fails(4, "deploy-clojars", "sandbox", SANDBOX, "--systemd")
    assert "clojars has no systemd of their own (Failed to connect to bus" in said
    assert "as root: loginctl enable-linger clojars" in said
    assert (
        f"under supervisord instead: {shlex.join(['deploy-clojars', 'sandbox', SANDBOX])}" in said
    )
    assert host.type("ls", "-A", SANDBOX).returncode == 2


def test_good_and_bad_tags_without_root_or_sudo(serving: Host) -> None:
    serving.done(*serving.tool("0.2.0", "--yes"))
    assert serving.running == ("0.2.0", "0.2.0")
    assert serving.fails(5, *serving.tool("0.2.1-failing-tests", "--yes"))
    shown = serving.done(*serving.tool("rollback", "--dry-run"))
    uid = serving.uid
    for unit in serving.units:
        typed = f"env XDG_RUNTIME_DIR=/run/user/{uid} /usr/bin/systemctl --user restart {unit}"
        assert (typed in shown) is ("nginx" not in unit)
    serving.done(*serving.tool("rollback", "--yes"))
    assert serving.running == ("0.1.0", "0.1.0")
    found = serving.done(*serving.tool("check"))
    assert f"ok  {serving.units[0]} does not survive a reboot\n" in found
    assert found.endswith("\nready\n")


def test_a_release_that_dies_at_its_start_shows_its_own_lines_or_why_it_cannot(
    serving: Host,
) -> None:
    tag = "0.2.3-does-not-start"
    said = serving.fails(6, *serving.tool(tag, "--yes"))
    [backup] = [unit for unit in serving.units if "backup" in unit]
    assert (
        "(No journal files were opened due to insufficient permissions. as root: "
        f"journalctl _SYSTEMD_USER_UNIT={backup})"
    ) in said
    assert "KeyError" in serving.machine.run("journalctl", f"_SYSTEMD_USER_UNIT={backup}").stdout

    [command] = [line for line in AS_ROOT if "journal" in line]
    serving.machine.run(*command.split())
    try:
        said = serving.fails(6, *serving.tool(tag, "--yes"))
    finally:
        serving.machine.run("usermod", "-G", "", "clojars")
    assert "KeyError: 'MAIL_URL'" in said
    assert "Main process exited, code=exited, status=1/FAILURE" in said
    assert serving.running == ("0.1.0", "0.1.0")


def test_what_the_users_systemd_has_in_its_environment_does_not_reach_the_instances(
    serving: Host,
) -> None:
    serving.systemctl("set-environment", "MAIL_URL=smtp://127.0.0.1")
    try:
        serving.fails(6, *serving.tool("0.2.3-does-not-start", "--yes"))
    finally:
        serving.systemctl("unset-environment", "MAIL_URL")


def test_started_again_it_changes_nothing_and_stopped_it_leaves_nothing_and_goes_on(
    serving: Host,
) -> None:
    before = serving.pids
    said = serving.done("deploy-clojars", "sandbox", SANDBOX)
    assert "it runs already; nothing was changed" in said
    assert f"journalctl --user -u '{PREFIX}{serving.units[0].split('-')[3]}-*'" in said
    assert serving.pids == before

    assert "stopped: PID " in serving.done("deploy-clojars", "sandbox", SANDBOX, "--stop")
    assert serving.left == ([], [], "")
    assert "nothing of it was running" in serving.done(
        "deploy-clojars", "sandbox", SANDBOX, "--stop"
    )
    serving.done("deploy-clojars", "sandbox", SANDBOX)
    assert serving.running == ("0.1.0", "0.1.0")
    serving.systemctl("stop", f"{PREFIX}*")
    serving.done("deploy-clojars", "sandbox", SANDBOX)
    assert serving.running == ("0.1.0", "0.1.0")


def test_a_second_one_has_units_of_its_own(serving: Host) -> None:
    before, other = serving.pids, "/home/clojars/other"
    serving.done("deploy-clojars", "sandbox", other, "--systemd")
    names = {unit.removeprefix(PREFIX).partition("-")[0] for unit in serving.units}
    assert len(names) == 2
    # Removed while it ran, which an `rm -r` by hand may do.
    serving.done("rm", "-r", other)
    serving.done("deploy-clojars", "sandbox", other, "--stop")
    assert {unit.removeprefix(PREFIX).partition("-")[0] for unit in serving.units} < names
    assert serving.pids == before
    assert "is not a sandbox" in serving.fails(2, "deploy-clojars", "sandbox", other, "--stop")


def test_one_under_supervisord_stays_there(host: Host) -> None:
    host.lingers()
    place = "/home/clojars/supervised"
    host.done("deploy-clojars", "sandbox", place)
    try:
        said = host.fails(2, "deploy-clojars", "sandbox", place, "--systemd")
        assert f"{place} is a sandbox under supervisord; nothing was changed" in said
    finally:
        host.done("deploy-clojars", "sandbox", place, "--stop")


# A host whose instances the production user's own systemd runs


def test_after_the_last_logout_without_lingering_it_is_down_and_says_what_to_do(
    serving: Host,
) -> None:
    serving.has_no_manager()
    assert serving.left == ([], [], "")
    status = serving.status
    assert (status["ok"], status["instances"]["primary"]["state"]) == (False, "unknown")
    for words in (("0.2.0", "--yes"), ("check",)):
        result = serving.type(*serving.tool(*words))
        assert result.returncode == {"check": 11}.get(words[0], 4)
        assert "as root: loginctl enable-linger clojars" in result.stdout + result.stderr
    serving.lingers()
    serving.done("deploy-clojars", "sandbox", SANDBOX)
    assert serving.running == ("0.1.0", "0.1.0")


def test_where_it_has_crashed_although_it_lingers_it_is_to_be_restarted(serving: Host) -> None:
    service = f"user@{serving.uid}.service"
    serving.machine.run("systemctl", "stop", service)
    remedy = f"as root: systemctl restart {service}"
    assert remedy in serving.fails(4, *serving.tool("0.2.0", "--yes"))
    serving.done("deploy-clojars", "sandbox", SANDBOX, "--stop")
    serving.machine.run(*remedy.removeprefix("as root: ").split())
    serving.lingers()
    serving.done("deploy-clojars", "sandbox", SANDBOX)
    assert serving.running == ("0.1.0", "0.1.0")


def test_enabled_units_come_back_with_a_reboot_and_check_finds_that_nothing_lingers(
    serving: Host,
) -> None:
    with serving.as_a_host():
        serving.serves("0.1.0")
        serving.done(*serving.tool("0.2.0", "--yes"))
        serving.machine.run("systemctl", "restart", f"user@{serving.uid}.service")
        serving.serves("0.2.0")
        found = serving.type(*serving.tool("check")).stdout
        assert "ok  clojars.service starts at boot" in found
        assert serving.status["ok"]

        drop_in = "/home/clojars/.config/systemd/user/clojars.service.d/x.conf"
        serving.machine.write(drop_in, "[Service]\nExecStartPre=touch /home/clojars/started\n")
        found = serving.fails(11, *serving.tool("check"))
        assert f"!!  systemd has not read {drop_in} yet\n" in found
        assert "!!  clojars cannot read the journal" in found
        serving.machine.run("mkdir", "/var/log/journal")
        assert "the journal" not in serving.fails(11, *serving.tool("check"))
        serving.machine.run("rmdir", "/var/log/journal")
        serving.done(*serving.tool("restart", "--yes"))
        serving.done("rm", "/home/clojars/started")

        with serving.logged_in():
            serving.machine.run("loginctl", "disable-linger", "clojars")
            found = serving.fails(11, *serving.tool("check"))
            serving.lingers()
    assert (
        "!!  the systemd of clojars ends with its last session, and so do both instances\n"
        "      as root: loginctl enable-linger clojars\n"
    ) in found


def test_others_see_no_state_and_ask_no_manager_of_their_own(serving: Host) -> None:
    for words in ([], ["sudo", "-iu", "ann"]):
        result = serving.machine.run(*words, *serving.tool("status"), check=False)
        assert result.returncode == 0, result.stdout
        assert result.stdout.count("unknown (only clojars can ask their own systemd)") == 2
    found = serving.machine.run(*serving.tool("check"), check=False).stdout
    again = shlex.join(serving.tool("check"))
    assert f"only clojars can ask their own systemd\n      sudo -iu clojars {again}\n" in found
