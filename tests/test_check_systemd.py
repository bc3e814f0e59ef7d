"""`check` on a host of systemd: what it finds, and that its remedies work as typed."""

from __future__ import annotations

import grp
import ipaddress
import pwd
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from little_host import wait_for
from systemd_kit import FIRST, Kit, serving_kit

from deploy_clojars import config
from deploy_clojars.checks import filesystem, front, programs, running, units
from deploy_clojars.checks.finding import Finding, Site
from deploy_clojars.config import parse
from deploy_clojars.host.host import Host
from deploy_clojars.machine import connections
from deploy_clojars.machine.environment import why_for_a_shell
from deploy_clojars.setup import journal_access
from deploy_clojars.setup.validation import InstalledNginx

NOBODY = "nobody"
GROUP = grp.getgrgid(pwd.getpwnam(NOBODY).pw_gid).gr_name
FLAG_DIRECTORY = Path("/run/clojars")


# What the settings of a unit mean


def whys(shown: dict[str, str], timeout: float = 90) -> list[str]:
    """What is wrong with the settings of a unit that is otherwise as it should be."""
    shown = {"User": NOBODY, "Restart": "always", **shown}
    found = units.faults(
        shown, user=NOBODY, group=GROUP, timeout=timeout, flag_directory=FLAG_DIRECTORY
    )
    return [fault.why for fault in found]


@pytest.mark.parametrize(
    ("shown", "why"),
    [
        ({"User": ""}, "runs as root, not as nobody"),
        ({"User": "clojars-of-old"}, "runs as clojars-of-old, not as nobody"),
        ({"Group": "root"}, "has Group=root, so that only root sees what it has open"),
        ({"PrivateUsers": "yes"}, "has PrivateUsers=yes, so that only root sees what it has open"),
        (
            {"AmbientCapabilities": "cap_net_bind_service"},
            "has AmbientCapabilities=cap_net_bind_service, so that only root sees what it has open",
        ),
        (
            {"PrivateNetwork": "yes"},
            "has PrivateNetwork=yes, so that only root sees on which ports it listens",
        ),
        (
            {"NetworkNamespacePath": "/run/netns/x"},
            "has NetworkNamespacePath=/run/netns/x, so that only root sees on which ports it listens",
        ),
        ({"MemoryDenyWriteExecute": "yes"}, "has MemoryDenyWriteExecute=yes, with which no JVM runs"),
        (
            {"KillMode": "process"},
            "has KillMode=process: child processes outlive a stop and keep its ports",
        ),
        (
            {"KillMode": "none"},
            "has KillMode=none: child processes outlive a stop and keep its ports",
        ),
        ({"Restart": "no"}, "has Restart=no: after a crash it stays down"),
        ({"Restart": "on-success"}, "has Restart=on-success: after a crash it stays down"),
        (
            {"TimeoutStopUSec": "1min 31s"},
            "may take 1min 31s to stop, longer than services.timeout (90 s)",
        ),
        (
            {"TimeoutStopUSec": "infinity"},
            "may take infinity to stop, longer than services.timeout (90 s)",
        ),
        (
            {"RuntimeDirectory": "other clojars", "RuntimeDirectoryPreserve": "restart"},
            "has RuntimeDirectory=clojars: /run/clojars, the drain flag's directory, is removed when it stops",
        ),
    ],
)  # fmt: skip
def test_a_setting_that_gets_in_the_way_is_found(shown: dict[str, str], why: str) -> None:
    assert whys(shown) == [why]


@pytest.mark.parametrize(
    "shown",
    [
        {},
        {"User": str(pwd.getpwnam(NOBODY).pw_uid), "Group": GROUP},
        {"Group": str(grp.getgrnam(GROUP).gr_gid), "PrivateUsers": "no", "PrivateNetwork": "no"},
        {"KillMode": "mixed", "Restart": "on-failure", "TimeoutStopUSec": "1min 30s"},
        {"RuntimeDirectory": "clojars", "RuntimeDirectoryPreserve": "yes"},
        {"RuntimeDirectory": "clojars-cache"},
    ],
)
def test_settings_that_are_no_hindrance_are_not(shown: dict[str, str]) -> None:
    assert whys(shown) == []


