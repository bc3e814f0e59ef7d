"""The job that runs balance; run by test_setup.py, where what is mounted is nobody else's."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from little_host import free_ports, wait_for
from private_machine import INSIDE, mount
from standin.upstart import Upstart

from deploy_clojars.config import Config
from deploy_clojars.setup.files import files, values_of

pytestmark = pytest.mark.skipif(INSIDE not in os.environ, reason="only in a private machine")

# What the real one, which current Debians lack, was measured to need: it writes to this directory,
# and dies without it. One client at a time will do here.
BALANCE = r"""#!/usr/bin/perl
use IO::Socket::INET;
open(my $rendezvous, '>', "/var/run/balance/balance.$$") or die "rendezvous: $!\n";
my ($f, $b, $host, $port, @servers) = @ARGV;
$f eq '-f' && $b eq '-b' or die "usage\n";
my $listening = IO::Socket::INET->new(LocalAddr => $host, LocalPort => $port, Listen => 9,
                                      ReuseAddr => 1) or die "$!\n";
while (my $client = $listening->accept) {
    for my $server (grep { $_ ne '!' } @servers) {
        my $to = IO::Socket::INET->new(PeerAddr => $server) or next;
        print $client scalar <$to>;
        last;
    }
    close $client;
}
"""


def test_the_job_makes_its_directory_and_serves_as_its_user(tmp_path: Path) -> None:
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")  # as after a boot
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/usr/local/sbin")
    if shutil.which("balance") is None:
        Path("/usr/local/sbin/balance").write_text(BALANCE)
        Path("/usr/local/sbin/balance").chmod(0o755)
    port, primary_port, backup_port = free_ports(3)
    values = values_of(Config(), user="nobody")
    [job] = [each for each in files(values) if each.etc == "upstart/clojars-balance.conf"]
    text = (
        job.text.replace("nobody:nobody", "nobody:nogroup")
        .replace("--groups=nobody", "--groups=nogroup")
        .replace(" 7600 ", f" {port} ")
        .replace(":7601", f":{primary_port}")
        .replace(":7602", f":{backup_port}")
    )
    with (
        Upstart.started(tmp_path / "upstart") as upstart,
        socket.create_server(("127.0.0.1", primary_port)) as primary,
        socket.create_server(("127.0.0.1", backup_port)) as backup,
    ):
        upstart.install("clojars-balance", text)
        subprocess.run([upstart.bin / "start", "clojars-balance"], check=True)
        first = wait_for(lambda: talked_to(port, primary), "balance forwards")
        assert first
        process = psutil.Process(upstart.pid("clojars-balance"))
        assert (process.uids().effective, process.gids().effective) == (65534, 65534)
        assert groups_of(process.pid) == {65534}
        assert stat.S_IMODE(Path("/var/run/balance").stat().st_mode) == 0o1777
        primary.close()
        assert wait_for(lambda: talked_to(port, backup), "balance turns to the backup")


def groups_of(pid: int) -> set[int]:
    """The supplementary groups of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    [groups] = [line for line in lines if line.startswith("Groups:")]
    return set(map(int, groups.split()[1:]))


def talked_to(port: int, server: socket.socket) -> bool:
    """Whether a client of the port gets what this server says.

    A client that was given up would leave its connection behind: the next one would never be heard.
    """
    server.settimeout(60)
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        served, _ = server.accept()
        with served:
            served.sendall(b"hello\n")
        return client.recv(16) == b"hello\n"
    return False
