"""The configuration: its defaults, its example file, and every way to get it wrong."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from deploy_clojars import config
from deploy_clojars.config import Config, HealthUrl, Manager, file_named, load, parse
from deploy_clojars.errors import Status, UsageError

EXAMPLE = Path(__file__).parent.parent / "etc" / "deploy-clojars.toml"
NOBODY = 65534


def parsed(toml: str) -> Config:
    return parse(tomllib.loads(toml), "site.toml")


def refusal(toml: str) -> str:
    """The message that refuses a configuration with this text."""
    with pytest.raises(UsageError) as refused:
        parsed(toml)
    assert refused.value.status == Status.USAGE
    return refused.value.message


def keys_of(configuration: Config) -> dict[str, Any]:
    """Every key's value, as TOML would have it, with dotted keys."""
    return flat(msgspec.json.decode(msgspec.json.encode(configuration)))


def flat(table: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Nested tables as one, with dotted keys."""
    result: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            result |= flat(value, f"{path}{key}.")
        else:
            result[f"{path}{key}"] = value
    return result


# The defaults and the example file


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "clojars-web"),
        ("repository", "https://github.com/clojars/clojars-web.git"),
        ("home", "/home/clojars"),
        ("keep_releases", 0),
        ("build.test", "lein test"),
        ("build.uberjar", "lein uberjar"),
        ("build.jar", "target/**/*-standalone.jar"),
        ("build.timeout", 1800),
        ("build.nice", 10),
        ("build.env", []),
        ("build.isolate", "auto"),
        ("build.cache", []),
        ("build.network", True),
        ("services.manager", "auto"),
        ("services.scope", "system"),
        ("services.sudo", True),
        ("services.bin", None),
        ("services.timeout", 90),
        ("instances.primary.job", "clojars"),
        ("instances.primary.url", "http://clojars.org:8001/"),
        ("instances.primary.health", ["http://127.0.0.1:8001/", "tcp://127.0.0.1:7601"]),
        ("instances.backup.job", "clojars-backup"),
        ("instances.backup.url", "http://clojars.org:8002/"),
        ("instances.backup.health", ["http://127.0.0.1:8002/", "tcp://127.0.0.1:7602"]),
        ("instances.backup.only_while_deploying", False),
        ("health.timeout", 120),
        ("health.interval", 0.2),
        ("health.settle", 3),
    ],
)
def test_the_default_is_the_host_of_clojars_org(key: str, value: object) -> None:
    assert keys_of(Config())[key] == value


def test_the_example_file_has_every_key_of_the_code_with_its_default_and_no_other() -> None:
    defaults = keys_of(Config())
    text = EXAMPLE.read_text()
    # TOML has no word for "no default": such a key is there as a comment.
    with_comments = re.sub(r"^# (?=\w+ = )", "", text, flags=re.MULTILINE)

    assert flat(tomllib.loads(text)) == {
        key: value for key, value in defaults.items() if value is not None
    }
    assert set(flat(tomllib.loads(with_comments))) == set(defaults)


def test_the_example_file_is_the_default_configuration() -> None:
    assert parse(tomllib.loads(EXAMPLE.read_text()), str(EXAMPLE)) == Config()


def test_an_empty_file_is_the_default_configuration() -> None:
    assert parsed("") == Config()


def test_a_partial_table_keeps_the_other_defaults() -> None:
    changed = parsed('[instances.backup]\njob = "spare"\n')

    assert changed.instances.backup.job == "spare"
    assert changed.instances.backup.health == Config().instances.backup.health
    assert changed.instances.primary == Config().instances.primary
    assert changed.build == Config().build


@pytest.mark.parametrize(
    ("toml", "key", "value"),
    [
        ("[health]\ntimeout = 0.5", "health.timeout", 0.5),
        ("[health]\nsettle = 0", "health.settle", 0),
        ("[build]\nnice = 0", "build.nice", 0),
        ("[build]\nnice = 19", "build.nice", 19),
        ('[build]\nenv = ["M2_HOME", "_x"]', "build.env", ["M2_HOME", "_x"]),
        ('[build]\njar = "out/..app.jar"', "build.jar", "out/..app.jar"),
        ('repository = "git@github.com:x/y.git"', "repository", "git@github.com:x/y.git"),
        ('repository = "/srv/a repository.git"', "repository", "/srv/a repository.git"),
        ('[instances.backup]\nhealth = ["https://[::1]/ok?a=b"]', "instances.backup.health",
         ["https://[::1]/ok?a=b"]),
    ],
)  # fmt: skip
def test_a_good_value_is_taken(toml: str, key: str, value: object) -> None:
    assert keys_of(parsed(toml))[key] == value


# Unknown keys


@pytest.mark.parametrize(
    ("toml", "key", "nearest"),
    [
        ('nmae = "x"', "nmae", "name"),
        ('Home = "/x"', "Home", "home"),
        ('[build]\ntests = "make"', "build.tests", "build.test"),
        ("[helth]\ntimeout = 3", "helth", "health"),
        ("[health]\ntime_out = 3", "health.time_out", "health.timeout"),
        ("[instances.bakcup]\n", "instances.bakcup", "instances.backup"),
        ('[instances.backup]\njobs = "x"', "instances.backup.jobs", "instances.backup.job"),
        ("[instances.primary]\nhealth_url = []", "instances.primary.health_url",
         "instances.primary.health"),
    ],
)  # fmt: skip
def test_an_unknown_key_is_refused_with_the_nearest_known_one(
    toml: str, key: str, nearest: str
) -> None:
    assert refusal(toml) == f"site.toml: {key}: unknown key; did you mean {nearest}?"


@pytest.mark.parametrize(
    ("toml", "key", "known"),
    [
        ("zzz = 1", "zzz", ["name", "home", "build", "instances"]),
        ("[health]\nzzz = 1", "health.zzz", ["timeout", "interval", "settle"]),
        ("[instances.third]\n", "instances.third", ["primary", "backup"]),
    ],
)
def test_an_unknown_key_that_is_near_no_other_is_refused_with_all_known_ones(
    toml: str, key: str, known: list[str]
) -> None:
    message = refusal(toml)

    assert message.startswith(f"site.toml: {key}: unknown key; known: ")
    assert all(each in message for each in known)


def test_only_the_backup_may_run_only_while_deploying() -> None:
    toml = "only_while_deploying = true"

    assert parsed(f"[instances.backup]\n{toml}").instances.backup.only_while_deploying
    assert refusal(f"[instances.primary]\n{toml}") == (
        "site.toml: instances.primary.only_while_deploying: unknown key; "
        "only the backup can have it: users are served by the primary"
    )


# Wrong types and impossible values


@pytest.mark.parametrize(
    ("toml", "key", "expected"),
    [
        ("name = 3", "name", "str"),
        ("name = 2015-03-01", "name", "str"),
        ("name = {}", "name", "str"),
        ("home = false", "home", "str"),
        ('keep_releases = "3"', "keep_releases", "int"),
        ('[build]\nnice = "10"', "build.nice", "int"),
        ("[build]\nnice = 1.5", "build.nice", "int"),
        ("[build]\nnice = true", "build.nice", "int"),
        ('[health]\ntimeout = "120"', "health.timeout", "float"),
        ("[health]\ntimeout = true", "health.timeout", "float"),
        ("[services]\nsudo = 1", "services.sudo", "bool"),
        ('[services]\nsudo = "no"', "services.sudo", "bool"),
        ('[build]\nenv = "PATH"', "build.env", "a list"),
        ("[build]\nenv = [3]", "build.env", "str"),
        ('[instances.backup]\nhealth = "http://127.0.0.1/"', "instances.backup.health", "a list"),
        ("[instances.backup]\nhealth = [80]", "instances.backup.health", "str"),
        ("build = 3", "build", "a table"),
        ("instances = []", "instances", "a table"),
        ('[instances]\nprimary = "clojars"', "instances.primary", "a table"),
    ],
)
def test_a_wrong_type_is_refused_with_what_was_expected(toml: str, key: str, expected: str) -> None:
    message = refusal(toml)

    assert message.startswith(f"site.toml: {key}")
    assert f"expected {expected}" in message.replace("`", "")


@pytest.mark.parametrize("value", ["-1", "-0.5", "inf", "-inf", "nan", "1e400", "10" * 20])
@pytest.mark.parametrize(
    "key",
    ["build.timeout", "services.timeout", "health.timeout", "health.interval", "health.settle"],
)
def test_an_impossible_time_is_refused(key: str, value: str) -> None:
    assert refusal(f"{key} = {value}").startswith(f"site.toml: {key}: expected ")


@pytest.mark.parametrize(
    "key", ["build.timeout", "services.timeout", "health.timeout", "health.interval"]
)
def test_no_time_at_all_is_refused_where_something_must_have_time(key: str) -> None:
    assert refusal(f"{key} = 0").startswith(f"site.toml: {key}: expected ")


@pytest.mark.parametrize(
    ("toml", "key"),
    [
        ("[build]\nnice = 20", "build.nice"),
        ("[build]\nnice = -1", "build.nice"),
        ('repository = "-u/bin/sh"', "repository"),
        ('repository = "--upload-pack=/bin/sh"', "repository"),
        ('repository = ""', "repository"),
        ('repository = "clojars-web"', "repository"),
        ('repository = "../clojars-web.git"', "repository"),
        ('home = "home/clojars"', "home"),
        ('home = "~clojars"', "home"),
        ('home = ""', "home"),
        ("keep_releases = -1", "keep_releases"),
        ('name = "clojars/web"', "name"),
        ('name = "-web"', "name"),
        ('name = ""', "name"),
        ('[services]\nbin = "sbin"', "services.bin"),
        ('[services]\nmanager = "runit"', "services.manager"),
        ('[services]\nscope = "session"', "services.scope"),
        ('[services]\nmanager = "upstart"\nscope = "user"', 'services.scope: must be "system"'),
        ('[build]\ntest = ""', "build.test"),
        ('[build]\njar = ""', "build.jar"),
        ('[build]\njar = "../*.jar"', "build.jar"),
        ('[build]\njar = "target/../../*.jar"', "build.jar"),
        ('[build]\njar = "/target/*.jar"', "build.jar"),
        ('[build]\njar = "target/**.jar"', "build.jar"),  # pathlib has no such pattern
        ('[build]\ncache = [".m2"]', "build.cache"),
        ('[build]\ncache = ["/cache", "/home/clojars"]', "build.cache: must neither contain /home"),
        (
            '[build]\ncache = ["/home/clojars/deploy/cache"]',
            "build.cache: must neither contain /home",
        ),
        ('[build]\nenv = ["A B"]', "build.env"),
        ('[build]\nenv = ["A=b"]', "build.env"),
        ('[build]\nenv = [""]', "build.env"),
        ('[instances.primary]\njob = "-x"', "instances.primary.job"),
        ('[instances.primary]\njob = "a/b"', "instances.primary.job"),
        ('[instances.primary]\njob = "a b"', "instances.primary.job"),
        ('[instances.primary]\nurl = ""', "instances.primary.url"),
        ("[instances.primary]\nhealth = []", "instances.primary.health"),
    ],
)
def test_an_impossible_value_is_refused(toml: str, key: str) -> None:
    message = refusal(toml)

    assert message.startswith("site.toml: ")
    assert all(part in message for part in key.split("."))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8002",
        "ftp://127.0.0.1/",
        "http://",
        "http:///status",
        "http://127.0.0.1:99999/",
        "http://127.0.0.1:web/",
        "http://[::1/",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:0",
        "tcp://127.0.0.1:7602/x",
        "http://127.0.0.1:8002/a b",
        "http://127.0.0.1:8002/é",  # http.client cannot ask for it
        "http://clojars..org/",  # no name that can be looked up
        "http://127.0.0.1:8002/\\n",
    ],
)
def test_a_health_url_that_cannot_be_asked_is_refused(url: str) -> None:
    message = refusal(f'[instances.backup]\nhealth = ["{url}"]\n')

    assert message.startswith("site.toml: instances.backup")
    assert "health" in message


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("", "name", '"clojars-web\\n"'),
        ("", "repository", '"/srv/repository.git\\n"'),
        ("", "home", '"/home/clojars\\n"'),
        ("build", "test", '"lein test\\n"'),
        ("build", "jar", '"target/*.jar\\n"'),
        ("build", "env", '["M2_HOME\\n"]'),
        ("services", "bin", '"/sbin\\n"'),
        ("instances.backup", "job", '"clojars-backup\\n"'),
        ("instances.backup", "url", '"http://clojars.org/\\n"'),
    ],
)
def test_a_value_that_ends_in_a_newline_is_refused(table: str, key: str, value: str) -> None:
    heading = f"[{table}]\n" if table else ""

    assert key in refusal(f"{heading}{key} = {value}\n")


@pytest.mark.parametrize(("has_systemd", "chosen"), [(True, "systemd"), (False, "upstart")])
def test_systemd_is_chosen_where_it_is_process_1(
    has_systemd: bool, chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "BOOTED", tmp_path if has_systemd else tmp_path / "missing")

    assert parsed("").services.chosen == chosen


def test_the_managers_programs_are_where_they_belong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemctl = tmp_path / "systemctl"
    systemctl.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert parsed('[services]\nmanager = "upstart"\n').services.programs == "/sbin"
    assert parsed('[services]\nmanager = "systemd"\n').services.programs == str(tmp_path)
    systemctl.unlink()
    assert parsed('[services]\nmanager = "systemd"\n').services.programs == "/usr/bin"
    assert parsed('[services]\nbin = "/opt/bin"\n').services.programs == "/opt/bin"


SUPERVISED = '[services]\nmanager = "supervisor"\nsocket = "/s"\n[instances.primary]\njob = "{}"\n'


@pytest.mark.parametrize("job", ["web:clojars", "clojars:clojars_00"])
def test_a_job_may_be_a_program_in_a_group_of_supervisord(job: str) -> None:
    assert parsed(SUPERVISED.format(job)).instances.primary.job == job


@pytest.mark.parametrize("job", ["web:", ":clojars", "a:b:c", "web:*", "web:-x"])
def test_what_is_wrong_with_a_jobs_name_is_said(job: str) -> None:
    message = refusal(SUPERVISED.format(job))

    assert "instances.primary.job: expected a job's name" in message
    assert "GROUP:PROGRAM" in message


def test_only_supervisord_has_programs_in_groups() -> None:
    message = refusal('[instances.primary]\njob = "web:clojars"\n')

    assert "instances.primary.job: must be a job of upstart" in message


def test_two_instances_are_two_jobs() -> None:
    message = refusal('[instances.backup]\njob = "clojars"\n')

    assert "two jobs" in message
    assert "'clojars'" in message


def test_no_health_url_belongs_to_both_instances() -> None:
    shared = "tcp://127.0.0.1:7601"

    message = refusal(f'[instances.backup]\nhealth = ["http://127.0.0.1:8002/", "{shared}"]\n')

    assert shared in message


# Files


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A good configuration file."""
    file = tmp_path / "site.toml"
    file.write_text('name = "other"\n')
    file.chmod(0o644)
    return file


def refusal_of(file: Path) -> UsageError:
    with pytest.raises(UsageError) as refused:
        load(file)
    assert str(file) in refused.value.message
    assert refused.value.status == Status.USAGE
    return refused.value


def test_a_file_changes_what_it_names(file: Path) -> None:
    assert load(file) == msgspec.structs.replace(Config(), name="other")


def test_no_file_is_the_default_configuration() -> None:
    assert load(None) == Config()


def test_an_error_in_a_file_names_the_file_and_the_key(file: Path) -> None:
    file.write_text("[health]\ntimeout = -1\n")

    assert refusal_of(file).message.startswith(f"{file}: health.timeout: expected ")


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o640, 0o644])
def test_a_file_that_only_its_owner_can_write_is_read(file: Path, mode: int) -> None:
    file.chmod(mode)

    assert load(file).name == "other"


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666, 0o620, 0o602])
def test_a_file_that_others_can_write_is_refused_until_the_remedy_is_typed(
    file: Path, mode: int
) -> None:
    file.chmod(mode)

    refused = refusal_of(file)
    subprocess.run(shlex.split(refused.remedy), check=True)

    assert f"{mode:04o}" in refused.message
    assert load(file).name == "other"


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal_of(tmp_path / "nowhere.toml").message


