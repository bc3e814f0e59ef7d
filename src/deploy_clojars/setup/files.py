"""The host's files: what the templates say once the configuration's values are in them."""

from __future__ import annotations

import os
import re
import shlex
import string
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from deploy_clojars.config import BACKUP, HOST, PRIMARY, Config, Instance, Services
from deploy_clojars.errors import UsageError

Nailgun = Literal["nginx", "balance", "none"]

# What no shell, no sudoers file, no job file and no nginx.conf takes for more than a character.
PLAIN = re.compile(r"[A-Za-z0-9._/+-]+")
USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
LOOPBACK = re.compile(r"127(\.\d+){3}|localhost|::1")

PAGES = "/var/www"
PROGRAMS = "/usr/local/lib"

# To be said wherever balance is recommended.
HALF_CLOSED = "balance drops a client that closes its sending side before it has its answer"

# The flag's directory is given to the production user: it must be nobody else's.
SHARED = re.compile(
    r"/[^/]*|/dev/shm|/run/(lock|user)|/(etc|var)/[^/]+|/var/lib/nginx|/usr/.*|/var/run/(lock|user)"
)


class _Template(string.Template):
    # nginx and sh have the dollar for themselves.
    delimiter = "@"


NEVER_GIVEN_UP = "max_fails=0"  # of a server that nginx never considers unavailable


@dataclass(frozen=True)
class File:
    """One file of the host. `etc` is its place in the project's own etc/."""

    path: str
    etc: str
    text: str
    mode: int = 0o644
    for_user: bool = False  # the production user's group may read it
    once: bool = False  # a person's after it was made
    link: str | None = None  # what leads to it


@dataclass(frozen=True)
class Values:
    """All that a template can ask for."""

    server_name: str
    user: str
    group: str
    home: str
    name: str
    bin: str
    site: str
    pool: str
    primary: str
    backup: str
    primary_web: str
    primary_nailgun: str  # empty, as the backup's, where the application has none
    backup_web: str
    backup_nailgun: str
    primary_fails: str  # when nginx considers the primary unavailable
    flag: str
    probe_listen: str
    probe_path: str
    command: str
    pages: str
    java: str = "java"  # what starts the instances; if it has a path, it is one of these files
    listen: str = "80"
    nailgun_host: str = "127.0.0.1"
    nailgun_port: str = "7600"
    # Where nginx reads them; as in Debian unless it says otherwise.
    site_file: str = ""
    site_link: str | None = None
    nailgun_file: str = ""
    front: str = "nginx"  # what `service` calls it
    manager: Literal["systemd", "upstart", "supervisor"] = "upstart"
    has_place_for_stream: bool = True  # whether nginx reads any file outside its http block

    @property
    def tool_file(self) -> str:
        """The name of this site's sudoers file and message of the day. sudo skips files with a dot."""
        return f"deploy-{re.sub(r'[^A-Za-z0-9_-]', '_', self.site)}"

    def front_command(self, verb: str) -> str:
        """What to type so that nginx starts or reloads."""
        return front_command(self.manager, self.front, verb)

    @property
    def without_stream(self) -> str:
        """What to give `setup` where nginx cannot serve the nailgun port, and what that means."""
        if self.manager == "systemd":
            return "--nailgun none  # another balancer must serve the nailgun port then"
        return f"--nailgun balance  # {HALF_CLOSED}"

    @property
    def has_nailgun(self) -> bool:
        """Whether the application has a nailgun port."""
        return bool(self.primary_nailgun)

    @property
    def flag_directory(self) -> str:
        """Where the drain's flag is made."""
        return str(Path(self.flag).parent)


def front_command(manager: str, front: str, verb: str) -> str:
    """What to type so that a service of the system starts or reloads."""
    return f"systemctl {verb} {front}" if manager == "systemd" else f"service {front} {verb}"


def user_of(config: Config) -> str:
    """The production user: by custom the home is named after it."""
    return Path(config.home).name


