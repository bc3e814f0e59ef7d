"""What no door lets out: the passwords and tokens in URLs, and those of the configuration anywhere."""

from __future__ import annotations

import re
from base64 import b64encode
from urllib.parse import unquote

MASK = "***"

# A shorter one may be part of any word; where it stands in a URL it is masked all the same.
SHORTEST = 8  # characters

# The user and the password of a URL, as git leaves them out. A token may stand alone before the `@`,
# but who logs in by ssh is told by a key: `ssh://git@` has no secret.
# No quote and no backslash is part of it: JSON stays what it is.
_LOGIN = re.compile(r'://(?:(?<!ssh://)[^\s/?#"<>\\]+|[^\s/?#"<>\\:@]+:[^\s/?#"<>\\]+)@')
# GitLab's `private_token`, a health page's `key`, S3's `X-Amz-Signature`.
_PARAMETER = re.compile(
    r"""([?&;][\w.-]*(?:token|secret|passw(?:or)?d|key|signature)[\w.-]*=)[^\s&;#"'<>\\]+""",
    re.IGNORECASE,
)

_known: set[str] = set()


def hide(password: str, user: str = "") -> None:
    """From now on no door shows the password, as a URL has it or not, nor what a server is sent."""
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
