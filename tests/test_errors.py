"""Every way in which a command can end has its exit status."""

from __future__ import annotations

import signal

import pytest

from deploy_clojars import errors
from deploy_clojars.errors import DeployError, Interrupted, Status


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (errors.DeployError, 1),
        (errors.UsageError, 2),
        (errors.Locked, 3),
        (errors.NotReady, 4),
        (errors.BuildFailed, 5),
        (errors.NotHealthy, 6),
        (errors.Declined, 7),
        (errors.PrimaryDown, 8),
        (errors.HalfDone, 9),
        (errors.Defect, 70),
    ],
)
def test_each_error_has_the_status_of_the_contract(kind: type[DeployError], status: int) -> None:
    assert kind("what happened").status == status


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_a_signal_s_status_is_what_a_shell_would_say(signum: int, status: int) -> None:
    assert Interrupted(signum, signal.Signals(signum).name).status == status


def test_needs_a_person_is_11() -> None:
    assert int(Status.ATTENTION) == 11
