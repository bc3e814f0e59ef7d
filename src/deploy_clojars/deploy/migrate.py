"""The migration: the site's own command, run once per release on the live data."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import msgspec

from deploy_clojars import masking
from deploy_clojars.config import When
from deploy_clojars.deploy.build import Builder, missing_programs
from deploy_clojars.errors import DeployError, Interrupted, NotReady, UsageError
from deploy_clojars.host.host import Host
from deploy_clojars.host.journal import History
from deploy_clojars.machine.environment import assignments, why_for_a_shell
from deploy_clojars.machine.processes import RUN_VARIABLE
from deploy_clojars.run.run import Run

# Names of variables whose values must not be shown; `KEY_FILE` is not one.
SECRET_NAME = re.compile(r"PASSW|SECRET|TOKEN|_KEY$", re.IGNORECASE)

CarryOut = Callable[[Run], None]


def is_due(history: History, version: str, *, again: bool) -> bool:
    """Whether the release's migration is to run: `again` if the operator wants it in any case."""
    return again or version not in history.migrated


def migrate(run: Run, when: When | None, carry_out: CarryOut | None = None) -> None:
    """Runs the migration if this is its time and it is due.

    `when` is None where the release is in production already, and any time will do. After the promotion
    a failure or a signal is only a warning, since the release is in production anyway.
    Raises BuildFailed (5), DeployError (1) if the journal cannot be written, Interrupted.
    """
    settings, version = run.host.config.migrate, run.version
    if settings.command is None or when not in (None, settings.when):
        return
    history = run.host.journal.history()
    if not is_due(history, version, again=run.request.migrate):
        if when is not None:
            run.console.say(f"  migrated on {history.migrated[version]}; --migrate does it again")
        return
    try:
        with run.step("migrate", settings.command):
            run.record("migrate", version=version)
            (carry_out or _carry_out)(run)
            run.record("migrated", version=version)
    except DeployError as error:
        was_stopped = isinstance(error, Interrupted)
        hint = "to run the migration again" if was_stopped else "once the cause is fixed, run"
        way_on = f"{hint}: {run.host.command('deploy', version)}"
        error.remedy = "\n".join(filter(None, (error.remedy, way_on)))
        if when != "after":
            raise
        said = [f"  | {line}" for line in error.detail.splitlines()]
        said += [f"  {line}" for line in error.remedy.splitlines()]
        run.console.warn("\n".join([f"not migrated: {error.message}", *said]))


def _carry_out(run: Run) -> None:
    """Runs the command in the home directory, with the application's environment."""
    config = run.host.config
    assert config.migrate.command is not None
    given = of_the_application(run.host)
    for name, value in given.items():
        if SECRET_NAME.search(name):
            masking.hide(value)
    # Not nice, as a build is: while it runs, the data may be locked.
    settings = msgspec.structs.replace(config.build, timeout=config.migrate.timeout, nice=0)
    builder = Builder(settings, run)
    builder.run("the migration", config.migrate.command, Path(config.home), {**given, **facts(run)})


def facts(run: Run) -> dict[str, str]:
    """The variables that say which release it is."""
    assert run.before is not None  # the run has begun
    return {
        "DEPLOY_JAR": str(run.host.releases.path(run.version)),
        "DEPLOY_VERSION": run.version,
        "DEPLOY_APPROVED": run.before.approved or "",
    }


def of_the_application(host: Host) -> dict[str, str]:
    """The variables in `migrate.environment_file`. Raises NotReady (4).

    On Upstart a shell reads the file for the jobs, so a line that it reads differently is refused.
    """
    file = host.config.migrate.environment_file
    if file is None:
        return {}
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise _not_readable(file, why or "") from None
    if "\0" in text:
        raise _not_readable(file, "it is not text")
    if host.config.services.chosen != "systemd":
        for number, line in enumerate(text.splitlines(), 1):
            why = why_for_a_shell(line)
            if why:
                raise NotReady(
                    f"{file}, line {number}: the migration would get another value than a shell reads: "
                    f"{why}",
                    remedy="nothing was changed; write NAME=VALUE so that both read the same",
                )
    found = assignments(text)
    found.pop(RUN_VARIABLE, None)  # the tool finds the migration's processes by its own
    return found


def _not_readable(file: str, why: str) -> NotReady:
    return NotReady(
        f"`migrate.environment_file` {file} cannot be read: {why}", remedy="nothing was changed"
    )


def refuse_what_is_missing(run: Run) -> None:
    """Raises NotReady (4) if the migration could not run, UsageError (2) if there is none to run again."""
    if run.host.config.migrate.command is None and run.request.migrate:
        raise UsageError("--migrate: the configuration has no `migrate.command`")
    refuse_what_cannot_run(run.host)


def refuse_what_cannot_run(host: Host) -> None:
    """Raises NotReady (4) if the migration's program is missing or its environment cannot be read."""
    command = host.config.migrate.command
    if command is None:
        return
    missing = missing_programs(command)
    if missing:
        names = ", ".join(missing)
        raise NotReady(
            f"not on PATH: {names} (needed by `migrate.command`)", remedy="nothing was changed"
        )
    of_the_application(host)
