#!/usr/bin/python
# Copyright: the authors of deploy-clojars
# MIT License (see https://opensource.org/license/mit)
"""Reports what runs on the host."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: release_info
short_description: Report what runs on a host of deploy-clojars
description:
  - Returns what C(deploy-clojars status --json) prints.
  - Changes nothing, takes no lock, and runs as any user. What that user cannot see is null.
options:
  version:
    description: A release to look up in the host's list of releases, returned as C(release).
    type: str
  lock_wait:
    description: How long to wait, in seconds, for a run of the tool to end before looking.
    type: int
    default: 0
attributes:
  check_mode:
    description: Changes nothing.
    support: full
extends_documentation_fragment:
  - clojars.deploy.tool
author:
  - The authors of deploy-clojars (@clojars)
"""

EXAMPLES = r"""
- name: Find out what is running
  clojars.deploy.release_info:
  register: looked

- name: Stop at a host that needs attention
  ansible.builtin.assert:
    that: looked.ok
    fail_msg: "run on this host: {{ looked.next }}"
"""

RETURN = r"""
ok:
  description: Whether both instances serve the approved release and nothing is half done.
  type: bool
  returned: success
current:
  description: The release that the link names, or null.
  type: str
  returned: success
approved:
  description: The release on which the primary last became healthy, or null.
  type: str
  returned: success
previous:
  description: The release that a rollback without a version would go to, or null.
  type: str
  returned: success
interrupted:
  description: Whether the last run was killed.
  type: bool
  returned: success
drift:
  description: Whether the host has changed since the last run, other than by the tool.
  type: bool
  returned: success
next:
  description: The command to type on the host, or null if all is well.
  type: str
  returned: success
lock:
  description: Who is changing the host at this moment, or null.
  type: dict
  returned: success
instances:
  description: The primary and the backup, with what each runs and whether it serves.
  type: dict
  returned: success
release:
  description:
    - What C(deploy-clojars releases --json) says about the release O(version), such as its C(sha256).
    - Null if it is not installed.
  type: dict
  returned: when O(version) is given
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clojars.deploy.plugins.module_utils.tool import ARGUMENTS, Tool


def main():
    """The module."""
    options = dict(ARGUMENTS, version={"type": "str"}, lock_wait={"type": "int", "default": 0})
    module = AnsibleModule(options, supports_check_mode=True)
    tool, version = Tool(module), module.params["version"]
    found = dict(tool.ask(["status", "--json"], module.params["lock_wait"]).document)
    if version:
        releases = tool.ask(["releases", "--all", "--json"]).document["releases"]
        found["release"] = next((each for each in releases if each["version"] == version), None)
    module.exit_json(changed=False, **found)


if __name__ == "__main__":
    main()
