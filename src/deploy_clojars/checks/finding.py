"""What a check says, and of which host: a finding, and whose commands fix it."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from deploy_clojars.errors import UsageError
from deploy_clojars.host.host import Host
from deploy_clojars.host.look import Look
from deploy_clojars.host.nginx import own_processes
from deploy_clojars.host.services.systemd import Systemd
from deploy_clojars.host.users import user_name
from deploy_clojars.run import lock
from deploy_clojars.setup import validation
from deploy_clojars.setup.files import Values, front_command, values_of
from deploy_clojars.setup.nginx_conf import Configuration
from deploy_clojars.setup.validation import InstalledNginx


@dataclass(frozen=True)
class Finding:
    """What was looked at and, if it is not as it should be, what is wrong and what to do."""

    what: str
    wrong: bool = False
    remedy: str = ""


Findings = Iterator[Finding]


class Site:
    """The host as it was seen at the beginning, and who works on it."""

    def __init__(self, host: Host, look: Look) -> None:
        self.host = host
        self.look = look
        self.holder = lock.holder_of(host.lock_file)
        self.owner = host.owner
        # Before a check starts another nginx (`nginx -T`).
        self.nginx_runs = bool(own_processes().uids)

    @property
    def deploys_tags(self) -> bool:
        """Whether git and a build are needed, as far as the configuration and the last release tell."""
        last = next(reversed(self.look.history.installed.values()), None)
        came_as_a_jar = last is not None and last.source == "jar"
        return self.host.config.release.command is None and not came_as_a_jar

    @property
    def user(self) -> str:
        """The production user's name; this user's where nothing says who that is."""
        return user_name(self.owner)

    @property
    def is_upstarts(self) -> bool:
        """Whether Upstart runs the instances."""
        return self.host.config.services.chosen == "upstart"

    @property
    def systemd(self) -> Systemd | None:
        """The systemd that runs the instances, or None."""
        return self.host.services if isinstance(self.host.services, Systemd) else None

    @property
    def setup_makes_it(self) -> bool:
        """Whether it is a host as `setup` makes it."""
        of_system = self.systemd is not None and not self.systemd.of_user
        return self.is_upstarts or of_system

    def is_in(self, root: Path) -> bool:
        """Whether it is such a host with this directory as /, and not a directory for trying things."""
        directory = "etc/init" if self.is_upstarts else "run/systemd/system"
        return self.setup_makes_it and (root / directory).is_dir()

    def front_command(self, verb: str) -> str:
        """What to type so that nginx starts or reloads."""
        front = self.nginx.service if self.nginx is not None else "nginx"
        return front_command(self.host.config.services.chosen, front, verb)

    @cached_property
    def nginx(self) -> InstalledNginx | None:
        """The nginx of this machine."""
        return validation.nginx()

    @cached_property
    def _located(self) -> tuple[Values | None, Configuration | None]:
        try:
            values = values_of(self.host.config, self.host.words, self.user)
        except UsageError:
            return None, None
        is_asked = os.geteuid() == 0 and self.is_in(Path("/"))
        return validation.located(values, self.nginx) if is_asked else (values, None)

    @property
    def values(self) -> Values | None:
        """The values of the files that `setup` installs; None for a host that cannot have them."""
        return self._located[0]

    @property
    def nginx_conf(self) -> Configuration | None:
        """All that nginx reads; only for root, on a host as `setup` makes it."""
        return self._located[1]

    @property
    def setup(self) -> str:
        """The command that makes what is missing; empty where `setup` does not do that."""
        return by_root(self.host.command("setup")) if self.setup_makes_it else ""

    @property
    def way_back(self) -> str:
        """The rollback that starts what is down."""
        return self.by_user(self.host.command_back(self.look))

    def by_user(self, command: str) -> str:
        """What to type so that the production user runs the command."""
        if self.owner in (None, os.geteuid()):
            return command
        return f"sudo -iu {self.user} {command}"

    def group(self) -> str:
        """The production user's group."""
        try:
            return grp.getgrgid(pwd.getpwnam(self.user).pw_gid).gr_name
        except KeyError:
            return self.user


def by_root(command: str) -> str:
    """What to type so that root runs the command."""
    return command if os.geteuid() == 0 else f"as root: {command}"
