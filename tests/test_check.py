"""`check`: every finding at once, each with its remedy."""

from __future__ import annotations

import grp
import http.server
import os
import pwd
import socket
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from clojure_repository import ClojureRepository as Tags
from conftest import NewHost
from little_host import LittleHost, free_ports, wait_for
from programs import require_program
from standin.upstart import Upstart

from deploy_clojars import checks, config
from deploy_clojars.checks import filesystem as files
from deploy_clojars.checks import front, programs, running, user
from deploy_clojars.checks.finding import Finding, Site
from deploy_clojars.config import Role, parse
from deploy_clojars.errors import DeployError
from deploy_clojars.host.health import Check, Observation
from deploy_clojars.host.host import Host
from deploy_clojars.host.users import user_name
from deploy_clojars.run import lock
from deploy_clojars.setup import setup

FIRST = Tags.FIRST


@contextmanager
def probe(flag: Path, port: int, *, blind: bool = False) -> Iterator[None]:
    """What nginx answers at the probe, by the flag that it sees; `blind`: it sees none."""

    class Pool(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"backup" if flag.exists() and not blind else b"primary")

        def log_message(self, *words: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Pool) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()


@pytest.fixture
def flag(light_host: LittleHost, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The drain flag's path on a host that is otherwise ready."""
    require_program("nginx")
    for directory in (light_host.directory, *light_host.directory.parents):
        if directory.owner() == light_host.directory.owner() and directory != Path("/"):
            directory.chmod(directory.stat().st_mode | 0o011)
    monkeypatch.setenv("TMPDIR", "/var/tmp")  # the host is below the usual one
    return light_host.directory / "run" / "drain-primary"


def with_drain(host: LittleHost, flag: Path) -> int:
    """Writes the configuration with the flag, and returns the probe's port."""
    [port] = free_ports(1)
    flag.parent.mkdir(exist_ok=True)
    host.options["drain"] = f'flag = "{flag}"\nprobe = "http://127.0.0.1:{port}/pool"'
    host.write_config()
    return port


def test_a_ready_host_has_no_finding(light_host: LittleHost, flag: Path) -> None:
    with probe(flag, with_drain(light_host, flag)):
        result = light_host.run("check")
        assert result.returncode == 0, result.stdout
        assert result.stdout.endswith("ready\n")
        assert light_host.run("check", "-q").stdout == "ready\n"
    assert not light_host.deploy.exists()


def test_a_stale_flag_is_found_and_may_be_removed(light_host: LittleHost, flag: Path) -> None:
    with probe(flag, with_drain(light_host, flag)):
        flag.touch()
        result = light_host.run("check")
    assert result.returncode == 11
    assert f"rm {flag}" in result.stdout
    assert result.stdout.endswith("1 finding\n"), result.stdout


def test_a_lock_that_cannot_be_held_is_found(light_host: LittleHost, flag: Path) -> None:
    lock = light_host.deploy / "lock"
    lock.mkdir(parents=True)
    with probe(flag, with_drain(light_host, flag)):
        result = light_host.run("check", "-q")
        assert result.returncode == 11
        assert f"!!  the lock {lock} cannot be opened: Is a directory" in result.stdout
        assert f"      mv {lock} {lock}.old\n1 finding\n" in result.stdout
        lock.rmdir()
        assert light_host.run("check", "-q").stdout == "ready\n"


def test_an_nginx_that_does_not_see_the_flag_is_found(light_host: LittleHost, flag: Path) -> None:
    with probe(flag, with_drain(light_host, flag), blind=True):
        flag.touch()
        result = light_host.run("check")
    assert "nginx ignores the drain flag" in result.stdout


def test_no_probe_no_directory_and_an_instance_down_are_found_at_once(
    light_host: LittleHost, flag: Path
) -> None:
    host = light_host
    with_drain(host, flag)
    flag.parent.rmdir()
    host.control("stop", host.backup)
    stranger = socket.create_server(("127.0.0.1", host.ports[1]))
    (host.home / "bin").mkdir()
    (host.home / "bin/deploy-clojars").write_text("#!/bin/sh\n")
    host.releases.chmod(0o777)
    host.repository_url = "/nowhere"
    host.write_config(top=f'repository = "/nowhere"\nhome = "{host.home}"')
    with stranger:
        result = host.run("check")
    assert result.returncode == 11
    for said in (
        f"port {host.ports[1]} is taken by PID {os.getpid()} (",
        f"      kill {os.getpid()}\n",
        f"{flag.parent}, the drain flag's directory, does not exist",
        "which instance nginx prefers (",
        "clojars-backup is not running",
        f"deploy-clojars -c {host.config} rollback {FIRST}",
        f"mv {host.home}/bin/deploy-clojars {host.home}/bin/deploy-clojars.old",
        f"chmod go-w {host.releases}",
        "/nowhere cannot be read",
    ):
        assert said in result.stdout, said


def test_a_bare_host_is_told_to_set_up(new_light_host: NewHost) -> None:
    host = new_light_host(services='bin = "/nowhere"')
    host.releases.rmdir()
    result = host.run("check")
    assert result.returncode == 11
    assert f"deploy-clojars -c {host.config} setup" in result.stdout
    assert "job clojars: /nowhere/status: No such file or directory" in result.stdout
    assert "Traceback" not in result.stderr


def test_a_rejected_configuration_is_the_usual_error(light_host: LittleHost) -> None:
    light_host.config.write_text("nmae = 1")
    assert light_host.run("check").returncode == 2


# --- one thing after the other, on a host that is looked at as a whole nowhere ------------------

NOBODY = 65534


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A host that `setup` made below `root`; Upstart is not there to be asked."""
    root = tmp_path / "root"
    web, nailgun, other, more, probe_port = free_ports(5)
    config = parse(
        {
            "home": str(tmp_path / "home"),
            "services": {"bin": "/nowhere"},
            "instances": {
                "primary": {"health": [f"http://127.0.0.1:{web}/", f"tcp://127.0.0.1:{nailgun}"]},
                "backup": {"health": [f"http://127.0.0.1:{other}/", f"tcp://127.0.0.1:{more}"]},
            },
            "drain": {"flag": f"{tmp_path}/run/flag", "probe": f"http://127.0.0.1:{probe_port}/p"},
        },
        "test",
    )
    for directory in ("home/releases", "home/repo", "run"):
        (tmp_path / directory).mkdir(parents=True)
    host = Host(config)
    setup.setup(config, host.words, lambda _: None, root=root, user="web")
    monkeypatch.setenv("TMPDIR", "/var/tmp")
    return Site(host, host.look())


def wrong(found: Iterable[Finding]) -> dict[str, str]:
    """What is wrong, and each one's remedy."""
    return {each.what: each.remedy for each in found if each.wrong}


def observed(role: Role, version: str | None, **more: Any) -> Observation:
    """An instance that serves a version, or is down."""
    job = "clojars" if role == "primary" else "clojars-backup"
    if version is None:
        return Observation(role, job, "stopped", f"{job} stop/waiting", **more)
    known = {"pid": os.getpid(), "running": version, "open_releases": frozenset({version})}
    return Observation(role, job, "running", f"{job} start/running", **{**known, **more})


def seen(site: Site, primary: Observation, backup: Observation) -> Site:
    """The site with these instances, of which 0.1.0 is approved."""
    site.look = replace(site.look, primary=primary, backup=backup, approved=FIRST)
    return site


def test_a_host_that_setup_made_lacks_nothing(site: Site, tmp_path: Path) -> None:
    assert wrong(files.installed_files(site, tmp_path / "root")) == {}


@pytest.mark.parametrize(
    "path",
    ["etc/init/clojars.conf", "etc/init/clojars-run.conf", "var/www/clojars/503.html"],
)
def test_a_file_that_is_missing_is_found(site: Site, tmp_path: Path, path: str) -> None:
    (tmp_path / "root" / path).unlink()
    found = wrong(files.installed_files(site, tmp_path / "root"))
    assert list(found) == [f"{tmp_path}/root/{path} does not exist"]
    assert "deploy-clojars setup" in found.popitem()[1]


def test_what_is_not_in_force_or_cannot_be_read_is_found(site: Site, tmp_path: Path) -> None:
    long_ago = observed("primary", FIRST, since="2020-01-01T00:00:00Z")
    seen(site, long_ago, observed("backup", None))
    found = wrong(files.installed_files(site, tmp_path / "root"))
    assert list(found) == [
        f"{path} was changed after clojars was started"
        for path in ("/etc/init/clojars.conf", "/etc/default/clojars")
    ]
    assert set(found.values()) == {"deploy-clojars restart"}
    seen(site, observed("primary", FIRST), observed("backup", None))
    site.owner = NOBODY
    settings = tmp_path / "root/etc/default/clojars"
    settings.chmod(0o600)
    [(what, remedy)] = wrong(files.installed_files(site, tmp_path / "root")).items()
    assert what == f"nobody cannot read {settings}: no instance would start"
    group = grp.getgrgid(pwd.getpwnam("nobody").pw_gid).gr_name
    assert f"chgrp {group} {settings} && chmod 0640 {settings}" in remedy


def test_a_changed_job_file_is_found_until_the_job_was_stopped_and_started(
    light_host: LittleHost, upstart: Upstart, tmp_path: Path
) -> None:
    """Upstart's `restart`, and so a deploy, keeps the old definition."""
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/init").symlink_to(upstart.jobs)
    loaded = Host(config.load(light_host.config))

    def not_in_force() -> set[str]:
        found = wrong(files.installed_files(Site(loaded, loaded.look()), tmp_path / "root"))
        return {what for what in found if "was changed after" in what}

    for version in (Tags.SECOND, Tags.THIRD):
        light_host.have(version)
    started = max(each["since"] for each in light_host.status["instances"].values())
    begin = datetime.fromisoformat(started).timestamp()
    wait_for(lambda: time.time() > begin + 3, "the file is changed clearly later")
    assert not_in_force() == set()
    (upstart.jobs / f"{light_host.primary}.conf").touch()
    (upstart.jobs / f"{light_host.backup}.conf").touch()
    both = {
        f"/etc/init/{job}.conf was changed after {job} was started"
        for job in (light_host.primary, light_host.backup)
    }
    assert not_in_force() == both
    for version in (Tags.SECOND, Tags.THIRD):
        light_host.done(version, "--yes")
        assert not_in_force() == both
    light_host.done("restart", "--yes")
    assert not_in_force() == set()


def test_a_job_whose_process_is_not_the_application_is_not_to_be_restarted(
    site: Site, tmp_path: Path
) -> None:
    """Its `restart` would leave the application on its ports: the job file comes first."""
    long_ago = "2020-01-01T00:00:00Z"
    seen(site, observed("primary", FIRST, since=long_ago), observed("backup", None))
    site.owner = NOBODY
    found = wrong(files.installed_files(site, tmp_path / "root"))
    assert not [what for what in found if "was changed after" in what]
    assert "/nowhere/stop clojars" in next(iter(wrong(running.jobs(site)).values()))


def test_check_does_not_remove_the_balance_that_was_asked_for_last(
    site: Site, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    setup.setup(
        site.host.config, site.host.words, lambda _: None, root=root, user="web", nailgun="nginx"
    )
    with pytest.raises(DeployError):  # for nginx's file is there, too
        setup.setup(
            site.host.config, site.host.words, lambda _: None, root=root, user="web",
            nailgun="balance",
        )  # fmt: skip
    [(what, remedy)] = wrong(files.installed_files(site, root)).items()
    assert what == "nginx and balance both serve the nailgun port, balance by the later file"
    assert f"rm {root}/etc/nginx/modules-enabled/90-clojars-nailgun.conf" in remedy
    assert "/nowhere/start clojars-balance" in remedy
    (root / "etc/nginx/modules-enabled/90-clojars-nailgun.conf").unlink()
    [(what, remedy)] = wrong(programs.nailgun(site, root)).items()
    assert what == "balance is not installed, and the job clojars-balance needs it"
    assert "install balance, then /nowhere/start clojars-balance" in remedy


def test_the_user_is_who_has_the_home_and_not_who_has_the_releases(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = pwd.getpwnam("nobody")
    entry = pwd.struct_passwd((*nobody[:5], f"{tmp_path}/home/", nobody[6]))
    monkeypatch.setattr(pwd, "getpwall", lambda: [entry])
    assert site.host.owner == NOBODY
    site.owner = NOBODY
    site.host.deploy.mkdir()
    (site.host.deploy / "lock").touch()
    found = wrong(files.directories(site))
    mine = user_name()
    assert f"{tmp_path}/home/releases belongs to {mine}, not to nobody" in found
    assert f"owned by {mine}, not by nobody: {tmp_path}/home/deploy/lock" in found
    for remedy in found.values():
        assert "chown nobody" in remedy or "chown -R nobody" in remedy


def test_nginx_needs_the_home_and_the_repository_alone(site: Site, tmp_path: Path) -> None:
    for name in ("home", "home/repo", "home/releases"):
        (tmp_path / name).chmod(0o750)
    assert wrong(files.directories(site)) == {
        f"{tmp_path}/home cannot be entered by nginx": f"chmod go+x {tmp_path}/home",
        f"{tmp_path}/home/repo cannot be read by nginx": f"chmod go+rx {tmp_path}/home/repo",
    }
    (tmp_path / "home/repo").rmdir()
    assert f"{tmp_path}/home/repo does not exist" in wrong(
        files.installed_files(site, tmp_path / "root")
    )


def test_a_flag_directory_for_everybody_is_found(site: Site, tmp_path: Path) -> None:
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_uid == os.geteuid() and directory != Path("/"):
            directory.chmod(directory.stat().st_mode | 0o011)
    (tmp_path / "run").chmod(0o777)
    found = front.flag_directory(site, tmp_path / "run")
    assert found == Finding(
        f"{tmp_path}/run can be written by others", True, f"chmod go-w {tmp_path}/run"
    )


@pytest.mark.parametrize(("runs", "verb"), [(True, "reload"), (False, "start")])
def test_an_nginx_that_does_not_run_is_started(site: Site, runs: bool, verb: str) -> None:
    site.nginx_runs = runs
    remedies = wrong(front.drain(site)).values()
    assert any(each.endswith(f"setup && service nginx {verb}") for each in remedies)


def test_another_site_is_found(site: Site, tmp_path: Path) -> None:
    old = tmp_path / "root/etc/nginx/sites-enabled/000-old"
    old.symlink_to("../sites-available/clojars")
    [(what, remedy)] = wrong(front.sites(site, tmp_path / "root")).items()
    assert what == f"{old} is another site for clojars.org, and nginx uses only one"
    assert remedy.endswith(f"rm {old} && service nginx reload")


def test_a_site_where_only_root_sees_that_nginx_reads_it_is_no_other_site(
    site: Site, tmp_path: Path
) -> None:
    """As with nginx.org's package, which reads conf.d alone."""
    nginx = tmp_path / "root/etc/nginx"
    own = nginx / "conf.d/clojars.conf"
    own.parent.mkdir(exist_ok=True)
    own.write_text((nginx / "sites-available/clojars").read_text())
    [what] = wrong(front.sites(site, tmp_path / "root"))
    assert what.startswith(f"{own} is another site")  # beside that in sites-enabled
    (nginx / "sites-enabled/clojars").unlink()
    assert not wrong(front.sites(site, tmp_path / "root"))


def test_a_run_at_work_is_no_alarm(site: Site) -> None:
    seen(site, observed("primary", FIRST), observed("backup", Tags.SECOND))
    assert len(wrong(running.jobs(site))) == 1
    site.holder = lock.Holder(command="deploy", version=Tags.SECOND)
    assert wrong(running.jobs(site)) == {}
    seen(site, observed("primary", None), observed("backup", None))
    assert len(wrong(running.jobs(site))) == 2


def test_a_process_that_is_not_the_users_own_is_found(site: Site) -> None:
    seen(site, observed("primary", FIRST), observed("backup", FIRST))
    assert wrong(running.jobs(site)) == {}
    site.owner = NOBODY
    with subprocess.Popen(["sleep", "60"]) as child:
        found = wrong(running.jobs(site))
        child.kill()
    assert f"stop clojars; kill {child.pid}; /nowhere/start clojars" in next(iter(found.values()))
    assert [what.split(":")[0] for what in found] == ["clojars", "clojars-backup"]
    assert f"(PID {os.getpid()}) and not the application itself" in next(iter(found))


def test_commands_are_for_whoever_has_to_type_them(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen(site, observed("primary", FIRST), observed("backup", None))
    assert site.way_back == "deploy-clojars deploy 0.1.0"  # its jar is not there
    site.owner = NOBODY if os.geteuid() != NOBODY else 0
    assert site.way_back == f"sudo -iu {site.user} deploy-clojars deploy 0.1.0"
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert site.setup == "as root: deploy-clojars setup"


def test_a_health_url_is_told_with_its_job(site: Site) -> None:
    checked = (Check("http://x/", ok=False, ms=1, detail="503"),)
    seen(site, observed("primary", FIRST, checks=checked), observed("backup", FIRST))
    assert list(wrong(running.jobs(site))) == ["clojars: http://x/: 503"]
    [finding] = [each for each in running.jobs(site) if each.wrong]
    first, then = finding.remedy.splitlines()
    assert (
        first
        == "if instances.primary.health in /etc/deploy-clojars.toml is wrong, set it; otherwise:"
    )
    assert then == site.way_back


def test_findings_that_one_command_mends_are_one() -> None:
    found = [Finding("a", True, "do"), Finding("b"), Finding("c", True, "do"), Finding("d", True)]
    assert checks.as_text(found).splitlines() == [
        "!!  a", "!!  c", "      do", "ok  b", "!!  d", "2 findings"
    ]  # fmt: skip


def test_a_repository_without_tags_is_found(site: Site, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", "--bare", tmp_path / "empty"], check=True)
    config = msgspec.structs.replace(site.host.config, repository=f"{tmp_path}/empty")
    found = user._remote(Host(config))
    assert found.wrong
    assert "has no tags" in found.what


def test_an_old_script_is_not_asked_to_deploy_a_tag_named_check(site: Site, tmp_path: Path) -> None:
    site.owner = NOBODY
    [finding] = user.as_the_production_user(site)
    assert finding.remedy == "sudo -iu nobody deploy-clojars check"
    (tmp_path / "home/bin").mkdir()
    (tmp_path / "home/bin/deploy-clojars").touch()
    [finding] = user.as_the_production_user(site)
    assert finding.remedy == ""


def test_a_reader_that_has_seen_enough_and_a_full_disk_are_no_defects(
    light_host: LittleHost,
) -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [*light_host.command, "check"], env=light_host.whole_environment, stdout=full,
            stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.startswith("error: standard output cannot be written")


@pytest.mark.parametrize(
    ("said", "since", "wrong"),
    [
        ("git version 2.39.5", (2, 29), False),
        ("git version 2.29", (2, 29), False),
        ("git version 2.28.9", (2, 29), True),
        ("git version 2.100.1.windows.1", (2, 29), False),
        ("status (upstart 1.13.2)\nCopyright", (1, 4), False),
        ("status (upstart 1.3)", (1, 4), True),
        ("1.9.13", (1, 9, 13), False),
        ("1.9.9", (1, 9, 13), True),
        ("", (1, 4), True),
    ],
)
def test_versions_are_compared_as_numbers(said: str, since: tuple[int, ...], wrong: bool) -> None:
    assert programs.judged("it", said, since).wrong is wrong
