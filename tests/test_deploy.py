"""Deploys; of the real Clojure application, by Leiningen, on JVMs where that makes a difference."""

from __future__ import annotations

import os
import resource
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

import pytest
from clojure_repository import ClojureRepository
from clojure_repository import ClojureRepository as Tags
from conftest import Clojure, NewHost
from little_host import LittleHost, wait_for
from programs import require_program
from system import lives
from zip_application import zip_jar

from deploy_clojars import config
from deploy_clojars.config import PRIMARY
from deploy_clojars.host.host import Host
from deploy_clojars.machine import signals

FIRST, SECOND = Tags.FIRST, Tags.SECOND


@dataclass(frozen=True)
class Site:
    """What users get, and from which processes."""

    link: str | None
    versions: tuple[str | None, str | None]
    primary: int | None


def site(host: LittleHost) -> Site:
    """The site as it is now."""
    return Site(host.current, host.versions, host.pid("primary"))


def test_the_first_deploy_ever_tests_builds_and_promotes(new_light_host: NewHost) -> None:
    host = new_light_host()
    with host.typing(FIRST) as terminal:
        terminal.asked()
        assert host.version("primary") is None
        assert host.version("backup") == FIRST
        terminal.types("yes")
        shown = terminal.ends(0)
    assert config.load(host.config).build.test in shown
    assert "mkdir target && cp " in shown
    assert host.versions == (FIRST, FIRST)
    assert host.current == f"clojars-web-{FIRST}-standalone.jar"
    status = host.status
    assert status["ok"]
    assert (status["approved"], status["previous"], status["next"]) == (FIRST, None, None)
    assert host.processes_of_runs() == []
    assert list((host.deploy / "checkouts").iterdir()) == []


def test_the_first_deploy_ever_declined_leaves_nothing(new_light_host: NewHost) -> None:
    host = new_light_host()
    host.have(FIRST)
    with host.typing(FIRST) as terminal:
        terminal.asked()
        terminal.types("no")
        terminal.ends(7)
    assert site(host) == Site(None, (None, None), None)
    assert host.status["approved"] is None


@pytest.mark.parametrize("by_hand", [FIRST, SECOND])
def test_before_any_release_was_approved_drift_is_refused_with_the_command_that_ends_it(
    new_light_host: NewHost, by_hand: str
) -> None:
    host = new_light_host()
    with host.typing(FIRST) as terminal:
        terminal.asked()
        terminal.types("no")
        terminal.ends(7)
    host.have(SECOND)
    host.link.symlink_to(f"clojars-web-{by_hand}-standalone.jar")
    assert host.status["next"] == f"deploy-clojars rollback {by_hand}"
    for tag in (FIRST, SECOND):
        result = host.run(tag, "--yes")
        assert result.returncode == 4
        assert f"first: deploy-clojars rollback {by_hand}\n" in result.stderr
    host.done("rollback", by_hand, "--yes")
    host.done(Tags.THIRD, "--yes")
    assert host.status["ok"]


def test_a_deploy_goes_from_the_old_release_to_the_new_one(
    host: LittleHost, clojure: Clojure
) -> None:
    before = site(host)
    with host.typing(SECOND) as terminal:
        terminal.asked()
        # The last look at the real thing: the backup has it, the users do not.
        assert host.versions == (FIRST, SECOND)
        assert host.pid("primary") == before.primary
        terminal.types("Y")
        shown = terminal.ends(0)
    assert "lein test" in shown
    assert "lein uberjar" in shown
    assert f"{FIRST} -> {SECOND}, 1 commit" in shown
    assert "users are logged out" in shown
    assert f"http://127.0.0.1:{host.ports[1]}/" in shown
    assert host.versions == (SECOND, SECOND)
    status = host.status
    assert status["ok"]
    assert (status["approved"], status["previous"]) == (SECOND, FIRST)
    installed = next(event for event in host.events if event["event"] == "installed")
    assert installed["commit"] == clojure.repository.commit(SECOND)
    [log] = (host.deploy / "logs").iterdir()
    assert "Ran 9 tests" in log.read_text()
    assert stat.S_IMODE(log.stat().st_mode) == 0o640


def test_yes_beforehand_needs_no_terminal(light_host: LittleHost) -> None:
    host = light_host
    host.have(SECOND)
    result = host.run(SECOND, "--yes")
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert host.versions == (SECOND, SECOND)


