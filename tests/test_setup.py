"""`deploy-clojars setup`: what it renders, what it leaves alone, and what etc/ has."""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from little_host import without_escapes
from private_machine import with_private_mounts
from programs import require_program
from standin.upstart import JobFile, Upstart

from deploy_clojars.config import Config, parse
from deploy_clojars.errors import UsageError
from deploy_clojars.host.services.upstart import Upstart as UpstartService
from deploy_clojars.setup import in_the_way, setup, validation
from deploy_clojars.setup.files import files, kit, values_of

DEBIAN = "nginx version: nginx/1.22.1\nconfigure arguments: --with-stream=dynamic"
PROJECT = Path(__file__).parents[1]
ETC = PROJECT / "etc"


def run_setup(
    *words: str, config: Path | None = None, command: list[str] | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs `setup`."""
    command = command or [sys.executable, "-m", "deploy_clojars"]
    chosen = ["-c", str(config)] if config else []
    return subprocess.run(
        [*command, *chosen, "setup", *words],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def tree(root: Path) -> dict[str, bytes | str]:
    """Every file's content and every link's text below a directory."""
    found: dict[str, bytes | str] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


OTHER = """
name = "shop"
home = "/srv/shop"
[services]
bin = "/opt/upstart/sbin"
[instances.primary]
job = "shop-a"
url = "http://shop.example/"
health = ["http://127.0.0.1:9101/health", "tcp://127.0.0.1:9201"]
[instances.backup]
job = "shop-b"
url = "http://shop.example:9102/"
health = ["http://127.0.0.1:9102/health", "tcp://127.0.0.1:9202"]
[drain]
flag = "/run/shop/prefer-b"
probe = "http://127.0.0.1:9300/first"
"""


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A configuration in which every value is another one."""
    file = tmp_path / "other.toml"
    file.write_text(OTHER, encoding="utf-8")
    file.chmod(0o644)
    return file


def test_etc_is_exactly_what_the_default_configuration_renders_to() -> None:
    rendered = {file.etc: file for file in kit()}
    by_hand = ("deploy-clojars.toml", "ansible/")
    there = {name for name in tree(ETC) if not name.startswith(by_hand)}
    assert there == set(rendered), "python -m deploy_clojars.setup.files etc"
    for name, file in rendered.items():
        assert (ETC / name).read_text(encoding="utf-8") == file.text, name
        assert os.access(ETC / name, os.X_OK) == bool(file.mode & 0o111), name


def test_what_the_managers_have_in_common_is_the_same() -> None:
    texts = {(file.etc, file.text) for file in kit()}
    assert len(texts) == len({name for name, _ in texts})


def test_everything_is_made_below_a_directory_and_a_second_time_changes_nothing(
    tmp_path: Path,
) -> None:
    root = tmp_path / "root"
    result = run_setup("--root", str(root))
    assert result.returncode == 0, result.stderr
    made = tree(root)
    for file in files(values_of(Config())):
        if "balance" not in file.etc:
            path = root / file.path.lstrip("/")
            assert path.read_text() == file.text
            assert stat.S_IMODE(path.stat().st_mode) == file.mode
    assert made["etc/nginx/sites-enabled/clojars"] == "/etc/nginx/sites-available/clojars"
    for directory in ("home/clojars/releases", "home/clojars/repo", "run/clojars"):
        assert (root / directory).is_dir()
    again = run_setup("--root", str(root))
    assert again.returncode == 0, again.stderr
    assert "\nmade" not in again.stdout
    assert tree(root) == made


def test_a_umask_of_the_operator_closes_no_directory(tmp_path: Path) -> None:
    root = tmp_path / "root"
    words = ["sh", "-c", 'umask 077; exec "$0" "$@"', sys.executable, "-m", "deploy_clojars"]
    assert run_setup("--root", str(root), command=words).returncode == 0
    for directory in ("var/www/clojars", "home/clojars/releases", "run/clojars", "etc/nginx"):
        assert (root / directory).stat().st_mode & 0o005 == 0o005, directory


def test_a_file_that_differs_stays_and_the_new_one_is_put_beside(tmp_path: Path) -> None:
    root = tmp_path / "root"
    own = root / "etc/init/clojars.conf"
    own.parent.mkdir(parents=True)
    own.write_text("exec su clojars -c 'java'\n")
    for _ in range(2):
        result = run_setup("--root", str(root))
        assert result.returncode == 1
        assert "-exec su clojars" in result.stdout
        assert f"left unchanged: {own}" in result.stderr
        assert own.read_text() == "exec su clojars -c 'java'\n"
        assert (root / "etc/init/clojars.conf.new").read_bytes() == (
            ETC / "upstart/clojars.conf"
        ).read_bytes()
    assert (root / "etc/init/clojars-backup.conf").exists()
    # The new one may be edited before it is taken; a directory may have its name.
    beside = root / "etc/init/clojars.conf.new"
    beside.write_text("edited\n")
    (root / "etc/init/clojars.conf.new.2").mkdir()
    assert "clojars.conf.new.3" in run_setup("--root", str(root)).stdout
    assert beside.read_text() == "edited\n"


def test_what_is_in_the_way_is_found_with_the_command_that_removes_it(tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert run_setup("--root", str(root), "--nailgun", "balance").returncode == 0
    old_site = root / "etc/nginx/sites-enabled/old"
    old_site.write_text("server { listen 80; server_name www.clojars.org clojars.org; }")
    old_script = root / "home/clojars/bin/deploy-clojars"
    old_script.parent.mkdir()
    old_script.write_text("#!/bin/sh\n")
    result = run_setup("--root", str(root), "--nailgun", "nginx")
    assert result.returncode == 1
    assert f"mv {old_site} {root}/etc/nginx/old.old && service nginx reload" in result.stdout
    assert f"/sbin/stop clojars-balance; rm {root}/etc/init/clojars-balance.conf" in result.stdout
    assert f"next: mv {old_script} {old_script}.old" in result.stdout
    quiet = run_setup("--root", str(root), "-q")
    assert {line.split()[0] for line in quiet.stdout.splitlines()} == {"FOUND", "mv", "/sbin/stop", "next:"}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "conflicts"),
    [
        ("server { listen 80; server_name x clojars.org; }", True),
        ("server\n{\n server_name clojars.org;\n}", True),
        ("server { listen [::]:80 default_server; server_name clojars.org; }", True),
        ("server { listen 127.0.0.1; server_name clojars.org; }", True),
        ("server { listen 443 ssl; server_name clojars.org; }", False),
        ("server { listen 8080; server_name clojars.org; } server { server_name x; }", False),
        ("# server { server_name clojars.org; }", False),
        ("server { server_name old.clojars.org; }", False),
    ],
)
def test_a_site_of_the_same_name_and_port_is_told(text: str, conflicts: bool) -> None:
    assert in_the_way.serves(text, "clojars.org", "80") is conflicts


