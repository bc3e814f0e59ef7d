"""The collection's modules: what they ask the tool, and the one message that each failure has."""

from __future__ import annotations

import ast
import json
import os
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from fleet_sandboxes import ETC, Control, names

from deploy_clojars import __version__

PROMOTED = {
    "outcome": "promoted", "status": 0, "changed": True, "from": "0.1.0", "to": "0.2.0",
    "seconds": {"promote": 2.5}, "message": None, "detail": [], "remedy": None, "log": None,
}  # fmt: skip
DONE = PROMOTED | {"outcome": "nothing to do", "changed": False, "from": "0.2.0"}
LOCKED = PROMOTED | {
    "outcome": "refused", "status": 3, "changed": False,
    "message": "locked: deploy 0.3.0 by ann since just now, step ask, PID 7",
    "remedy": "nothing was changed\nto stop that run cleanly: kill -INT 7",
}  # fmt: skip
STATUS = {"ok": True, "current": "0.1.0", "approved": "0.1.0", "interrupted": False}


RUN_THE_MODULE = """
import importlib, json, sys
from ansible.module_utils.testing import patch_module_args
module = importlib.import_module("ansible_collections.clojars.deploy.plugins.modules." + sys.argv[1])
with patch_module_args(json.loads(sys.argv[2])):
    module.main()
"""


class Host:
    """A program in place of the tool, and the modules as Ansible runs them on a host."""

    def __init__(self, control: Control, directory: Path) -> None:
        self._control = control
        self.tool = directory / "tool"

    @property
    def asked(self) -> list[list[str]]:
        """The command lines that the tool was called with."""
        lines = self.tool.with_name("asked").read_text(encoding="utf-8").splitlines()
        return [line.split("\0")[:-1] for line in lines]

    def has(self, script: str) -> None:
        """The tool is this shell script, after its words were written down."""
        asked = self.tool.with_name("asked")
        written = f"{{ printf '%s\\0' \"$@\"; echo; }} >>{asked}"
        self.tool.write_text(f"#!/bin/sh\n{written}\n{script}\n", encoding="utf-8")
        self.tool.chmod(0o755)

    def answers(self, document: dict[str, Any]) -> None:
        """The tool prints the object and ends with its status."""
        self.has(f"{printed(document)}; exit {document['status']}")

    def run(self, name: str, *, check: bool = False, diff: bool = False, **options: Any) -> Any:
        """Runs a module; what it returns."""
        modes = {"_ansible_check_mode": check, "_ansible_diff": diff}
        arguments = {"program": str(self.tool), **options, **modes}
        result = subprocess.run(
            [sys.executable, "-c", RUN_THE_MODULE, name, json.dumps(arguments)],
            env={**os.environ, "PYTHONPATH": str(self._control.directory / "collections")},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert result.stdout, result.stderr
        return json.loads(result.stdout)


def printed(document: dict[str, Any]) -> str:
    """The shell command that prints the object."""
    return f"printf '%s\\n' {shlex.quote(json.dumps(document))}"


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Control:
    return Control(tmp_path_factory.mktemp("fleet") / "control")


@pytest.fixture
def host(control: Control, tmp_path: Path) -> Host:
    return Host(control, tmp_path)


def test_the_archive_has_all_of_the_collection_and_its_version_is_the_tools(
    control: Control,
) -> None:
    with tarfile.open(control.archive) as archive:
        names = {member.name for member in archive.getmembers() if member.isfile()}
    files = {str(file.relative_to(ETC)) for file in ETC.rglob("*") if file.is_file()}
    files = {name for name in files if "__pycache__" not in name}
    assert files - names == {"galaxy.yml"}
    assert control.archive.name == f"clojars-deploy-{__version__}.tar.gz"


# Those of `ansible-test sanity` that install nothing.
SANITY = (
    "action-plugin-docs", "compile", "empty-init", "ignores", "line-endings", "no-assert",
    "no-get-exception", "no-illegal-filenames", "no-smart-quotes", "replace-urlopen", "shebang", "symlinks",
    "use-argspec-type-path", "use-compat-six",
)  # fmt: skip


def test_the_collection_is_as_ansible_wants_it(control: Control) -> None:
    place = control.directory / "collections/ansible_collections/clojars/deploy"
    words = [word for name in SANITY for word in ("--test", name)]
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    control.run("ansible-test", "sanity", "--python", python, *words, cwd=place)
    control.run("ansible-lint", "--offline", "--profile", "production", cwd=place)


@pytest.mark.parametrize(
    "file", sorted(ETC.glob("plugins/modul*/*.py")), ids=lambda file: file.name
)
def test_what_runs_on_a_host_is_python_3_8(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"), feature_version=(3, 8))
    imported = {
        (node.module or "").partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
    } | {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert imported <= {"__future__", "ansible", "ansible_collections", "json", "os", "time"}


def test_a_host_without_the_tool_has_one_clear_message(host: Host) -> None:
    found = host.run("release", version="0.2.0")

    assert found["failed"]
    assert found["msg"].endswith(
        "tool is not installed on this host; the role clojars.deploy.host installs it"
    )


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            'test "$1" = --version && echo 0.0.9 && exit; echo "No such option: --json" >&2; exit 2',
            "(0.0.9) is too old for this collection; the role clojars.deploy.host upgrades it",
        ),
        (
            "echo 'python3.11: not found' >&2; exit 127",
            "ended with status 127 and no answer: python3.11: not found",
        ),
        (
            f"{printed(LOCKED)}; exit 3",
            f"{LOCKED['message']} (status 3). nothing was changed; to stop that run cleanly: kill -INT 7",
        ),
    ],
)
def test_a_tool_that_cannot_do_it_has_one_clear_message(
    host: Host, script: str, message: str
) -> None:
    host.has(script)

    found = host.run("release", version="0.2.0")

    assert found["failed"]
    assert not found.get("changed")
    assert found["msg"].endswith(message)


