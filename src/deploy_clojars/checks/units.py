"""systemd's two units: whether each is the one on disk, starts at boot, and can be restarted and seen."""

from __future__ import annotations

import grp
import os
import pwd
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy_clojars.checks.filesystem import changed_since
from deploy_clojars.checks.finding import Finding, Findings, Site, by_root
from deploy_clojars.host.health import Observation
from deploy_clojars.host.services import ServiceFailed
from deploy_clojars.host.services.systemd import Systemd, sockets_of, unit_of, why_no_sockets
from deploy_clojars.host.services.user_manager import (
    enable_lingering,
    is_lingering,
    runtime_directory,
)
from deploy_clojars.machine.environment import why_for_a_shell
from deploy_clojars.setup.files import files
from deploy_clojars.setup.journal_access import reads_the_journal

Shown = Mapping[str, str]

PROPERTIES = (
    "LoadState", "ActiveState", "Result", "NRestarts", "UnitFileState", "FragmentPath",
    "SourcePath", "DropInPaths", "NeedDaemonReload", "TriggeredBy", "WantedBy", "RequiredBy",
    "EnvironmentFiles", "RuntimeDirectory", "RuntimeDirectoryPreserve", "User", "Group",
    "KillMode", "TimeoutStopUSec", "Restart", "PrivateUsers", "AmbientCapabilities",
    "PrivateNetwork", "NetworkNamespacePath", "MemoryDenyWriteExecute",
)  # fmt: skip

# How `systemctl show` writes a duration, in seconds.
TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1, "min": 60, "h": 3600, "d": 86400, "w": 604800,
         "month": 2629800, "y": 31557600}  # fmt: skip

# Where units and drop-ins are, below / (systemd.unit(5)).
DROP_INS = ("etc/systemd/system", "run/systemd/system", "usr/local/lib/systemd/system",
            "usr/lib/systemd/system")  # fmt: skip

FIRST_PERSON = 1000  # the first number of a user who is not the system's

DROP_IN = "zz-deploy-clojars.conf"  # of several, the last name counts


@dataclass(frozen=True)
class Fault:
    """A setting that gets in the way of a deploy, and the one to have instead.

    `hides`: while it is in force no restart by this tool would ever be seen to succeed.
    """

    why: str
    instead: str
    hides: bool = False


def units(site: Site, root: Path = Path("/")) -> Findings:
    """Both units, with one call of systemctl; `root` stands for /."""
    systemd = site.systemd
    if systemd is None:
        return
    try:
        shown = systemd.show(PROPERTIES, *site.host.jobs)
    except ServiceFailed:
        return  # the jobs' own findings say why
    for observation, of_unit in zip(site.look.instances, shown, strict=False):
        if of_unit.get("LoadState") == "loaded":
            found = list(_unit(site, systemd, observation, of_unit, root))
            unit = unit_of(observation.job)
            when = "starts at boot" if starts_at_boot(of_unit) else "does not start at boot"
            if _is_fleeting(site, of_unit):
                when = "does not survive a reboot"
            yield from found or [Finding(f"{unit} {when}{_differs(site, of_unit, root)}")]
    yield from of_the_user(site, root, lasts=not any(_is_fleeting(site, each) for each in shown))


def _unit(
    site: Site, systemd: Systemd, observation: Observation, shown: Shown, root: Path
) -> Findings:
    unit = unit_of(observation.job)
    sockets = sockets_of(shown)
    if sockets:
        remedy = f"have the application open its port itself\n{systemd.typed('disable', '--now', *sockets)}"
        yield Finding(why_no_sockets(unit, sockets), True, remedy)
    if "/generator" in shown.get("FragmentPath", ""):
        made_from = shown.get("SourcePath") or shown["FragmentPath"]
        what = f"{unit} is only generated, from {made_from}: systemd does not know its main process"
        yield Finding(what, True, site.setup)
        return  # what setup writes has none of its settings
    may_rest = observation is site.look.backup and site.look.backup_may_rest
    gave_up = shown.get("ActiveState") == "failed" and shown.get("NRestarts", "0") != "0"
    if gave_up and not may_rest:
        what = (
            f"{unit} has failed ({shown.get('Result')}) after {shown['NRestarts']} restarts, and "
            "systemd no longer starts it"
        )
        yield Finding(what, True, f"{systemd.journal_of(unit)} says why; then: {site.way_back}")
    found = [*_faults(site, shown)]
    remedy = _drop_in(site, systemd, unit, found)
    yield from (Finding(f"{unit} {fault.why}", True, remedy) for fault in found)
    if may_rest and starts_at_boot(shown):
        what = f"{unit} would start at boot, though it runs only while deploying"
        yield Finding(what, True, systemd.typed("disable", unit))
    if not (may_rest or starts_at_boot(shown) or _is_fleeting(site, shown)):
        # One without an [Install] section cannot be enabled.
        static = shown.get("UnitFileState") == "static"
        target = "multi-user.target" if not systemd.of_user else "default.target"
        enable = ("add-wants", target, unit) if static else ("enable", unit)
        yield Finding(f"{unit} would not start at boot", True, systemd.typed(*enable))
    yield from _not_in_force(site, systemd, observation, shown, root)
    yield from _settings(shown, root)


