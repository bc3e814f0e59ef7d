"""The TCP port beside the web port, where clojars.org takes its scp uploads."""

import contextlib
import socketserver
from collections.abc import Callable


class Nailgun(socketserver.StreamRequestHandler):
    """Greets at once, and says how much it got when the client has sent all."""

    timeout = 5  # seconds without a byte

    def __init__(self, version: str, *connection: object) -> None:
        self.version = version
        super().__init__(*connection)  # type: ignore[arg-type]

    def handle(self) -> None:
        # A health check connects, and is gone before it has the greeting.
        with contextlib.suppress(OSError):
            self.wfile.write(f"nailgun {self.version}\n".encode())
            size = 0
            while received := self.request.recv(65536):
                size += len(received)
            if size:
                self.wfile.write(f"received {size} bytes\n".encode())


def handler(version: str) -> Callable[..., Nailgun]:
    """What a server calls for every connection."""
    return lambda *connection: Nailgun(version, *connection)
