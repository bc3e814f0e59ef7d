"""What the operator reads before a promotion, and what is said while the question is open."""

from __future__ import annotations

from deploy_clojars.deploy.checkout import Commits, Mirror
from deploy_clojars.deploy.steps import DATA_STAYS, refuse_a_link_that_was_changed_meanwhile
from deploy_clojars.errors import DeployError, NotHealthy
from deploy_clojars.host import jars
from deploy_clojars.host.host import Look
from deploy_clojars.host.instances import BACKUP, PRIMARY, Observation
from deploy_clojars.run.run import Run


def question_page(run: Run, look: Look, version: str) -> list[str]:
    """What the operator should know before answering."""
    host = run.host
    primary, backup = host.jobs
    lines = what_changes(look.approved, version, commits_between(run, look, version))
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
        facts = jars.facts_of(run.host.releases.path(version), run.host.config.name, sound=False)
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
