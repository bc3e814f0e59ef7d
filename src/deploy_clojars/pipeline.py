"""Deploy and rollback, from top to bottom as they happen.

Everything that they need is imported here, before the lock is taken: an upgrade of the package
while the question is open must not break the revert.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from deploy_clojars import (
    build,
    checkout,
    decisions,
    drain,
    preflight,
    prune,
    releases,
    signals,
    system_log,
)
from deploy_clojars.build import Builder
from deploy_clojars.checkout import Commits, Mirror
from deploy_clojars.console import Console
from deploy_clojars.errors import (
    Declined,
    DeployError,
    HalfDone,
    Interrupted,
    NotHealthy,
    NotReady,
    PrimaryDown,
    UsageError,
)
from deploy_clojars.host import Host, Look
from deploy_clojars.instances import BACKUP, PRIMARY, Observation, Role
from deploy_clojars.run import Run, make_directory, started, where_the_host_stands
from deploy_clojars.tables import decimal

# For an instance that runs the target of a revert or a rollback and does not answer; in seconds.
PATIENCE = 15.0

DATA_STAYS = "data stays as it is: only code is put back"


def deploy(host: Host, console: Console, version: str, *, yes: bool, force: bool) -> None:
    """Puts the tag `version` into production. Raises DeployError with the exit status."""
    require_an_answer(yes)
    with started(host, console, "deploy", version) as run:
        drain.clear_stale_flag(run)
        revert_a_run_that_was_cut_off(run)
        look, cost = preflight.of_deploy(host, version, force=force)
        announce(run, look, cost)
        run.begin(look)
        obtain_release(run, version)
        if is_done_already(run, version):
            return
        wait_for_requests_in_backup(run, version, force=force)
        run.state_on_failure = ""
        with reverted_on_failure(run, look.approved, version):
            flip(run, version)
            backup = bring_up_backup(run, version, force=force)
            ask_to_promote(run, version, yes=yes)
            refuse_a_backup_that_failed_meanwhile(run, version, backup)
            promote(run, version, backup, force=force)
        prune.after_promotion(run)


def rollback(
    host: Host, console: Console, version: str | None, *, yes: bool, why: str | None
) -> None:
    """Puts a release that is there back into production. Raises DeployError."""
    require_an_answer(yes)
    with started(host, console, "rollback", version) as run:
        run.reason = why
        drain.clear_stale_flag(run)
        look = preflight.ready_to_restart(host)
        refuse_an_unreadable_journal(console, look, version)
        target = run.version = target_of_rollback(host, look, version)
        if look.history.unfinished is None and is_settled_on(look, target):
            if host.nginx.flag_is_set:
                raise DeployError(f"the drain flag {host.nginx.flag} is still there")
            console.say(f"{target} is current, approved and runs on both instances already")
            return
        restart_failed = host.situation(look, locked=False).failed_restart
        ask_to_roll_back(run, look, target, yes=yes)
        if host.way_back(look) == look.approved:
            look = revert_a_run_that_was_cut_off(run) or look
        signals.check()
        run.journal_may_fail = True
        run.begin(look)
        run.state_on_failure = ""
        with signals.seen_through(seen_through_notice(run, restarts=2)):
            roll_back(run, look, target, why)
        if restart_failed:
            # Only what was down has the new settings now.
            console.warn(f"the restart before this is not done: {host.command('restart')}")


def restart_both(host: Host, console: Console, *, yes: bool, force: bool) -> None:
    """Starts both instances anew on the approved release. Raises DeployError."""
    require_an_answer(yes)
    with started(host, console, "restart", None) as run:
        drain.clear_stale_flag(run)
        look, approved = preflight.of_restart(host)
        run.version = approved
        ask_to_restart(run, look, approved, yes=yes, force=force)
        signals.check()
        run.begin(look)
        run.state_on_failure = ""
        with signals.seen_through(seen_through_notice(run, restarts=2)):
            start_each_anew(run, approved, force=force)


def prune_releases(host: Host, console: Console) -> None:
    """Removes the releases that `keep_releases` lets go. Raises DeployError."""
    if host.config.keep_releases == 0:
        console.say("keep_releases is 0: nothing is pruned")
        return
    with started(host, console, "prune", None) as run:
        drain.clear_stale_flag(run)
        look = revert_a_run_that_was_cut_off(run) or host.look()
        versions = prune.candidates(host, look)
        if not versions:
            console.say("nothing to prune")
            return
        preflight.refuse_a_host_that_needs_a_person(host, look)
        run.begin(look)
        prune.remove(run, versions)
        run.outcome = "pruned"


# --- what all need ---------------------------------------------------------------------------


def require_an_answer(yes: bool) -> None:
    """Raises UsageError (2) if a question will come and nobody can answer it."""
    if not yes and not sys.stdin.isatty():
        raise UsageError(
            "standard input is no terminal, and this command asks a question",
            remedy="--yes answers it beforehand",
        )


def asked(run: Run, question: str, watch: Callable[[], str | None]) -> bool:
    """Asks; the system's log is told if nobody answers for long. Raises Declined, Interrupted."""
    remind = system_log.Reminder(f"{run.by}: {question}")

    def watch_and_remind() -> str | None:
        remind()
        return watch()

    started = time.monotonic()
    try:
        return run.console.ask(question, watch_and_remind)
    finally:
        run.took["answer"] = time.monotonic() - started


