"""nginx's whole configuration, as `nginx -T` prints it, and what it says about the site.

Only nginx knows which files it reads, and which setting of which file is in force.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from deploy_clojars.setup.files import NEVER_GIVEN_UP, Values

# Since this version nginx keeps connections to an upstream open, unless the site says otherwise.
KEEPS_SINCE = (1, 29, 7)

_TOKEN = re.compile(
    r"""\s+ | \#[^\n]*
    | (?P<quoted> "(?:\\.|[^"\\])*" | '(?:\\.|[^'\\])*' )
    | (?P<mark> [{};] )
    | (?P<word> (?: \$\{[^}]*\} | \\. | [^\s{};] )+ )""",
    re.DOTALL | re.VERBOSE,
)


@dataclass(frozen=True)
class Directive:
    """One directive; `file` is the one that it is in."""

    name: str
    args: tuple[str, ...]
    file: str
    block: tuple[Directive, ...] = ()

    def all(self, *names: str) -> Iterator[Directive]:
        """The directives with these names in its block and the blocks in it."""
        for each in self.block:
            if each.name in names:
                yield each
            yield from each.all(*names)


@dataclass(frozen=True)
class Configuration:
    """All that nginx reads: its files, the main one first, and what is in them, includes in place."""

    files: tuple[str, ...]
    top: tuple[Directive, ...]

    @property
    def http(self) -> Directive:
        """Its http block."""
        found = (each for each in self.top if each.name == "http")
        return next(found, Directive("http", (), self.files[0]))

    def patterns(self, block: Sequence[Directive]) -> list[str]:
        """The patterns of files that the main file includes in a block."""
        directory = os.path.dirname(self.files[0])
        return [
            os.path.join(directory, each.args[0])
            for each in block
            if each.name == "include" and each.file == self.files[0] and "*" in each.args[0]
        ]


def read(dump: str) -> Configuration | None:
    """Reads what `nginx -T` has printed; None if it names no file."""
    parts = re.split(r"^# configuration file (.+):\n", dump, flags=re.MULTILINE)[1:]
    texts = dict(zip(parts[::2], parts[1::2], strict=True))
    if not texts:
        return None
    parsed = {file: _parsed(_tokens(text), file) for file, text in texts.items()}
    files = tuple(texts)
    return Configuration(files, tuple(_included(parsed[files[0]], parsed, files[0])))


def _tokens(text: str) -> Iterator[str]:
    """The words and marks. A quoted word keeps its quotes, so that it is not taken for a mark."""
    place, name = 0, ""
    while match := _TOKEN.match(text, place):
        place = match.end()
        if match["mark"] == "{" and name.endswith("_by_lua_block"):
            place = _end_of_lua(text, place)  # another language, in nginx's braces
            yield from "{}"
        elif match.lastgroup:
            yield match[match.lastgroup]
        name = match["word"] or ("" if match["mark"] else name)


def _end_of_lua(text: str, place: int) -> int:
    depth = 1
    for match in re.finditer(r"[{}]", text[place:]):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return place + match.end()
    return len(text)


def _parsed(tokens: Iterator[str], file: str) -> tuple[Directive, ...]:
    found: list[Directive] = []
    words: list[str] = []
    for token in tokens:
        if token == "}":
            break
        if token not in ("{", ";"):
            quoted = len(token) > 1 and token[0] in "\"'" and token[-1] == token[0]
            words.append(token[1:-1] if quoted else token)
            continue
        block = _parsed(tokens, file) if token == "{" else ()
        if words:
            found.append(Directive(words[0], tuple(words[1:]), file, block))
        words = []
    return tuple(found)


def _included(
    block: Sequence[Directive], parsed: dict[str, tuple[Directive, ...]], main: str
) -> Iterator[Directive]:
    for each in block:
        yield dataclasses.replace(each, block=tuple(_included(each.block, parsed, main)))
        if each.name == "include" and each.args:
            pattern = os.path.join(os.path.dirname(main), each.args[0])
            for file, inside in parsed.items():
                if file not in (main, each.file) and PurePosixPath(file).match(pattern):
                    yield from _included(inside, parsed, main)


def located(values: Values, conf: Configuration | None) -> Values:
    """The values with the places of the site and the nailgun port's file where this nginx reads them.

    Where nginx has no place for one of them, Debian's stays.
    """
    if conf is None:
        return values
    site = values.site
    patterns = conf.patterns(conf.http.block)
    # A directory of which nginx reads every file is one of links, as in Debian.
    linked = next((each for each in patterns if os.path.basename(each) == "*"), None)
    if linked is not None:
        links = os.path.dirname(linked)
        available = f"{os.path.dirname(links)}/sites-available/{site}"
        values = dataclasses.replace(values, site_file=available, site_link=f"{links}/{site}")
    elif patterns:
        file = patterns[0].replace("*", site)
        values = dataclasses.replace(values, site_file=file, site_link=None)
    # Not among the files of packages.
    outside = [each for each in conf.patterns(conf.top) if not each.startswith("/usr/")]
    if outside:
        values = dataclasses.replace(values, nailgun_file=outside[0].replace("*", f"90-{site}-nailgun"))  # fmt: skip
    return dataclasses.replace(values, has_place_for_stream=bool(outside))


def reads(conf: Configuration, values: Values) -> bool:
    """Whether nginx reads the site's file that `setup` creates."""
    return (values.site_link or values.site_file) in conf.files


