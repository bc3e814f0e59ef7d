"""Not one request lost: load on the real site while the real application's instances restart."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from conftest import Clojure
from little_host import ServiceManager
from load.account import account_of
from load.generator import Request
from load.site import FIRST, SECOND, Stop, site_of
from systemd_machine import INSIDE_SYSTEMD

# Of the load of `make load`: other tests run beside this one.
SCALE = 0.4


# An application that dies at once forgives nothing; `make load` has all of it for both.
ABRUPT = pytest.param("abrupt", [(SECOND,), ("rollback", FIRST), ("restart",)], id="abrupt")
GRACEFUL = pytest.param("graceful", [(SECOND,)], id="graceful")
ON_SYSTEMD = pytest.param("abrupt", [(SECOND,), ("restart",)], id="systemd")


@pytest.mark.jvm
@pytest.mark.parametrize(
    ("stop", "commands"), [ON_SYSTEMD] if INSIDE_SYSTEMD in os.environ else [ABRUPT, GRACEFUL]
)
def test_no_request_is_lost_over_a_deploy_a_rollback_and_a_restart(
    tmp_path: Path,
    upstart: ServiceManager,
    clojure: Clojure,
    stop: Stop,
    commands: list[tuple[str, ...]],
) -> None:
    # Each begins when the one before has just ended: nginx must have forgotten nothing ill of anyone.
    with site_of(
        tmp_path / "site", upstart, clojure.repository, clojure.jar, stop, settle="0.5"
    ) as site:
        with site.under_load(SCALE) as load:
            for words in commands:
                site.host.done(*words, "--yes")
        account = load.account()
        assert account.is_clean, account
        assert account.requests > 300 * len(commands)
        assert {each.kind for each in load.requests} == {
            "GET", "GET, new connection", "GET, slow", "POST upload", "PUT upload",
        }  # fmt: skip
        assert site.host.status["ok"]


def test_the_account_knows_what_was_lost_and_what_was_written_twice() -> None:
    def sent(name: str, method: str, failure: str = "") -> Request:
        return Request(method, method, name, 0.0, 1.5, failure)

    account = account_of(
        [
            sent("a", "POST"),
            sent("b", "PUT"),
            sent("c", "POST", "503"),
            sent("d", "GET"),
            sent("e", "GET", "ServerDisconnectedError"),
            sent("f", "POST"),
        ],
        Counter({"a": 1, "b": 2}),
    )
    assert account.requests == 6
    assert account.failed == {"POST 503": 1, "GET ServerDisconnectedError": 1}
    assert account.doubled == {"PUT": 1}
    assert account.lost == 1
    assert account.longest == 1.5
    assert not account.is_clean
