"""What the tests inherit from whoever starts them must not decide how they end."""

from __future__ import annotations

import os
import signal

# Python itself ignores these, and gives them back to what it starts.
PYTHONS_OWN = (signal.SIGPIPE, signal.SIGXFSZ)


def heed_all_signals() -> None:
    """Gives every program that is started from here all signals as they are by default.

    nohup leaves a hang-up ignored, a shell what it starts in the background Ctrl-C, a supervisor
    whatever it likes; what is ignored or blocked stays so in every program below. The tool takes
    that as a wish, so the tests must not hand it down.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    under_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    for signum in signal.valid_signals():
        if signal.getsignal(signum) == signal.SIG_IGN and signum not in PYTHONS_OWN:
            signal.signal(signum, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if under_nohup:
        # pytest itself lives on; unlike SIG_IGN a handler is not inherited by a program.
        signal.signal(signal.SIGHUP, lambda *_: None)
        if "PYTEST_XDIST_WORKER" in os.environ and os.getpgrp() != os.getpid():
            # Nor does the hang-up reach the programs that a worker starts.
            os.setsid()
