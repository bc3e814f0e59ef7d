#!/usr/bin/python
# Copyright: the authors of deploy-clojars
# MIT License (see https://opensource.org/license/mit)
"""Installs, promotes or rolls back a release on the host."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: release
short_description: Install, promote or roll back a release with deploy-clojars
description:
  - Runs C(deploy-clojars) on the host, with C(--yes). The tool decides what has to be done and in which order,
    reverts what fails, and leaves alone what is already as requested.
  - It must run as the production user, so use C(become_user=clojars). The journal then records the user who logged in.
options:
  version:
    description:
      - The release. Required unless O(state=rolled_back).
      - Without it, a rollback goes where C(deploy-clojars rollback) goes. Name it if the task may be repeated.
    type: str
  state:
    description:
      - V(promoted) puts the release into production.
      - V(installed) installs it without running it.
      - V(rolled_back) puts a release that is still there back into production.
    type: str
    choices: [promoted, installed, rolled_back]
    default: promoted
  jar:
    description:
      - The release's jar, a file on the host.
      - Without it, a release that is not there yet is obtained as the host's configuration says.
        Either its tag is built there, or C(release.command) fetches it.
    type: path
  sha256:
    description: The SHA-256 that O(jar) must have.
    type: str
  rebuild:
    description: Replace a release that is already there. The tool refuses to replace one that is or was in production.
    type: bool
    default: false
  force:
    description: Restart even the only instance that serves. Requests are then lost.
    type: bool
    default: false
  if_current:
    description:
      - Fail unless this release or O(version) itself is current. Somebody else may have deployed in the meantime.
      - Empty means that no release may be current.
    type: str
  why:
    description: The reason for a rollback, kept in the host's journal.
    type: str
  lock_wait:
    description: How long to wait, in seconds, for another run of the tool to end.
    type: int
    default: 0
attributes:
  check_mode:
    description: Runs the tool with C(--dry-run).
    support: full
  diff_mode:
    description: Shows the release before and after.
    support: full
extends_documentation_fragment:
  - clojars.deploy.tool
author:
  - The authors of deploy-clojars (@clojars)
"""

EXAMPLES = r"""
- name: Install the release without running it
  clojars.deploy.release:
    version: 0.2.0
    jar: /var/tmp/clojars-web-0.2.0.jar
    state: installed
  become: true
  become_user: clojars

- name: Put it into production
  clojars.deploy.release:
    version: 0.2.0
  become: true
  become_user: clojars

- name: Go back
  clojars.deploy.release:
    version: 0.1.0
    state: rolled_back
    why: uploads fail
  become: true
  become_user: clojars
"""

RETURN = r"""
outcome:
  description: How the command ended, as C(deploy-clojars deploy --json) reports it.
  type: str
  returned: always
  sample: promoted
status:
  description: The tool's exit status.
  type: int
  returned: always
from:
  description: The release that was in production before, or null. Always null with O(state=installed).
  type: str
  returned: always
to:
  description: The release that was asked for.
  type: str
  returned: always
seconds:
  description: How long each step took.
  type: dict
  returned: always
message:
  description: What went wrong, or null.
  type: str
  returned: always
remedy:
  description: What to do about it, or null.
  type: str
  returned: always
detail:
  description: Details of the failure, such as the last lines of an instance that did not start.
  type: list
  elements: str
  returned: always
log:
  description: The log of the run on the host, or null.
  type: str
  returned: always
log_tail:
  description: The last lines of that log.
  type: list
  elements: str
  returned: failure
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clojars.deploy.plugins.module_utils.tool import (
    ARGUMENTS,
    Tool,
    end_of_file,
)

OPTIONS = dict(
    ARGUMENTS,
    version={"type": "str"},
    state={
        "type": "str",
        "choices": ["promoted", "installed", "rolled_back"],
        "default": "promoted",
    },
    jar={"type": "path"},
    sha256={"type": "str"},
    rebuild={"type": "bool", "default": False},
    force={"type": "bool", "default": False},
    if_current={"type": "str"},
    why={"type": "str"},
    lock_wait={"type": "int", "default": 0},
)

COMMANDS = {"promoted": "deploy", "installed": "install", "rolled_back": "rollback"}

# The options that only some states have.
ONLY_FOR = {
    "jar": ("promoted", "installed"),
    "sha256": ("promoted", "installed"),
    "rebuild": ("promoted", "installed"),
    "force": ("promoted",),
    "if_current": ("promoted",),
    "why": ("rolled_back",),
}


def words_of(params, dry_run):
    """The command line of the tool, without its name."""
    command = COMMANDS[params["state"]]
    words = [command] + ([params["version"]] if params["version"] else [])
    for option, value in (
        ("--jar", params["jar"]),
        ("--sha256", params["sha256"]),
        ("-m", params["why"]),
    ):
        words += [option, value] if value else []
    if params["if_current"] is not None:  # empty: no release is
        words += ["--if-current", params["if_current"]]
    words += ["--rebuild"] if params["rebuild"] else []
    words += ["--force"] if params["force"] else []
    words += ["--yes"] if command != "install" else []
    words += ["--dry-run"] if dry_run else []
    return [*words, "--json"]


def refuse_what_does_not_belong(module):
    """Fails the module for an option that the state does not have."""
    state = module.params["state"]
    for option, states in ONLY_FOR.items():
        if module.params[option] and state not in states:
            module.fail_json(msg=f"{option} cannot be used with state={state}")
    if module.params["sha256"] and not module.params["jar"]:
        module.fail_json(msg="sha256 needs jar")


def without_its_jar(tool, params):
    """What check mode can say about a release whose jar is not on the host, since no earlier task copied it."""
    looked = tool.ask(["status", "--json"]).document
    releases = tool.ask(["releases", "--all", "--json"]).document["releases"]
    installed = any(each["version"] == params["version"] for each in releases)
    is_so = installed if params["state"] == "installed" else looked["approved"] == params["version"]
    return {
        "outcome": "nothing to do" if is_so else "dry run", "status": 0, "changed": not is_so,
        "from": None if params["state"] == "installed" else looked["approved"], "to": params["version"],
        "seconds": {}, "message": None, "detail": [], "remedy": None, "log": None,
    }  # fmt: skip


def diff_of(state, result):
    """What diff mode shows: the release before and after."""
    what = "installed" if state == "installed" else "in production"
    before, after = result["from"] or "none", result["to"] or "none"
    if not result["changed"]:
        before = after
    return {"before": f"{what}: {before}\n", "after": f"{what}: {after}\n"}


def message_of(result):
    """The one message of a failure: what happened, and what to do."""
    message = "{} (status {})".format(result["message"] or result["outcome"], result["status"])
    return message + (". " + result["remedy"].replace("\n", "; ") if result["remedy"] else "")


def main():
    """The module."""
    module = AnsibleModule(
        OPTIONS,
        supports_check_mode=True,
        required_if=[("state", "promoted", ["version"]), ("state", "installed", ["version"])],
    )
    refuse_what_does_not_belong(module)
    tool, params = Tool(module), module.params
    if module.check_mode and params["jar"] and not os.path.exists(params["jar"]):
        result = without_its_jar(tool, params)
    else:
        result = dict(tool.ask(words_of(params, module.check_mode), params["lock_wait"]).document)
    if module._diff:
        result["diff"] = diff_of(params["state"], result)
    if result["status"] != 0:
        result["log_tail"] = end_of_file(result["log"])
        module.fail_json(msg=message_of(result), **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
