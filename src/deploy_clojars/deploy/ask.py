"""The question: what the operator reads before it, and what is said while it is open."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from deploy_clojars.config import BACKUP, PRIMARY, Role
from deploy_clojars.deploy import class_data
from deploy_clojars.deploy.steps import DATA_STAYS, refuse_a_link_that_was_changed_meanwhile
from deploy_clojars.errors import Declined, DeployError, NotHealthy, UsageError
from deploy_clojars.host import manifest
from deploy_clojars.host.health import Observation
from deploy_clojars.host.look import Look
from deploy_clojars.machine.threads import started
from deploy_clojars.run import system_log
from deploy_clojars.run.run import Run

if TYPE_CHECKING:
    from deploy_clojars.deploy.checkout import Commits


def require_an_answer(yes: bool) -> None:
    """Raises UsageError (2) if a question will come and nobody can answer it."""
    if not yes and not sys.stdin.isatty():
        raise UsageError(
            "standard input is not a terminal, and this command asks a question",
            remedy="use --yes to skip it",
        )


def asked(run: Run, question: str, watch: Callable[[], str | None]) -> bool:
    """Asks; notes in the system's log if nobody answers for long. Raises Declined, Interrupted."""
    remind = system_log.Reminder(f"{run.by}: {question}")

    def watch_and_remind() -> str | None:
        remind()
        return watch()

    started = time.monotonic()
    try:
        return run.console.ask(question, watch_and_remind)
    finally:
        run.times.add("ask", time.monotonic() - started)


def ask_to_promote(run: Run, backup: Observation, commits: Future[Commits | None]) -> None:
    """Asks whether the release goes to the users, who would get it from this `backup` process.

    `commits` is what `commits_between` finds. Raises Declined (7), Interrupted, or NotHealthy (6) if a yes comes too late.
    """
    version, yes = run.version, run.request.yes
    look = run.host.look()
    if not (look.approved == version and look.primary.is_healthy_on(version)):
        if yes:
            run.console.page(what_is_promoted(run, look, commits.result()), always=False)
            with run.step("ask", "yes, by --yes"):
                pass
        else:
            run.console.page(question_page(run, look, commits.result()), always=True)
            run.at("ask")  # the question has its own page instead of a step's line
            with class_data.made_meanwhile(run, backup):
                if not asked(run, f"Promote {version}?", QuestionWatch(run, look.primary, backup)):
                    raise Declined(f"{version} was declined")
        run.record("approved", version=version, how="--yes" if yes else "question")
    refuse_a_backup_that_failed_meanwhile(run, backup)


def refuse_a_backup_that_failed_meanwhile(run: Run, backup: Observation) -> None:
    """The process that the operator looked at must be the one that takes the traffic.

    Raises NotHealthy (6).
    """
    refuse_a_link_that_was_changed_meanwhile(run, run.version)
    now = run.host.instances[BACKUP].observe()
    why = _why_not_as_tried(now, backup, run.version)
    if why is not None:
        raise NotHealthy(f"{now.job} did not stay healthy until the answer: {why}")


def _why_not_as_tried(now: Observation, tried: Observation, version: str) -> str | None:
    why = now.why_not_healthy_on(version)
    if why is None and now.process != tried.process:
        why = f"{now.job} died and was started again (PID {tried.pid}, now {now.pid})"
    return why


def ask_to_roll_back(run: Run, look: Look) -> None:
    """Asks before anything is changed. Raises Declined (7), Interrupted."""
    show = run.console.say if run.request.yes else run.console.tell
    show(f"roll back to {run.version} (approved now: {look.approved or 'none'})", "bold")
    for observation, health in zip(look.instances, look.health_on(run.version), strict=True):
        verb = "started" if observation.state == "stopped" else "restarted"
        what = f"will be {verb}"
        if health.healthy:
            what = "is healthy on it already" if observation.pid else "is not needed"
        elif observation.why_not_restarted:
            what = "is left alone"
        show(f"  {observation.job} runs {observation.running or 'nothing'}: {what}")
    _show_that_the_backup_rests(look, show)
    if look.primary.serving and not look.primary.is_healthy_on(run.version):
        show("  users are logged out")
    show(f"  {DATA_STAYS}")
    ask_before_anything_is_changed(run, f"Roll back to {run.version}?")


def ask_to_restart(run: Run, look: Look) -> None:
    """Asks before anything is changed. Raises Declined (7), Interrupted."""
    show = run.console.say if run.request.yes else run.console.tell
    show(f"restart both instances on {run.version}, one after the other", "bold")
    first, second = (
        (look.backup, look.primary) if look.primary.serving else (look.primary, look.backup)
    )
    for observation in (first, second):
        state = "serves" if observation.serving else "does not serve"
        done = "is started" if observation.state == "stopped" else "is stopped and started"
        show(f"  {observation.job} {state} and {done}")
    _show_that_the_backup_rests(look, show)
    if look.primary.serving:
        show("  users are logged out")
    if run.request.force:
        run.console.warn(
            "--force: if the first one does not come up, the other one is restarted although it "
            "serves alone; users get errors until it is up"
        )
    ask_before_anything_is_changed(run, f"Restart both on {run.version}?")


def _show_that_the_backup_rests(look: Look, show: Callable[[str], None]) -> None:
    if look.backup_may_rest:
        show(f"  {look.backup.job} is stopped at the end: it runs only while deploying")