def test_a_failure_carries_status_message_remedy_and_the_end_of_the_log(
    host: Host, tmp_path: Path
) -> None:
    log = tmp_path / "run.log"
    log.write_text("".join(f"line {number}\n\n" for number in range(30)), encoding="utf-8")
    failed = PROMOTED | {
        "outcome": "failed", "status": 6, "changed": True, "message": "clojars-backup did not come up",
        "remedy": "look into its log", "detail": ["OutOfMemoryError"], "log": str(log),
    }  # fmt: skip
    host.answers(failed)

    found = host.run("release", version="0.2.0")

    assert {name: found[name] for name in failed} == failed
    assert found["failed"]
    assert found["log_tail"] == [f"line {number}" for number in range(10, 30)]


@pytest.mark.parametrize(
    ("document", "before"), [(PROMOTED, "in production: 0.1.0\n"), (DONE, "in production: 0.2.0\n")]
)
def test_changed_and_the_difference_are_what_the_tool_says(
    host: Host, document: dict[str, Any], before: str
) -> None:
    host.answers(document)

    found = host.run("release", version="0.2.0", diff=True)

    assert found["changed"] is document["changed"]
    assert found["diff"] == {"before": before, "after": "in production: 0.2.0\n"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"version": "0.2.0", "jar": "/a.jar", "sha256": "ab", "force": True, "if_current": "0.1.0"},
            "deploy 0.2.0 --jar /a.jar --sha256 ab --if-current 0.1.0 --force --yes --json",
        ),
        ({"version": "0.2.0", "state": "installed"}, "install 0.2.0 --json"),
        (
            {"state": "rolled_back", "why": "it's bad"},
            "rollback -m \"it's bad\" --yes --json",
        ),
        (
            {"version": "0.2.0", "check": True},
            "deploy 0.2.0 --yes --dry-run --json",
        ),
    ],
)  # fmt: skip
def test_the_options_of_a_module_are_those_of_the_tool(
    host: Host, options: dict[str, Any], words: str
) -> None:
    host.answers(PROMOTED)

    host.run("release", **options, config="/etc/site.toml")

    assert host.asked == [["-c", "/etc/site.toml", *shlex.split(words)]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state": "rolled_back", "force": True}, "force cannot be used with state=rolled_back"),
        ({"version": "0.2.0", "sha256": "ab"}, "sha256 needs jar"),
        ({}, "state is promoted but all of the following are missing: version"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(
    host: Host, options: dict[str, Any], message: str
) -> None:
    host.answers(PROMOTED)

    assert host.run("release", **options)["msg"] == message


def test_the_tool_is_asked_again_while_it_is_locked(host: Host, tmp_path: Path) -> None:
    again = tmp_path / "again"
    host.has(
        f"test -e {again} && {printed(DONE)} && exit; touch {again}; {printed(LOCKED)}; exit 3"
    )

    found = host.run("release", version="0.2.0", lock_wait=60)

    assert found["outcome"] == "nothing to do"
    assert len(host.asked) == 2


def test_release_info_has_the_status_and_the_release_that_was_asked_for(host: Host) -> None:
    listed = {"releases": [{"version": "0.2.0", "sha256": "ab"}, {"version": "0.1.0"}]}
    host.has(f"test $1 = status && {printed(STATUS)} && exit 11; {printed(listed)}")

    found = host.run("release_info", version="0.2.0")

    assert not found["changed"]
    assert {name: found[name] for name in STATUS} == STATUS
    assert found["release"] == {"version": "0.2.0", "sha256": "ab"}


@pytest.mark.parametrize(
    ("variables", "more", "batches"),
    [
        ({"app03": {"fleet_batches": [3, 1]}}, {}, 2),
        ({"app03": {"fleet_out": "out.yml"}}, {}, 4),  # 3 without it
        ({"all": {"fleet_batches": [1]}}, {"fleet_batches": [4]}, 1),
    ],
    ids=("the inventory's", "a load balancer's", "the command line's"),
)
def test_the_batches_are_those_of_the_inventory_or_of_the_command_line(
    control: Control, host: Host, variables: Any, more: dict[str, Any], batches: int
) -> None:
    serves = STATUS | {"drift": False, "lock": None}
    listed = {"releases": [{"version": "0.1.0", "sha256": "ab"}]}
    host.has(f"test $1 = status && {printed(serves)} && exit; {printed(listed)}")
    of_all = {
        "ansible_connection": "local",
        "ansible_become": False,
        "ansible_python_interpreter": sys.executable,
        "fleet_program": str(host.tool),
        **variables.get("all", {}),
    }
    hosts = {name: variables.get(name, {}) for name in names(4)}
    inventory = host.tool.with_name("hosts.json")
    inventory.write_text(json.dumps({"all": {"vars": of_all, "hosts": hosts}}), encoding="utf-8")
    asked = json.dumps({"fleet_version": "0.1.0", **more})

    # Every host serves it already.
    played = control.tried(
        "ansible-playbook", "-i", str(inventory), "clojars.deploy.rollback", "-e", asked
    )

    assert (played.status, played.changed) == (0, 0), played.output
    assert played.batches == batches
