"""What became of the application, commit by commit: good releases, and three that are not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

WEB, INSTANCE, VERSION = "clojars/web.py", "clojars/instance.py", "clojars/version.txt"


@dataclass(frozen=True)
class Edit:
    """A change of a file. `old` occurs in it exactly once."""

    path: str
    old: str
    new: str

    @property
    def undone(self) -> Edit:
        """The change back."""
        return Edit(self.path, self.new, self.old)


@dataclass(frozen=True)
class Commit:
    """One commit: files of the template that it adds, and changes."""

    message: str
    adds: tuple[str, ...] = ()
    edits: tuple[Edit, ...] = ()
    tag: str | None = None  # and the version it says that it is


PARAGRAPH = '            "<p>A community repository for open source Clojure libraries.</p>\\n"\n'
COUNTED = '            f"<p>{sum(self.uploads.values())} uploads since the start.</p>\\n"\n'
PROCESS = '            f"<p>Served by process {os.getpid()}.</p>\\n"\n'
LAST_TEST = "    def test_what_is_not_there_is_not_found(self) -> None:\n"
COUNTED_TEST = """\
    def test_the_front_page_counts_the_uploads(self) -> None:
        self.ask("PUT", "/upload/ring", b"jar")
        self.assertIn("<p>1 uploads since the start.</p>", self.ask("GET", "/")[1])

"""
SERVES = '    say(f"clojars-web {version} serves")\n'

HEADING = Edit(WEB, 'f"<h1>Clojars {self.version}</h1>\\n"', '"<h1>Clojars</h1>\\n"')
# No test imports this module: the build finds the bracket that is not closed.
PORTS = Edit(INSTANCE, SERVES, SERVES + '    say(f"on ports {[each.port for each in servers]}"\n')
# Nothing but a start finds that the setting is not there.
MAIL = Edit(INSTANCE, SERVES, "    say(f\"mails go to {os.environ['MAIL_URL']}\")\n" + SERVES)

HISTORY = (
    Commit(
        "Serve a front page and take uploads",
        adds=(
            ".gitignore", "README.md", "clojars/__init__.py", "clojars/server.py", WEB,
            "tests/__init__.py", "tests/test_web.py",
        ),
    ),
    Commit(
        "Take uploads on the nailgun port, too",
        adds=("clojars/nailgun.py", "tests/test_nailgun.py"),
    ),
    Commit(
        "Release 0.1.0, built into one file",
        adds=("__main__.py", "build.py", INSTANCE, VERSION),
        tag="0.1.0",
    ),
    Commit(
        "Count the uploads on the front page",
        edits=(
            Edit(WEB, PARAGRAPH, PARAGRAPH + COUNTED),
            Edit("tests/test_web.py", LAST_TEST, COUNTED_TEST + LAST_TEST),
        ),
    ),
    Commit("Release 0.2.0", tag="0.2.0"),
    Commit(
        "Shorten the heading of the front page",
        edits=(HEADING,),
        tag="0.2.1-failing-tests",
    ),
    Commit(
        "Put the heading back; log the ports at the start",
        edits=(HEADING.undone, PORTS),
        tag="0.2.2-does-not-build",
    ),
    Commit(
        "Do not log the ports; send mails about uploads",
        edits=(PORTS.undone, MAIL),
        tag="0.2.3-does-not-start",
    ),
    Commit(
        "Send no mails before there is a server for them",
        edits=(MAIL.undone,),
    ),
    Commit(
        "Say on the front page which process serves it",
        edits=(Edit(WEB, COUNTED, COUNTED + PROCESS),),
    ),
    Commit("Release 0.3.0", tag="0.3.0"),
)  # fmt: skip


def changes(template: Mapping[str, str]) -> Iterator[tuple[Commit, dict[str, str]]]:
    """Every commit with the files that it adds or changes, whole, by their paths."""
    files: dict[str, str] = {}
    for commit in HISTORY:
        changed = {path: template[path] for path in commit.adds}
        for edit in commit.edits:
            text = changed.get(edit.path) or files[edit.path]
            if text.count(edit.old) != 1:
                raise ValueError(f"{edit.path} does not have this exactly once: {edit.old}")
            changed[edit.path] = text.replace(edit.old, edit.new)
        if commit.tag is not None:
            changed[VERSION] = f"{commit.tag}\n"
        files |= changed
        yield commit, changed
