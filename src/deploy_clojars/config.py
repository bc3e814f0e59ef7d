"""The configuration: TOML, every key optional; the defaults fit the host of clojars.org."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from deploy_clojars import masking
from deploy_clojars.errors import UsageError

DEFAULT_FILE = Path("/etc/deploy-clojars.toml")
VARIABLE = "DEPLOY_CLOJARS_CONFIG"

A_YEAR = 365 * 24 * 3600  # seconds; a limit refuses `inf`

Seconds = Annotated[float, Meta(gt=0, le=A_YEAR)]
Text = Annotated[str, Meta(min_length=1, pattern=r"^[^\x00-\x1f\x7f]*\Z")]
TextOrNone = Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f]*\Z")]
AbsolutePath = Annotated[str, Meta(pattern=r"^/[^\x00-\x1f\x7f]*\Z")]
# Not an option of the service manager, and not a path; supervisord's may be GROUP:PROGRAM.
JobName = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@+-]*(:[A-Za-z0-9][A-Za-z0-9._@+-]*)?\Z")
]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,60}\Z")]
VariableName = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*\Z")]
# A repository that starts with '-' would be an option of git.
Repository = Annotated[str, Meta(pattern=r"^[^-\x00-\x20\x7f][^\x00-\x1f\x7f]*\Z")]

# Labels of a host name or an IPv4 address, or an IPv6 address.
HOST = r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?|[0-9A-Fa-f:.]+"


def _why_not_a_url(url: str) -> str | None:
    """Why its host, user and password cannot be told apart; never quotes the URL."""
    try:
        authority = urlsplit(url).netloc
        urlsplit(url).port  # noqa: B018 # raises
    except ValueError:
        return "a valid host and port"
    login, at, _ = authority.rpartition("@")
    # A `/` in a password would end the login early, and the rest of the password would be shown as a path.
    is_plain = at or not authority or "@" not in url
    if is_plain and re.fullmatch(r"[\w.~!$&'()*+,;=:%-]*", login, re.ASCII):
        return None
    return "special characters in the user and password, and any @ in the path, written as %XX"


def _shown(url: str) -> str:
    """A URL for an error message; masks all that may be a password, even if it cannot be parsed."""
    return repr(re.sub(r"//.*@", f"//{masking.MASK}@", url, flags=re.DOTALL))


def _why_not_a_health_url(url: str) -> str | None:
    why = _why_not_a_url(url)
    if why:
        return f"must hold URLs with {why}"
    parts = urlsplit(url)
    port = parts.port
    if parts.scheme not in ("http", "https", "tcp"):
        return "must hold URLs that start with http://, https:// or tcp://"
    if not parts.hostname or not re.fullmatch(HOST, parts.hostname):
        return "must hold URLs with a host"
    if port == 0 or not re.fullmatch(r"[!-~]+", url):
        return "must hold URLs with a port over 0, in ASCII and without blanks"
    is_bare = parts.netloc.rpartition("@")[0] == parts.path == parts.query == ""
    if parts.scheme == "tcp" and (port is None or not is_bare):
        return "must hold tcp URLs of the form tcp://HOST:PORT"
    return None


class Build(Struct, frozen=True, forbid_unknown_fields=True):
    """How a checkout is tested and built."""

    test: Text = "lein test"
    uberjar: Text = "lein uberjar"
    jar: Text = "target/**/*-standalone.jar"
    timeout: Seconds = 1800
    nice: Annotated[int, Meta(ge=0, le=19)] = 10
    env: tuple[VariableName, ...] = ()
    parallel: Literal["auto"] | bool = "auto"
    isolate: Literal["auto"] | bool = "auto"
    cache: tuple[AbsolutePath, ...] = ()
    network: bool = True

    def __post_init__(self) -> None:
        _refuse_pattern("jar", self.jar, "the checkout")


class Release(Struct, frozen=True, forbid_unknown_fields=True):
    """Where releases come from that are built elsewhere."""

    command: Text | None = None
    jar: Text = "*.jar"
    sha256: Text | None = None
    list: Text | None = None

    def __post_init__(self) -> None:
        _refuse_pattern("jar", self.jar, "the command's directory")
        _refuse_pattern("sha256", self.sha256 or "", "the command's directory")


def _refuse_pattern(key: str, pattern: str, directory: str) -> None:
    """Raises ValueError for a pattern that leads out of the directory, or that pathlib refuses."""
    if pattern.startswith("/") or ".." in pattern.split("/"):
        raise ValueError(f"`{key}` must be a pattern inside {directory}")
    if any("**" in part and part != "**" for part in pattern.split("/")):
        raise ValueError(f"`{key}` may have ** only as a whole component of the path")


Manager = Literal["auto", "systemd", "upstart", "supervisor"]

# There is such a directory where systemd is process 1 (sd_booted(3)).
BOOTED = Path("/run/systemd/system")


When = Literal["before", "after"]  # the promotion


class Migrate(Struct, frozen=True, forbid_unknown_fields=True):
    """The command that migrates the data for a release."""

    command: Text | None = None
    when: When = "before"
    timeout: Seconds = 600
    environment_file: AbsolutePath | None = None


class Jvm(Struct, frozen=True, forbid_unknown_fields=True):
    """How the instances' JVMs start."""

    class_data: Literal["auto"] | bool = "auto"

    def __post_init__(self) -> None:
        if self.class_data is True:  # nothing fails where it cannot be had
            raise ValueError('`class_data` must be "auto" or false')