def test_a_refusal_of_the_nailgun_ports_file_has_its_remedy() -> None:
    values = values_of(parse({"services": {"manager": "upstart"}}, "test"))
    assert "--nailgun balance" in validation.remedy_for('"stream" directive is duplicate', values)
    unknown = validation.remedy_for('unknown directive "stream" in x', values)
    assert "libnginx-mod-stream" in unknown
    assert "--nailgun balance" in unknown
    assert validation.remedy_for("rubbish", values) == ""
    # Where systemd is, there is no balance.
    values = values_of(parse({"services": {"manager": "systemd"}}, "test"))
    for said in ('"stream" directive is duplicate', 'unknown directive "stream" in x'):
        assert "balance drops" not in validation.remedy_for(said, values)
        assert "--nailgun none" in validation.remedy_for(said, values)


def test_the_group_is_the_one_that_the_user_has() -> None:
    group = grp.getgrgid(pwd.getpwnam("nobody").pw_gid).gr_name
    values = setup.with_real_group(values_of(parse({"home": "/x/nobody"}, "test")))
    rendered = {file.etc: file.text for file in files(values)}
    assert f"\nsetgid {group}\n" in rendered["upstart/clojars.conf"]
    assert f" --userspec=nobody:{group} " in rendered["upstart/clojars-balance.conf"]
    assert f"-g {group} " in rendered["upstart/clojars-run.conf"]


