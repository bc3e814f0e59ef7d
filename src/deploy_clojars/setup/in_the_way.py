"""What a host has from earlier times that keeps the files of `setup` from taking effect."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deploy_clojars.setup.files import Nailgun, Values, files, is_for_other_nailgun
from deploy_clojars.setup.nginx_conf import Configuration


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


def other_sites(
    values: Values, root: Path, conf: Configuration | None = None
) -> Iterator[Obstacle]:
    """nginx takes the first of two sites with one name, and only warns of the other.

    Looks at the files that nginx reads (`conf`), or without that at the usual ones.
    """
    main = Path(conf.files[0]) if conf else root / "etc/nginx/nginx.conf"
    nginx = main.parent
    usual = [
        file
        for pattern in ("sites-enabled/*", "conf.d/*.conf", "http.d/*.conf")
        for file in sorted(nginx.glob(pattern))
    ]
    own = root / (values.site_link or values.site_file).lstrip("/")
    # Only nginx knows which place it reads, and tells root alone: the site may be in the other one.
    may_be_own = conf is None and not os.path.lexists(own)
    for file in map(Path, conf.files) if conf else [main, *usual]:
        if file == own or (may_be_own and file.name == f"{values.site}.conf"):
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
                f"{removed} && {values.front_command('reload')}",
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
            if file.path.startswith("/etc/init/"):
                command = f"{values.bin}/stop {balance}; {removed}"
            else:
                command = f"{removed} && {values.front_command('reload')}"
                command += f" && {values.bin}/start {balance}" if nailgun == "balance" else ""
            who = f", which {nailgun} should serve" if nailgun != "none" else ""
            yield Obstacle(f"{path} also serves the nailgun port{who}", command)
