"""A jar: whether it is valid, and which version and commit it says it was built from."""

from __future__ import annotations

import lzma
import os
import zipfile
import zlib
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from deploy_clojars.errors import DeployError

# What zipfile raises for a file that is not a zip, or a damaged one (NotImplementedError is a
# RuntimeError).
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    ValueError,
    OSError,
    EOFError,
    RuntimeError,
)


@dataclass(frozen=True)
class JarFacts:
    """What the jar's META-INF/maven/…/pom.properties says; None for what it lacks."""

    version: str | None = None
    revision: str | None = None


def ends_as_a_zip(descriptor: int) -> bool:
    """Whether a file, which is not read for it, has a zip's last record. Raises OSError."""
    position = os.lseek(descriptor, 0, os.SEEK_CUR)
    with open(descriptor, "rb", closefd=False) as file:
        found = zipfile.is_zipfile(file)
    os.lseek(descriptor, position, os.SEEK_SET)
    return found


def facts_of(jar: Path, name: str, *, sound: bool = True, called: str = "") -> JarFacts:
    """Returns what `jar` says of the application `name`; checks that it can be run.

    It must be a zip whose every entry has the right checksum, with a Main-Class (for `java -jar`)
    or a `__main__.py` (for `python3 FILE`). Raises DeployError. `sound=False` leaves out the
    checksums, for a release that was checked before: they take 0.15 s for 9 MB.
    `called` is what messages call it, by default its path.
    """
    called = called or str(jar)
    if jar.is_symlink() or not jar.is_file():
        raise DeployError(f"{called} is not a regular file")
    try:
        with zipfile.ZipFile(jar) as archive:
            damaged = archive.testzip() if sound else None
            if damaged is not None:
                raise DeployError(f"{called} is damaged: the checksum of {damaged!r} is wrong")
            names = archive.namelist()
            if not _has_main_class(archive, names) and "__main__.py" not in names:
                raise DeployError(
                    f"{called} is not a program: it has neither a Main-Class nor a __main__.py"
                )
            return _pom_facts(archive, names, name)
    except DAMAGED as error:
        raise DeployError(f"{called} is not a valid jar: {error}") from None


def _has_main_class(archive: zipfile.ZipFile, names: list[str]) -> bool:
    """As java looks for it: in the first section, under a name whose case does not matter."""
    manifest = "META-INF/MANIFEST.MF"
    if manifest not in names:
        return False
    lines = archive.read(manifest).splitlines()
    return any(line.lower().startswith(b"main-class:") for line in takewhile(bool, lines))


def _pom_facts(archive: zipfile.ZipFile, names: list[str], artifact: str) -> JarFacts:
    """The application's own pom.properties; an uberjar has those of its libraries, too."""
    for name in names:
        if name.startswith("META-INF/maven/") and name.endswith(f"/{artifact}/pom.properties"):
            text = archive.read(name).decode("utf-8", "replace")
            pairs = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
            facts = (pairs.get(key, "").strip() or None for key in ("version", "revision"))
            return JarFacts(*facts)
    return JarFacts()