def ask_before_anything_is_changed(run: Run, question: str) -> None:
    """Asks, unless the operator said `--yes`. Raises Declined (7), Interrupted."""
    run.at("ask")
    if not run.request.yes and not asked(run, question, lambda: None):
        raise Declined(f"the {run.request.command} was declined")


def question_page(run: Run, look: Look, commits: Commits | None) -> list[str]:
    """What the operator should know before answering."""
    host, version = run.host, run.version
    primary, backup = host.jobs
    lines = what_is_promoted(run, look, commits)
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
        lines.append(f"  no   leaves {primary} alone")
    else:
        back = [] if look.primary.is_healthy_on(look.approved) else [primary]
        names = " and ".join([*back, backup])
        restarts = (
            f"stops {backup}" if look.backup_should_rest(look.approved) else f"restarts {names}"
        )
        lines.append(f"  no   puts current back to {look.approved} and {restarts};")
        lines.append(f"       {DATA_STAYS}")
    return lines


def what_is_promoted(run: Run, look: Look, commits: Commits | None) -> list[str]:
    """From which release to which, with the commits between, and whether it was rolled back before."""
    version = run.version
    lines = [
        run.console.cut(line) if line.startswith("  ") else line  # a subject may fill the screen
        for line in what_changes(look.approved, version, commits)
    ]
    if run.signer:
        lines.append(f"signed by {run.signer}")
    if version in look.history.migrated:
        lines.append(f"the data was migrated for {version} on {look.history.migrated[version]}")
    elif (config := run.host.config.migrate).command is not None and config.when == "after":
        lines.append("the data is migrated after the promotion")
    rolled_back = look.history.rolled_back.get(version)
    if rolled_back is not None:
        why = f": {rolled_back.why}" if rolled_back.why else ", without a reason given"
        line = f"{version} was rolled back on {rolled_back.at} by {rolled_back.by}{why}"
        lines.append(run.console.cut(line, lines=3))
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


def commits_between(run: Run, look: Look) -> Commits | None:
    """The commits between the approved release and the new one, as far as they are known."""
    from deploy_clojars.deploy.checkout import Mirror  # a deploy has it; others have no use for git

    commits = look.history.commits
    old, new = ((_commit_of(run, commits, each) if each else None)
                for each in (look.approved, run.version))  # fmt: skip
    mirror = Mirror(run.host.deploy / "mirror.git", run.host.config.repository, run.id)
    if old is None or new is None or not mirror.directory.is_dir():
        return None
    return mirror.commits_between(old, new)


def _commit_of(run: Run, commits: dict[str, str], version: str) -> str | None:
    if version in commits:
        return commits[version]
    try:
        facts = manifest.facts_of(
            run.host.releases.path(version), run.host.config.name, sound=False
        )
    except DeployError:
        return None
    return facts.revision


class QuestionWatch:
    """Watches both instances while the question is open; reports each change once, recovery too.

    It looks in threads: an answer must not wait for an instance that hangs.
    """

    def __init__(self, run: Run, primary: Observation, backup: Observation) -> None:
        self._run = run
        self._version = run.version
        self._primary, self._backup = primary, backup
        self._said: defaultdict[str, set[str]] = defaultdict(set)  # about what is wrong now
        self._news: list[str] = []
        self._looks = {role: self._look_at(role) for role in run.host.instances}

    def __call__(self) -> str | None:
        """What has changed, one thing at a time."""
        self._note("current", self._of_current(), f"current names {self._version} again")
        for role, look in self._looks.items():
            if look.done():
                self._note(role, *self._of_instance(role, look))
                self._looks[role] = self._look_at(role)
        return self._news.pop(0) if self._news else None

    def _look_at(self, role: Role) -> Future[Observation]:
        return started(self._run.host.instances[role].observe)

    def _note(self, subject: str, wrong: str | None, recovered: str) -> None:
        said = self._said[subject]
        if wrong is not None and wrong not in said:
            said.add(wrong)
            self._news.append(wrong)
        elif wrong is None and said:
            said.clear()
            self._news.append(recovered)

    def _of_current(self) -> str | None:
        try:
            refuse_a_link_that_was_changed_meanwhile(self._run, self._version)
        except NotHealthy as error:
            return f"{error.message}; a yes will be refused"
        return None

    def _of_instance(self, role: Role, look: Future[Observation]) -> tuple[str | None, str]:
        """What is wrong with it, and what to say once that is over."""
        job = self._run.host.instances[role].job
        error = look.exception()
        if error is not None:
            return f"the state of {job} is unknown: {error}", f"the state of {job} is known again"
        if role == PRIMARY:
            return self._of_primary(look.result()), f"{job} serves again"
        why = _why_not_as_tried(look.result(), self._backup, self._version)
        wrong = f"{why}; a yes will be refused" if why else None
        return wrong, f"{job} is healthy on {self._version} again"

    def _of_primary(self, primary: Observation) -> str | None:
        if self._version in primary.open_releases and self._version not in (
            self._primary.open_releases
        ):
            return (
                f"{primary.job} died and has come back on {self._version} by itself: "
                "yes keeps it there, no puts it back"
            )
        if self._primary.serving and not primary.serving:
            return f"{primary.job} no longer serves: {primary.said}"
        return None
