"""The web side: a page for people, and routes that show what an instance does."""

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlsplit

from clojars.server import say


class Site:
    """What all connections of an instance share."""

    def __init__(self, version: str) -> None:
        self.version = version
        self._uploads: Counter[str] = Counter()
        self._lock = threading.Lock()

    def count(self, name: str) -> None:
        """Notes an upload."""
        with self._lock:
            self._uploads[name] += 1

    @property
    def uploads(self) -> dict[str, int]:
        """How many uploads each name has had since the start."""
        with self._lock:
            return dict(self._uploads)

    def page(self) -> str:
        """The front page."""
        return (
            "<!doctype html>\n"
            f"<title>Clojars {self.version}</title>\n"
            f"<h1>Clojars {self.version}</h1>\n"
            "<p>A community repository for open source Clojure libraries.</p>\n"
        )


class Web(BaseHTTPRequestHandler):
    """Answers one request."""

    # Seconds. Browsers open connections in advance, and a stop waits for all that are open.
    timeout = 2

    def __init__(self, site: Site, *connection: object) -> None:
        self.site = site
        super().__init__(*connection)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/":
            self._answer(self.site.page(), "text/html")
        elif url.path == "/version":
            self._answer(self.site.version)
        elif url.path == "/pid":
            self._answer(str(os.getpid()))
        elif url.path == "/uploads":
            self._answer(json.dumps(self.site.uploads), "application/json")
        elif url.path == "/slow":
            milliseconds = int(parse_qs(url.query)["ms"][0])
            say(f"answering in {milliseconds} ms")
            time.sleep(milliseconds / 1000)
            self._answer(f"answered after {milliseconds} ms")
        else:
            self.send_error(404)

    def do_PUT(self) -> None:
        directory, _, name = urlsplit(self.path).path.rpartition("/")
        if directory != "/upload" or not name:
            self.send_error(404)
            return
        if "Content-Length" not in self.headers:
            self.send_error(411)
            return
        self.connection.settimeout(60)  # the client is at work now
        size = left = int(self.headers["Content-Length"])
        while left and (received := self.rfile.read(min(left, 65536))):
            left -= len(received)
        if left:
            self.send_error(400, "The upload was cut off")
            return
        self.site.count(name)
        self._answer(str(size))

    do_POST = do_PUT

    def _answer(self, text: str, kind: str = "text/plain") -> None:
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """A line a request would be little else than health checks."""


def handler(version: str) -> Callable[..., Web]:
    """What a server calls for every connection."""
    site = Site(version)
    return lambda *connection: Web(site, *connection)