class Services(Struct, frozen=True, forbid_unknown_fields=True):
    """The service manager that runs the instances."""

    manager: Manager = "auto"
    scope: Literal["system", "user"] = "system"
    sudo: bool = True
    bin: AbsolutePath | None = None
    timeout: Seconds = 90
    socket: AbsolutePath | None = None
    username: Text | None = None
    password: Text | None = None

    def __post_init__(self) -> None:
        if self.manager == "supervisor" and self.socket is None:
            raise ValueError("`socket` must be set where the manager is supervisor")
        if self.scope == "user" and self.chosen != "systemd":
            raise ValueError(f'`scope` must be "system" where the manager is {self.chosen}')
        if ":" in (self.username or ""):
            raise ValueError("`username` must be a name without a colon")

    @property
    def chosen(self) -> Literal["systemd", "upstart", "supervisor"]:
        """The manager, on this host if the configuration leaves that to the tool."""
        if self.manager == "auto":
            return "systemd" if BOOTED.is_dir() else "upstart"
        return self.manager

    @property
    def programs(self) -> str:
        """The directory of the manager's programs."""
        if self.bin is not None:
            return self.bin
        if self.chosen == "systemd":
            return os.path.dirname(shutil.which("systemctl") or "/usr/bin/systemctl")
        return "/sbin"


class HealthUrl(Struct, frozen=True, forbid_unknown_fields=True):
    """A health URL, and what its server expects of a request."""

    url: Text
    host: Text | None = None  # the Host header, and the name that the certificate is for
    ca: AbsolutePath | None = None  # a file with its certificate, or with those to trust

    def __post_init__(self) -> None:
        why = _why_not_a_health_url(self.url)
        if why:
            why = why.replace("hold URLs", "be a URL")
            raise ValueError(f"`url` {why}, got {_shown(self.url)}")
        if self.host is not None and not re.fullmatch(HOST, self.host):
            raise ValueError(f"`host` must be a host name, got {self.host!r}")
        scheme = urlsplit(self.url).scheme
        if self.host is not None and scheme == "tcp":
            raise ValueError("`host` must be used with http or https only: tcp sends nothing")
        if self.ca is not None and scheme != "https":
            raise ValueError("`ca` must be used with https only: http and tcp have no certificate")