@pytest.mark.parametrize(
    ("shown", "seconds"),
    [
        ("1min 30s", 90), ("30s", 30), ("500ms", 0.5), ("1h 2min 3s", 3723), ("0", 0),
        ("infinity", float("inf")), ("1d", 86400), ("2w 1us", 1209600.000001),
    ],
)  # fmt: skip
def test_a_duration_is_read_as_systemctl_writes_it(shown: str, seconds: float) -> None:
    assert units.seconds_of(shown) == seconds


@pytest.mark.parametrize(
    ("state", "wanted", "starts"),
    [
        ("enabled", "", True),
        ("enabled", "multi-user.target", True),
        ("enabled-runtime", "multi-user.target", False),  # until the next boot
        ("disabled", "", False),
        ("disabled", "clojars.target", True),
        ("static", "", False),
        ("static", "clojars.target", True),
        ("indirect", "", False),
    ],
)
def test_what_starts_at_boot(state: str, wanted: str, starts: bool) -> None:
    assert units.starts_at_boot({"UnitFileState": state, "WantedBy": wanted}) is starts


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("MAIL_URL=smtp://localhost:25", None),
        ("  NAME='a $b `c` # d'", None),
        ('NAME="a # b"', None),
        ("NAME=a#b", None),
        ("NAME=costs 5$", None),
        ("# export NAME=1", None),
        ("", None),
        ("export NAME=1", "systemd skips a line with `export`"),
        ("NAME=$HOME/data", "systemd takes the `$` or backquote literally"),
        ('NAME="${HOME}/data"', "systemd takes the `$` or backquote literally"),
        ("NAME=$(hostname)", "systemd takes the `$` or backquote literally"),
        ("NAME=`hostname`", "systemd takes the `$` or backquote literally"),
        ("NAME=1 # the first", "systemd takes the comment as part of the value"),
    ],
)
def test_a_line_that_a_shell_reads_in_another_way(line: str, why: str | None) -> None:
    assert why_for_a_shell(line) == why


@pytest.mark.parametrize(
    ("line", "made"),
    [
        ("d /run/clojars 0755 clojars clojars -", True),
        ("D! /run/clojars/ 0755 clojars clojars -", True),
        ("d /var/run/clojars 0755 clojars clojars -", True),
        ("d /run/clojars-other 0755 clojars clojars -", False),
        ("# d /run/clojars 0755 clojars clojars -", False),
        ("r /run/clojars", False),
        ("", False),
    ],
)
def test_a_directory_that_is_made_at_boot(tmp_path: Path, line: str, made: bool) -> None:
    file = tmp_path / "usr/lib/tmpfiles.d/site.conf"
    file.parent.mkdir(parents=True)
    file.write_text(f"# comment\n\n{line}\n")
    assert filesystem.is_made_at_boot(Path("/run/clojars"), tmp_path) is made
    assert filesystem.is_made_at_boot(Path("/srv/clojars/run"), tmp_path) is True


# Remedies for systemd


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A host of systemd as far as its configuration says; systemctl is not there to be asked."""
    (tmp_path / "home/repo").mkdir(parents=True)
    (tmp_path / "root/run/systemd/system").mkdir(parents=True)
    host = Host(
        parse(
            {
                "home": str(tmp_path / "home"),
                "services": {"manager": "systemd", "bin": "/nowhere"},
                "drain": {"probe": "http://127.0.0.1:9/p"},
            },
            "test",
        )
    )
    return Site(host, host.look())


def wrong(found: Iterator[Finding]) -> dict[str, str]:
    """What is wrong, and each one's remedy."""
    return {each.what: each.remedy for each in found if each.wrong}


@pytest.mark.parametrize(("runs", "verb"), [(True, "reload"), (False, "start")])
def test_nginx_is_reloaded_or_started_by_systemctl(site: Site, runs: bool, verb: str) -> None:
    site.nginx_runs = runs
    remedies = wrong(front.drain(site)).values()
    assert any(each.endswith(f"setup && systemctl {verb} nginx") for each in remedies)


def test_what_setup_makes_and_is_missing_is_found(site: Site, tmp_path: Path) -> None:
    found = wrong(filesystem.installed_files(site, tmp_path / "root"))
    assert f"{tmp_path}/root/var/www/clojars/503.html does not exist" in found
    assert "/run/clojars, the drain flag's directory, would be missing after a boot" in found
    assert {remedy.rpartition(" ")[2] for remedy in found.values()} == {"setup"}
    assert not [what for what in found if "/etc/init" in what]


