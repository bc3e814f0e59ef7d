"""A fleet: hosts with a real systemd each, an sshd, nginx and an address of their own.

Their network is a bridge in the network namespace of whoever starts them, which must be a private
one; ansible-playbook and ssh run there too. What all hosts have in common is made once, on a first
machine, whose files then lie below theirs.
"""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from private_machine import INSIDE, PROJECT, mount, run
from systemd_kit import Kit, install_the_tool, mount_the_tool
from systemd_machine import Machine

BRIDGE = "fleet"
NETWORK = "10.77"  # the first half of every address
CLONE_NEWNET = 0x40000000  # setns(2)

CONFIG = """\
repository = "/nowhere"
[build]
test = "false"
uberjar = "false"
[health]
timeout = 20
answer_timeout = 5
settle = 0.2
interval = 0.1
[drain]
quiet = 0.2
"""

SSHD = """\
PasswordAuthentication no
UsePAM no
HostKey /etc/ssh/ssh_host_ed25519_key
"""

# Whoever logs in is not the production user, as on real hosts.
OPERATOR = "ann"


@dataclass
class FleetHost(Kit):
    """One of the hosts."""

    name: str
    address: str

    def leaves_the_network(self) -> None:
        """Makes the host unreachable; all on it goes on."""
        run("ip", "link", "set", self.name, "down")

    def joins_the_network(self) -> None:
        """Makes it reachable again."""
        run("ip", "link", "set", self.name, "up")

    @property
    def events(self) -> list[dict[str, Any]]:
        """The journal."""
        file = self.root / "home/clojars/deploy/journal.jsonl"
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        # What comes after the last newline is being written.
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def is_at(self, step: str) -> bool:
        """Whether the last line of the journal is the beginning of the step."""
        events = self.events
        return bool(events) and events[-1].get("step") == step

    @property
    def restarts(self) -> int:
        """How many requests to restart an instance the journal has."""
        return sum(event.get("step") in ("restart backup", "promote") for event in self.events)

    def does_not_start(self, version: str, port: int) -> None:
        """Makes a release end at its start as the instance with this web port from now on."""
        release = f"/home/clojars/releases/clojars-web-{version}-standalone.jar"
        self.machine.write(f"{release}.refused", str(port))

    def starts(self, version: str) -> None:
        """Undoes `does_not_start`."""
        release = f"/home/clojars/releases/clojars-web-{version}-standalone.jar"
        self.machine.run("rm", f"{release}.refused")


class Load:
    """Requests to nginx on every host, from the host itself: a cut network is no failure of the site."""

    PAUSE = 0.1  # seconds

    def __init__(self, hosts: list[FleetHost]) -> None:
        self.requests: Counter[str] = Counter()  # by host
        self.failed: list[tuple[str, str]] = []  # host, and what came instead of an answer
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(host,)) for host in hosts]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, host: FleetHost) -> None:
        enter_network_of(host.machine.pid)
        while not self._stop.wait(self.PAUSE):
            self.requests[host.name] += 1
            if failure := self._failure():
                self.failed.append((host.name, failure))

    @staticmethod
    def _failure() -> str:
        connection = http.client.HTTPConnection("127.0.0.1", timeout=60)
        try:
            connection.request("GET", "/version")
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            return repr(error)
        finally:
            connection.close()
        return "" if answer.status == 200 else str(answer.status)


def enter_network_of(pid: int) -> None:
    """Moves this thread, and no other, into the network namespace of a process."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/proc/{pid}/ns/net") as namespace:
        if libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")


@dataclass
class Fleet:
    """The hosts, and what the control node needs to log in on them."""

    directory: Path
    hosts: list[FleetHost] = field(default_factory=list)

    def __getitem__(self, name: str) -> FleetHost:
        return next(host for host in self.hosts if host.name == name)

    @property
    def key(self) -> Path:
        """The operator's private key."""
        return self.directory / "id"

    @property
    def variables(self) -> dict[str, Any]:
        """What ansible must know of all hosts."""
        options = {
            "UserKnownHostsFile": self.directory / "known_hosts",
            # A host that vanishes is noticed, also on a machine that is busy.
            "ServerAliveInterval": 1,
            "ServerAliveCountMax": 5,
        }
        return {
            "ansible_user": OPERATOR,
            "ansible_ssh_private_key_file": str(self.key),
            "ansible_ssh_common_args": "-F /dev/null "
            + " ".join(f"-o {name}={value}" for name, value in options.items()),
            "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_pipelining": True,
            "ansible_remote_tmp": "~/.ansible/tmp",
            "ansible_timeout": 5,
        }

    def inventory(self) -> Path:
        """Writes ansible's inventory."""
        file = self.directory / "hosts.json"
        hosts = {host.name: {"ansible_host": host.address} for host in self.hosts}
        file.write_text(
            json.dumps({"all": {"vars": self.variables, "hosts": hosts}}), encoding="utf-8"
        )
        return file

    @property
    def serving(self) -> list[str]:
        """What each host's two instances serve: a version, or two where they differ."""
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(served_by, self.hosts))


