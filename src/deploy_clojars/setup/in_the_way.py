"""What a host has from earlier times that keeps the files of `setup` from taking effect."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deploy_clojars.setup import validation
from deploy_clojars.setup.files import Nailgun, Values, files, is_for_other_nailgun


@dataclass(frozen=True)
class Obstacle:
    """One of them, and the command that takes it out of the way."""

    what: str
    remedy: str


def other_tools(home: Path) -> Iterator[Obstacle]:
    """Debian's ~/.profile puts ~/bin first: an old script there would be what `sudo -iu` runs."""
    own = os.path.realpath(sys.argv[0])
    for directory in ("bin", ".local/bin"):
        other = home / directory / "deploy-clojars"
        if os.path.lexists(other) and os.path.realpath(other) != own:
            yield Obstacle(
                f"a login shell would find another deploy-clojars first: {other}",
                shlex.join(["mv", str(other), f"{other}.old"]),
            )


def other_sites(values: Values, root: Path) -> Iterator[Obstacle]:
    """nginx takes the first of two sites with one name, and only warns of the other."""
    nginx = root / "etc/nginx"
    usual = sorted([*nginx.glob("sites-enabled/*"), *nginx.glob("conf.d/*.conf")])
    own = nginx / "sites-enabled" / values.site
    # Asking nginx makes its logs and directories, so only where its site is ours.
    asked = root == Path("/") and own.exists()
    read = validation.files_read_by(validation.nginx()) if asked else []
    for file in read or [nginx / "nginx.conf", *usual]:
        if file == own:
            continue
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if serves(text, values.server_name, values.listen):
            # nginx reads nothing else that is in /etc/nginx itself.
            removed = shlex.join(
                ["rm", str(file)] if file.is_symlink() else ["mv", str(file), f"{nginx}/{file.name}.old"]
            )  # fmt: skip
            if file not in usual:
                removed = f"remove that server from {file}"
            yield Obstacle(
                f"{file} is another site for {values.server_name}, and nginx uses only one",
                f"{removed} && service nginx reload",
            )


def serves(text: str, name: str, port: str) -> bool:
    """Whether a server in a site's file has the name on the port."""
    text = re.sub(r"#.*", "", text)
    for server in re.split(r"\bserver\s*\{", text)[1:]:
        names = {word for found in re.findall(r"\bserver_name\s+([^;]+);", server) for word in found.split()}  # fmt: skip
        listens = [found.split()[0] for found in re.findall(r"\blisten\s+([^;]+);", server)]
        # Without a port, or without the word, it is 80.
        ports = {match[1] if (match := re.search(r"(?:^|:)(\d+)$", each)) else "80" for each in listens}  # fmt: skip
        if name in names and port in (ports or {"80"}):
            return True
    return False


def nailgun_there(values: Values, root: Path) -> Nailgun | None:
    """What the host has its nailgun port served by; of two ways the later one, None if by neither."""
    ways: tuple[Nailgun, ...] = ("nginx", "balance")
    made = {}
    for way, unwanted in zip(ways, reversed(ways), strict=True):
        for file in files(values):
            path = root / file.path.lstrip("/")
            if is_for_other_nailgun(file, values, unwanted) and os.path.lexists(path):
                made[way] = os.lstat(path).st_ctime_ns
    return max(made, key=made.__getitem__, default=None)


def other_nailgun(values: Values, nailgun: Nailgun, root: Path) -> Iterator[Obstacle]:
    """What serves the nailgun port in the way that is not wanted."""
    for file in files(values):
        path = root / file.path.lstrip("/")
        if is_for_other_nailgun(file, values, nailgun) and os.path.lexists(path):
            removed = shlex.join(["rm", str(path)])
            balance = f"{values.site}-balance"
            command = (
                f"{values.bin}/stop {balance}; {removed}"
                if nailgun == "nginx"
                else f"{removed} && service nginx reload && {values.bin}/start {balance}"
            )
            yield Obstacle(
                f"{path} also serves the nailgun port, which {nailgun} should serve", command
            )
