"""Who signed a tag or a jar, if it is somebody whom the host trusts.

The list of signers is all that counts: `git verify-tag` would take programs, keys and formats from the
user's own settings, and an expired SSH key at the word of the tag's date.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from deploy_clojars.config import Verify
from deploy_clojars.errors import DeployError, NotReady
from deploy_clojars.machine import files, shell

BEGIN = re.compile(rb"^-----BEGIN ([A-Z ]+)-----\r?$", re.MULTILINE)
FINGERPRINT = re.compile(r"SHA256:\S+")
SECONDS = 60.0  # a large jar is hashed in that, too
TAGS, JARS = "git", "file"  # SSH signatures are for one purpose, their namespace
KEYRINGS = ("pubring.kbx", "pubring.gpg")

# What gpg says about a signature that it does not accept (doc/DETAILS in its sources).
REFUSED = {
    "BADSIG": "the signature does not match: it was changed after it was signed",
    "EXPSIG": "the signature has expired",
    "EXPKEYSIG": "the key {key} has expired",
    "REVKEYSIG": "the key {key} was revoked",
    "ERRSIG": "the key {key} is not among the keys in {signers}",
}


@dataclass(frozen=True)
class Signer:
    """Who signed, by which key."""

    name: str
    key: str  # its fingerprint

    def __str__(self) -> str:
        return f"{self.name} ({self.key})"


class NotTrusted(Exception):
    """Why a signature does not count; a clause that follows the name of what is signed."""


def refuse_unsafe_signers(settings: Verify) -> None:
    """Raises NotReady (4) if users other than root could change the lists, or if one cannot be used."""
    signers = Path(settings.signers or "")
    revoked = [Path(settings.revoked)] if settings.revoked else []
    for keys in (_keys_of(signers), *revoked):
        why = files.why_not_roots_alone(keys)
        if why is None and not os.access(keys, os.R_OK):
            why = f"{keys} cannot be read by this user"
        if why is not None:
            raise NotReady(
                f"the lists of keys in [verify] cannot be trusted: {why}",
                remedy="nothing was changed; these files and their directories must belong to root, "
                "and nobody else may be able to write them",
            )
    program = "gpg" if signers.is_dir() else "ssh-keygen"
    if shutil.which(program, path=os.defpath) is None:
        raise NotReady(f"signatures cannot be verified: {program} is not in {os.defpath}")


def signer_of_tag(content: bytes, tag: str, settings: Verify) -> Signer:
    """Who signed the tag, by the content of its tag object. Raises DeployError (1)."""
    try:
        found = list(BEGIN.finditer(content))
        if not found:
            raise NotTrusted("is not signed")
        name = re.search(rb"^tag (.*)$", content[: content.index(b"\n\n")], re.MULTILINE)
        if name is None or name[1] != os.fsencode(tag):
            signed_as = name[1].decode("utf-8", "replace") if name else "no name"
            raise NotTrusted(f"was signed as another tag, {signed_as!r}")
        start = found[-1].start()  # as git has it: what is signed may quote a signature
        with TemporaryDirectory() as directory:
            signed, signature = Path(directory, "signed"), Path(directory, "signature")
            signed.write_bytes(content[:start])
            signature.write_bytes(content[start:])
            return _signer_of(signed, signature, TAGS, settings)
    except NotTrusted as refused:
        raise DeployError(
            f"the tag {tag} {refused}",
            remedy=f"`verify.tags` demands a signature by somebody in {settings.signers}",
        ) from None


def signer_of_file(file: Path, name: str, signature: Path | None, settings: Verify) -> Signer:
    """Who made the detached signature of a file, which messages call `name`. Raises DeployError (1)."""
    try:
        if signature is None:
            raise NotTrusted("has no signature file beside it")
        if not signature.is_file():
            raise NotTrusted(f"is not signed: there is no {signature}")
        return _signer_of(file, signature, JARS, settings)
    except NotTrusted as refused:
        raise DeployError(
            f"{name} {refused}",
            remedy=f"`verify.jars` demands a signature by somebody in {settings.signers}: "
            "ssh-keygen -Y sign -n file -f KEY JAR",
        ) from None


def _signer_of(signed: Path, signature: Path, namespace: str, settings: Verify) -> Signer:
    """Raises NotTrusted."""
    signers = Path(settings.signers or "")
    with signature.open("rb") as opened:
        kind = BEGIN.match(opened.read(100))
    if kind is not None and kind[1] == b"SSH SIGNATURE":
        if signers.is_dir():
            raise NotTrusted(f"is signed by an SSH key, but {signers} has GnuPG keys")
        return _signer_by_ssh(signed, signature, namespace, settings)
    if kind is not None and kind[1] == b"PGP SIGNATURE":
        if not signers.is_dir():
            raise NotTrusted(f"is signed by a GnuPG key, but {signers} lists SSH keys")
        return _signer_by_gpg(signed, signature, signers)
    raise NotTrusted("has a signature that is neither SSH nor GnuPG")


def _signer_by_ssh(signed: Path, signature: Path, namespace: str, settings: Verify) -> Signer:
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
            return Signer(name, key[0])
    # Nothing counts from here on; it is about what to say.
    anybody = ask("check-novalidate", "-n", namespace)
    key = FINGERPRINT.search(anybody.out)
    if anybody.status != 0 or key is None:
        raise NotTrusted("has a bad signature: it was changed after it was signed")
    if any(verify(name) for name in names):
        raise NotTrusted(f"is signed by the key {key[0]}, which was revoked")
    why = re.search(r"has expired|not yet valid|not permitted for use.*", "".join(said))
    raise NotTrusted(
        f"is signed by the key {key[0]}, which is "
        + (f"in {settings.signers}, but {why[0]}" if why else f"not in {settings.signers}")
    )


def _signer_by_gpg(signed: Path, signature: Path, signers: Path) -> Signer:
    """See gpg(1), --verify, and doc/DETAILS in its sources. Raises NotTrusted."""
    with TemporaryDirectory() as home:
        words = [
            "gpg", "--no-options", "--homedir", home,
            "--no-default-keyring", "--keyring", str(_keys_of(signers)),
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
            raise NotTrusted(f"is not accepted: {why.format(key=shown, signers=signers)}")
    is_one = sum(words[0] == "NEWSIG" for words in said) == 1
    if answer.status != 0 or not is_one or not {"GOODSIG", "VALIDSIG"} <= verdicts.keys():
        last = (answer.err.strip().splitlines() or ["gpg does not say why"])[-1]
        raise NotTrusted(f"is not accepted: {last}")
    return Signer(verdicts["GOODSIG"][1], verdicts["VALIDSIG"][0])


def _asked(words: list[str], signed: Path) -> shell.Answer:
    """The system's own program, whatever the user's PATH and settings name. Raises NotTrusted."""
    program = shutil.which(words[0], path=os.defpath)
    if program is None:
        raise NotTrusted(f"cannot be verified: {words[0]} is not in {os.defpath}")
    return shell.capture(
        [program, *words[1:]], timeout=SECONDS, env={"PATH": os.defpath}, input=signed
    )


def _keys_of(signers: Path) -> Path:
    """The file with the keys: the list itself, or the keyring in a GnuPG home."""
    if not signers.is_dir():
        return signers
    return next((signers / name for name in KEYRINGS if (signers / name).exists()),
                signers / KEYRINGS[0])  # fmt: skip
