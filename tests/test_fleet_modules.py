"""The collection's modules: what they ask the tool, and the one message that each failure has."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from fleet_sandboxes import ETC, Control, Ended, names

from deploy_clojars import __version__, versions

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
ROLLED_BACK = PROMOTED | {"outcome": "rolled back", "from": "0.2.0", "to": "0.1.0"}
HOLDER = {
    "command": "deploy",
    "version": "0.3.0",
    "user": "ann",
    "since": None,
    "step": "ask",
    "pid": 7,
}

HOOKS = ETC / "playbooks/hooks"

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
        calls = self.tool.with_name("asked").read_text(encoding="utf-8").split("\n\0")
        return [call.split("\0")[:-1] for call in calls[:-1]]

    def has(self, script: str) -> None:
        """The tool is this shell script, after its words were written down."""
        asked = self.tool.with_name("asked")
        # In one write: Ansible calls the tools of several hosts at once.
        written = f"printf '%s\\0' \"$@\" '\n' >>{asked}"
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

    def play(
        self, playbook: str, count: int, asked: dict[str, Any], *words: str, **variables: Any
    ) -> Ended:
        """Runs a playbook on so many hosts, which all have this tool; `variables` by host, or of all."""
        of_all = {
            "ansible_connection": "local",
            "ansible_become": False,
            "ansible_python_interpreter": sys.executable,
            "fleet_program": str(self.tool),
            "fleet_staging": str(self.tool.parent),
            **variables.get("all", {}),
        }
        hosts = {name: variables.get(name, {}) for name in names(count)}
        inventory = self.tool.with_name("hosts.json")
        inventory.write_text(
            json.dumps({"all": {"vars": of_all, "hosts": hosts}}), encoding="utf-8"
        )
        play = ("-i", str(inventory), f"clojars.deploy.{playbook}", "-e", json.dumps(asked))
        return self._control.tried("ansible-playbook", *play, *words)


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
        ({"version": "0.2.0", "if_current": ""}, "deploy 0.2.0 --if-current '' --yes --json"),
        (
            {"version": "0.2.0", "state": "installed", "jar": "/a.jar", "rebuild": True},
            "install 0.2.0 --jar /a.jar --rebuild --json",
        ),
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


def test_release_info_waits_for_the_end_of_a_run(host: Host, tmp_path: Path) -> None:
    again = tmp_path / "again"
    locked = printed(STATUS | {"lock": HOLDER})
    host.has(f"test -e {again} && {printed(STATUS)} && exit; touch {again}; {locked}")

    assert "lock" not in host.run("release_info", lock_wait=60)
    again.unlink()
    assert host.run("release_info")["lock"] == HOLDER


@pytest.mark.parametrize(
    ("variables", "more", "batches"),
    [
        ({"app03": {"fleet_batches": [3, 1], "fleet_jar": "/is/gone.jar"}}, {}, 2),
        ({"app03": {"fleet_out": str(HOOKS / "aws_out.yml")}}, {}, 4),  # 3 without it
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

    # Every host serves it already.
    played = host.play("rollback", 4, {"fleet_version": "0.1.0", **more}, **variables)

    assert (played.status, played.changed) == (0, 0), played.output
    assert played.batches == batches


# Stands for the tool in every command of a deploy to hosts without a release of that version.
ALL_COMMANDS = """case $1 in
    status) {status} ;;
    releases) {releases} ;;
    rollback) {rollback} ;;
    *) {rest} ;;
