"""What sudo lets this user run without a password, asked before it is needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from deploy_clojars.errors import NotReady, reason
from deploy_clojars.host.users import user_name
from deploy_clojars.machine.shell import TookTooLong, capture

# sudo looks at this option after it has decided whether it wants a password, and then never runs
# the command: either the option is not permitted, or there is no such directory (sudo 1.9.3).
NOWHERE = "/nonexistent/deploy-clojars-only-asks"
PASSED = (NOWHERE, "the -D option")
REFUSED = ("a password is required", "you must have a tty")


class SudoRefuses(NotReady):
    """sudo would not run what a run may need."""


def refuse_what_it_refuses(commands: Iterable[Sequence[str]], timeout: float) -> None:
    """Raises SudoRefuses (4) unless sudo would run each of the commands; none is run."""
    answers = {" ".join(command): _why_refused(command, timeout) for command in commands}
    refused = {command: said for command, said in answers.items() if said is not None}
    if not refused:
        return
    reasons = dict.fromkeys(filter(None, refused.values()))
    raise SudoRefuses(
        f"sudo does not let this user run {', '.join(refused)} without a password",
        detail="\n".join(reasons),
        remedy=(
            "allow exactly these commands with NOPASSWD in /etc/sudoers.d (visudo -c checks it);\n"
            "of the rules that match, the last one counts, and the files are read by name"
            + "".join(
                f"\nand without a terminal: Defaults:{user_name()} !requiretty"
                for said in reasons
                if REFUSED[1] in said
            )
        ),
    )


def _why_refused(command: Sequence[str], timeout: float) -> str | None:
    """What sudo says against the command; None if it would run it. It is not run.

    `sudo -l COMMAND` alone proves little: it says yes where a later rule wants a password or
    where a terminal is needed, and asks for a password itself where `listpw` says so.
    """
    try:
        asked = capture(["sudo", "-n", "-D", NOWHERE, *command], timeout=timeout)
        if any(words in asked.err for words in PASSED):
            return None
        if not any(words in asked.err for words in REFUSED):  # an older sudo
            asked = capture(["sudo", "-n", "-l", *command], timeout=timeout)
            if asked.status == 0:
                return None
    except (TookTooLong, OSError) as error:
        return f"sudo: {reason(error)}"
    return asked.err.strip()