def test_an_nginx_that_cannot_serve_the_nailgun_port_is_found_unless_something_else_does(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.nginx = InstalledNginx("nginx", (1, 18, 0), "")
    monkeypatch.setattr(connections, "listeners", list)
    [(what, remedy)] = wrong(programs.nailgun(site)).items()
    assert what.startswith("nothing can serve the nailgun port")
    assert remedy.endswith("apt-get install libnginx-mod-stream && deploy-clojars setup")
    port = (ipaddress.IPv4Address("127.0.0.1"), 7600)
    row = connections.Row(port, port, "LISTEN", 0, 1)
    monkeypatch.setattr(connections, "listeners", lambda: [row])
    assert wrong(programs.nailgun(site)) == {}


def test_a_manager_that_cannot_be_asked_is_one_finding(site: Site) -> None:
    found = wrong(running.jobs(site))
    assert list(found) == [
        f"job {job}: /nowhere/systemctl: No such file or directory"
        for job in ("clojars", "clojars-backup")
    ]
    assert set(found.values()) == {"set services.bin to the directory that has systemctl"}
    assert wrong(units.units(site)) == {}
    assert list(programs.manager(site)) == []


def test_upstart_in_the_configuration_of_a_host_of_systemd_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "BOOTED", tmp_path)
    (tmp_path / "home").mkdir()
    document = {"home": str(tmp_path / "home"), "services": {"manager": "upstart"}}
    host = Host(parse(document, "test"), file=tmp_path / "config.toml")
    found = wrong(running.jobs(Site(host, host.look())))
    remedy = f"this host has systemd: remove services.manager from {tmp_path}/config.toml"
    assert set(found.values()) == {remedy}


def test_a_users_own_systemd_ends_with_the_last_session_unless_it_lingers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "reads_the_journal", lambda user: True)
    host = Host(
        parse({"home": str(tmp_path), "services": {"manager": "systemd", "scope": "user"}}, "test")
    )
    site = Site(host, host.look())
    site.owner = pwd.getpwnam(NOBODY).pw_uid
    assert site.setup == ""
    assert not site.is_in(tmp_path)
    [(what, remedy)] = wrong(units.of_the_user(site, tmp_path)).items()
    assert what == "the systemd of nobody ends with its last session, and so do both instances"
    assert remedy.endswith("loginctl enable-linger nobody")
    (tmp_path / "var/lib/systemd/linger").mkdir(parents=True)
    (tmp_path / "var/lib/systemd/linger/nobody").touch()
    assert list(units.of_the_user(site, tmp_path)) == []


def test_the_version_of_systemd_is_a_whole_number() -> None:
    said = "systemd 252 (252.38-1~deb12u1)\n+PAM +AUDIT"
    assert programs.judged("systemd", said, programs.SYSTEMD_SINCE) == Finding("systemd 252")
    old = programs.judged("systemd", "systemd 229\n+PAM", programs.SYSTEMD_SINCE)
    assert old == Finding("systemd 229 is too old", True, "install systemd 239 or newer")


def test_who_reads_the_journal() -> None:
    assert not journal_access.reads_the_journal("nobody-there")


# On a real systemd


@pytest.fixture(scope="module")
def kit() -> Iterator[Kit]:
    with serving_kit() as kit:
        yield kit


@pytest.fixture
def host(kit: Kit) -> Iterator[Kit]:
    """The host, with its units as `setup` made them."""
    yield kit
    kit.without_drop_ins()


def test_a_host_that_setup_made_has_no_finding_about_systemd(host: Kit) -> None:
    """nginx does not run there."""
    about_nginx = (
        r"!!  http://127.*\n!!  the site does not answer .*\n      systemctl start nginx\n"
    )
    assert re.fullmatch(rf"{about_nginx}1 finding\n", host.check())
    shown = host.tool("check").stdout
    assert "ok  systemd 2" in shown
    assert "ok  clojars.service starts at boot\nok  clojars-backup.service starts at boot" in shown
    assert "ok  sudo allows what is needed" in host.tool("check", by="clojars").stdout


def test_faults_of_one_unit_have_one_remedy_which_works(host: Kit) -> None:
    host.drop_in("clojars-backup", "KillMode=process", "Restart=no", "TimeoutStopSec=600")
    shown = host.check()
    for why in (
        "has KillMode=process: child processes outlive a stop and keep its ports",
        "has Restart=no: after a crash it stays down",
        "may take 10min to stop, longer than services.timeout (90 s)",
    ):
        assert f"!!  clojars-backup.service {why}\n" in shown
    [write, restart] = re.findall(r"^ {6}(mkdir .*|then run: .*)$", shown, re.MULTILINE)
    host.machine.run("sh", "-c", write)
    assert restart == "then run: sudo -iu clojars deploy-clojars restart"
    # As that `restart` does.
    host.systemctl("daemon-reload")
    assert "clojars-backup.service has" not in host.check()
    assert "clojars-backup.service may" not in host.check()


