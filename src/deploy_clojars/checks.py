"""`deploy-clojars check`: is this host ready? All findings at once, each with its remedy."""

from __future__ import annotations

import os
import pwd
import re
import shlex
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from deploy_clojars import build, lock, preflight
from deploy_clojars.errors import DeployError
from deploy_clojars.host import Host, Look, user_name
from deploy_clojars.kit import validation
from deploy_clojars.nginx import BACKUP_FIRST, PRIMARY_FIRST
from deploy_clojars.shell import TookTooLong, capture, printable

# Why not older: `fetch --no-write-fetch-head`; a POST is sent twice; `setuid` and `console log`.
GIT_SINCE = (2, 29)
NGINX_SINCE = (1, 9, 13)
UPSTART_SINCE = (1, 4)

SECONDS = 20.0  # for a program, the git remote among them


@dataclass(frozen=True)
class Finding:
    """What was looked at and, if it is not as it should be, what is wrong and what to do."""

    what: str
    wrong: bool = False
    remedy: str = ""


Findings = Iterator[Finding]


def findings(host: Host) -> list[Finding]:
    """Everything that was looked at, in the order in which a host is built."""
    look = host.look()
    parts: tuple[Callable[[], Findings], ...] = (
        _programs,
        lambda: _builds(host),
        lambda: _upstart(host),
        lambda: _directories(host),
        lambda: _disk(host),
        lambda: _jobs(host, look),
        lambda: _releases(host, look),
        lambda: _drain(host, look),
        lambda: _other_tools(host),
        lambda: _as_the_production_user(host),
    )
    # Some of them wait for somebody else.
    with ThreadPoolExecutor(max_workers=len(parts)) as pool:
        return [finding for found in pool.map(_all_of, parts) for finding in found]


def _all_of(part: Callable[[], Findings]) -> list[Finding]:
    try:
        return list(part())
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return [Finding(f"{where}{error.strerror}", wrong=True)]


def as_text(found: list[Finding], *, quiet: bool = False) -> str:
    """One line for each, the remedy below it."""
    lines = []
    for finding in found:
        if quiet and not finding.wrong:
            continue
        lines.append(f"{'!!' if finding.wrong else 'ok'}  {printable(finding.what)}")
        lines += [f"      {printable(line)}" for line in finding.remedy.splitlines()]
    wrong = sum(finding.wrong for finding in found)
    lines.append("ready" if not wrong else f"{wrong} finding{'s' if wrong > 1 else ''}")
    return "\n".join(lines)


# --- programs ---------------------------------------------------------------------------------


def version_in(text: str) -> tuple[int, ...] | None:
    """The first version number in what a program says of itself."""
    match = re.search(r"\d+(?:\.\d+)+", text)
    return tuple(map(int, match[0].split("."))) if match else None


def judged(name: str, said: str, since: tuple[int, ...]) -> Finding:
    """Whether a program is new enough."""
    version = version_in(said)
    needed = ".".join(map(str, since))
    if version is None:
        return Finding(f"{name}: its version is not known", True, f"{needed} or newer is needed")
    shown = ".".join(map(str, version))
    if version < since:
        return Finding(f"{name} {shown} is too old", True, f"{needed} or newer is needed")
    return Finding(f"{name} {shown}")


def _programs() -> Findings:
    yield Finding(f"Python {sys.version.split()[0]}")  # an older one cannot run this
    if shutil.which("git") is None:
        yield Finding("git is not on PATH", True, "apt-get install git")
    else:
        yield judged("git", _said("git", "--version"), GIT_SINCE)
    nginx = validation.nginx()
    if nginx is None:
        yield Finding("nginx is not installed", True, "apt-get install nginx")
        return
    yield judged("nginx", ".".join(map(str, nginx.version)), NGINX_SINCE)
    if nginx.has_stream or validation.program("balance"):
        return
    yield Finding(
        "nothing can serve the nailgun port: this nginx is older than 1.21.4 or has no stream",
        True,
        "apt-get install libnginx-mod-stream, or install balance; then: deploy-clojars setup",
    )


def _builds(host: Host) -> Findings:
    missing = build.missing_programs(host.config.build)
    if missing:
        yield Finding(f"not on PATH: {', '.join(missing)}", True, "the tests and the build need it")


