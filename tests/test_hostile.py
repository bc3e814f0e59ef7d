"""Whatever others have written: names, configurations, journals, answers. Found by hypothesis."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy_clojars import config, versions
from deploy_clojars.config import BACKUP, PRIMARY
from deploy_clojars.deploy import checkout
from deploy_clojars.errors import DeployError, UsageError
from deploy_clojars.host.health import Observation
from deploy_clojars.host.journal import Event, Journal, now
from deploy_clojars.host.look import Look
from deploy_clojars.host.releases import Current, Releases
from deploy_clojars.host.services import upstart
from deploy_clojars.host.situation import Situation
from deploy_clojars.machine import shell
from deploy_clojars.run import lock
from deploy_clojars.screen.console import log_name

# One example is one instant of a test run: no deadline on a machine that others use, too.
quick = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
slow = settings(quick, max_examples=15)

# What is dangerous in names, more often than chance would have it.
PIECES = st.sampled_from(
    ["-", "--", "/", "..", ".", "~1", "^{commit}", ":", "@{u}", "$(id)", "`id`", ";", "&", "|", "'",
     '"', "\\", "\n", "\0", " ", "\t", "*", "0.1.0", "v2", "refs/heads/", "%s", "{}", "\x1b[2J",
     "\u202e", "é", "\udc80", "--upload-pack=touch x"]
)  # fmt: skip
names = st.lists(PIECES | st.text(max_size=5), max_size=6).map("".join) | st.text(max_size=300)
accepted = names.filter(lambda name: versions.why_no_version(name) is None)


# Versions


@given(names)
@quick
def test_an_arbitrary_word_is_a_version_or_a_printable_refusal(name: str) -> None:
    try:
        versions.checked(name)
    except UsageError as error:
        assert error.status == 2
        assert error.message.isprintable()


@given(accepted)
@quick
def test_a_version_never_leaves_releases_or_deploy(name: str) -> None:
    releases = Releases(Path("/home/clojars/releases"), "clojars-web")
    path = releases.path(name)
    assert os.path.normpath(path.parent / path.name) == str(path)
    assert path.parent == releases.directory
    assert releases.version_in(path.name) == name
    directory = checkout.new_directory(Path("/checkouts"), name)
    assert os.path.normpath(directory) == str(directory)
    assert directory.parent == Path("/checkouts")
    log = log_name("deploy", name, datetime.now())
    assert "/" not in log and log.isprintable() and not log.startswith((".", "-"))


@given(accepted)
@quick
def test_a_version_never_becomes_an_option_or_reaches_a_shell(name: str) -> None:
    assert not name.startswith("-")
    # What is printed to be typed is one word of a shell.
    assert shlex.split(shlex.join(["deploy-clojars", "rollback", name]))[2] == name


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> checkout.Mirror:
    """A mirror with one tag."""
    directory = tmp_path_factory.mktemp("mirror")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "--quiet", "--bare", "."], cwd=directory, check=True)
    tree = subprocess.run(
        [*git, "write-tree"], cwd=directory, check=True, capture_output=True, text=True
    ).stdout.strip()
    commit = subprocess.run(
        [*git, "commit-tree", "-m", "x", tree], cwd=directory, check=True, capture_output=True,
        text=True,
    ).stdout.strip()  # fmt: skip
    for reference in ("refs/tags/0.1.0", "refs/heads/main"):
        subprocess.run([*git, "update-ref", reference, commit], cwd=directory, check=True)
    return checkout.Mirror(directory, "https://example.org/x.git", "run")


@given(accepted)
@slow
def test_an_arbitrary_version_is_looked_up_as_a_tag_and_nothing_else(
    mirror: checkout.Mirror, name: str
) -> None:
    before = sorted(str(path) for path in mirror.directory.rglob("*"))
    with contextlib.suppress(DeployError):
        mirror.commit_of(name)
        assert name == "0.1.0"
    assert sorted(str(path) for path in mirror.directory.rglob("*")) == before


@given(accepted.filter(lambda name: "\udc80" not in name))
@slow
def test_words_reach_a_program_to_the_letter_and_no_shell(name: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        answer = shell.capture(["printf", "%s.", name], timeout=60)
        assert answer.out == f"{name}."
        log = Path(directory) / "log"
        with log.open("ab") as stream, shell.running(
            ["printf", "%s.", name], log=stream, cwd=Path(directory), env=dict(os.environ),
            timeout=60,
        ) as command:  # fmt: skip
            command.wait()
        assert log.read_bytes() == f"{name}.".encode()


# The configuration

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    scalars,
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3)
    ),
    max_leaves=8,
)


def keys_of(table: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """The path of every key."""
    for key, value in table.items():
        yield (key,)
        if isinstance(value, dict):
            yield from ((key, *more) for more in keys_of(value))


KEYS = sorted(keys_of(msgspec.to_builtins(config.Config())))


@given(st.lists(st.tuples(st.sampled_from(KEYS), values), max_size=4))
@quick
def test_arbitrary_values_give_a_configuration_or_one_good_line(
    changes: list[tuple[tuple[str, ...], Any]],
) -> None:
    data: dict[str, Any] = {}
    for path, value in changes:
        table = data
        for key in path[:-1]:
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                return
        table[path[-1]] = value
    try:
        made = config.parse(data, "FILE")
    except UsageError as error:
        assert error.message.startswith("FILE: ")
        assert "\n" not in error.message
    else:
        assert isinstance(made, config.Config)
        assert not made.repository.startswith("-")
        for instance in (made.instances.primary, made.instances.backup):
            assert "/" not in instance.job and not instance.job.startswith("-")
        assert "/" not in made.name


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@quick
def test_an_arbitrary_file_gives_a_configuration_or_one_good_line(content: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        try:
            config.load(Path(file.name))
        except UsageError as error:
            assert error.message.startswith(file.name)
        else:
            assert isinstance(tomllib.loads(content.decode()), dict)


# The journal and the lock

events: st.SearchStrategy[dict[str, Any]] = st.builds(
    dict,
    event=st.sampled_from(
        ["adopted", "begin", "step", "done", "install", "installed", "flip", "restart", "no return",
         "promoted", "rolled back", "end", "unknown"]
    ),
    run=st.sampled_from(["a", "b", ""]),
    version=st.sampled_from(["0.1.0", "0.2.0", None]) | values,
    command=st.sampled_from(["deploy", "rollback", "restart"]) | values,
    left=st.sampled_from([{}, {"current": "0.1.0"}, None]) | values,
    status=st.sampled_from([0, 6, 8, 9]) | values,
    previously=st.sampled_from(["0.1.0", "0.2.0", None]),
)  # fmt: skip
lines = (
    events.map(lambda event: json.dumps(event).encode())
    | st.binary(max_size=40)
    | values.map(lambda value: json.dumps(value).encode())
)


@given(st.lists(lines, max_size=12), st.binary(max_size=30))
@quick
def test_an_arbitrary_journal_is_read_and_goes_on(found: list[bytes], cut_off: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        journal = Journal(Path(directory) / "journal.jsonl")
        journal.file.write_bytes(b"\n".join([*found, cut_off]))
        history = journal.history()
        primary, backup = (Observation(role, role, "stopped", "") for role in (PRIMARY, BACKUP))
        look = Look(Current("0.1.0"), primary, backup, history, history.approved)
        situation = Situation(look, locked=False, way_back=history.approved)
        words = situation.next_words
        assert words is None or words[0] in ("deploy", "rollback")
        journal.append(Event(event="promoted", at=now(), run="c", version="0.9.0"))
        assert journal.history().approved == "0.9.0"


@given(st.binary(max_size=100) | values.map(lambda value: json.dumps(value).encode()))
@quick
def test_an_arbitrary_lock_file_hides_its_holder_at_most(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "lock"
        file.write_bytes(content)
        assert lock.holder_of(file) is None
        with lock.held(file, lock.Holder(pid=1)):
            file.write_bytes(content)
            holder = lock.holder_of(file)
            assert holder is not None
            assert isinstance(lock.locked_by(holder).message, str)


# The mirror and the jobs


@given(
    st.sampled_from(["HEAD", "config", "packed-refs", "refs/tags/0.1.0"]), st.binary(max_size=80)
)
@slow
def test_an_arbitrarily_damaged_mirror_is_an_error_and_no_traceback(
    file: str, content: bytes
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "mirror.git"
        subprocess.run(["git", "init", "--quiet", "--bare", str(directory)], check=True)
        (directory / "refs/tags").mkdir(exist_ok=True)
        (directory / file).write_bytes(content)
        damaged = checkout.Mirror(directory, (Path(scratch) / "nowhere").as_uri(), "run")
        with (Path(scratch) / "log").open("ab") as log, pytest.raises(DeployError):
            damaged.fetch(log, 20)
        with contextlib.suppress(DeployError):
            damaged.commit_of("0.1.0")


@given(
    st.text(max_size=200)
    | st.lists(
        st.sampled_from(
            ["clojars ", "start/running", "stop/waiting", ", process ", "12", "-1", "\n", "\t",
             "(x)", "9" * 30, "restart", " "]
        ),
        max_size=8,
    ).map("".join)
)  # fmt: skip
@quick
def test_an_arbitrary_answer_of_a_job_is_a_state_or_unknown(text: str) -> None:
    job = upstart.parse_status(text, "clojars")
    assert job.state in ("running", "starting", "stopping", "stopped", "unknown")
    assert (job.pid is not None) is (job.state == "running")