def _is_fleeting(site: Site, shown: Shown) -> bool:
    """Whether somebody put it where a user has what is not to outlive the session, as a sandbox does."""
    of_user = site.systemd is not None and site.systemd.of_user
    if not of_user or site.owner is None:
        return False
    return shown.get("FragmentPath", "").startswith(f"{runtime_directory(site.owner)}/")


def _differs(site: Site, shown: Shown, root: Path) -> str:
    """A remark if a unit is not the one that `setup` would write, which may be intended."""
    path = shown.get("FragmentPath", "")
    kit = {file.path: file.text for file in files(site.values)} if site.values else {}
    try:
        same = (root / path.lstrip("/")).read_text(encoding="utf-8") == kit[path]
    except (KeyError, OSError, UnicodeDecodeError):
        return ""
    if same:
        return ""
    return f"; differs from the one of setup: {site.host.command('setup', '--dry-run')}"


def _faults(site: Site, shown: Shown) -> Iterator[Fault]:
    of_user = site.systemd is not None and site.systemd.of_user
    flag = Path(site.host.config.drain.flag).parent
    yield from faults(
        shown,
        user=None if of_user or site.owner is None else site.user,
        group=site.group(),
        timeout=site.host.config.services.timeout,
        flag_directory=flag,
    )


def faults(
    shown: Shown, *, user: str | None, group: str, timeout: float, flag_directory: Path
) -> Iterator[Fault]:
    """What a unit's settings have against a deploy.

    `user` (None: it need not say one) and `group` are the production user's, `timeout` is that of
    one call of systemctl, in seconds.
    """
    has = shown.get("User") or "root"
    if user is not None and _uid(has) != _uid(user):
        yield Fault(f"runs as {has}, not as {user}", f"User={user}", hides=True)
    has = shown.get("Group", "")
    if has and _gid(has) != _gid(group):
        why = f"has Group={has}, so that only root sees what it has open"
        yield Fault(why, f"Group={group}", hides=True)
    for key, rest in (
        ("PrivateUsers", "no"),
        ("AmbientCapabilities", ""),
        ("PrivateNetwork", "no"),
        ("NetworkNamespacePath", ""),
    ):
        if shown.get(key, rest) != rest:
            sees = "on which ports it listens" if "Network" in key else "what it has open"
            why = f"has {key}={shown[key]}, so that only root sees {sees}"
            yield Fault(why, f"{key}={rest}", hides=True)
    if shown.get("MemoryDenyWriteExecute") == "yes":
        why = "has MemoryDenyWriteExecute=yes, with which no JVM runs"
        yield Fault(why, "MemoryDenyWriteExecute=no")
    if shown.get("KillMode") in ("process", "none"):
        why = f"has KillMode={shown['KillMode']}: child processes outlive a stop and keep its ports"
        yield Fault(why, "KillMode=mixed")
    if shown.get("Restart") in ("no", "on-success"):
        yield Fault(
            f"has Restart={shown['Restart']}: after a crash it stays down", "Restart=always"
        )
    stop = seconds_of(shown.get("TimeoutStopUSec", "0"))
    if stop > timeout:
        why = (
            f"may take {shown['TimeoutStopUSec']} to stop, longer than services.timeout "
            f"({timeout:g} s)"
        )
        yield Fault(why, f"TimeoutStopSec={timeout:g}")
    if shown.get("RuntimeDirectoryPreserve") != "yes":
        for name in shown.get("RuntimeDirectory", "").split():
            if flag_directory.is_relative_to(Path("/run") / name):
                why = f"has RuntimeDirectory={name}: {flag_directory}, the drain flag's directory, is removed when it stops"
                yield Fault(why, "RuntimeDirectory=")


def _uid(user: str) -> int | str:
    try:
        return int(user) if user.isdigit() else pwd.getpwnam(user).pw_uid
    except KeyError:
        return user


def _gid(group: str) -> int | str:
    try:
        return int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
    except KeyError:
        return group


def seconds_of(shown: str) -> float:
    """A duration as `systemctl show` writes it, `1min 30s` or `infinity`, in seconds."""
    if shown == "infinity":
        return float("inf")
    parts = re.findall(r"([\d.]+)([a-z]*)", shown)
    return sum(float(number) * TIMES.get(unit, 0) for number, unit in parts)