def _upstart(host: Host) -> Findings:
    services = host.config.services
    if services.manager == "upstart" and os.access(f"{services.bin}/status", os.X_OK):
        yield judged("Upstart", _said(f"{services.bin}/status", "--version"), UPSTART_SINCE)


def _said(*words: str) -> str:
    try:
        answer = capture(words, timeout=SECONDS)
    except (OSError, TookTooLong):
        return ""
    return answer.out + answer.err


# --- files ------------------------------------------------------------------------------------


def _directories(host: Host) -> Findings:
    try:
        owner = host.releases.directory.stat().st_uid
    except OSError as error:
        yield Finding(f"{host.releases.directory}: {error.strerror}", True, _set_up(host))
        return
    for directory in (host.home, host.releases.directory, host.deploy):
        if not directory.exists():
            continue  # deploy/ is made by the first run
        found = directory.stat()
        if found.st_uid != owner:
            remedy = f"chown {user_name(owner)} {shlex.quote(str(directory))}"
            whose = user_name(found.st_uid)
            yield Finding(
                f"{directory} belongs to {whose}, not to {user_name(owner)}", True, remedy
            )
        elif found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            remedy = f"chmod go-w {shlex.quote(str(directory))}"
            yield Finding(f"{directory} can be written by others", True, remedy)
        elif not found.st_mode & stat.S_IXOTH:
            remedy = f"chmod go+x {shlex.quote(str(directory))}"
            yield Finding(f"{directory} cannot be entered by nginx", True, remedy)
        else:
            yield Finding(f"{directory}, of {user_name(owner)}")
    if host.file is not None and host.file.exists():
        writer = host.file.stat().st_uid
        if writer == owner and owner != 0 and os.geteuid() != owner:
            remedy = f"chown root {shlex.quote(str(host.file))}"
            yield Finding(f"{host.file} belongs to the production user", True, remedy)


def _disk(host: Host) -> Findings:
    if not host.releases.directory.exists():
        return
    try:
        preflight.refuse_a_full_disk(host)
        yield Finding("disk: room for a deploy")
    except DeployError as error:
        yield Finding(error.message, True, "remove what is old, or make the disk larger")


def _set_up(host: Host) -> str:
    return f"as root: {host.command('setup')}"


# --- what runs --------------------------------------------------------------------------------


def _jobs(host: Host, look: Look) -> Findings:
    for observation in (look.primary, look.backup):
        job = observation.job
        if observation.state == "unknown":
            yield Finding(f"job {job}: {observation.said}", True, _set_up(host))
        elif look.approved is None:
            yield Finding(f"job {job}: {observation.said}")
        elif observation.serving and not observation.visible:
            yield Finding(f"{job} serves; what it runs is not visible to {user_name()}")
        else:
            why = observation.why_not_healthy_on(look.approved)
            remedy = host.command_back(look) if why else ""
            yield Finding(why or f"{job} is healthy on {look.approved}", why is not None, remedy)


def _releases(host: Host, look: Look) -> Findings:
    if look.current.broken:
        remedy = host.releases.mended_by(look.current, host.way_back(look))
        yield Finding(look.current.broken, True, remedy)
    if look.journal_error:
        yield Finding(look.journal_error, True)
    holder = lock.holder_of(host.lock_file)
    if holder is not None:
        yield Finding(lock.locked_by(holder).message)
        return
    situation = host.situation(look, locked=False)
    command = host.next_command(look, situation) or ""
    if situation.interrupted and look.history.last is not None:
        last = look.history.last
        yield Finding(f"the {last.command} of {last.version} was cut off", True, command)
    if situation.drifted:
        yield Finding(
            "current or what an instance runs is not what the last run left", True, command
        )


def _drain(host: Host, look: Look) -> Findings:
    flag, there = host.nginx.flag, host.nginx.flag_is_set
    yield from _flag_directory(host, flag.parent)
    if there and lock.holder_of(host.lock_file) is None:
        serves = look.approved is not None and look.primary.is_healthy_on(look.approved)
        remedy = f"rm {shlex.quote(str(flag))}" if serves else host.command_back(look)
        yield Finding(f"a drain flag was left behind: {flag}", True, remedy)
    answer = host.nginx.answer()
    if answer not in (PRIMARY_FIRST, BACKUP_FIRST):
        yield Finding(
            f"nginx does not say at {host.config.drain.probe} which instance is first ({answer})",
            True,
            f"{_set_up(host)}, then: service nginx reload",
        )
    elif (answer == BACKUP_FIRST) is not there:
        yield Finding(
            f"nginx does not follow the drain flag {flag}: it says {answer}",
            True,
            "its user must be able to enter the flag's directory; and: service nginx reload",
        )
    else:
        yield Finding(f"nginx says that the {answer} is first")


