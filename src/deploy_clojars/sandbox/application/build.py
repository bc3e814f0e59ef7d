"""Builds the release: target/clojars-web-VERSION-standalone.jar, which `python3` can run."""

import subprocess
import zipfile
from pathlib import Path

NAME = "clojars-web"
HERE = Path(__file__).resolve().parent
VERSION = (HERE / "clojars" / "version.txt").read_text(encoding="utf-8").strip()
JAR = HERE / "target" / f"{NAME}-{VERSION}-standalone.jar"


def main() -> None:
    files = [HERE / "__main__.py", *sorted((HERE / "clojars").glob("*.[pt]*"))]
    for file in files:
        if file.suffix == ".py":
            # A mistake in what no test imports is found here and not when an instance starts.
            compile(file.read_bytes(), str(file.relative_to(HERE)), "exec")
    JAR.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(JAR, "w", zipfile.ZIP_DEFLATED) as jar:
        for file in files:
            jar.write(file, file.relative_to(HERE))
        jar.writestr(f"META-INF/maven/{NAME}/{NAME}/pom.properties", coordinates())
    print(f"built {JAR.relative_to(HERE)}, {JAR.stat().st_size} bytes")


def coordinates() -> str:
    """Where the release comes from, as Leiningen writes it."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=HERE, check=True, capture_output=True, text=True
    ).stdout.strip()
    return f"groupId={NAME}\nartifactId={NAME}\nversion={VERSION}\nrevision={commit}\n"


main()
