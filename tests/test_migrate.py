"""`[migrate]`: the site's own command runs once per release, at the one right moment."""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path

import pytest
from clojure_repository import ClojureRepository as Tags
from little_host import LittleHost, wait_for
from systemd_machine import Machine, Systemd, require_systemd

from deploy_clojars.deploy.migrate import is_due
from deploy_clojars.host.journal import Event, history_of
from deploy_clojars.machine.environment import assignments

FIRST, SECOND, THIRD = Tags.FIRST, Tags.SECOND, Tags.THIRD


@pytest.fixture
def host(light_host: LittleHost) -> LittleHost:
    """A host whose migration notes each release that it is run for."""
    with_migration(light_host)
    return light_host


def with_migration(host: LittleHost, command: str = "true", **settings: object) -> None:
    """The command notes the release first, and then does `command`."""
    noted = f'echo "$DEPLOY_VERSION" >> {notes(host)}; {command}'
    lines = [f"command = '''{noted}'''"]
    lines += [f"{key} = {value!r}" for key, value in settings.items()]
    host.write_config(migrate="\n".join(lines))


def notes(host: LittleHost) -> Path:
    return host.directory / "migrated"


def ran_for(host: LittleHost) -> list[str]:
    return notes(host).read_text(encoding="utf-8").split() if notes(host).exists() else []


def journal_has(host: LittleHost) -> list[str]:
    """The releases that the journal has as migrated."""
    return [each["version"] for each in host.events if each["event"] == "migrated"]


def log_of(host: LittleHost) -> str:
    return max((host.deploy / "logs").iterdir()).read_text(encoding="utf-8")


def pids(host: LittleHost) -> tuple[int | None, int | None]:
    return host.pid("primary"), host.pid("backup")


def declined(host: LittleHost, *words: str) -> str:
    with host.typing(*words) as terminal:
        terminal.asked()
        terminal.types("no")
        return terminal.ends(7)


# --- once -----------------------------------------------------------------------------------------


def test_it_runs_between_install_and_flip_with_what_it_needs(light_host: LittleHost) -> None:
    host = light_host
    seen = host.directory / "seen"
    link = '"$(readlink releases/clojars-web-current.jar)"'
    with_migration(host, f"(echo {link}; ls $DEPLOY_JAR; env) > {seen}; echo 3 rows")
    host.environment["DATABASE_URL"] = "postgres://of-the-login-shell"

    host.done(SECOND, "--yes")

    current, jar, *environment = seen.read_text(encoding="utf-8").splitlines()
    assert current == f"clojars-web-{FIRST}-standalone.jar"
    assert jar == str(host.releases / f"clojars-web-{SECOND}-standalone.jar")
    assert {f"DEPLOY_VERSION={SECOND}", f"DEPLOY_APPROVED={FIRST}", f"DEPLOY_JAR={jar}"} <= set(
        environment
    )
    assert not [line for line in environment if line.startswith("DATABASE_URL")]
    assert "\n3 rows\n" in log_of(host)
    events = [(each["event"], each.get("step")) for each in host.events]
    assert events.index(("installed", None)) < events.index(("migrated", None))
    assert events.index(("migrated", None)) < events.index(("flip", None))


def test_a_deploy_repeated_after_a_no_does_not_run_it_again_unless_it_is_told_to(
    host: LittleHost,
) -> None:
    shown = declined(host, SECOND)
    assert f"the data was migrated for {SECOND} on 2" in shown
    assert f"only the code is rolled back, not the data: it was migrated for {SECOND}" in shown

    shown = declined(host, SECOND)
    assert f"the data was migrated for {SECOND} on 2" in shown  # the question says so again
    assert "--migrate does it again" in shown
    assert ran_for(host) == [SECOND]

    host.done(SECOND, "--yes", "--migrate")
    assert ran_for(host) == [SECOND, SECOND]
    host.done(SECOND, "--yes")  # it is in production: nothing to do
    assert ran_for(host) == [SECOND, SECOND]
    host.done(SECOND, "--yes", "--migrate")
    assert ran_for(host) == [SECOND, SECOND, SECOND]


def test_rollback_and_restart_never_run_it(host: LittleHost) -> None:
    host.done(SECOND, "--yes")
    shown = host.done("rollback", FIRST, "--yes").stderr
    assert "only the code is rolled back, not the data" in shown
    host.done("restart", "--yes")
    host.done(SECOND, "--yes")
    assert ran_for(host) == [SECOND]


