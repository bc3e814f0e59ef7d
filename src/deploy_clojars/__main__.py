"""The program's start: `deploy-clojars`, and `python -m deploy_clojars`."""

import signal


def main() -> None:
    """Runs the command line. Ctrl-C ends it without a traceback, even while it is being imported."""
    is_pythons_own = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_pythons_own:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from deploy_clojars import cli

    if is_pythons_own:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    cli.main()


if __name__ == "__main__":
    main()
