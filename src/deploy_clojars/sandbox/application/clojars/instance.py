"""One instance, with its settings from the environment: PORT and NAILGUN_PORT."""

import os
import signal
from importlib import resources

from clojars import nailgun, web
from clojars.server import Server, say

STOP = {signal.SIGTERM, signal.SIGINT}


def run() -> None:
    """Serves until it is asked to stop; then finishes what it has begun to answer."""
    version = resources.files("clojars").joinpath("version.txt").read_text("utf-8").strip()
    # Blocked in all threads, so that the signal waits for sigwait().
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    servers = [
        Server(int(os.environ["NAILGUN_PORT"]), nailgun.handler(version)),
        Server(int(os.environ["PORT"]), web.handler(version)),
    ]
    say(f"clojars-web {version} serves")
    signal.sigwait(STOP)
    say(f"clojars-web {version} stops")
    for server in servers:
        server.close_listener()
    for server in servers:
        server.finish()
