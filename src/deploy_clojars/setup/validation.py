"""Whether sudo, systemd and nginx accept the files, checked before anything is left in place."""

from __future__ import annotations

import dataclasses
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy_clojars.errors import NotReady
from deploy_clojars.host.nginx import NAMES, names_running
from deploy_clojars.machine.shell import Answer, TookTooLong, capture, root_program
from deploy_clojars.setup import nginx_conf
from deploy_clojars.setup.files import File, Nailgun, Values, render
from deploy_clojars.setup.nginx_conf import Configuration

SECONDS = 30.0  # for visudo, systemd-analyze and nginx -t

# `proxy_half_close`, without which a client that has sent all never gets its answer.
STREAM_SINCE = (1, 21, 4)

ANGIE = (1, 23, 4)  # the nginx that its first version was made from

MAIN = """\
{modules}daemon off;
pid {directory}/nginx.pid;
error_log stderr;
events {{
}}
http {{
    access_log off;
    client_body_temp_path {directory}/a;
    proxy_temp_path {directory}/b;
    fastcgi_temp_path {directory}/c;
    uwsgi_temp_path {directory}/d;
    scgi_temp_path {directory}/e;
    include {directory}/site;
}}
{stream}
"""


@dataclass(frozen=True)
class InstalledNginx:
    """The nginx of this machine."""

    program: str
    version: tuple[int, ...]
    stream: str | None  # the directive that loads the module; empty if it is built in

    @property
    def service(self) -> str:
        """What `service` calls it."""
        return Path(self.program).name

    @property
    def has_stream(self) -> bool:
        """Whether it can serve the nailgun port."""
        return self.stream is not None and self.version >= STREAM_SINCE


def nginx() -> InstalledNginx | None:
    """The nginx, or the program based on it, that is installed; of several the one that runs."""
    running = names_running()
    for name in sorted(NAMES, key=lambda name: name not in running):
        path = root_program(name)
        found = nginx_at(path) if path is not None else None
        if found is not None:
            return found
    return None


def nginx_at(path: str) -> InstalledNginx | None:
    """The nginx at this path, or None if it cannot be run."""
    try:
        said = capture([path, "-V"], timeout=SECONDS).err
    except (TookTooLong, OSError):
        return None
    return parse_nginx(path, said, os.path.exists)


def parse_nginx(path: str, said: str, exists: Callable[[str], bool]) -> InstalledNginx:
    """Reads what `nginx -V` says; `exists` tells whether a module's file is there."""
    version = re.search(r"nginx version: \S+?/([\d.]+)", said)
    numbers = tuple(int(part) for part in version[1].strip(".").split(".")) if version else ()
    if "Angie version: " in said:
        numbers = ANGIE  # its own versions start at 1.0
    stream = None
    if re.search(r"--with-stream(?=\s|$)", said):
        stream = ""
    modules = re.search(r"--modules-path=(\S+)", said)
    if "--with-stream=dynamic" in said and modules:
        module = f"{modules[1]}/ngx_stream_module.so"
        stream = f"load_module {module};\n" if exists(module) else None
    return InstalledNginx(path, numbers, stream)


def located(values: Values, nginx: InstalledNginx | None) -> tuple[Values, Configuration | None]:
    """The values for this host's nginx, and all that it reads, if it tells this user."""
    if nginx is None:
        return values, None
    # This creates nginx's logs and directories.
    conf = nginx_conf.read(_asked([nginx.program, "-T"]).out)
    return dataclasses.replace(nginx_conf.located(values, conf), front=nginx.service), conf


def of_sudoers(files: Iterable[File], say: Callable[[str], None], *, needed: bool) -> None:
    """Shows the sudoers file to visudo. Raises NotReady (4)."""
    for file in files:
        if "sudoers" not in file.etc:
            continue
        visudo = root_program("visudo")
        if visudo is None:
            if needed:
                raise NotReady("visudo is not installed", remedy="apt-get install sudo")
            say("visudo is not installed: the sudoers file was not checked")
            return
        with tempfile.TemporaryDirectory() as directory:
            draft = Path(directory) / "sudoers"
            draft.write_text(file.text, encoding="utf-8")
            draft.chmod(0o440)
            _refuse(_asked([visudo, "-c", "-f", str(draft)]), f"visudo rejects {file.path}")


