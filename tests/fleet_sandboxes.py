"""Many light hosts on this machine, as ansible-playbook sees them: by local connection."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from clojure_repository import ClojureRepository
from front import in_front_of
from light_host import make_light_host
from little_host import LittleHost, Terminal, at_a_terminal
from standin.upstart import Upstart

ETC = Path(__file__).parents[1] / "etc/ansible"
PROGRAMS = Path(sys.executable).parent

# What docs/fleet.md has for the control node, as far as local connections have it; but JSON, which is read here.
SETTINGS = """[defaults]
forks = 50
display_skipped_hosts = False
[connection]
pipelining = True
"""


@dataclass
class Ended:
    """What a run of ansible-playbook has printed, and its exit status."""

    status: int
    output: str

    @property
    def changed(self) -> int:
        """How many tasks have changed something."""
        return sum(map(int, re.findall(r"changed=(\d+)", self.output)))

    def changed_on(self, name: str) -> int:
        """How many tasks have changed something on the host."""
        (recap,) = re.findall(rf"^{name} +:.* changed=(\d+)", self.output, re.MULTILINE)
        return int(recap)

    @property
    def batches(self) -> int:
        """In how many batches the hosts were to be changed."""
        return len(re.findall(r"^PLAY .*a few hosts at a time", self.output, re.MULTILINE))

    @property
    def failed(self) -> list[str]:
        """The hosts that have failed."""
        return re.findall(r"^(\S+) +:.* failed=[1-9]", self.output, re.MULTILINE)

    @property
    def table(self) -> dict[str, str]:
        """What the last table says of each host, with single spaces."""
        lines = re.findall(r'^ +(?:"|- )(app\d+) +(.*?)"?,?$', self.output, re.MULTILINE)
        return {name: re.sub(" +", " ", rest) for name, rest in lines}


class Control:
    """The control node: the collection as it is installed from its archive, and ansible's settings."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True)
        self.environment = {
            **os.environ,
            "HOME": str(directory),
            "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
            "ANSIBLE_HOME": str(directory / "ansible"),
            "ANSIBLE_REMOTE_TMP": str(directory / "remote"),
            "ANSIBLE_COLLECTIONS_PATH": str(directory / "collections"),
            "ANSIBLE_CONFIG": str(directory / "ansible.cfg"),
            "ANSIBLE_CONNECTION_PLUGINS": str(Path(__file__).with_name("fleet_connection")),
            "ANSIBLE_NOCOLOR": "1",
            "PYTHONDONTWRITEBYTECODE": "",
        }
        (directory / "ansible.cfg").write_text(SETTINGS, encoding="utf-8")
        build = ("collection", "build", str(ETC), "--output-path", str(directory))
        self.run("ansible-galaxy", *build)
        (self.archive,) = directory.glob("*.tar.gz")
        install = ("collection", "install", "--offline", str(self.archive))
        self.run("ansible-galaxy", *install, "-p", str(directory / "collections"))

    def run(self, program: str, *words: str, cwd: Path | None = None) -> str:
        """Runs one of ansible's programs and returns what it prints; fails unless it ends well."""
        result = self.tried(program, *words, cwd=cwd)
        assert result.status == 0, result.output
        return result.output

    def tried(self, program: str, *words: str, cwd: Path | None = None) -> Ended:
        """Runs one of ansible's programs, however it ends."""
        result = subprocess.run(
            [PROGRAMS / program, *words],
            env=self.environment, cwd=cwd or self.directory, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=500,
        )  # fmt: skip
        return Ended(result.returncode, result.stdout)


class Load:
    """Requests to nginx on every host, by the host's name and the address of its site."""

    PAUSE = 0.2  # seconds

    def __init__(self, sites: dict[str, str]) -> None:
        self.requests: Counter[str] = Counter()  # by host
        self.failed: list[tuple[str, str]] = []  # host, and what came instead of an answer
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=each) for each in sites.items()]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, name: str, site: str) -> None:
        while not self._stop.wait(self.PAUSE):
            self.requests[name] += 1
            if failure := self._failure(site):
                self.failed.append((name, failure))

    @staticmethod
    def _failure(site: str) -> str:
        connection = http.client.HTTPConnection(site, timeout=60)
        try:
            connection.request("GET", "/version")
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            return repr(error)
        finally:
            connection.close()
        return "" if answer.status == 200 else str(answer.status)


