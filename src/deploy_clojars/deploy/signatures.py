"""Who signed a tag or a jar, if it is somebody whom the host trusts.

The list of signers is all that counts: `git verify-tag` would take programs, keys and formats from the
user's own settings, and would accept an expired SSH key for a tag with an older date.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from deploy_clojars.config import Verify
from deploy_clojars.errors import DeployError, NotReady
from deploy_clojars.machine import files, shell

BEGIN = re.compile(rb"^-----BEGIN ([A-Z ]+)-----\r?$", re.MULTILINE)
FINGERPRINT = re.compile(r"SHA256:\S+")
SECONDS = 60.0  # enough to hash a large jar
TAGS, JARS = "git", "file"  # SSH signatures are for one purpose, their namespace
SIGN_BY_SSH = f"ssh-keygen -Y sign -n {JARS} -f KEY JAR"
SIGN_BY_GPG = "gpg --armor --detach-sign -o JAR.sig JAR"
KEYRINGS = ("pubring.kbx", "pubring.gpg")

# What gpg says about a signature that it does not accept (doc/DETAILS in its sources).
REFUSED = {
    "BADSIG": "the signature does not match: it was changed after it was signed",
    "EXPSIG": "the signature has expired",
    "EXPKEYSIG": "the key {key} has expired",
    "REVKEYSIG": "the key {key} was revoked",
    "ERRSIG": "the key {key} is not among the keys in {signers}",
}


class NotTrusted(Exception):
    """Why a signature does not count; a clause that follows the name of what is signed."""


def refuse_unsafe_signers(settings: Verify) -> None:
    """Raises NotReady (4) if users other than root could change the lists, or if one cannot be used."""
    revoked = [Path(settings.revoked)] if settings.revoked else []
    for keys in (_keys_of(settings), *revoked):
        why = files.why_not_roots_alone(keys)
        if why is None and not os.access(keys, os.R_OK):
            why = f"{keys} cannot be read by this user"
        if why is not None:
            raise NotReady(
                f"the lists of keys in [verify] cannot be used: {why}",
                remedy="nothing was changed; these files and their directories must belong to root, "
                "be readable by this user, and be writable by nobody else",
            )
    program = "gpg" if _are_of_gnupg(settings) else "ssh-keygen"
    if shutil.which(program, path=os.defpath) is None:
        raise NotReady(
            f"signatures cannot be verified: {program} is not in {os.defpath}",
            remedy="nothing was changed",
        )


def signer_of_tag(content: bytes, tag: str, settings: Verify) -> str:
    """Who signed the tag by which key, from the content of its tag object. Raises DeployError (1)."""
    with _demanded("tags", f"the tag {tag}", settings), TemporaryDirectory() as directory:
        found = list(BEGIN.finditer(content))
        if not found:
            raise NotTrusted("is not signed")
        name = re.search(rb"^tag (.*)$", content[: content.index(b"\n\n")], re.MULTILINE)
        if name is None or name[1] != os.fsencode(tag):
            signed_as = name[1].decode("utf-8", "replace") if name else "no name"
            raise NotTrusted(f"was signed as another tag, {signed_as!r}")
        start = found[-1].start()  # as git has it: what is signed may quote a signature
        signed, signature = Path(directory, "signed"), Path(directory, "signature")
        signed.write_bytes(content[:start])
        signature.write_bytes(content[start:])
        return _signer_of(signed, signature, TAGS, settings)


def signer_of_file(file: Path, name: str, signature: Path | None, settings: Verify) -> str:
    """Who signed a file by which key, from its detached signature; messages call the file `name`.

    Raises DeployError (1).
    """
    with _demanded("jars", name, settings):
        if signature is None:
            raise NotTrusted("has no signature file beside it")
        if not signature.is_file():
            raise NotTrusted(f"is not signed: there is no {signature}")
        return _signer_of(file, signature, JARS, settings)


@contextmanager
def _demanded(key: str, what: str, settings: Verify) -> Iterator[None]:
    """Raises DeployError (1) if the block finds that `what` is not signed as `verify.KEY` demands."""
    try:
        yield
    except NotTrusted as refused:
        remedy = f"`verify.{key}` requires a signature by a key in {settings.signers}"
        if key == "jars":
            sign = SIGN_BY_GPG if _are_of_gnupg(settings) else SIGN_BY_SSH
            remedy += f"; to sign a jar: {sign}"
        raise DeployError(f"{what} {refused}", remedy=remedy) from None


def _signer_of(signed: Path, signature: Path, namespace: str, settings: Verify) -> str:
    """Raises NotTrusted."""
    with signature.open("rb") as opened:
        kind = BEGIN.match(opened.read(100))
    if kind is not None and kind[1] == b"SSH SIGNATURE":
        if _are_of_gnupg(settings):
            raise NotTrusted(f"is signed by an SSH key, but {settings.signers} has GnuPG keys")
        return _signer_by_ssh(signed, signature, namespace, settings)
    if kind is not None and kind[1] == b"PGP SIGNATURE":
        if not _are_of_gnupg(settings):
            raise NotTrusted(f"is signed by a GnuPG key, but {settings.signers} lists SSH keys")
        return _signer_by_gpg(signed, signature, settings)
    raise NotTrusted("has a signature that is neither SSH nor armored GnuPG")


def _signer_by_ssh(signed: Path, signature: Path, namespace: str, settings: Verify) -> str:
    """See ssh-keygen(1), -Y verify. Raises NotTrusted."""

    def ask(action: str, *options: str) -> shell.Answer:
        words = ["ssh-keygen", "-Y", action, "-s", str(signature), *options]
        return _asked(words, signed)

    def verify(name: str, *options: str) -> re.Match[str] | None:
        answer = ask("verify", *listed, "-I", name, "-n", namespace, *options)
        said.append(answer.err)
        return FINGERPRINT.search(answer.out) if answer.status == 0 else None

    listed = ("-f", str(settings.signers))
    revoked = ("-r", settings.revoked) if settings.revoked else ()
    found = ask("find-principals", *listed)
    said = [found.err]
    names = found.out.splitlines() if found.status == 0 else []
    for name in names:
        key = verify(name, *revoked)
        if key is not None:
            return f"{name} ({key[0]})"
    # From here on it is only about what to say.
    anybody = ask("check-novalidate", "-n", namespace)
    key = FINGERPRINT.search(anybody.out)
    if "namespace does not match" in anybody.err:
        raise NotTrusted(f"was signed for another purpose than {namespace!r} (ssh-keygen's -n)")
    if anybody.status != 0 or key is None:
        raise NotTrusted("has a bad signature: it was changed after it was signed")
    if any(verify(name) for name in names):
        raise NotTrusted(f"is signed by the key {key[0]}, which was revoked")
    listed_but = re.search(r"has expired|not yet valid|not permitted for use.*", "".join(said))
    if listed_but:
        why = f"in {settings.signers}, but {listed_but[0]}"
    else:
        unread = re.search(r":(\d+: .*)", found.err)
        why = f"not in {settings.signers}" + (f" (line {unread[1]})" if unread else "")
    raise NotTrusted(f"is signed by the key {key[0]}, which is {why}")


def _signer_by_gpg(signed: Path, signature: Path, settings: Verify) -> str:
    """See gpg(1), --verify, and doc/DETAILS in its sources. Raises NotTrusted."""
    with TemporaryDirectory() as home:
        words = [
            "gpg", "--no-options", "--homedir", home,
            "--no-default-keyring", "--keyring", str(_keys_of(settings)),
            "--trust-model", "always", "--no-auto-check-trustdb", "--no-auto-key-locate",
            "--batch", "--status-fd", "1", "--verify", str(signature), str(signed),
        ]  # fmt: skip
        answer = _asked(words, signed)
    said = [
        line.split(" ", 3)[1:] for line in answer.out.splitlines() if line.startswith("[GNUPG:]")
    ]
    verdicts = {words[0]: words[1:] for words in said}
    for verdict, why in REFUSED.items():
        if verdict in verdicts:
            key = " ".join(verdicts[verdict]).split(" ", 1)
            shown = f"{key[0]} of {key[1]}" if verdict != "ERRSIG" else key[0]
            raise NotTrusted(f"is not accepted: {why.format(key=shown, signers=settings.signers)}")
    is_one = sum(words[0] == "NEWSIG" for words in said) == 1
    if answer.status != 0 or not is_one or not {"GOODSIG", "VALIDSIG"} <= verdicts.keys():
        last = (answer.err.strip().splitlines() or ["gpg gives no reason"])[-1]
        raise NotTrusted(f"is not accepted: {last}")
    return f"{verdicts['GOODSIG'][1]} ({verdicts['VALIDSIG'][0]})"


def _asked(words: list[str], signed: Path) -> shell.Answer:
    """The system's own program, whatever the user's PATH and settings name. Raises NotTrusted."""
    program = shutil.which(words[0], path=os.defpath)
    if program is None:
        raise NotTrusted(f"cannot be verified: {words[0]} is not in {os.defpath}")
    return shell.capture(
        [program, *words[1:]], timeout=SECONDS, env={"PATH": os.defpath}, input=signed
    )


def _are_of_gnupg(settings: Verify) -> bool:
    """Whether the signers' keys are in a GnuPG home, and not in a list of SSH keys."""
    return os.path.isdir(settings.signers or "")


def _keys_of(settings: Verify) -> Path:
    """The file with the keys: the list itself, or the keyring in a GnuPG home."""
    signers = Path(settings.signers or "")
    if not _are_of_gnupg(settings):
        return signers
    found = (signers / name for name in KEYRINGS if os.path.exists(signers / name))
    return next(found, signers / KEYRINGS[0])