def revert_a_run_that_was_cut_off(run: Run) -> Look | None:
    """Reverts an earlier run that was killed before its point of no return.

    Returns a new look at the host if there was one. Raises HalfDone (9).
    """
    look = run.host.look()
    cut_off = look.history.unfinished
    if cut_off is None or cut_off.past_return:
        return None
    if look.approved is not None and not run.host.releases.has(look.approved):
        raise NotReady(
            f"the {cut_off.what} was cut off, and the approved release "
            f"{look.approved} that it would be reverted to is gone",
            remedy=f"first: {run.host.command_back(look)}",
        )
    what = f"the {cut_off.what} by {cut_off.by}, {cut_off.at}, was cut off"
    run.left = look.left()
    if cut_off.flipped:
        run.console.say(f"{what}; it is reverted first")
        with signals.seen_through(seen_through_notice(run, restarts=2)):
            revert(run, look.approved, cut_off.version or "")
    else:
        run.console.say(f"{what} before it changed anything that runs")
    run.close(cut_off, run.left)
    return run.host.look()


def flip(run: Run, version: str) -> None:
    """Points the link at the release."""
    before = run.host.releases.current().version
    with run.step("flip", f"current: {before or 'none'} -> {version}"):
        run.record("flip", version=version, previously=before)
        run.host.releases.flip(version)
    run.now_left_with(current=version)


def restart(
    run: Run, role: Role, version: str, *, anew: bool = False, force: bool = False
) -> Observation:
    """Restarts an instance and waits until it is healthy on the release.

    `anew`: by stop and start, which reads a changed job file. `force`: also the only one that
    serves. Raises NotHealthy (6), Interrupted.
    """
    instance = run.host.instances[role]
    before = run.host.services.status(instance.job)
    verb = "stop and start" if anew else "restart"
    if before.state == "stopped":
        verb = "start"
    with run.step(role, f"{verb} {instance.job}") as becomes:
        refuse_a_link_that_was_changed_meanwhile(run, version)
        if not force:
            refuse_the_only_serving_instance(run, role)
        run.record("restart", instance=role, version=version, pid=before.pid)
        # Until it is healthy all that is known is that it starts on what is current.
        run.now_left_with(**{role: None})
        if anew:
            instance.start_anew()
        else:
            instance.restart()
        observation = instance.wait_until_healthy(version, not_pid=before.pid)
        run.now_left_with(**{role: version})
        becomes(f"healthy on {version} (PID {observation.pid})")
    return observation


def refuse_a_link_that_was_changed_meanwhile(run: Run, version: str) -> None:
    """Whatever is restarted starts on what current names, so that must be the release.

    Raises NotHealthy (6).
    """
    current = run.host.releases.current()
    if current.version != version:
        names = current.version or current.broken or "nothing"
        raise NotHealthy(f"current was changed by somebody else meanwhile: {names}, not {version}")


def refuse_the_only_serving_instance(run: Run, role: Role) -> None:
    """The other one may have died since it was decided that this one is restarted.

    Raises NotHealthy (6).
    """
    look = run.host.look()
    this, other = look.primary, look.backup
    if role == BACKUP:
        this, other = other, this
    if this.serving and not other.serving:
        raise NotHealthy(f"{other.job} does not serve any more, and {this.job} serves alone")


