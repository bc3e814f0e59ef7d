"""Follows docs/host.md, "From one instance to two", under load; run inside by test_one_to_two.py."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from clojure_repository import ClojureRepository as Tags
from little_host import at_a_terminal, wait_for
from load.account import load_on
from private_machine import INSIDE, PROJECT, mount
from systemd_machine import Machine

pytestmark = pytest.mark.skipif(INSIDE not in os.environ, reason="only in a private machine")

FIRST, SECOND = Tags.FIRST, Tags.SECOND
CHAPTER = "From one instance to two"
JARS = "DEPLOY_CLOJARS_JARS"  # where the test outside has put the two releases
OPT, LOGS = Path("/opt"), Path("/var/log/clojars")
RELEASES = Path("/home/clojars/releases")

# The host of today, as the chapter describes it.
HOST = {
    "/etc/systemd/system/clojars.service": """\
[Unit]
Description=Clojars web application
After=clojars_deploy.service

[Service]
User=clojars
Restart=on-failure
WorkingDirectory=/home/clojars
Environment=PORT=8001 NAILGUN_PORT=7601
Environment="UPLOAD_LOG=/var/log/clojars/uploads.log"
ExecStart=/usr/bin/java -Xmx300m -XX:TieredStopAtLevel=1 -cp releases/clojars-web-current.jar clojars.main

[Install]
WantedBy=multi-user.target
""",
    "/etc/systemd/system/clojars_deploy.service": """\
[Unit]
Description=Deploy Clojars on boot
After=network.target

[Service]
Type=oneshot
RemainAfterExit=true
User=clojars
WorkingDirectory=/home/clojars
ExecStart=/home/clojars/bin/deploy-clojars --disable-restart

[Install]
WantedBy=multi-user.target
""",
    "/etc/sudoers.d/clojars_sudoers": """\
Cmnd_Alias SYSCTL_CMD = /usr/bin/systemctl restart clojars
clojars ALL=(ALL) NOPASSWD: SYSCTL_CMD
""",
    "/etc/nginx/nginx.conf": """\
