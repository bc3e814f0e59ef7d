"""What `nginx -T` says of the site: where it belongs, whether it is in force, and what it must say."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from front import newer_nginx
from little_host import free_ports, wait_for
from private_machine import with_private_mounts
from programs import require_program

from deploy_clojars.config import Config, parse
from deploy_clojars.host import nginx as front
from deploy_clojars.setup import in_the_way, nginx_conf, validation
from deploy_clojars.setup.files import Values, files, render, values_of
from deploy_clojars.setup.nginx_conf import Configuration

OLD, NEW = (1, 22, 1), (1, 29, 7)
PROJECT = Path(__file__).parents[1]
WRITTEN_OUT = ("    proxy_http_version 1.0;\n", "    proxy_set_header Connection close;\n")
SPARE = {
    "home": "/srv/spare",
    "instances": {
        "primary": {"job": "spare.a", "url": "http://spare.example/",
                    "health": ["http://127.0.0.1:9101/", "tcp://127.0.0.1:9201"]},
        "backup": {"job": "spare-b", "health": ["http://127.0.0.1:9102/", "tcp://127.0.0.1:9202"]},
    },
}  # fmt: skip


@pytest.fixture
def values() -> Values:
    """The values of clojars.org."""
    return values_of(Config())


def dump(**texts: str) -> str:
    """What `nginx -T` prints of these files, the main one first; `_` in a name is a slash."""
    return "".join(
        f"# configuration file /etc/nginx/{name.replace('__', '/')}:\n{text}\n"
        for name, text in texts.items()
    )


def conf_of(site: str, main: str = "http { include sites-enabled/*; }") -> Configuration:
    """A configuration with a site in it."""
    conf = nginx_conf.read(dump(**{"nginx.conf": main, "sites-enabled__clojars": site}))
    assert conf is not None
    return conf


def faults(site: str, values: Values, version: tuple[int, ...], **more: str) -> list[str]:
    """What is wrong with a site."""
    return [each.what for each in nginx_conf.faults(conf_of(site, **more), values, version)]


def without(text: str, *lines: str) -> str:
    """The text without lines that it has."""
    for line in lines:
        assert line in text
        text = text.replace(line, "")
    return text


@pytest.mark.parametrize("version", [OLD, NEW, (1, 31, 5)])
def test_the_site_of_setup_has_no_fault_with_any_nginx(
    values: Values, version: tuple[int, ...]
) -> None:
    site = render("site", values)
    assert faults(site, values, version) == []
    kept = (
        'http { proxy_http_version 1.1; proxy_set_header Connection ""; include sites-enabled/*; }'
    )
    assert faults(site, values, version, main=kept) == []


@pytest.mark.parametrize(("version", "kept"), [(OLD, False), ((1, 29, 6), False), (NEW, True)])
def test_a_site_that_relies_on_what_was_the_default_is_found(
    values: Values, version: tuple[int, ...], kept: bool
) -> None:
    found = faults(without(render("site", values), *WRITTEN_OUT), values, version)
    assert [("keeps connections" in each) for each in found] == [True] * kept


KEEPING = {
    "in the upstream, as the manual says": (
        "keepalive 16;", 'proxy_http_version 1.1; proxy_set_header Connection "";', "", True, True),
    "room for them, and nothing more": ("keepalive 16;", "", "", False, True),
    "room for none": ("keepalive 0;", "", "", False, False),
    "closed all the same": (
        "keepalive 16;", "proxy_http_version 1.1; proxy_set_header connection Close;", "", False, False),
    "HTTP/1.0 alone": ("", "proxy_http_version 1.0;", "", False, False),
    "a header of the location's hides the server's": (
        "", "proxy_set_header Connection close;", "proxy_set_header X-A b;", False, True),
    "the location says it, too": (
        "", "proxy_set_header Connection close;",
        "proxy_set_header X-A b; proxy_set_header Connection close;", False, False),
    "for web sockets": (
        "keepalive 16;", "proxy_http_version 1.1; proxy_set_header Connection $upgrade;", "", True, True),
}  # fmt: skip


@pytest.mark.parametrize(
    ("pool", "server", "location", "old", "new"), KEEPING.values(), ids=KEEPING
)
def test_a_site_of_somebody_elses_that_keeps_connections_is_found(
    values: Values, pool: str, server: str, location: str, old: bool, new: bool
) -> None:
    site = f"""
    upstream app {{ server 127.0.0.1:8001; server localhost:8002 backup; {pool} }}
    server {{
        listen 443 ssl; server_name clojars.org; {server}
        if (-f {values.flag}) {{ set $x y; }}
        location / {{ {location} proxy_pass http://app; }}
    }}"""
    for version, kept in ((OLD, old), (NEW, new)):
        assert bool(faults(site, values, version)) is kept, version


def test_a_primary_that_nginx_gives_up_is_found_where_the_backup_runs_only_while_deploying(
    values: Values,
) -> None:
    resting = values_of(parse({"instances": {"backup": {"only_while_deploying": True}}}, "test"))
    assert faults(render("site", resting), resting, OLD) == []
    site = render("site", values)
    [found] = nginx_conf.faults(conf_of(site), resting, OLD)
    assert found.what == (
        "/etc/nginx/sites-enabled/clojars: nginx stops using clojars for a while after an error, and "
        "between runs no other instance answers"
    )
    # setup would leave the file as it is, so what helps is what is typed.
    assert found.by_hand == (
        "give `server 127.0.0.1:8001` in that file max_fails=0 and no fail_timeout, and so where "
        "nginx serves the nailgun port"
    )
    assert faults(site.replace("max_fails=1 fail_timeout=2s", "max_fails=0"), resting, OLD) == []


def test_a_site_that_looks_at_another_flag_is_found_where_the_probe_looks_at_the_right_one(
    values: Values,
) -> None:
    head, server, rest = render("site", values).partition("server {\n    listen 80;")
    other, probe, end = rest.partition("# For deploy-clojars alone")
    other = other.replace(values.flag, "/var/run/old-flag")
    [found] = faults(f"{head}{server}{other}{probe}{end}", values, OLD)
    assert found.startswith("/etc/nginx/sites-enabled/clojars: nginx looks at /var/run/old-flag")
    assert found.endswith(" instead of /run/clojars/drain-primary")
    none = other.replace("if (-f /var/run/old-flag)", "if ($host = x)")
    [found] = faults(f"{head}{server}{none}{probe}{end}", values, OLD)
    assert "nginx looks at no drain flag" in found


@pytest.mark.parametrize(
    "site",
    [
        "",
        "server { listen 80; location / { proxy_pass http://127.0.0.1:8001; } }",
        "upstream app { server 127.0.0.1:8001; }\nserver { location / { proxy_pass http://app; } }",
        "upstream app { server 127.0.0.1:8001; server 127.0.0.1:8002; }",
    ],
)
def test_an_nginx_without_a_site_for_both_instances_is_found(values: Values, site: str) -> None:
    assert faults(site, values, OLD) == ["nginx has no site that sends requests to both instances"]


def test_another_language_and_quoted_braces_are_no_blocks(values: Values) -> None:
    main = """
    http {
        init_by_lua_block { local t = { a = "x" } if t then ngx.log(1, 'it') end }
        log_format a '{"at": "$time"} # no comment;'; # a comment; {
        map $uri ${x}y { "~^/{2}" 1; }
        include "sites-enabled/*";
    }"""
    conf = conf_of(render("site", values), main)
    assert [each.name for each in conf.http.block[:5]] == [
        "init_by_lua_block", "log_format", "map", "include", "upstream"
    ]  # fmt: skip
    assert list(nginx_conf.faults(conf, values, NEW)) == []


LAYOUTS = {
    "Debian": (
        "include modules-enabled/*.conf; http { include conf.d/*.conf; include sites-enabled/*; }",
        "/etc/nginx/sites-available/clojars", "/etc/nginx/sites-enabled/clojars",
        "/etc/nginx/modules-enabled/90-clojars-nailgun.conf", True),
    "nginx.org": (
        "http { include mime.types; include /etc/nginx/conf.d/*.conf; }",
        "/etc/nginx/conf.d/clojars.conf", None,
        "/etc/nginx/modules-enabled/90-clojars-nailgun.conf", False),
    "RHEL": (
        "include /usr/share/nginx/modules/*.conf; http { include /etc/nginx/conf.d/*.conf; }",
        "/etc/nginx/conf.d/clojars.conf", None,
        "/etc/nginx/modules-enabled/90-clojars-nailgun.conf", False),
    "Alpine": (
        "include /etc/nginx/modules/*.conf; http { include /etc/nginx/http.d/*.conf; }",
        "/etc/nginx/http.d/clojars.conf", None,
        "/etc/nginx/modules/90-clojars-nailgun.conf", True),
    "one by hand": (
        "http { include sites/*; server { listen 81; } }",
        "/etc/nginx/sites-available/clojars", "/etc/nginx/sites/clojars",
        "/etc/nginx/modules-enabled/90-clojars-nailgun.conf", False),
    "no directory": (
        "http { include mime.types; }",
        "/etc/nginx/sites-available/clojars", "/etc/nginx/sites-enabled/clojars",
        "/etc/nginx/modules-enabled/90-clojars-nailgun.conf", False),
}  # fmt: skip


@pytest.mark.parametrize(
    ("main", "file", "link", "nailgun", "place"), LAYOUTS.values(), ids=LAYOUTS
)
def test_the_files_go_where_nginx_reads_them(
    values: Values, main: str, file: str, link: str | None, nailgun: str, place: bool
) -> None:
    conf = nginx_conf.read(dump(**{"nginx.conf": main}))
    assert conf is not None
    found = nginx_conf.located(values, conf)
    assert (found.site_file, found.site_link, found.nailgun_file) == (file, link, nailgun)
    assert found.has_place_for_stream is place
    assert not nginx_conf.reads(conf, found)
    there = dump(**{"nginx.conf": main, (link or file).removeprefix("/etc/nginx/"): ""})
    again = nginx_conf.read(there)
    assert again is not None and nginx_conf.reads(again, found)
    assert {file, nailgun} <= {each.path for each in files(found)}


def test_a_front_of_another_name_has_its_own_directory(values: Values) -> None:
    text = "# configuration file /etc/angie/angie.conf:\nhttp { include http.d/*.conf; }\n"
    found = nginx_conf.located(values, nginx_conf.read(text))
    assert (found.site_file, found.site_link) == ("/etc/angie/http.d/clojars.conf", None)
    assert nginx_conf.located(values, nginx_conf.read("")) == values


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("Angie version: Angie/1.4.0\nconfigure arguments: --with-stream", (1, 23, 4)),
        ("nginx version: openresty/1.25.3.1\nconfigure arguments: --with-stream", (1, 25, 3, 1)),
        ("freenginx version: freenginx/1.29.0\nconfigure arguments: --with-stream", (1, 29, 0)),
        ("Tengine version: Tengine/3.1.0\nnginx version: nginx/1.24.0\n--with-stream", (1, 24, 0)),
    ],
)
def test_what_is_made_of_nginx_counts_as_what_it_is_made_of(
    said: str, version: tuple[int, ...]
) -> None:
    found = validation.parse_nginx("/usr/sbin/angie", said, lambda _: False)
    assert (found.version, found.has_stream, found.service) == (version, True, "angie")


@pytest.mark.parametrize("name", ["angie", "openresty"])
def test_a_front_of_another_name_is_found_by_its_program_and_its_processes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_program("nginx")
    usual = validation.nginx()
    assert usual is not None
    (tmp_path / "bin").mkdir()
    program = shutil.copy(usual.program, tmp_path / "bin" / name)
    [port] = free_ports(1)
    main = tmp_path / "main.conf"
    main.write_text(
        f"daemon off; pid {tmp_path}/pid; error_log stderr; events {{ }}\n"
        f"http {{ access_log off; server {{ listen 127.0.0.1:{port}; }} }}\n"
    )
    assert name not in front.names_running()
    argv = [program, "-p", str(tmp_path), "-c", str(main)]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: name in front.names_running(), "it runs")
            assert front.own_processes().uids
            monkeypatch.setenv("PATH", f"{tmp_path}/bin")
            found = validation.nginx()
            assert found is not None and found.program == str(program)
            assert (found.service, found.version) == (name, usual.version)
        finally:
            process.terminate()


def test_a_second_site_has_files_of_its_own() -> None:
    spare = values_of(parse(SPARE, "test"))
    both = [{each.path for each in files(each)} for each in (values_of(Config()), spare)]
    assert both[0] & both[1] == set()
    assert "/etc/sudoers.d/deploy-spare_a" in both[1]  # sudo skips a name with a dot in it
    assert "/etc/sudoers.d/deploy-clojars" in both[0]


def test_two_sites_cannot_have_one_flag_or_one_probe(values: Values) -> None:
    conf = conf_of(render("site", values))
    spare = values_of(parse(SPARE, "test"))
    file = "/etc/nginx/sites-enabled/clojars"
    assert set(nginx_conf.taken_by_others(conf, spare)) == {
        ("drain.flag", file),
        ("drain.probe", file),
    }
    assert list(nginx_conf.taken_by_others(conf, values)) == []
    own = dataclasses.replace(spare, flag="/run/spare/drain", probe_listen="127.0.0.1:8098")
    assert list(nginx_conf.taken_by_others(conf, own)) == []


def test_another_site_of_the_name_is_found_in_whatever_file_nginx_reads(
    values: Values, tmp_path: Path
) -> None:
    main, other = tmp_path / "angie.conf", tmp_path / "old" / "vhost"
    other.parent.mkdir()
    main.write_text("")
    other.write_text("server { listen 80; server_name clojars.org; }")
    conf = Configuration((str(main), str(other)), ())
    found = list(
        in_the_way.other_sites(dataclasses.replace(values, front="angie"), Path("/"), conf)
    )
    assert [(each.what.split()[0], each.remedy) for each in found] == [
        (str(other), f"remove that server from {other} && service angie reload")
    ]


@pytest.mark.parametrize("newer", [False, True])
def test_real_nginx_is_read(values: Values, tmp_path: Path, newer: bool) -> None:
    require_program("nginx")
    nginx = validation.nginx_at(newer_nginx()) if newer else validation.nginx()
    assert nginx is not None
    (tmp_path / "sites").mkdir()
    ports = free_ports(2)
    here = dataclasses.replace(
        values, listen=f"127.0.0.1:{ports[0]}", probe_listen=f"127.0.0.1:{ports[1]}"
    )
    (tmp_path / "sites/clojars").write_text(without(render("site", here), *WRITTEN_OUT))
    main = tmp_path / "nginx.conf"
    main.write_text(
        f"pid {tmp_path}/pid; error_log stderr; events {{ }}\n"
        f"http {{ access_log off; include sites/*; }}\n"
    )
    said = subprocess.run(
        [nginx.program, "-T", "-p", str(tmp_path), "-c", str(main)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    conf = nginx_conf.read(said)
    assert conf is not None
    assert conf.files == (str(main), f"{tmp_path}/sites/clojars")
    found = [each.what for each in nginx_conf.faults(conf, here, nginx.version)]
    assert bool(found) is newer
    assert nginx_conf.located(here, conf).site_link == f"{tmp_path}/sites/clojars"


def test_a_large_configuration_is_read_at_once(values: Values) -> None:
    many = "".join(f"server {{ listen {n}; location / {{ return 200; }} }}\n" for n in range(5000))
    started = time.process_time()  # a busy machine takes longer by the clock
    conf_of(render("site", values) + many)
    assert time.process_time() - started < 10


def test_setup_and_check_on_a_host_of_nginx_orgs_package(tmp_path: Path) -> None:
    with_private_mounts(PROJECT / "tests/private/other_nginx.py", tmp_path, "--net")
