"""A local connection that can be cut, in place of a network.

The host's variable `cut_by` names a file. While that has a line "NUMBER before" or "NUMBER after", the host is
unreachable from the run of that number of the module `release` on: before the module does anything, or
after the tool has done what it was asked, so that the answer is lost.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.connection import local

DOCUMENTATION = """
name: severed
short_description: a local connection that can be cut
description: A local connection that can be cut.
options:
  cut:
    description: The file that says when.
    vars:
      - name: cut_by
"""


# With pipelining the module is what the command reads.
RELEASE = b"ansible_collections.clojars.deploy.plugins.modules.release'"


class Connection(local.Connection):  # type: ignore[misc]
    """The connection."""

    transport = "severed"

    def exec_command(self, cmd: str, in_data: Any = None, sudoable: bool = True) -> Any:
        """Runs a command on the host, if it is reachable."""
        file = Path(self.get_option("cut"))
        if not file.exists():
            return super().exec_command(cmd, in_data, sudoable)
        count, when = file.read_text(encoding="utf-8").split()
        left = int(count) - (RELEASE in (in_data or b""))
        if left > 0:
            file.write_text(f"{left} {when}", encoding="utf-8")
            return super().exec_command(cmd, in_data, sudoable)
        if int(count) > 0 and when == "after":
            super().exec_command(cmd, in_data, sudoable)
        file.write_text(f"0 {when}", encoding="utf-8")
        raise AnsibleConnectionFailure("the network is gone")
