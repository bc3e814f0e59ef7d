"""Directories and files: whether they are there, and whose they are."""

from __future__ import annotations

import os
import pwd
import re
import shlex
import stat
from datetime import datetime
from pathlib import Path

from deploy_clojars.checks import running
from deploy_clojars.checks.finding import Finding, Findings, Site, by_root
from deploy_clojars.deploy import preflight
from deploy_clojars.errors import DeployError, NotReady
from deploy_clojars.host import decisions
from deploy_clojars.host.users import user_name
from deploy_clojars.run import lock
from deploy_clojars.setup import in_the_way
from deploy_clojars.setup.files import File, Values, files


def directories(site: Site) -> Findings:
    """The home and what the tool and nginx have in it."""
    host = site.host
    for directory in (host.home, host.releases.directory):
        if not directory.is_dir():
            yield _missing(site, directory)
            return
    for directory in (host.home, host.releases.directory, host.deploy, host.home / "repo"):
        if directory.exists():  # deploy/ is made by the first run
            yield _judged(site, directory)
    yield from _the_tools_own(site)
    if host.file is not None and host.file.exists():
        writer = host.file.stat().st_uid
        if writer == site.owner and writer != 0 and os.geteuid() != writer:
            remedy = by_root(f"chown root {shlex.quote(str(host.file))}")
            yield Finding(f"{host.file} belongs to the production user", True, remedy)
        if host.config.logins and host.file.stat().st_mode & stat.S_IROTH:
            quoted = shlex.quote(str(host.file))
            remedy = by_root(f"chgrp {site.group()} {quoted} && chmod o-rwx {quoted}")
            what = f"{host.file} holds a password, and every user can read it"
            yield Finding(what, True, remedy)


def _missing(site: Site, directory: Path) -> Finding:
    made = f"install -d -o {site.user} {shlex.quote(str(directory))}"
    return Finding(f"{directory} does not exist", True, site.setup or made)


def _judged(site: Site, directory: Path) -> Finding:
    """Of the user, written by nobody else, and open to nginx where that looks through it."""
    quoted = shlex.quote(str(directory))
    found = directory.stat()
    # nginx looks through the home, at /repo and at nothing else; a sandbox's is its user's own.
    open_to = {site.host.home: 0o001, site.host.home / "repo": 0o005} if site.setup_makes_it else {}
    through = open_to.get(directory, 0)
    if found.st_uid != site.owner:
        whose = user_name(found.st_uid)
        remedy = by_root(f"chown {site.user} {quoted}")
        return Finding(f"{directory} belongs to {whose}, not to {site.user}", True, remedy)
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        remedy = site.by_user(f"chmod go-w {quoted}")
        return Finding(f"{directory} can be written by others", True, remedy)
    if found.st_mode & through != through:
        access = "go+x" if through == 0o001 else "go+rx"
        remedy = site.by_user(f"chmod {access} {quoted}")
        verb = "entered" if through == 0o001 else "read"
        return Finding(f"{directory} cannot be {verb} by nginx", True, remedy)
    return Finding(f"{directory}, of {site.user}")


def _the_tools_own(site: Site) -> Findings:
    """What a run as another user, root for one, has left in deploy/."""
    deploy = site.host.deploy
    names = ("lock", "journal.jsonl", "logs", "checkouts", "mirror.git", "reserve")
    foreign = [
        path for path in (deploy / name for name in names)
        if os.path.lexists(path) and os.lstat(path).st_uid != site.owner
    ]  # fmt: skip
    if foreign:
        named = ", ".join(map(str, foreign))
        whose = user_name(os.lstat(foreign[0]).st_uid)
        remedy = by_root(f"chown -R {site.user} {shlex.quote(str(deploy))}")
        yield Finding(f"owned by {whose}, not by {site.user}: {named}", True, remedy)
    for path in (deploy / "logs", deploy / "checkouts"):
        moved = running.moved_away(path, stat.S_ISDIR)
        if moved:
            yield Finding(f"{path} is not a directory", True, site.by_user(moved))
    if not foreign and os.geteuid() in (0, site.owner):  # other users may not open it
        try:
            lock.refuse_one_that_cannot_be_held(site.host.lock_file)
        except NotReady as error:
            yield Finding(error.message, True, site.by_user(error.remedy))


