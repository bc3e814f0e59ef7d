"""nginx in front of the instances, where it is installed: the primary, or else the backup."""

from __future__ import annotations

import os
import shutil

from deploy_clojars.host import user_name
from deploy_clojars.sandbox.place import Sandbox, write

TEXT = """\
# nginx's part of the sandbox. Written anew at every start; run in the sandbox, by supervisord.
{user}daemon off;
pid nginx.pid;
error_log logs/nginx.log;
worker_processes 1;

events {{
}}

http {{
    access_log off;
    client_max_body_size 20m;
    client_body_temp_path logs/nginx-client;
    proxy_temp_path logs/nginx-proxy;
    fastcgi_temp_path logs/nginx-fastcgi;
    uwsgi_temp_path logs/nginx-uwsgi;
    scgi_temp_path logs/nginx-scgi;

    upstream site {{
        # All to the primary, and to the backup only while the primary is down. A primary that was
        # down is tried again after two seconds, not after nginx's ten; the backup is never given
        # up, for then nobody would be left. No keepalive and no non_idempotent: a POST that was
        # sent is not sent twice.
        server 127.0.0.1:{primary} max_fails=1 fail_timeout=2s;
        server 127.0.0.1:{backup} backup max_fails=0;
    }}

    server {{
        listen 127.0.0.1:{site};
        location / {{
            proxy_pass http://site;
            proxy_set_header Host $http_host;
        }}
    }}
}}
"""


def program() -> str | None:
    """nginx's path, or None where it is not installed."""
    path = os.environ.get("PATH", os.defpath)
    if "/usr/bin" in path.split(":"):
        path += ":/usr/sbin:/sbin"  # Debian has it there, and only root's PATH leads there
    return shutil.which("nginx", path=path)


def write_configuration(sandbox: Sandbox) -> None:
    """Writes nginx.conf."""
    # Started by root it would give its work to a user who may not read the sandbox.
    user = f"user {user_name()};\n" if os.geteuid() == 0 else ""
    ports = sandbox.ports
    write(
        sandbox.directory / "nginx.conf",
        TEXT.format(user=user, site=ports.site, primary=ports.primary.web, backup=ports.backup.web),
    )
