"""The tests and the build in bubblewrap: what they see of the host, and what they can do to it.

All that a tag's tests and build need from the host is the system's programs, the checkout and the build
tool's cache. See bwrap(1).
"""

from __future__ import annotations

import os
import pwd
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

from deploy_clojars.config import DEFAULT_FILE, Config
from deploy_clojars.deploy.build import program_of
from deploy_clojars.errors import NotReady
from deploy_clojars.machine import shell

# Other people's homes, sockets of other programs, and other programs' temporary files.
HIDDEN = ("/home", "/root", "/run", "/tmp", "/var/tmp")

# What /etc/resolv.conf may lead to.
RESOLVERS = ("/run/systemd/resolve", "/run/resolvconf", "/run/NetworkManager", "/run/nscd")

# Where build tools keep what they have fetched, below the home directory.
CACHES = {
    "lein": (".lein", ".m2"),
    "clojure": (".clojure", ".m2", ".gitlibs"),
    "clj": (".clojure", ".m2", ".gitlibs"),
    "mvn": (".m2",),
    "gradle": (".gradle",),
}
CACHE_VARIABLES = {"LEIN_HOME": ".lein", "GRADLE_USER_HOME": ".gradle"}

SECONDS = 10.0


@cache
def why_not() -> str | None:
    """Why bubblewrap does not work here, or None. It needs namespaces, which a container may not allow."""
    program = shutil.which("bwrap")
    if program is None:
        return "bubblewrap is not installed"
    try:
        words = [program, "--ro-bind", "/", "/", "--unshare-pid", "--proc", "/proc", "true"]
        answer = shell.capture(words, timeout=SECONDS)
    except (OSError, shell.TookTooLong) as error:
        return f"bubblewrap does not work: {error}"
    last = (answer.err.strip().splitlines() or [f"exit status {answer.status}"])[-1]
    return None if answer.status == 0 else f"bubblewrap does not work: {last}"


def by_hand() -> str:
    """What makes bubblewrap work, or does without it."""
    if shutil.which("bwrap") is None:
        return "as root: apt-get install bubblewrap"
    return "let this user create namespaces, or set `build.isolate` to false"


def why_not_wanted(config: Config) -> str | None:
    """Why the tests and the build are not isolated, or None if they are."""
    if config.build.isolate is False:
        return "`build.isolate` is false"
    return why_not()


def refuse_without_what_is_demanded(config: Config) -> None:
    """Raises NotReady (4) if the build must be isolated and cannot be."""
    why = why_not() if config.build.isolate is True else None
    if why is not None:
        raise NotReady(
            f"`build.isolate` is true, but {why}",
            remedy=f"nothing was changed; {by_hand()}",
        )


def isolated(
    config: Config, file: Path | None, checkout: Path, environment: Mapping[str, str]
) -> list[str]:
    """`prefix`, after the caches have been created: what a first build fetches is kept, too.

    Raises NotReady (4).
    """
    words = prefix(config, file, checkout, environment)
    if words:
        for each in _caches(config, environment):
            try:
                each.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise NotReady(
                    f"the cache {each} of an isolated build cannot be created: {error.strerror}",
                    remedy="create it for this user, or set `build.cache`",
                ) from None
    return words


def prefix(
    config: Config, file: Path | None, checkout: Path, environment: Mapping[str, str]
) -> list[str]:
    """The words that isolate the command after them; none if that is not wanted or does not work.

    `file` is the configuration's, `checkout` the command's working directory.
    """
    if why_not_wanted(config) is not None:
        return []
    private = _there([_home(environment), config.home])
    hidden = _outermost(_there([*HIDDEN, *private]))
    words = ["bwrap", "--die-with-parent", "--unshare-pid", "--unshare-ipc"]
    if not config.build.network:
        words.append("--unshare-net")
    words += ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
    for each in hidden:
        words += ["--tmpfs", str(each)]
    for name in {_home(environment), config.home}:  # a link to another disk, in a hidden directory
        link = Path(os.path.normpath(name))
        if link.is_symlink() and _is_below(link.parent.resolve(), hidden):
            words += ["--symlink", str(link.resolve()), str(link)]
    mirror = Path(config.home, "deploy/mirror.git")  # a checkout borrows its objects
    for each in _there([*_programs(environment), *RESOLVERS, mirror]):
        # A directory that has more in it than programs stays hidden.
        if _is_below(each, hidden) and not any(_is_below(other, [each]) for other in private):
            words += ["--ro-bind", str(each), str(each)]
    for each in (*_caches(config, environment), checkout):
        words += ["--bind", str(each.resolve()), str(each.resolve())]
    for each in _there(_secrets(config, file)):
        if not _is_below(each, hidden):
            words += ["--ro-bind", "/dev/null", str(each)]
    return [*words, "--setenv", "TMPDIR", "/tmp", "--chdir", str(checkout.resolve()), "--"]


def _home(environment: Mapping[str, str]) -> str:
    return environment.get("HOME") or pwd.getpwuid(os.geteuid()).pw_dir


def _caches(config: Config, environment: Mapping[str, str]) -> list[Path]:
    """What an isolated build may write to besides its checkout."""
    named = {
        name: environment[key] for key, name in CACHE_VARIABLES.items() if environment.get(key)
    }
    if config.build.cache:
        return [Path(each) for each in (*config.build.cache, *named.values())]
    programs = map(program_of, (config.build.test, config.build.uberjar))
    names = (name for each in programs for name in CACHES.get(os.path.basename(each or ""), ()))
    home = _home(environment)
    return list(dict.fromkeys(Path(home, named.get(name, name)) for name in names))


def _programs(environment: Mapping[str, str]) -> Iterator[str]:
    """Programs that may be in somebody's home: those on PATH, the JDK, the Python of this tool."""
    yield from filter(os.path.isabs, environment.get("PATH", "").split(":"))
    yield environment.get("JAVA_HOME", "")
    yield from (sys.prefix, sys.base_prefix)


def _secrets(config: Config, file: Path | None) -> Iterator[str]:
    """Files that this user can read but a build does not need."""
    yield str(file or DEFAULT_FILE)
    yield from (f"/etc/default/{each.job}" for each in
                (config.instances.primary, config.instances.backup))  # fmt: skip
    if config.migrate.environment_file:
        yield config.migrate.environment_file
    if config.services.socket:
        yield config.services.socket


def _there(paths: Iterable[str | Path]) -> list[Path]:
    """Those that exist, each once, without links."""
    found = (Path(path).resolve() for path in paths if str(path) and os.path.exists(path))
    return list(dict.fromkeys(found))


def _outermost(paths: list[Path]) -> list[Path]:
    """Those that are not below another one."""
    return [each for each in paths if not _is_below(each, [p for p in paths if p != each])]


def _is_below(path: Path, directories: list[Path]) -> bool:
    return any(path.is_relative_to(each) for each in directories)
