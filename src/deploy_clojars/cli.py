"""The command line: click's commands, and the one place that turns errors into an exit status."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import click

from deploy_clojars import __version__, versions
from deploy_clojars.errors import Defect, DeployError, Interrupted, Status, UsageError

# Imported where they are used: `--help` needs click alone.
if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from deploy_clojars.host.host import Host
    from deploy_clojars.run.run import Request, Run
    from deploy_clojars.screen.console import Console


class Command(click.Command):
    """Shows its help to a reader that may have seen enough, as in `--help | head`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except BrokenPipeError:  # click would end with 1
            ctx.exit(0)
        except OSError as error:  # of `--help` and `--version`, which are shown from here
            raise _no_output(error) from None


class Commands(Command, click.Group):
    """Takes a word that is not a command and has a digit in it as the TAG of `deploy`."""

    command_class = Command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.get_command(ctx, args[0]) is not None
        if not known and versions.looks_like_a_version(args[0]):
            args = ["deploy", *args]
        try:
            name, command, rest = super().resolve_command(ctx, args)
        except click.UsageError as error:
            if args[0].startswith("-"):
                raise
            hint = f"A tag without a digit is deployed by: deploy-clojars deploy {args[0]}"
            raise click.UsageError(f"{error.format_message()}\n{hint}", ctx) from None
        ctx.obj.command = name
        return name, command, rest

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """The commands and, when something is typed, the tags that begin so."""
        from deploy_clojars import completion

        tags = completion.tags(ctx, incomplete) if incomplete else []
        bare = [tag for tag in tags if versions.looks_like_a_version(tag.value)]
        return [*super().shell_complete(ctx, incomplete), *bare]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.obj = ctx.obj or Settings()
        return super().parse_args(ctx, args)


class Settings:
    """The options that work before and after the subcommand."""

    def __init__(self) -> None:
        self.command: str | None = None
        self.config_file: str | None = None
        self.verbose = False
        self.quiet = False
        # What `--json` reports on.
        self.as_json = False
        self.request: Request | None = None
        self.run: Run | None = None
        self.dry_run = False

    def host(self, *, named: bool = False) -> Host:
        """The host that the configuration describes. Raises UsageError (2).

        `named`: the commands that are printed name its file also if the environment chose it, for
        those of another user, who has no such variable.
        """
        from deploy_clojars import config
        from deploy_clojars.host.host import Host

        words: tuple[str, ...] = ("deploy-clojars",)
        file = config.file_named(self.config_file)
        by_variable = named and file is not None and file != config.DEFAULT_FILE
        if file is not None and (self.config_file is not None or by_variable):
            # Absolute: the commands that are printed may be typed elsewhere.
            words = (*words, "-c", os.path.abspath(file))
        return Host(config.load(file), words, file)

    def console(self) -> Console:
        """Where progress goes."""
        from deploy_clojars.screen.console import Console

        return Console(verbose=self.verbose, quiet=self.quiet)


