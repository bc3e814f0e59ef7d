"""nginx in front of the instances, where it is installed: with the site that `setup` installs."""

from __future__ import annotations

import dataclasses
import os

from deploy_clojars.config import Config, parse
from deploy_clojars.host.users import user_name
from deploy_clojars.sandbox.place import FLAG, Pair, Sandbox, write
from deploy_clojars.setup.files import render, values_of

MAIN = """\
# nginx's part of the sandbox. Rewritten at every start; supervisord runs it in the sandbox.
{user}daemon off;
pid nginx.pid;
error_log logs/nginx.log;
worker_processes 1;

events {{
}}

http {{
    access_log off;
    client_body_temp_path logs/nginx-client;
    proxy_temp_path logs/nginx-proxy;
    fastcgi_temp_path logs/nginx-fastcgi;
    uwsgi_temp_path logs/nginx-uwsgi;
    scgi_temp_path logs/nginx-scgi;

    # As on clojars.org.
    include nginx-site.conf;
}}
"""

PAGES = "pages"


def write_configuration(sandbox: Sandbox) -> None:
    """Writes nginx.conf, the site, and the page for both down; makes the flag's directory."""
    # Started by root it would give its work to a user who may not read the sandbox.
    user = f"user {user_name()};\n" if os.geteuid() == 0 else ""
    # Relative: nginx runs in the sandbox, whose own path may have what no nginx.conf takes.
    values = dataclasses.replace(
        values_of(_config(sandbox)),
        listen=f"127.0.0.1:{sandbox.ports.site}",
        home="home",
        flag=FLAG,
        pages=PAGES,
    )
    sandbox.flag.parent.mkdir(exist_ok=True)
    (sandbox.directory / PAGES).mkdir(exist_ok=True)
    write(sandbox.directory / PAGES / "503.html", render("503.html", values))
    write(sandbox.directory / "nginx-site.conf", render("site", values))
    write(sandbox.directory / "nginx.conf", MAIN.format(user=user))


def _config(sandbox: Sandbox) -> Config:
    ports = sandbox.ports
    return parse(
        {
            "instances": {"primary": _instance(ports.primary), "backup": _instance(ports.backup)},
            "drain": {"probe": f"http://127.0.0.1:{ports.probe}/pool"},
        },
        "the sandbox",
    )


def _instance(ports: Pair) -> dict[str, object]:
    web = f"http://127.0.0.1:{ports.web}/"
    return {"url": web, "health": [web, f"tcp://127.0.0.1:{ports.nailgun}"]}
