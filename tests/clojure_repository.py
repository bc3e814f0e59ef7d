"""A git repository of the Clojure application in `clojure_app`, with good tags and broken ones."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

TEMPLATE = Path(__file__).with_name("clojure_app")
TEMPLATE_VERSION = "0.1.0"


@dataclass(frozen=True)
class ClojureRepository:
    """The repository, with a name for each of its tags."""

    directory: Path

    FIRST: ClassVar[str] = "0.1.0"
    SECOND: ClassVar[str] = "0.2.0"
    THIRD: ClassVar[str] = "0.2.1"
    FAILING_TESTS: ClassVar[str] = "0.3.0-failing-tests"
    COMPILE_ERROR: ClassVar[str] = "0.3.1-compile-error"
    THROWS_AT_START: ClassVar[str] = "0.3.2-throws-at-start"
    DIES: ClassVar[str] = "0.3.3-dies"
    CANNOT_BIND: ClassVar[str] = "0.3.4-cannot-bind"
    OTHER_VERSION: ClassVar[str] = "0.3.5-other-version"

    BRANCH: ClassVar[str] = "feature-1"

    @property
    def url(self) -> str:
        """A file:// URL: git copies through its transport as from a server, without hard links."""
        return self.directory.as_uri()

    def commit(self, tag: str) -> str:
        """The full hash of the commit that the tag names, whether annotated or not."""
        return self.git("rev-parse", "--verify", f"refs/tags/{tag}^{{commit}}").strip()

    def checkout(self, tag: str, directory: Path) -> Path:
        """Clone the tag into a new directory and return it; with a `.git`, as a deploy has it."""
        directory = directory.absolute()
        quiet = ["-c", "advice.detachedHead=false"]
        self.git(*quiet, "clone", "--quiet", "--branch", tag, self.url, str(directory))
        return directory

    def git(self, *arguments: str) -> str:
        """Run git in the repository, as an author that is always the same, and return its output."""
        return _git(self.directory, *arguments)


@dataclass(frozen=True)
class _Edit:
    """A change that breaks the application. `old` occurs exactly once in the template's file."""

    path: str
    old: str
    new: str


@dataclass(frozen=True)
class _Release:
    tag: str
    message: str
    annotated: bool
    edit: _Edit | None = None
    project_version: str | None = None  # in project.clj; None: the tag


_MAIN = "src/clojars/main.clj"
_SERVE = "    (.join (start-web version))))\n"

_RELEASES = (
    _Release(
        tag=ClojureRepository.FIRST,
        message="Serve a front page and take uploads",
        annotated=False,
    ),
    _Release(
        tag=ClojureRepository.SECOND,
        message="Release 0.2.0",
        annotated=True,
    ),
    _Release(
        tag=ClojureRepository.THIRD,
        message="Release 0.2.1",
        annotated=False,
    ),
    _Release(
        tag=ClojureRepository.FAILING_TESTS,
        message="Shorten the heading of the front page",
        annotated=True,
        edit=_Edit("src/clojars/web.clj", '[:h1 "Clojars " version]', '[:h1 "Clojars"]'),
    ),
    _Release(
        tag=ClojureRepository.COMPILE_ERROR,
        message="Mend the heading; rename what starts the web server",
        annotated=False,
        # No test loads this namespace: only the build finds the misspelt name.
        edit=_Edit(_MAIN, _SERVE, _SERVE.replace("start-web", "start-wbe")),
    ),
    _Release(
        tag=ClojureRepository.THROWS_AT_START,
        message="Read the settings from a resource",
        annotated=True,
        edit=_Edit(
            _MAIN,
            "(defn -main []\n",
            "(defn -main []\n"
            '  (when-not (io/resource "clojars/settings.edn")\n'
            '    (throw (ex-info "No settings.edn on the class path" {})))\n',
        ),
    ),
    _Release(
        tag=ClojureRepository.DIES,
        message="Do without settings; warm the search index after the start",
        annotated=False,
        edit=_Edit(
            _MAIN,
            _SERVE,
            "    (start-web version)\n"
            "    (Thread/sleep 3000)\n"
            '    (println "No memory left for the search index")\n'
            "    (System/exit 1)))\n",
        ),
    ),
    _Release(
        tag=ClojureRepository.CANNOT_BIND,
        message="Take back the search index; take uploads even without the web server",
        annotated=True,
        edit=_Edit(
            _MAIN,
            _SERVE,
            "    (try\n"
            "      (.join (start-web version))\n"
            "      (catch java.io.IOException e\n"
            '        (println "No web server:" (ex-message e))\n'
            "        @(promise)))))\n",
        ),
    ),
    _Release(
        tag=ClojureRepository.OTHER_VERSION,
        message="Fail again when the web server cannot start",
        annotated=False,
        project_version="0.3.4",
    ),
)