def test_deploying_what_is_in_production_does_nothing(light_host: LittleHost) -> None:
    host = light_host
    before = (site(host), host.pid("backup"))
    with host.typing("deploy", FIRST) as terminal:
        shown = terminal.ends(0)
    assert "nothing to do" in shown
    assert (site(host), host.pid("backup")) == before


@pytest.mark.parametrize(
    ("tag", "said", "printed"),
    [
        (
            Tags.FAILING_TESTS,
            "the tests (lein test) failed",
            ["FAIL in (front-page-names-the-version)", "1 failures, 0 errors."],
        ),
        # Its tests pass: else nothing would be built.
        (Tags.COMPILE_ERROR, "the build (lein uberjar) failed", ["resolve symbol: start-wbe"]),
    ],
)
def test_a_tag_that_is_not_built_changes_nothing(
    host: LittleHost, tag: str, said: str, printed: list[str]
) -> None:
    before = (site(host), host.pid("backup"))
    result = host.run(tag, "--yes")
    assert result.returncode == 5
    assert said in result.stderr
    assert all(words in result.stderr for words in printed), result.stderr
    assert "nothing that runs was changed" in result.stderr
    assert (site(host), host.pid("backup")) == before
    # Kept for a look.
    [checkout] = (host.deploy / "checkouts").iterdir()
    assert (checkout / ".git").is_dir()
    assert not list(checkout.glob("target/**/*.jar"))
    assert host.processes_of_runs() == []


@pytest.mark.parametrize(
    ("tag", "settle"),
    [
        (Tags.THROWS_AT_START, 0.3),
        # It serves for three seconds, and its JVM takes a while to end: it must be seen to die, not
        # just to be up once.
        (Tags.DIES, 8),
    ],
)
def test_a_tag_that_does_not_stay_up_is_reverted(
    host: LittleHost, clojure: Clojure, tag: str, settle: float
) -> None:
    host.write_config(health=f"settle = {settle}")
    host.have(tag, clojure.jar(tag))
    before = site(host)
    result = host.run(tag, "--yes")
    assert result.returncode == 6
    assert "keeps dying" in result.stderr or "it has ended" in result.stderr
    assert site(host) == before
    assert host.status["ok"]


