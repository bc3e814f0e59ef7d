"""What can go wrong, each with the exit status and the remedy that the operator gets."""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """The exit statuses of every command."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    LOCKED = 3
    NOT_READY = 4
    BUILD_FAILED = 5
    NOT_HEALTHY = 6
    DECLINED = 7
    PRIMARY_DOWN = 8
    HALF_DONE = 9
    ATTENTION = 11
    DEFECT = 70


class DeployError(Exception):
    """Something an operator can expect to happen, so it is shown without a traceback.

    `message` says what happened (its first line is enough to act on), `remedy` what to type or
    do next, `detail` what somebody else said: the last lines of a build, git's own words.
    """

    status: int = Status.FAILED

    def __init__(self, message: str, *, remedy: str = "", detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.detail = detail
        self.shown = False


class UsageError(DeployError):
    """The command line, the configuration, the user or the terminal is wrong."""

    status = Status.USAGE


class Locked(DeployError):
    """Another run holds the lock."""

    status = Status.LOCKED


class NotReady(DeployError):
    """The host is in a state in which this command must not start."""

    status = Status.NOT_READY


class BuildFailed(DeployError):
    """The tests or the build failed."""

    status = Status.BUILD_FAILED
    lacked_memory = False  # whether it was killed to free memory, as far as one can tell


class NotHealthy(DeployError):
    """An instance did not come up healthy on the release, or is not healthy on it any more."""

    status = Status.NOT_HEALTHY


class NotDrained(DeployError):
    """nginx did not turn to the other instance, or requests did not end in time."""

    status = Status.NOT_HEALTHY


class Declined(DeployError):
    """The operator said no, or the input ended."""

    status = Status.DECLINED


class PrimaryDown(DeployError):
    """The primary did not come up after the point of no return; the backup serves."""

    status = Status.PRIMARY_DOWN


class HalfDone(DeployError):
    """A revert, a rollback or a promotion is half done: somebody has to act now."""

    status = Status.HALF_DONE


class Defect(DeployError):
    """A defect of this tool. Its traceback is in the log."""

    status = Status.DEFECT


class Interrupted(DeployError):
    """A signal came before the point of no return."""

    def __init__(self, signum: int, name: str) -> None:
        super().__init__(f"stopped by {name}")
        self.status = 128 + signum


def reason(error: Exception) -> str:
    """What an error of the system or of HTTP says, for people: without its number."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
