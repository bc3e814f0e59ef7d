"""The role `host` on a machine with a real systemd: the tool, its configuration, setup and check."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from fleet_sandboxes import ETC
from systemd_kit import PYTHON, Kit, bare_machine

pytestmark = [pytest.mark.slow, pytest.mark.any_manager]

COLLECTIONS = "/opt/collections/ansible_collections/clojars"
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
    return kit.machine.run(*words, check=False, timeout=300)


def test_a_bare_host_is_made_ready_and_twice_changes_nothing(tmp_path: Path) -> None:
    play = [{"hosts": "all", "gather_facts": False, "roles": ["clojars.deploy.host"]}]
    with bare_machine() as kit:
        kit.machine.run("mkdir", "-p", COLLECTIONS)
        kit.machine.run("ln", "-s", str(ETC), f"{COLLECTIONS}/deploy")
        kit.machine.write("/opt/host.yml", json.dumps(play))
        kit.machine.run("mv", "/usr/local/bin/deploy-clojars", "/opt/tool")
        original = kit.machine.run("cat", "/etc/deploy-clojars.toml").stdout
        kit.machine.run("rm", "/etc/deploy-clojars.toml")
        (kit.root / "opt" / WHEEL).write_bytes(wheel_of("/opt/tool", tmp_path).read_bytes())
        variables = {
            "host_tool": f"/opt/{WHEEL}",
            "host_python": PYTHON,
            "host_packages": [],
            "host_config": tomllib.loads(original),
            "host_check": False,
        }

        made = applied(kit, **variables)

        assert made.returncode == 0, made.stdout + made.stderr
        written = kit.machine.run("cat", "/etc/deploy-clojars.toml").stdout
        assert tomllib.loads(written) == tomllib.loads(original)
        assert kit.machine.run("systemctl", "is-enabled", "clojars").stdout == "enabled\n"
        assert kit.machine.run("id", "-un", "clojars").stdout == "clojars\n"

        kit.serve()
        again = applied(kit, **{**variables, "host_check": True})

        assert again.returncode == 0, again.stdout + again.stderr
        assert "changed=0" in again.stdout, again.stdout