def values_of(
    config: Config, words: tuple[str, ...] = ("deploy-clojars",), user: str | None = None
) -> Values:
    """What the configuration says, as the files need it; `words` begin every command.

    Raises UsageError (2) for a value that cannot stand in such a file.
    """
    user = user_of(config) if user is None else user
    if not config.home.strip("/"):
        raise UsageError(f"home: {config.home} cannot be the production user's")
    primary, backup = config.instances.primary, config.instances.backup
    probe = urlsplit(config.drain.probe)
    if not LOOPBACK.fullmatch(probe.hostname or ""):
        raise UsageError(
            f"drain.probe: must be on the loopback interface, got {config.drain.probe}"
        )
    plain = {
        "home": config.home,
        "services.bin": config.services.programs,
        "drain.flag": config.drain.flag,
        "drain.probe": probe.path,
    }
    for key, value in plain.items():
        if not PLAIN.fullmatch(value) or ".." in value.split("/"):
            raise UsageError(
                f"{key}: {value!r} cannot stand in the host's files: letters, digits and ._/+- can"
            )
    directory = str(Path(config.drain.flag).parent)
    if SHARED.fullmatch("/" + os.path.normpath(directory).lstrip("/")):
        raise UsageError(
            f"drain.flag: {directory} is the system's, and the flag's is given to the production user",
            remedy=f'for example: flag = "/run/{user}/{Path(config.drain.flag).name}"',
        )
    if not USER.fullmatch(user):
        raise UsageError(f"{user!r} cannot be the name of a user", remedy="--user NAME names it")
    server_name = urlsplit(primary.url).hostname or "localhost"
    if not re.fullmatch(HOST, server_name):
        raise UsageError(
            f"instances.primary.url: has no host that nginx can be told: {primary.url}"
        )
    # While the backup is down, one error of the primary would be an error for all users for a while.
    fails = NEVER_GIVEN_UP if backup.only_while_deploying else "max_fails=1 fail_timeout=2s"
    site = primary.job.replace(":", "-")  # it names files; supervisord has GROUP:PROGRAM
    # An application on a host with Upstart always has that port.
    urls = (*primary.health_urls, *backup.health_urls)
    has_nailgun = config.services.chosen != "systemd" or any(u.startswith("tcp:") for u in urls)
    return Values(
        server_name=server_name,
        user=user,
        group=user,  # what useradd gives it; one that is there may have another
        home=config.home.rstrip("/"),
        name=config.name,
        bin=config.services.programs.rstrip("/"),
        site=site,
        pool=_variable(primary.job),
        primary=primary.job,
        backup=backup.job,
        primary_web=_address(primary, PRIMARY, "http"),
        primary_nailgun=_address(primary, PRIMARY, "tcp") if has_nailgun else "",
        backup_web=_address(backup, BACKUP, "http"),
        backup_nailgun=_address(backup, BACKUP, "tcp") if has_nailgun else "",
        primary_fails=fails,
        flag=config.drain.flag,
        probe_listen=f"{_bracketed(probe.hostname or '')}:{probe.port or 80}",
        probe_path=probe.path,
        command=shlex.join(words),
        manager=config.services.chosen,
        pages=f"{PAGES}/{site}",
        java=f"{PROGRAMS}/{site}/java" if config.jvm.class_data else "java",
        site_file=f"/etc/nginx/sites-available/{site}",
        site_link=f"/etc/nginx/sites-enabled/{site}",
        nailgun_file=f"/etc/nginx/modules-enabled/90-{site}-nailgun.conf",
    )


def _variable(job: str) -> str:
    """What can begin the name of a variable of nginx: letters first, for `$1` is a match's."""
    name = re.sub(r"[^A-Za-z0-9]", "_", job)
    return name if name[0].isalpha() else f"job_{name}"


def refuse_collisions(values: Values) -> None:
    """Raises UsageError (2) if two of the host's own would have one name or one port."""
    if values.backup in (f"{values.site}-run", f"{values.site}-balance"):
        raise UsageError(f"instances.backup.job: {values.backup} is the name of a job of setup's")
    taken: dict[str, str] = {}
    for what, address in (
        ("the site", values.listen),
        ("the nailgun port", values.nailgun_port),
        ("drain.probe", values.probe_listen),
        ("instances.primary.health", values.primary_web),
        ("instances.primary.health", values.primary_nailgun),
        ("instances.backup.health", values.backup_web),
        ("instances.backup.health", values.backup_nailgun),
    ):
        port = _port(address)
        if port and port in taken:
            raise UsageError(f"{what}: port {port} is taken by {taken[port]}")
        taken[port] = what