def test_what_hides_an_instance_is_found_and_its_remedy_shows_it(host: Kit) -> None:
    host.drop_in("clojars-backup", "PrivateUsers=yes")
    host.systemctl("restart", "clojars-backup")
    wait_for(lambda: host.status["ok"], "it serves")
    as_user = host.check(by="clojars")
    assert "what clojars-backup has open is not visible to this user" in as_user
    shown = host.check()
    assert "!!  clojars-backup.service has PrivateUsers=yes" in shown
    assert "while the other instance serves:\n" in shown
    [remedy] = re.findall(r"^ {6}(mkdir .*)$", shown, re.MULTILINE)
    host.machine.run("sh", "-c", remedy)
    wait_for(lambda: host.status["ok"], "it serves")
    assert "visible" not in host.check(by="clojars")
    assert "PrivateUsers" not in host.check()


@pytest.mark.parametrize("job", ["clojars", "clojars-backup"])
def test_a_unit_that_would_not_start_at_boot_is_found(host: Kit, job: str) -> None:
    host.systemctl("disable", job)
    try:
        shown = host.check()
        assert f"!!  {job}.service would not start at boot\n      systemctl enable {job}.service\n" in shown  # fmt: skip
    finally:
        host.systemctl("enable", f"{job}.service")
    assert "start at boot" not in host.check()


def test_a_unit_without_an_install_section_is_added_to_the_boot(host: Kit) -> None:
    unit = host.root / "etc/systemd/system/clojars.service"
    text = unit.read_text()
    host.systemctl("disable", "clojars")
    host.machine.write("/etc/systemd/system/clojars.service", text.partition("[Install]")[0])
    host.systemctl("daemon-reload")
    try:
        [add] = re.findall(r"^ {6}(systemctl add-wants .*)$", host.check(), re.MULTILINE)
        host.machine.run(*add.split())
        assert "start at boot" not in host.check()
    finally:
        host.machine.write("/etc/systemd/system/clojars.service", text)
        host.systemctl("enable", "clojars")


def test_what_changed_after_the_start_is_found_until_the_restart(host: Kit) -> None:
    since = time.time()
    wait_for(lambda: time.time() > since + 3, "the files are changed clearly later")
    # The first drop-in of a unit: NeedDaemonReload is `no`.
    host.machine.write(
        "/etc/systemd/system/clojars-backup.service.d/a.conf", "[Service]\nEnvironment=A=1\n"
    )
    assert host.systemctl("show", "--value", "-p", "NeedDaemonReload", "clojars-backup") == "no"
    unread = "systemd has not read /etc/systemd/system/clojars-backup.service.d/a.conf yet"
    restart = "sudo -iu clojars deploy-clojars restart"
    assert f"!!  {unread}\n      {restart}\n" in host.check()
    host.systemctl("daemon-reload")
    late = "/etc/systemd/system/clojars-backup.service.d/a.conf was changed after clojars-backup was started"
    assert f"!!  {late}\n      {restart}\n" in host.check()
    # The unit itself; and the settings, which systemd reads at each start.
    host.machine.run("touch", "/etc/systemd/system/clojars-backup.service", "/etc/default/clojars")
    shown = host.check()
    assert "!!  /etc/systemd/system/clojars-backup.service was changed after" in shown
    for job in ("clojars", "clojars-backup"):
        assert f"!!  /etc/default/clojars was changed after {job} was started" in shown
    result = host.tool("restart", "--yes", "--force", by="clojars")
    assert result.returncode == 0, result.stderr
    assert "was changed after" not in host.check()
    assert "has not read" not in host.check()


def test_a_stopped_unit_whose_file_changed_is_read_again_by_hand(host: Kit) -> None:
    host.systemctl("stop", "clojars-backup")
    host.machine.run("touch", "-d", "+1 hour", "/etc/systemd/system/clojars-backup.service")
    try:
        shown = host.check()
        what = "systemd has not read the changed files of clojars-backup.service yet"
        assert f"!!  {what}\n      systemctl daemon-reload\n" in shown
    finally:
        host.machine.run("touch", "/etc/systemd/system/clojars-backup.service")
        restart_the_backup(host)