user www-data;
worker_processes 2;
pid /run/nginx.pid;
events {
    worker_connections 4096;
}
http {
    access_log off;
    include /etc/nginx/conf.d/*.conf;
}
""",
    "/etc/nginx/conf.d/clojars.conf": """\
upstream clojars-web {
  server localhost:8001 max_fails=3;
}

server {
  listen 80;
  server_name clojars.org;
  root /var/www/clojars;
  client_max_body_size 20m;
  error_page 502 =503 /502.html;

  location / {
    try_files $uri @clojars_webapp;
  }

  location @clojars_webapp {
    proxy_set_header Host $host;
    proxy_set_header X-Forwarded-Proto $scheme;
    proxy_pass http://clojars-web;
  }
}
""",
}


@dataclass(frozen=True)
class Block:
    """Commands of the chapter as they stand, and of each line in `shown` what their output has in one."""

    commands: str
    shown: tuple[str, ...] = ()


def blocks() -> tuple[list[Block], list[Block]]:
    """The chapter's blocks: there, in its order; and back, the last step first."""
    page = (PROJECT / "docs/host.md").read_text(encoding="utf-8")
    [chapter] = re.findall(rf"^## {CHAPTER}\n(.*?)^## ", page, re.MULTILINE | re.DOTALL)
    there: list[Block] = []
    back: list[Block] = []
    for step in re.split(r"^### ", chapter, flags=re.MULTILINE)[1:]:
        forward, _, backward = step.partition("\n**Back:**")
        there += blocks_in(forward)
        back = [*blocks_in(backward), *back]
    return there, back


def blocks_in(text: str) -> Iterator[Block]:
    """The fenced blocks: `sh` is run as a whole; `console` has a prompt before each command."""
    for language, body in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if language == "sh":
            yield Block(body)
        elif language == "console":
            for part in re.split(r"^# ", body, flags=re.MULTILINE)[1:]:
                command, *shown = part.splitlines()
                yield Block(command, tuple(shown))


def test_the_chapter_to_the_letter_under_load_and_back(tmp_path: Path) -> None:
    there, back = blocks()
    assert len(there) > 10 and len(back) > 5
    with host_of_today() as machine:
        before = files(machine)
        with load_on(
            "http://127.0.0.1", tmp_path, LOGS / "uploads.log", 0.3, "browser", machine.pid
        ) as load:
            for block in (*there, *back):
                follow(machine, block)
        account = load.account()
        assert account.is_clean, account
        assert files(machine) == before


def follow(machine: Machine, block: Block) -> None:
    """Types what is in the block, and answers its questions with yes."""
    commands = block.commands.replace("TAG", SECOND)
    argv = machine.command("bash", "-ec", commands)
    env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root",
           "LC_ALL": "C.UTF-8", "TERM": "dumb"}  # fmt: skip
    with at_a_terminal(argv, env, Path("/"), 120) as terminal:
        if re.search(r"deploy-clojars (TAG|restart|rollback)", block.commands):
            terminal.asked()
            terminal.types("yes")
        shown = terminal.ends(0 if not block.shown else (0, 1, 11))
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    for wanted in block.shown:
        words = " ".join(wanted.replace("TAG", SECOND).split())
        assert any(words in line for line in lines), f"{commands}: {wanted!r} not in\n{shown}"


def files(machine: Machine) -> dict[str, str]:
    """What the chapter changes."""
    listed = machine.run(
        "find", "/etc/systemd/system", "/etc/sudoers.d", "/etc/nginx", "/etc/tmpfiles.d",
        "/etc/default", "/etc/update-motd.d", "/home/clojars/bin", "/var/www",
        "(", "-type", "f", "-printf", "%p %s\\n", ")", "-o",
        "(", "-type", "l", "-printf", "%p %l\\n", ")",
    )  # fmt: skip
    return dict(line.rsplit(" ", 1) for line in listed.stdout.splitlines())


@contextmanager
def host_of_today() -> Iterator[Machine]:
    """A machine with the host: one instance that serves 0.1.0 behind nginx, and the tool's program."""
    scratch = Path(os.environ[INSIDE])
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(OPT))
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(LOGS.parent))
    LOGS.mkdir()
    jars = OPT / "jars"
    shutil.copytree(os.environ[JARS], jars)
    jars.chmod(0o755)
    shared = [LOGS, jars]
    packages = Path(msgspec.__file__).parents[1]
    for source, name in ((sys.base_prefix, "python"), (PROJECT / "src", "src"), (packages, "packages")):  # fmt: skip
        (OPT / name).mkdir()
        mount("--bind", str(source), str(OPT / name))
        shared.append(OPT / name)
    with Machine.started(scratch / "machine", *shared) as machine:
        python = OPT / "python/bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
        machine.write(
            "/usr/local/bin/deploy-clojars",
            f"#!/bin/sh\nPYTHONPATH={OPT}/src:{OPT}/packages PYTHONDONTWRITEBYTECODE=1 "
            f'exec {python} -m deploy_clojars "$@"\n',
            0o755,
        )
        machine.write("/etc/gitconfig", "[safe]\n\tdirectory = *\n")
        machine.write(
            "/etc/deploy-clojars.toml",
            f'repository = "file://{jars}/clojars-web"\n'
            f'[build]\ntest = "true"\nuberjar = "mkdir target && '
            f'cp {jars}/clojars-web-$(cat resources/clojars/version.txt)-standalone.jar target"\n'
            "[health]\nsettle = 0.5\ninterval = 0.1\n",
        )
        machine.run("rm", "-rf", "/etc/nginx/conf.d", "/var/log/nginx")
        machine.run("mkdir", "-p", "/var/log/nginx")
        for path, text in HOST.items():
            machine.write(path, text, 0o440 if "sudoers" in path else 0o644)
        machine.write("/var/www/clojars/502.html", "Back in a moment\n")
        machine.write("/home/clojars/bin/deploy-clojars", "#!/bin/sh\nexit 1\n", 0o755)
        machine.run("mkdir", RELEASES)
        release = f"clojars-web-{FIRST}-standalone.jar"
        machine.run("cp", jars / release, RELEASES / release)
        machine.run("ln", "-sf", RELEASES / release, RELEASES / "clojars-web-current.jar")
        machine.run("chown", "-hR", "clojars:clojars", "/home/clojars", LOGS)
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "enable", "clojars_deploy")
        machine.run("systemctl", "enable", "--now", "clojars")
        machine.run("systemctl", "start", "nginx")
        site = ("curl", "-fsS", "http://127.0.0.1/version")
        wait_for(lambda: machine.run(*site, check=False).stdout == FIRST, "the site serves")
        yield machine
