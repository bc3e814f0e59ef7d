"""nginx in front: the drain's flag and probe, and that the site is the one that users get."""

from __future__ import annotations

import os
import shlex
import stat
import tempfile
from pathlib import Path

from deploy_clojars.checks.finding import Finding, Findings, Site, by_root
from deploy_clojars.host import nginx
from deploy_clojars.host.nginx import BACKUP_FIRST, PRIMARY_FIRST
from deploy_clojars.host.users import user_name
from deploy_clojars.machine import web
from deploy_clojars.setup import in_the_way, nginx_conf, validation
from deploy_clojars.setup.files import Values
from deploy_clojars.setup.nginx_conf import Configuration


def drain(site: Site) -> Findings:
    """The flag, its directory, and whether nginx follows it."""
    host = site.host
    flag, there = host.nginx.flag, host.nginx.flag_is_set
    yield flag_directory(site, flag.parent)
    if there and site.holder is None:
        removal = site.by_user(f"rm {shlex.quote(str(flag))}")
        remedy = removal if site.look.primary_is_as_approved else site.way_back
        yield Finding(f"a drain flag was left behind: {flag}", True, remedy)
    answer = host.nginx.answer()
    if answer not in (PRIMARY_FIRST, BACKUP_FIRST):
        probe = host.config.drain.probe
        yield Finding(
            f"{probe} does not say which instance nginx prefers ({answer})",
            True,
            _answers(site),
        )
    elif (answer == BACKUP_FIRST) is not there:
        yield Finding(
            f"nginx ignores the drain flag {flag}: it answers {answer}",
            True,
            f"{by_root(site.front_command('reload'))}; nginx's user must be able to enter {flag.parent}",
        )
    else:
        yield Finding(f"nginx prefers the {answer}")


def _answers(site: Site) -> str:
    """What makes nginx answer: `reload` does nothing for one that does not run."""
    verb = "reload" if site.nginx_runs else "start"
    is_made = not site.setup_makes_it or _is_installed(site)
    made = "" if is_made else f"{site.host.command('setup')} && "
    return by_root(f"{made}{site.front_command(verb)}")


def _is_installed(site: Site, root: Path = Path("/")) -> bool:
    """Whether the file of `setup`'s site is there."""
    values = site.values
    if values is None:
        return False
    return (root / (values.site_link or values.site_file).lstrip("/")).exists()


def flag_directory(site: Site, directory: Path) -> Finding:
    """The production user's, nobody else's to write, and open to nginx."""
    quoted = shlex.quote(str(directory))
    if not directory.is_dir():
        made = f"install -d -o {site.user} -m 0755 {quoted}"
        return Finding(
            f"{directory}, the drain flag's directory, does not exist",
            True,
            site.setup or by_root(made),
        )
    found = directory.stat()
    closed = [each for each in (directory, *directory.parents) if not each.stat().st_mode & 0o001]
    # A sandbox's nginx is its user's own, and no service: it sees what that user sees.
    if closed and site.setup_makes_it:
        remedy = by_root(f"chmod go+x {shlex.quote(str(closed[-1]))}")
        return Finding(f"nginx cannot enter {closed[-1]}", True, remedy)
    if site.owner is not None and found.st_uid != site.owner:
        remedy = by_root(f"chown {site.user} {quoted}")
        return Finding(f"{directory} belongs to {user_name(found.st_uid)}", True, remedy)
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        remedy = site.by_user(f"chmod go-w {quoted}")
        return Finding(f"{directory} can be written by others", True, remedy)
    if site.setup_makes_it and directory.is_relative_to(tempfile.gettempdir()):
        return Finding(f"{directory} is a temporary directory, and nginx may see another", True,
                       "set drain.flag to a path below /run")  # fmt: skip
    return Finding(f"{directory} for the drain flag")


def sites(site: Site, root: Path = Path("/")) -> Findings:
    """Whether nginx uses the site of `setup`, or another of the same name; `root` stands for /."""
    values, conf = site.values, site.nginx_conf if root == Path("/") else None
    if not site.setup_makes_it or values is None:
        return
    for obstacle in in_the_way.other_sites(values, root, conf):
        yield Finding(obstacle.what, True, by_root(obstacle.remedy))
    if conf is not None and site.nginx is not None:
        for fault in nginx_conf.faults(conf, values, site.nginx.version):
            yield Finding(fault.what, True, _mended(site, values, conf, fault))
    if root == Path("/") and _is_installed(site):
        yield from _in_use(site, values)


def _mended(site: Site, values: Values, conf: Configuration, fault: nginx_conf.Fault) -> str:
    reload = values.front_command("reload")
    if fault.by_hand:
        return by_root(f"{fault.by_hand}\nthen run: {reload}")
    if _is_installed(site) and not nginx_conf.reads(conf, values):
        return by_root(nginx_conf.remedy_for_unread(conf, values))
    return by_root(f"{site.host.command('setup')} && {reload}")


def _in_use(site: Site, values: Values) -> Findings:
    """Whether sudo and nginx accept their files, and users get an answer."""
    verdict = validation.of_whole_host(site.nginx) if os.geteuid() == 0 else validation.Verdict()
    if verdict.refused_by is not None:
        shown = (verdict.said.splitlines() or [""])[0]
        test = "visudo -c" if verdict.refused_by == "sudo" else f"{values.front} -t"
        yield Finding(f"{verdict.refused_by} rejects its configuration: {shown}", True, f"fix it until `{test}` passes")  # fmt: skip
    url = f"http://127.0.0.1:{values.listen}/"
    answer = web.get(url, nginx.PROBE_SECONDS, host=values.server_name)
    if answer.status is None:
        what = f"the site does not answer at {url}: {answer}"
        yield Finding(what, True, by_root(values.front_command("start")))
    elif answer.status >= 500 and site.look.primary.serving:
        what = f"the site answers {answer} at {url}, though {site.look.primary.job} serves"
        yield Finding(what, True, "nginx's error log says why")
    else:
        yield Finding(f"the site answers at {url}")