def test_a_unit_that_is_not_the_one_of_setup_is_only_mentioned(host: Kit) -> None:
    path = "/etc/systemd/system/clojars-backup.service"
    text = (host.root / path[1:]).read_text()
    host.machine.write(path, text.replace("512m", "768m"))
    restart_the_backup(host)
    said = "starts at boot; differs from the one of setup: deploy-clojars setup --dry-run"
    assert f"ok  clojars-backup.service {said}\n" in host.tool("check").stdout
    host.machine.write(path, text)
    restart_the_backup(host)
    assert said not in host.tool("check").stdout


def restart_the_backup(host: Kit) -> None:
    """As a person would, after a change of its files."""
    host.systemctl("daemon-reload")
    host.systemctl("restart", "clojars-backup")
    wait_for(lambda: host.status["instances"]["backup"]["serving"], "it serves")


def test_a_masked_unit_is_found_with_the_command_that_unmasks_it(host: Kit) -> None:
    """Whether it runs or not."""
    host.systemctl("stop", "clojars-backup")
    unit = "/etc/systemd/system/clojars-backup.service"
    host.machine.run("mv", unit, f"{unit}.old")
    try:
        host.systemctl("mask", "clojars-backup")
        shown = host.check()
        assert "!!  job clojars-backup: clojars-backup.service: masked\n" in shown
        assert "      systemctl unmask clojars-backup.service\n" in shown
        host.systemctl("unmask", "clojars-backup")
        shown = host.check()
        assert "!!  job clojars-backup: clojars-backup.service: not-found\n" in shown
        assert "      deploy-clojars setup\n" in shown
        host.machine.write(unit, "[Service]\n")
        host.systemctl("daemon-reload")
        shown = host.check()
        assert "!!  job clojars-backup: clojars-backup.service: bad-setting\n" in shown
        assert "systemctl status clojars-backup.service says what is wrong with its file" in shown
    finally:
        host.machine.run("mv", f"{unit}.old", unit)
        restart_the_backup(host)


def test_a_unit_that_died_too_often_is_found(host: Kit) -> None:
    host.drop_in("clojars-backup", "ExecStart=", "ExecStart=false", "RestartSec=0")
    host.systemctl("restart", "clojars-backup")
    wait_for(lambda: "failed" in host.systemctl("show", "-p", "ActiveState", "clojars-backup"), "")
    shown = host.check()
    assert re.search(
        r"!!  clojars-backup\.service has failed \(exit-code\) after \d restarts, and systemd no "
        r"longer starts it\n      journalctl -u clojars-backup\.service says why; then: "
        rf"sudo -iu clojars deploy-clojars rollback {FIRST}\n",
        shown,
    )
    host.without_drop_ins()
    host.systemctl("reset-failed", "clojars-backup")
    restart_the_backup(host)


def test_a_socket_that_starts_a_unit_is_found_once(host: Kit) -> None:
    host.machine.write(
        "/etc/systemd/system/lazy.socket",
        "[Socket]\nListenStream=/run/lazy\nService=clojars-backup.service\n",
    )
    host.systemctl("daemon-reload")
    host.systemctl("stop", "clojars-backup")  # while that runs the socket cannot be started
    host.systemctl("start", "lazy.socket")
    try:
        for by, disable in (
            ("root", "systemctl disable --now lazy.socket"),
            ("clojars", "as root: systemctl disable --now lazy.socket"),
        ):
            shown = host.check(by)
            assert shown.count("clojars-backup.service is started by lazy.socket") == 1
            assert f"      have the application open its port itself\n      {disable}\n" in shown
    finally:
        host.systemctl("stop", "lazy.socket")
        host.machine.run("rm", "/etc/systemd/system/lazy.socket")
        restart_the_backup(host)


