"""Ansible carries releases to hosts with a real systemd each, over real ssh, and back if one fails."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from private_machine import in_a_private_network
from programs import require_program
from systemd_machine import require_systemd


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1000)
def test_a_fleet_of_real_hosts() -> None:
    require_systemd()
    require_program("ip", "ssh", "ssh-keygen", "sshd", "setfacl", "sudo", "nginx", "curl")
    # The path of ssh's control socket must be short.
    with tempfile.TemporaryDirectory(prefix="fleet-") as scratch:
        in_a_private_network(Path(__file__).parent / "private" / "fleet.py", Path(scratch))