_FEATURE = _Release(
    tag="0.3.0-SNAPSHOT",  # its version; nothing is tagged with it
    message="Try another heading",
    annotated=False,
    edit=_Edit("src/clojars/web.clj", '[:h1 "Clojars " version]', '[:h1 "The Clojars " version]'),
)


def commits_of_tags(directory: Path) -> dict[str, str]:
    """The full hash of every tag's commit in a repository, asked of git at once."""
    # The second hash is what an annotated tag points at.
    lines = _git(
        directory, "for-each-ref", "--format=%(refname:short) %(objectname) %(*objectname)",
        "refs/tags",
    ).splitlines()  # fmt: skip
    return {tag: hashes[-1] for tag, *hashes in map(str.split, lines)}


def make_repository(directory: Path) -> ClojureRepository:
    """Write the repository into `directory`, which may not exist yet; main is checked out.

    The same template makes the same commit hashes everywhere, so a hash can name a cached build.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _git(directory, "init", "--quiet", "--template=", "--initial-branch=main")
    for day, release in enumerate(_RELEASES, start=1):
        _commit(directory, release, day)
        tag = ["--annotate", "--message", release.message] if release.annotated else []
        _git(directory, "tag", *tag, release.tag, day=day)

    _git(directory, "checkout", "--quiet", "-b", ClojureRepository.BRANCH, ClojureRepository.THIRD)
    _commit(directory, _FEATURE, len(_RELEASES) + 1)
    _git(directory, "checkout", "--quiet", "main")
    return ClojureRepository(directory)


def _commit(directory: Path, release: _Release, day: int) -> None:
    for path, text in _files(release).items():
        file = directory / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    # --force: whoever runs the tests may have a list of files that git ignores everywhere.
    _git(directory, "add", "--all", "--force")
    _git(directory, "commit", "--quiet", "--message", release.message, day=day)


def _files(release: _Release) -> dict[str, str]:
    """The template's files by their paths, as they are in the release."""
    files = {path: (TEMPLATE / path).read_text(encoding="utf-8") for path in _template_paths()}
    edits = [
        _Edit(
            "project.clj",
            f'(defproject clojars-web "{TEMPLATE_VERSION}"',
            f'(defproject clojars-web "{release.project_version or release.tag}"',
        ),
        _Edit("resources/clojars/version.txt", TEMPLATE_VERSION, release.tag),
    ]
    if release.edit:
        edits.append(release.edit)
    for edit in edits:
        if files[edit.path].count(edit.old) != 1:
            raise ValueError(f"{edit.path} does not have this exactly once: {edit.old}")
        files[edit.path] = files[edit.path].replace(edit.old, edit.new)
    return files


def _template_paths() -> list[str]:
    """What belongs to the template, without what a `lein` that somebody ran in it has left."""
    paths = [TEMPLATE / ".gitignore", TEMPLATE / "project.clj"]
    for folder in ("src", "test", "resources"):
        paths += (path for path in (TEMPLATE / folder).rglob("*") if path.is_file())
    return sorted(str(path.relative_to(TEMPLATE)) for path in paths)


def _git(directory: Path, *arguments: str, day: int = 1) -> str:
    """Run git in the directory, on that day of March 2015, whatever the user's configuration."""
    date = f"2015-03-{day:02}T12:00:00+0000"
    # Git sets GIT_DIR and others in its hooks, from which these tests may be run.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("GIT_")
    } | {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "Ada Clojure",
        "GIT_AUTHOR_EMAIL": "ada@example.org",
        "GIT_AUTHOR_DATE": date,
        "GIT_COMMITTER_NAME": "Ada Clojure",
        "GIT_COMMITTER_EMAIL": "ada@example.org",
        "GIT_COMMITTER_DATE": date,
    }
    return subprocess.run(
        ["git", *arguments],
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout
