"""What is where in a sandbox, and its own file, which keeps what was chosen once."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from deploy_clojars.errors import DeployError, UsageError

FILE = "sandbox.json"
CONFIG = "deploy-clojars.toml"
SOCKET = "supervisor.sock"
FLAG = "run/drain-primary"
JOBS = {"primary": "clojars", "backup": "clojars-backup"}

Port = Annotated[int, Meta(ge=1, le=65535)]


class Pair(Struct, frozen=True):
    """One instance's ports on 127.0.0.1."""

    web: Port
    nailgun: Port


class Ports(Struct, frozen=True):
    """Both instances' ports, and nginx's where it is in front: the users', and the tool's own."""

    primary: Pair
    backup: Pair
    site: Port
    probe: Port

    @property
    def all(self) -> tuple[int, ...]:
        """All six."""
        pairs = (self.primary, self.backup)
        instances = (port for pair in pairs for port in (pair.web, pair.nailgun))
        return (*instances, self.site, self.probe)


class Record(Struct, frozen=True):
    """The sandbox's own file; keys of later versions are skipped."""

    v: Literal[1]
    directory: str  # absolute, and what everything in the sandbox was made for
    made: bool  # False while it is being made
    ports: Ports
    systemd: bool = False


class Sandbox:
    """A little clojars.org: what is where. `news` are lines about what was done just now.

    `systemd`: the user's own systemd runs it, and not a supervisord.
    """

    def __init__(
        self, directory: Path, ports: Ports, news: tuple[str, ...] = (), *, systemd: bool = False
    ) -> None:
        self.directory = directory
        self.ports = ports
        self.news = news
        self.systemd = systemd
        prefix = unit_prefix(directory) if systemd else ""
        self.jobs = {role: f"{prefix}{job}" for role, job in JOBS.items()}
        self.file = directory / FILE
        self.config = directory / CONFIG  # for `deploy-clojars -c`
        self.repository = directory / "clojars-web"
        self.home = directory / "home"  # what /home/clojars is on the real host
        self.releases = self.home / "releases"
        self.link = self.releases / "clojars-web-current.jar"
        self.flag = directory / FLAG
        self.logs = directory / "logs"  # what the instances and supervisord print
        self.supervisord = directory / "supervisord.conf"
        self.socket = directory / SOCKET  # where supervisord listens

    def save(self, *, made: bool) -> None:
        """Writes the sandbox's own file."""
        record = Record(1, str(self.directory), made, self.ports, self.systemd)
        text = msgspec.json.format(msgspec.json.encode(record), indent=2).decode()
        write(self.file, text + "\n")


def unit_prefix(directory: Path) -> str:
    """How the names of a sandbox's units begin, and those of no other sandbox and no host."""
    digest = hashlib.sha256(str(directory).encode()).hexdigest()
    return f"deploy-clojars-sandbox-{digest[:8]}-"


def resolved(directory: Path) -> Path:
    """The directory without links on the way. Raises UsageError (2) for one that can't be used."""
    directory = Path(os.path.realpath(directory))
    if os.path.lexists(directory) and not os.path.isdir(directory):
        raise UsageError(f"{directory} is not a directory")
    try:
        str(directory).encode()
    except UnicodeEncodeError:
        raise UsageError(f"{str(directory)!r}: the path of a sandbox must be UTF-8") from None
    # No configuration may have control characters; GitPython takes `$NAME` for a variable, and
    # supervisord expands the names of logs twice.
    if re.search(r"[\x00-\x1f\x7f$%]", str(directory)):
        raise UsageError(f"{str(directory)!r}: a control character, $ or % in a sandbox's path")
    return directory


def refuse_another_users(directory: Path) -> None:
    """What root made in it, its owner could neither change nor end. Raises UsageError (2)."""
    from deploy_clojars.host.users import user_name

    owner = os.stat(directory).st_uid
    if owner != os.geteuid():
        raise UsageError(f"{directory} belongs to {user_name(owner)}, and this is {user_name()}")


def recorded(directory: Path) -> Record | None:
    """What the sandbox's own file in the directory says; None for a directory that is empty.

    Raises UsageError (2) for a directory that is not a sandbox, DeployError (1) for a broken one.
    """
    file = directory / FILE
    try:
        return msgspec.json.decode(file.read_bytes(), type=Record)
    except FileNotFoundError:
        _refuse_what_is_no_sandbox(directory)
        return None
    except OSError as error:
        raise DeployError(f"{file} cannot be read: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise broken(directory, f"{file} is not what `sandbox` wrote: {error}") from None


def is_under_systemd(directory: Path) -> bool:
    """Whether the sandbox in the directory was made with `--systemd`."""
    with suppress(DeployError, OSError):  # which are raised again where they matter
        record = recorded(directory)
        return record is not None and record.systemd
    return False


def _refuse_what_is_no_sandbox(directory: Path) -> None:
    if not directory.exists() or not any(directory.iterdir()):
        return
    if (directory / CONFIG).exists():
        raise UsageError(
            f"{directory} looks like a sandbox, but {FILE} is missing",
            remedy="put it back, or make a new one in another directory; to end what still runs: "
            + command(directory, "--stop"),
        )
    raise UsageError(
        f"{directory} is not empty and is not a sandbox",
        remedy="name an empty directory, or one that is not there yet",
    )


def looks_like_one(directory: Path) -> bool:
    """Whether a sandbox was made there, however broken it is now."""
    return (directory / FILE).exists() or (directory / CONFIG).exists()


def no_sandbox(directory: Path) -> UsageError:
    """The error for a directory in which nothing was ever made."""
    return UsageError(f"{directory} is not a sandbox", remedy=f"to make one: {command(directory)}")


def refuse_moved(directory: Path, record: Record) -> None:
    """Paths in the sandbox lead to where it was made. Raises DeployError (1)."""
    there = Path(record.directory)
    if is_there(directory, there):
        return
    if (there / FILE).exists():
        raise DeployError(
            f"{directory} is a copy of the sandbox {there}, and what is in it leads there",
            remedy=f"use {there}, or make a new one in another directory",
        )
    raise DeployError(
        f"{directory} was made as {there}, and what is in it leads there",
        remedy=f"move it back: {shlex.join(['mv', '-T', str(directory), str(there)])}\n"
        f"or remove it: {thrown_away(directory)}",
    )


def is_there(directory: Path, there: Path) -> bool:
    """Whether both are one directory, under whatever names."""
    return directory == there or (there.exists() and directory.samefile(there))


def broken(directory: Path, what: str) -> DeployError:
    """The error for a sandbox that was broken by hand."""
    again = f"{thrown_away(directory)} && {command(directory)}"
    return DeployError(what, remedy=f"put it back, or start over: {again}")


def thrown_away(directory: Path) -> str:
    """The command that ends a sandbox and removes it, quoted for a shell."""
    return f"{command(directory, '--stop')} && {shlex.join(['rm', '-r', str(directory)])}"


def command(directory: Path, *words: str) -> str:
    """What to type for a sandbox, quoted for a shell."""
    return shlex.join(["deploy-clojars", "sandbox", str(directory), *words])


def write(file: Path, text: str) -> None:
    """Writes a file that all may read and only its owner may change, whole or not at all."""
    temporary = file.with_name(f".{file.name}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.chmod(0o644)  # whatever the umask: a configuration that others can write is refused
    os.replace(temporary, file)
