# Copyright: the authors of deploy-clojars
# MIT License (see https://opensource.org/license/mit)
"""What is wrong with the variables of a run, and what became of its hosts, from the facts that the playbooks set."""

from __future__ import annotations

import difflib
import os
import re

from ansible import context
from ansible.errors import AnsibleFilterError
from ansible.module_utils.parsing.convert_bool import boolean

HEADINGS = ("host", "release", "primary", "backup", "in this run")
UNKNOWN = "?"
BATCHES = [1, "10%", "100%"]
BATCHES_OUT_OF_THE_LOAD_BALANCER = [1, "10%"]  # all hosts of a batch are out at the same time


def fleet_pattern(pattern, hosts):
    """Returns the pattern, which matches these hosts. An error if it matches none.

    Ansible by itself then skips every play and ends with 0.
    """
    if not hosts and not context.CLIARGS.get("syntax"):  # which has no inventory
        raise AnsibleFilterError(
            f"no host matches {pattern}: look at the inventory (-i), fleet_hosts and --limit"
        )
    return pattern


def fleet_wrong(hosts, hostvars, unused):
    """What is wrong with the variables of the hosts, in a sentence each, and each once.

    The values of `unused` variables do not matter.
    """
    found = [each for host in hosts for each in wrong_variables(hostvars[host], unused)]
    return list(dict.fromkeys(found))


def wrong_variables(facts, unused):
    """What is wrong with the variables of one host."""
    names = sorted(name for name in facts if name.startswith("fleet_"))
    found = [unknown_name(name) for name in names if name not in VARIABLES]
    if "fleet_version" not in facts:
        found += ["name the release: -e fleet_version=VERSION"]
    if "fleet_rebuild" in facts and "fleet_jar" not in facts:
        found += ["fleet_rebuild needs fleet_jar"]
    used = [name for name in names if name not in unused]
    checks = [(name, VARIABLES[name]) for name in used if VARIABLES.get(name)]
    return found + [wrong for name, check in checks if (wrong := check(name, facts[name]))]


def unknown_name(name):
    """A variable that would be ignored."""
    similar = difflib.get_close_matches(name, VARIABLES, 1)
    hint = f"; did you mean {similar[0]}?" if similar else ""
    return f"{name} is not a variable of this playbook{hint}"


def wrong_version(name, value):
    """What keeps it from being a version, as the tool judges them, or None."""
    if not isinstance(value, str):
        return f"{name} is {value}, which YAML does not read as text: put it in quotes"
    why = None
    if not value:
        why = "it is empty"
    elif value.startswith("-"):
        why = "it starts with '-'"
    elif "/" in value:
        why = "it contains '/'"
    elif ".." in value:
        why = "it contains '..'"
    elif any(character.isspace() for character in value):
        why = "it contains white space"
    elif not value.isprintable():
        why = "it contains control characters"
    return f"{name} is not a version: {why}: {value!r}" if why else None


def wrong_file(name, value):
    """What keeps it from being a file on the control node, or None."""
    if not isinstance(value, str) or not os.path.isabs(value):
        return f"{name} must be an absolute path: {value}"
    return None if os.path.isfile(value) else f"{name}: no such file: {value}"


def wrong_batches(name, value):
    """What keeps it from saying how many hosts at a time, or None."""
    if isinstance(value, list) and value and all(map(is_batch, value)):
        return None
    return (
        f"""{name} must be a list of numbers from 1 and percentages from "1%" to "100%", """
        f"""such as -e '{{"{name}": [1, "10%"]}}': {value}"""
    )


def is_batch(item):
    """Whether it says how many hosts a batch has."""
    if isinstance(item, str):
        return re.fullmatch("([1-9][0-9]?|100)%", item) is not None
    return isinstance(item, int) and not isinstance(item, bool) and item >= 1


