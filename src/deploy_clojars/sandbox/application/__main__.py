"""Starts one instance; the release is a zip with this file in it, and `python3 RELEASE` runs it."""

import os
import sys


def main() -> None:
    release = os.path.realpath(sys.argv[0])
    # A JVM keeps the jar that it runs open, but Python reads a zip and closes it again. Whoever
    # deploys tells by the open file which release a process runs, because the link by which it was
    # started may name another one by now. So it is opened first thing, and never closed.
    os.open(release, os.O_RDONLY)
    # For the same reason what is imported from here on must not come through that link.
    sys.path[0] = release

    from clojars import instance

    instance.run()


main()
