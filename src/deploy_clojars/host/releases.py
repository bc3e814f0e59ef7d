"""The releases and the link to the current one."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deploy_clojars.errors import DeployError
from deploy_clojars.versions import why_no_version

# Begins the names of what is being written; no `*-standalone.jar` before it is complete.
UNFINISHED = ".deploy-clojars-"

RELEASE = "RELEASE"  # stands for a release's name in a command

CHUNK = 1024 * 1024  # bytes

Identity = tuple[int, int]  # a file's device and inode


@dataclass(frozen=True)
class Current:
    """What `NAME-current.jar` is: absent, a link to a release, or broken."""

    version: str | None = None
    text: str | None = None  # of the link, to the letter
    broken: str | None = None  # what is wrong with it
    mend: tuple[str, ...] = ()  # the words of the command that mends it
    visible: bool = True  # whether this user may look


class Releases:
    """The directory with the releases."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self.link = directory / f"{name}-current.jar"
        self._prefix = f"{name}-"
        self._suffix = "-standalone.jar"

    def path(self, version: str) -> Path:
        """Where the release is, or would be."""
        return self.directory / f"{self._prefix}{version}{self._suffix}"

    def version_in(self, file_name: str) -> str | None:
        """The version that a file's name stands for, or None if it is not a release's name."""
        if not (file_name.startswith(self._prefix) and file_name.endswith(self._suffix)):
            return None
        version = file_name[len(self._prefix) : -len(self._suffix)]
        return version if why_no_version(version) is None else None

    def versions(self) -> list[str]:
        """All releases, by name."""
        try:
            entries = [entry for entry in os.scandir(self.directory) if _is_a_file(entry)]
        except OSError:
            return []
        found = (self.version_in(entry.name) for entry in entries)
        return sorted(version for version in found if version is not None)

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
        """Which of these open files, each with its name, are releases, whatever their names are.

        The directory is looked through at most once: a JVM has a dozen jars open, and there may
        be thousands of releases.
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
        """The files among the releases, by device and inode alone."""
        inodes = {inode for _, inode in files}
        found: dict[Identity, str] = {}
        with suppress(OSError):
            for entry in os.scandir(self.directory) if files else ():
                if entry.inode() in inodes and _is_a_file(entry):
                    version = self.version_in(entry.name)
                    identity = self.identity(version) if version is not None else None
                    if version is not None and identity in files:
                        found[identity] = version
        return found

    def current(self) -> Current:
        """Reads the link. An absolute target is accepted: hosts made by hand have one."""
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
        """Points the link at the release, in one atomic step.

        The target is relative, the temporary link's name unique, and the directory is on the
        disk before this returns. Raises DeployError.
        """
        if not self.has(version):
            raise DeployError(f"release {version} is not in {self.directory}")
        if self.link.exists() and not self.link.is_symlink():
            raise DeployError(f"{self.link} is not a symbolic link and was not replaced")
        temporary = self.directory / f"{UNFINISHED}{os.urandom(8).hex()}.link"
        try:
            os.symlink(self.path(version).name, temporary)
            try:
                os.replace(temporary, self.link)
            except OSError:
                temporary.unlink()
                raise
            self._sync()
        except OSError as error:
            raise DeployError(f"{self.link} cannot be changed: {error.strerror}") from error

    def remove_link(self) -> None:
        """Back to the state before the first deploy. Raises DeployError."""
        try:
            self.link.unlink(missing_ok=True)
            self._sync()
        except OSError as error:
            raise DeployError(f"{self.link} cannot be removed: {error.strerror}") from error

    def install(self, jar: Path, version: str) -> str:
        """Copies a jar in as the release `version` and returns its SHA-256 in hexadecimal.

        The name appears when the file is complete and on the disk, and never replaces one that
        is there. Raises DeployError; then nothing is left behind.
        """
        import hashlib  # `status` is quicker without it

        temporary = self.directory / f"{UNFINISHED}{os.urandom(8).hex()}.jar"
        digest = hashlib.sha256()
        try:
            # The build made `jar`; a link in its place could lead to any file of the user.
            source = os.open(jar, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with open(source, "rb") as original, temporary.open("xb") as copy:
                while chunk := original.read(CHUNK):
                    digest.update(chunk)
                    copy.write(chunk)
                copy.flush()
                os.fchmod(copy.fileno(), 0o644)  # whatever the umask: the service reads it
                os.fsync(copy.fileno())
            # link() fails where rename() would replace.
            os.link(temporary, self.path(version))
            temporary.unlink()
            self._sync()
        except FileExistsError:
            raise DeployError(f"{self.path(version)} already exists") from None
        except OSError as error:
            raise DeployError(
                f"release {version} cannot be copied to {self.directory}: {error.strerror}"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
        return digest.hexdigest()

    def size(self, version: str) -> int | None:
        """The release's size in bytes, or None if it is not there."""
        try:
            return os.lstat(self.path(version)).st_size
        except OSError:
            return None

    def remove(self, version: str) -> None:
        """Removes the release for good, in one atomic step; the directory is on the disk then.

        Raises DeployError.
        """
        if self.current().version == version:
            raise DeployError(f"release {version} is current, and is not removed")
        try:
            self.path(version).unlink(missing_ok=True)
            self._sync()
        except OSError as error:
            raise DeployError(f"release {version} cannot be removed: {error.strerror}") from error

    def some(self, most: int = 12) -> str:
        """The names of the releases for a message, if they are not too many."""
        versions = self.versions()
        more = len(versions) - most
        named = ", ".join(versions[:most] if more > 0 else versions)
        return f"{named} and {more} more (deploy-clojars releases --all)" if more > 0 else named

    def clear_unfinished(self) -> None:
        """Removes what a run that was killed was writing. Only while the lock is held."""
        for path in self.directory.glob(f"{UNFINISHED}*"):
            with suppress(OSError):
                path.unlink()

    def mended_by(self, current: Current, version: str | None) -> str:
        """The command that repairs a broken link; RELEASE stands in it where `version` is None."""
        name = self.path(version).name if version else RELEASE
        return shlex.join(name if word == RELEASE else word for word in current.mend)

    def _sync(self) -> None:
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _is_a_file(entry: os.DirEntry[str]) -> bool:
    return entry.is_file(follow_symlinks=False)


def free_bytes(directory: Path) -> int:
    """The bytes a normal user can still write in `directory`."""
    return shutil.disk_usage(directory).free