def test_a_release_that_is_reused_and_one_from_a_jar_are_migrated_too(host: LittleHost) -> None:
    host.write_config()
    declined(host, SECOND)
    with_migration(host)

    shown = host.done(SECOND, "--yes").stderr
    assert "not built again" in shown
    host.done("deploy", THIRD, "--jar", str(host.jar(THIRD)), "--yes")
    assert ran_for(host) == journal_has(host) == [SECOND, THIRD]


def test_a_release_that_was_built_again_is_migrated_again(host: LittleHost) -> None:
    declined(host, SECOND)
    declined(host, SECOND, "--rebuild")
    assert ran_for(host) == [SECOND, SECOND]


def test_it_is_due_until_the_journal_has_it_for_the_release_that_is_there() -> None:
    def due(*names: str, again: bool = False) -> bool:
        events = [Event(event=each, version=SECOND, sha256="0" * 64) for each in names]
        other = Event(event="migrated", version=FIRST)
        return is_due(history_of([other, *events]), SECOND, again=again)

    assert due("install", "installed")
    assert not due("install", "installed", "migrated")
    assert not due("installed", "migrated", "promoted")
    assert due("installed", "migrated", again=True)
    assert due("installed", "migrated", "install")
    assert due("installed", "migrated", "prune", "pruned")
    assert due("installed", "migrated", "migrate")  # again, and not to its end


# --- it fails -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("echo no such table; exit 3", "the migration failed: exit status 3"),
        ("kill -9 $$", "the migration failed: signal 9"),
        ("setsid sleep 1000 & sleep 1000", "the migration took too long: not done within 5 s"),
    ],
)
def test_its_failure_ends_the_deploy_before_anything_that_runs_was_changed(
    light_host: LittleHost, command: str, why: str
) -> None:
    host, before = light_host, pids(light_host)
    # Long enough for a busy machine to start the command.
    with_migration(host, command, timeout=5 if "sleep" in command else 300)

    result = host.run(SECOND, "--yes")

    assert result.returncode == 5, result.stderr
    assert why in result.stderr
    assert ("no such table\n" in result.stderr) == ("table" in command)
    assert f"once the cause is fixed, run: deploy-clojars deploy {SECOND}" in result.stderr
    assert "nothing that runs was changed" in result.stderr
    assert (pids(host), host.current) == (before, f"clojars-web-{FIRST}-standalone.jar")
    assert journal_has(host) == []
    assert host.processes_of_runs() == []
    assert host.status["ok"]

    with_migration(host)
    host.done(SECOND, "--yes")
    assert ran_for(host) == [SECOND, SECOND]


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_and_the_next_deploy_runs_it_again(
    light_host: LittleHost, signum: int, status: int
) -> None:
    host, before = light_host, pids(light_host)
    with_migration(host, "trap '' TERM; setsid sleep 1000 & sleep 1000")
    with host.typing(SECOND) as terminal:
        wait_for(lambda: host.events and host.events[-1]["event"] == "migrate", "it begins")
        wait_for(lambda: len(host.processes_of_runs()) == 3, "all of it runs")
        terminal.kill(signum)
        shown = terminal.ends(status)
    assert f"to run the migration again: deploy-clojars deploy {SECOND}" in shown
    assert "nothing that runs was changed" in shown
    assert journal_has(host) == []
    assert host.processes_of_runs() == []
    assert (pids(host), host.current) == (before, f"clojars-web-{FIRST}-standalone.jar")

    with_migration(host)
    host.done(SECOND, "--yes")
    assert ran_for(host) == [SECOND, SECOND]


def test_after_a_kill_the_next_deploy_ends_what_is_left_of_it_and_runs_it_again(
    light_host: LittleHost,
) -> None:
    host = light_host
    with_migration(host, "setsid sleep 1000 & sleep 1000")
    with host.typing(SECOND) as terminal:
        wait_for(lambda: host.events and host.events[-1]["event"] == "migrate", "it begins")
        wait_for(lambda: len(host.processes_of_runs()) == 3, "all of it runs")
        terminal.kill(signal.SIGKILL)
        terminal.ends(137)
    left = host.processes_of_runs()
    assert left
    assert journal_has(host) == []
    assert host.status["interrupted"]

    with_migration(host)
    host.done(SECOND, "--yes")
    assert not set(left) & set(host.processes_of_runs())
    assert ran_for(host) == [SECOND, SECOND]
    assert host.status["ok"]


