"""The backup of a host with memory for one JVM: it runs only during a run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager

from deploy_clojars.config import BACKUP
from deploy_clojars.deploy import drain
from deploy_clojars.deploy.steps import stop
from deploy_clojars.errors import DeployError
from deploy_clojars.host.journal import INSTALL
from deploy_clojars.run.run import Run


@contextmanager
def backup_rests_afterwards(run: Run) -> Iterator[None]:
    """After the block, however it ends, the backup is stopped if it should rest."""
    try:
        yield
    finally:
        needs_it = run.request.command != INSTALL  # which starts nothing, and stops nothing
        if run.host.config.instances.backup.only_while_deploying and run.has_begun and needs_it:
            _have_the_backup_rest(run)


def _have_the_backup_rest(run: Run) -> None:
    """Stops the backup unless something still needs it. That it fails is only a warning.

    No signal stops it: what was asked has been done, or put back.
    """
    job = run.host.instances[BACKUP].job
    try:
        with run.uninterruptible():
            if _should_rest(run):
                drain.drain_backup_before_its_stop(run)
                stop(run, BACKUP)
    except Exception as error:  # noqa: BLE001 # it may run as well as not
        why = error.message if isinstance(error, DeployError) else repr(error)
        command = shlex.join(run.host.services.words("stop", job))
        run.console.warn(f"{why}; {job} was not stopped; to stop it later: {command}")


def _should_rest(run: Run) -> bool:
    """Whether the backup runs though the primary serves what is approved and current."""
    look = run.host.look()
    approved = look.approved
    if approved is None or look.current.version != approved:
        return False
    return look.backup_should_rest(approved)
