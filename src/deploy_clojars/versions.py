"""Which words from outside may be a version: they become git tags and names of files."""

from __future__ import annotations

import re

from deploy_clojars.errors import UsageError

# The commands, as click knows them (set by cli.py): `deploy --yes status` must not deploy a tag.
command_names: set[str] = set()

# A file name holds 255 bytes, and the release's has the application's name and a suffix in it.
LONGEST = 150


def why_no_version(word: str) -> str | None:
    """Says what keeps `word` from being a version, or None if nothing does."""
    if not word:
        return "it is empty"
    if word.startswith("-"):
        return "it starts with '-'"
    if "/" in word:
        return "it contains '/'"
    if ".." in word:
        return "it contains '..'"
    if any(character.isspace() for character in word):
        return "it contains white space"
    if not word.isprintable():
        return "it contains control characters"
    if word in command_names:
        return "it is the name of a command"
    if len(word.encode()) > LONGEST:
        return f"it is longer than {LONGEST} bytes"
    return None


def checked(word: str) -> str:
    """Returns `word` if it can be a version.

    Raises UsageError (2) if it cannot.
    """
    why = why_no_version(word)
    if why is not None:
        raise UsageError(f"{word!r} is not a version: {why}")
    return word


def looks_like_a_version(word: str) -> bool:
    """Whether a word that is not a command is meant as the TAG of `deploy`.

    All 385 tags of clojars-web contain a digit, and no command does, so a mistyped command is
    still told from a tag.
    """
    return any(character.isdigit() for character in word)


def numbers(version: str) -> list[tuple[int, str]]:
    """What versions are sorted by: 0.10.0 is newer than 0.9.0."""
    return [(int(part) if part.isdecimal() else -1, part) for part in re.split(r"(\d+)", version)]
