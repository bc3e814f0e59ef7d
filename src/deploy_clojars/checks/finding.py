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
from deploy_clojars.host.users import user_name
from deploy_clojars.run import lock
from deploy_clojars.setup import validation
from deploy_clojars.setup.files import Values, values_of
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

    @property
    def user(self) -> str:
        """The production user's name; this user's where nothing says who that is."""
        return user_name(self.owner)

    @property
    def is_upstarts(self) -> bool:
        """Whether it is a host as `setup` makes it."""
        return self.host.config.services.chosen == "upstart"

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
        is_asked = self.is_upstarts and os.geteuid() == 0 and Path("/etc/init").is_dir()
        return validation.located(values, self.nginx) if is_asked else (values, None)

    @property
    def values(self) -> Values | None:
        """The values of the files that `setup` installs; None for a host that cannot have them."""
        return self._located[0]

    @property
    def nginx_conf(self) -> Configuration | None:
        """All that nginx reads; only for root, where Upstart runs the instances."""
        return self._located[1]

    @property
    def setup(self) -> str:
        """The command that makes what is missing; empty where `setup` does not do that."""
        return by_root(self.host.command("setup")) if self.is_upstarts else ""

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
