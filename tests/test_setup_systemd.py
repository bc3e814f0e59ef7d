"""`deploy-clojars setup` on a host of systemd: what it makes, what it refuses, what it leaves alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import require_program
from systemd_kit import Kit, bare_machine
from test_setup import ETC, OTHER, run_setup, tree

from deploy_clojars.config import parse
from deploy_clojars.errors import NotReady, UsageError
from deploy_clojars.setup import setup, validation
from deploy_clojars.setup.files import files, values_of

CONFIG = parse({"services": {"manager": "systemd", "bin": "/usr/bin"}}, "test")
FILES = files(values_of(CONFIG))


def set_up(root: Path, **more: str) -> list[str]:
    """Runs `setup` below a directory, and returns the lines that it said."""
    said: list[str] = []
    setup.setup(CONFIG, ("deploy-clojars",), said.append, root=root, **more)  # type: ignore[arg-type]
    return said


def test_the_kit_of_systemd_is_made_below_a_directory_and_a_second_time_all_is_the_same(
    tmp_path: Path,
) -> None:
    said = set_up(tmp_path)
    assert not [line for line in said if "not checked" in line]
    made = tree(tmp_path)
    for name in ("clojars.service", "clojars-backup.service"):
        assert made[f"etc/systemd/system/{name}"] == (ETC / "systemd" / name).read_bytes()
    assert made["etc/tmpfiles.d/clojars.conf"] == (ETC / "systemd/tmpfiles.d/clojars.conf").read_bytes()  # fmt: skip
    assert made["etc/sudoers.d/deploy-clojars"] == (ETC / "systemd/sudoers.d/deploy-clojars").read_bytes()  # fmt: skip
    assert "etc/update-motd.d/60-deploy-clojars" in made
    assert not (tmp_path / "etc/init").exists()
    again = set_up(tmp_path)
    assert {line.split()[0] for line in again} == {"user", "same", "kept"}
    assert tree(tmp_path) == made


def test_every_value_reaches_the_files_of_systemd(tmp_path: Path) -> None:
    config = tmp_path / "other.toml"
    config.write_text(OTHER.replace("[services]", '[services]\nmanager = "systemd"'))
    config.chmod(0o644)
    root = tmp_path / "root"
    result = run_setup("--root", str(root), config=config)
    assert result.returncode == 0, result.stderr
    for path in ("etc/systemd/system/shop-a.service", "etc/tmpfiles.d/shop-a.conf", "etc/sudoers.d/deploy-shop-a"):  # fmt: skip
        own = (root / path).read_text().replace("deploy-clojars", "")
        assert "clojars" not in own, path
    assert "/opt/upstart/sbin/systemctl restart shop-b.service" in own


def test_balance_is_refused_with_what_serves_the_nailgun_port_instead(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^--nailgun balance: only for Upstart") as refused:
        set_up(tmp_path / "root", nailgun="balance")
    assert "libnginx-mod-stream" in refused.value.remedy
    assert "--nailgun none" in refused.value.remedy
    assert not (tmp_path / "root").exists()


def test_an_nginx_without_the_stream_module_is_refused_and_balance_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = validation.InstalledNginx("nginx", (1, 18, 0), "")
    monkeypatch.setattr(validation, "nginx", lambda: old)
    with pytest.raises(NotReady, match="cannot serve the nailgun port") as refused:
        set_up(tmp_path / "root")
    assert "or: --nailgun none" in refused.value.remedy
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("line", "other", "said"),
    [
        ("Restart=always", "Restart=allways", "Failed to parse service restart specifier"),
        ("RestartSec=1", "RestartSecs=1", "Unknown key 'RestartSecs'"),
        ("[Service]", "[Servcie]", "has no ExecStart="),
    ],
)
def test_units_that_systemd_does_not_take_are_refused_before_anything_is_made(
    line: str, other: str, said: str
) -> None:
    require_program("systemd-analyze")
    broken = [
        dataclasses.replace(file, text=file.text.replace(f"{line}\n", f"{other}\n"))
        for file in FILES
    ]
    validation.of_units(FILES, pytest.fail)
    with pytest.raises(NotReady, match=r"^systemd rejects .*; nothing was changed$") as refused:
        validation.of_units(broken, pytest.fail)
    assert said in refused.value.detail


def test_java_may_come_later() -> None:
    require_program("systemd-analyze")
    texts = [
        dataclasses.replace(file, text=file.text.replace("ExecStart=/", "ExecStart=/no/"))
        for file in FILES
    ]
    validation.of_units(texts, pytest.fail)


def test_without_systemd_analyze_it_is_said_that_nothing_was_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said: list[str] = []
    validation.of_units(FILES, said.append)
    assert said == ["systemd-analyze is not installed: the units were not checked"]
    validation.of_units([file for file in FILES if "systemd" not in file.etc], pytest.fail)


def test_a_systemd_analyze_that_is_too_old_for_an_option_still_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "systemd-analyze"
    program.write_text(
        '#!/bin/sh\ncase "$*" in *--recursive*) echo "unrecognized option" >&2; exit 1 ;; esac\n'
        "echo it is bad >&2; exit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    with pytest.raises(NotReady) as refused:
        validation.of_units(FILES, pytest.fail)
    assert refused.value.detail == "it is bad"


@pytest.mark.parametrize("place", ["usr/lib", "usr/local/lib", "lib"])
def test_a_unit_of_a_package_stays_in_force_and_the_new_one_is_put_beside(
    tmp_path: Path, place: str
) -> None:
    own = tmp_path / place / "systemd/system/clojars.service"
    own.parent.mkdir(parents=True)
    own.write_text("[Service]\nExecStart=java\n")
    said: list[str] = []
    with pytest.raises(Exception, match=f"left unchanged: {own}"):
        setup.setup(CONFIG, ("deploy-clojars",), said.append, root=tmp_path)
    beside = tmp_path / "etc/systemd/system/clojars.service.new"
    assert f"DIFFERS   {own} was left unchanged; the new one: {beside}" in said
    assert beside.read_bytes() == (ETC / "systemd/clojars.service").read_bytes()
    assert not (tmp_path / "etc/systemd/system/clojars.service").exists()
    assert (tmp_path / "etc/systemd/system/clojars-backup.service").exists()
    own.write_bytes(beside.read_bytes())
    assert f"same      {own}" in set_up(tmp_path)


def test_a_host_that_went_back_to_upstart_keeps_its_units(tmp_path: Path) -> None:
    set_up(tmp_path)
    before = tree(tmp_path)
    upstarts = parse({"services": {"manager": "upstart"}}, "test")
    said: list[str] = []
    with pytest.raises(Exception, match=r"left unchanged: .*/etc/sudoers\.d/deploy-clojars"):
        setup.setup(upstarts, ("deploy-clojars",), said.append, root=tmp_path)
    now = tree(tmp_path)
    assert {name: now[name] for name in before} == before
    assert (tmp_path / "etc/init/clojars.conf").exists()


# On a real systemd


@pytest.fixture
def host() -> Iterator[Kit]:
    with bare_machine() as kit:
        yield kit


def test_a_bare_host_is_made_and_a_second_time_all_is_the_same(host: Kit) -> None:
    would = host.tool("setup", "--dry-run")
    assert would.returncode == 0, would.stderr
    assert "would make user clojars a member of systemd-journal" in would.stdout
    assert "would make /etc/systemd/system/clojars.service\n" in would.stdout
    assert not (host.root / "etc/systemd/system/clojars.service").exists()
    assert "systemd-journal" not in host.machine.run("id", "-nG", "clojars").stdout

    made = host.tool("setup")
    assert made.returncode == 0, made.stderr
    assert made.stdout == would.stdout.replace("would make", "made     ")
    assert "made      user clojars a member of systemd-journal, to read the instances' logs" in made.stdout  # fmt: skip
    assert "next: systemctl reload nginx, or start if it does not run\n" in made.stdout
    assert "systemd-journal" in host.machine.run("id", "-nG", "clojars").stdout
    for unit in ("clojars", "clojars-backup"):
        assert host.systemctl("is-enabled", unit) == "enabled"
        shown = host.systemctl("show", "-p", "LoadState,ActiveState", unit)
        assert shown == "LoadState=loaded\nActiveState=inactive"
    # As after a boot.
    host.machine.run("rmdir", "/run/clojars")
    host.machine.run("systemd-tmpfiles", "--create", "--boot")
    assert host.machine.run("stat", "-c", "%U %a", "/run/clojars").stdout == "clojars 755\n"

    again = host.tool("setup")
    assert again.returncode == 0, again.stderr
    assert {line.split()[0] for line in again.stdout.splitlines()} == {"same", "kept", "next:"}
    assert "same      user clojars reads the journal\n" in again.stdout
    quiet = host.tool("setup", "-q")
    assert (quiet.returncode, quiet.stdout) == (0, "")

    greeting = host.machine.run("sudo", "-u", "nobody", "/etc/update-motd.d/60-deploy-clojars")
    assert "sudo -iu clojars deploy-clojars TAG" in greeting.stdout
    assert "the state is unknown" not in greeting.stdout


def test_a_host_that_came_from_upstart_is_told_what_is_different(host: Kit) -> None:
    """Its job files do no harm under systemd; its sudoers file and its settings do."""
    for name in ("clojars", "clojars-backup", "clojars-run"):
        text = (ETC / "upstart" / f"{name}.conf").read_text()
        host.machine.write(f"/etc/init/{name}.conf", text)
    rights = (ETC / "sudoers.d/deploy-clojars").read_text()
    host.machine.write("/etc/sudoers.d/deploy-clojars", rights, 0o440)
    host.machine.write("/etc/default/clojars", "export MAIL_URL=smtp://elsewhere\n")
    made = host.tool("setup")
    assert made.returncode == 1
    assert "left unchanged: /etc/sudoers.d/deploy-clojars" in made.stderr
    assert "kept      /etc/default/clojars\n" in made.stdout
    assert "/etc/init" not in made.stdout
    assert host.systemctl("is-enabled", "clojars") == "enabled"
    found = host.check()
    assert "!!  /etc/default/clojars, line 1: systemd skips a line with `export`" in found
    refused = host.check(by="clojars")
    assert "sudo does not let this user run /usr/bin/systemctl restart clojars.service" in refused
    file = "/etc/sudoers.d/deploy-clojars"
    host.machine.run("mv", f"{file}.new", file)
    assert "sudo does not let" not in host.check(by="clojars")


def test_a_unit_that_differs_stays_and_one_that_is_masked_is_found(host: Kit) -> None:
    own = "[Service]\nUser=clojars\nExecStart=sleep 1000\n[Install]\nWantedBy=multi-user.target\n"
    host.machine.write("/etc/systemd/system/clojars.service", own)
    host.machine.run("ln", "-s", "/dev/null", "/etc/systemd/system/clojars-backup.service")
    made = host.tool("setup")
    assert made.returncode == 1, made.stdout
    file = "/etc/systemd/system/clojars.service"
    assert f"DIFFERS   {file} was left unchanged; the new one: {file}.new" in made.stdout
    assert (host.root / file[1:]).read_text() == own
    # systemd has read the file that stays, and starts it at boot.
    assert host.systemctl("is-enabled", "clojars") == "enabled"
    assert host.systemctl("show", "--value", "-p", "User", "clojars") == "clojars"
    assert "FOUND     clojars-backup.service would not start at boot: " in made.stdout
    host.machine.run("mv", f"{file}.new", file)
    again = host.tool("setup")
    assert f"same      {file}\n" in again.stdout
    assert host.systemctl("show", "--value", "-p", "Restart", "clojars") == "always"


def test_the_site_goes_where_this_nginx_reads(host: Kit) -> None:
    """As in nginx's own packages: conf.d and a user of its own, no sites-enabled."""
    host.machine.run("useradd", "--system", "nginx")
    host.machine.write(
        "/etc/nginx/nginx.conf",
        "user nginx;\nevents {}\nhttp { include /etc/nginx/conf.d/*.conf; }\n",
    )
    made = host.tool("setup", "--nailgun", "none")
    assert made.returncode == 0, made.stderr + made.stdout
    assert "made      /etc/nginx/conf.d/clojars.conf\n" in made.stdout
    assert "sites-enabled" not in made.stdout
    assert "/etc/nginx/conf.d/clojars.conf:" in host.machine.run("nginx", "-T").stdout
    for directory in ("/run/clojars", "/home/clojars/repo"):
        host.machine.run("sudo", "-u", "nginx", "ls", directory)
