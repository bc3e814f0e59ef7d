"""Who may read and write what, and what a build may lead the tool to."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest
from clojure_repository import ClojureRepository as Tags
from conftest import NewHost
from little_host import LittleHost

FIRST, SECOND = Tags.FIRST, Tags.SECOND

SECRET = "correct-horse-battery-staple"


def mode(path: Path) -> int:
    """The permissions alone."""
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", ["000", "022", "077"])
def test_whatever_the_umask_everything_has_the_mode_that_it_needs(
    light_host: LittleHost, umask: str
) -> None:
    host = light_host
    result = subprocess.run(
        ["sh", "-c", f'umask {umask}; exec "$0" "$@"', *host.command, SECOND, "--yes"],
        env=host.whole_environment, cwd=host.directory, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert mode(host.releases / f"clojars-web-{SECOND}-standalone.jar") == 0o644
    assert mode(host.deploy) == 0o755
    for name in ("lock", "journal.jsonl"):
        assert mode(host.deploy / name) == 0o644
    [log] = (host.deploy / "logs").iterdir()
    assert mode(log) == 0o640
    for path in host.deploy.rglob("*"):
        if not path.is_symlink():
            assert not mode(path) & (stat.S_IWGRP | stat.S_IWOTH), path


def test_nothing_secret_from_the_environment_reaches_a_log(new_light_host: NewHost) -> None:
    host = new_light_host(build='test = "env; set; false"')
    host.environment.update(
        DATABASE_URL=f"postgres://clojars:{SECRET}@db/clojars", MAIL_URL=SECRET, KEY_FILE=SECRET,
        CLASSPATH=SECRET, AWS_SECRET_ACCESS_KEY=SECRET,
    )  # fmt: skip
    result = host.run(FIRST, "--yes", "-v")
    assert result.returncode == 5
    assert SECRET not in result.stderr + result.stdout
    for path in host.deploy.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A directory of somebody else's, with files and directories in it."""
    directory = tmp_path / "precious"
    for name in "abcdef":
        (directory / name).mkdir(parents=True)
        (directory / name / "file").write_text(name, encoding="utf-8")
    directory.chmod(0o700)
    return directory


def whole(directory: Path) -> dict[str, bytes | int]:
    """All that is in a directory, and the modes."""
    found: dict[str, bytes | int] = {".": mode(directory)}
    for path in directory.rglob("*"):
        found[str(path)] = path.read_bytes() if path.is_file() else mode(path)
    return found


DEPLOY, ROLLBACK = (SECOND, "--yes"), ("rollback", SECOND, "--yes")


@pytest.mark.parametrize(
    ("planted", "words"),
    [
        *((each, DEPLOY) for each in ("lock", "journal.jsonl", "logs", "release", "unfinished")),
        *((each, DEPLOY) for each in ("checkouts", "mirror.git")),
        *((each, ROLLBACK) for each in ("lock", "journal.jsonl", "logs", "release")),
    ],
)
def test_a_link_that_a_build_has_planted_is_not_followed(
    light_host: LittleHost, precious: Path, planted: str, words: tuple[str, ...]
) -> None:
    host = light_host
    host.have(SECOND)
    host.deploy.mkdir()
    places = {
        "release": host.releases / f"clojars-web-{SECOND}-standalone.jar",
        "unfinished": host.releases / ".deploy-clojars-planted.jar",
    }
    place = places.get(planted, host.deploy / planted)
    place.unlink(missing_ok=True)
    is_file = planted not in ("logs", "checkouts", "mirror.git")
    place.symlink_to(precious / "a/file" if is_file else precious)
    before = whole(precious)
    result = host.run(*words)
    assert "Traceback" not in result.stderr
    assert result.returncode in (0, 1, 4), result.stderr
    assert whole(precious) == before
    version = SECOND if result.returncode == 0 else FIRST
    assert host.versions == (version, version)


def test_a_release_that_the_build_has_put_there_itself_is_not_overwritten(
    new_light_host: NewHost, precious: Path
) -> None:
    host = new_light_host()
    path = host.releases / f"clojars-web-{SECOND}-standalone.jar"
    plant = f"ln -s {precious}/a/file {path}"
    host.write_config(build=host.options["build"].replace('test = "true"', f'test = "{plant}"'))
    host.serving(FIRST)
    result = host.run(SECOND, "--yes")
    assert result.returncode == 1
    assert f"{path} is there already" in result.stderr
    assert (precious / "a/file").read_text() == "a"
    assert host.versions == (FIRST, FIRST)


def test_a_build_that_leads_the_jar_out_of_the_checkout_is_refused(
    new_light_host: NewHost, precious: Path
) -> None:
    host = new_light_host()
    host.write_config(
        build='test = "true"\n'
        f'uberjar = "mkdir target; ln -s {precious}/a/file target/x-standalone.jar"'
    )
    result = host.run(FIRST, "--yes")
    assert result.returncode == 5
    assert "leads outside the checkout" in result.stderr


@pytest.mark.parametrize("words", [("status",), (SECOND, "--yes"), ("rollback", "--yes")])
def test_a_configuration_that_others_can_write_is_refused(
    light_host: LittleHost, words: tuple[str, ...]
) -> None:
    os.chmod(light_host.config, 0o664)
    result = light_host.run(*words)
    assert result.returncode == 2
    assert "others than its owner can write it (mode 0664)" in result.stderr
    assert f"chmod go-w {light_host.config}" in result.stderr
