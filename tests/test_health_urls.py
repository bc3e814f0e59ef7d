"""What a health URL is asked with, and which answers count: real servers, with and without TLS."""

from __future__ import annotations

import ssl
import subprocess
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from little_host import LittleHost
from programs import require_program

from deploy_clojars.config import HealthUrl
from deploy_clojars.host.health import Check, check

NAME = "site.example"
DEADLINE = 60.0  # seconds that an answer may take on a busy machine


@dataclass
class Server:
    """A server on the loopback interface, and what it was sent."""

    port: int
    headers: list[dict[str, str]] = field(default_factory=list)


@contextmanager
def server(
    *, before: bytes = b"", status: int = 200, delay: float = 0, pem: Path | None = None
) -> Iterator[Server]:
    """Answers every GET, after the bytes `before` and `delay` seconds."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            noted.headers.append(dict(self.headers))
            self.wfile.write(before)
            time.sleep(delay)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        noted = Server(http.server_port)
        if pem is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(pem)
            http.socket = context.wrap_socket(http.socket, server_side=True)
        http.handle_error = lambda *_: None  # type: ignore[method-assign] # a refused certificate
        Thread(target=http.serve_forever, daemon=True).start()
        yield noted
        http.shutdown()


def asked(
    url: str, *, host: str | None = None, ca: Path | None = None, timeout: float = DEADLINE
) -> Check:
    """What a health check says."""
    return check(HealthUrl(url, host, str(ca) if ca else None), timeout)


@pytest.mark.parametrize(
    "login", ["probe:pass-w0rd", "probe:p%40ss%2Fw%C3%B6rd", "t0ken", "t0ken:"]
)
def test_the_user_and_the_password_are_sent_as_they_are(login: str) -> None:
    plain = login.replace("%40", "@").replace("%2F", "/").replace("%C3%B6", "ö")
    sent = plain if ":" in plain else f"{plain}:"
    with server() as site:
        assert asked(f"http://{login}@127.0.0.1:{site.port}/").ok
    assert site.headers[0]["Authorization"] == f"Basic {b64encode(sent.encode()).decode()}"
    assert site.headers[0]["Host"] == f"127.0.0.1:{site.port}"


def test_nothing_is_sent_that_the_url_does_not_have() -> None:
    with server() as site:
        assert asked(f"http://127.0.0.1:{site.port}/").ok
        assert asked(f"http://127.0.0.1:{site.port}/", host=NAME).ok
    assert all("Authorization" not in headers for headers in site.headers)
    assert [headers["Host"] for headers in site.headers] == [f"127.0.0.1:{site.port}", NAME]


@pytest.mark.parametrize("status", [200, 204, 302, 401, 503])
@pytest.mark.parametrize(
    "before",
    [
        b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n",
        b"HTTP/1.1 102 Processing\r\n\r\n" * 2,
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n",
    ],
)
def test_the_answer_after_any_1xx_counts(before: bytes, status: int) -> None:
    with server(before=before, status=status) as site:
        answer = asked(f"http://127.0.0.1:{site.port}/")
    assert answer.ok is (status < 400)
    assert answer.detail.startswith(str(status))


def test_a_1xx_alone_is_no_answer() -> None:
    with server(before=b"HTTP/1.1 103 Early Hints\r\n\r\n", delay=DEADLINE) as site:
        answer = asked(f"http://127.0.0.1:{site.port}/", timeout=0.3)
    assert (answer.ok, answer.detail) == (False, "timed out")


def test_a_server_that_wants_another_protocol_is_not_healthy() -> None:
    with server(status=101) as site:
        assert not asked(f"http://127.0.0.1:{site.port}/").ok


def test_how_long_an_answer_may_take_can_be_set(light_host: LittleHost) -> None:
    host = light_host
    for limit, delay, ok in ((0.3, DEADLINE, False), (DEADLINE, 1, True)):
        with server(delay=delay) as site:
            url = f'health = ["http://127.0.0.1:{site.port}/"]'
            host.write_config(health=f"answer_timeout = {limit}", **{"instances.backup": url})
            [answer] = host.status["instances"]["backup"]["checks"]
            assert answer["ok"] is ok
            assert ok or answer["detail"] == "timed out"


def test_a_password_reaches_the_server_and_no_output(light_host: LittleHost) -> None:
    host = light_host
    with server(status=401) as site:
        url = f"http://probe:pass-w0rd@127.0.0.1:{site.port}/"
        host.write_config(**{"instances.backup": f'health = ["{url}"]'})
        outputs = [host.run(*words) for words in (["status"], ["status", "--json"], ["check"])]
        # Refused, for what runs is not healthy by this URL.
        outputs.append(host.run("0.2.0", "--yes"))
        with host.typing("status", "--watch") as watch:
            watch.sees(f"http://***@127.0.0.1:{site.port}/: 401")
            assert "pass-w0rd" not in watch.shown
    assert site.headers[0]["Authorization"].startswith("Basic ")
    for output in outputs:
        shown = output.stdout + output.stderr
        assert f"http://***@127.0.0.1:{site.port}/" in shown
        assert "pass-w0rd" not in shown


# --- TLS --------------------------------------------------------------------------------------


def openssl(*words: str | Path) -> None:
    """Runs openssl."""
    require_program("openssl")
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


def certificate(directory: Path, name: str = NAME, authority: Path | None = None) -> Path:
    """A key and its certificate for the name in one file: self-signed, or of the authority."""
    pem = directory / f"{name}.pem"
    signed: list[str | Path] = ["-CA", authority, "-CAkey", authority] if authority else []
    openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
        "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}", *signed,
        "-days", "2", "-keyout", directory / "key", "-out", directory / "certificate",
    )  # fmt: skip
    parts = (directory / "key", directory / "certificate")
    pem.write_text("".join(part.read_text() for part in parts))
    return pem


def test_a_certificate_is_accepted_by_its_file_and_the_name_that_it_is_for(tmp_path: Path) -> None:
    pem = certificate(tmp_path)
    with server(pem=pem) as site:
        url = f"https://127.0.0.1:{site.port}/"
        accepted = asked(url, host=NAME, ca=pem)
        assert (accepted.ok, accepted.detail) == (True, "200 OK")
        assert site.headers[0]["Host"] == NAME
        unknown = asked(url, host=NAME)
        assert not unknown.ok and "its certificate is not accepted: self-signed" in unknown.detail
        other = asked(url, host="other.example", ca=pem)
        assert not other.ok and "not valid for 'other.example'" in other.detail
        address = asked(url, ca=pem)
        assert not address.ok and "not valid for '127.0.0.1'" in address.detail


def test_a_certificate_is_accepted_by_who_signed_it_and_by_itself(tmp_path: Path) -> None:
    if b"-CA " not in subprocess.run(
        ["openssl", "req", "-help"], capture_output=True, check=False
    ).stderr:  # fmt: skip
        pytest.skip("openssl before 3.0")
    authority = certificate(tmp_path, "authority.example")
    pem = certificate(tmp_path, NAME, authority)
    stranger = certificate(tmp_path, "stranger.example")
    with server(pem=pem) as site:
        url = f"https://127.0.0.1:{site.port}/"
        assert asked(url, host=NAME, ca=authority).ok
        assert asked(url, host=NAME, ca=pem).ok  # its own, whoever signed it
        assert not asked(url, host=NAME, ca=stranger).ok


def test_a_file_of_certificates_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    pem = certificate(tmp_path)
    (tmp_path / "not one").write_text("no certificate")
    with server(pem=pem) as site:
        url = f"https://127.0.0.1:{site.port}/"
        for ca in (tmp_path / "missing", tmp_path / "not one"):
            answer = asked(url, host=NAME, ca=ca)
            assert not answer.ok
            assert f"its `ca` {ca}: " in answer.detail
