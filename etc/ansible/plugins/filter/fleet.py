# Copyright: the authors of deploy-clojars
# MIT License (see https://opensource.org/license/mit)
"""What became of the hosts of one run, from the facts that the playbooks set."""

from __future__ import annotations

HEADINGS = ("host", "release", "primary", "backup", "in this run")
UNKNOWN = "?"
BATCHES = [1, "10%", "100%"]
BATCHES_OUT_OF_THE_LOAD_BALANCER = [1, "10%"]  # all hosts of a batch are out at the same time


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
    if any(facts.get("fleet_problem") or facts.get("fleet_back_problem") for facts in all_facts):
        lines += [
            "once the cause is fixed, run the same command again; it leaves alone what is done"
        ]
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
    return bool(back.get("changed")) and not facts.get("fleet_back_problem")


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
    problem, back_problem = facts.get("fleet_problem"), facts.get("fleet_back_problem")
    before = (facts.get("fleet_looked") or {}).get("approved") or "none"
    version = facts.get("fleet_version")
    if problem:
        words = went_wrong(problem, run)
    elif run is None:
        words = "not changed"
    elif run.get("outcome") == "dry run":
        words = f"would go from {before} to {version}"
    elif run.get("changed"):
        words = "{}, had {}".format(run["outcome"], before)
    else:
        words = f"had {version} already"
    if back_problem:
        words += f"; NOT taken back to {before}"
    elif was_taken_back(facts):
        words += "; taken back"
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
            "fleet_batches": fleet_batches,
            "fleet_failed": fleet_failed,
            "fleet_table": fleet_table,
            "fleet_summary": fleet_summary,
        }
