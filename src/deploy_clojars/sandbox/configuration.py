"""The sandbox's configuration file for `deploy-clojars -c`."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys

from deploy_clojars.sandbox.place import Pair, Ports, Sandbox, write

TEXT = """\
# The configuration of this sandbox, for `deploy-clojars -c FILE`. What is not here is as on
# clojars.org; etc/deploy-clojars.toml explains every key. It is written once and yours to change.

repository = {repository}
home = {home}

[build]
# The application is in Python, and a release is a zip that Python runs. This interpreter is the
# one that runs deploy-clojars, whatever PATH has.
test = {test}
uberjar = {build}
jar = "target/*-standalone.jar"
timeout = 300

[services]
{services}
timeout = 30

[instances.primary]
job = "{jobs[primary]}"
{primary}

[instances.backup]
job = "{jobs[backup]}"
{backup}

[health]
timeout = 20
interval = 0.1
settle = 0.5

[drain]
flag = {flag}
probe = "http://127.0.0.1:{probe}/pool"
timeout = 20
quiet = 0.5
"""


def write_configuration(sandbox: Sandbox) -> None:
    """Writes the file."""
    python = shlex.quote(os.path.abspath(sys.executable))
    text = TEXT.format(
        repository=_quoted(str(sandbox.repository)),
        home=_quoted(str(sandbox.home)),
        test=_quoted(f"{python} -m unittest"),
        build=_quoted(f"{python} build.py"),
        services=_services(sandbox),
        jobs=sandbox.jobs,
        primary=_urls(sandbox.ports.primary),
        backup=_urls(sandbox.ports.backup),
        flag=_quoted(str(sandbox.flag)),
        probe=sandbox.ports.probe,
    )
    write(sandbox.config, text)


def change_ports(sandbox: Sandbox, old: Ports) -> None:
    """Puts the sandbox's ports in the place of the old ones; all else in the file may be edited."""
    text = sandbox.config.read_text(encoding="utf-8")
    for before, after in zip(old.all, sandbox.ports.all, strict=True):
        text = re.sub(rf"(?<=127\.0\.0\.1:){before}(?!\d)", str(after), text)
    write(sandbox.config, text)


def _services(sandbox: Sandbox) -> str:
    if sandbox.systemd:
        return 'manager = "systemd"\nscope = "user"'
    return f'manager = "supervisor"\nsocket = {_quoted(str(sandbox.socket))}\nsudo = false'


def _urls(ports: Pair) -> str:
    web = f"http://127.0.0.1:{ports.web}/"
    return f'url = "{web}"\nhealth = ["{web}", "tcp://127.0.0.1:{ports.nailgun}"]'


def _quoted(text: str) -> str:
    """A string of TOML; all that JSON escapes, TOML escapes in the same way."""
    return json.dumps(text, ensure_ascii=False)
