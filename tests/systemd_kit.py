"""A machine with a real systemd on which `deploy-clojars setup` has made the host.

The application needs no JVM: `java` there is a script that runs the jar with Python.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from little_host import free_ports, wait_for
from programs import require_program
from systemd_machine import Machine
from zip_application import zip_jar

PROJECT = Path(__file__).parents[1]
FIRST, SECOND = "0.1.0", "0.2.0"
PYTHON = f"/opt/python/bin/python{sys.version_info.major}.{sys.version_info.minor}"

CONFIG = """\
repository = "/nowhere"
[build]
test = "true"
uberjar = "true"
[instances.primary]
job = "clojars"
url = "http://127.0.0.1:{0}/"
health = ["http://127.0.0.1:{0}/", "tcp://127.0.0.1:{2}"]
[instances.backup]
job = "clojars-backup"
url = "http://127.0.0.1:{1}/"
health = ["http://127.0.0.1:{1}/", "tcp://127.0.0.1:{3}"]
[health]
timeout = 60
answer_timeout = 10
settle = 0.2
interval = 0.1
[drain]
probe = "http://127.0.0.1:{4}/pool"
"""


@dataclass
class Kit:
    """The host."""

    machine: Machine

    @property
    def root(self) -> Path:
        """Its / as the test sees it."""
        return Path(f"/proc/{self.machine.pid}/root")

    def tool(self, *words: str, by: str = "root") -> subprocess.CompletedProcess[str]:
        """Runs the tool there, as root or as another user's login."""
        login = [] if by == "root" else ["sudo", "-iu", by]
        return self.machine.run(*login, "deploy-clojars", *words, check=False, timeout=600)

    def check(self, by: str = "root") -> str:
        """What `check` finds wrong."""
        return self.tool("check", "-q", by=by).stdout

    @property
    def status(self) -> dict[str, Any]:
        """What `status --json` says."""
        found: dict[str, Any] = json.loads(self.tool("status", "--json").stdout)
        return found

    def systemctl(self, *words: str) -> str:
        """Runs systemctl there, and returns what it printed."""
        return self.machine.run("systemctl", *words).stdout.strip()

    def drop_in(self, unit: str, *lines: str) -> None:
        """Gives a unit these settings, in a file that systemd has read."""
        text = "\n".join(["[Service]", *lines, ""])
        self.machine.write(f"/etc/systemd/system/{unit}.service.d/test.conf", text)
        self.systemctl("daemon-reload")

    def without_drop_ins(self) -> None:
        """Removes what `drop_in` and a remedy have written."""
        units = (f"/etc/systemd/system/{unit}.service.d" for unit in ("clojars", "clojars-backup"))
        self.machine.run("rm", "-rf", *units)
        self.systemctl("daemon-reload")

    @property
    def link(self) -> Path:
        """What both instances start from."""
        return self.root / "home/clojars/releases/clojars-web-current.jar"

    def have(self, version: str) -> str:
        """Puts a release where a deploy would have put it, and returns its file's name."""
        with tempfile.TemporaryDirectory() as directory:
            jar = zip_jar(version, "c" * 40, Path(directory))
            self.link.with_name(jar.name).write_bytes(jar.read_bytes())
        self.machine.run("chown", "clojars:", f"/home/clojars/releases/{jar.name}")
        return jar.name

    def point_to(self, jar: str) -> None:
        """Points the link at a release, as somebody without this tool would."""
        self.machine.run("ln", "-sfn", jar, "/home/clojars/releases/clojars-web-current.jar")

    def serve(self) -> None:
        """Starts both instances on a release, as somebody without this tool would."""
        self.point_to(self.have(FIRST))
        self.systemctl("start", "clojars", "clojars-backup")
        wait_for(lambda: self.status["ok"], "both serve")


@contextmanager
def bare_machine() -> Iterator[Kit]:
    """The machine with the tool, and nothing set up."""
    require_program("sudo", "visudo", "nginx")
    with (
        tempfile.TemporaryDirectory(prefix="systemd-") as name,
        Machine.started(Path(name) / "machine", PROJECT) as machine,
    ):
        mount_the_tool(machine)
        install_the_tool(machine, CONFIG.format(*free_ports(5)))
        yield Kit(machine)


def mount_the_tool(machine: Machine) -> None:
    """Mounts the tool's code and its Python where every user may read them, until the machine ends."""
    packages = Path(msgspec.__file__).parents[1]
    sources = {"python": sys.base_prefix, "src": PROJECT / "src", "packages": packages}
    script = "".join(
        f"mkdir -p /opt/{name}; mount --bind {shlex.quote(str(source))} /opt/{name}\n"
        for name, source in sources.items()
    )
    machine.run("sh", "-ec", script)


def install_the_tool(machine: Machine, config: str) -> None:
    """Writes the tool's program, its configuration, and the `java` that needs no JVM."""
    tool = (
        "#!/bin/sh\n"
        "PYTHONPATH=/opt/src:/opt/packages PYTHONDONTWRITEBYTECODE=1 "
        f'exec {PYTHON} -m deploy_clojars "$@"\n'
    )
    machine.write("/usr/local/bin/deploy-clojars", tool, 0o755)
    java = f'#!/bin/sh\nfor jar; do :; done\nexec {PYTHON} -IS "$jar"\n'
    machine.write("/usr/local/bin/java", java, 0o755)
    machine.run("ln", "-sf", "/usr/local/bin/java", "/usr/bin/java")
    machine.write("/etc/deploy-clojars.toml", config)


@contextmanager
def serving_kit() -> Iterator[Kit]:
    """The machine after `setup`, with both instances up."""
    with bare_machine() as kit:
        made = kit.tool("setup")
        assert made.returncode == 0, made.stderr + made.stdout
        kit.serve()
        yield kit