def seen_through_notice(run: Run, restarts: int = 1) -> signals.Notice:
    """What is said, once, when a signal comes where the run must not stop."""
    config = run.host.config
    each = config.drain.timeout + config.health.timeout + config.services.timeout
    seconds = restarts * each
    return lambda: run.console.warn(f"signal noted; finishing, up to {seconds:g} s")


# --- deploy -----------------------------------------------------------------------------------


def announce(run: Run, look: Look, cost: str | None) -> None:
    """Says what begins, from where, and what `--force` costs."""
    run.console.say(f"deploy {run.version} (approved now: {look.approved or 'none'})", "bold")
    if cost:
        run.console.warn(cost)


def obtain_release(run: Run, version: str) -> None:
    """The release in `releases/`: one that is there, or the tag tested, built and installed."""
    mirror, commit = fetch(run, version)
    if run.host.releases.has(version):
        reuse(run, version, commit)
        return
    with checked_out(run, mirror, version, commit) as directory:
        builder = Builder(run.host.config.build, run.id, run.console)
        with run.step("test", run.host.config.build.test):
            builder.test(directory)
        with run.step("build", run.host.config.build.uberjar):
            jar = builder.uberjar(directory)
        install(run, jar, version, commit)


def fetch(run: Run, version: str) -> tuple[Mirror, str]:
    """The mirror, up to date, and the tag's commit in it."""
    config = run.host.config
    mirror = Mirror(run.host.deploy / "mirror.git", config.repository, run.id)
    with run.step("fetch", config.repository) as becomes:
        if mirror.fetch(run.console.log, config.build.timeout):
            becomes("the mirror was broken and is made anew")
        try:
            commit = mirror.commit_of(version)
        except checkout.Broken:
            mirror.make_anew(run.console.log, config.build.timeout)
            commit = mirror.commit_of(version)
    return mirror, commit


@contextmanager
def checked_out(run: Run, mirror: Mirror, version: str, commit: str) -> Iterator[Path]:
    """A fresh directory at the commit while the block runs; kept for a look if the block fails."""
    checkouts = run.host.deploy / "checkouts"
    if checkouts.is_symlink():
        # What is old in it gets removed, wherever a build has led it to.
        raise NotReady(
            f"{checkouts} is a symbolic link", remedy=f"rm {shlex.quote(str(checkouts))}"
        )
    make_directory(checkouts)
    directory = checkout.new_directory(checkouts, version)
    try:
        with run.step("check out", f"{version} is {commit[:10]}"):
            try:
                mirror.check_out(commit, directory)
            except checkout.Broken:
                checkout.remove(directory)
                mirror.make_anew(run.console.log, run.host.config.build.timeout)
                mirror.check_out(commit, directory)
        yield directory
    except Interrupted:
        checkout.remove(directory)
        raise
    except BaseException:
        checkout.keep_last_failed(checkouts)
        raise
    checkout.remove(directory)


def install(run: Run, jar: Path, version: str, commit: str) -> None:
    """Copies the jar in as the release."""
    warning = build.inspect(jar, run.host.config.name, version, commit)
    if warning:
        run.console.warn(warning)
    size = jar.stat().st_size
    name = run.host.releases.path(version).name
    with run.step("install", f"{name}, {decimal(size)}"):
        run.record("install", version=version, commit=commit)
        digest = run.host.releases.install(jar, version)
        run.record("installed", version=version, commit=commit, sha256=digest, bytes=size)


def reuse(run: Run, version: str, commit: str) -> None:
    """Takes the release that is there if it was built from the tag's commit.

    There is no rebuild in place: a release never changes. Raises DeployError (1).
    """
    path = run.host.releases.path(version)
    with run.step("reuse", path.name):
        facts = releases.facts_of(path, run.host.config.name)
    refuse_another_commit(run.host, version, commit, facts)


def refuse_another_commit(host: Host, version: str, commit: str, facts: releases.JarFacts) -> None:
    """Raises DeployError (1) if the release that is there was not built from the commit."""
    path = host.releases.path(version)
    known = host.journal.history().commits.get(version) or facts.revision
    if known == commit:
        return
    look = host.look()
    users = [each.job for each in (look.primary, look.backup) if version in each.open_releases]
    used = f"run by {' and '.join(users)}" if users else "run by no instance"
    removable = not users and version not in (look.current.version, look.approved)
    removal = f"{shlex.join(['mv', str(path), f'{path}.old'])}, and deploy again"
    raise DeployError(
        f"release {version} was built from {known[:10] if known else 'an unknown commit'}, "
        f"the tag is at {commit[:10]} now; the release is {used}",
        remedy="give the new commit a new tag"
        + (f", or {removal}" if removable else "")
        + f"\nto use the release as it is: {host.command('rollback', version)}",
    )