def _address(instance: Instance, role: str, scheme: str) -> str:
    for url in instance.health_urls:
        parts = urlsplit(url)
        if parts.scheme == scheme:
            return f"{_bracketed(parts.hostname or '')}:{parts.port or 80}"
    raise UsageError(
        f"instances.{role}.health: has no {scheme}:// URL, and the host's files need its port"
    )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def files(values: Values, *, sudo: bool = True) -> list[File]:
    """All files of the host, the nailgun port's in both ways."""
    site = values.site
    found = [
        File(values.site_file, f"nginx/{site}", render("site", values), link=values.site_link),
        File(values.nailgun_file, f"nginx/{site}-nailgun.conf", render("nailgun.conf", values)),
        File(f"{values.pages}/503.html", "nginx/503.html", render("503.html", values)),
        File(f"/etc/update-motd.d/60-{values.tool_file}", f"update-motd.d/60-{values.tool_file}",
             render("motd", values), mode=0o755),
    ]  # fmt: skip
    if values.manager == "supervisor":
        return found
    if values.java != "java":  # before the jobs, which need it
        found.append(File(values.java, f"lib/{site}/java", render("java", values), mode=0o755))
    found += _systemd_files(values) if values.manager == "systemd" else _upstart_files(values)
    found.append(
        File(f"/etc/default/{site}", f"default/{site}", render("default", values), mode=0o640,
             for_user=True, once=True)
    )  # fmt: skip
    if sudo:
        found.append(_sudoers(values))
    return found


def _sudoers(values: Values) -> File:
    of_systemd = values.manager == "systemd"
    return File(
        f"/etc/sudoers.d/{values.tool_file}",
        f"{'systemd/' if of_systemd else ''}sudoers.d/{values.tool_file}",
        render("sudoers.systemd" if of_systemd else "sudoers", values),
        mode=0o440,
    )


def _systemd_files(values: Values) -> list[File]:
    def unit(job: str, role: str, web: str, nailgun: str) -> File:
        ports = f"PORT={_port(web)}" + (f" NAILGUN_PORT={_port(nailgun)}" if nailgun else "")
        text = render("instance.service", values, role=role, ports=ports)
        return File(f"/etc/systemd/system/{job}.service", f"systemd/{job}.service", text)

    site = values.site
    return [
        unit(values.primary, PRIMARY, values.primary_web, values.primary_nailgun),
        unit(values.backup, BACKUP, values.backup_web, values.backup_nailgun),
        File(f"/etc/tmpfiles.d/{site}.conf", f"systemd/tmpfiles.d/{site}.conf",
             render("tmpfiles.conf", values)),
    ]  # fmt: skip


def _upstart_files(values: Values) -> list[File]:
    def job(name: str, text: str) -> File:
        return File(f"/etc/init/{name}.conf", f"upstart/{name}.conf", text)

    def instance(role: str, web: str, nailgun: str) -> str:
        ports = {"web": _port(web), "nailgun": _port(nailgun)}
        return render("instance.conf", values, role=role, **ports)

    site = values.site
    return [
        job(values.primary, instance(PRIMARY, values.primary_web, values.primary_nailgun)),
        job(values.backup, instance(BACKUP, values.backup_web, values.backup_nailgun)),
        job(f"{site}-run", render("run.conf", values)),
        job(f"{site}-balance", render("balance.conf", values)),
    ]


def _port(address: str) -> str:
    return address.rpartition(":")[2]


def render(template: str, values: Values, **more: str) -> str:
    """One template with the values in it."""
    text = resources.files(__package__).joinpath("templates", template).read_text(encoding="utf-8")
    known = {**vars(values), "flag_directory": values.flag_directory, **more}
    return _Template(text).substitute(known)


def is_for_other_nailgun(file: File, values: Values, nailgun: Nailgun) -> bool:
    """Whether the file serves the nailgun port in the way that is not wanted."""
    ways = {"balance": f"{values.site}-balance.conf", "nginx": f"{values.site}-nailgun.conf"}
    return any(file.etc.endswith(name) for way, name in ways.items() if way != nailgun)


def kit() -> list[File]:
    """What the default configuration renders to for each manager: the project's etc/."""
    managers = (Services(manager="upstart"), Services(manager="systemd", bin="/usr/bin"))
    return [file for each in managers for file in files(values_of(Config(services=each)))]


def main() -> None:
    """Writes the kit into a directory."""
    for file in kit():
        path = Path(sys.argv[1]) / file.etc
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.text, encoding="utf-8")
        path.chmod(0o755 if file.mode & 0o111 else 0o644)


if __name__ == "__main__":
    main()
