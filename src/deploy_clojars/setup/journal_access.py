"""Whether a user may read systemd's journal, where the log of an instance ends."""

from __future__ import annotations

import grp
import os
import pwd

JOURNAL_GROUP = "systemd-journal"

# Debian lets `adm` read it, too.
READERS = (JOURNAL_GROUP, "adm")


def reads_the_journal(user: str) -> bool:
    """Whether the user is in a group that reads all of it; true where there is none to be in."""
    try:
        entry = pwd.getpwnam(user)
        readers = {each.gr_gid for each in grp.getgrall() if each.gr_name in READERS}
    except KeyError:
        return False
    return not readers or bool(readers.intersection(os.getgrouplist(user, entry.pw_gid)))
