"""Which words from outside may be a version, and which are meant as the TAG of deploy."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy_clojars.cli import group
from deploy_clojars.config import Config
from deploy_clojars.errors import Status, UsageError
from deploy_clojars.host.releases import Releases
from deploy_clojars.versions import LONGEST, checked, looks_like_a_version, why_no_version


@pytest.mark.parametrize(
    "word",
    [
        "0.1.0",
        "109",
        "v1.2",
        "0.8.1~1",  # no tag, but a word that may be one
        "release-2015_03_01",
        "1.0-beta+build.7",
        "latest",
        "statuses",
        ".1",
        "x" * LONGEST,
    ],
)
def test_can_be_a_version(word: str) -> None:
    assert checked(word) == word


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("", "it is empty"),
        ("-x", "it starts with '-'"),
        ("--yes", "it starts with '-'"),
        ("-", "it starts with '-'"),
        ("a/b", "it contains '/'"),
        ("../x", "it contains '/'"),
        ("/0.1.0", "it contains '/'"),
        ("..", "it contains '..'"),
        ("0.1..0.2", "it contains '..'"),
        ("x y", "it contains white space"),
        (" 0.1.0", "it contains white space"),
        ("0.1.0\n", "it contains white space"),
        ("0.1\t0", "it contains white space"),
        ("0.1\r0", "it contains white space"),
        ("0.1\N{NO-BREAK SPACE}0", "it contains white space"),
        ("0.1\N{LINE SEPARATOR}0", "it contains white space"),
        ("0.1\x00", "it contains control characters"),
        ("0.1\x1b[31m", "it contains control characters"),
        ("0.1\x7f", "it contains control characters"),
        ("0.1\N{ZERO WIDTH SPACE}0", "it contains control characters"),
        ("0.1\N{RIGHT-TO-LEFT OVERRIDE}0", "it contains control characters"),
        ("0.1\udcff", "it contains control characters"),  # an argument that is not UTF-8
        ("x" * (LONGEST + 1), f"it is longer than {LONGEST} bytes"),
        ("é" * (LONGEST // 2 + 1), f"it is longer than {LONGEST} bytes"),
        ("1" * 100_000, f"it is longer than {LONGEST} bytes"),
        *[(command, "it is the name of a command") for command in group.commands],
    ],
)
def test_cannot_be_a_version(word: str, why: str) -> None:
    with pytest.raises(UsageError) as refused:
        checked(word)

    assert refused.value.message.endswith(f"is not a version: {why}")
    assert refused.value.status == Status.USAGE


@pytest.mark.parametrize("word", ["0.1\x1b[31m", "0.1\n", "0.1\udcff", "0.1\N{ZERO WIDTH SPACE}"])
def test_a_refusal_can_be_printed_whatever_the_word_was(word: str) -> None:
    with pytest.raises(UsageError) as refused:
        checked(word)

    assert refused.value.message.isprintable()


def test_no_command_of_the_command_line_is_a_version() -> None:
    assert {"deploy", "rollback", "status", "check"} <= set(group.commands)
    assert [name for name in group.commands if why_no_version(name) is None] == []


def test_the_longest_version_still_fits_into_the_name_of_a_release(tmp_path: Path) -> None:
    releases = Releases(tmp_path, Config().name)

    releases.path("é" * (LONGEST // 2)).touch()

    assert releases.versions() == ["é" * (LONGEST // 2)]


@pytest.mark.parametrize("word", ["0.1.0", "109", "v1.2", "0.8.1~1", "rc1", "1"])
def test_a_word_with_a_digit_is_meant_as_a_tag(word: str) -> None:
    assert looks_like_a_version(word)


@pytest.mark.parametrize("word", ["statsu", "rolback", "master", "", "-v", *group.commands])
def test_a_word_without_a_digit_is_a_mistyped_command(word: str) -> None:
    assert not looks_like_a_version(word)