esac"""


def deploys(status: dict[str, Any]) -> str:
    """The script of a tool that has this status, and does all that it is asked."""
    one = {"state": "running", "running": "0.1.0", "serving": True}
    return ALL_COMMANDS.format(
        status=printed(status | {"drift": False, "instances": {"primary": one, "backup": one}}),
        releases=printed({"releases": []}),
        rollback=printed(ROLLED_BACK),
        rest=printed(PROMOTED),
    )


def test_a_hook_that_fails_for_a_missing_file_leads_to_the_way_back_and_the_table(
    host: Host, tmp_path: Path
) -> None:
    host.has(deploys(STATUS | {"lock": None}))
    hook = tmp_path / "in.yml"
    hook.write_text('[{"ansible.builtin.include_tasks": "missing.yml"}]', encoding="utf-8")

    stopped = host.play("deploy", 2, {"fleet_version": "0.2.0", "fleet_in": str(hook)})

    assert stopped.status == 2
    assert "stopped by app01; not changed: 1, taken back: 1" in stopped.output
    assert ["deploy", "0.2.0", "--if-current", "0.1.0", "--yes", "--json"] in host.asked
    assert [words[:2] for words in host.asked if words[0] == "rollback"] == [["rollback", "0.1.0"]]


def test_a_host_that_was_locked_is_looked_at_again_and_held_to_what_it_then_had(
    host: Host, tmp_path: Path
) -> None:
    nothing = STATUS | {"current": None, "approved": None, "lock": None}
    locked, again = printed(nothing | {"lock": HOLDER}), tmp_path / "again"
    host.has(f"test $1 = status && ! test -e {again} && {locked} && exit; {deploys(nothing)}")

    stopped = host.play("deploy", 2, {"fleet_version": "0.2.0", "fleet_lock_wait": "0"})
    assert stopped.status == 2
    assert (
        "locked: deploy 0.3.0 by ann since just now, step ask; to stop that run" in stopped.output
    )
    assert {words[0] for words in host.asked} == {"status", "releases"}

    again.touch()
    host.play("deploy", 2, {"fleet_version": "0.2.0", "fleet_lock_wait": "0"})
    assert ["deploy", "0.2.0", "--if-current", "", "--yes", "--json"] in host.asked


def test_nothing_is_asked_of_a_host_before_all_variables_are_right(
    host: Host, tmp_path: Path
) -> None:
    host.answers(PROMOTED)
    wrong = {
        "fleet_version": "/../x", "fleet_jra": "/a.jar", "fleet_batches": "lots", "fleet_lock_wait": "abc"
    }  # fmt: skip
    refused = host.play("deploy", 2, wrong)
    assert refused.status == 2
    for name in wrong:
        assert f"{name} " in refused.output

    hook = tmp_path / "out.yml"
    hook.write_text('[{"ansible.builtin.debugg": {}}]', encoding="utf-8")
    refused = host.play("deploy", 2, {"fleet_version": "0.2.0", "fleet_out": str(hook)})
    assert refused.status != 0
    assert "ansible.builtin.debugg" in refused.output

    for words, pattern, count in (
        ((), "app09", 2),
        (("--limit", "app01"), "app02", 2),
        ((), "all", 0),
    ):
        refused = host.play(
            "rollback", count, {"fleet_version": "0.2.0", "fleet_hosts": pattern}, *words
        )
        assert refused.status != 0
        assert f"no host matches {pattern}: look at the inventory" in refused.output
    assert not host.tool.with_name("asked").exists()


def test_a_hook_is_loaded_before_anything_changes_and_none_of_its_tasks_runs(
    host: Host, tmp_path: Path
) -> None:
    host.has(deploys(STATUS | {"lock": HOLDER}))  # so that it stops there
    hook = tmp_path / "out.yml"
    tasks = [
        {"ansible.builtin.command": f"touch {tmp_path}/ran", "tags": tags}
        for tags in ([], ["always"])
    ]
    hook.write_text(json.dumps(tasks), encoding="utf-8")

    stopped = host.play(
        "deploy", 1, {"fleet_version": "0.2.0", "fleet_out": str(hook), "fleet_lock_wait": 0}
    )

    assert "included:" in stopped.output
    assert "locked: deploy 0.3.0" in stopped.output
    assert not (tmp_path / "ran").exists()


def filters() -> Any:
    """The module of the playbooks' filters."""
    spec = importlib.util.spec_from_file_location("fleet", ETC / "plugins/filter/fleet.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"fleet_version": 0.2}, "fleet_version is 0.2, which YAML does not read as text: put it in quotes"),
        ({"fleet_version": ""}, "fleet_version is not a version: it is empty: ''"),
        ({"fleet_jra": "/a.jar"}, "fleet_jra is not a variable of this playbook; did you mean fleet_jar?"),
        ({"fleet_jar": "a.jar"}, "fleet_jar must be an absolute path: a.jar"),
        ({"fleet_jar": "/no/such.jar"}, "fleet_jar: no such file: /no/such.jar"),
        ({"fleet_out": "/no/out.yml"}, "fleet_out: no such file: /no/out.yml"),
        ({"fleet_rebuild": True}, "fleet_rebuild needs fleet_jar"),
        ({"fleet_lock_wait": "abc"}, "fleet_lock_wait must be a number of seconds: abc"),
        ({"fleet_lock_wait": "-1"}, "fleet_lock_wait must be a number of seconds: -1"),
        ({"fleet_force": "maybe"}, "fleet_force must be true or false: maybe"),
    ],
)  # fmt: skip
def test_a_variable_that_cannot_be_meant_is_named(variables: dict[str, Any], sentence: str) -> None:
    every = {"fleet_version": "0.2.0", **variables, "ansible_host": "192.0.2.1"}

    assert filters().fleet_wrong(["app01", "app02"], {"app01": every, "app02": every}, []) == [
        sentence
    ]


