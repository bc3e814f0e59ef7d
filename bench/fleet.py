"""`make fleet-real N=8`, as root: what a deploy to N real hosts takes, compared with a plain playbook.

The hosts are those of the tests: each has a real systemd, sshd and nginx, and the light application. All
of them run on this machine, as do ansible-playbook and the load: about 5 requests a second to every host's
nginx. An instance takes two seconds to start, as a JVM does. Nothing else should run at the same time.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fleet_machines import LoadInside, Machines, fleet_of_machines
from fleet_sandboxes import PROGRAMS, Load
from private_machine import ALONE, INSIDE

FIRST, SECOND, THIRD = "0.1.0", "0.2.0", "0.3.0"
BATCHES: list[int | str] = [1, "10%", "100%"]
START = 2  # seconds
INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")

PLAIN = """\
- hosts: all
  gather_facts: false
  become: true
  serial: "{{ fleet_batches }}"
  tasks:
    - ansible.builtin.copy:
        src: "{{ fleet_jar }}"
        dest: /home/clojars/releases/
    - ansible.builtin.file:
        state: link
        src: "{{ fleet_jar | basename }}"
        dest: /home/clojars/releases/clojars-web-current.jar
    - ansible.builtin.systemd_service:
        name: "{{ item }}"
        state: restarted
      loop: [clojars-backup, clojars]
"""


@dataclass(frozen=True)
class Taken:
    """What a run of ansible-playbook took: seconds, seconds of CPU, and peak memory in bytes."""

    wall: float
    cpu: float
    memory: int


def main() -> None:
    """Measures in its own namespaces."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    if INSIDE in os.environ:
        measure(count, Path(os.environ[INSIDE]))
        return
    with tempfile.TemporaryDirectory(prefix="fleet-") as scratch, watches_for(count):
        argv = ["unshare", "--mount", *ALONE, "--propagation", "private", "--"]
        environment = {**os.environ, INSIDE: scratch}
        ended = subprocess.run(
            [*argv, sys.executable, __file__, str(count)], env=environment, check=False
        )
    sys.exit(ended.returncode)


@contextmanager
def watches_for(hosts: int) -> Iterator[None]:
    """Raises root's limit of inotify instances to what that many systemds need; the default is enough for 20."""
    before = INOTIFY.read_text()
    INOTIFY.write_text(str(max(int(before), 128 + 10 * hosts)))
    try:
        yield
    finally:
        INOTIFY.write_text(before)


def measure(count: int, scratch: Path) -> None:
    """Makes the hosts, deploys to them, and says what that took."""
    began = time.monotonic()
    with fleet_of_machines(scratch / "fleet", count) as fleet:
        print(f"{count} hosts are up after {time.monotonic() - began:.0f} s")
        fleet.batches = BATCHES
        for host in fleet.hosts.values():
            host.machine.run("sed", "-i", f"s/^exec/sleep {START}; exec/", "/usr/local/bin/java")
        say("first deploy", count, played(fleet, fleet.words("deploy", FIRST)))
        with LoadInside([*fleet.hosts.values()]) as load:
            say("a new release", count, played(fleet, fleet.words("deploy", SECOND)))
        on_hosts = [deploy_on(host.events) for host in fleet.hosts.values()]
        print(f"    of it on a host itself: median {statistics.median(on_hosts):.1f} s")
        say_of(load)
        say("the same again", count, played(fleet, fleet.words("deploy", SECOND)))
        plain = scratch / "plain.yml"
        plain.write_text(PLAIN, encoding="utf-8")
        jar = next(iter(fleet.hosts.values())).jar(THIRD)
        words = [
            "-i",
            str(fleet.inventory),
            str(plain),
            "-e",
            json.dumps({"fleet_jar": str(jar), "fleet_batches": BATCHES}),
        ]
        with LoadInside([*fleet.hosts.values()]) as load:
            say("plain playbook", count, played(fleet, words))
        say_of(load)


def played(fleet: Machines, words: list[str]) -> Taken:
    """Runs ansible-playbook and returns what it took; fails unless it succeeds."""
    control = fleet.control
    began = time.monotonic()
    with (control.directory / "output").open("w+") as output:
        process = subprocess.Popen(
            [PROGRAMS / "ansible-playbook", *words], env=control.environment,
            cwd=control.directory, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
        heights: list[int] = []
        ended = threading.Event()
        watch = threading.Thread(target=watch_memory, args=(process.pid, heights, ended))
        watch.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.monotonic() - began
        finally:
            ended.set()
            watch.join()
        output.seek(0)
        assert status == 0, output.read()
    return Taken(wall, usage.ru_utime + usage.ru_stime, max(heights, default=0))


def watch_memory(pid: int, heights: list[int], ended: threading.Event) -> None:
    """Records the memory of the process and its descendants, counting shared pages once."""
    while not ended.wait(0.5):
        with suppress(psutil.Error):
            parent = psutil.Process(pid)
            total = 0
            for process in (parent, *parent.children(recursive=True)):
                with suppress(psutil.Error):
                    total += process.memory_full_info().pss
            heights.append(total)


def deploy_on(events: list[dict[str, object]]) -> float:
    """How long the last deploy of a host took on the host itself, in seconds."""
    ends = [each for each in events if each["event"] == "end" and each["command"] == "deploy"]
    return float(str(ends[-1]["seconds"]))


def say(what: str, count: int, taken: Taken) -> None:
    """Prints one line of the result."""
    print(
        f"{what:<16} {taken.wall:7.1f} s  {taken.wall / count:6.2f} s a host   control node: "
        f"{taken.cpu:6.1f} s of CPU, {taken.memory / 1e6:5.0f} MB",
        flush=True,
    )


def say_of(load: Load) -> None:
    """Prints how the load fared."""
    print(f"    {load.requests.total():,} requests, {len(load.failed)} failed", flush=True)


if __name__ == "__main__":
    main()
