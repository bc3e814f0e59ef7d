"""One run of a command that changes the host."""