@pytest.mark.parametrize("batches", ["lots", "[1,2]", ["abc%"], [0], [], [-1], ["101%"], ["0%"], [True], ["5"], 5])  # fmt: skip
def test_batches_that_cannot_be_are_refused(batches: Any) -> None:
    every = {"fleet_version": "0.2.0", "fleet_batches": batches}

    (sentence,) = filters().fleet_wrong(["app01"], {"app01": every}, [])

    assert sentence.startswith("fleet_batches must be a list of numbers from 1 and percentages")
    assert sentence.endswith(f""" such as -e '{{"fleet_batches": [1, "10%"]}}': {batches}""")


def test_variables_that_can_be_are_not_refused() -> None:
    file = str(HOOKS / "aws_in.yml")
    every = {
        "fleet_version": "0.2.0", "fleet_jar": file, "fleet_in": file, "fleet_batches": [1, "1%", "100%"],
        "fleet_lock_wait": "60", "fleet_force": "no", "fleet_rebuild": "true", "fleet_why": "uploads fail",
    }  # fmt: skip

    assert filters().fleet_wrong(["app01"], {"app01": every}, []) == []
    assert filters().fleet_wrong(["app01"], {"app01": {}}, []) == [
        "name the release: -e fleet_version=VERSION"
    ]


@pytest.mark.parametrize(
    "word", ["0.2.0", "v1", "", "-x", "a/b", "/../x", "a..b", "a b", "a\tb", "a\x07b", "é"]
)
def test_a_version_is_judged_as_by_the_tool(word: str) -> None:
    wrong, why = filters().wrong_version("fleet_version", word), versions.why_no_version(word)

    assert wrong == (f"fleet_version is not a version: {why}: {word!r}" if why else None)


SERVES = {"ok": True, "approved": "0.2.0", "instances": {}}


@pytest.mark.parametrize(
    ("facts", "is_elsewhere"),
    [
        ({"fleet_now": SERVES}, False),
        ({"fleet_now": SERVES | {"approved": "0.1.0"}}, True),
        ({"fleet_now": SERVES | {"ok": False}}, True),
        ({"fleet_now": {"unreachable": True}}, True),
        ({"fleet_now": SERVES | {"approved": "0.1.0"}, "ansible_check_mode": True}, False),
        ({"fleet_now": {"unreachable": True}, "fleet_problem": {"stops": False}}, False),
    ],
)
def test_a_host_that_does_not_serve_the_release_at_the_end_is_found(
    facts: dict[str, Any], is_elsewhere: bool
) -> None:
    fleet = {"app01": {"fleet_version": "0.2.0", **facts}}
    assert filters().fleet_elsewhere(["app01"], fleet) == ["app01"] * is_elsewhere

    fleet["app02"] = {"fleet_problem": {"stops": True}}
    assert filters().fleet_elsewhere(["app01", "app02"], fleet) == []


def test_the_way_back_is_what_the_tool_had_and_otherwise_what_was_seen() -> None:
    looked = {"approved": "0.2.0"}

    assert filters().fleet_before({"from": "0.1.0"}, looked) == "0.1.0"
    assert filters().fleet_before({"unreachable": True}, looked) == "0.2.0"
    assert filters().fleet_before({"from": None}, {"approved": None}) is None