def wrong_seconds(name, value):
    """What keeps it from being a whole number of seconds, or None."""
    is_one = not isinstance(value, bool) and re.fullmatch("[0-9]+", str(value))
    return None if is_one else f"{name} must be a number of seconds: {value}"


def wrong_boolean(name, value):
    """What keeps it from being true or false, or None."""
    try:
        boolean(value)
    except TypeError:
        return f"{name} must be true or false: {value}"
    return None


# What may be set, and how it is checked before any host is touched.
VARIABLES = {
    "fleet_version": wrong_version,
    "fleet_jar": wrong_file,
    "fleet_rebuild": wrong_boolean,
    "fleet_hosts": None,
    "fleet_batches": wrong_batches,
    "fleet_out": wrong_file,
    "fleet_in": wrong_file,
    "fleet_lock_wait": wrong_seconds,
    "fleet_force": wrong_boolean,
    "fleet_why": None,
    "fleet_user": None,
    "fleet_program": None,
    "fleet_config": None,
    "fleet_staging": None,
}


def fleet_batches(hosts, hostvars):
    """How many hosts at a time, from the variables of the hosts that have been looked at.

    For `serial`, which by itself sees only the variables of the command line. While only the
    syntax is checked, there are no `hostvars`.
    """
    all_facts = [hostvars[host] for host in hosts if host in hostvars]
    looked_at = [facts for facts in all_facts if "fleet_looked" in facts]
    named = [facts["fleet_batches"] for facts in looked_at if "fleet_batches" in facts]
    if named:
        return named[0]
    has_hook = any("fleet_out" in facts for facts in looked_at)
    return BATCHES_OUT_OF_THE_LOAD_BALANCER if has_hook else BATCHES


def fleet_failed(hosts, hostvars):
    """The hosts whose failure stops the run."""
    problems = ((host, hostvars[host].get("fleet_problem")) for host in hosts)
    return [host for host, problem in problems if problem and problem["stops"]]


def fleet_elsewhere(hosts, hostvars):
    """The hosts that the run has not failed on, but that do not serve its release now.

    None if the run was stopped, or only checked: then it has not come to every host.
    """
    if fleet_failed(hosts, hostvars):
        return []
    return [host for host in hosts if is_elsewhere(hostvars[host])]


def is_elsewhere(facts):
    """Whether the host should serve the release and does not."""
    if facts.get("ansible_check_mode") or facts.get("fleet_problem"):
        return False
    now = facts.get("fleet_now") or {}
    return not (now.get("ok") and now.get("approved") == facts.get("fleet_version"))


def fleet_locked(lock):
    """Who is changing the host, and how to end that run; `lock` is what `status --json` says."""
    what = " ".join(filter(None, (lock["command"] or "a run", lock["version"])))
    by, since, pid = lock["user"] or "somebody", lock["since"] or "just now", lock["pid"]
    stop = f"; to stop that run cleanly: kill -INT {pid}" if pid else ""
    return f"locked: {what} by {by} since {since}, step {lock['step'] or 'start'}{stop}"


def fleet_before(run, looked):
    """The release that the host had before the module `release` ran, or None.

    The tool knows it better than the look in the first step, but has no answer if the network is lost.
    """
    return (run or {}).get("from") or (looked or {}).get("approved")


