"""Completion: what bash, zsh and fish offer at a press of TAB, asked of the real shells."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from little_host import at_a_terminal
from programs import require_program

from deploy_clojars import completion

TOOLS = Path(sys.executable).parent
HOSTILE = ("1;touch${IFS}x", "1`reboot`", "1$HOME", "1'", '1"', "1&reboot", "1|sh", "1>x", "größe1")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a mirror and some releases, and the configuration that names it."""
    require_program("git")
    home = tmp_path_factory.mktemp("completion")
    mirror = home / "deploy" / "mirror.git"
    git = ["git", "-C", str(mirror), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "init", "-q", "--bare", mirror], check=True)
    tree = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
    subprocess.run([*git, "hash-object", "-wt", "tree", "/dev/null"], check=True)
    made = subprocess.run([*git, "commit-tree", tree, "-m", "x"], capture_output=True, check=True)
    commit = made.stdout.decode().strip()
    for tag in ("0.9.0", "0.10.0", "release-1", *HOSTILE):
        subprocess.run([*git, "tag", tag, commit], check=True)
    subprocess.run([*git, "pack-refs", "--all"], check=True)
    subprocess.run([*git, "tag", "-a", "-m", "x", "0.11.0", commit], check=True)
    (home / "releases").mkdir()
    for version in ("0.9.0", "0.10.0", "1;reboot"):
        (home / "releases" / f"clojars-web-{version}-standalone.jar").touch()
    config = home / "deploy-clojars.toml"
    config.write_text(f'home = "{home}"\nrepository = "file:///nowhere"\n', encoding="utf-8")
    config.chmod(0o644)
    return home


def environment(home: Path) -> dict[str, str]:
    """Of a user's shell, which may find no GitPython and no network."""
    return {
        "PATH": f"{TOOLS}:{os.environ['PATH']}",
        "HOME": str(home),
        "XDG_RUNTIME_DIR": str(home),  # or fish leaves a directory in /tmp
        "TERM": "dumb",
        "DEPLOY_CLOJARS_CONFIG": str(home / "deploy-clojars.toml"),
        "LC_ALL": "C.UTF-8",
    }


def in_shell(home: Path, *argv: str) -> str:
    done = subprocess.run(
        argv, env=environment(home), cwd=home, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def offered_by_bash(home: Path, *words: str) -> list[str]:
    """What bash would offer for the last word."""
    script = (
        'eval "$(deploy-clojars completion bash)"\n'
        'COMP_WORDS=(deploy-clojars "$@") COMP_CWORD=$#\n'
        "_deploy_clojars_completion deploy-clojars\n"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    return in_shell(home, "bash", "--norc", "-c", script, "bash", *words).splitlines()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["deploy", ""], ["release-1", "0.11.0", "0.10.0", "0.9.0"]),
        (["deploy", "0.1"], ["0.11.0", "0.10.0"]),
        (["deploy", "1"], []),
        (["0.9"], ["0.9.0"]),
        (["re"], ["releases", "restart", "release-1"]),
        (["rollback", ""], ["0.10.0", "0.9.0"]),
        (["deploy", "0.11.0", "--if-current", ""], ["0.10.0", "0.9.0"]),
        (["install", "0.1"], ["0.11.0", "0.10.0"]),
        (["0.9.0", "--y"], ["--yes"]),
        (["status", "--j"], ["--json"]),
        (["completion", ""], ["bash", "zsh", "fish"]),
        (["deploy", "-c", "/nowhere.toml", ""], []),
    ],
)
def test_what_bash_offers(home: Path, words: list[str], offered: list[str]) -> None:
    assert sorted(offered_by_bash(home, *words)) == sorted([*offered, *([] if offered else [""])])


def test_the_newest_tag_comes_first(home: Path) -> None:
    assert offered_by_bash(home, "deploy", "0.") == ["0.11.0", "0.10.0", "0.9.0"]


def test_without_a_word_the_commands_are_offered_and_no_tag(home: Path) -> None:
    offered = offered_by_bash(home, "")
    assert {"deploy", "rollback", "status"} <= set(offered)
    assert "0.9.0" not in offered


def test_what_fish_offers(home: Path) -> None:
    require_program("fish")
    script = "deploy-clojars completion fish | source; complete -C 'deploy-clojars deploy 0.1'"
    assert in_shell(home, "fish", "-N", "-c", script).splitlines() == ["0.11.0", "0.10.0"]
    # And what a command does, to the end.
    script = "deploy-clojars completion fish | source; complete -C 'deploy-clojars depl'"
    assert "Put the release TAG into production." in in_shell(home, "fish", "-N", "-c", script)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_press_of_tab_completes_the_tag_on_the_line(home: Path, shell: str) -> None:
    require_program(shell)
    options = {"bash": ["--norc", "--noprofile", "-i"], "zsh": ["-f", "-i"]}[shell]
    prepared = "autoload -U compinit; compinit -D -u; " if shell == "zsh" else ""
    program = shutil.which(shell)
    assert program is not None
    with at_a_terminal([program, *options], environment(home), home, 180) as terminal:
        terminal.types(f'{prepared}eval "$(deploy-clojars completion {shell})"; echo rea""dy')
        terminal.sees("ready")
        terminal.writes("deploy-clojars deploy 0.9\t")
        terminal.sees("0.9.0")
        terminal.presses("a")
        terminal.types("echo would ")
        terminal.sees("would deploy-clojars deploy 0.9.0")


def test_only_names_that_need_no_quotes_are_offered(home: Path) -> None:
    """bash puts them into the line as they are, and enter would run what is in them."""
    tags = completion.tags_in(home / "deploy" / "mirror.git")
    assert set(HOSTILE) <= tags
    assert not set(HOSTILE) & {item.value for item in completion._offered(tags, "")}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=12), max_size=8))
def test_whatever_the_tags_are_called_the_shell_gets_plain_words(names: list[str]) -> None:
    for item in completion._offered(names, ""):
        words = subprocess.list2cmdline([item.value])  # quotes what has white space in it
        assert words == item.value
        assert not set(item.value) & set("$`\\;&|<>()'\"*?[]{}~#!:=,\n\t ")


def test_a_mirror_that_is_not_there_or_is_no_mirror_offers_nothing(tmp_path: Path) -> None:
    assert completion.tags_in(tmp_path / "none") == set()
    (tmp_path / "packed-refs").mkdir()
    assert completion.tags_in(tmp_path) == set()


def test_completion_runs_no_program_and_imports_nothing_that_is_slow(home: Path) -> None:
    script = (
        "import sys\n"
        "seen = []\n"
        "sys.addaudithook(lambda event, _: seen.append(event))\n"
        "from deploy_clojars.cli import group\n"
        "try:\n    group.main(prog_name='deploy-clojars')\n"
        "except SystemExit:\n    pass\n"
        "slow = {'git', 'sh', 'rich', 'psutil', 'http.client'} & set(sys.modules)\n"
        "started = {'subprocess.Popen', 'os.fork', 'os.posix_spawn', 'socket.connect'} & set(seen)\n"
        "print(*slow, *started, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={
            **environment(home),
            completion.VARIABLE: "bash_complete",
            "COMP_WORDS": "deploy-clojars\ndeploy\n0.9",
            "COMP_CWORD": "2",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr.strip()) == ("plain,0.9.0\n", "")