def remedy_for_unread(conf: Configuration, values: Values) -> str:
    """What to do where nginx does not read the site's file."""
    directory = os.path.dirname(values.site_link or values.site_file)
    return (
        f"add to the http block of {conf.files[0]}: include {directory}/*;\n"
        f"then run: {values.front_command('reload')}"
    )


def taken_by_others(conf: Configuration, values: Values) -> Iterator[tuple[str, str]]:
    """What only one site can have and another one uses: its key, and the file of that site."""
    port = _port(values.probe_listen)
    listens = {values.probe_listen, port, f"*:{port}", f"0.0.0.0:{port}"}
    for server in conf.http.all("server"):
        if not server.block or server.file == (values.site_link or values.site_file):
            continue
        if any(each.args[0] in listens for each in server.all("listen")):
            yield "drain.probe", server.file
        if any(_flag(each) == values.flag for each in server.all("if")):
            yield "drain.flag", server.file


@dataclass(frozen=True)
class Fault:
    """What is wrong with the site in force, and what to do to it; empty if it must be replaced."""

    what: str
    by_hand: str = ""


def faults(conf: Configuration, values: Values, version: tuple[int, ...]) -> Iterator[Fault]:
    """What keeps the site from sending requests to both instances and letting them be drained."""
    pools = {
        each.args[0]: each
        for each in conf.http.all("upstream")
        if {_port(values.primary_web), _port(values.backup_web)}
        <= {_port(server.args[0]) for server in each.all("server")}
    }
    servers = [each for each in conf.http.block if each.name == "server"]
    own = [each for each in servers if _names(each, pools)]
    if not any(True for each in own for _ in each.all("proxy_pass")):
        yield Fault("nginx has no site that sends requests to both instances")
        return
    for server in own:
        flags = {found for each in server.all("if") if (found := _flag(each))}
        if values.flag not in flags:
            looked_at = ", ".join(sorted(flags)) or "no drain flag"
            yield Fault(
                f"{server.file}: nginx looks at {looked_at} instead of {values.flag}",
                f"add to that server block: if (-f {values.flag})",
            )
    for server in own:
        sent = _sent(server, _in_force(conf.http, Sent()))
        if any(_is_kept(each, list(pools.values()), version) for each in sent):
            yield Fault(
                f"{server.file}: nginx keeps connections to the instances open, which holds up a drain",
                "add to that server block: proxy_http_version 1.0; proxy_set_header Connection close;",
            )
    if values.primary_fails == NEVER_GIVEN_UP:
        for server in (each for pool in pools.values() for each in pool.all("server")):
            is_primary = _port(server.args[0]) == _port(values.primary_web)
            if is_primary and not {"backup", NEVER_GIVEN_UP} & {*server.args}:
                yield Fault(
                    f"{server.file}: nginx stops using {values.primary} for a while after an error, and "
                    "between runs no other instance answers",
                    # setup does not change an existing file.
                    f"give `server {server.args[0]}` in that file {NEVER_GIVEN_UP} and no "
                    "fail_timeout, and so where nginx serves the nailgun port",
                )


def _port(address: str) -> str:
    return address.rpartition(":")[2]


def _names(server: Directive, pools: dict[str, Directive]) -> bool:
    """Whether a server uses one of these upstreams, directly or by a variable."""
    targets = [*pools, *(f"{scheme}://{pool}" for scheme in ("http", "https") for pool in pools)]
    used = [each.args[-1] for each in server.all("set", "proxy_pass") if each.args]
    return any(
        each == target or each.startswith(f"{target}/") for each in used for target in targets
    )


def _flag(condition: Directive) -> str | None:
    """The file whose existence an `if` tests."""
    match = re.fullmatch(r"\(\s*-[fe]\s+(\S+?)\s*\)", " ".join(condition.args))
    return match[1].strip("\"'") if match else None


@dataclass(frozen=True)
class Sent:
    """How a request is sent to an upstream; None is nginx's default."""

    connection: str | None = None  # the header
    http: str | None = None  # the version


def _in_force(block: Directive, around: Sent) -> Sent:
    """What a block says, or else the block around it. One header in a block hides all of those around it."""
    headers = [each.args for each in block.block if each.name == "proxy_set_header"]
    if headers:
        said = {name.lower(): value for name, value in (each[:2] for each in headers)}
        around = dataclasses.replace(around, connection=said.get("connection"))
    for each in block.block:
        if each.name == "proxy_http_version":
            around = dataclasses.replace(around, http=each.args[0])
    return around


def _sent(block: Directive, around: Sent) -> Iterator[Sent]:
    """How each `proxy_pass` in a block sends."""
    here = _in_force(block, around)
    for each in block.block:
        if each.name == "proxy_pass":
            yield here
        yield from _sent(each, here)


def _is_kept(sent: Sent, pools: Sequence[Directive], version: tuple[int, ...]) -> bool:
    """Whether a connection outlives its request."""
    by_default = version >= KEEPS_SINCE
    sizes = [next((found.args[0] for found in pool.all("keepalive")), "") for pool in pools]
    has_room = any(size != "0" if size else by_default for size in sizes)
    if sent.connection is None:
        return has_room and by_default and sent.http != "1.0"
    if sent.connection.lower() in ("close", "keep-alive"):
        return has_room and sent.connection.lower() != "close"
    return has_room and (sent.http or ("1.1" if by_default else "1.0")) != "1.0"
