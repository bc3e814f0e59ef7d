# Copyright: the authors of deploy-clojars
# MIT License (see https://opensource.org/license/mit)
"""Runs deploy-clojars on the host and reads what it says. Python 3.8, standard library only."""

from __future__ import annotations

import json
import os
import time

NO_TOOL = 127
LOCKED = 3
LINES_OF_THE_LOG = 20

# The options that both modules have.
ARGUMENTS = {
    "program": {"type": "path", "default": "deploy-clojars"},
    "config": {"type": "path"},
}


class Answer:
    """What a run of the tool returned: its exit status, its JSON object and its standard error."""

    def __init__(self, status, document, error):
        self.status = status
        self.document = document
        self.error = error

    @property
    def locked(self):
        """Whether another run held the lock: it refused this one, or is what was asked for."""
        return self.status == LOCKED or bool(self.document.get("lock"))


class Tool:
    """The tool on this host. A tool that cannot be used fails the module, with one message."""

    def __init__(self, module):
        self._module = module
        name = module.params["program"]
        places = ["/usr/local/bin", "/opt/deploy-clojars/bin", os.path.expanduser("~/.local/bin")]
        self._program = module.get_bin_path(name, opt_dirs=places)
        if self._program is None:
            module.fail_json(
                msg=f"{name} is not installed on this host; the role clojars.deploy.host installs it",
                status=NO_TOOL,
            )

    def ask(self, words, lock_wait=0):
        """Runs a command that prints one JSON object and returns its Answer.

        While another run holds the lock, tries again for up to `lock_wait` seconds.
        """
        deadline = time.monotonic() + lock_wait
        while True:
            answer = self._ask_once(words)
            left = deadline - time.monotonic()
            if not answer.locked or left <= 0:
                return answer
            time.sleep(min(2, left))

    def _ask_once(self, words):
        config = self._module.params["config"]
        named = ["-c", config] if config else []
        command = [self._program, *named, *words]
        status, output, error = self._module.run_command(command)
        try:
            document = json.loads(output)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            self._fail_without_an_answer(status, error)
        return Answer(status, document, error)

    def _fail_without_an_answer(self, status, error):
        """Fails the module: the tool printed no object, for example because it is too old."""
        said = last_lines(error, LINES_OF_THE_LOG)
        if any(words in error for words in ("No such option", "No such command")):
            version = self._module.run_command([self._program, "--version"])[1]
            message = "{} ({}) is too old for this collection; the role clojars.deploy.host upgrades it".format(
                self._program, version.strip() or "of an unknown version"
            )
        else:
            message = "{} ended with status {} and no answer: {}".format(
                self._program, status, said[-1] if said else "it printed nothing",
            )  # fmt: skip
        self._module.fail_json(msg=message, status=status, detail=said)


def last_lines(text, count):
    """The last lines of a text that are not empty."""
    return [line for line in text.splitlines() if line.strip()][-count:]


def end_of_file(path):
    """The last lines of the log; none if this user cannot read it."""
    if not path:
        return []
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 16384))
            return last_lines(file.read().decode("utf-8", "replace"), LINES_OF_THE_LOG)
    except OSError:
        return []