def _flag_directory(host: Host, directory: Path) -> Findings:
    if not directory.is_dir():
        yield Finding(f"{directory}, of the drain flag, is not there", True, _set_up(host))
        return
    closed = [each for each in (directory, *directory.parents) if not each.stat().st_mode & 0o001]
    owner = directory.stat().st_uid
    wanted = host.releases.directory.stat().st_uid if host.releases.directory.exists() else owner
    if closed:
        yield Finding(f"nginx cannot enter {closed[-1]}", True, f"chmod go+x {closed[-1]}")
    elif owner != wanted:
        remedy = f"chown {user_name(wanted)} {shlex.quote(str(directory))}"
        yield Finding(f"{directory} belongs to {user_name(owner)}", True, remedy)
    elif directory.is_relative_to(tempfile.gettempdir()):
        yield Finding(f"{directory} is among temporary files, which nginx may see others of", True,
                      "set drain.flag to a path below /run")  # fmt: skip
    else:
        yield Finding(f"{directory} for the drain flag")


# --- what concerns the production user --------------------------------------------------------


def _other_tools(host: Host) -> Findings:
    """Debian's ~/.profile puts ~/bin first: an old script there would be what `sudo -iu` runs."""
    own = os.path.realpath(sys.argv[0])
    for directory in ("bin", ".local/bin"):
        other = host.home / directory / "deploy-clojars"
        if os.path.lexists(other) and os.path.realpath(other) != own:
            moved = shlex.join(["mv", str(other), f"{other}.old"])
            yield Finding(
                f"a login shell would find another deploy-clojars first: {other}", True, moved
            )


def _as_the_production_user(host: Host) -> Findings:
    directory = host.releases.directory
    if not directory.exists():
        return
    owner = directory.stat().st_uid
    if owner != os.geteuid():
        again = shlex.join(["sudo", "-iu", user_name(owner), *host.words, "check"])
        yield Finding(
            f"not looked at as {user_name()}: sudo rights, the login shell, the git remote", False,
            again,
        )  # fmt: skip
        return
    refused = host.services.refusals(host.jobs)
    if refused:
        yield Finding(f"sudo does not allow {', '.join(refused)}", True, _set_up(host))
    elif host.config.services.manager == "upstart" and host.config.services.sudo:
        yield Finding("sudo allows what is needed")
    yield from _login_shell()
    yield from _remote(host)


def _login_shell() -> Findings:
    shell = pwd.getpwuid(os.geteuid()).pw_shell or "/bin/sh"
    lines = _said(shell, "-lc", "command -v deploy-clojars").split()
    found = lines[-1] if lines else ""
    # How it was found now: a wrapper in the way of a login shell is the same program.
    own = shutil.which("deploy-clojars")
    if found.startswith("/") and own and os.path.realpath(found) != os.path.realpath(own):
        moved = shlex.join(["mv", found, f"{found}.old"])
        yield Finding(f"a login shell finds another deploy-clojars first: {found}", True, moved)


def _remote(host: Host) -> Findings:
    url = host.config.repository
    words = ["env", "GIT_TERMINAL_PROMPT=0", "GIT_SSH_COMMAND=ssh -o BatchMode=yes"]
    try:
        answer = capture([*words, "git", "ls-remote", "--tags", "--", url], timeout=SECONDS)
    except (OSError, TookTooLong) as error:
        yield Finding(f"{url}: {error}", True, "is the network up?")
        return
    if answer.status != 0:
        said = answer.err.strip().splitlines()
        yield Finding(f"{url} cannot be read: {said[0] if said else 'no reason given'}", True,
                      "set `repository`, or give this user a key for it")  # fmt: skip
    else:
        yield Finding(f"{url}, {len(answer.out.splitlines())} tags")