def is_done_already(run: Run, version: str) -> bool:
    """Whether the tag's release is approved and current, and both instances are healthy on it."""
    look = run.host.look()
    own = look.history.last
    if not is_settled_on(look, version) or (own is not None and own.cut_off is not None):
        return False  # a run that was cut off with nothing left to do but its end needs one
    run.outcome = "nothing to do"
    run.console.say(f"{version} is in production already; nothing to do")
    return True


def is_settled_on(look: Look, version: str) -> bool:
    """Whether the release is current and approved, and both instances are healthy on it."""
    return (
        look.approved == version
        and look.current.version == version
        and look.both_healthy_on(version)
        and not look.drifted
    )


def wait_for_requests_in_backup(run: Run, version: str, *, force: bool) -> None:
    """Waits for what is in the backup, unless it needs no restart. Raises NotDrained (6)."""
    if not run.host.instances[BACKUP].observe().is_healthy_on(version):
        drain.wait_for_backup(run, vetoes=not force)


def bring_up_backup(run: Run, version: str, *, force: bool) -> Observation:
    """The backup on the new release, healthy and settled; restarted unless it is already."""
    host = run.host
    look = host.look()
    if look.backup.is_healthy_on(version):
        backup = host.instances[BACKUP]
        with run.step(BACKUP, f"{backup.job} runs {version} already"):
            run.now_left_with(backup=version)
            return backup.wait_until_healthy(version)
    preflight.cost_of_force(host, look, version, force=force)
    return restart(run, BACKUP, version, force=force)


def ask_to_promote(run: Run, version: str, *, yes: bool) -> None:
    """Asks whether the release goes to the users. Raises Declined (7), Interrupted."""
    look = run.host.look()
    if look.approved == version and look.primary.is_healthy_on(version):
        return  # nothing is left to be decided: the primary keeps running what it runs
    run.console.page(question_page(run, look, version), always=not yes)
    if yes:
        with run.step("ask", "yes, by --yes"):
            pass
    else:
        run.at("ask")  # the question has a page of its own instead of a step's line
        if not asked(run, f"Promote {version}?", Watch(run, look.primary, version)):
            raise Declined(f"{version} was declined")
    run.record("approved", version=version, how="--yes" if yes else "question")


def question_page(run: Run, look: Look, version: str) -> list[str]:
    """What the operator should know before answering."""
    host = run.host
    primary, backup = host.jobs
    lines = ["", *what_changes(look.approved, version, commits_between(run, look, version))]
    rolled_back = look.history.rolled_back.get(version)
    if rolled_back is not None:
        why = f": {rolled_back.why}" if rolled_back.why else ", without a reason given"
        lines.append(f"{version} was rolled back on {rolled_back.at} by {rolled_back.by}{why}")
    lines.append(f"Try it: {host.instances[BACKUP].url} is {backup} on {version}.")
    if look.primary.is_healthy_on(version):
        lines.append(f"  yes  keeps {primary} on {version}, which it runs already")
    elif look.primary.serving:
        lines.append(f"  yes  restarts {primary} on {version}; users are logged out")
    else:
        lines.append(f"  yes  starts {primary} on {version}")
    if look.approved is None:
        lines.append(f"  no   removes current and stops {backup}: there is nothing to go back to")
    elif look.approved == version:
        lines.append(f"  no   leaves {primary} as it is")
    else:
        back = [] if look.primary.is_healthy_on(look.approved) else [primary]
        names = " and ".join([*back, backup])
        lines.append(f"  no   puts current back to {look.approved} and restarts {names};")
        lines.append(f"       {DATA_STAYS}")
    return lines


def what_changes(approved: str | None, version: str, commits: Commits | None) -> list[str]:
    """From which release to which, and the commits between."""
    if commits is None:
        return [f"{approved or 'nothing'} -> {version}"]
    noun = "commit" if commits.count == 1 else "commits"
    direction = ", going BACK" if commits.backwards else ""
    lines = [f"{approved} -> {version}, {commits.count} {noun}{direction}"]
    lines += [f"  {subject}" for subject in commits.subjects]
    more = commits.count - len(commits.subjects)
    return [*lines, f"  and {more} more"] if more else lines


