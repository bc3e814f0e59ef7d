"""The command line: what is taken for what, and what bad input gets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from clojure_repository import ClojureRepository as Tags
from little_host import LittleHost

from deploy_clojars import __version__

FIRST, SECOND = Tags.FIRST, Tags.SECOND


def run(*words: str | bytes, **variables: str) -> subprocess.CompletedProcess[str]:
    """The tool with no terminal and a configuration that must not be read."""
    return subprocess.run(
        [Path(sys.executable).with_name("deploy-clojars"), *words],
        env={**os.environ, "DEPLOY_CLOJARS_CONFIG": "/nowhere.toml", "LC_ALL": "C.UTF-8"}
        | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        text=True,
    )


def test_a_tag_without_a_digit_needs_the_command_and_is_told_so() -> None:
    result = run("nightly")
    assert result.returncode == 2
    assert "No such command 'nightly'" in result.stderr
    assert "deploy-clojars deploy nightly" in result.stderr


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_help_that_cannot_be_written_is_no_defect(word: str) -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "deploy_clojars", word],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr == "error: standard output cannot be written: No space left on device\n"


@pytest.mark.parametrize("words", ["--help", "--version", "deploy --help"])
def test_a_reader_that_has_seen_enough_of_the_help_is_no_error(words: str) -> None:
    pipeline = f"{sys.executable} -m deploy_clojars {words} | true; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(
        ["bash", "-c", pipeline], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_a_directory_that_is_gone_has_no_configuration(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f"cd {gone} && rmdir {gone} && exec {sys.executable} -m deploy_clojars -c it status"
    result = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: it: the current directory no longer exists\n")


@pytest.mark.parametrize("words", [["--help"], ["deploy", "--help"], ["-h"], ["--version"]])
def test_help_and_version_read_no_configuration(words: list[str]) -> None:
    result = run(*words)
    assert result.returncode == 0
    assert result.stderr == ""
    assert result.stdout.startswith(
        f"deploy-clojars, version {__version__}" if words == ["--version"] else "Usage: "
    )


def test_the_help_says_what_each_command_does_and_cuts_no_line_off() -> None:
    commands = run("--help", COLUMNS="80").stdout.partition("\nCommands:\n")[2].splitlines()
    assert len(commands) >= 11
    assert [line for line in commands if not line.endswith(".") or line.endswith("..")] == []


def test_help_imports_nothing_that_is_slow() -> None:
    script = (
        "import sys\n"
        "from deploy_clojars.cli import group\n"
        "group.main(['--help'], standalone_mode=False)\n"
        "print(*(set(sys.modules) & {'git', 'sh', 'rich', 'msgspec', 'psutil', 'http.client'}),"
        " file=sys.stderr)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=False, text=True
    )
    assert result.stderr.strip() == ""


def test_status_imports_neither_git_nor_sh_nor_rich(light_host: LittleHost) -> None:
    script = (
        "import sys\n"
        "from deploy_clojars.cli import group\n"
        "try:\n    group.main(['status'], standalone_mode=False)\n"
        "except SystemExit:\n    pass\n"
        "print(*(set(sys.modules) & {'git', 'sh', 'rich'}), file=sys.stderr)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        env=light_host.whole_environment,
        capture_output=True,
        check=False,
        text=True,
    )
    assert result.stderr.strip() == ""


def test_a_mistyped_command_is_not_taken_for_a_tag() -> None:
    result = run("statsu")
    assert result.returncode == 2
    assert "Did you mean" in result.stderr
    assert "'status'" in result.stderr


@pytest.mark.parametrize("command", [["deploy"], []])
@pytest.mark.parametrize(
    "word", ["../x1", "a1/b", "x 1", "1\n2", "1\t2", "1\x7f", "0.1..2", "1\u200b", "1" * 400]
)
def test_a_word_that_is_no_version_is_refused_before_anything_is_read(
    command: list[str], word: str
) -> None:
    result = run(*command, word, "--yes")
    assert result.returncode == 2
    assert "is not a version" in result.stderr
    assert "nowhere.toml" not in result.stderr


@pytest.mark.parametrize("word", ["status", "rollback", "sandbox", "--", ""])
def test_a_command_is_never_deployed(word: str) -> None:
    result = run("deploy", "--yes", "--", word)
    assert result.returncode == 2
    assert "is not a version" in result.stderr


def test_a_name_that_starts_with_a_dash_is_refused() -> None:
    assert run("deploy", "-x1", "--yes").returncode == 2
    result = run("deploy", "--yes", "--", "-x1")
    assert result.returncode == 2
    assert "starts with '-'" in result.stderr


def test_bytes_that_are_no_text_are_refused() -> None:
    result = run("deploy", b"1\xff", "--yes")
    assert result.returncode == 2
    assert "is not a version" in result.stderr


@pytest.mark.parametrize("word", ["0.1.0~1", Tags.BRANCH, "HEAD1", "v9:x", "a@{1}", "1^"])
def test_a_version_is_looked_up_as_a_tag_and_nothing_else(
    light_host: LittleHost, word: str
) -> None:
    result = light_host.run(word, "--yes")
    assert result.returncode == 1
    assert f"error: no tag {word} in " in result.stderr
    assert light_host.versions == (FIRST, FIRST)


def test_a_commit_is_no_version(light_host: LittleHost) -> None:
    commit = subprocess.run(
        ["git", "rev-parse", f"refs/tags/{FIRST}^{{commit}}"],
        cwd=light_host.repository_url.removeprefix("file://"),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    result = light_host.run(commit, "--yes")
    assert result.returncode == 1
    assert "error: no tag" in result.stderr


@pytest.mark.parametrize("words", [("deploy", "0.1.0"), ("0.1.0",), ("rollback",)])
def test_without_a_terminal_yes_is_demanded_before_anything_is_read(words: tuple[str, ...]) -> None:
    result = run(*words)
    assert result.returncode == 2
    assert "--yes" in result.stderr
    assert "nowhere.toml" not in result.stderr


def test_a_configuration_that_is_not_there_is_an_error() -> None:
    for words in (("status",), ("0.1.0", "--yes"), ("rollback", "--yes")):
        result = run(*words)
        assert result.returncode == 2
        assert result.stderr.startswith("error: /nowhere.toml: cannot be read")


def test_common_options_work_before_and_after_the_subcommand(light_host: LittleHost) -> None:
    file = str(light_host.config)
    for words in (
        ("-c", file, "status"),
        ("status", "-c", file),
        ("--config", file, "-v", "status", "-q"),
        ("-c", file, "-q", FIRST, "--yes"),
        (FIRST, "--yes", "-q", "-c", file),
    ):
        result = run(*words)
        assert result.returncode == 0, (words, result.stderr)


def test_quiet_shows_nothing_when_all_is_well(light_host: LittleHost) -> None:
    light_host.have(SECOND)
    result = light_host.done("-q", SECOND, "--yes")
    assert result.stderr.count("\n") <= 8  # what was agreed to
    assert "fetch" not in result.stderr


def test_verbose_shows_the_output_of_the_build(light_host: LittleHost) -> None:
    light_host.write_config(build='test = "echo one; echo two >&2; false"')
    result = light_host.run("-v", SECOND, "--yes")
    assert result.returncode == 5
    assert "  | one\n  | two\n" in result.stderr
    assert result.stderr.count("  | two") == 1  # not a second time as the last lines


def test_verbose_shows_what_a_progress_bar_leaves_on_a_terminal(light_host: LittleHost) -> None:
    printed = r"\r10%%\r20%%\r30%%\nnext\r\nlast\r50%%\r100%%"
    light_host.write_config(build=f"test = '''printf '{printed}'; false'''")
    result = light_host.run("-v", SECOND, "--yes")
    assert result.returncode == 5
    assert "  | 30%\n  | next\n" in result.stderr
    assert "  | 100%\n" in result.stderr
    assert "| 20%" not in result.stderr


def test_verbose_keeps_little_of_the_output_in_memory(
    light_host: LittleHost, tmp_path: Path
) -> None:
    program = tmp_path / "noisy.py"
    program.write_text(
        "import sys\n"
        "for number in range(500_000):\n"
        "    sys.stdout.write('\\r' + '.' * 200 + str(number))\n"  # 100 MB without a line feed
    )
    light_host.write_config(build=f"test = \"{sys.executable} '{program}'; false\"")
    # What this process uses itself would count, too, in a child of its own (getrusage(2)).
    measured = (
        "import os, sys; pid = os.fork() or os.execv(sys.argv[1], sys.argv[1:]); "
        "_, status, used = os.wait4(pid, 0); print(used.ru_maxrss); "
        "sys.exit(os.waitstatus_to_exitcode(status))"
    )
    result = subprocess.run(
        [sys.executable, "-IS", "-c", measured, *light_host.command, "-v", SECOND, "--yes"],
        env=light_host.whole_environment, cwd=light_host.directory, capture_output=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 5
    assert b"." * 200 + b"499999\n" in result.stderr
    assert len(result.stderr) < 2_000_000
    assert int(result.stdout) < 60 * 1024  # KiB


def test_an_ascii_locale_can_show_everything(light_host: LittleHost) -> None:
    light_host.environment.update(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    light_host.write_config(build='test = "echo größer; false"')
    result = light_host.run(SECOND, "--yes")
    assert result.returncode == 5
    assert "  | gr\\xf6\\xdfer" in result.stderr


def test_the_mission_s_words_are_the_program_s(light_host: LittleHost) -> None:
    result = light_host.run("deploy", SECOND, "--yes")
    steps = ["fetch", "check out", "test", "build", "install", "flip", "backup", "primary"]
    positions = [result.stderr.index(f"\n  {step:10} ") for step in steps]
    assert positions == sorted(positions)


@pytest.mark.parametrize("command", ["releases", "history"])
def test_a_number_and_all_exclude_each_other(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deploy_clojars", command, "-n", "2", "--all"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "error: -n and --all cannot be used together\n"


@pytest.mark.parametrize(
    ("command", "place", "said"),
    [
        (
            ["setup", "--dry-run"],
            "setup.setup.setup",
            "setup may be half done; it can be run again",
        ),
        (["sandbox", "DIR"], "sandbox.start", "sandbox may be half done; it can be run again"),
        (["-c", "FILE", "sandbox", "DIR"], "sandbox.start", "sandbox may be half done"),
        (
            ["check"],
            "checks.findings",
            "nothing was changed; what runs where: deploy-clojars status",
        ),
        (["deploy", "setup1", "--yes"], "run.run.started", "nothing was changed; what runs where"),
    ],
)
def test_a_defect_outside_a_run_does_not_claim_that_nothing_was_changed_where_it_may_be(
    command: list[str], place: str, said: str
) -> None:
    module, _, function = f"deploy_clojars.{place}".rpartition(".")
    broken = (
        f"import sys, {module}; {module}.{function} = None; from deploy_clojars.cli import main"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{broken}; sys.argv[1:] = {command!r}; main()"],
        env={**os.environ, "DEPLOY_CLOJARS_CONFIG": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 70, done.stderr
    assert "a defect of deploy-clojars: TypeError(" in done.stderr
    assert f"  {said}" in done.stderr
    assert ("nothing was changed" in done.stderr) == ("nothing was changed" in said)


# Runs the program with a SIGINT to itself at the import of a module, or at its very end.
PRESSES_CTRL_C = """
import gc, importlib.metadata, os, signal, sys

# A test before this one may have left it ignored, and that is inherited.
signal.signal(signal.SIGINT, signal.default_int_handler)

def press(*_):
    os.kill(os.getpid(), signal.SIGINT)

class Finder:
    def find_spec(self, name, *_):
        if name == sys.argv[0]:
            press()

[program] = importlib.metadata.entry_points(group="console_scripts", name="deploy-clojars")
sys.argv.pop(0)
if sys.argv[0] == "the end":
    gc.freeze = press
else:
    sys.meta_path.insert(0, Finder())
program.load()()
"""


@pytest.mark.parametrize(
    ("instant", "status"),
    [
        ("click", -signal.SIGINT),
        ("deploy_clojars.versions", -signal.SIGINT),
        ("deploy_clojars.config", 130),
        ("deploy_clojars.host.host", 130),
        ("the end", 11),
    ],
)
def test_ctrl_c_shows_no_traceback_however_early_or_late_it_comes(
    tmp_path: Path, instant: str, status: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRESSES_CTRL_C, instant, "status"],
        env={**os.environ, "DEPLOY_CLOJARS_CONFIG": "", "HOME": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert done.stderr.strip() == ""