def test_a_unit_that_is_generated_from_an_old_script_is_found(host: Kit) -> None:
    unit = "/etc/systemd/system/clojars-backup.service"
    script = (
        "#!/bin/sh\n### BEGIN INIT INFO\n# Provides: clojars-backup\n# Required-Start:\n"
        "# Default-Start: 2 3 4 5\n# Default-Stop: 0\n### END INIT INFO\n"
        "case $1 in start) sleep 1000 & ;; esac\n"
    )
    host.systemctl("stop", "clojars-backup")
    host.machine.run("mv", unit, f"{unit}.old")
    host.machine.write("/etc/init.d/clojars-backup", script, 0o755)
    host.systemctl("daemon-reload")
    host.systemctl("start", "clojars-backup")
    try:
        shown = host.check()
        what = (
            "clojars-backup.service is only generated, from /etc/init.d/clojars-backup: systemd "
            "does not know its main process"
        )
        assert f"!!  {what}\n" in shown
        assert "      deploy-clojars setup\n" in shown
    finally:
        host.machine.run("mv", f"{unit}.old", unit)
        host.machine.run("rm", "/etc/init.d/clojars-backup")
        restart_the_backup(host)


def test_an_application_behind_su_is_found(host: Kit) -> None:
    path = "/etc/systemd/system/clojars-backup.service"
    text = (host.root / path[1:]).read_text()
    lines = [line for line in text.splitlines() if line.startswith(("Environment=", "Restart="))]
    command = "java -Xmx512m -jar /home/clojars/releases/clojars-web-current.jar"
    start = f"ExecStart=su --preserve-environment clojars -c '{command}'"
    host.machine.write(path, "\n".join(["[Service]", *lines, start, ""]))
    restart_the_backup(host)
    try:
        shown = host.check()
        assert re.search(
            r"!!  clojars-backup: systemd knows su of root \(PID \d+\) and not the application "
            r"itself: what it has open is hidden from clojars\n",
            shown,
        )
        assert "!!  clojars-backup.service runs as root, not as clojars\n" in shown
        assert f"      mv {path}.new {path} && systemctl daemon-reload" in shown
    finally:
        host.machine.write(path, text)
        host.systemctl("enable", "clojars-backup")
        restart_the_backup(host)


def test_settings_from_the_days_of_a_shell_are_found(host: Kit) -> None:
    settings = host.root / "etc/default/clojars"
    text = settings.read_text()
    host.machine.write("/etc/default/clojars", "A=1\nexport SECRET=xyz\nB=$HOME/data\n", 0o640)
    try:
        shown = host.check()
        assert "!!  /etc/default/clojars, line 2: systemd skips a line with `export`" in shown
        assert "!!  /etc/default/clojars, line 3: systemd takes the `$`" in shown
        assert "xyz" not in shown
    finally:
        host.machine.write("/etc/default/clojars", text, 0o640)


def test_settings_in_a_directory_of_roots_are_no_finding(host: Kit) -> None:
    host.machine.write("/root/settings", "A=1\n", 0o600)
    host.drop_in("clojars-backup", "EnvironmentFile=/root/settings")
    restart_the_backup(host)  # with what is in it now
    for by in ("root", "clojars"):
        assert "/root/settings" not in host.check(by)


def test_who_may_not_read_the_journal_is_found(host: Kit) -> None:
    host.machine.run("gpasswd", "--delete", "clojars", "systemd-journal")
    for by, prefix in (("root", ""), ("clojars", "as root: ")):
        shown = host.check(by)
        assert "!!  clojars cannot read the journal" in shown
        assert f"      {prefix}usermod --append --groups systemd-journal clojars\n" in shown
    host.machine.run("usermod", "--append", "--groups", "systemd-journal", "clojars")
    assert "journal" not in host.check()


def test_a_right_that_is_missing_is_found_by_the_production_user(host: Kit) -> None:
    file = host.root / "etc/sudoers.d/deploy-clojars"
    text = file.read_text()
    less = text.replace(", /usr/bin/systemctl reset-failed clojars.service", "")
    assert less != text
    host.machine.write("/etc/sudoers.d/deploy-clojars", less, 0o440)
    try:
        shown = host.check(by="clojars")
        refused = "/usr/bin/systemctl reset-failed clojars.service"
        assert f"sudo does not let this user run {refused} without a password" in shown
        assert "      as root: deploy-clojars setup\n" in shown
    finally:
        host.machine.write("/etc/sudoers.d/deploy-clojars", text, 0o440)


def test_a_boot_without_the_flags_directory_is_foreseen(host: Kit) -> None:
    host.machine.run("mv", "/etc/tmpfiles.d/clojars.conf", "/etc/tmpfiles.d/clojars.off")
    shown = host.check()
    host.machine.run("mv", "/etc/tmpfiles.d/clojars.off", "/etc/tmpfiles.d/clojars.conf")
    what = "/run/clojars, the drain flag's directory, would be missing after a boot"
    assert f"!!  {what}\n      deploy-clojars setup\n" in shown
