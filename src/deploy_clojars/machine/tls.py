"""TLS connections to servers that have proved their name."""

from __future__ import annotations

import ssl

from deploy_clojars.errors import reason
from deploy_clojars.machine import sockets


class Secured(sockets.Limited, ssl.SSLSocket):
    """A socket in TLS."""


def secured(connection: sockets.Socket, name: str, ca: str | None) -> Secured:
    """Encrypts a connection to the server of this name; `ca` is a file of certificates to trust.

    They are the server's own, or those of its issuers; without a file the system's count.
    Raises OSError, within the connection's limit.
    """
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise OSError(f"its `ca` {ca}: {reason(error)}") from None
    # The server's own certificate will do as `ca`, whoever has signed it.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.sslsocket_class = Secured
    connection.settimeout(connection.left())  # it holds for the handshake as a whole
    try:
        found = context.wrap_socket(connection, server_hostname=name)
    except ssl.SSLCertVerificationError as error:
        raise OSError(f"its certificate is not accepted: {error.verify_message}") from None
    assert isinstance(found, Secured)
    found.deadline = connection.deadline
    return found
