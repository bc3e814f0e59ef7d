"""The role `host` on a machine with a real systemd: the tool, its configuration, setup and check."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet_sandboxes import ETC
from systemd_kit import PYTHON, Kit, bare_machine

pytestmark = [pytest.mark.slow, pytest.mark.any_manager, pytest.mark.timeout(2000)]

COLLECTIONS = "/opt/collections/ansible_collections/clojars"
CONFIG_FILE = "/etc/deploy-clojars.toml"
WHEEL = "deploy_clojars-9.0-py3-none-any.whl"


def wheel_of(program: str, directory: Path) -> Path:
    """A wheel whose program `deploy-clojars` is another one: the tool's own has dependencies."""
    wheel = directory / WHEEL
    files = {
        "nine.py": f"import os, sys\ndef main():\n    os.execv({program!r}, [{program!r}, *sys.argv[1:]])\n",
        "deploy_clojars-9.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: deploy-clojars\nVersion: 9.0\n",
        "deploy_clojars-9.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "deploy_clojars-9.0.dist-info/entry_points.txt": "[console_scripts]\ndeploy-clojars = nine:main\n",
    }  # fmt: skip
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(
            "deploy_clojars-9.0.dist-info/RECORD", "".join(f"{name},,\n" for name in files)
        )
    return wheel


def applied(kit: Kit, *words: str, **variables: object) -> subprocess.CompletedProcess[str]:
    """Applies the role there, by local connection."""
    words = (
        *(
            "env",
            "LC_ALL=C.UTF-8",
            "ANSIBLE_COLLECTIONS_PATH=/opt/collections",
            "ANSIBLE_HOME=/opt/ansible",
        ),
        *(f"{Path(sys.executable).parent}/ansible-playbook", "-i", "localhost,", "-c", "local"),
        *("-e", f"ansible_python_interpreter={sys.executable}", "-e", json.dumps(variables)),
        *words,
        "/opt/host.yml",
    )
    return kit.machine.run(*words, check=False, timeout=900)


@pytest.fixture
def bare() -> Iterator[tuple[Kit, str]]:
    """A host without the tool and its configuration, but with the role; and what the file had."""
    play = [{"hosts": "all", "gather_facts": False, "roles": ["clojars.deploy.host"]}]
    with bare_machine() as kit:
        kit.machine.run("mkdir", "-p", COLLECTIONS)
        kit.machine.run("ln", "-s", str(ETC), f"{COLLECTIONS}/deploy")
        kit.machine.write("/opt/host.yml", json.dumps(play))
        kit.machine.run("mv", "/usr/local/bin/deploy-clojars", "/opt/tool")
        original = kit.machine.run("cat", CONFIG_FILE).stdout
        kit.machine.run("rm", CONFIG_FILE)
        yield kit, original


def test_a_bare_host_is_made_ready_and_twice_changes_nothing(
    bare: tuple[Kit, str], tmp_path: Path
) -> None:
    kit, original = bare
    (kit.root / "opt" / WHEEL).write_bytes(wheel_of("/opt/tool", tmp_path).read_bytes())
    variables = {
        "host_tool": f"/opt/{WHEEL}",
        "host_python": PYTHON,
        "host_packages": [],
        "host_config": tomllib.loads(original),
        "host_check": False,
    }

    checked = applied(kit, "--check", **variables)

    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "what setup would create is shown only once the tool" in checked.stdout
    for name in (CONFIG_FILE, "/usr/local/bin/deploy-clojars", "/opt/deploy-clojars"):
        assert kit.machine.run("test", "-e", name, check=False).returncode == 1, name

    made = applied(kit, **variables)

    assert made.returncode == 0, made.stdout + made.stderr
    written = kit.machine.run("cat", CONFIG_FILE).stdout
    assert tomllib.loads(written) == tomllib.loads(original)
    assert kit.machine.run("systemctl", "is-enabled", "clojars").stdout == "enabled\n"
    assert kit.machine.run("id", "-un", "clojars").stdout == "clojars\n"

    misspelt = applied(kit, host_packages=[], host_config={"keep_relases": 5})

    assert misspelt.returncode == 2
    assert "keep_releases" in misspelt.stdout, misspelt.stdout
    assert kit.machine.run("cat", CONFIG_FILE).stdout == written

    kit.serve()
    again = applied(kit, **{**variables, "host_check": True})

    assert again.returncode == 0, again.stdout + again.stderr
    assert "changed=0" in again.stdout, again.stdout


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"host_config": {"keep_releases": 5}}, "set host_tool, and the role installs it"),
        ({"host_config": "keep_releases=5"}, "host_config must be keys and values, such as"),
        ({"host_setup_options": "--nailgun none"}, "host_setup_options a list, such as"),
    ],
    ids=("no tool", "a string as the configuration", "a string as the options"),
)
def test_what_the_role_cannot_use_is_named_before_anything_is_changed(
    bare: tuple[Kit, str], variables: dict[str, object], message: str
) -> None:
    kit, _ = bare

    failed = applied(kit, **{"host_packages": [], "host_check": False, **variables})

    assert failed.returncode == 2, failed.stdout + failed.stderr
    assert message in " ".join(failed.stdout.split()), failed.stdout
    assert "changed=0" in failed.stdout
    assert kit.machine.run("test", "-e", CONFIG_FILE, check=False).returncode == 1


WRITE = "import json, runpy, sys; print(runpy.run_path(sys.argv[1])['to_toml'](json.load(sys.stdin)), end='')"


def to_toml(keys: dict[str, Any], home: Path) -> str:
    """What the role's filter makes of the keys, or the last line of its error."""
    # Another process: when it is imported, Ansible makes a directory in its home.
    written = subprocess.run(
        [sys.executable, "-c", WRITE, str(ETC / "plugins/filter/toml.py")],
        env={**os.environ, "ANSIBLE_HOME": str(home), "PYTHONIOENCODING": "utf-8"},
        input=json.dumps(keys), capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    return written.stdout or written.stderr.splitlines()[-1]


def test_what_the_filter_writes_is_read_as_it_was(tmp_path: Path) -> None:
    keys = {
        "text": '😀 "\\\n\x7f\x1b ü',
        "limits": {"much": math.inf, "little": -math.inf, "some": 1e-07, "more": 1e22, "one": 1.0},
        "true": True,
        "ü.\x7f": {"deeper": {"list": [1, "a", [], {"b": False}]}},
    }

    assert tomllib.loads(to_toml(keys, tmp_path)) == keys


@pytest.mark.parametrize("flag", [None, ["a", None]])
def test_what_is_not_toml_is_refused_with_its_key(flag: Any, tmp_path: Path) -> None:
    refused = to_toml({"drain": {"flag": flag}}, tmp_path)

    assert refused.endswith("Error: drain.flag: None cannot be written as TOML"), refused
