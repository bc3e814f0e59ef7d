"""A release in Python instead of Clojure: a jar is a zip, and `python3 FILE` runs one.

It stands in where a test is about the tool and not about the JVM: it starts in a tenth of the
time. What it serves is what the Clojure application serves.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

MAIN = """
import os, socketserver, sys, threading, time

# Python reads a zipapp and closes it; a JVM keeps its jar open, and so does this.
JAR = open(os.path.realpath(sys.argv[0]), "rb")

# The link may have been flipped since Python read this: what is served is what is held.
sys.path[0] = JAR.name
from release import VERSION

# A file beside the release names the ports that it does not start on.
refused = JAR.name + ".refused"
if os.path.exists(refused) and os.environ["PORT"] in open(refused).read().split():
    sys.exit("refused to start")

# As much of HTTP as is asked of it; to import http.server takes longer than all else.
class Web(socketserver.StreamRequestHandler):
    def handle(self):
        words = self.rfile.readline().decode().split(" ")
        if len(words) != 3:
            return
        path = words[1]
        while self.rfile.readline().strip():
            pass
        body = VERSION.encode()
        if path == "/pid":
            body = str(os.getpid()).encode()
        elif path.startswith("/slow?ms="):
            ms = int(path.partition("=")[2])
            print("answering in", ms, "ms", flush=True)
            time.sleep(ms / 1000)
        head = f"HTTP/1.0 200 OK\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n"
        self.wfile.write(head.encode() + body)

class Nailgun(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(b"nailgun\\n")
        while self.request.recv(65536):
            pass

class Tcp(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

tcp = Tcp(("127.0.0.1", int(os.environ["NAILGUN_PORT"])), Nailgun)
threading.Thread(target=tcp.serve_forever, daemon=True).start()
Tcp(("127.0.0.1", int(os.environ["PORT"])), Web).serve_forever()
"""


def zip_jar(version: str, commit: str, directory: Path, name: str = "clojars-web") -> Path:
    """Makes the release jar of `version`, with the coordinates that Leiningen writes."""
    directory.mkdir(parents=True, exist_ok=True)
    jar = directory / f"{name}-{version}-standalone.jar"
    with zipfile.ZipFile(jar, "w") as archive:
        archive.writestr("__main__.py", MAIN)
        archive.writestr("release.py", f"VERSION = {version!r}\n")
        archive.writestr(
            f"META-INF/maven/{name}/{name}/pom.properties",
            f"groupId={name}\nartifactId={name}\nversion={version}\nrevision={commit}\n",
        )
    return jar
