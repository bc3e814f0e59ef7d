"""Deploys of the real Clojure application, by the real Leiningen, on two real JVMs."""

from __future__ import annotations

from collections.abc import Callable

from clojure_repository import ClojureRepository as Tags
from conftest import Clojure
from little_host import LittleHost

FIRST, SECOND = Tags.FIRST, Tags.SECOND


def test_the_first_deploy_ever_tests_builds_and_promotes(
    new_host: Callable[..., LittleHost], clojure: Clojure
) -> None:
    host = new_host()
    with host.typing(FIRST) as terminal:
        terminal.asked()
        assert host.versions == (None, FIRST)
        terminal.types("yes")
        shown = terminal.ends(0)
    assert "lein test" in shown
    assert "lein uberjar" in shown
    assert host.versions == (FIRST, FIRST)
    assert host.current == f"clojars-web-{FIRST}-standalone.jar"
    status = host.status
    assert status["ok"]
    assert status["approved"] == FIRST
    assert status["next"] is None