class Instance(Struct, frozen=True, forbid_unknown_fields=True):
    """One instance of the application."""

    job: JobName
    url: Text
    health: Annotated[tuple[Text | HealthUrl, ...], Meta(min_length=1)]

    def __post_init__(self) -> None:
        for url in self.health:
            why = _why_not_a_health_url(url) if isinstance(url, str) else None
            if why:
                raise ValueError(f"`health` {why}, got {_shown(str(url))}")
        why = _why_not_a_url(self.url)
        if why:
            raise ValueError(f"`url` must be a URL with {why}, got {_shown(self.url)}")

    @property
    def asked(self) -> tuple[HealthUrl, ...]:
        """The health URLs, each as a HealthUrl."""
        return tuple(
            each if isinstance(each, HealthUrl) else HealthUrl(each) for each in self.health
        )

    @property
    def health_urls(self) -> tuple[str, ...]:
        """Their URLs alone."""
        return tuple(each.url for each in self.asked)


class Backup(Instance, frozen=True, forbid_unknown_fields=True):
    """The instance that may be down between runs."""

    only_while_deploying: bool = False


Role = Literal["primary", "backup"]  # as the tables in `[instances]` are named
PRIMARY: Role = "primary"
BACKUP: Role = "backup"


class Instances(Struct, frozen=True, forbid_unknown_fields=True):
    """The two instances."""

    primary: Instance = Instance(
        job="clojars",
        url="http://clojars.org:8001/",
        health=("http://127.0.0.1:8001/", "tcp://127.0.0.1:7601"),
    )
    backup: Backup = Backup(
        job="clojars-backup",
        url="http://clojars.org:8002/",
        health=("http://127.0.0.1:8002/", "tcp://127.0.0.1:7602"),
    )

    def __post_init__(self) -> None:
        if self.primary.job == self.backup.job:
            raise ValueError(f"primary and backup must be two jobs, got {self.primary.job!r} twice")
        for url in self.primary.health_urls:
            if url in self.backup.health_urls:
                raise ValueError(
                    f"primary and backup must have health URLs of their own, got {_shown(url)} twice"
                )


class Health(Struct, frozen=True, forbid_unknown_fields=True):
    """When an instance counts as healthy."""

    timeout: Seconds = 120
    interval: Seconds = 0.2
    answer_timeout: Seconds = 5
    settle: Annotated[float, Meta(ge=0, le=A_YEAR)] = 3


class Drain(Struct, frozen=True, forbid_unknown_fields=True):
    """What makes nginx prefer the backup, and when the primary counts as drained."""

    flag: AbsolutePath = "/run/clojars/drain-primary"
    probe: Text = "http://127.0.0.1:8099/pool"
    timeout: Seconds = 60
    quiet: Annotated[float, Meta(ge=0, le=A_YEAR)] = 1

    def __post_init__(self) -> None:
        why = _why_not_a_health_url(self.probe)
        if why is None and urlsplit(self.probe).scheme != "http":
            why = "must be a URL that starts with http://"
        if why:
            why = why.replace("hold URLs", "be a URL")
            raise ValueError(f"`probe` {why}, got {_shown(self.probe)}")
        if self.flag.endswith("/"):
            raise ValueError(f"`flag` must be the path of a file, got {self.flag!r}")
        if self.quiet >= self.timeout:
            raise ValueError(f"`quiet` must be less than `timeout`, got {self.quiet:g}")


class Verify(Struct, frozen=True, forbid_unknown_fields=True):
    """Whose signatures a release needs."""

    tags: Literal["any", "signed"] = "any"
    jars: Literal["any", "signed"] = "any"
    signers: AbsolutePath | None = None  # of SSH keys, see ssh-keygen(1); or a GnuPG home
    revoked: AbsolutePath | None = None  # SSH keys, or a KRL

    def __post_init__(self) -> None:
        if self.demands_signatures and self.signers is None:
            raise ValueError("`signers` must be set where tags or jars must be signed")

    @property
    def demands_signatures(self) -> bool:
        """Whether anything must be signed."""
        return "signed" in (self.tags, self.jars)


