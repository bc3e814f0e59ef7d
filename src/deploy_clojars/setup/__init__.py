"""`setup`: the user, the directories and the files that a host needs."""