# --- after the promotion --------------------------------------------------------------------------


def test_after_the_promotion_it_finds_the_release_in_production(light_host: LittleHost) -> None:
    host = light_host
    seen = host.directory / "seen"
    with_migration(host, f"readlink releases/clojars-web-current.jar > {seen}", when="after")
    assert "the data is migrated after the promotion" in declined(host, SECOND)
    assert ran_for(host) == []

    host.done(SECOND, "--yes")

    assert seen.read_text(encoding="utf-8") == f"clojars-web-{SECOND}-standalone.jar\n"
    assert [each["event"] for each in host.events if each["event"] in ("promoted", "migrated")] == [
        "promoted",
        "migrated",
    ]


def test_after_the_promotion_its_failure_is_a_warning_with_the_command_to_type(
    light_host: LittleHost,
) -> None:
    host = light_host
    with_migration(host, "echo no such table; exit 3", when="after")

    shown = host.done(SECOND, "--yes").stderr
    assert (
        "warning: not migrated: the migration failed: exit status 3\n  | no such table\n" in shown
    )
    assert f"once the cause is fixed, run: deploy-clojars deploy {SECOND}" in shown
    assert host.versions == (SECOND, SECOND)

    result = host.run(SECOND, "--yes")
    assert result.returncode == 5  # all that was left to be done has failed
    with_migration(host, when="after")
    before = pids(host)
    host.done(SECOND, "--yes")
    assert (journal_has(host), pids(host)) == ([SECOND], before)
    assert ran_for(host) == [SECOND] * 3


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 0), (signal.SIGKILL, 137)])
def test_after_the_promotion_a_signal_ends_it_and_the_same_deploy_runs_it_again(
    light_host: LittleHost, signum: int, status: int
) -> None:
    host = light_host
    with_migration(host, "setsid sleep 1000 & sleep 1000", when="after")
    with host.typing(SECOND, "--yes") as terminal:
        wait_for(lambda: host.events and host.events[-1]["event"] == "migrate", "it begins")
        wait_for(lambda: len(host.processes_of_runs()) == 3, "all of it runs")
        terminal.kill(signum)
        shown = terminal.ends(status)
    if signum == signal.SIGTERM:
        assert f"to run the migration again: deploy-clojars deploy {SECOND}" in shown
        assert host.processes_of_runs() == []
    assert host.versions == (SECOND, SECOND)
    assert journal_has(host) == []

    with_migration(host, when="after")
    before = pids(host)
    host.done(SECOND, "--yes")
    assert journal_has(host) == [SECOND]
    assert host.processes_of_runs() == []
    assert (pids(host), host.status["ok"]) == (before, True)


# --- its environment, and what is known before ----------------------------------------------------


def test_it_has_the_applications_environment(light_host: LittleHost) -> None:
    host = light_host
    seen, file = host.directory / "seen", host.directory / "settings"
    file.write_text(
        "# of the jobs\nDATABASE_URL='postgres://app:hunter2secret@db/live'\n"
        'MAIL_URL="smtp://localhost:25"\nAPI_TOKEN=token-of-the-mailer\n',
        encoding="utf-8",
    )
    with_migration(host, f"env > {seen}; echo $API_TOKEN; exit 3", environment_file=str(file))

    result = host.run(SECOND, "--yes")

    assert result.returncode == 5
    environment = set(seen.read_text(encoding="utf-8").splitlines())
    assert {"MAIL_URL=smtp://localhost:25", "API_TOKEN=token-of-the-mailer"} <= environment
    assert "DATABASE_URL=postgres://app:hunter2secret@db/live" in environment
    journal = (host.deploy / "journal.jsonl").read_text(encoding="utf-8")
    assert "token-of-the-mailer" not in result.stderr + journal
    assert "hunter2secret" not in result.stderr + journal + log_of(host)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "cannot be read: No such file or directory"),
        (
            "export DATABASE_URL=x\n",
            "line 1: the migration would get another value than a shell reads: systemd skips a",
        ),
        (
            "A=1\nDATABASE_URL=$HOME/db\n",
            "line 2: the migration would get another value than a shell reads: systemd takes",
        ),
        ("A=\0", "cannot be read: it is not text"),
    ],
)
def test_an_environment_file_that_cannot_be_read_is_refused_before_the_build(
    light_host: LittleHost, text: str | None, why: str
) -> None:
    file = light_host.directory / "settings"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with_migration(light_host, environment_file=str(file))
    result = light_host.run(SECOND, "--yes")
    assert result.returncode == 4, result.stderr
    assert why in result.stderr
    assert "nothing was changed" in result.stderr
    assert not [each for each in light_host.events if each.get("step") == "install"]


