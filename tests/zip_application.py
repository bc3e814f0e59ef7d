"""A release in Python instead of Clojure: a jar is a zip, and `python3 FILE` runs one.

It stands in where a test is about the tool and not about the JVM: it starts in a tenth of the
time. What it serves is what the Clojure application serves.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

MAIN = """
import os, sys, time
import _socket, _thread  # socket and threading take longer to import than all else

# Python reads a zipapp and closes it; a JVM keeps its jar open, and so does this.
JAR = open(os.path.realpath(sys.argv[0]), "rb")

# The link may have been flipped since Python read this: what is served is what is held.
sys.path[0] = JAR.name
from release import VERSION

def names_this_port(file):
    try:
        return os.environ["PORT"] in open(file).read().split()
    except FileNotFoundError:  # or it was removed this very moment
        return False

# A file beside the release names the ports that it does not start on.
if names_this_port(JAR.name + ".refused"):
    sys.exit("refused to start")

# And another one those on which it does not serve before that file is gone.
while names_this_port(JAR.name + ".late"):
    time.sleep(0.02)

# As much of HTTP as is asked of it.
def web(client):
    with open(client.fileno(), "rb", closefd=False) as lines:
        words = lines.readline().decode().split(" ")
        if len(words) != 3:
            return
        path = words[1]
        while lines.readline().strip():
            pass
    body = VERSION.encode()
    if path == "/pid":
        body = str(os.getpid()).encode()
    elif path.startswith("/slow?ms="):
        ms = int(path.partition("=")[2])
        print("answering in", ms, "ms", flush=True)
        time.sleep(ms / 1000)
    elif path.startswith("/until-gone?"):
        file = path.partition("?")[2]
        print("answering when", file, "is gone", flush=True)
        while os.path.exists(file):
            time.sleep(0.02)
    head = f"HTTP/1.0 200 OK\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n"
    client.sendall(head.encode() + body)

def nailgun(client):
    client.sendall(b"nailgun\\n")
    while client.recv(65536):
        pass

def listening(port):
    server = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    server.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
    server.bind(("127.0.0.1", int(os.environ[port])))
    server.listen(5)
    return server

def serve(server, handle):
    while True:
        _thread.start_new_thread(answer, (handle, server._accept()[0]))

def answer(handle, descriptor):
    client = _socket.socket(fileno=descriptor)
    try:
        handle(client)
        client.shutdown(_socket.SHUT_WR)
    except OSError:
        pass  # the client has gone
    finally:
        client.close()

_thread.start_new_thread(serve, (listening("NAILGUN_PORT"), nailgun))
serve(listening("PORT"), web)
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