def commits_between(run: Run, look: Look, version: str) -> Commits | None:
    """The commits between the approved release and the new one, as far as they are known."""
    commits = look.history.commits
    old, new = ((_commit_of(run, commits, each) if each else None)
                for each in (look.approved, version))  # fmt: skip
    if old is None or new is None:
        return None
    mirror = Mirror(run.host.deploy / "mirror.git", run.host.config.repository, run.id)
    return mirror.commits_between(old, new)


def _commit_of(run: Run, commits: dict[str, str], version: str) -> str | None:
    if version in commits:
        return commits[version]
    try:
        facts = releases.facts_of(run.host.releases.path(version), run.host.config.name)
    except DeployError:
        return None
    return facts.revision


class Watch:
    """Looks at both instances while the question is open, and says a change once."""

    def __init__(self, run: Run, primary: Observation, version: str) -> None:
        self._run = run
        self._primary = primary
        self._version = version
        self._said: set[str] = set()

    def __call__(self) -> str | None:
        instances = self._run.host.instances
        news = (
            self._of_current()
            or self._of_primary(instances[PRIMARY].observe())
            or self._of_backup(instances[BACKUP].observe())
        )
        if news is None or news in self._said:
            return None
        self._said.add(news)
        return news

    def _of_current(self) -> str | None:
        try:
            refuse_a_link_that_was_changed_meanwhile(self._run, self._version)
        except NotHealthy as error:
            return f"{error.message}; a yes will be refused"
        return None

    def _of_primary(self, primary: Observation) -> str | None:
        if self._version in primary.open_releases and self._version not in (
            self._primary.open_releases
        ):
            return (
                f"{primary.job} died and was started again by itself, on {self._version}: "
                "yes keeps it there, no puts it back"
            )
        if self._primary.serving and not primary.serving:
            return f"{primary.job} does not serve any more: {primary.said}"
        return None

    def _of_backup(self, backup: Observation) -> str | None:
        why = backup.why_not_healthy_on(self._version)
        return f"{why}; a yes will be refused" if why else None


def refuse_a_backup_that_failed_meanwhile(run: Run, version: str, backup: Observation) -> None:
    """The process that the operator looked at must be the one that takes the traffic.

    Raises NotHealthy (6).
    """
    refuse_a_link_that_was_changed_meanwhile(run, version)
    now = run.host.instances[BACKUP].observe()
    why = now.why_not_healthy_on(version)
    if why is None and now.pid != backup.pid:
        why = f"it died and was started again (PID {backup.pid}, now {now.pid})"
    if why is not None:
        raise NotHealthy(f"{now.job} did not stay healthy until the answer: {why}")


def promote(run: Run, version: str, backup: Observation, *, force: bool) -> None:
    """Restarts the primary on the release when no request is in it.

    From the request to restart it on nothing is reverted. Raises NotDrained (6) before that, then
    PrimaryDown (8) or, if the backup does not serve either, HalfDone (9).
    """
    host = run.host
    needed = not host.instances[PRIMARY].observe().is_healthy_on(version)
    with ExitStack() as to_the_end:
        with drain.drained(run, needed=needed, vetoes=not force):
            refuse_a_backup_that_failed_meanwhile(run, version, backup)
            signals.check()
            run.no_return(version)
            to_the_end.enter_context(signals.seen_through(seen_through_notice(run)))
            start_primary_on(run, version)
        try:
            run.record("promoted", version=version)
        except DeployError as error:
            raise HalfDone(
                f"{version} is in production, but that could not be written down: {error.message}",
                remedy=f"make room on the disk, then: {host.command('deploy', version)}",
            ) from None
        run.outcome = "promoted"
        run.console.say(f"{version} is in production", "bold green")
        run.console.say(f"  {run.summary()}", "dim")


def start_primary_on(run: Run, version: str) -> None:
    """The primary healthy on the release; restarted unless it is already.

    Raises PrimaryDown (8), HalfDone (9).
    """
    primary = run.host.instances[PRIMARY]
    # A full disk must not keep the primary from being waited for.
    run.journal_may_fail = True
    try:
        if primary.observe().is_healthy_on(version):
            with run.step("promote", f"{primary.job} runs {version} already"):
                primary.wait_until_healthy(version)
                run.now_left_with(primary=version)
        else:
            restart(run, PRIMARY, version)
    except NotHealthy as error:
        raise failed_promotion(run, version, error) from None
    run.journal_may_fail = False