def of_units(files: Iterable[File], say: Callable[[str], None]) -> None:
    """Has systemd-analyze check the units. Raises NotReady (4) if it rejects them."""
    units = {Path(file.path).name: file.text for file in files if file.path.endswith(".service")}
    if not units:
        return
    analyze = root_program("systemd-analyze")
    if analyze is None:
        say("systemd-analyze is not installed: the units were not checked")
        return
    with tempfile.TemporaryDirectory() as directory:
        for name, text in units.items():
            # Java may be installed later; `check` reports it if it is missing.
            draft = re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", text)
            (Path(directory) / name).write_text(draft, encoding="utf-8")
        # With --user, since without it a file would be left in /run.
        words = [analyze, "verify", "--user", *(f"{directory}/{name}" for name in units)]
        env = {**os.environ, "XDG_RUNTIME_DIR": directory}
        answer = _asked([*words, "--recursive-errors=no"], env)
        if "unrecognized option" in answer.err:  # before systemd 250
            answer = _asked(words, env)
        _refuse(answer, f"systemd rejects {' and '.join(units)}")


def of_nginx(
    values: Values, nailgun: Nailgun, nginx: InstalledNginx | None, say: Callable[[str], None]
) -> None:
    """Shows the site, and the stream part if it is wanted, to nginx. Raises NotReady (4)."""
    if nginx is None:
        say("nginx is not installed: its files were not checked")
        return
    if nailgun == "nginx" and not nginx.has_stream:
        raise NotReady(
            "this nginx cannot serve the nailgun port",
            remedy="apt-get install libnginx-mod-stream (nginx 1.21.4 or newer)\n"
            f"or: {values.without_stream}",
        )
    if nailgun == "nginx" and not values.has_place_for_stream:
        raise NotReady(
            "nginx reads no file outside its http block, and the nailgun port's server belongs there",
            remedy="add to the top of nginx.conf: include modules-enabled/*.conf;\n"
            f"or: {values.without_stream}",
        )
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        # The ports may be taken, or be root's to take: sockets in the directory do as well.
        draft = dataclasses.replace(
            values,
            listen=f"unix:{directory}/1",
            probe_listen=f"unix:{directory}/2",
            nailgun_host="unix",
            nailgun_port=f"{directory}/3",
        )
        (directory / "site").write_text(render("site", draft), encoding="utf-8")
        stream = render("nailgun.conf", draft) if nailgun == "nginx" else ""
        modules = (nginx.stream or "") if nailgun == "nginx" else ""
        main = directory / "nginx.conf"
        main.write_text(
            MAIN.format(modules=modules, directory=directory, stream=stream), encoding="utf-8"
        )
        answer = _asked([nginx.program, "-t", "-p", name, "-c", str(main)])
        _refuse(answer, "nginx rejects its files")


@dataclass(frozen=True)
class Verdict:
    """What sudo and nginx say of all that is on this host now."""

    refused_by: str | None = None
    said: str = ""  # why, to the letter


def of_whole_host(nginx: InstalledNginx | None) -> Verdict:
    """Asks visudo and nginx what they think of this host's own files."""
    visudo = root_program("visudo")
    if visudo is not None:
        answer = _asked([visudo, "-c"])
        if answer.status != 0:
            return Verdict("sudo", _said(answer))
    if nginx is None:
        return Verdict()
    answer = _asked([nginx.program, "-t"])
    if answer.status != 0:
        return Verdict("nginx", _said(answer))
    return Verdict()


def remedy_for(said: str, values: Values) -> str:
    """What to do about a refusal of nginx that the nailgun port's file is in."""
    otherwise = f"or: deploy-clojars setup {values.without_stream}"
    if '"stream" directive is duplicate' in said:
        return (
            "this nginx already has a stream block: put the nailgun port's server into it by "
            f"hand, then run: deploy-clojars setup --nailgun none\n{otherwise}"
        )
    if 'unknown directive "stream"' in said:
        return (
            "the stream module is not enabled: apt-get install libnginx-mod-stream, or link "
            "/usr/share/nginx/modules-available/mod-stream.conf into /etc/nginx/modules-enabled\n"
            f"{otherwise}"
        )
    return ""


def _asked(argv: list[str], env: Mapping[str, str] | None = None) -> Answer:
    try:
        return capture(argv, timeout=SECONDS, env=env)
    except TookTooLong as error:
        return Answer(1, "", f"{argv[0]}: {error}")


def _refuse(answer: Answer, what: str) -> None:
    if answer.status != 0:
        raise NotReady(f"{what}; nothing was changed", detail=_said(answer))


def _said(answer: Answer) -> str:
    return "\n".join(part for part in (answer.err.strip(), answer.out.strip()) if part)
