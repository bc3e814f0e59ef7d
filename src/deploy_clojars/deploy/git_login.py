"""Hands git the password in the repository's URL through the environment.

Everybody on the host can read the arguments of git and of its helpers, and git shows URLs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

# A credential helper, in the shell that git runs it in.
HELPER = (
    "!login() { test \"$1\" != get || printf 'username=%s\\npassword=%s\\n' "
    '"$DEPLOY_CLOJARS_GIT_USER" "$DEPLOY_CLOJARS_GIT_PASSWORD"; }; login'
)


@dataclass(frozen=True)
class Login:
    """A URL without its password, and the options and variables from which git gets that."""

    url: str
    options: tuple[str, ...] = ()  # of git itself
    environment: dict[str, str] = field(default_factory=dict)


def login_of(url: str) -> Login:
    """Takes the user and the password out of a URL of http or https.

    A URL without a password is not changed: git asks the user's credential helpers and ~/.netrc.
    """
    parts = urlsplit(url) if url.startswith(("http://", "https://")) else None
    if parts is None or parts.password is None:
        return Login(url)
    host = parts.netloc.rpartition("@")[2]
    key = f"credential.{parts.scheme}://{host}.helper"
    return Login(
        parts._replace(netloc=host).geturl(),
        # The empty one clears the user's own helpers: git asks none for a URL with a password.
        ("-c", f"{key}=", "-c", f"{key}={HELPER}"),
        {
            "DEPLOY_CLOJARS_GIT_USER": unquote(parts.username or ""),
            "DEPLOY_CLOJARS_GIT_PASSWORD": unquote(parts.password),
        },
    )