def failed_promotion(run: Run, version: str, error: NotHealthy) -> DeployError:
    """What a primary that does not come up means, and the two ways on."""
    host = run.host
    look = host.look()
    ways = []
    if look.current.version == version:
        ways.append(f"to try {version} again: {host.command('deploy', version)}")
    if look.approved is not None:
        ways.append(f"to go back: {host.command('rollback', look.approved)}")
    remedy = "\n".join(ways)
    if look.backup.serving:
        serves = f"{look.backup.job} serves {look.backup.running or version}"
        return PrimaryDown(f"{error.message}; {serves}", detail=error.detail, remedy=remedy)
    return HalfDone(
        f"{error.message}; {look.backup.job} does not serve either",
        detail=error.detail,
        remedy=remedy,
    )


# --- back to the approved release -------------------------------------------------------------


@contextmanager
def reverted_on_failure(run: Run, approved: str | None, version: str) -> Iterator[None]:
    """Reverts if the block fails before the point of no return, whatever the reason.

    The reason goes on. Raises HalfDone (9) if the revert fails, too.
    """
    try:
        yield
    except BaseException as error:
        if run.past_return:
            raise
        if approved == version and isinstance(error, Declined | Interrupted):
            raise  # current is the approved release: nothing has to be put back
        if isinstance(error, DeployError):
            run.console.say(f"{error.message}; reverting", "bold")
        with signals.seen_through(seen_through_notice(run, restarts=2)):
            revert(run, approved, version)
        raise


def revert(run: Run, approved: str | None, attempted: str) -> None:
    """Brings the host back to the approved release: first the link, then what runs.

    Raises HalfDone (9).
    """
    run.journal_may_fail = True
    if approved is None:
        revert_to_nothing(run, attempted)
        return
    try:
        flip(run, approved)
    except DeployError as error:
        raise HalfDone(
            f"the revert failed: {error.message}", remedy=where_the_host_stands(run.host)
        ) from None
    failed = restart_what_is_not_healthy(run, approved)
    look = run.host.look()
    if failed or not look.both_healthy_on(approved):
        reasons = [each.message for each in failed.values()] or [_what_is_wrong(look, approved)]
        raise HalfDone(
            f"the revert to {approved} is half done: {'; '.join(reasons)}",
            detail="\n".join(each.detail for each in failed.values()),
            remedy=where_the_host_stands(run.host),
        )
    run.now_left_with(current=approved, primary=approved, backup=approved)
    run.console.say(f"reverted: {approved} is current and runs on both instances")


def revert_to_nothing(run: Run, attempted: str) -> None:
    """Before any release was approved: no link, and no instance on the attempted release."""
    host = run.host
    try:
        with run.step("revert", "remove the link: no release was approved before"):
            run.record("flip", previously=attempted)
            host.releases.remove_link()
        run.now_left_with(current=None)
        look = host.look()
        for role, observation in ((PRIMARY, look.primary), (BACKUP, look.backup)):
            if role == BACKUP or attempted in observation.open_releases:
                with run.step("revert", f"stop {observation.job}"):
                    run.record("stop", instance=role, pid=observation.pid)
                    host.instances[role].stop()
                run.now_left_with(**{role: None})
    except DeployError as error:
        raise HalfDone(
            f"the revert failed: {error.message}", remedy=where_the_host_stands(run.host)
        ) from None


def restart_what_is_not_healthy(run: Run, target: str) -> dict[Role, NotHealthy]:
    """Restarts what is not healthy on the target, in the order that keeps users served.

    Returns the failures. Both instances are looked at again before each restart.
    """
    failed: dict[Role, NotHealthy] = {}
    restarted: set[Role] = set()
    wait_for_what_runs_the_target_already(run, target)
    while True:
        look = run.host.look()
        role = decisions.next_to_restart(*look.seen(target), failed)
        if role is None:
            return failed
        try:
            if role in restarted:
                raise NotHealthy(f"{run.host.instances[role].job} did not stay healthy on {target}")
            restarted.add(role)
            with drain.without_requests(run, role):
                restart(run, role, target)
        except NotHealthy as error:
            failed[role] = error


def wait_for_what_runs_the_target_already(run: Run, target: str) -> None:
    """Gives an instance that runs the target and does not answer some time.

    A JVM that stalls for seconds beside a build is no reason to restart what serves the users, and
    one that was started again by itself comes up on the target.
    """
    look = run.host.look()
    for observation in (look.primary, look.backup):
        if target in observation.open_releases and not observation.is_healthy_on(target):
            with suppress(NotHealthy):
                instance = run.host.instances[observation.role]
                instance.wait_until_healthy(target, timeout=PATIENCE)