def test_an_instance_settles_no_longer_than_it_must(
    light_host: LittleHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    light_host.write_config(health="settle = 0.4\ninterval = 60")
    pauses: list[float] = []
    monkeypatch.setattr(signals, "wait", lambda seconds: pauses.append(seconds))
    host = Host(config.load(light_host.config))
    host.instances[PRIMARY].wait_until_healthy(FIRST)
    assert 0 < max(pauses) <= 0.4


def test_an_old_process_that_kept_the_port_is_not_taken_for_the_new_release(
    host: LittleHost, clojure: Clojure
) -> None:
    host.have(Tags.CANNOT_BIND, clojure.jar(Tags.CANNOT_BIND))
    # The JVM must be up by then, and the revert has to come up, too.
    host.write_config(health="timeout = 40\ninterval = 0.5")
    before = site(host)
    # A JVM that Upstart has lost, as with `su … | cronolog`: it answers 200 on the backup's port.
    host.control("stop", host.backup)
    with host.lost_jvm(FIRST) as lost, host.typing(Tags.CANNOT_BIND) as terminal:
        terminal.sees("does not own port")
        terminal.sees(f"to end it: kill {lost.pid}")
        assert host.version("backup") == FIRST
        lost.kill()
        terminal.ends(6)
    assert site(host) == before
    assert host.status["ok"]


def test_a_project_version_that_differs_from_the_tag_is_a_warning(
    light_host: LittleHost, repository: Tags, tmp_path: Path
) -> None:
    host = light_host
    jar = zip_jar("0.3.4", repository.commit(Tags.OTHER_VERSION), tmp_path)
    host.write_config(build=f'test = "true"\nuberjar = "mkdir target && cp {jar} target"')
    result = host.done(Tags.OTHER_VERSION, "--yes")
    assert f"warning: the jar says 0.3.4, the tag is {Tags.OTHER_VERSION}" in result.stderr
    assert host.current == f"clojars-web-{Tags.OTHER_VERSION}-standalone.jar"
    assert host.status["ok"]


def test_a_tag_without_project_clj_names_the_keys_to_set(
    light_host: LittleHost, repository: ClojureRepository
) -> None:
    require_program("lein", "java")
    host = light_host
    host.write_config(build='test = "lein test"\nuberjar = "lein uberjar"')
    repository.git("checkout", "--quiet", "--detach", FIRST)
    repository.git("rm", "--quiet", "project.clj")
    repository.git("commit", "--quiet", "-m", "Build with make")
    repository.git("tag", "400")
    result = host.run("400", "--yes")
    assert result.returncode == 5
    for key in ("build.test", "build.uberjar", "build.jar"):
        assert key in result.stderr


def test_a_release_of_another_commit_is_never_rebuilt_in_place(
    light_host: LittleHost, repository: ClojureRepository
) -> None:
    host = light_host
    host.have(SECOND, host.jar(FIRST))
    path = host.releases / f"clojars-web-{SECOND}-standalone.jar"
    content = path.read_bytes()
    before = site(host)
    result = host.run(SECOND, "--yes")
    assert result.returncode == 1
    for tag in (FIRST, SECOND):
        assert repository.commit(tag)[:10] in result.stderr
    assert "no instance runs the release" in result.stderr
    assert path.read_bytes() == content
    assert site(host) == before


def test_a_new_release_starts_as_the_one_that_is_there_after_a_no(light_host: LittleHost) -> None:
    host = light_host
    host.have(SECOND)
    with host.typing(SECOND) as terminal:
        terminal.asked()
        terminal.types("no")
        terminal.ends(7)
    with host.typing(SECOND) as terminal:
        terminal.asked()
        assert "lein" not in terminal.shown
        assert f"reuse      clojars-web-{SECOND}-standalone.jar" in terminal.shown
        terminal.types("no")
        terminal.ends(7)


def test_a_host_with_an_absolute_link_is_adopted(light_host: LittleHost) -> None:
    host = light_host
    absolute = host.releases / f"clojars-web-{FIRST}-standalone.jar"
    host.link.unlink()
    host.link.symlink_to(absolute)
    host.have(SECOND)
    assert host.status["current"] == FIRST
    host.done(SECOND, "--yes")
    assert host.current == f"clojars-web-{SECOND}-standalone.jar"


def test_the_build_does_not_get_the_production_environment(
    new_host: NewHost, clojure: Clojure, tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    host = new_host(build=f'test = "env > {seen}; cat /proc/self/oom_score_adj >> {seen}; false"')
    host.environment.update(DATABASE_URL="live", MAIL_URL="live", KEY_FILE="live", CLASSPATH="live")
    assert host.run(FIRST, "--yes").returncode == 5
    text = seen.read_text()
    assert "=live" not in text
    assert "DEPLOY_CLOJARS_RUN=" in text
    assert "LEIN_HOME=" in text
    assert text.splitlines()[-1] == "800"


@pytest.mark.parametrize("disguise", ["", "env -i "])
def test_a_daemon_that_the_tests_left_behind_is_ended(
    new_light_host: NewHost, tmp_path: Path, disguise: str
) -> None:
    pid_file = tmp_path / "pid"
    daemon = f"{disguise}setsid sh -c 'echo $$ > {pid_file}; exec sleep 1000'"
    begun = f"until [ -s {pid_file} ]; do sleep 0.01; done"
    host = new_light_host(build=f'test = "{daemon} & {begun}; false"')
    assert host.run(FIRST, "--yes").returncode == 5
    assert not lives(int(pid_file.read_text()))


def test_tests_that_hang_are_ended_in_time(new_light_host: NewHost) -> None:
    # git has as long for the checkout, on a busy machine, too.
    host = new_light_host(build='test = "sleep 1000"\ntimeout = 5')
    result = host.run(FIRST, "--yes")
    assert result.returncode == 5
    assert "took too long: not done within 5 s" in result.stderr
    assert host.processes_of_runs() == []


@pytest.mark.parametrize(
    ("build", "said"),
    [
        ("true", "left no file that matches"),
        ("mkdir -p target; cp {jar} target/a-standalone.jar; cp {jar} target/b-standalone.jar",
         "2 files match"),
        ("mkdir -p target; head -c 300 {jar} > target/a-standalone.jar", "is not a valid jar"),
        ("mkdir -p target; cp {jar} target/a-standalone.jar", "was built from"),
    ],
)  # fmt: skip
def test_a_build_without_its_one_sound_jar_fails(
    new_light_host: NewHost, build: str, said: str
) -> None:
    host = new_light_host()
    command = build.format(jar=host.jar(SECOND))
    host.write_config(build=f'test = "true"\nuberjar = "{command}"')
    result = host.run(FIRST, "--yes")
    assert result.returncode == 5
    assert said in result.stderr
    assert host.current is None


def test_a_full_disk_is_said_before_anything_is_done(
    light_host: LittleHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = light_host
    before = site(host)
    # A release that four copies of do not fit anywhere; sparse, so it takes no room itself.
    huge = host.releases / "clojars-web-9-standalone.jar"
    with huge.open("wb") as file:
        file.truncate(shutil.disk_usage(host.home).total)
    host.link.unlink()
    host.link.symlink_to(huge.name)
    result = host.run(SECOND, "--yes")
    assert result.returncode == 1
    assert "the disk is full" in result.stderr
    assert (host.versions, host.pid("primary")) == (before.versions, before.primary)
    assert not (host.deploy / "mirror.git").exists()


def test_a_second_deploy_meanwhile_is_refused_and_told_whose_the_first_is(
    light_host: LittleHost,
) -> None:
    host = light_host
    host.have(SECOND)
    host.environment["SUDO_USER"] = "alice"
    with host.typing(SECOND) as terminal:
        terminal.asked()
        result = host.run(SECOND, "--yes")
        assert result.returncode == 3
        for word in ("alice", "step ask", f"PID {terminal.pid}", f"kill -INT {terminal.pid}"):
            assert word in result.stderr
        lock = host.status["lock"]
        assert lock["pid"] == terminal.pid
        assert (lock["user"], lock["step"], lock["version"]) == ("alice", "ask", SECOND)
        assert host.status["ok"]  # the primary serves the approved release
        assert host.status["next"] is None
        terminal.types("no")
        terminal.ends(7)
    assert host.status["lock"] is None
    assert {event.get("by") for event in host.events} == {"alice"}


def test_a_build_that_failed_a_fourth_time_keeps_the_last_three(
    new_light_host: NewHost,
) -> None:
    host = new_light_host(build='test = "false"')
    for _ in range(4):
        assert host.run(FIRST, "--yes").returncode == 5
    assert len(list((host.deploy / "checkouts").iterdir())) == 3


def test_a_primary_that_does_not_come_up_leaves_the_backup_serving(light_host: LittleHost) -> None:
    host = light_host
    host.have(SECOND)
    # Read by Upstart when the job is started anew: the primary loses its port to the backup.
    with host.typing(SECOND) as terminal:
        terminal.asked()
        host.control("stop", host.primary)
        port = f"env PORT={host.ports[1]}"
        web, nailgun = host.ports[0], host.ports[2]
        host.upstart.install(
            host.primary, host.job_file(host.primary, web, nailgun, **{r"^env PORT=.*": port})
        )
        terminal.types("yes")
        shown = terminal.ends(8)
    assert f"deploy {SECOND}" in shown
    assert f"rollback {FIRST}" in shown
    assert host.version("primary") is None
    assert host.version("backup") == SECOND
    assert host.current == f"clojars-web-{SECOND}-standalone.jar"
    status = host.status
    assert (status["approved"], status["ok"]) == (FIRST, False)
    assert status["next"].endswith(f"rollback {FIRST}")
    # The backup serves alone: no other tag may restart it.
    refused = host.run(Tags.THIRD, "--yes")
    assert refused.returncode == 4
    assert f"rollback {FIRST}" in refused.stderr
    assert host.version("backup") == SECOND
    # Mended, the same deploy goes on where it stopped; the backup is not touched.
    backup = host.pid("backup")
    wait_for(lambda: host.pid("primary") is None, "the primary is given up")
    host.upstart.install(host.primary, host.job_file(host.primary, web, nailgun))
    host.done(SECOND, "--yes")
    assert host.versions == (SECOND, SECOND)
    assert host.pid("backup") == backup
    assert (host.status["approved"], host.status["previous"]) == (SECOND, FIRST)


def test_a_promotion_that_cannot_be_written_down_is_half_done_and_says_so(
    light_host: LittleHost,
) -> None:
    light_host.have(SECOND)
    with light_host.typing(SECOND) as terminal:
        terminal.asked()
        with light_host.comes_up_late(SECOND, "primary"):
            terminal.types("yes")
            wait_for(
                lambda: any(event["event"] == "no return" for event in light_host.events),
                "the point of no return",
            )
            with (light_host.deploy / "journal.jsonl").open("a") as file:
                file.write("\n" * 100_000)
            resource.prlimit(terminal.pid, resource.RLIMIT_FSIZE, (50_000, 50_000))
        shown = terminal.ends(9)
    assert f"{SECOND} is in production, but that could not be written down" in shown
    assert f"deploy-clojars deploy {SECOND}" in shown
    assert light_host.versions == (SECOND, SECOND)
    light_host.done(SECOND, "--yes")
    assert (light_host.status["ok"], light_host.status["approved"]) == (True, SECOND)


def test_both_down_is_no_obstacle(light_host: LittleHost) -> None:
    host = light_host
    host.have(SECOND)
    host.control("stop", host.primary)
    host.control("stop", host.backup)
    host.done(SECOND, "--yes")
    assert host.versions == (SECOND, SECOND)


def test_force_restarts_the_only_serving_instance_and_says_what_it_costs(
    light_host: LittleHost,
) -> None:
    host = light_host
    host.have(SECOND)
    host.control("stop", host.primary)
    result = host.run(SECOND, "--yes", "--force")
    assert result.returncode == 0, result.stderr
    assert "users get errors until it is up" in result.stderr
    assert host.versions == (SECOND, SECOND)


def test_what_force_costs_is_said_also_if_the_primary_dies_only_during_the_build(
    light_host: LittleHost,
) -> None:
    host = light_host
    tag = "$(cat resources/clojars/version.txt)"
    host.write_config(
        build=f'test = "{host.upstart.bin}/stop {host.primary}"\n'
        f'uberjar = "mkdir target && cp {host.jars}/*-{tag}-* target"'
    )
    result = host.done(SECOND, "--yes", "--force")
    cost = "--force: clojars-backup serves alone and is restarted; users get errors until it is up"
    assert result.stderr.count(cost) == 1
    assert host.versions == (SECOND, SECOND)


def test_the_wrong_user_is_told_the_right_command(light_host: LittleHost) -> None:
    host = light_host
    if os.geteuid() != 0:
        pytest.skip("needs root to give releases/ to somebody else")
    before = site(host)
    os.chown(host.releases, 65534, -1)
    result = host.run(SECOND, "--yes")
    assert result.returncode == 2
    assert f"sudo -iu nobody deploy-clojars -c {host.config} deploy {SECOND}" in result.stderr
    assert site(host) == before
    assert not host.deploy.exists()


def test_no_upstart_is_one_clear_line(new_light_host: NewHost, tmp_path: Path) -> None:
    host = new_light_host(services=f'bin = "{tmp_path / "nowhere"}"')
    result = host.run(FIRST, "--yes")
    assert result.returncode == 4
    assert f"the state of clojars is unknown: {tmp_path / 'nowhere'}/status" in result.stderr
    assert not (host.deploy / "mirror.git").exists()
    assert host.status["instances"]["primary"]["state"] == "unknown"


def test_a_dangling_link_is_refused_with_the_command_that_mends_it(light_host: LittleHost) -> None:
    host = light_host
    host.link.unlink()
    host.link.symlink_to("clojars-web-0.0.9-standalone.jar")
    for words in ((SECOND, "--yes"), ("rollback", FIRST, "--yes")):
        result = host.run(*words)
        assert result.returncode == 4
        assert f"ln -sfn clojars-web-{FIRST}-standalone.jar {host.link}" in result.stderr
    assert os.readlink(host.link) == "clojars-web-0.0.9-standalone.jar"


def test_a_stopped_backup_is_started(light_host: LittleHost) -> None:
    host = light_host
    host.have(SECOND)
    host.control("stop", host.backup)
    wait_for(lambda: host.version("backup") is None, "the backup is down")
    host.done(SECOND, "--yes")
    assert host.versions == (SECOND, SECOND)
