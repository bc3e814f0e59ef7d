"""A TCP server on 127.0.0.1 that can be stopped without cutting anybody off."""

import contextlib
import socketserver
import sys
import threading
from collections.abc import Callable


class Server(socketserver.ThreadingTCPServer):
    """Listens from the start, and answers every connection on a thread of its own."""

    allow_reuse_address = True
    request_queue_size = 128
    daemon_threads = False  # or `finish` would not wait for them

    def __init__(self, port: int, handler: Callable[..., socketserver.BaseRequestHandler]) -> None:
        super().__init__(("127.0.0.1", port), handler)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def port(self) -> int:
        """The port, also if it was left to the kernel (0)."""
        return int(self.server_address[1])

    def close_listener(self) -> None:
        """Takes no new connections, so that a proxy gives them to the other instance."""
        self.shutdown()
        self.socket.close()

    def finish(self) -> None:
        """Waits until every connection that was taken is answered."""
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are nobody's mistake."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def say(text: str) -> None:
    """Writes a line into the log; a log that is gone stops nobody."""
    with contextlib.suppress(OSError):
        print(text, flush=True)
