"""`deploy-clojars setup`: the user, the directories and the files, on this host or below a directory.

What is there is never replaced: a file that differs stays, the new one is put beside it.
"""

from __future__ import annotations

import dataclasses
import difflib
import grp
import os
import pwd
import shlex
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deploy_clojars.config import Config
from deploy_clojars.errors import DeployError, NotReady, UsageError
from deploy_clojars.host.services.upstart import Upstart
from deploy_clojars.machine.shell import TookTooLong, capture, root_program
from deploy_clojars.setup import in_the_way, nginx_conf, validation
from deploy_clojars.setup.files import (
    HALF_CLOSED,
    File,
    Nailgun,
    Values,
    files,
    is_for_other_nailgun,
    refuse_collisions,
    values_of,
)
from deploy_clojars.setup.journal_access import JOURNAL_GROUP, reads_the_journal
from deploy_clojars.setup.nginx_conf import Configuration

Say = Callable[[str], None]

UNITS = "/etc/systemd/system/"
UNITS_OF_PACKAGES = ("/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")  # fmt: skip

PROGRAM_SECONDS = 30.0  # for useradd and the like


@dataclass(frozen=True)
class Directory:
    """One directory of the host. `open_to` are permissions that it must have at least."""

    path: str
    mode: int
    for_user: bool
    open_to: int = 0


@dataclass(frozen=True)
class Planned:
    """A file, where it goes, and what is there now.

    `beside` is where the new one goes if another is there; what reads the directory ignores it.
    """

    file: File
    path: Path
    found: Literal["absent", "same", "kept", "differs"]
    there: bytes
    beside: Path

    @property
    def diff(self) -> list[str]:
        """What the new one would change."""
        return list(
            difflib.unified_diff(
                self.there.decode("utf-8", "replace").splitlines(),
                self.file.text.splitlines(),
                str(self.path),
                str(self.beside),
                lineterm="",
            )
        )


def setup(
    config: Config,
    words: tuple[str, ...],
    say: Say,
    *,
    root: Path | None = None,
    user: str | None = None,
    nailgun: Nailgun | None = None,
    dry_run: bool = False,
    quiet: bool = False,
) -> None:
    """Makes this host, or what is below `root`, ready for the first deploy.

    `say` gets a line for each thing that is done or found; if `quiet`, for what needs a person.
    Raises UsageError (2), NotReady (4) for files that sudo or nginx do not accept, and
    DeployError (1) if something there differs.
    """
    of_supervisord = config.services.chosen == "supervisor"
    if root is None and (of_supervisord or config.services.scope == "user"):
        raise UsageError(
            "setup creates a host whose instances systemd or Upstart runs as root, but the "
            "configuration says otherwise: nothing was changed",
            remedy="--root DIR writes the files below a directory, to look at",
        )
    if root is None and os.geteuid() != 0 and not dry_run:
        again = shlex.join(["sudo", *words, "setup"])
        raise UsageError("only root can run setup, which changes /etc", remedy=again)
    os.umask(0o022)  # nginx and the jobs must get at what is made on the way, too
    values = values_of(config, words, user)
    refuse_collisions(values)
    if nailgun == "balance" and values.manager == "systemd":
        raise UsageError(
            "--nailgun balance: only for Upstart, where nginx may be too old to serve the port",
            remedy=f"nginx does: apt-get install libnginx-mod-stream\nor: {values.without_stream}",
        )
    if not values.has_nailgun:
        if nailgun not in (None, "none"):
            raise UsageError(f"--nailgun {nailgun}: `health` of the instances has no tcp:// URL")
        nailgun = "none"
    if root is None:
        values = with_real_group(values)
    nginx = validation.nginx()
    if root is None and os.geteuid() == 0:
        values, conf = validation.located(values, nginx)
        _refuse_what_another_site_has(values, conf)
    by_nginx = nginx is None or (nginx.has_stream and values.has_place_for_stream)
    nailgun = (
        nailgun
        or in_the_way.nailgun_there(values, root or Path("/"))
        or ("nginx" if by_nginx or values.manager == "systemd" else "balance")
    )
    wanted = [
        file
        for file in files(values, sudo=config.services.sudo)
        if not is_for_other_nailgun(file, values, nailgun)
    ]
    try:
        planned = [_planned(file, root) for file in wanted]
        if root is None and os.geteuid() == 0:
            _refuse_what_is_refused_already(nginx)
        validation.of_sudoers(wanted, say, needed=root is None)
        validation.of_units(wanted, say)
        validation.of_nginx(values, nailgun, nginx, say)
        work = _Work(values, say, root, dry_run, quiet)
        work.make_user()
        work.let_user_read_journal()
        for directory in directories(values):
            work.make_directory(directory)
        for each in planned:
            work.make_file(each)
        _, conf = validation.located(values, nginx) if work.on_this_host else (values, None)
        work.find_what_is_in_the_way(nailgun, conf)
        if root is None and not dry_run:
            work.refuse_what_the_whole_host_refuses(nginx)
            work.have_manager_read(config, wanted)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise DeployError(f"{where}{error.strerror}") from None
    if of_supervisord:
        say("supervisord runs the jobs: no job files and no sudoers file")
    for obstacle in in_the_way.other_tools(placed(values.home, root)):
        say(f"next: {obstacle.remedy}  # {obstacle.what}")
    if root is None and not quiet:
        _say_what_is_left(words, values, nailgun, say)
    if work.attention and not dry_run:
        raise DeployError(
            f"differs from the configuration; left unchanged: {', '.join(work.attention)}",
            remedy="see the differences above, and make by hand the changes you want",
        )