def disk(site: Site) -> Findings:
    """Whether a deploy fits."""
    if not site.host.releases.directory.exists():
        return
    try:
        preflight.refuse_a_full_disk(site.host)
        yield Finding("disk: room for a deploy")
    except DeployError as error:
        yield Finding(error.message, True, "remove old files, or enlarge the disk")


def installed_files(site: Site, root: Path = Path("/")) -> Findings:
    """The files that `setup` makes, on a host as it makes one; `root` stands for /."""
    values = site.values
    if values is None or not site.is_in(root):
        return
    repository = site.host.home / "repo"
    if site.host.home.exists() and not repository.exists():
        yield _missing(site, repository)
    by_name = {file.etc: file for file in files(values)}
    jobs = (values.primary, values.backup, f"{values.site}-run")
    # systemd may have the units elsewhere, and says so.
    of_manager = [f"upstart/{job}.conf" for job in jobs] if site.is_upstarts else []
    for name in (*of_manager, "nginx/503.html"):
        path = root / by_name[name].path.lstrip("/")
        if not path.exists():
            yield Finding(f"{path} does not exist", True, site.setup)
    if site.is_upstarts:
        settings = by_name[f"default/{values.site}"]
        yield from _settings(site, settings, root)
        yield from _not_in_force(site, values, settings, root)
    elif not is_made_at_boot(Path(values.flag_directory), root):
        what = f"{values.flag_directory}, the drain flag's directory, would be missing after a boot"
        yield Finding(what, True, site.setup)
    keep = in_the_way.nailgun_there(values, root)
    for other in in_the_way.other_nailgun(values, keep, root) if keep else ():
        what = f"nginx and balance both serve the nailgun port, {keep} by the later file"
        yield Finding(what, True, by_root(other.remedy))


def is_made_at_boot(directory: Path, root: Path) -> bool:
    """Whether a directory survives a boot, or systemd-tmpfiles makes it again."""
    named = re.sub(r"^/var/run/", "/run/", str(directory))
    if not named.startswith("/run/"):
        return True
    lines = [
        line.split()
        for place in ("etc", "run", "usr/local/lib", "usr/lib")
        for file in (root / place / "tmpfiles.d").glob("*.conf")
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines()
    ]
    return any(
        line[0][0] in "dD" and re.sub(r"^/var/run/", "/run/", line[1]).rstrip("/") == named
        for line in lines
        if len(line) > 1
    )


def _settings(site: Site, settings: File, root: Path) -> Findings:
    """The jobs read this file as the production user, and end if they cannot."""
    path = root / settings.path.lstrip("/")
    if path.exists() and not _may_read(site, path.stat()):
        remedy = by_root(f"chgrp {site.group()} {path} && chmod 0640 {path}")
        yield Finding(f"{site.user} cannot read {path}: no instance would start", True, remedy)


def _may_read(site: Site, found: os.stat_result) -> bool:
    try:
        user = pwd.getpwuid(site.owner if site.owner is not None else os.geteuid())
    except KeyError:
        return True
    if user.pw_uid in (0, found.st_uid):
        return user.pw_uid == 0 or bool(found.st_mode & stat.S_IRUSR)
    if found.st_gid in os.getgrouplist(user.pw_name, user.pw_gid):
        return bool(found.st_mode & stat.S_IRGRP)
    return bool(found.st_mode & stat.S_IROTH)


def _not_in_force(site: Site, values: Values, settings: File, root: Path) -> Findings:
    """What was changed since an instance was started: Upstart reads it at a stop and a start."""
    for observation in site.look.instances:
        if observation.since is None or running.instead_of_the_application(site, observation):
            continue  # a `restart` of the latter would leave the application on its ports
        # The settings are read at every start of the process, and the job file is not.
        last = site.look.history.restarted.get(observation.role)
        within = site.host.config.services.timeout
        definition = decisions.definition_since(last, observation.since, within)
        for path, since in (
            (f"/etc/init/{observation.job}.conf", definition),
            (settings.path, observation.since),
        ):
            if changed_since(root / path.lstrip("/"), since):
                yield Finding(
                    f"{path} was changed after {observation.job} was started",
                    True,
                    site.by_user(site.host.command("restart")),
                )


def changed_since(path: Path, since: str) -> bool:
    try:
        # Not mtime: a file that was written earlier may have been moved here just now.
        changed = path.stat().st_ctime
    except OSError:  # not there, or in a directory of root's
        return False
    return changed > datetime.fromisoformat(since).timestamp() + decisions.CLOCKS_DIFFER
