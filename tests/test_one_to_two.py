"""The host's page, "From one instance to two", followed to the letter under load, and back."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from conftest import Clojure
from private_machine import with_private_mounts
from programs import require_program
from systemd_machine import require_systemd

from deploy_clojars.config import Config, Services
from deploy_clojars.setup.files import render, values_of

PAGE = Path(__file__).parents[1] / "docs/host.md"


def test_what_the_chapter_gives_nginx_is_what_setup_would() -> None:
    of_setup = render("site", values_of(Config(services=Services(manager="systemd"))))
    known = {line.strip() for line in of_setup.splitlines()}
    known.add("include /etc/nginx/clojars-drain.conf;")  # which has what stands there in setup's
    files = re.findall(r"<<'END'\n(.*?)^END$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert len(files) == 2
    for line in "".join(files).splitlines():
        assert line.strip() in known, line


@pytest.mark.slow
@pytest.mark.timeout(600)  # ten starts of a JVM
def test_from_one_instance_to_two_and_back(
    tmp_path: Path, clojure: Clojure, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_systemd()
    require_program("nginx", "sudo", "visudo", "curl", "pgrep", "java")
    jars = tmp_path / "jars"
    jars.mkdir()
    for tag in (clojure.repository.FIRST, clojure.repository.SECOND):
        shutil.copy(clojure.jar(tag), jars / f"clojars-web-{tag}-standalone.jar")
    shutil.copytree(clojure.repository.directory, jars / "clojars-web")
    monkeypatch.setenv("DEPLOY_CLOJARS_JARS", str(jars))
    file = Path(__file__).parent / "private" / "one_to_two.py"
    with_private_mounts(file, tmp_path)