def _drop_in(site: Site, systemd: Systemd, unit: str, found: list[Fault]) -> str:
    """The commands that set what is better, and bring it into force."""
    home = _own_units(site) if systemd.of_user else Path("/etc/systemd/system")
    directory = shlex.quote(str(home / f"{unit}.d"))
    settings = shlex.quote(
        "".join(f"{line}\\n" for line in ["[Service]", *(each.instead for each in found)])
    )
    write = f"mkdir -p {directory} && printf {settings} >>{directory}/{DROP_IN}"
    by_hand = any(each.hides for each in found) or site.look.approved is None
    if not by_hand:
        write = write if systemd.of_user else by_root(write)
        return f"{write}\nthen run: {site.by_user(site.host.command('restart'))}"
    systemctl = shlex.join(systemd.words_typed)
    write += f" && {systemctl} daemon-reload && {systemctl} restart {unit}"
    return f"while the other instance serves:\n{write if systemd.of_user else by_root(write)}"


def _own_units(site: Site) -> Path:
    """Where the production user has units of their own."""
    return Path(os.path.expanduser(f"~{site.user}"), ".config/systemd/user")


def starts_at_boot(shown: Shown) -> bool:
    """Whether something that is there after a boot starts the unit."""
    state = shown.get("UnitFileState")
    wanted = shown.get("WantedBy") or shown.get("RequiredBy")
    return state == "enabled" or (state != "enabled-runtime" and bool(wanted))


def _not_in_force(
    site: Site, systemd: Systemd, observation: Observation, shown: Shown, root: Path
) -> Findings:
    """What has changed since systemd read it, or since the instance was started."""
    unit = unit_of(observation.job)
    known = [shown.get("FragmentPath", ""), *shown.get("DropInPaths", "").split()]
    # NeedDaemonReload is `no` for the first drop-in of a unit.
    directories = [root / directory for directory in DROP_INS]
    if systemd.of_user:
        directories = [each.with_name("user") for each in directories]
        directories.append(root / _own_units(site).relative_to("/"))
    there = [path for each in directories for path in (each / f"{unit}.d").glob("*.conf")]
    unread = sorted(
        {f"/{path.relative_to(root)}" for path in there} - {*known, *map(_merged, known)}
    )
    since = observation.since
    restart = site.by_user(site.host.command("restart"))
    changed = [
        path
        for path in [*known, *environment_files(shown)]
        if path and since is not None and changed_since(root / path.lstrip("/"), since)
    ]
    for path in changed:
        yield Finding(f"{path} was changed after {observation.job} was started", True, restart)
    if unread or (shown.get("NeedDaemonReload") == "yes" and not changed):
        named = ", ".join(unread) or f"the changed files of {unit}"
        remedy = restart if since is not None else systemd.typed("daemon-reload")
        yield Finding(f"systemd has not read {named} yet", True, remedy)


def _merged(path: str) -> str:
    """/lib is /usr/lib where both are merged, and systemd may name either."""
    return f"/usr{path}" if path.startswith("/lib/") else path


def environment_files(shown: Shown) -> list[str]:
    """The unit's EnvironmentFiles."""
    lines = shown.get("EnvironmentFiles", "").splitlines()
    return [re.sub(r" \(ignore_errors=\w+\)$", "", line) for line in lines]


def _settings(shown: Shown, root: Path) -> Findings:
    """Lines that a shell understands and systemd does not, as in a file written for Upstart."""
    for name in environment_files(shown):
        try:
            lines = (root / name.lstrip("/")).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            continue  # root reads it at each start
        for number, line in enumerate(lines, 1):
            why = why_for_a_shell(line)
            if why:
                yield Finding(
                    f"{name}, line {number}: {why}",
                    True,
                    "write NAME=VALUE, with the literal value",
                )


def of_the_user(site: Site, root: Path, *, lasts: bool = True) -> Findings:
    """Whether the production user reads what systemd logs, and has a manager while nobody is logged in.

    `lasts`: whether the units are to outlive the user's sessions.
    """
    if site.owner in (None, 0) or site.systemd is None:
        return
    user, of_user = site.user, site.systemd.of_user
    if of_user and not is_lingering(site.owner, root):
        what = f"the systemd of {user} ends with its last session, and so do both instances"
        yield Finding(what, lasts, enable_lingering(site.owner) if lasts else "")
    # On disk the journal has a file for each person, with what their own systemd runs.
    has_a_file = of_user and site.owner >= FIRST_PERSON and (root / "var/log/journal").is_dir()
    if lasts and not has_a_file and not reads_the_journal(user):
        what = f"{user} cannot read the journal: the end of an instance's log would not be shown"
        yield Finding(what, True, by_root(f"usermod --append --groups systemd-journal {user}"))
