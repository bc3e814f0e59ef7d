"""`make pictures`: what the tool shows, as SVG for the README.

A real host is deployed to (the Clojure application in two JVMs) inside tmux, whose screen is taken
as it is and exported by rich.
"""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import rich._export_format
from clojure_repository import ClojureRepository as Tags
from front import in_front_of
from little_host import PROMPT, LittleHost, wait_for, without_escapes
from playground import clojure_host
from programs import require_program
from rich.console import Console
from rich.text import Text

PICTURES = Path(__file__).parents[1] / "docs/pictures"
FIRST, SECOND = Tags.FIRST, Tags.SECOND
AFTERWARDS = {
    "status": "status",
    "releases": "releases",
    "failure": Tags.THROWS_AT_START,
    "history": "history",
}
WIDTH = 100
PROMPT_SIGN = "$"
HEIGHT = 50  # more than any picture has lines
# The pictures name no font that would have to be fetched.
FORMAT = re.sub(
    r"@font-face \{\{.*?\}\}", "", rich._export_format.CONSOLE_SVG_FORMAT, flags=re.DOTALL
)


class Window:
    """A terminal in tmux in which the tool runs."""

    def __init__(self, server: list[str]) -> None:
        self._server = server

    def __call__(self, *words: str) -> str:
        done = subprocess.run(
            [*self._server, *words], capture_output=True, text=True, encoding="utf-8", check=True
        )
        return done.stdout

    @property
    def screen(self) -> str:
        """What is on the screen, with its colours."""
        return self("capture-pane", "-e", "-p").rstrip("\n")

    def shows(self, text: str) -> bool:
        """Whether the text is on the screen now."""
        return text in without_escapes(self.screen)

    @property
    def is_at_prompt(self) -> bool:
        """Whether the shell waits for a line."""
        return without_escapes(self.screen).rstrip().endswith(f"\n{PROMPT_SIGN}")

    @property
    def without_prompt(self) -> str:
        """The screen but for the shell's last prompt."""
        return self.screen.rpartition("\n")[0]

    def types(self, line: str) -> None:
        """Types a line."""
        self("send-keys", "-l", line)
        self("send-keys", "Enter")

    def begins_with(self, line: str) -> None:
        """Types a line on an empty screen."""
        self.types("clear")
        wait_for(lambda: without_escapes(self.screen).strip() == PROMPT_SIGN, "an empty screen")
        self.types(line)


@contextlib.contextmanager
def window(host: LittleHost, scratch: Path) -> Iterator[Window]:
    """A shell in a terminal of its own server; ended with what runs in it."""
    require_program("tmux")
    environment = {**host.whole_environment, "TERM": "xterm-256color"}
    for name in ("CI", "NO_COLOR", "COLUMNS", "TMUX"):
        environment.pop(name, None)
    environment["PATH"] = f"{Path(host.command[0]).parent}:{environment['PATH']}"
    server = ["tmux", "-S", str(scratch / "tmux"), "-f", "/dev/null"]
    subprocess.run(
        # More than one word: tmux itself runs it, and no shell that would take PS1 away.
        [*server, "new-session", "-d", "-x", str(WIDTH), "-y", str(HEIGHT),
         "env", f"PS1={PROMPT_SIGN} ", "sh"],
        env=environment,
        cwd=host.directory,
        check=True,
    )  # fmt: skip
    terminal = Window(server)
    try:
        terminal("set-option", "default-terminal", "tmux-256color")
        yield terminal
    finally:
        terminal("kill-server")


def picture(screen: str, name: str, directory: Path) -> None:
    """Writes the screen as `name`.svg."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), color_system="256")
    console.print(Text.from_ansi(screen))
    svg = console.export_svg(title="deploy-clojars", code_format=FORMAT, unique_id=name)
    (directory / f"{name}.svg").write_text(svg, encoding="utf-8")
    print(directory / f"{name}.svg", flush=True)


def take(host: LittleHost, scratch: Path, directory: Path) -> None:
    """A deploy from its tests to its end, one that fails, and what is to be seen afterwards."""
    with window(host, scratch) as terminal:

        def shows(text: str) -> None:
            wait_for(lambda: terminal.shows(text), text, seconds=120)

        def ended() -> str:
            wait_for(lambda: terminal.is_at_prompt, "the prompt", seconds=120)
            return terminal.without_prompt

        terminal.begins_with(f"deploy-clojars {SECOND}")
        shows("last time")
        picture(terminal.screen, "building", directory)
        shows(PROMPT.strip())
        terminal.types("yes")
        picture(ended(), "deploy", directory)
        for name, words in AFTERWARDS.items():
            terminal.begins_with(f"deploy-clojars {words}")
            picture(ended(), name, directory)


def main() -> None:
    """Makes the host and takes all pictures."""
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pictures-") as name:
        scratch = Path(name)
        with clojure_host(
            scratch,
            "https://github.com/clojars/clojars-web",
            as_from("https://github.com/clojars/", scratch),
            {
                "instances.primary": 'url = "http://clojars.org:8001/"',
                "instances.backup": 'url = "http://clojars.org:8002/"',
            },
        ) as (host, _):
            # A run before, so that the next one knows how long its steps take.
            host.done(SECOND, "--yes")
            host.done("rollback", FIRST, "--yes", "-m", "uploads by scp are refused")
            (host.releases / f"clojars-web-{SECOND}-standalone.jar").unlink()
            with in_front_of(host, quiet="1"):
                take(host, scratch, PICTURES)


def as_from(url: str, directory: Path) -> dict[str, str]:
    """git's environment in which what is below `directory` comes from below `url`."""
    settings = directory / "gitconfig"
    settings.write_text(f'[url "file://{directory}/"]\n    insteadOf = {url}\n', encoding="utf-8")
    return {"GIT_CONFIG_GLOBAL": str(settings)}


if __name__ == "__main__":
    main()