def _what_is_wrong(look: Look, version: str) -> str:
    reasons = (each.why_not_healthy_on(version) for each in (look.primary, look.backup))
    return "; ".join(reason for reason in reasons if reason)


# --- rollback ---------------------------------------------------------------------------------


def refuse_an_unreadable_journal(console: Console, look: Look, version: str | None) -> None:
    """Without the journal nobody knows where a bare rollback goes. Raises DeployError (1)."""
    if look.journal_error and version is None:
        raise DeployError(look.journal_error, remedy="name the release to roll back to")
    if look.journal_error:
        console.warn(look.journal_error)


def target_of_rollback(host: Host, look: Look, version: str | None) -> str:
    """The release to go back to, known to be there and sound. Raises DeployError (1)."""
    target = version or decisions.bare_rollback_target(
        look.history, look.approved, look.current.version,
        (look.primary.running, look.backup.running),
    )  # fmt: skip
    if target is None:
        raise DeployError("there is no previous release to roll back to", remedy=_listed(host))
    if not host.releases.has(target):
        raise DeployError(f"no release {target} in {host.releases.directory}", remedy=_listed(host))
    releases.facts_of(host.releases.path(target), host.config.name)
    return target


def _listed(host: Host) -> str:
    some = host.releases.some()
    return f"there are: {some}" if some else "there is no release at all"


def ask_to_roll_back(run: Run, look: Look, target: str, *, yes: bool) -> None:
    """Asks before anything is changed. Raises Declined (7), Interrupted."""
    console = run.console
    show = console.say if yes else console.tell
    show(f"roll back to {target} (approved now: {look.approved or 'none'})", "bold")
    for observation in (look.primary, look.backup):
        healthy = observation.is_healthy_on(target)
        what = "is healthy on it already" if healthy else "will be restarted"
        show(f"  {observation.job} runs {observation.running or 'nothing'}: {what}")
    if look.primary.serving and not look.primary.is_healthy_on(target):
        show("  users are logged out")
    show(f"  {DATA_STAYS}")
    run.at("ask")
    if not yes and not asked(run, f"Roll back to {target}?", lambda: None):
        raise Declined(f"the rollback to {target} was declined; nothing was changed")


def roll_back(run: Run, look: Look, target: str, why: str | None) -> None:
    """Points the link at the target and restarts what is not healthy on it.

    Raises NotHealthy (6) if the first instance does not come up and all was put back,
    PrimaryDown (8) and HalfDone (9) if the second one does not.
    """
    host = run.host
    nothing_served = not (look.primary.serving or look.backup.serving)
    run.no_return(target)
    flip(run, target)
    failed = restart_what_is_not_healthy(run, target)
    after = host.look()
    if (
        failed
        and not nothing_served
        and not (after.primary.is_healthy_on(target) or after.backup.is_healthy_on(target))
    ):
        raise put_back(run, look, target, failed)
    if after.primary.is_healthy_on(target):
        previously = look.approved if look.approved != target else look.current.version
        run.record("rolled back", version=target, previously=previously, why=why)
        drain.prefer_primary(run)  # where it needed no restart, and a run that was killed left it
    if not after.both_healthy_on(target):
        raise half_rolled_back(run, after, target, failed)
    run.now_left_with(current=target, primary=target, backup=target)
    run.outcome = "rolled back"
    run.console.say(f"{target} is in production; {DATA_STAYS}", "bold green")
    run.console.say(f"  {run.summary()}", "dim")
    if run.journal_failed:
        again = host.command("rollback", target)
        run.console.warn(f"this is not written down; when the journal can be written: {again}")


def put_back(run: Run, look: Look, target: str, failed: dict[Role, NotHealthy]) -> DeployError:
    """After the first instance failed: current as it was, and the backup if it was restarted."""
    (role, reason), *_ = failed.items()
    before = look.current.version
    run.console.say(f"{reason.message}; putting current back", "bold")
    try:
        if before is None:
            with run.step("flip", "remove the link: there was none"):
                run.record("flip", previously=target)
                run.host.releases.remove_link()
            run.now_left_with(current=None)
        else:
            flip(run, before)
            if role == BACKUP:
                restart(run, BACKUP, before)
    except DeployError as error:
        return HalfDone(
            f"{reason.message}; and {before} could not be put back: {error.message}",
            detail=reason.detail,
            remedy=where_the_host_stands(run.host),
        )
    return NotHealthy(
        f"{reason.message}; current is {before or 'absent'} as before",
        detail=reason.detail,
        remedy=where_the_host_stands(run.host),
    )


