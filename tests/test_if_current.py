"""`deploy TAG --if-current VERSION`: two operators."""

from __future__ import annotations

import os
import signal

from clojure_repository import ClojureRepository as Tags
from little_host import LittleHost

FIRST, SECOND, THIRD = Tags.FIRST, Tags.SECOND, Tags.THIRD


def test_a_deploy_is_refused_if_somebody_else_has_deployed_meanwhile(
    light_host: LittleHost,
) -> None:
    host = light_host
    host.have(SECOND)
    host.done("rollback", SECOND, "--yes")
    pids = host.pid("primary"), host.pid("backup")

    for expected, named in ((FIRST, FIRST), ("", "none")):
        words = (THIRD, "--if-current", expected, "--yes")
        for more in ([], ["--dry-run"], ["--force"]):
            refused = host.run(*words, *more)
            assert refused.returncode == 1, refused.stderr
            error = f"error: current is {SECOND}, but --if-current expects {named}\n"
            assert error in refused.stderr
            assert "deploy-clojars history" in refused.stderr
    assert (host.pid("primary"), host.pid("backup")) == pids
    assert host.events[-1]["command"] == "rollback"  # what is refused is not in the journal

    refused = host.run(THIRD, "--if-current", "a/b", "--yes")
    assert refused.returncode == 2
    assert "'a/b' is not a version" in refused.stderr

    with host.typing(THIRD, "--if-current", SECOND) as terminal:
        terminal.asked()
        os.kill(terminal.pid, signal.SIGKILL)
        terminal.ends(137)
    # Current is 0.2.1 by now; the same command reverts that, and begins again.
    again = host.done(THIRD, "--if-current", SECOND, "--yes")
    assert f"reverted: {SECOND} is current" in again.stderr
    assert host.versions == (THIRD, THIRD)
    again = host.done(THIRD, "--if-current", SECOND, "--yes")
    assert "nothing to do" in again.stderr


def test_a_first_deploy_may_expect_that_nothing_is_current(light_host: LittleHost) -> None:
    host = light_host
    for job in (host.backup, host.primary):
        host.control("stop", job)
    host.link.unlink()
    refused = host.run(SECOND, "--if-current", FIRST, "--yes")
    assert refused.returncode == 1
    assert f"error: current is absent, but --if-current expects {FIRST}\n" in refused.stderr
    host.done(SECOND, "--if-current", "", "--yes")
    assert host.versions == (SECOND, SECOND)
