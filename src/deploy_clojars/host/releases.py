"""The releases and the link to the current one."""

from __future__ import annotations

import errno
import os
import re
import shlex
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from deploy_clojars.errors import DeployError
from deploy_clojars.machine import threads
from deploy_clojars.machine.files import NO_ROOM, Input, sync
from deploy_clojars.versions import why_no_version

# How the name of a file begins until it is complete; only then is it a `*-standalone.jar`.
UNFINISHED = ".deploy-clojars-"

RELEASE = "RELEASE"  # a placeholder in a command

LEAST_FREE = 64 * 1024 * 1024  # bytes; what the site writes needs room, too
RESERVED = 64 * 1024  # bytes; a block of any file system

CLASS_DATA = ".jsa"  # how the name of an archive of a release's classes ends
CLASS_DATA_PER_BYTE = 8  # of the jar, at most; 2 were measured. A JVM that cannot write it all dies

Identity = tuple[int, int]  # a file's device and inode


@dataclass(frozen=True)
class Current:
    """What `NAME-current.jar` is: absent, a link to a release, or broken."""

    version: str | None = None
    text: str | None = None  # the link's target, verbatim
    broken: str | None = None  # what is wrong with it
    mend: tuple[str, ...] = ()  # the command that repairs it; RELEASE is a placeholder
    visible: bool = True  # whether this user may read it


@dataclass(frozen=True)
class Copy:
    """A jar that was copied in, and has no release's name yet."""

    path: Path
    sha256: str  # in hexadecimal
    bytes: int
    on_disk: Future[None]  # done when the disk has it, or failed


