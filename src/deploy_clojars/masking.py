"""Masks secrets: passwords and tokens in URLs, and the passwords of the configuration anywhere."""

from __future__ import annotations

import re
from base64 import b64encode
from urllib.parse import unquote

MASK = "***"

# A shorter password may be part of any word; in a URL it is masked all the same.
SHORTEST = 8  # characters

# The user and the password of a URL, as git leaves them out. A token may stand alone before the `@`;
# but ssh logs in with a key, so `ssh://git@` holds no secret.
# It never matches a quote or a backslash, so JSON stays valid.
_LOGIN = re.compile(r'://(?:(?<!ssh://)[^\s/?#"<>\\]+|[^\s/?#"<>\\:@]+:[^\s/?#"<>\\]+)@')
# GitLab's `private_token`, a health page's `key`, S3's `X-Amz-Signature`.
_PARAMETER = re.compile(
    r"""([?&;][\w.-]*(?:token|secret|passw(?:or)?d|key|signature)[\w.-]*=)[^\s&;#"'<>\\]+""",
    re.IGNORECASE,
)

_known: set[str] = set()


def hide(password: str, user: str = "") -> None:
    """Has the password masked from now on: plain, in the encoding of a URL, and as sent to a server."""
    plain, plain_user = unquote(password), unquote(user)
    login = b64encode(f"{plain_user}:{plain}".encode("utf-8", "surrogateescape")).decode()
    in_json = (each.replace("\\", r"\\").replace('"', r"\"") for each in (password, plain))
    _known.update(each for each in (password, plain, login, *in_json) if len(each) >= SHORTEST)


def masked(text: str) -> str:
    """The text with `***` in place of every secret."""
    for secret in sorted(_known, key=len, reverse=True):
        text = text.replace(secret, MASK)
    if "://" in text:
        text = _LOGIN.sub(f"://{MASK}@", text)
    return _PARAMETER.sub(rf"\1{MASK}", text)