class Hook(Struct, frozen=True, forbid_unknown_fields=True):
    """A command that is run when a run has ended."""

    command: TextOrNone = ""
    timeout: Seconds = 10


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    """The whole configuration; `Config()` is the default one."""

    name: Name = "clojars-web"
    repository: Repository = "https://github.com/clojars/clojars-web.git"
    home: AbsolutePath = "/home/clojars"
    keep_releases: Annotated[int, Meta(ge=0)] = 0
    build: Build = Build()
    release: Release = Release()
    migrate: Migrate = Migrate()
    jvm: Jvm = Jvm()
    services: Services = Services()
    instances: Instances = Instances()
    health: Health = Health()
    drain: Drain = Drain()
    verify: Verify = Verify()
    hook: Hook = Hook()

    def __post_init__(self) -> None:
        if not self.repository.startswith("/") and ":" not in self.repository:
            # git would look for it in another directory at each of its calls.
            raise ValueError(
                "`repository` must be a URL, HOST:PATH or an absolute path, "
                f"got {_shown(self.repository)}"
            )
        why = _why_not_a_url(self.repository) if "://" in self.repository else None
        if why:
            raise ValueError(
                f"`repository` must be a URL with {why}, got {_shown(self.repository)}"
            )
        for cache in map(Path, self.build.cache):
            for own in (self.releases_directory, self.deploy_directory):
                if own.is_relative_to(cache) or cache.is_relative_to(own):
                    raise ValueError(
                        f"`build.cache` must neither contain {own} nor be in it, got {str(cache)!r}"
                    )
        for role, instance in (
            ("primary", self.instances.primary),
            ("backup", self.instances.backup),
        ):
            if ":" in instance.job and self.services.chosen != "supervisor":
                raise ValueError(
                    f"`instances.{role}.job` must be a job of {self.services.chosen}, and only "
                    f"supervisord has GROUP:PROGRAM, got {instance.job!r}"
                )

    @property
    def logins(self) -> tuple[tuple[str, str], ...]:
        """Every user and password in it, in the encoding of a URL."""
        both = (self.instances.primary, self.instances.backup)
        of_instances = (url for each in both for url in (each.url, *each.health_urls))
        urls = (self.repository, self.drain.probe, *of_instances)
        parts = (urlsplit(url) for url in urls if "://" in url)
        found = [(self.services.username, self.services.password)]
        found += ((each.username, each.password) for each in parts)
        return tuple((user or "", password) for user, password in found if password)

    @property
    def deploy_directory(self) -> Path:
        """The mirror, the checkouts, the logs, the journal and the lock."""
        return Path(self.home) / "deploy"

    @property
    def releases_directory(self) -> Path:
        """The releases and the link to the current one."""
        return Path(self.home) / "releases"


def file_named(option: str | None) -> Path | None:
    """The configuration file to read: the option's, the environment's, or the host's if there.

    Raises UsageError (2) for an empty name.
    """
    if option == "":
        # `-c "$UNSET"` must not mean the production host.
        raise UsageError("-c needs the name of a file, not an empty one")
    named = option or os.environ.get(VARIABLE)
    if named:
        try:
            return Path(named).absolute()
        except OSError:
            raise UsageError(
                f"{named}: the current directory no longer exists",
                remedy="change to another directory, or give the file's absolute path",
            ) from None
    return DEFAULT_FILE if DEFAULT_FILE.exists() else None


def load(file: Path | None) -> Config:
    """Reads `file` (None: the defaults).

    Raises UsageError (2) that names the file, the key's path, what was expected and, for an
    unknown key, the nearest known one.
    """
    if file is None:
        return Config()
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise UsageError(f"{file}: is not a file")  # reading a FIFO would block
        with file.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            text = stream.read().decode()
        data = tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{file}: is not TOML: {error}") from None
    # Whoever can write this file chooses what runs as the production user.
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UsageError(
            f"{file}: can be written by others than its owner (mode {stat.S_IMODE(mode):04o})",
            remedy=shlex.join(["chmod", "go-w", str(file)]),
        )
    return parse(data, str(file))