class Releases:
    """The directory with the releases. `reserve` is a file that can make room for the link."""

    def __init__(self, directory: Path, name: str, reserve: Path | None = None) -> None:
        self.directory = directory
        self._reserve = reserve
        self._made: dict[str, Path] = {}  # links that a flip only has to rename, by version
        self.link = directory / f"{name}-current.jar"
        self._prefix = f"{name}-"
        self._suffix = "-standalone.jar"

    def path(self, version: str) -> Path:
        """Where the release is, or would be."""
        return self.directory / f"{self._prefix}{version}{self._suffix}"

    def version_in(self, file_name: str) -> str | None:
        """The version in a release's file name, or None if that is not a release's name."""
        if not (file_name.startswith(self._prefix) and file_name.endswith(self._suffix)):
            return None
        version = file_name[len(self._prefix) : -len(self._suffix)]
        return version if why_no_version(version) is None else None

    def versions(self) -> list[str]:
        """All releases, by name."""
        try:
            entries = [each for each in os.scandir(self.directory) if _is_regular(each)]
        except OSError:
            return []
        return sorted(filter(None, (self.version_in(entry.name) for entry in entries)))

    def has(self, version: str) -> bool:
        """Whether the release is there."""
        try:
            return stat.S_ISREG(os.lstat(self.path(version)).st_mode)
        except OSError:
            return False

    def identity(self, version: str) -> Identity | None:
        """The release's device and inode, or None if it is not there."""
        try:
            found = os.stat(self.path(version))
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def versions_of(self, files: Iterable[tuple[Identity, str]]) -> dict[Identity, str]:
        """The versions of those open files that are releases, also after they were renamed.

        Lists the directory at most once: a JVM has a dozen jars open, and there may be thousands
        of releases.
        """
        found: dict[Identity, str] = {}
        others: set[Identity] = set()
        for identity, name in files:
            version = self.version_in(name)
            if version is not None and self.identity(version) == identity:
                found[identity] = version
            else:
                others.add(identity)
        return found | self._renamed(others)

    def _renamed(self, files: set[Identity]) -> dict[Identity, str]:
        """Looks for the files among the releases by device and inode alone."""
        inodes = {inode for _, inode in files}
        found: dict[Identity, str] = {}
        with suppress(OSError):
            for entry in os.scandir(self.directory) if files else ():
                if entry.inode() in inodes and _is_regular(entry):
                    version = self.version_in(entry.name)
                    if version and (identity := self.identity(version)) in files:
                        found[identity] = version
        return found

    def current(self) -> Current:
        """Reads the link. An absolute target is accepted: hosts set up by hand have one."""
        try:
            found = os.lstat(self.link)
        except FileNotFoundError:
            return Current()
        except OSError as error:
            denied = isinstance(error, PermissionError)
            why = f"{self.link} cannot be read: {error.strerror}"
            return Current(broken=why, visible=not denied)
        if not stat.S_ISLNK(found.st_mode):
            return Current(
                broken=f"{self.link} is not a symbolic link",
                mend=("mv", str(self.link), f"{self.link}.old"),
            )
        text = os.readlink(self.link)
        target = Path(os.path.normpath(self.directory / text))
        version = self.version_in(target.name) if self._is_here(target.parent) else None
        if version is None:
            broken = f"{self.link} names {text}, which is not a release"
        elif not self.has(version):
            broken = f"{self.link} names {text}, which is not there"
        else:
            return Current(version, text)
        return Current(text=text, broken=broken, mend=("ln", "-sfn", RELEASE, str(self.link)))

    def _is_here(self, directory: Path) -> bool:
        with suppress(OSError):
            return directory.samefile(self.directory)
        return False

    def flip(self, version: str) -> None:
        """Points the link at the release, in one atomic step, with a relative target.

        The directory is synced before this returns. On a full disk the reserve makes room.
        Raises DeployError.
        """
        if not self.has(version):
            raise DeployError(f"release {version} is not in {self.directory}")
        if self.link.exists() and not self.link.is_symlink():
            raise DeployError(f"{self.link} is not a symbolic link and was not replaced")
        try:
            with self._temporary("link") as temporary:
                made = self._made.pop(version, None)
                if made is None:
                    made = temporary
                    self._make_link(version, made)
                os.replace(made, self.link)
            self._sync()
        except OSError as error:
            raise DeployError(f"{self.link} cannot be changed: {error.strerror}") from error

    @contextmanager
    def link_made_for(self, version: str) -> Iterator[None]:
        """While the block runs a flip to the release needs no room on the disk.

        The link that the flip renames is created now. Raises DeployError if that fails.
        """
        with self._temporary("link") as link:
            try:
                os.symlink(self.path(version).name, link)
            except OSError as error:
                raise DeployError(
                    f"a link in {self.directory} cannot be created: {error.strerror}"
                ) from error
            self._made[version] = link
            try:
                yield
            finally:
                self._made.pop(version, None)

    def _make_link(self, version: str, link: Path) -> None:
        target = self.path(version).name
        try:
            os.symlink(target, link)
        except OSError as error:
            if error.errno not in NO_ROOM or self._reserve is None:
                raise
            with suppress(FileNotFoundError):
                self._reserve.unlink()
            os.symlink(target, link)

    def set_aside(self) -> None:
        """Creates the reserve if it is missing and there is room. To be called with the lock held.

        It takes what a link may need, an inode and a block, on the same file system.
        """
        if self._reserve is None:
            return
        with suppress(OSError), self._reserve.open("xb") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, RESERVED)
            except OSError:
                self._reserve.unlink()

    def remove_link(self) -> None:
        """Leaves no release current, as before the first deploy. Raises DeployError."""
        try:
            self.link.unlink(missing_ok=True)
            self._sync()
        except OSError as error:
            raise DeployError(f"{self.link} cannot be removed: {error.strerror}") from error

    @contextmanager
    def copied(self, original: Input, version: str, patience: float) -> Iterator[Copy]:
        """A jar's copy beside the releases; removed at the end.

        It is read once: what is looked at is what `add` then makes the release, when the disk has
        it; a look need not wait for that. `patience` is how long to wait for more of it, in
        seconds. Raises DeployError, Interrupted.
        """
        with self._temporary("jar") as temporary:
            try:
                copy = self._copy(original, temporary, patience)
            except OSError as error:
                raise DeployError(
                    f"release {version} cannot be copied to {self.directory}: {error.strerror}"
                ) from error
            yield copy

    def _copy(self, original: Input, temporary: Path, patience: float) -> Copy:
        import hashlib  # `status` is quicker without it

        digest = hashlib.sha256()
        self._refuse_to_fill_the_disk(original.size or 0)
        with temporary.open("xb") as copy:
            for chunk in original.chunks(patience):
                self._refuse_to_fill_the_disk(len(chunk))
                digest.update(chunk)
                copy.write(chunk)
            copy.flush()
            os.fchmod(copy.fileno(), 0o644)  # whatever the umask: the service reads it
            # Its own descriptor: an error in writing it is told to those that were open then.
            on_disk = threads.started(partial(_sync_and_close, os.dup(copy.fileno())))
            return Copy(temporary, digest.hexdigest(), copy.tell(), on_disk)

    def _refuse_to_fill_the_disk(self, size: int) -> None:
        """Raises OSError if `size` more bytes would leave less than LEAST_FREE."""
        found = os.statvfs(self.directory)
        if found.f_bavail * found.f_frsize < size + LEAST_FREE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def add(self, copy: Copy, version: str) -> None:
        """Makes a copy the release `version`, which never replaces one that is there.

        The directory is synced before this returns. Raises DeployError.
        """
        try:
            copy.on_disk.result()
            os.link(copy.path, self.path(version))  # fails where rename() would replace
            self._sync()
        except FileExistsError:
            raise DeployError(f"{self.path(version)} already exists") from None
        except OSError as error:
            raise DeployError(
                f"release {version} cannot be added to {self.directory}: {error.strerror}"
            ) from error

    @contextmanager
    def _temporary(self, suffix: str) -> Iterator[Path]:
        """A unique name in the releases' directory; a file of that name is removed at the end."""
        path = self.directory / f"{UNFINISHED}{os.urandom(8).hex()}.{suffix}"
        try:
            yield path
        finally:
            with suppress(OSError):  # not there; or the file system is read-only, and said so
                path.unlink()

    def _class_data(self, version: str, java: Path) -> str:
        """How the name of such an archive begins; its size follows. Raises OSError.

        A JVM takes an archive of any jar of the same size and the same second. So the name holds the
        jar's inode and the time of its last change, which no copy has and nobody can set, and the
        same of java. The script `java` of `setup` looks for the same name, and says why.
        """
        jar = self.path(version)
        return f"{jar.name}.{_inode_and_change(jar)}.{_inode_and_change(java)}"

    @contextmanager
    def class_data_added(self, version: str, java: Path) -> Iterator[Path]:
        """Where to write the archive of the release's classes; it has its name after the block.

        If the block raises, or the release is no longer the file that it was, nothing is added.
        Raises OSError.
        """
        stem = self._class_data(version, java)
        self._refuse_to_fill_the_disk(CLASS_DATA_PER_BYTE * os.stat(self.path(version)).st_size)
        with self._temporary(CLASS_DATA.removeprefix(".")) as temporary:
            yield temporary
            with temporary.open("rb") as written:
                sync(written.fileno())
                size = os.fstat(written.fileno()).st_size
            if self._class_data(version, java) != stem:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(self.path(version)))
            os.rename(temporary, self.directory / f"{stem}.{size}{CLASS_DATA}")
            self._sync()

    def _remove_class_data(self, version: str) -> None:
        name = re.escape(self.path(version).name)
        for entry in list(os.scandir(self.directory)):
            if re.fullmatch(
                rf"{name}(\.\d+-\d+\.\d+){{2}}\.\d+{re.escape(CLASS_DATA)}", entry.name
            ):
                os.unlink(entry.path)

    def size(self, version: str) -> int | None:
        """The release's size in bytes, or None if it is not there."""
        try:
            return os.lstat(self.path(version)).st_size
        except OSError:
            return None

    def sha256(self, version: str) -> str:
        """The SHA-256 of the release's content in hexadecimal. Raises DeployError."""
        import hashlib

        try:
            with self.path(version).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DeployError(f"release {version} cannot be read: {error.strerror}") from error

    def remove(self, version: str) -> None:
        """Removes the release and its class data, and syncs the directory. Raises DeployError."""
        if self.current().version == version:
            raise DeployError(f"release {version} is current, and is not removed")
        try:
            self._remove_class_data(version)
            self.path(version).unlink(missing_ok=True)
            self._sync()
        except OSError as error:
            raise DeployError(f"release {version} cannot be removed: {error.strerror}") from error

    def some(self, most: int = 12) -> str:
        """The names of the releases, or of the first `most`, for a message."""
        versions = self.versions()
        more = len(versions) - most
        named = ", ".join(versions[:most] if more > 0 else versions)
        return f"{named} and {more} more (deploy-clojars releases --all)" if more > 0 else named

    def clear_unfinished(self) -> None:
        """Removes unfinished files of killed runs. Only while the lock is held."""
        for path in self.directory.glob(f"{UNFINISHED}*"):
            with suppress(OSError):
                path.unlink()

    def mended_by(self, current: Current, version: str | None) -> str:
        """The command that repairs a broken link; RELEASE stands in it if `version` is None.

        Where there is no release it removes the link.
        """
        if RELEASE in current.mend and not self.versions():
            return shlex.join(["rm", str(self.link)])
        name = self.path(version).name if version else RELEASE
        return shlex.join(name if word == RELEASE else word for word in current.mend)

    def _sync(self) -> None:
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sync(descriptor)
        finally:
            os.close(descriptor)


def _sync_and_close(descriptor: int) -> None:
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def _inode_and_change(path: Path) -> str:
    found = os.stat(path)
    seconds, nanoseconds = divmod(found.st_ctime_ns, 10**9)
    return f"{found.st_ino}-{seconds}.{nanoseconds:09}"


def _is_regular(entry: os.DirEntry[str]) -> bool:
    return entry.is_file(follow_symlinks=False)
