"""A site in Java, of one class and no library: a JVM starts it in a third of a second."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

from programs import require_program

SOURCE = """\
package clojars;

import com.sun.net.httpserver.*;
import java.net.*;

public class main {
    public static void main(String[] words) throws Exception {
        if (System.getenv("PORT") == null) {
            System.out.println("VERSION");
            return;
        }
        InetAddress here = InetAddress.getByName("127.0.0.1");
        ServerSocket nailgun = new ServerSocket(Integer.parseInt(System.getenv("NAILGUN_PORT")), 50, here);
        int port = Integer.parseInt(System.getenv("PORT"));
        HttpServer web = HttpServer.create(new InetSocketAddress(here, port), 0);
        web.createContext("/", request -> {
            byte[] body = "VERSION".getBytes();
            request.sendResponseHeaders(200, body.length);
            request.getResponseBody().write(body);
            request.close();
        });
        web.start();
        while (true)
            nailgun.accept().close();
    }
}
"""


class JavaApplication:
    """Builds the site's jars. Those of versions that are equally long have one size."""

    def __init__(self, directory: Path) -> None:
        require_program("java", "javac", "jcmd")
        source = directory / "clojars/main.java"
        source.parent.mkdir(parents=True)
        source.write_text(SOURCE, encoding="utf-8")
        subprocess.run(["javac", "-g:none", "-d", directory, source], check=True)
        self._directory = directory

    def jar(self, version: str) -> Path:
        """The version's jar; without ports in its environment it prints its version and ends."""
        jar = self._directory / f"clojars-web-{version}-standalone.jar"
        length = len("VERSION").to_bytes(2, "big") + b"VERSION"  # a constant of a class
        new = len(version).to_bytes(2, "big") + version.encode()
        with zipfile.ZipFile(jar, "w") as archive:
            archive.writestr("META-INF/MANIFEST.MF", "Main-Class: clojars.main\n")
            for file in sorted(self._directory.glob("clojars/*.class")):
                member = zipfile.ZipInfo(f"clojars/{file.name}")
                archive.writestr(member, file.read_bytes().replace(length, new))
        return jar