def with_real_group(values: Values) -> Values:
    """The group is named after the user only if useradd makes both."""
    try:
        group = grp.getgrgid(pwd.getpwnam(values.user).pw_gid).gr_name
    except KeyError:
        return values
    return dataclasses.replace(values, group=group)


def _refuse_what_another_site_has(values: Values, conf: Configuration | None) -> None:
    """Raises UsageError (2): both would be drained at once, or one probe would answer for the other."""
    for key, file in nginx_conf.taken_by_others(conf, values) if conf else ():
        raise UsageError(
            f"{key}: another site has the same one: {file}; nothing was changed",
            remedy=f"set another {key} in the configuration of this site",
        )


def _refuse_what_is_refused_already(nginx: validation.InstalledNginx | None) -> None:
    """Raises NotReady (4): new faults could not be told from the old ones."""
    verdict = validation.of_whole_host(nginx)
    if verdict.refused_by is not None:
        raise NotReady(
            f"{verdict.refused_by} already rejects its configuration; nothing was changed",
            detail=verdict.said,
            remedy="fix that first",
        )


def directories(values: Values) -> list[Directory]:
    """What the jobs, nginx and the tool need."""
    home = values.home
    return [
        # nginx looks through it, at /repo and at nothing else.
        Directory(home, 0o711, for_user=True, open_to=0o011),
        Directory(f"{home}/releases", 0o755, for_user=True),
        Directory(f"{home}/repo", 0o755, for_user=True),
        # After a boot the job or systemd-tmpfiles creates it again.
        Directory(values.flag_directory, 0o755, for_user=True, open_to=0o011),
    ]


def _planned(file: File, root: Path | None) -> Planned:
    path = placed(file.path, root)
    if root is not None and path.is_symlink():
        _refuse_to_leave(root, path)
    if file.once and path.exists():
        return Planned(file, path, "kept", b"", path)  # it may have passwords
    wanted = file.text.encode()
    beside = _beside(path, wanted)
    if file.path.startswith(UNITS) and not path.exists():
        # A package's unit, which one in /etc would override.
        places = (placed(f"{each}/{path.name}", root) for each in UNITS_OF_PACKAGES)
        path = next((each for each in places if each.exists()), path)
    try:
        there = path.read_bytes()
    except FileNotFoundError:
        if path.is_symlink():
            raise DeployError(f"{path} is a link that leads nowhere") from None
        return Planned(file, path, "absent", b"", path)
    return Planned(file, path, "same" if there == wanted else "differs", there, beside)


def _beside(path: Path, wanted: bytes) -> Path:
    """The first of `.new`, `.new.2`, … that is free or is that file; an earlier one may be edited."""
    number = 1
    while True:
        beside = path.with_name(f"{path.name}.new" + (f".{number}" if number > 1 else ""))
        is_plain = beside.is_file() and not beside.is_symlink()
        if not os.path.lexists(beside) or (is_plain and beside.read_bytes() == wanted):
            return beside
        number += 1


def placed(path: str, root: Path | None) -> Path:
    """Where a path of the host is, given the directory that stands for /.

    Raises UsageError (2) if a link below `root` leads outside it.
    """
    if root is None:
        return Path(path)
    there = root / path.lstrip("/")
    _refuse_to_leave(root, there.parent)
    return there


def _refuse_to_leave(root: Path, path: Path) -> None:
    real, inside = os.path.realpath(path), os.path.realpath(root)
    if os.path.commonpath([real, inside]) != inside:
        raise UsageError(f"{path} leads outside {root}, to {real}")


