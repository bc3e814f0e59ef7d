"""`setup` and `check` with an nginx that reads conf.d alone; run by test_nginx_conf.py, as root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from little_host import wait_for
from private_machine import INSIDE, bring_loopback_up, lay_over, mount

from deploy_clojars.config import Drain
from deploy_clojars.host.nginx import Nginx

pytestmark = pytest.mark.skipif(INSIDE not in os.environ, reason="only in a private machine")

MAIN = """user www-data;
error_log /var/log/nginx/error.log notice;
pid /run/nginx.pid;
events { worker_connections 1024; }
http {
    default_type application/octet-stream;
    include /etc/nginx/conf.d/*.conf;
}
"""
SPARE = """
home = "/home/spare"
[instances.primary]
job = "spare"
url = "http://spare.example/"
health = ["http://127.0.0.1:9101/", "tcp://127.0.0.1:9201"]
[instances.backup]
job = "spare-b"
health = ["http://127.0.0.1:9102/", "tcp://127.0.0.1:9202"]
"""
OWN = """[drain]
flag = "/run/spare/drain"
probe = "http://127.0.0.1:8098/pool"
"""


def tool(*words: str) -> subprocess.CompletedProcess[str]:
    """Runs the tool."""
    argv = [sys.executable, "-m", "deploy_clojars", *words]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)


def remedies(said: str, word: str) -> list[str]:
    """What `check` says to do about the findings with the word."""
    lines = said.splitlines()
    return [
        lines[n + 1].strip()
        for n, line in enumerate(lines)
        if line.startswith("!!") and word in line
    ]


@contextmanager
def nginx() -> Iterator[None]:
    """The real nginx with the host's own configuration."""
    with subprocess.Popen(["nginx", "-g", "daemon off;"]) as process:
        try:
            wait_for(lambda: Nginx(Drain()).answers, "nginx serves the probe")
            yield
        finally:
            process.terminate()


def test_the_site_goes_where_nginx_reads_and_what_is_wrong_with_it_is_found() -> None:
    scratch = Path(os.environ[INSIDE])
    bring_loopback_up()
    for directory in ("/etc", "/home", "/usr/local", "/var"):
        lay_over(Path(directory), scratch / "over")
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    for name in ("sites-enabled", "sites-available", "modules-enabled", "conf.d"):
        shutil.rmtree(f"/etc/nginx/{name}", ignore_errors=True)
    site = Path("/etc/nginx/conf.d/clojars.conf")
    Path("/etc/nginx/nginx.conf").write_text(MAIN.replace("include /etc/nginx/conf.d/*.conf;", ""))
    for directory in ("/etc/nginx/conf.d", "/var/log/nginx", "/var/lib/nginx", "/etc/init"):
        Path(directory).mkdir(parents=True, exist_ok=True)

    # nginx reads no directory: said, and by check, too.
    unread = tool("setup")
    assert unread.returncode == 1
    assert "FOUND     nginx does not read /etc/nginx/sites-enabled/clojars" in unread.stdout
    put = "add to the http block of /etc/nginx/nginx.conf: include /etc/nginx/sites-enabled/*;"
    assert put in unread.stdout
    assert put in "".join(remedies(tool("check").stdout, "nginx has no site"))
    Path("/etc/nginx/sites-enabled/clojars").unlink()

    # As nginx.org has it.
    Path("/etc/nginx/nginx.conf").write_text(MAIN)
    assert "setup && service nginx reload" in remedies(tool("check").stdout, "nginx has no site")[0]
    refused = tool("setup", "--nailgun", "nginx")
    assert refused.returncode == 4
    assert "nginx reads no file outside its http block" in refused.stderr
    made = tool("setup")
    assert made.returncode == 0, made.stderr
    assert (
        f"made      {site}\n" in made.stdout
        and "/etc/init/clojars-balance.conf" in made.stdout + unread.stdout
    )
    assert f"same      {site}\n" in tool("setup").stdout

    not_running = tool("check").stdout
    assert remedies(not_running, "the site does not answer at http://127.0.0.1:80/") == [
        "service nginx start"
    ]
    with nginx():
        found = tool("check").stdout
        assert "ok  the site answers at http://127.0.0.1:80/" in found
        assert not [
            line for line in found.splitlines() if line.startswith("!!") and "nginx" in line
        ], found
        good = site.read_text()
        site.write_text(good.replace("proxy_http_version 1.0;", 'keepalive_timeout 9; proxy_http_version 1.1;')
                        .replace("Connection close", 'Connection ""')
                        .replace("server 127.0.0.1:8001 max_fails=1", "keepalive 9; server 127.0.0.1:8001 max_fails=1")
                        .replace("backup max_fails=0;\n}", "backup max_fails=0; keepalive 9;\n}")
                        .replace("keepalive 9; server", "server")
                        .replace("-f /run/clojars/drain-primary", "-f /run/clojars/other", 1))  # fmt: skip
        bad = tool("check").stdout
        assert "proxy_set_header Connection close;" in remedies(bad, "nginx keeps connections")[0]
        assert (
            "if (-f /run/clojars/drain-primary)"
            in remedies(bad, "nginx looks at /run/clojars/other")[0]
        )
        site.write_text(good)

    # A second site: files of its own, and nothing that the first one has.
    spare = Path("/etc/spare.toml")
    spare.write_text(SPARE)
    spare.chmod(0o644)
    before = {path: path.read_bytes() for path in Path("/etc").rglob("*") if path.is_file()}
    shared = tool("-c", str(spare), "setup", "--nailgun", "none")
    assert shared.returncode == 2
    assert f"another site has the same one: {site}; nothing was changed" in shared.stderr
    spare.write_text(SPARE + OWN)
    assert {path: path.read_bytes() for path in before if path != spare} == {
        path: text for path, text in before.items() if path != spare
    }
    own = tool("-c", str(spare), "setup", "--nailgun", "none")
    assert own.returncode == 0, own.stdout + own.stderr
    for path in ("/etc/sudoers.d/deploy-spare", "/etc/nginx/conf.d/spare.conf",
                 "/etc/update-motd.d/60-deploy-spare"):  # fmt: skip
        assert f"made      {path}\n" in own.stdout
    assert tool("-c", str(spare), "setup", "--nailgun", "none").returncode == 0
    assert tool("setup").returncode == 0