def test_a_program_that_is_missing_is_refused_before_the_build(light_host: LittleHost) -> None:
    light_host.write_config(migrate='command = "no-such-program --all"')
    result = light_host.run(SECOND, "--yes")
    assert result.returncode == 4, result.stderr
    assert "not on PATH: no-such-program (needed by `migrate.command`)" in result.stderr
    found = "!!  the migration cannot run: not on PATH: no-such-program (needed by"
    assert found in light_host.run("check").stdout
    assert not [each for each in light_host.events if each.get("step") == "install"]


def test_there_must_be_a_migration_to_run_again(light_host: LittleHost) -> None:
    result = light_host.run(SECOND, "--yes", "--migrate")
    assert result.returncode == 2, result.stderr
    assert "--migrate: the configuration has no `migrate.command`" in result.stderr
    assert light_host.versions == (FIRST, FIRST)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_dry_run_shows_the_command_and_does_not_run_it(light_host: LittleHost, when: str) -> None:
    host = light_host
    file = host.directory / "settings"
    file.write_text("API_TOKEN=token-of-the-mailer\n", encoding="utf-8")
    with_migration(host, "echo $DEPLOY_APPROVED", when=when, environment_file=str(file))

    lines = host.done(SECOND, "--yes", "--dry-run").stdout.splitlines()

    [place] = [number for number, line in enumerate(lines) if "DEPLOY_APPROVED=" in line]
    [flip] = [number for number, line in enumerate(lines) if "mv -T" in line]
    assert (place < flip) == (when == "before")
    assert f"(set -a && . {file} && cd {host.home} && env DEPLOY_JAR=" in lines[place]
    assert f"DEPLOY_VERSION={SECOND} DEPLOY_APPROVED={FIRST} /bin/sh -c " in lines[place]
    assert "token-of-the-mailer" not in "\n".join(lines)
    assert ran_for(host) == []


LINES = {
    "A=b c ": "b c",
    "  A = b": "b",
    "A=": "",
    "A='b c' ": "b c",
    "A='it''s'": "its",
    r'A="b\"c\$d\e"': r'b"c$d\e',
    r"A=b\ c\\d": r"b c\d",
    "A=b\\\nc": "bc",
    "A='b\nA=c'": "b\nA=c",
    "A=b # c": "b # c",
    "A=$HOME": "$HOME",
    "A=b=c": "b=c",
    "A=b\"c\"'d'": "b\"c\"'d'",
    "A='b'c d": "bc d",
    "A='b' \"c\"": "bc",
    "A=b\r": "b",
}


@pytest.mark.parametrize(("line", "value"), LINES.items())
def test_a_value_is_read_as_systemd_reads_it(line: str, value: str) -> None:
    assert assignments(f"# it's\n;B=1\nexport C=1\n{line}\nD=1\n") == {"A": value, "D": "1"}


def test_systemd_itself_reads_these_values_so() -> None:
    require_systemd()
    with tempfile.TemporaryDirectory(prefix="systemd-") as name:
        directory = Path(name)
        settings, seen = directory / "settings", directory / "seen"
        lines = [f"{line.replace('A', f'A{number}', 1)}\n" for number, line in enumerate(LINES)]
        settings.write_bytes("".join(lines).encode())
        with Machine.started(directory / "machine", directory) as machine:
            Systemd(machine, directory).install(
                "reads",
                f"[Service]\nType=oneshot\nEnvironmentFile={settings}\nExecStart=sh -c 'env -0 > {seen}'\n",
            )
            machine.run("systemctl", "start", "reads")
        found = dict(each.split("=", 1) for each in seen.read_text("utf-8").split("\0") if each)
    assert [found[f"A{number}"].replace(f"A{number}", "A") for number in range(len(LINES))] == [
        *LINES.values()
    ]
