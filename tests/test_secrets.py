"""A password or a token is sent where it is meant, and shown nowhere."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from uuid import uuid4

import pytest
from clojure_repository import ClojureRepository as Tags
from little_host import LittleHost
from test_doors import DOORS

from deploy_clojars import cli
from deploy_clojars.config import Config, parse
from deploy_clojars.errors import UsageError
from deploy_clojars.host.journal import Event, Journal
from deploy_clojars.masking import masked
from deploy_clojars.run import hook, system_log
from deploy_clojars.screen import tables
from deploy_clojars.screen.console import Console
from deploy_clojars.screen.tables import Column, Table
from deploy_clojars.screen.text import printable_json

SECRET = "s3cr3t"
SECRETS = {
    "a user and a password": ("https://deploy:s3cr3t@host/app.git", "https://***@host/app.git"),
    "a token alone": ("https://ghp_s3cr3t@host/app.git", "https://***@host/app.git"),
    "a token for a user": ("https://s3cr3t:x-oauth-basic@host/", "https://***@host/"),
    "an @ in the password": ("http://u:p@s3cr3t@host:80/", "http://***@host:80/"),
    "an IPv6 address": ("http://u:s3cr3t@[::1]:80/", "http://***@[::1]:80/"),
    "ssh": ("ssh://git:s3cr3t@host/app.git", "ssh://***@host/app.git"),
    "another scheme": ("socks5://u:s3cr3t@proxy:1080", "socks5://***@proxy:1080"),
    "a parameter": ("http://host/up?token=s3cr3t&a=b", "http://host/up?token=***&a=b"),
    "a later parameter": ("http://host/?a=b&private_token=s3cr3t", "http://host/?a=b&private_token=***"),
    "a signature": ("https://s3/a.jar?X-Amz-Signature=s3cr3t", "https://s3/a.jar?X-Amz-Signature=***"),
}  # fmt: skip

CONFIGURATION = {
    "repository": "https://deploy:r3po%2Fs3cr3t@host/app.git",
    "services": {"username": "sup", "password": 'sup3r"s3cr3t'},
    "drain": {"probe": "http://u:pr0be-s3cr3t@127.0.0.1:8099/pool"},
    "instances": {
        "primary": {
            "url": "http://look:l00k-s3cr3t@clojars.org:8001/",
            "health": [{"url": "https://u:h3alth-s3cr3t@127.0.0.1:8001/", "host": "clojars.org"}],
        }
    },
}


@pytest.fixture
def config() -> Config:
    """A configuration that is full of passwords."""
    return parse(CONFIGURATION, "test")


@pytest.mark.parametrize(("text", "shown"), SECRETS.values(), ids=SECRETS)
def test_a_secret_in_a_url_is_masked_and_the_rest_is_not(text: str, shown: str) -> None:
    assert masked(text) == shown
    assert masked(f"a {text} b\n'{text}', c") == f"a {shown} b\n'{shown}', c"


@pytest.mark.parametrize(
    "text",
    [
        "git@github.com:clojars/clojars-web.git",
        "ssh://git@github.com/clojars/clojars-web.git",
        "http://clojars.org:8001/ by ann@example.org",
        "https://host/@scope/package and https://host/a@1.2",
        "http://127.0.0.1:8001/?verbose=1&format=json",
        '{"url":"http://host","by":"ann@example.org"}',
        "no token: a key=value of a build",
    ],
)
def test_what_is_no_secret_is_shown_as_it_is(text: str) -> None:
    assert masked(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "r3po%2Fs3cr3t",
        "r3po/s3cr3t",
        "fatal: port is 'r3po%2Fs3cr3t'",
        b64encode(b"deploy:r3po/s3cr3t").decode(),
        'sup3r"s3cr3t',
        "pr0be-s3cr3t",
        "l00k-s3cr3t",
        "h3alth-s3cr3t",
    ],
)
def test_what_the_configuration_has_is_masked_wherever_it_stands(config: Config, text: str) -> None:
    assert "***" in masked(f"before {text} after")
    assert text not in masked(f"before {text} after")
    shown = json.loads(printable_json(json.dumps({"a": f"before {text} after", "b": 1})))
    assert shown == {"a": masked(f"before {text} after"), "b": 1}


def test_a_short_password_is_masked_in_its_url_and_in_no_other_word() -> None:
    parse({"repository": "https://clojars:web@host/app.git"}, "test")
    assert (
        masked("https://clojars:web@host/ builds clojars-web")
        == "https://***@host/ builds clojars-web"
    )


@pytest.mark.parametrize("door", DOORS)
def test_no_secret_leaves_by_a_door_of_the_console(
    door: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    console, log = Console(), tmp_path / "logs" / "a.log"
    with console.logging_to(log):
        DOORS[door](console, f"before {SECRETS['a user and a password'][0]} after")
    shown = capfd.readouterr().err + log.read_bytes().decode()
    assert "https://***@host/app.git" in shown
    assert SECRET not in shown


def test_no_secret_is_in_a_result_a_table_or_json(capfd: pytest.CaptureFixture[str]) -> None:
    secret = SECRETS["a user and a password"][0]
    cli._show_result(secret)
    cli._show_result(tables.as_text(Table((Column("a"),), [(secret,)], ((0,),))))
    cli._show_json(json.dumps({"url": secret, "said": f'"{secret}"'}))
    shown = capfd.readouterr().out
    assert SECRET not in shown
    assert shown.count("https://***@host/app.git") == 4


def test_no_secret_is_in_a_traceback_of_a_defect(
    config: Config, capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        raise ValueError(config.repository, "r3po/s3cr3t")
    except ValueError as error:
        cli._defect(error, None)
    assert SECRET not in capfd.readouterr().err


def test_no_secret_is_in_the_journal_the_hooks_variables_or_the_systems_log(
    tmp_path: Path,
) -> None:
    secret = f"{'x' * 3980} {SECRETS['a user and a password'][0]}"  # cut off in the middle of it
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append(Event(event="end", why=secret))
    assert "***" in journal.file.read_text() and SECRET not in journal.file.read_text()
    assert SECRET not in hook.variables(why=secret)["DEPLOY_WHY"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "log"))
        system_log.tell(secret[3000:], str(tmp_path / "log"))
        assert SECRET.encode() not in receiver.recv(4096)


@pytest.mark.parametrize(
    ("key", "url"),
    [
        ("repository", "https://deploy:s3/cr3t@host/app.git"),
        ("repository", "https://deploy:12/s3cr3t@host/app.git"),
        ("repository", "https://deploy:s3#cr3t@host/app.git"),
        ("repository", "https://deploy:s3?cr3t@host/app.git"),
        ("repository", 'https://deploy:s3"cr3t@host/app.git'),
        ("probe", "http://u:s3/cr3t@127.0.0.1/"),
        ("url", "http://u:s3/cr3t@127.0.0.1/"),
        ("health", "http://u:s3/cr3t@127.0.0.1/"),
        ("health", "ftp://u:s3cr3t@127.0.0.1/"),
        ("health", "tcp://u:s3cr3t@127.0.0.1:1"),
    ],
)
def test_a_url_that_cannot_be_read_is_refused_without_its_password(key: str, url: str) -> None:
    tables: dict[str, dict[str, object]] = {
        "repository": {"repository": url},
        "probe": {"drain": {"probe": url}},
        "url": {"instances": {"primary": {"url": url}}},
        "health": {"instances": {"primary": {"health": [url]}}},
    }
    with pytest.raises(UsageError) as refused:
        parse(tables[key], "site.toml")
    message = refused.value.message
    assert message.startswith("site.toml: ") and key in message
    assert "***@" in message and "cr3t" not in message and "s3" not in message, message


# --- git --------------------------------------------------------------------------------------


class Server:
    """A git server of http that wants a user and a password, and notes what is seen meanwhile."""

    def __init__(self, directory: Path, user: str, password: str) -> None:
        wanted = "Basic " + b64encode(f"{user}:{password}".encode()).decode()
        self.arguments: set[bytes] = set()  # of all processes of this machine
        seen = self.arguments

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                for file in Path("/proc").glob("[0-9]*/cmdline"):
                    try:
                        seen.add(file.read_bytes())
                    except OSError:
                        continue
                if self.headers["Authorization"] == wanted:
                    super().do_GET()
                    return
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="git"')
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(
            ("127.0.0.1", 0), partial(Handler, directory=str(directory))
        )
        self.host = f"127.0.0.1:{self.http.server_port}"


@contextmanager
def git_server(host: LittleHost, password: str = "s3cr3t/T0ken") -> Iterator[Server]:
    """Serves the host's repository; without a process of its own, so no argument is the server's."""
    bare = host.directory / "srv" / "app.git"
    subprocess.run(["git", "clone", "-q", "--bare", host.repository_url, bare], check=True)
    subprocess.run(["git", "-C", bare, "update-server-info"], check=True)
    server = Server(bare.parent, "deploy", password)
    with server.http:
        Thread(target=server.http.serve_forever, daemon=True).start()
        yield server
        server.http.shutdown()


def at_url(host: LittleHost, url: str) -> None:
    """Gives the configuration another repository."""
    host.repository_url = url
    host.write_config()


def test_a_deploy_with_a_password_in_the_url_shows_it_nowhere(light_host: LittleHost) -> None:
    host = light_host
    host.options["hook"] = f'command = "env | grep -a ^DEPLOY_ >> {host.directory}/told"'
    # What the user's helper and ~/.netrc have does not count, as for git itself with such a URL.
    home = host.directory / "user"
    home.mkdir()
    (home / ".gitconfig").write_text("[credential]\nhelper = store\n")
    host.environment.update(
        HOME=str(home), GIT_TRACE="1", GIT_CURL_VERBOSE="1", GIT_TRACE_REDACT="0"
    )
    # Words of its own: the arguments of all processes are looked at, those of other tests, too.
    one, other = uuid4().hex, uuid4().hex
    with git_server(host, f"{one}/{other}") as server:
        (home / ".git-credentials").write_text(f"http://deploy:stale@{server.host}\n")
        (home / ".netrc").write_text("machine 127.0.0.1 login deploy password stale\n")
        at_url(host, f"http://deploy:{one}%2F{other}@{server.host}/app.git")
        results = [
            host.done(Tags.SECOND, "--yes"),
            host.run("0.99", "--yes"),
            host.done(Tags.THIRD, "--dry-run"),
            host.run("check"),
        ]
        assert server.arguments
    # The server is gone: git's own words.
    results.append(host.run(Tags.THIRD, "--yes"))
    results += [host.run("history", "--json"), host.run("history"), host.run("status", "--json")]
    shown = "".join(result.stdout + result.stderr for result in results)
    assert f"http://***@{server.host}/app.git" in shown
    assert re.search(r"^ok  http://.*, \d+ tags$", results[3].stdout, re.MULTILINE)
    assert results[4].returncode == 1
    logs = list((host.deploy / "logs").iterdir())
    told = host.directory / "told"
    files = [host.deploy / "journal.jsonl", told, *logs]
    assert len(logs) == 3 and b"tags" in b"".join(log.read_bytes() for log in logs)
    everything = [shown.encode(), *(file.read_bytes() for file in files), *server.arguments]
    coded = b64encode(f"deploy:{one}/{other}".encode())
    for text in everything:
        assert not [word for word in (one.encode(), other.encode(), coded) if word in text], text
    assert (home / ".git-credentials").read_text() == f"http://deploy:stale@{server.host}\n"


@pytest.mark.parametrize("way", ["helper", "netrc"])
def test_a_credential_helper_and_netrc_are_asked_for_a_url_without_a_password(
    light_host: LittleHost, way: str
) -> None:
    host = light_host
    home = host.directory / "user"
    home.mkdir()
    host.environment["HOME"] = str(home)
    user = "deploy@" if way == "helper" else ""
    with git_server(host, "pa55word-of-file") as server:
        if way == "helper":
            (home / ".gitconfig").write_text("[credential]\nhelper = store\n")
            (home / ".git-credentials").write_text(
                f"http://other:stale@{server.host}\nhttp://deploy:pa55word-of-file@{server.host}\n"
            )
        else:
            (home / ".netrc").write_text(
                "machine 127.0.0.1 login deploy password pa55word-of-file\n"
            )
            (home / ".netrc").chmod(0o600)
        at_url(host, f"http://{user}{server.host}/app.git")
        host.done(Tags.SECOND, "--yes")
        assert re.search(r"^ok  http://.*, \d+ tags$", host.run("check").stdout, re.MULTILINE)


def test_a_token_in_place_of_a_user_is_in_no_log(light_host: LittleHost) -> None:
    host = light_host
    with git_server(host) as server:
        at_url(host, f"http://ghp_s3cr3t@{server.host}/app.git")
        result = host.run(Tags.SECOND, "--yes")
    assert result.returncode == 1
    log = b"".join(file.read_bytes() for file in (host.deploy / "logs").iterdir())
    assert b"could not read Password" in log
    assert b"s3cr3t" not in log and "s3cr3t" not in result.stderr


def test_the_tests_and_the_build_do_not_get_the_password(light_host: LittleHost) -> None:
    host = light_host
    seen = f'"(env; cat .git/config) > {host.directory}/seen"'
    host.options["build"] = host.options["build"].replace('"true"', seen)
    with git_server(host) as server:
        at_url(host, f"http://deploy:s3cr3t%2FT0ken@{server.host}/app.git")
        host.done(Tags.SECOND, "--yes")
    text = (host.directory / "seen").read_text()
    assert "DEPLOY_CLOJARS_RUN" in text and "[remote" in text
    assert "s3cr3t" not in text


def test_a_configuration_with_a_password_that_everybody_can_read_is_found(
    light_host: LittleHost,
) -> None:
    host = light_host
    assert "holds a password" not in host.run("check").stdout
    web = f"http://u:s3cr3t@127.0.0.1:{host.ports[1]}/"
    host.write_config(**{"instances.backup": f'health = ["{web}"]'})
    found = host.run("check")
    assert f"{host.config} holds a password, and every user can read it" in found.stdout
    [remedy] = [line for line in found.stdout.splitlines() if "chmod o-rwx" in line]
    subprocess.run(["sh", "-c", remedy.replace("as root: ", "")], check=True)
    assert "holds a password" not in host.run("check").stdout
