"""The application's git repository, the same to the last bit wherever it is made."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from deploy_clojars.errors import DeployError
from deploy_clojars.sandbox import commits

TEMPLATE = Path(__file__).with_name("application")
AUTHOR = "Ada Clojure <ada@example.org>"
FIRST_DAY = 1425211200  # 1 March 2015, 12:00 UTC, in seconds since 1970
DAY = 86400


def make(directory: Path) -> None:
    """Makes the repository with its work tree, in the place of one that was half made.

    Raises DeployError with what git said.
    """
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir()
    _git(directory, "init", "--quiet", "--template=", "--object-format=sha1")
    _git(directory, "symbolic-ref", "HEAD", "refs/heads/main")
    _git(directory, "fast-import", "--quiet", said=fast_import_stream())
    # Unlike `checkout`, this runs no hook.
    _git(directory, "reset", "--quiet", "--hard")


def fast_import_stream() -> bytes:
    """The whole history as git-fast-import(1) takes it: one process, and no hook ever runs."""
    template = {path: (TEMPLATE / path).read_text(encoding="utf-8") for path in _template_paths()}
    parts: list[bytes] = []
    for day, (commit, files) in enumerate(commits.changes(template)):
        date = f"{FIRST_DAY + day * DAY} +0000"
        parts.append(f"commit refs/heads/main\ncommitter {AUTHOR} {date}\n".encode())
        parts.append(_data(commit.message))
        for path, text in files.items():
            parts.append(f"M 100644 inline {path}\n".encode() + _data(text))
        if commit.tag is not None:
            parts.append(f"tag {commit.tag}\nfrom refs/heads/main\n".encode())
            parts.append(f"tagger {AUTHOR} {date}\n".encode() + _data(commit.message))
    return b"".join(parts)


def _template_paths() -> list[str]:
    """The template's files, without what an interpreter that ran there has left."""
    paths = (path.relative_to(TEMPLATE) for path in TEMPLATE.rglob("*") if path.is_file())
    return sorted(str(path) for path in paths if "__pycache__" not in path.parts)


def _data(text: str) -> bytes:
    content = text.encode()
    return b"data %d\n%b\n" % (len(content), content)


def _git(directory: Path, *words: str, said: bytes = b"") -> None:
    # Neither the user's settings nor a hook's GIT_DIR, whoever calls.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    settings = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C"}
    done = subprocess.run(
        ["git", *words],
        cwd=directory,
        env={**inherited, **settings},
        input=said,
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        raise DeployError(
            f"{directory}: git {words[0]} failed (exit status {done.returncode})",
            detail=done.stderr.decode("utf-8", "replace"),
        )
