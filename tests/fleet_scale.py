"""Many light hosts by the collection's playbooks, with what it takes: `python -m fleet_scale 40 [DIRECTORY]`.

The directory gets all that ansible-playbook has printed, a file for each run.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

from clojure_repository import ClojureRepository, make_repository
from fleet_sandboxes import Control, Ended, Fleet, fleet_of

FIRST, SECOND, THIRD = ClojureRepository.FIRST, ClojureRepository.SECOND, ClojureRepository.THIRD


def played(fleet: Fleet, what: str, version: str, status: int) -> Ended:
    """Deploys, and prints the table's ends and what it took."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    ended = fleet.play("deploy", version, fleet_lock_wait=60)
    seconds = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{what}: status {ended.status}, {seconds:.0f} s, {cpu:.0f} s of CPU, hosts included", flush=True)  # fmt: skip
    for name, line in ended.table.items():
        if name in (min(fleet.hosts), max(fleet.hosts)):
            print(f"  {name} {line}", flush=True)
    if len(sys.argv) > 2:
        file = Path(sys.argv[2]) / f"{what.replace(' ', '-')}.txt"
        file.write_text(ended.output, encoding="utf-8")
    assert ended.status == status, ended.output
    return ended


def main() -> None:
    """A release that is stopped at the first host, one that goes through, again, and one that goes back."""
    count = int(sys.argv[1])
    with tempfile.TemporaryDirectory(prefix="fleet-") as name:
        directory = Path(name)
        repository = make_repository(directory / "repository")
        control = Control(directory / "control")
        with fleet_of(count, directory / "hosts", control, repository) as fleet:
            for host in fleet.hosts.values():
                host.does_not_start(SECOND, "backup")
            played(fleet, "a release that does not start", SECOND, 2)
            assert fleet.touched == ["app01"]
            played(fleet, "a good one", THIRD, 0)
            assert fleet.releases == [THIRD] * count
            assert played(fleet, "the same again", THIRD, 0).changed == 0
            for host in fleet.hosts.values():
                (host.releases / f"clojars-web-{SECOND}-standalone.jar.refused").unlink()
            fleet.hosts[max(fleet.hosts)].does_not_start(SECOND, "primary")
            played(fleet, "one that fails on the last host", SECOND, 2)
            assert fleet.releases == [THIRD] * count
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    print(f"the largest process had {peak} MB")


if __name__ == "__main__":
    main()
