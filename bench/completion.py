"""What a press of TAB costs with 400 tags and 400 releases, against `python -c "import click"`.

Measured by turns, so that whatever else the machine does affects all. `python bench/completion.py [ROUNDS]`
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from deploy_clojars.completion import VARIABLE

TOOL = str(Path(sys.executable).with_name("deploy-clojars"))
ROUNDS = 15
BOUND = 0.150  # seconds

WORDS = ("", "deploy 0.1", "rollback 0.1")


def prepared(home: Path) -> dict[str, str]:
    """Fills a home with a mirror's references and releases; returns the environment that names it."""
    versions = [f"0.{number}.0" for number in range(400)]
    mirror = home / "deploy" / "mirror.git"
    mirror.mkdir(parents=True)
    lines = (f"{'c' * 40} refs/tags/{version}\n" for version in versions)
    (mirror / "packed-refs").write_text("".join(lines), encoding="ascii")
    (home / "releases").mkdir()
    for version in versions:
        (home / "releases" / f"clojars-web-{version}-standalone.jar").touch()
    config = home / "deploy-clojars.toml"
    config.write_text(f'home = "{home}"\n', encoding="utf-8")
    config.chmod(0o644)
    return {**os.environ, "DEPLOY_CLOJARS_CONFIG": str(config)}


def seconds(argv: list[str], environment: dict[str, str]) -> float:
    """How long a program takes."""
    started = time.perf_counter()
    subprocess.run(argv, env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def main() -> None:
    """Measures and prints the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    with tempfile.TemporaryDirectory(prefix="completion-") as directory:
        environment = prepared(Path(directory))
        yardstick: list[float] = []
        taken: dict[str, list[float]] = {words: [] for words in WORDS}
        for _ in range(rounds):
            yardstick.append(seconds([sys.executable, "-c", "import click"], environment))
            for words in WORDS:
                asked = {
                    VARIABLE: "bash_complete",
                    "COMP_WORDS": f"deploy-clojars {words}",
                    "COMP_CWORD": str(max(1, len(words.split()))),
                }
                taken[words].append(seconds([TOOL], {**environment, **asked}))
    click = statistics.median(yardstick)
    print(f"{'':<28} {'median':>8} {'ratio':>6}   (of {rounds})")
    print(f'{"""python -c "import click" """:<28} {click:>6.3f} s {1:>6.2f}')
    for words, times in taken.items():
        median = statistics.median(times)
        over = "" if median <= BOUND else f"   over {BOUND:g} s"
        print(f"{f'deploy-clojars {words}[TAB]':<28} {median:>6.3f} s {median / click:>6.2f}{over}")


if __name__ == "__main__":
    main()
