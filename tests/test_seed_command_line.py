"""`sudo -iu clojars deploy-clojars TAG`, to the letter, on a machine that is thrown away."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from clojure_repository import ClojureRepository as Tags
from conftest import Clojure
from private_machine import in_private_machine
from seed_machine import MANAGER
from systemd_machine import require_systemd

pytestmark = [pytest.mark.slow, pytest.mark.long]

PRIVATE = Path(__file__).parent / "private"


def of_the_real_machine() -> dict[str, tuple[int, bytes]]:
    """What `setup` and the tests would change if they reached it."""
    files = [Path("/etc/passwd"), Path("/etc/group"), Path("/etc/shadow"), Path("/etc/sudoers")]
    directories = ("/etc", "/etc/sudoers.d", "/etc/init", "/home", "/dev/log", "/usr/local/bin",
                   "/usr/sbin", "/var/www", "/var/log", "/etc/nginx/sites-enabled")  # fmt: skip
    found = {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
    for name in directories:
        path = Path(name)
        names = "\n".join(sorted(each.name for each in path.iterdir())) if path.is_dir() else ""
        found[name] = (int(path.exists()), names.encode())
    return found


# Two builds and a dozen starts of JVMs, beside whatever else is tested.
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("manager", ["upstart", "systemd"])
@pytest.mark.parametrize("file", ["seed.py", "hang_up.py"])
def test_the_seeds_command_line(file: str, manager: str, tmp_path: Path, clojure: Clojure) -> None:
    if manager == "systemd":
        require_systemd()
    (tmp_path / "jars").mkdir()
    for tag in (Tags.SECOND, Tags.THROWS_AT_START) if file == "seed.py" else ():
        shutil.copy(clojure.jar(tag), tmp_path / "jars")
    before = of_the_real_machine()
    in_private_machine(PRIVATE / file, tmp_path, **{MANAGER: manager})
    assert of_the_real_machine() == before