def parse(data: dict[str, Any], source: str) -> Config:
    """Turns TOML tables into a configuration. Raises UsageError (2), which names `source`.

    From then on the passwords in it are masked wherever text leaves this program.
    """
    defaults = msgspec.to_builtins(Config())
    _refuse_unknown_keys(data, defaults, source)
    try:
        config = msgspec.convert(_merged(defaults, data), Config)
    except msgspec.ValidationError as error:
        key, colon, what = _with_key_first(str(error)).partition(": ")
        choices = _choices(key) if what.startswith(("invalid enum", "expected")) else []
        what = f"expected {' or '.join(choices)}" if choices else what
        raise UsageError(f"{source}: {key}{colon}{what}") from None
    for user, password in config.logins:
        masking.hide(password, user)
    return config


def _merged(defaults: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    merged = dict(defaults)
    for key, value in data.items():
        default = defaults[key]
        both_tables = isinstance(default, dict) and isinstance(value, dict)
        merged[key] = _merged(default, value) if both_tables else value
    return merged


HEALTH_URL = dict.fromkeys(HealthUrl.__struct_fields__)


def _refuse_unknown_keys(
    data: dict[str, Any], known: dict[str, Any], source: str, path: str = ""
) -> None:
    for key, value in data.items():
        if key not in known:
            import json  # `status` is quicker without these
            from difflib import get_close_matches

            near = get_close_matches(key, known, n=1, cutoff=0.5)
            expected = f"did you mean {path}{near[0]}?" if near else f"known: {', '.join(known)}"
            # Quoted as TOML would have it: an error is one line.
            shown = key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)
            if (path, key) == ("instances.primary.", "only_while_deploying"):
                expected = "only the backup can have it: users are served by the primary"
            raise UsageError(f"{source}: {path}{shown}: unknown key; {expected}")
        if isinstance(value, dict) and isinstance(known[key], dict):
            _refuse_unknown_keys(value, known[key], source, f"{path}{key}.")
        if isinstance(value, list):  # only lists of health URLs hold tables
            for number, table in enumerate(each for each in value if isinstance(each, dict)):
                _refuse_unknown_keys(table, HEALTH_URL, source, f"{path}{key}[{number}].")


def _choices(key: str) -> list[str]:
    """The values of a key that has only a few, as TOML writes them."""
    kind: Any = Config
    for name in key.split("."):
        kind = get_type_hints(kind).get(name) if isinstance(kind, type) else None
    kinds = (kind, *get_args(kind))
    words = [
        f'"{word}"' for each in kinds if get_origin(each) is Literal for word in get_args(each)
    ]
    return [*words, "true", "false"] if words and bool in kinds else words


def _with_key_first(message: str) -> str:
    """Turns msgspec's "Expected `int`, got `str` - at `$.build.nice`" around."""
    what, _, path = message.partition(" - at `$")
    key = re.sub(r"^\.", "", path.rstrip("`"))
    if "matching regex" in what:
        # What the patterns in the annotations above mean.
        kinds = {
            "^/": "an absolute path",
            "^[A-Za-z_]": "the name of a variable",
            "^[A-Za-z0-9][A-Za-z0-9._@+-]*(": "a job's name (letters, digits and ._@+-, which it "
            "does not begin with), or GROUP:PROGRAM of supervisord",
        }
        pattern = what.partition("matching regex '")[2]
        found = (words for start, words in kinds.items() if pattern.startswith(start))
        what = f"expected {next(found, 'a text without control characters or a leading sign')}"
    what = what.replace("`object`", "a table").replace("`array`", "a list")
    own = re.match(r"`([\w.]+)` (?=m)", what)  # a key named by a check of the whole table
    if own is not None:
        key, what = ".".join(part for part in (key, own[1]) if part), what[own.end() :]
    what = what[:1].lower() + what[1:]
    return f"{key}: {what}" if key else what