def test_what_is_said_to_be_made_is_there(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "home").mkdir(parents=True)
    (root / "home/clojars").write_text("no directory")
    result = run_setup("--root", str(root))
    assert result.returncode == 1
    assert "\nmade " not in f"\n{result.stdout}"
    assert without_escapes(result.stderr).startswith("error: ")


def test_a_relative_link_to_the_site_is_as_good(tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert run_setup("--root", str(root)).returncode == 0
    link = root / "etc/nginx/sites-enabled/clojars"
    link.unlink()
    link.symlink_to("../sites-available/clojars")
    assert run_setup("--root", str(root)).returncode == 0


def test_nobody_who_reads_it_does_not_stop_it_half_way(tmp_path: Path) -> None:
    root = tmp_path / "root"
    command = ["sh", "-c", '"$0" "$@" | :', sys.executable, "-m", "deploy_clojars"]
    result = run_setup("--root", str(root), command=command)
    assert (result.returncode, result.stderr) == (0, "")
    assert (root / "etc/nginx/sites-enabled/clojars").is_symlink()
    full = ["sh", "-c", '"$0" "$@" >/dev/full', sys.executable, "-m", "deploy_clojars"]
    result = run_setup("--root", str(tmp_path / "other"), command=full)
    assert result.returncode == 1
    assert "standard output cannot be written" in result.stderr
    assert (tmp_path / "other/etc/nginx/sites-enabled/clojars").is_symlink()


def test_the_settings_are_not_even_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [settings] = (file for file in files(values_of(Config())) if file.once)
    there = tmp_path / settings.path.lstrip("/")
    there.parent.mkdir(parents=True)
    there.write_text("secret")
    monkeypatch.delattr(Path, "read_bytes")
    assert setup._planned(settings, tmp_path).found == "kept"


def test_the_message_of_the_day_names_a_file_that_the_environment_chose(
    tmp_path: Path, other: Path
) -> None:
    root = tmp_path / "root"
    assert run_setup("--root", str(root), DEPLOY_CLOJARS_CONFIG=str(other)).returncode == 0
    motd = (root / "etc/update-motd.d/60-deploy-shop-a").read_text()
    assert f"sudo -iu shop deploy-clojars -c {other} TAG" in motd


def test_the_sites_own_settings_are_never_touched_again(tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert run_setup("--root", str(root)).returncode == 0
    settings = root / "etc/default/clojars"
    settings.write_text("MAIL_URL=smtp://elsewhere\n")
    assert run_setup("--root", str(root)).returncode == 0
    assert settings.read_text() == "MAIL_URL=smtp://elsewhere\n"


def test_a_dry_run_says_it_all_and_changes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "root"
    result = run_setup("--root", str(root), "--dry-run")
    assert result.returncode == 0
    assert f"would make {root}/etc/init/clojars.conf" in result.stdout
    assert not root.exists()


def test_other_ports_names_and_paths_reach_every_file(tmp_path: Path, other: Path) -> None:
    root = tmp_path / "root"
    result = run_setup("--root", str(root), config=other)
    assert result.returncode == 0, result.stderr
    text = {name: content.decode() for name, content in tree(root).items() if isinstance(content, bytes)}  # fmt: skip
    assert set(text) == {
        "etc/default/shop-a",
        "etc/init/shop-a-run.conf",
        "etc/init/shop-a.conf",
        "etc/init/shop-b.conf",
        "etc/nginx/modules-enabled/90-shop-a-nailgun.conf",
        "etc/nginx/sites-available/shop-a",
        "etc/sudoers.d/deploy-shop-a",
        "etc/update-motd.d/60-deploy-shop-a",
        "usr/local/lib/shop-a/java",
        "var/www/shop-a/503.html",
    }
    for name, content in text.items():
        own = content.replace("deploy-clojars", "")
        assert not re.search(r"clojars|\b(8001|8002|8099|7601|7602)\b", own), name
    site = text["etc/nginx/sites-available/shop-a"]
    for word in ("127.0.0.1:9101", "127.0.0.1:9102", "127.0.0.1:9300", "= /first",
                 "-f /run/shop/prefer-b", "root /srv/shop;", "server_name shop.example;"):  # fmt: skip
        assert word in site
    assert "/opt/upstart/sbin/restart shop-b" in text["etc/sudoers.d/deploy-shop-a"]
    assert "/srv/shop/releases/shop-current.jar" in text["etc/init/shop-b.conf"]
    assert "setuid shop" in text["etc/init/shop-b.conf"]
    assert f"sudo -iu shop deploy-clojars -c {other} TAG" in text["etc/update-motd.d/60-deploy-shop-a"]  # fmt: skip


def test_a_host_of_today_needs_no_nailgun_port(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        '[services]\nmanager = "systemd"\n'
        '[instances.primary]\nhealth = ["http://127.0.0.1:8001/"]\n'
        '[instances.backup]\nhealth = ["http://127.0.0.1:8002/"]\n'
    )
    config.chmod(0o644)
    root = tmp_path / "root"
    result = run_setup("--root", str(root), config=config)
    assert result.returncode == 0, result.stderr
    made = {name: text for name, text in tree(root).items() if isinstance(text, bytes)}
    assert b"\nEnvironment=PORT=8002\n" in made["etc/systemd/system/clojars-backup.service"]
    assert not [name for name, text in made.items() if b"nailgun" in text.lower()]
    refused = run_setup("--root", str(root), "--nailgun", "nginx", config=config)
    assert refused.returncode == 2
    assert "--nailgun nginx: `health` of the instances has no tcp:// URL" in refused.stderr
    one = config.read_text().replace(':8001/"', ':8001/", "tcp://127.0.0.1:7601"')
    config.write_text(one)
    assert "instances.backup.health: has no tcp:// URL" in run_setup(config=config).stderr


def test_the_two_instances_differ_in_four_lines() -> None:
    primary, backup = (
        (ETC / "upstart" / name).read_text().splitlines()
        for name in ("clojars.conf", "clojars-backup.conf")
    )
    assert len(primary) == len(backup)
    assert sum(one != other for one, other in zip(primary, backup, strict=True)) == 4


def test_the_job_files_are_read_as_written() -> None:
    for name in ("clojars", "clojars-backup", "clojars-balance", "clojars-run"):
        job = JobFile(name, (ETC / "upstart" / f"{name}.conf").read_text()).parse()
        assert job.commands
        if name in ("clojars", "clojars-backup"):
            assert job.setuid == job.setgid == "clojars"
            assert (job.respawn, job.respawn_limit, job.respawn_interval) == (True, 5, 60)
            assert job.kill_timeout == 30
            assert job.console == "log"
            assert {"PORT", "NAILGUN_PORT", "REPO", "DATABASE_URL", "MAIL_URL", "KEY_FILE"} == set(
                job.environment
            )


def test_visudo_takes_the_sudoers_file() -> None:
    require_program("visudo")
    file = ETC / "sudoers.d/deploy-clojars"
    result = subprocess.run(
        ["visudo", "-c", "-f", file], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('home = "/home/clo jars"', "home"),
        ('home = "/home/x\\";y"', "home"),
        ('home = "/home/../etc"', "home"),
        ('home = "/home/Clojars"', "--user"),
        ('[services]\nbin = "/sbin,ALL"', "services.bin"),
        ('home = "/"', "home"),
        ('[drain]\nflag = "/run/x;y"', "drain.flag"),
        ('[drain]\nflag = "/run/drain-primary"', "/run is the system's"),
        ('[drain]\nflag = "/var/lib/drain-primary"', "/var/lib is the system's"),
        ('[drain]\nflag = "//drain-primary"', "the system's"),
        ('[drain]\nprobe = "http://127.0.0.1:80/pool"', "port 80 is taken by the site"),
        ('[instances.backup]\njob = "clojars-run"', "the name of a job of setup's"),
        (
            '[instances.backup]\nhealth = ["http://127.0.0.1:8001/x", "tcp://127.0.0.1:7602"]',
            "port 8001 is taken",
        ),
        (
            '[instances.primary]\nhealth = ["http://127.0.0.1:8001/", "tcp://127.0.0.1:7600"]',
            "port 7600 is taken by the nailgun port",
        ),
        ('[drain]\nprobe = "http://example.org:8099/pool"', "loopback"),
        ('[drain]\nprobe = "http://127.0.0.1:8099/$x"', "drain.probe"),
        ('[instances.primary]\nhealth = ["tcp://127.0.0.1:1"]', "http://"),
    ],
)
def test_what_cannot_stand_in_such_a_file_is_refused(tmp_path: Path, line: str, said: str) -> None:
    config = tmp_path / "config.toml"
    config.write_text(line + "\n")
    config.chmod(0o644)
    result = run_setup("--root", str(tmp_path / "root"), config=config)
    assert result.returncode == 2, result.stderr
    assert said in result.stderr
    assert not (tmp_path / "root").exists()


def test_only_root_sets_a_host_up(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        result = run_setup()
    else:
        require_program("setpriv")
        command = ["setpriv", "--reuid=65534", "--clear-groups", "/usr/bin/env", "python3"]
        site = [path for path in sys.path if path.endswith("site-packages")]
        result = run_setup(
            command=[*command, "-m", "deploy_clojars"],
            PYTHONPATH=os.pathsep.join([str(PROJECT / "src"), *site]),
        )
    assert result.returncode == 2, result.stderr
    assert "sudo deploy-clojars setup" in result.stderr


def test_a_link_that_leads_out_of_the_directory_is_not_followed(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    outside.mkdir()
    root.mkdir()
    (root / "etc").symlink_to(outside)
    result = run_setup("--root", str(root))
    assert result.returncode == 2
    assert "leads outside" in result.stderr
    assert list(outside.iterdir()) == []
    (root / "etc").unlink()
    (root / "etc/init").mkdir(parents=True)
    (outside / "secret").write_text("secret")
    (root / "etc/init/clojars.conf").symlink_to(outside / "secret")
    result = run_setup("--root", str(root))
    assert result.returncode == 2
    assert "secret" not in result.stdout


def test_a_host_name_that_nginx_would_take_for_more_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[instances.primary]\nurl = "http://a;b/"\n')
    config.chmod(0o644)
    result = run_setup("--root", str(tmp_path / "root"), config=config)
    assert result.returncode == 2, result.stdout
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("said", "there", "version", "stream"),
    [
        (f"{DEBIAN} --modules-path=/m", True, (1, 22, 1), "load_module /m/ngx_stream_module.so;\n"),
        (f"{DEBIAN} --modules-path=/m", False, (1, 22, 1), None),
        ("nginx version: nginx/1.25.0 (Ubuntu)\n--with-stream", False, (1, 25, 0), ""),
        ("nginx version: nginx/1.4.6 (Ubuntu)\n--with-ipv6", True, (1, 4, 6), None),
        ("rubbish", True, (), None),
    ],
)
def test_what_nginx_can_do_is_read_from_what_it_says(
    said: str, there: bool, version: tuple[int, ...], stream: str | None
) -> None:
    nginx = validation.parse_nginx("nginx", said, lambda _: there)
    assert (nginx.version, nginx.stream) == (version, stream)


def test_an_old_nginx_leaves_the_nailgun_port_to_balance() -> None:
    assert not validation.InstalledNginx("nginx", (1, 20, 0), "").has_stream
    assert validation.InstalledNginx("nginx", (1, 21, 4), "").has_stream


def test_upstart_knows_the_jobs_of_a_bare_host_at_once(tmp_path: Path) -> None:
    with Upstart.started(tmp_path / "root/etc") as upstart:
        assert run_setup("--root", str(tmp_path / "root")).returncode == 0
        for job in ("clojars", "clojars-backup", "clojars-run"):
            asked = subprocess.run(
                [upstart.bin / "status", job], capture_output=True, text=True, check=False
            )
            assert asked.stdout == f"{job} stop/waiting\n", asked.stderr


def test_upstart_is_told_to_read_a_job_file_that_it_has_not_noticed(tmp_path: Path) -> None:
    with Upstart.started(tmp_path / "upstart") as upstart:
        services = UpstartService(bin=str(upstart.bin), sudo=False, timeout=60)
        (tmp_path / "written").write_text("exec sleep 1000\n")
        os.link(tmp_path / "written", upstart.jobs / "clojars.conf")
        upstart.install("broken", "nonsense\n")
        assert services.status("clojars").state == "unknown"

        assert services.read_job_files_again(["clojars", "broken"]) == ["broken"]

        assert services.status("clojars").state == "stopped"


def test_balance_serves_the_nailgun_port_from_a_directory_of_its_own(tmp_path: Path) -> None:
    with_private_mounts(PROJECT / "tests/private/balance.py", tmp_path)


def test_a_second_setup_keeps_the_balance_that_was_asked_for(tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert run_setup("--root", str(root), "--nailgun", "balance").returncode == 0
    (root / "var/www/clojars/503.html").unlink()
    again = run_setup("--root", str(root))
    assert again.returncode == 0, again.stdout
    assert not (root / "etc/nginx/modules-enabled/90-clojars-nailgun.conf").exists()
    assert (root / "etc/init/clojars-balance.conf").exists()


def test_balance_takes_the_stream_parts_place(tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert run_setup("--root", str(root), "--nailgun", "balance").returncode == 0
    assert (root / "etc/init/clojars-balance.conf").exists()
    assert list((root / "etc/nginx").glob("modules-enabled/*")) == []


def test_a_host_of_supervisord_gets_no_job_files(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[services]\nmanager = "supervisor"\nsocket = "/run/s.sock"\n')
    config.chmod(0o644)
    root = tmp_path / "root"
    refused = run_setup("--dry-run", config=config)
    assert refused.returncode == 2
    assert "instances systemd or Upstart runs as root" in refused.stderr
    assert run_setup("--root", str(root), config=config).returncode == 0
    assert not (root / "etc/init").exists()
    assert not (root / "etc/sudoers.d").exists()


def test_a_group_of_supervisord_puts_no_colon_into_the_name_of_a_file(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        '[services]\nmanager = "supervisor"\nsocket = "/run/s.sock"\n'
        '[instances.primary]\njob = "web:clojars"\n[instances.backup]\njob = "web:backup"\n'
    )
    config.chmod(0o644)
    root = tmp_path / "root"
    assert run_setup("--root", str(root), config=config).returncode == 0
    assert (root / "etc/nginx/sites-available/web-clojars").is_file()
    assert (root / "etc/nginx/sites-enabled/web-clojars").is_symlink()
    assert (root / "var/www/web-clojars/503.html").is_file()
    assert [path for path in root.rglob("*") if ":" in path.name] == []


def test_the_wheel_carries_the_files(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--disable-pip-version-check", "--wheel-dir", tmp_path, PROJECT],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    [wheel] = tmp_path.glob("*.whl")
    root = tmp_path / "root"
    result = run_setup("--root", str(root), PYTHONPATH=str(wheel))
    assert result.returncode == 0, result.stderr
    assert (root / "etc/init/clojars.conf").read_bytes() == (
        ETC / "upstart/clojars.conf"
    ).read_bytes()


def test_a_job_that_begins_with_a_digit_gives_nginx_no_match_of_a_number() -> None:
    config = parse({"instances": {"primary": {"job": "1-site"}}}, "test")
    assert "$job_1_site_pool" in {file.etc: file.text for file in files(values_of(config))}["nginx/1-site"]  # fmt: skip


def test_a_user_may_have_another_name_than_the_home() -> None:
    config = parse({"home": "/srv/Site-1"}, "test")
    with pytest.raises(UsageError):
        values_of(config)
    assert values_of(config, user="web").user == "web"
    assert json.dumps(vars(values_of(config, user="web"))).count("/srv/Site-1") == 1