class _Work:
    """What is done, one thing after the other. `attention` names what differs and stays."""

    def __init__(
        self, values: Values, say: Say, root: Path | None, dry_run: bool, quiet: bool
    ) -> None:
        self._values = values
        self._say = say
        self._quiet = quiet
        self._root = root
        self._dry_run = dry_run
        self._made: list[Path] = []
        self.attention: list[str] = []

    def make_user(self) -> None:
        """The production user, unless it is there. Raises NotReady (4)."""
        user, home = self._values.user, self._values.home
        if self._root is not None:
            self._note(f"user {user}: not made, and no owner set, below {self._root}")
            return
        try:
            there = pwd.getpwnam(user).pw_dir
        except KeyError:
            if not self._dry_run:
                _run(["useradd", "--user-group", "--create-home", "--home-dir", home,
                      "--shell", "/bin/bash", user])  # fmt: skip
            self._made_it(f"user {user}")
            return
        if os.path.normpath(there) != home:
            raise NotReady(
                f"the home of {user} is {there}, and the configuration says {home}",
                remedy="set `home` in the configuration, or name another user with --user",
            )
        self._note(f"same      user {user}")

    def let_user_read_journal(self) -> None:
        """Makes the user a member of the group that may read systemd's journal, where instances log."""
        user = self._values.user
        if self._values.manager != "systemd" or self._root is not None:
            return
        if reads_the_journal(user):
            self._note(f"same      user {user} reads the journal")
            return
        if not self._dry_run:
            _run(["usermod", "--append", "--groups", JOURNAL_GROUP, user])
        self._made_it(f"user {user} a member of {JOURNAL_GROUP}, to read the instances' logs")

    def make_directory(self, directory: Directory) -> None:
        """The directory with its owner and mode; one that is there keeps both but for `open_to`."""
        path = placed(directory.path, self._root)
        if not path.is_dir():
            if not self._dry_run:
                path.mkdir(parents=True)
                path.chmod(directory.mode)
                self._give(path, directory.for_user, whole=True)
            self._made_it(f"{path}/")
            return
        found = path.stat()
        mode = stat.S_IMODE(found.st_mode)
        if mode & directory.open_to != directory.open_to:
            if not self._dry_run:
                path.chmod(mode | directory.open_to)
            self._note(f"mode      {path}/ {mode:04o} -> {mode | directory.open_to:04o}")
        owner = self._uid if directory.for_user else 0
        if owner is not None and found.st_uid != owner:
            self._say(f"OWNER     {path}/ does not belong to {self._values.user}")
            self._say(f"          {shlex.join(['chown', self._values.user, str(path)])}")
            self.attention.append(f"{path}/")
        else:
            self._note(f"same      {path}/")

    def make_file(self, planned: Planned) -> None:
        """The file, or the new one beside what is there and differs."""
        path, file = planned.path, planned.file
        match planned.found:
            case "absent":
                if not self._dry_run:
                    self._write(file, path)
                self._made_it(str(path))
            case "differs":
                self._say(f"DIFFERS   {path} was left unchanged; the new one: {planned.beside}")
                for line in planned.diff:
                    self._say(f"  | {line}")
                self.attention.append(str(path))
                if not self._dry_run and not planned.beside.exists():
                    self._write(file, planned.beside)
            case found:
                self._note(f"{found:<9} {path}")
        if file.link is not None:
            self._make_link(placed(file.link, self._root), file.path)

    def refuse_what_the_whole_host_refuses(self, nginx: validation.InstalledNginx | None) -> None:
        """Takes back what was made if sudo or nginx refuse it beside the rest of the host.

        Raises NotReady (4).
        """
        if not self._made:
            return
        verdict = validation.of_whole_host(nginx)
        if verdict.refused_by is not None:
            for path in reversed(self._made):
                path.unlink()
            raise NotReady(
                "the files were taken back: together with what else is on this host "
                f"{verdict.refused_by} refuses them",
                detail=verdict.said,
                remedy=validation.remedy_for(verdict.said, self._values),
            )

    def have_manager_read(self, config: Config, wanted: Sequence[File]) -> None:
        """Makes sure that the service manager knows the jobs, however their files came there."""
        if self._values.manager == "systemd":
            self._have_systemd_read(config, wanted)
        else:
            self._have_upstart_read(config, wanted)

    def _have_systemd_read(self, config: Config, wanted: Iterable[File]) -> None:
        """Reads the units again, enables them, and makes the flag's directory as after a boot."""
        systemctl = f"{config.services.programs}/systemctl"
        _run([systemctl, "daemon-reload"])
        # One that runs only while deploying must not start at boot.
        only_while_deploying = config.instances.backup.only_while_deploying
        rests = f"{self._values.backup}.service" if only_while_deploying else ""
        for file in wanted:
            unit = Path(file.path).name
            if unit.endswith(".service"):
                verb, not_so = ("disable", "would") if unit == rests else ("enable", "would not")
                try:
                    _run([systemctl, verb, "--quiet", unit])
                except NotReady as error:
                    self._say(f"FOUND     {unit} {not_so} start at boot: {error.detail}")
                    self._say(f"          systemctl status {unit}")
                    self.attention.append(unit)
            if "/tmpfiles.d/" in file.path:
                _run(["systemd-tmpfiles", "--create", file.path])

    def _have_upstart_read(self, config: Config, wanted: Iterable[File]) -> None:
        services = config.services
        upstart = Upstart(bin=services.programs, sudo=False, timeout=services.timeout)
        jobs = [Path(file.path).stem for file in wanted if file.etc.startswith("upstart/")]
        for job in upstart.read_job_files_again(jobs):
            self._say(f"FOUND     Upstart does not know the job {job}: its file has an error")
            self._say(f"          init-checkconf /etc/init/{job}.conf")
            self.attention.append(job)

    @property
    def on_this_host(self) -> bool:
        """Whether nginx can be asked what it reads."""
        return self._root is None and os.geteuid() == 0

    def find_what_is_in_the_way(self, nailgun: Nailgun, conf: Configuration | None) -> None:
        """What was there before and would keep the files from having their effect."""
        root = self._root or Path("/")
        if conf is not None and not self._dry_run and not nginx_conf.reads(conf, self._values):
            site = self._values.site_link or self._values.site_file
            self._say(f"FOUND     nginx does not read {site}")
            self._say(f"          {nginx_conf.remedy_for_unread(conf, self._values)}")
            self.attention.append(site)
        for obstacle in (
            *in_the_way.other_sites(self._values, root, conf),
            *in_the_way.other_nailgun(self._values, nailgun, root),
        ):
            self._say(f"FOUND     {obstacle.what}")
            self._say(f"          {obstacle.remedy}")
            self.attention.append(obstacle.what.split()[0])

    def _note(self, line: str) -> None:
        """What was done, or is as it should be."""
        if not self._quiet:
            self._say(line)

    def _made_it(self, what: str) -> None:
        verb = "would make" if self._dry_run else "made"
        self._note(f"{verb:<9} {what}")

    def _leads_to(self, link: Path, target: str) -> bool:
        text = os.readlink(link)
        there = os.path.normpath(link.parent / text)
        return text == target or there == str(placed(target, self._root))

    def _make_link(self, link: Path, target: str) -> None:
        if link.is_symlink() and self._leads_to(link, target):
            self._note(f"same      {link} -> {target}")
        elif os.path.lexists(link):
            self._say(f"DIFFERS   {link} was left unchanged; it should lead to {target}")
            self.attention.append(str(link))
        else:
            if not self._dry_run:
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(target)
                self._made.append(link)
            self._made_it(f"{link} -> {target}")

    def _write(self, file: File, path: Path) -> None:
        """Writes a file that is not there yet, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        # With a dot, so that what reads the directory ignores it.
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with open(temporary, "xb", opener=_private) as stream:
                stream.write(file.text.encode())
                stream.flush()
                os.fchmod(stream.fileno(), file.mode)
                os.fsync(stream.fileno())
            self._give(temporary, file.for_user, whole=False)
            os.link(temporary, path)  # fails if somebody was quicker
            # Upstart, for one, takes no notice of a file before somebody has written to it.
            os.close(os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC))
        finally:
            temporary.unlink(missing_ok=True)
        self._made.append(path)

    def _give(self, path: Path, for_user: bool, *, whole: bool) -> None:
        """Gives a directory to the production user, or a file to its group, or to root."""
        if self._root is not None:
            return
        user = pwd.getpwnam(self._values.user)
        if not for_user:
            os.chown(path, 0, 0)
        else:
            os.chown(path, user.pw_uid if whole else 0, user.pw_gid)

    @property
    def _uid(self) -> int | None:
        """The production user's number; None where owners do not count."""
        if self._root is not None:
            return None
        try:
            return pwd.getpwnam(self._values.user).pw_uid
        except KeyError:
            return None


def _private(file: str, flags: int) -> int:
    return os.open(file, flags | os.O_NOFOLLOW, 0o600)


def _run(argv: Sequence[str]) -> None:
    program = root_program(argv[0])
    if program is None:
        raise NotReady(f"{argv[0]} is not installed")
    try:
        answer = capture([program, *argv[1:]], timeout=PROGRAM_SECONDS)
    except TookTooLong as error:
        raise NotReady(f"{argv[0]}: {error}") from None
    if answer.status != 0:
        raise NotReady(f"{shlex.join(argv)} failed", detail=answer.err.strip())


def _say_what_is_left(words: Iterable[str], values: Values, nailgun: Nailgun, say: Say) -> None:
    user, command = values.user, shlex.join(words)
    if nailgun == "balance":
        say(
            f"next: install balance, then {values.bin}/start {values.site}-balance  # {HALF_CLOSED}"
        )
    say(f"next: {values.front_command('reload')}, or start if it does not run")
    # As root: what a login shell of the user would find first may be another program.
    say(f"next: sudo {command} check")
    say(f"next: sudo -iu {user} {command} TAG")
