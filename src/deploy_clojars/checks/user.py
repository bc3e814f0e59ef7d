"""What only the production user can find out: its sudo rights, its login shell, its git remote."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil

from deploy_clojars.checks.finding import Finding, Findings, Site
from deploy_clojars.checks.programs import SECONDS, said_by
from deploy_clojars.deploy import checkout, isolation, migrate, signatures
from deploy_clojars.errors import DeployError, NotReady
from deploy_clojars.host.host import Host
from deploy_clojars.host.services.sudo import SudoRefuses
from deploy_clojars.host.users import user_name
from deploy_clojars.setup import in_the_way


def other_tools(site: Site) -> Findings:
    """An old script that `sudo -iu` would run."""
    for obstacle in in_the_way.other_tools(site.host.home):
        yield Finding(obstacle.what, True, site.by_user(obstacle.remedy))


def as_the_production_user(site: Site) -> Findings:
    """All of it, if this is that user."""
    host = site.host
    if site.owner is None:
        return
    if site.owner != os.geteuid():
        # With an old script in the way that would be told to deploy a tag `check`.
        is_safe = not any(in_the_way.other_tools(host.home))
        again = site.by_user(host.command("check")) if is_safe else ""
        yield Finding(
            f"not checked as {user_name()}: sudo rights, the login shell, the git remote", False,
            again,
        )  # fmt: skip
        return
    yield from _sudo(site)
    yield from login_shell()
    if site.deploys_tags:
        yield _remote(host)
        yield from _isolation(host)
    yield from _signers(host)
    yield from _migration(host)


def _migration(host: Host) -> Findings:
    """Whether the migration could run."""
    try:
        migrate.refuse_what_cannot_run(host)
    except NotReady as refused:
        yield Finding(f"the migration cannot run: {refused.message}", True)


def _isolation(host: Host) -> Findings:
    """Whether tests and builds are kept away from the rest of the host."""
    why = isolation.why_not_wanted(host.config)
    if why is None:
        yield Finding("tests and builds are isolated by bubblewrap")
    elif host.config.build.isolate is not False:
        is_demanded = host.config.build.isolate is True
        yield Finding(f"tests and builds are not isolated: {why}", is_demanded, isolation.by_hand())


def _signers(host: Host) -> Findings:
    """Whether signatures can be verified, where they are demanded."""
    settings = host.config.verify
    if settings.demands_signatures:
        try:
            signatures.refuse_unsafe_signers(settings)
        except NotReady as refused:
            yield Finding(refused.message, True, refused.remedy)
        else:
            things = ("tags", settings.tags), ("jars", settings.jars)
            what = " and ".join(name for name, wanted in things if wanted == "signed")
            yield Finding(f"only {what} signed by somebody in {settings.signers} are deployed")


def _sudo(site: Site) -> Findings:
    try:
        site.host.services.refuse_what_would_fail(site.host.jobs)
    except NotReady as refused:
        what = "\n".join(filter(None, (refused.message, refused.detail)))
        # What setup makes may be there, and not be enough.
        made = site.setup if isinstance(refused, SudoRefuses) else ""
        yield Finding(what, True, "\n".join(filter(None, (made, refused.remedy))))
        return
    if site.setup_makes_it and site.host.config.services.sudo:
        yield Finding("sudo allows what is needed")


def login_shell() -> Findings:
    """Another program of the tool's name that a login shell finds first."""
    try:
        shell = pwd.getpwuid(os.geteuid()).pw_shell or "/bin/sh"
    except KeyError:
        return  # who is not in the password database does not log in
    lines = said_by(shell, "-lc", "command -v deploy-clojars").split()
    found = lines[-1] if lines else ""
    # How it was found now: a wrapper in the way of a login shell is the same program.
    own = shutil.which("deploy-clojars")
    if found.startswith("/") and own and os.path.realpath(found) != os.path.realpath(own):
        moved = shlex.join(["mv", found, f"{found}.old"])
        yield Finding(f"a login shell finds another deploy-clojars first: {found}", True, moved)


def _remote(host: Host) -> Finding:
    url = host.config.repository
    try:
        names = checkout.Mirror(host.deploy / "mirror.git", url, "").remote_tags(SECONDS)
    except checkout.Stalled as error:
        return Finding(error.message, True, "is the network up?")
    except DeployError as error:
        said = error.detail.strip().splitlines()
        return Finding(
            f"{url} cannot be read: {said[0] if said else error.message}", True,
            "set `repository`, or give this user a key for it",
        )  # fmt: skip
    tags = len([name for name in names if not name.endswith("^{}")])
    if tags == 0:
        return Finding(f"{url} has no tags, and only a tag can be deployed", True,
                       "in a clone of the application: git tag VERSION && git push --tags")  # fmt: skip
    return Finding(f"{url}, {tags} tags")
