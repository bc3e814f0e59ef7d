"""A fleet: hosts with a real systemd each, an sshd, nginx and an address of their own.

Their network is a bridge in the network namespace of whoever starts them, which must be a private
one; ansible-playbook and ssh run there too. What all hosts have in common is made once, on a first
machine, whose files then lie below theirs.
"""

from __future__ import annotations

import compileall
import ctypes
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet_sandboxes import Control, Fleet, Load, names
from private_machine import INSIDE, PROJECT, mount, run
from systemd_kit import Kit, install_the_tool, mount_the_tool
from systemd_machine import Machine
from zip_application import zip_jar

BRIDGE = "fleet"
NETWORK = "10.77"  # the first half of every address
CLONE_NEWNET = 0x40000000  # setns(2)

CONFIG = """\
repository = "/nowhere"
[build]
test = "false"
uberjar = "false"
[health]
timeout = 60
answer_timeout = 10
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
    jars: Path  # on the control node

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

    def jar(self, version: str) -> Path:
        """The jar of the version, on the control node."""
        jar = self.jars / Path(self.installed(version)).name
        return jar if jar.exists() else zip_jar(version, "c" * 40, self.jars)

    @property
    def restarts(self) -> int:
        """How many restarts of an instance the journal has."""
        return sum(event["event"] == "restart" for event in self.events)

    def is_at(self, version: str, step: str) -> bool:
        """Whether the step has begun in the last run, which deploys the version."""
        begins = [event for event in self.events if event["event"] == "begin"]
        return bool(begins) and any(
            event.get("step") == step
            for event in self.events
            if event["run"] == begins[-1]["run"] and begins[-1]["version"] == version
        )

    def does_not_start(self, version: str, port: int) -> None:
        """Makes a release end at its start as the instance with this web port from now on."""
        self.machine.write(f"{self.installed(version)}.refused", str(port))

    def starts(self, version: str) -> None:
        """Undoes `does_not_start`."""
        self.machine.run("rm", f"{self.installed(version)}.refused")

    @contextmanager
    def comes_up_late(self, version: str, port: int) -> Iterator[None]:
        """A release does not serve as the instance with this web port before the block ends."""
        late = f"{self.installed(version)}.late"
        self.machine.write(late, str(port))
        try:
            yield
        finally:
            self.machine.run("rm", late)

    @staticmethod
    def installed(version: str) -> str:
        """The release's file there."""
        return f"/home/clojars/releases/clojars-web-{version}-standalone.jar"


class LoadInside(Load):
    """Requests from the host itself: a cut network is no failure of the site."""

    def __init__(self, hosts: list[FleetHost]) -> None:
        super().__init__({host.name: "127.0.0.1" for host in hosts})
        self._hosts = {host.name: host for host in hosts}

    def _ask(self, name: str, site: str) -> None:
        enter_network_of(self._hosts[name].machine.pid)
        super()._ask(name, site)


def enter_network_of(pid: int) -> None:
    """Moves this thread, and no other, into the network namespace of a process."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/proc/{pid}/ns/net") as namespace:
        if libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")


class Machines(Fleet):
    """The hosts by name, and the control node that logs in on them."""

    hosts: dict[str, FleetHost]  # type: ignore[assignment]
    batches: Sequence[int | str] = (1, 3, "100%")

    def words(self, playbook: str, version: str, *words: str, **variables: Any) -> list[str]:
        """The words after `ansible-playbook`."""
        return super().words(playbook, version, *words, fleet_batches=self.batches, **variables)

    def write_inventory(self, **of_all: Any) -> None:
        """Writes the inventory; `of_all` are further variables of all hosts."""
        options = {
            "UserKnownHostsFile": self.control.directory / "known_hosts",
            # A host that vanishes is noticed, and one that is only busy has not vanished.
            "ServerAliveInterval": 1,
            "ServerAliveCountMax": 8,
        }
        own = {
            "ansible_user": OPERATOR,
            "ansible_ssh_private_key_file": str(self.control.directory / "id"),
            "ansible_ssh_common_args": "-F /dev/null "
            + " ".join(f"-o {name}={value}" for name, value in options.items()),
            "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_pipelining": True,
            # By default it is the user's, and another fleet has hosts of the same addresses.
            "ansible_control_path_dir": str(self.control.directory / "cp"),
            "ansible_remote_tmp": "~/.ansible/tmp",
            "ansible_timeout": 20,
            **of_all,
        }
        hosts = {name: {"ansible_host": host.address} for name, host in self.hosts.items()}
        inventory = {"all": {"vars": own, "hosts": hosts}}
        self.inventory.write_text(json.dumps(inventory), encoding="utf-8")

    @property
    def releases(self) -> list[str]:
        """What the hosts serve, in their order: a version, or what the two instances differ in."""
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(served_by, self.hosts.values()))


def served_by(host: FleetHost) -> str:
    """What the host's instances say that they are, past nginx and the tool."""
    ask = "for port in 8001 8002; do curl -fsS http://127.0.0.1:$port/version || echo -n none; echo; done"
    primary, backup = host.machine.run("sh", "-c", ask).stdout.split()
    return primary if primary == backup else f"{primary}/{backup}"


@contextmanager
def fleet_of_machines(directory: Path, count: int) -> Iterator[Machines]:
    """So many hosts as `setup` makes them, with no release yet; needs root and a private network."""
    assert INSIDE in os.environ, "only in a private network namespace"
    directory.mkdir()
    # A tool installed by pip has its bytecode; the hosts mount the source and must not write there.
    compileall.compile_dir(PROJECT / "src", quiet=1)
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(directory))
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "address", "add", f"{NETWORK}.0.1/16", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
    control = Control(directory / "control")
    make_key(control.directory / "id")
    below = files_of_all_hosts(directory / "all", control.directory / "id.pub")
    with ExitStack() as stack, ThreadPoolExecutor(4) as pool:

        def started(name: str) -> FleetHost:
            return stack.enter_context(host_of_the_fleet(directory, name, below))

        hosts = list(pool.map(started, names(count)))
        keys = [
            f"{host.address} {(directory / host.name / 'key.pub').read_text()}" for host in hosts
        ]
        (control.directory / "known_hosts").write_text("".join(keys))
        by_name: dict[str, Any] = {host.name: host for host in hosts}
        yield Machines(control, by_name)


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
def host_of_the_fleet(directory: Path, name: str, below: Path) -> Iterator[FleetHost]:
    """One of the hosts, with its sshd and nginx up, and in the network."""
    number = int(name.removeprefix("app"))
    address = f"{NETWORK}.{1 + number // 250}.{1 + number % 250}"
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
        yield FleetHost(machine, name, address, directory / "jars")
