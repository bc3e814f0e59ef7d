"""`make torture N=300 [SEED=…] [MANAGER=systemd]`: so many hits, one after the other, at random.

Without MANAGER each hits a host under Upstart's stand-in or one under supervisord.
"""

from __future__ import annotations

import argparse
import random
import secrets
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from torture.hits import any_hit
from torture.rig import COMMANDS, MANAGERS, Rigs

HITS_PER_HOST = 100
AGAIN = " MANAGER=systemd" if MANAGERS == ("systemd",) else ""


class Torture:
    """A row of hits; every one of them can be repeated alone by its own seed."""

    def __init__(self, directory: Path, backup_rests: bool, guarded: bool) -> None:
        self._directory = directory
        self._rigs = Rigs(self._new_directory, backup_rests, guarded)
        self.statuses: Counter[int] = Counter()

    def _new_directory(self, manager: str) -> Path:
        return Path(tempfile.mkdtemp(prefix=f"{manager}-", dir=self._directory))

    def throw_away(self) -> None:
        """Ends the hosts; the next hits get new ones."""
        self._rigs.throw_away()

    def hit(self, seed: str) -> str:
        """Deals one hit and returns what it was. Raises AssertionError for a violation."""
        dice = random.Random(seed)
        rig = self._rigs.of(dice.choice(MANAGERS))
        command = dice.choice(COMMANDS)
        hit = any_hit(dice)
        what = f"{command}: {hit}"
        moment = rig.course(command).any_moment(dice)
        what += f", {moment}"
        try:
            ended = rig.attempt(command, hit, moment, dice)
        except BaseException as error:
            error.add_note(what)
            raise
        self.statuses[ended.status] += 1
        return f"{what}: {ended.status}"


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(prog="torture", description=__doc__)
    parser.add_argument("number", type=int)
    parser.add_argument("--seed", default="")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--only-while-deploying", action="store_true")
    parser.add_argument("--guarded", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the hosts are ended, too
    seed, _, first = (options.seed or secrets.token_hex(4)).partition("/")
    numbers = range(int(first or 0), int(first or 0) + options.number)
    rests = options.only_while_deploying
    guarded = options.guarded
    sys.exit(run(seed, numbers, verbose=options.verbose, backup_rests=rests, guarded=guarded))


def run(seed: str, numbers: range, *, verbose: bool, backup_rests: bool, guarded: bool) -> int:
    """Deals the hits and returns how many violations there were, or 0."""
    print(f"{len(numbers)} hits, SEED={seed}/{numbers.start}", flush=True)
    started, failed = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="torture-") as scratch:
        torture = Torture(Path(scratch), backup_rests, guarded)
        try:
            for done, number in enumerate(numbers, start=1):
                own = f"{seed}/{number}"
                try:
                    what = torture.hit(own)
                    if verbose:
                        print(f"{own} {what}", flush=True)
                except Exception:  # noqa: BLE001 # whatever it is, its seed is wanted
                    failed += 1
                    repeat = f"make torture N=1 SEED={own}{AGAIN}"
                    print(f"\nVIOLATION; to repeat it: {repeat}", flush=True)
                    traceback.print_exc(file=sys.stdout)
                    torture.throw_away()
                if done % HITS_PER_HOST == 0:
                    print(f"{done} hits, {failed} violations", flush=True)
                    torture.throw_away()
        finally:
            torture.throw_away()
    minutes = (time.monotonic() - started) / 60
    statuses = ", ".join(f"{status}: {n}" for status, n in sorted(torture.statuses.items()))
    print(f"{len(numbers)} hits in {minutes:.1f} min, {failed} violations, SEED={seed}/0")
    print(f"exit statuses: {statuses}")
    return min(failed, 99)


if __name__ == "__main__":
    main()