class Fleet:
    """The hosts, by name, and their inventory. All serve 0.1.0 at first."""

    def __init__(self, control: Control, hosts: dict[str, LittleHost]) -> None:
        self.control = control
        self.hosts = hosts
        self.inventory = control.directory / "hosts.json"
        self.variables: dict[str, dict[str, Any]] = {name: {} for name in hosts}
        self.write_inventory()

    def write_inventory(self, **of_all: Any) -> None:
        """Writes the inventory; `of_all` are further variables of all hosts."""
        own = {
            "ansible_connection": "severed",
            "ansible_become": False,
            "ansible_python_interpreter": sys.executable,
            "fleet_program": str(PROGRAMS / "deploy-clojars"),
            "fleet_lock_wait": 0,
            **of_all,
        }
        hosts = {
            name: {
                "fleet_config": str(host.config),
                "fleet_staging": str(host.directory),
                "cut_by": str(self.cut(name)),
            }
            | self.variables[name]
            for name, host in self.hosts.items()
        }
        self.inventory.write_text(
            json.dumps({"all": {"vars": own, "hosts": hosts}}), encoding="utf-8"
        )

    def cut(self, name: str) -> Path:
        """The file that makes the host unreachable, as the connection plugin says."""
        return self.hosts[name].directory / "cut"

    def words(self, playbook: str, version: str, *words: str, **variables: Any) -> list[str]:
        """The words after `ansible-playbook`."""
        every = {"fleet_version": version, **variables}
        if playbook == "deploy":
            jar = next(iter(self.hosts.values())).jar(version)
            every.setdefault("fleet_jar", str(jar))
        return [
            "-i", str(self.inventory), f"clojars.deploy.{playbook}", "-e", json.dumps(every), *words
        ]  # fmt: skip

    def play(self, playbook: str, version: str, *words: str, **variables: Any) -> Ended:
        """Runs a playbook of the collection to its end."""
        return self.control.tried(
            "ansible-playbook", *self.words(playbook, version, *words, **variables)
        )

    @contextmanager
    def typing(self, playbook: str, version: str, **variables: Any) -> Iterator[Terminal]:
        """A playbook on a terminal of its own."""
        argv = [str(PROGRAMS / "ansible-playbook"), *self.words(playbook, version, **variables)]
        control = self.control
        with at_a_terminal(argv, control.environment, control.directory, 300) as terminal:
            yield terminal

    def hook(self, word: str) -> Path:
        """A site's task file for the load balancer, which writes the word down."""
        file = self.control.directory / f"{word}.yml"
        tasks = [{"ansible.builtin.shell": f"echo {word} >>{{{{ fleet_staging }}}}/hooks"}]
        file.write_text(json.dumps(tasks), encoding="utf-8")
        return file

    @property
    def hooks_ran(self) -> dict[str, list[str]]:
        """The words that the hooks have written down, by host."""
        return {
            name: (host.directory / "hooks").read_text(encoding="utf-8").split()
            for name, host in self.hosts.items()
        }

    def with_a_full_disk(self, name: str) -> Path:
        """A program in place of the tool: the tool, on a host where no file can be larger than 512 bytes."""
        program = self.hosts[name].directory / "tool"
        program.write_text(f'#!/bin/sh\nulimit -f 1\nexec {PROGRAMS}/deploy-clojars "$@"\n')
        program.chmod(0o755)
        return program

    @property
    def files(self) -> dict[Path, int]:
        """Every file of every host, and when it was last changed."""
        found = (file for host in self.hosts.values() for file in host.home.rglob("*"))
        return {file: os.lstat(file).st_mtime_ns for file in found}

    @property
    def copies(self) -> list[Path]:
        """The jars that were copied to the hosts to be installed, and are still there."""
        hosts = self.hosts.values()
        return [file for host in hosts for file in host.directory.glob(".deploy-clojars-*")]

    @property
    def releases(self) -> list[str]:
        """What the hosts serve, in their order: a version, or what the two instances differ in."""
        with ThreadPoolExecutor(16) as pool:
            return list(pool.map(_served, self.hosts.values()))

    @property
    def touched(self) -> list[str]:
        """The hosts on which anything but an install was begun."""
        return [
            name
            for name, host in self.hosts.items()
            if any(event.get("command") not in (None, "install") for event in host.events)
        ]


def _served(host: LittleHost) -> str:
    primary, backup = host.versions
    return str(primary) if primary == backup else f"{primary}/{backup}"


def names(count: int) -> Sequence[str]:
    """app01, app02, …"""
    return [f"app{number:02}" for number in range(1, count + 1)]


@contextmanager
def fleet_of(
    count: int,
    directory: Path,
    control: Control,
    repository: ClojureRepository,
    sites: dict[str, str] | None = None,
) -> Iterator[Fleet]:
    """So many hosts that serve 0.1.0, each with an Upstart of its own, stopped at the end.

    With `sites` there is an nginx in front of each, and they get its address, by the host's name.
    """
    with ExitStack() as stack:
        hosts = {}
        for name in names(count):
            upstart = stack.enter_context(Upstart.started(directory / name / "upstart"))
            hosts[name] = make_light_host(directory / name, upstart, repository)
            if sites is not None:
                front = stack.enter_context(in_front_of(hosts[name], quiet="0.2"))
                sites[name] = front.site.removeprefix("http://")
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda host: host.serving(ClojureRepository.FIRST), hosts.values()))
        yield Fleet(control, hosts)