def half_rolled_back(
    run: Run, after: Look, target: str, failed: dict[Role, NotHealthy]
) -> DeployError:
    """What it means that the second instance did not come up."""
    reason = "; ".join(each.message for each in failed.values()) or _what_is_wrong(after, target)
    detail = "\n".join(each.detail for each in failed.values())
    ways = [f"when the reason is mended: {run.host.command('rollback', target)}"]
    way_back = run.host.way_back(after)
    if way_back is not None and way_back != target:
        ways.append(f"to go back: {run.host.command('rollback', way_back)}")
    remedy = "\n".join(ways)
    if after.backup.is_healthy_on(target) and after.backup.serving:
        return PrimaryDown(
            f"{reason}; {after.backup.job} serves {target}", detail=detail, remedy=remedy
        )
    return HalfDone(
        f"the rollback to {target} is half done: {reason}", detail=detail, remedy=remedy
    )


# --- restart ----------------------------------------------------------------------------------


def ask_to_restart(run: Run, look: Look, version: str, *, yes: bool, force: bool) -> None:
    """Asks before anything is changed. Raises Declined (7), Interrupted."""
    console = run.console
    show = console.say if yes else console.tell
    show(f"restart both instances on {version}, one after the other", "bold")
    first, second = (
        (look.backup, look.primary) if look.primary.serving else (look.primary, look.backup)
    )
    for observation in (first, second):
        state = "serves" if observation.serving else "does not serve"
        done = "is started" if observation.state == "stopped" else "is stopped and started"
        show(f"  {observation.job} {state} and {done}")
    if look.primary.serving:
        show("  users are logged out")
    if force:
        console.warn(
            "--force: if the first one does not come up, the other one is restarted although it "
            "serves alone; users get errors until it is up"
        )
    run.at("ask")
    run.state_on_failure = "nothing was changed"
    if not yes and not asked(run, f"Restart both on {version}?", lambda: None):
        raise Declined("the restart was declined")


def start_each_anew(run: Run, version: str, *, force: bool) -> None:
    """Stops and starts one instance after the other, each exactly once.

    Raises NotHealthy (6) if the first one does not come up and the other one is spared,
    PrimaryDown (8) and HalfDone (9) if the second one does not.
    """
    host = run.host
    run.no_return(version)
    run.journal_may_fail = True  # an instance that is down must not wait for room on the disk
    left: list[Role] = [PRIMARY, BACKUP]
    failed: dict[Role, NotHealthy] = {}
    while True:
        role = decisions.next_to_start_anew(*host.look().seen(version), left, force=force)
        if role is None:
            break
        left.remove(role)
        try:
            with drain.without_requests(run, role):
                restart(run, role, version, anew=True, force=force)
        except NotHealthy as error:
            failed[role] = error
    after = host.look()
    if after.both_healthy_on(version) and not left and not failed:
        run.outcome = "restarted"
        run.console.say(f"both instances were restarted on {version}", "bold green")
        run.console.say(f"  {run.summary()}", "dim")
        return
    raise half_restarted(run, after, version, failed, spared=bool(left))


def half_restarted(
    run: Run, after: Look, version: str, failed: dict[Role, NotHealthy], *, spared: bool
) -> DeployError:
    """What it means that an instance did not come up."""
    reason = "; ".join(each.message for each in failed.values()) or _what_is_wrong(after, version)
    detail = "\n".join(each.detail for each in failed.values())
    remedy = (
        f"when the reason is mended: {run.host.command('rollback', version)}\n"
        f"and then once more: {run.host.command('restart')}"
    )
    serving = [each.job for each in (after.primary, after.backup) if each.serving]
    if spared and serving:
        message = f"{reason}; {serving[0]} serves alone and is left as it is"
        return NotHealthy(message, detail=detail, remedy=remedy)
    if not after.primary.serving and after.backup.serving:
        message = f"{reason}; {after.backup.job} serves {version}"
        return PrimaryDown(message, detail=detail, remedy=remedy)
    return HalfDone(f"the restart is half done: {reason}", detail=detail, remedy=remedy)