def fleet_table(hosts, hostvars):
    """The lines of a table: what each host runs now, and what this run did to it."""
    rows = [HEADINGS]
    for host in hosts:
        facts = hostvars[host]
        rows.append((host, *runs_now(facts.get("fleet_now") or {}), happened(facts)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def fleet_summary(hosts, hostvars):
    """The lines below the table: what stopped the run, and what to type. Empty if all went well."""
    failed = fleet_failed(hosts, hostvars)
    all_facts = [hostvars[host] for host in hosts]
    lines = []
    if failed:
        untouched = sum(is_untouched(facts) for facts in all_facts)
        taken_back = sum(was_taken_back(facts) for facts in all_facts)
        lines += [
            f"stopped by {listed(failed)}; not changed: {untouched}, taken back: {taken_back}"
        ]
    unknown = [host for host in hosts if is_unknown(hostvars[host].get("fleet_now") or {})]
    if unknown:
        lines += [f"it is not known what runs on {listed(unknown)}"]
    elsewhere = fleet_elsewhere(hosts, hostvars)
    known = [host for host in elsewhere if host not in unknown]
    if known:
        version = hostvars[known[0]]["fleet_version"]
        lines += [f"hosts that do not serve {version} as they should: {listed(known)}"]
    problems = [
        facts.get("fleet_problem") or facts.get("fleet_back_problem") for facts in all_facts
    ]
    if any(problems) or elsewhere:
        lines += ["fix the cause, then run the same command again; hosts that are done are skipped"]
    return lines


def listed(hosts):
    """The first few hosts by name."""
    more = len(hosts) - 5
    return ", ".join(hosts[:5]) + (f" and {more} more" if more > 0 else "")


def is_unknown(now):
    """Whether the host did not answer when last asked."""
    return "instances" not in now


def is_untouched(facts):
    """Whether the run has not begun to change what runs on the host."""
    return facts.get("fleet_run") is None and not facts.get("fleet_problem")


def was_taken_back(facts):
    """Whether the host went back to what it had."""
    back = facts.get("fleet_back") or {}
    return bool(back.get("changed")) and not has_failed(back)


def has_failed(result):
    """Whether the module has failed or could not be reached."""
    return bool(result.get("failed") or result.get("unreachable"))


def runs_now(now):
    """The approved release, and what each instance runs."""
    if is_unknown(now):
        return (UNKNOWN,) * 3
    instances = now["instances"]
    return (now["approved"] or "none", running(instances["primary"]), running(instances["backup"]))


def running(instance):
    """What an instance runs, and whether it is down."""
    if instance["state"] == "stopped":
        return "stopped"
    name = instance["running"] or UNKNOWN
    return name if instance["serving"] else name + " (down)"


def happened(facts):
    """What this run did to the host, in a few words; the whole message is shown for each host."""
    run = facts.get("fleet_run")
    problem, back = facts.get("fleet_problem"), facts.get("fleet_back") or {}
    before = fleet_before(run, facts.get("fleet_looked")) or "none"
    version = facts.get("fleet_version")
    if problem:
        words = went_wrong(problem, run)
    elif run is None:
        words = "not changed"
    elif run.get("outcome") == "dry run":
        words = f"would go from {before} to {version}"
    elif not run.get("changed"):
        words = f"had {version} already"
    elif back.get("changed") or has_failed(back):
        words = "{} to {}".format(run["outcome"], version)
    else:
        words = "{}, had {}".format(run["outcome"], before)
    if has_failed(back):
        words += f", NOT taken back to {before}"
    elif was_taken_back(facts):
        words += f", taken back to {before}"
    if run and run.get("unreachable") and is_unknown(facts.get("fleet_now") or {}):
        words += f"; runs {before} or {version}"
    if facts.get("fleet_is_out"):
        words += "; out of the load balancer"
    return words


def went_wrong(problem, run):
    """A problem in a few words."""
    if problem["unreachable"]:
        return "unreachable {}".format(problem["during"])
    if run and run.get("failed") and run.get("outcome"):
        return "{} (status {})".format(run["outcome"], run.get("status"))
    return "failed {}".format(problem["during"])


class FilterModule:
    """The filters of the playbooks."""

    def filters(self):
        """The filters by name."""
        return {
            "fleet_pattern": fleet_pattern,
            "fleet_wrong": fleet_wrong,
            "fleet_batches": fleet_batches,
            "fleet_locked": fleet_locked,
            "fleet_before": fleet_before,
            "fleet_failed": fleet_failed,
            "fleet_elsewhere": fleet_elsewhere,
            "fleet_table": fleet_table,
            "fleet_summary": fleet_summary,
        }