def served_by(host: FleetHost) -> str:
    """What the host's instances say that they are, past nginx and the tool."""
    ask = "for port in 8001 8002; do curl -fsS http://127.0.0.1:$port/version || echo -n none; echo; done"
    primary, backup = host.machine.run("sh", "-c", ask).stdout.split()
    return primary if primary == backup else f"{primary}/{backup}"


@contextmanager
def fleet_of_machines(directory: Path, count: int) -> Iterator[Fleet]:
    """So many hosts as `setup` makes them, with no release yet; needs root and a private network."""
    assert INSIDE in os.environ, "only in a private network namespace"
    directory.mkdir()
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(directory))
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "address", "add", f"{NETWORK}.0.1/16", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
    fleet = Fleet(directory)
    make_key(fleet.key)
    below = files_of_all_hosts(directory / "all", fleet.key.with_suffix(".pub"))
    with ExitStack() as stack, ThreadPoolExecutor(4) as pool:

        def started(number: int) -> FleetHost:
            return stack.enter_context(host_of_the_fleet(directory, number, below))

        fleet.hosts = list(pool.map(started, range(1, count + 1)))
        known = (
            f"{host.address} {(directory / host.name / 'key.pub').read_text()}"
            for host in fleet.hosts
        )
        (directory / "known_hosts").write_text("".join(known))
        yield fleet


def make_key(file: Path) -> None:
    """Makes a pair of keys for ssh."""
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", file.name, "-f", str(file))


def files_of_all_hosts(directory: Path, key: Path) -> Path:
    """Makes one host as `setup` does, and returns the directory with what it has written."""
    over = directory / "over"  # kept when the machine ends
    over.mkdir(parents=True)
    with Machine.started(directory, PROJECT) as machine:
        mount_the_tool(machine)
        install_the_tool(machine, CONFIG)
        made = machine.run("deploy-clojars", "setup", check=False)
        assert made.returncode == 0, made.stderr + made.stdout
        machine.run("useradd", "--create-home", "--shell", "/bin/bash", "-p", "*", OPERATOR)
        machine.write(f"/etc/sudoers.d/{OPERATOR}", f"{OPERATOR} ALL=(ALL) NOPASSWD: ALL\n", 0o440)
        machine.write(f"/home/{OPERATOR}/.ssh/authorized_keys", key.read_text())
        machine.write("/etc/ssh/sshd_config", SSHD)
        # Whoever makes the hosts starts the instances; at a boot these are the only services.
        machine.run("systemctl", "disable", "clojars", "clojars-backup")
        machine.run("systemctl", "enable", "nginx", "ssh")
        machine.run("rm", "/etc/nginx/sites-enabled/default")
    return over / "upper"


@contextmanager
def host_of_the_fleet(directory: Path, number: int, below: Path) -> Iterator[FleetHost]:
    """One of the hosts, with its sshd and nginx up, and in the network."""
    name, address = f"app{number:02}", f"{NETWORK}.{1 + number // 250}.{1 + number % 250}"
    own = directory / name
    (own / "over").mkdir(parents=True)
    make_key(own / "key")
    with Machine.started(own, PROJECT, below=below) as machine:
        mount_the_tool(machine)
        run(
            "ip",
            "link",
            "add",
            name,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            str(machine.pid),
        )
        run("ip", "link", "set", name, "master", BRIDGE, "up")
        machine.run(
            "install",
            "-m",
            "600",
            "/dev/stdin",
            "/etc/ssh/ssh_host_ed25519_key",
            text=(own / "key").read_text(),
        )
        machine.run(
            "sh",
            "-ec",
            f"""
            hostname {name}
            echo 127.0.1.1 {name} >>/etc/hosts
            ip address add {address}/16 dev eth0
            ip link set eth0 up
            systemctl -q enable clojars clojars-backup
            systemctl start ssh nginx
        """,
        )
        yield FleetHost(machine, name, address)