def _set(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(ctx: click.Context, _: click.Parameter, value: Any) -> None:
        if value or value == "":
            setattr(ctx.find_object(Settings), name, value)

    return callback


def _offers(what: str) -> Callable[..., list[CompletionItem[str]]]:
    """What a press of TAB offers for a parameter, by the name of completion's function."""

    def offered(
        ctx: click.Context, _: click.Parameter, incomplete: str
    ) -> list[CompletionItem[str]]:
        from deploy_clojars import completion

        items: list[CompletionItem[str]] = getattr(completion, what)(ctx, incomplete)
        return items

    return offered


def common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that work before and after the subcommand."""
    for option in (
        click.option("-q", "--quiet", is_flag=True, expose_value=False, callback=_set("quiet"),
                     help="Show only warnings, questions and errors."),
        click.option("-v", "--verbose", is_flag=True, expose_value=False, callback=_set("verbose"),
                     help="Show the output of the tests and the build as they run."),
        click.option("-c", "--config", "config_file", metavar="FILE", expose_value=False,
                     callback=_set("config_file"), shell_complete=_offers("files"),
                     help="The configuration file (default: $DEPLOY_CLOJARS_CONFIG, "
                     "then /etc/deploy-clojars.toml if it exists)."),
    ):  # fmt: skip
        command = option(command)
    return command


def count_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of commands that list the newest first."""
    for option in (
        click.option("--all", "show_all", is_flag=True, help="Show all."),
        click.option("-n", "count", metavar="NUMBER", type=click.IntRange(min=1),
                     help="Show the newest NUMBER (default: 20)."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    ):  # fmt: skip
        command = option(command)
    return command


def _at_most(count: int | None, show_all: bool) -> int | None:
    """How many to show; None: all. Raises UsageError (2)."""
    if show_all and count is not None:
        raise UsageError("-n and --all cannot be used together")
    return None if show_all else count or 20


dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Print the commands it would run; change nothing."
)
json_option = click.option(
    "--json", is_flag=True, expose_value=False, callback=_set("as_json"),
    help="Print the outcome as JSON, even if the command fails.",
)  # fmt: skip
yes_option = click.option("--yes", is_flag=True, help="Skip the confirmation.")
rebuild_option = click.option("--rebuild", is_flag=True,
              help="If the release exists, replace it: build it again, fetch it again, or take the jar; "
              "refused if it was ever promoted.")  # fmt: skip
jar_option = click.option("--jar", metavar="FILE", shell_complete=_offers("files"),
              help="Take this jar, which was built elsewhere, as the release: no git, no tests, no "
              "build. `-` is standard input; a question is then asked on the terminal.")  # fmt: skip
sha256_option = click.option(
    "--sha256", metavar="HEX", help="Refuse the jar unless this is its SHA-256."
)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@common_options
@click.version_option(__version__, prog_name="deploy-clojars")
def group() -> None:
    """Put a release of clojars.org into production, and back.

    `deploy-clojars TAG` is `deploy-clojars deploy TAG`.
    """


@group.command()
@click.argument("tag", shell_complete=_offers("tags"))
@yes_option
@click.option("--force", is_flag=True,
              help="Restart even the only instance that serves, and continue if the drain does not end in "
              "time or its flag cannot be set. Requests are then lost.")  # fmt: skip
@rebuild_option
@click.option("--if-current", "if_current", metavar="VERSION", shell_complete=_offers("releases"),
              help="Refuse unless VERSION (or TAG itself) is current: somebody else may have deployed in the "
              "meantime. An empty VERSION means that no release may be current.")  # fmt: skip
@click.option("--migrate", is_flag=True,
              help="Run migrate.command even if it has run for this release.")  # fmt: skip
@jar_option
@sha256_option
@dry_run_option
@json_option
@common_options
@click.pass_obj
def deploy(settings: Settings, tag: str, yes: bool, force: bool, rebuild: bool,
           if_current: str | None, migrate: bool, jar: str | None, sha256: str | None, dry_run: bool) -> None:  # fmt: skip
    """Put the release TAG into production.

    Tests, builds and installs it, tries it on the backup, asks, and promotes it.
    """
    from deploy_clojars.deploy import pipeline, source
    from deploy_clojars.run.run import Request

    version = versions.checked(tag)
    expected = versions.checked(if_current) if if_current else if_current
    named, digest = source.jar_and_checksum(jar, sha256, asks=not (yes or dry_run))
    request = Request("deploy", version, yes=yes, force=force, rebuild=rebuild, if_current=expected,
                      jar=named, sha256=digest, migrate=migrate)  # fmt: skip
    _carry_out(settings, pipeline.deploy, request, dry_run)


@group.command()
@click.argument("version", shell_complete=_offers("tags"))
@rebuild_option
@jar_option
@sha256_option
@dry_run_option
@json_option
@common_options
@click.pass_obj
def install(settings: Settings, version: str, rebuild: bool, jar: str | None, sha256: str | None,
            dry_run: bool) -> None:  # fmt: skip
    """Install the release VERSION without deploying it.

    Tests and builds it, or takes the jar. Changes nothing that runs, and asks nothing. A later
    deploy of VERSION uses it.
    """
    from deploy_clojars.commands import install as command
    from deploy_clojars.deploy import source
    from deploy_clojars.run.run import Request

    checked = versions.checked(version)
    named, digest = source.jar_and_checksum(jar, sha256, asks=False)
    request = Request("install", checked, yes=True, rebuild=rebuild, jar=named, sha256=digest)
    _carry_out(settings, command.install, request, dry_run)


@group.command()
@click.argument("version", required=False, shell_complete=_offers("releases"))
@yes_option
@click.option(
    "-m",
    "why",
    metavar="WHY",
    help="Why; kept in the journal and shown at the next deploy of that release.",
)
@dry_run_option
@json_option
@common_options
@click.pass_obj
def rollback(
    settings: Settings, version: str | None, yes: bool, why: str | None, dry_run: bool
) -> None:
    """Go back to the release VERSION.

    Without VERSION: to the approved one if anything else is current or runs, otherwise to the
    previous one.
    """
    from deploy_clojars.commands import rollback as command
    from deploy_clojars.run.run import Request

    checked = None if version is None else versions.checked(version)
    request = Request("rollback", checked, yes=yes, why=why)
    _carry_out(settings, command.rollback, request, dry_run)


@group.command()
@yes_option
@click.option("--force", is_flag=True,
              help="Restart the second instance even if the first does not come up.")  # fmt: skip
@dry_run_option
@json_option
@common_options
@click.pass_obj
def restart(settings: Settings, yes: bool, force: bool, dry_run: bool) -> None:
    """Stop and start both instances, one after the other.

    They stay on the same release.
    """
    from deploy_clojars.commands import restart as command
    from deploy_clojars.run.run import Request

    _carry_out(settings, command.restart_both, Request("restart", yes=yes, force=force), dry_run)


@group.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--watch", is_flag=True, help="Refresh every second until Ctrl-C.")
@common_options
@click.pass_obj
def status(settings: Settings, as_json: bool, watch: bool) -> None:
    """Show what runs where and what to type next. Exit status 0 if all is well, else 11.

    With -q: one line, or none if all is well.
    """
    if watch and as_json:
        raise UsageError("--watch and --json cannot be used together")
    if watch:
        from deploy_clojars.commands.watch import watch as watch_status

        watch_status(settings.host())
        return
    from deploy_clojars.commands import status

    report = status.report(settings.host())
    if as_json:
        _show_json(status.as_json(report))
    elif settings.quiet:
        _show_result(status.as_one_line(report), status.coloured)
    else:
        _show_result(status.as_text(report), status.coloured)
    sys.exit(Status.DONE if report.ok else Status.ATTENTION)


@group.command()
@count_option
@common_options
@click.pass_obj
def releases(settings: Settings, count: int | None, show_all: bool, as_json: bool) -> None:
    """List the newest releases and all that are in use."""
    from deploy_clojars.commands import releases as listing

    found = listing.listing(settings.host(), _at_most(count, show_all))
    _show_list(listing, found, as_json)


@group.command()
@count_option
@common_options
@click.pass_obj
def history(settings: Settings, count: int | None, show_all: bool, as_json: bool) -> None:
    """List the last runs, newest first.

    Who, when, what, how long, how it ended.
    """
    from deploy_clojars.commands import history

    runs = history.recent_runs(settings.host(), _at_most(count, show_all))
    _show_list(history, runs, as_json)


@group.command()
@common_options
@click.pass_obj
def prune(settings: Settings) -> None:
    """Remove old releases.

    `keep_releases` in the configuration sets how many to keep.
    """
    from deploy_clojars.deploy.prune import prune_releases

    prune_releases(settings.host(), settings.console())


@group.command()
@common_options
@click.pass_obj
def check(settings: Settings) -> None:
    """Check whether this host is ready and say what to fix. Exit status 0 if it is, else 11."""
    from deploy_clojars import checks

    found = checks.findings(settings.host(named=True))
    _show_result(checks.as_text(found, quiet=settings.quiet))
    sys.exit(Status.ATTENTION if any(each.wrong for each in found) else Status.DONE)


@group.command()
@click.option("--root", metavar="DIR", help="Write below DIR instead of /; needs no root.")
@click.option(
    "--user", metavar="NAME", help="The production user (default: the last part of its home)."
)
@click.option(
    "--nailgun",
    type=click.Choice(["nginx", "balance", "none"]),
    help="What serves the nailgun port (default: what does now, or nginx if it has the stream module).",
)
@click.option("--dry-run", is_flag=True, help="Print what would be done; change nothing.")
@common_options
@click.pass_obj
def setup(settings: Settings, root: str | None, user: str | None,
          nailgun: Literal["nginx", "balance", "none"] | None, dry_run: bool) -> None:  # fmt: skip
    """Create the user, directories and files that a host needs. Overwrites nothing."""
    from pathlib import Path

    from deploy_clojars.setup.setup import setup

    if root == "":
        raise UsageError("--root needs a directory")
    host = settings.host(named=True)
    lost: list[DeployError] = []

    def say(line: str) -> None:
        try:
            _show_result(line)
        except DeployError as error:
            lost.append(error)  # a half-made host must not stay so because nobody reads the output

    setup(
        host.config, host.words, say, root=None if root is None else Path(root).absolute(),
        user=user, nailgun=nailgun, dry_run=dry_run, quiet=settings.quiet,
    )  # fmt: skip
    if lost:
        raise lost[0]


@group.command()
@click.argument("directory", metavar="DIR", shell_complete=_offers("directories"))
@click.option("--systemd", is_flag=True,
              help="Run it under your own systemd (systemctl --user) instead of supervisord.")  # fmt: skip
@click.option("--stop", is_flag=True, help="Stop everything that runs in DIR.")
@common_options
def sandbox(directory: str, systemd: bool, stop: bool) -> None:
    """Create a small clojars.org in DIR, or start the one there.

    It is for trying this tool out.
    """
    from pathlib import Path

    from deploy_clojars import sandbox

    if stop:
        for line in sandbox.stop(Path(directory)):
            _show_result(line)
    else:
        _show_result(sandbox.as_text(sandbox.start(Path(directory), systemd=systemd)))


@group.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@common_options
def completion(shell: str) -> None:
    """Print the shell completion script.

    It completes commands, options, tags and releases.

    \b
    bash: deploy-clojars completion bash > /etc/bash_completion.d/deploy-clojars
    zsh:  deploy-clojars completion zsh > /usr/local/share/zsh/site-functions/_deploy-clojars
    fish: deploy-clojars completion fish > /etc/fish/completions/deploy-clojars.fish
    """
    from deploy_clojars import completion

    _show_result(completion.script(shell, group))


versions.command_names.update(group.commands)


def _carry_out(
    settings: Settings, command: Callable[[Run], None], request: Request, dry_run: bool
) -> None:
    """Runs a command that changes the host, or prints what it would do. Raises DeployError."""
    from deploy_clojars.commands import outcome  # noqa: F401 # an upgrade during the run does no harm
    from deploy_clojars.deploy import ask
    from deploy_clojars.deploy.resting import backup_rests_afterwards
    from deploy_clojars.run.run import started

    settings.request, settings.dry_run = request, dry_run
    if dry_run:
        from deploy_clojars.commands.dry_run import rehearsal, rehearse

        settings.run = rehearsed = rehearsal(settings.host(), request)
        lines = rehearse(rehearsed, command)
        if settings.as_json:
            settings.console().say(lines)
        else:
            _show_result(lines)
        return
    ask.require_an_answer(request.yes)
    with started(settings.host(), settings.console(), request) as run, backup_rests_afterwards(run):
        settings.run = run
        command(run)


def _show_outcome(settings: Settings, error: DeployError | None) -> None:
    """Writes how the command has ended to standard output. The exit status is decided already."""
    from deploy_clojars.commands import outcome

    ended = outcome.outcome_of(settings.run, settings.request, error, dry_run=settings.dry_run)
    try:
        _show_json(outcome.as_json(ended))
    except DeployError as lost:
        _show(lost)


def _show_result(text: str, coloured: Callable[[str], str] = str) -> None:
    """Writes text to standard output, `coloured` where that is a terminal. Raises DeployError (1)."""
    from deploy_clojars.screen import tables
    from deploy_clojars.screen.text import printable

    if text:
        text = printable(text)
        _write(coloured(text) if tables.can_be_coloured() else text)


def _show_list(command: Any, found: Any, as_json: bool) -> None:
    """Writes what `releases` or `history` have found. Raises DeployError (1)."""
    from deploy_clojars.screen import tables

    if as_json:
        _show_json(command.as_json(found))
    else:
        _show_result(command.as_text(found), tables.coloured)


def _show_json(document: str) -> None:
    from deploy_clojars.screen.text import printable_json

    _write(printable_json(document))


def _write(text: str) -> None:
    """Writes to standard output, whatever its encoding. Raises DeployError (1)."""
    try:
        click.echo(text.encode(sys.stdout.encoding or "utf-8", "backslashreplace"))
    except BrokenPipeError:
        pass  # `status | head` has seen enough
    except OSError as error:
        raise _no_output(error) from None


def _no_output(error: OSError) -> DeployError:
    return DeployError(f"standard output cannot be written: {error.strerror}")


def main() -> None:
    """The program. Ends with the exit status of the contract."""
    settings = Settings()
    status: Any = Status.DONE
    ended: DeployError | None = None
    try:
        # What a run makes lives as long as it does: with Python's own 700 the collector looks again
        # and again, and for nothing, through the modules that are being imported.
        gc.set_threshold(50_000)
        _open_what_is_closed()
        status = group.main(standalone_mode=False, obj=settings)
    except click.ClickException as error:
        _show_usage_error(error)
        ended = UsageError(error.format_message())
    except SystemExit as end:  # of `status` and `check`
        status = end.code
    except (click.Abort, KeyboardInterrupt):
        ended = Interrupted(signal.SIGINT, "SIGINT")
    except DeployError as error:
        _show(error)
        ended = error
    except Exception as error:  # noqa: BLE001 # whatever it is, the operator gets a line
        ended = _defect(error, settings.command)
    if settings.as_json:
        _show_outcome(settings, ended)
    _leave(int(ended.status if ended is not None else status or 0))


def _open_what_is_closed() -> None:
    """Standard streams that the caller closed: no file that is opened later may take their place."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            while os.open(os.devnull, os.O_RDWR) < descriptor:
                pass
            setattr(sys, name, open(descriptor, mode, closefd=False))  # noqa: SIM115 # for good


def _show_usage_error(error: click.ClickException) -> None:
    """Shows what is wrong with the command line, as click says it."""
    import io

    from deploy_clojars.screen.text import printable

    shown = io.StringIO()
    error.show(shown)
    click.echo(printable(shown.getvalue()), err=True, nl=False)


def _show(error: DeployError) -> None:
    from deploy_clojars.screen.console import Console

    Console().error(error)


def _defect(error: Exception, command: str | None) -> Defect:
    """Shows and returns a defect outside a run, where no log takes the traceback."""
    import traceback

    from deploy_clojars.screen.text import printable

    click.echo(printable(traceback.format_exc()), err=True)
    remedy = "nothing was changed; what runs where: deploy-clojars status"
    if command in ("setup", "sandbox"):  # the two that change something without a run
        remedy = f"{command} may be half done; it can be run again"
    defect = Defect(f"a defect of deploy-clojars: {error!r}", remedy=remedy)
    _show(defect)
    return defect


def _leave(status: int) -> None:
    """Ends the process; nothing changes the exit status any more.

    Neither a terminal or pipe that is gone nor a Ctrl-C in the last milliseconds.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    # Else the interpreter looks through all that is alive once more, which is 30 ms of a deploy.
    gc.freeze()
    sys.exit(status)
