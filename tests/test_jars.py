"""What a jar says of itself, and which are refused."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy_clojars.errors import DeployError
from deploy_clojars.host.manifest import JarFacts, facts_of

NAME = "clojars-web"
MANIFEST = "META-INF/MANIFEST.MF"
POM = f"META-INF/maven/{NAME}/{NAME}/pom.properties"
POM_OF_A_LIBRARY = "META-INF/maven/ring/ring-core/pom.properties"


@pytest.fixture
def make_jar(tmp_path: Path) -> Callable[..., Path]:
    def make(compression: int = zipfile.ZIP_DEFLATED, **entries: str) -> Path:
        jar = tmp_path / "app.jar"
        with zipfile.ZipFile(jar, "w", compression) as archive:
            for name, content in entries.items():
                archive.writestr(name, content)
        return jar

    return make


MakeJar = Callable[..., Path]
RUNS = {MANIFEST: "Manifest-Version: 1.0\r\nMain-Class: clojars.main\r\n"}


def test_a_jar_says_its_version_and_its_commit(make_jar: MakeJar) -> None:
    jar = make_jar(**RUNS, **{POM: f"#Leiningen\nversion=0.1.0\nrevision={'a' * 40}\n"})

    assert facts_of(jar, NAME) == JarFacts("0.1.0", "a" * 40)


@pytest.mark.parametrize(
    ("pom", "facts"),
    [
        ("", JarFacts()),
        ("version=0.1.0\n", JarFacts("0.1.0", None)),
        ("version=0.1.0\r\nrevision=abc\r\n", JarFacts("0.1.0", "abc")),
        ("revision=\n", JarFacts()),
        ("versionless\n", JarFacts()),
    ],
)
def test_a_jar_need_not_say_anything(make_jar: MakeJar, pom: str, facts: JarFacts) -> None:
    assert facts_of(make_jar(**RUNS, **{POM: pom}), NAME) == facts


def test_what_its_libraries_say_is_not_what_a_jar_says(make_jar: MakeJar) -> None:
    library = "version=1.4.0\nrevision=" + "b" * 40
    other = f"META-INF/maven/x/{NAME}-tools/pom.properties"

    jar = make_jar(**RUNS, **{POM_OF_A_LIBRARY: library, other: library})
    assert facts_of(jar, NAME) == JarFacts()

    jar = make_jar(**RUNS, **{POM_OF_A_LIBRARY: library, POM: "version=0.1.0"})
    assert facts_of(jar, NAME) == JarFacts("0.1.0", None)


def test_the_case_of_an_attributes_name_does_not_matter(make_jar: MakeJar) -> None:
    jar = make_jar(**{MANIFEST: "manifest-version: 1.0\r\nMAIN-CLASS: clojars.main\r\n\r\n"})

    assert facts_of(jar, NAME) == JarFacts()


def test_a_zipapp_is_a_program_too(make_jar: MakeJar) -> None:
    assert facts_of(make_jar(**{"__main__.py": "print()"}), NAME) == JarFacts()


@pytest.mark.parametrize(
    "entries",
    [
        {},
        {"a.txt": "a"},
        {MANIFEST: "Manifest-Version: 1.0\nCreated-By: Leiningen\n"},
        {MANIFEST: "X-Main-Class: clojars.main\n"},
        {"lib/__main__.py": ""},
        {"META-INF/manifest.txt": "Main-Class: clojars.main\n"},
        {MANIFEST.lower(): "Main-Class: clojars.main\n"},  # java does not find it
        {MANIFEST: "Manifest-Version: 1.0\n\nName: clojars/\nMain-Class: clojars.main\n"},
    ],
)
def test_a_jar_that_nothing_can_run_is_refused(make_jar: MakeJar, entries: dict[str, str]) -> None:
    with pytest.raises(DeployError, match="neither a Main-Class"):
        facts_of(make_jar(**entries), NAME)


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_jar_is_refused(make_jar: MakeJar, part: float) -> None:
    jar = make_jar(**RUNS, **{f"entry-{number}": str(number) * 99 for number in range(50)})
    content = jar.read_bytes()
    jar.write_bytes(content[: int(len(content) * part)])

    with pytest.raises(DeployError, match="is not a valid jar"):
        facts_of(jar, NAME)


@pytest.mark.parametrize(
    "compression",
    [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA],
)
@pytest.mark.parametrize("offset", [10, 30, 90])
def test_a_jar_with_a_wrong_checksum_is_refused(
    make_jar: MakeJar, compression: int, offset: int
) -> None:
    jar = make_jar(compression, data=os.urandom(1000).hex(), **RUNS)
    content = bytearray(jar.read_bytes())
    content[len(b"PK....") + 28 + offset] ^= 0xFF  # behind the first entry's header and name
    jar.write_bytes(content)

    with pytest.raises(DeployError):
        facts_of(jar, NAME)


def test_a_jar_whose_names_are_damaged_is_refused(make_jar: MakeJar) -> None:
    jar = make_jar(**RUNS, café="x")
    jar.write_bytes(jar.read_bytes().replace("é".encode(), b"\xff\xfe"))

    with pytest.raises(DeployError):
        facts_of(jar, NAME)


def test_what_is_no_jar_at_all_is_refused(tmp_path: Path, make_jar: MakeJar) -> None:
    text = tmp_path / "text.jar"
    text.write_text("<html>404 Not Found</html>")
    link = tmp_path / "link.jar"
    link.symlink_to(make_jar(**RUNS))

    for path in (text, link, tmp_path, tmp_path / "gone.jar"):
        with pytest.raises(DeployError, match=str(path)):
            facts_of(path, NAME)


def test_what_a_release_says_is_known_without_reading_all_of_it(make_jar: MakeJar) -> None:
    pom = f"version=0.1.0\nrevision={'a' * 40}\n"
    jar = make_jar(zipfile.ZIP_STORED, **RUNS, **{POM: pom}, data="0123456789")
    jar.write_bytes(jar.read_bytes().replace(b"0123456789", b"damaged..!"))

    assert facts_of(jar, NAME, sound=False) == JarFacts("0.1.0", "a" * 40)
    with pytest.raises(DeployError, match="damaged"):
        facts_of(jar, NAME)