def test_a_directory_is_refused(tmp_path: Path) -> None:
    assert "directory" in refusal_of(tmp_path).message


def test_an_unreadable_file_is_refused(file: Path) -> None:
    file.chmod(0)

    with not_root():
        assert "Permission denied" in refusal_of(file).message


@contextmanager
def not_root() -> Iterator[None]:
    """Whoever the tests run as, the block runs as somebody who may not read everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize(
    "content",
    [
        b"name: yaml\n",
        b"name = \n",
        b'name = "a"\nname = "b"\n',
        b'name = "caf\xe9"\n',
        b"\xff\xfen\x00",
        b"\x00",
    ],
)
def test_a_file_that_is_not_toml_is_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)

    assert "is not TOML" in refusal_of(file).message


# Which file


@pytest.fixture
def host_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the host's own file would be; nothing is named in the environment."""
    file = tmp_path / "etc.toml"
    monkeypatch.setattr(config, "DEFAULT_FILE", file)
    monkeypatch.delenv(config.VARIABLE, raising=False)
    return file


def test_the_option_wins_over_the_environment(
    host_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host_file.touch()
    monkeypatch.setenv("DEPLOY_CLOJARS_CONFIG", "/from/the/environment.toml")

    assert file_named("/from/the/option.toml") == Path("/from/the/option.toml")


def test_the_environment_wins_over_the_hosts_file(
    host_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host_file.touch()
    monkeypatch.setenv("DEPLOY_CLOJARS_CONFIG", "/from/the/environment.toml")

    assert file_named(None) == Path("/from/the/environment.toml")


def test_the_hosts_file_is_read_if_it_is_there(host_file: Path) -> None:
    assert file_named(None) is None
    host_file.touch()

    assert file_named(None) == host_file


def test_the_hosts_file_is_in_etc() -> None:
    assert Path("/etc/deploy-clojars.toml") == config.DEFAULT_FILE


def test_a_relative_name_is_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert file_named("site.toml") == tmp_path / "site.toml"


def test_a_named_file_that_is_missing_is_not_replaced_by_the_hosts(
    host_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host_file.touch()
    missing = tmp_path / "nowhere.toml"
    monkeypatch.setenv("DEPLOY_CLOJARS_CONFIG", str(missing))

    assert file_named(None) == missing
    refusal_of(missing)


def test_the_refusal_of_a_key_that_breaks_lines_is_one_line() -> None:
    assert refusal('[build]\n"\\n" = 1').startswith('site.toml: build."\\n": unknown key; known: ')


# Health URLs with more than an address


def test_a_health_url_may_be_a_table() -> None:
    toml = """[instances.backup]
health = [{ url = "https://u:p%40@127.0.0.1/", host = "clojars.org", ca = "/etc/a.pem" }, "tcp://127.0.0.1:1"]
"""
    backup = parsed(toml).instances.backup
    assert backup.asked == (
        HealthUrl("https://u:p%40@127.0.0.1/", "clojars.org", "/etc/a.pem"),
        HealthUrl("tcp://127.0.0.1:1"),
    )
    assert backup.health_urls == ("https://u:p%40@127.0.0.1/", "tcp://127.0.0.1:1")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('{ host = "a" }', "instances.primary.health[0]: object missing required field `url`"),
        ('{ url = "http://a/", hots = "a" }', "health[0].hots: unknown key; did you mean"),
        ('{ url = "http://a/", host = "a b" }', "health[0].host: must be a host name"),
        ('{ url = "http://a/", ca = "/a" }', "health[0].ca: must be used with https only"),
        ('{ url = "https://a/", ca = "a" }', "health[0].ca: expected an absolute path"),
        ('{ url = "tcp://a:1", host = "a" }', "health[0].host: must be used with http or https only"),
        ('{ url = "ftp://a/" }', "health[0].url: must be a URL that"),
        ('{ url = 1 }', "health[0].url: expected `str`"),
    ],
)  # fmt: skip
def test_a_table_for_a_health_url_that_cannot_be_is_refused(table: str, said: str) -> None:
    assert said in refusal(f"[instances.primary]\nhealth = [{table}]")


def test_one_url_cannot_be_of_both_instances_in_a_table_either() -> None:
    url = 'health = [{ url = "http://127.0.0.1:1/", host = "'
    toml = f'[instances.primary]\n{url}a" }}]\n[instances.backup]\n{url}b" }}]\n'
    assert "health URLs of their own" in refusal(toml)


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ('[services]\nscope = "usr"', 'services.scope: expected "system" or "user"'),
        ('[verify]\ntags = "yes"', 'verify.tags: expected "any" or "signed"'),
        ("[build]\nisolate = 1", 'build.isolate: expected "auto" or true or false'),
        ('[build]\nisolate = "on"', 'build.isolate: expected "auto" or true or false'),
    ],
)
def test_the_refusal_of_a_value_names_the_few_that_there_are(toml: str, said: str) -> None:
    assert refusal(toml) == f"site.toml: {said}"


def test_the_refusal_of_a_service_manager_names_those_that_there_are() -> None:
    with pytest.raises(UsageError) as refused:
        parse({"services": {"manager": "init"}}, "FILE")
    known = " or ".join(f'"{name}"' for name in get_args(Manager))
    assert refused.value.message == f"FILE: services.manager: expected {known}"
    for name in get_args(Manager):
        services = {"manager": name, "socket": "/s"}
        assert parse({"services": services}, "FILE").services.manager == name
