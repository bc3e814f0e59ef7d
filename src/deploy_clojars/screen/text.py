"""Makes text fit for a terminal, a log or another program.

Other people's text must not control a terminal, and no secret may leave.
"""

from __future__ import annotations

from deploy_clojars.masking import masked


def printable(text: str) -> str:
    """The text with a blank in place of every control, bidi or other invisible character.

    Secrets are masked. Line feeds stay. What is not Unicode, as in the names of some files, is shown
    as `\\udcff`.
    """
    text = masked(text).encode("utf-8", "backslashreplace").decode()
    return "".join(each if each.isprintable() or each == "\n" else " " for each in text)


def printable_json(document: str) -> str:
    """A JSON document that says the same, with escapes in place of such characters and no secret."""
    import json  # `status` is quicker without it

    return "".join(
        each if each.isprintable() or each == "\n" else json.dumps(each)[1:-1]
        for each in masked(document)
    )
