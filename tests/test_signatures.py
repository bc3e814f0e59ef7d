"""`[verify] tags = "signed"`: only what a trusted person has signed is deployed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from clojure_repository import ClojureRepository
from conftest import NewHost
from little_host import LittleHost
from programs import require_program, skip_or_fail

from deploy_clojars.config import Verify
from deploy_clojars.deploy.checkout import Mirror
from deploy_clojars.deploy.signatures import (
    refuse_unsafe_signers,
    signer_of_file,
    signer_of_tag,
)
from deploy_clojars.errors import DeployError, NotReady
from deploy_clojars.machine.files import why_not_roots_alone

SECOND = ClojureRepository.SECOND
PAST = "--faked-system-time=20200101T000000!"


class Keys:
    """Alice's and Bob's keys, of SSH and of GnuPG; `home` is the GnuPG home of those who sign."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.home = directory / "g"
        self.home.mkdir(mode=0o700)
        for name in ("alice", "bob"):
            key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)]
            subprocess.run(key, check=True)
        self.gpg("--quick-gen-key", "Alice <alice@example.org>", "ed25519", "sign", "never")
        self.gpg("--quick-gen-key", "Bob <bob@example.org>", "ed25519", "sign", "never")
        self.gpg(PAST, "--quick-gen-key", "Old <old@example.org>", "ed25519", "sign", "1y")
        self.trusted = directory / "trusted"
        self.trusted.mkdir(mode=0o755)
        self.trust("alice@example.org", "old@example.org")

    def gpg(self, *words: str, home: Path | None = None) -> str:
        result = subprocess.run(
            ["gpg", "--batch", "--quiet", "--passphrase", "", *words],
            env={**os.environ, "GNUPGHOME": str(home or self.home)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        return result.stdout

    def trust(self, *names: str) -> None:
        """Imports the public keys into the GnuPG home of the host."""
        keys = self.directory / "keys"
        keys.write_text(self.gpg("--armor", "--export", *names))
        self.gpg("--import", str(keys), home=self.trusted)

    def revoke(self, name: str) -> None:
        """Imports the revocation that GnuPG has made with the key."""
        key = self.gpg("--with-colons", "--list-keys", name)
        fingerprint = next(line.split(":")[9] for line in key.splitlines() if line[:3] == "fpr")
        made = (self.home / f"openpgp-revocs.d/{fingerprint}.rev").read_text()
        revocation = self.directory / "revocation"
        revocation.write_text(made.replace(":-----BEGIN", "-----BEGIN"))
        self.gpg("--import", str(revocation), home=self.trusted)

    def listed(self, name: str, options: str = "") -> Verify:
        """A list with one SSH key."""
        signers = self.directory / f"{name}.signers"
        public = (self.directory / f"{name}.pub").read_text()
        signers.write_text(f"{name}@example.org {options} {public}")
        return Verify(tags="signed", signers=str(signers))

    @property
    def of_gnupg(self) -> Verify:
        """The host's GnuPG home."""
        return Verify(tags="signed", signers=str(self.trusted))


@pytest.fixture(scope="module")
def all_keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keys]:
    require_program("gpg", "gpgconf", "ssh-keygen")
    keys = Keys(tmp_path_factory.mktemp("k"))
    yield keys
    for home in (keys.home, keys.trusted):
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=True)


@pytest.fixture
def keys(all_keys: Keys, tmp_path: Path) -> Keys:
    """The keys, and a GnuPG home of this test's own to change."""
    own = object.__new__(Keys)
    own.directory, own.home = all_keys.directory, all_keys.home
    own.trusted = tmp_path / "trusted"
    shutil.copytree(all_keys.trusted, own.trusted, ignore=shutil.ignore_patterns("S.*"))
    return own


@pytest.fixture
def own_repository(repository: ClojureRepository, tmp_path: Path) -> ClojureRepository:
    """A copy of the repository in which tags can be signed."""
    directory = tmp_path / "own"
    subprocess.run(["git", "clone", "--quiet", repository.url, directory], check=True)
    return ClojureRepository(directory)


def sign(
    repository: ClojureRepository, keys: Keys, tag: str, by: str, at: str = "HEAD", *more: str
) -> None:
    """Signs a tag by `alice`, an SSH key, or by `alice@…`, a GnuPG key."""
    if "@" in by:
        how = ["-c", "gpg.format=openpgp", "-c", "gpg.program=gpg"]
    else:
        how = ["-c", "gpg.format=ssh"]
        by = str(keys.directory / by)
    words = ["git", *how, "tag", "--force", "-u", by, "-m", f"Release {tag}", *more, tag, at]
    subprocess.run(
        words, check=True, cwd=repository.directory, capture_output=True,
        env={**os.environ, "GNUPGHOME": str(keys.home), "GIT_COMMITTER_NAME": "A",
             "GIT_COMMITTER_EMAIL": "a@example.org"},
    )  # fmt: skip


def content(repository: ClojureRepository, tag: str) -> bytes:
    return Mirror(repository.directory / ".git", repository.url, "").tag_object(tag)


def refusal(repository: ClojureRepository, tag: str, settings: Verify) -> str:
    with pytest.raises(DeployError) as refused:
        signer_of_tag(content(repository, tag), tag, settings)
    assert refused.value.status == 1
    return refused.value.message


def test_a_tag_signed_by_a_listed_ssh_key(own_repository: ClojureRepository, keys: Keys) -> None:
    sign(own_repository, keys, "1.0", "alice")
    signer = signer_of_tag(content(own_repository, "1.0"), "1.0", keys.listed("alice"))
    public = subprocess.run(
        ["ssh-keygen", "-l", "-f", keys.directory / "alice.pub"], capture_output=True, text=True,
        check=True,
    ).stdout  # fmt: skip
    assert signer == f"alice@example.org ({public.split()[1]})"


def test_a_tag_signed_by_a_listed_gnupg_key(own_repository: ClojureRepository, keys: Keys) -> None:
    sign(own_repository, keys, "1.0", "alice@example.org")
    signer = signer_of_tag(content(own_repository, "1.0"), "1.0", keys.of_gnupg)
    name, _, key = signer.rpartition(" (")
    assert name == "Alice <alice@example.org>"
    listed = keys.gpg("--with-colons", "--list-keys", "alice@example.org")
    assert f":{key.removesuffix(')')}:" in listed


@pytest.mark.parametrize(
    ("by", "options", "why"),
    [
        ("bob", "", "alice.signers"),
        ("alice", "Doe", "alice.signers (line 1: bad options: unknown key option)"),
        ("alice", 'valid-before="20200101"', "but has expired"),
        ("alice", 'valid-after="21000101"', "but not yet valid"),
        ("alice", 'namespaces="file"', 'but not permitted for use in signature namespace "git"'),
    ],
)
def test_an_ssh_key_that_does_not_count(
    own_repository: ClojureRepository, keys: Keys, by: str, options: str, why: str
) -> None:
    sign(own_repository, keys, "1.0", by)
    message = refusal(own_repository, "1.0", keys.listed("alice", options))
    assert message.endswith(why)
    assert ("which is not in " in message) == ("alice.signers" in why)


def test_an_expired_ssh_key_does_not_count_for_a_tag_with_an_older_date(
    own_repository: ClojureRepository, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_COMMITTER_DATE", "2019-01-01T00:00:00Z")
    sign(own_repository, keys, "1.0", "alice")
    settings = keys.listed("alice", 'valid-before="20200101"')
    assert "has expired" in refusal(own_repository, "1.0", settings)


def test_a_revoked_ssh_key(own_repository: ClojureRepository, keys: Keys) -> None:
    sign(own_repository, keys, "1.0", "alice")
    listed = keys.listed("alice")
    revoked = Verify("signed", "any", listed.signers, str(keys.directory / "alice.pub"))
    assert "which was revoked" in refusal(own_repository, "1.0", revoked)
    other = Verify("signed", "any", listed.signers, str(keys.directory / "bob.pub"))
    assert signer_of_tag(content(own_repository, "1.0"), "1.0", other).startswith(
        "alice@example.org ("
    )


def test_a_gnupg_key_that_is_not_there(own_repository: ClojureRepository, keys: Keys) -> None:
    sign(own_repository, keys, "1.0", "bob@example.org")
    assert "is not among the keys in" in refusal(own_repository, "1.0", keys.of_gnupg)


def test_an_expired_gnupg_key(
    own_repository: ClojureRepository, keys: Keys, tmp_path: Path
) -> None:
    program = tmp_path / "gpg-of-2020"
    program.write_text(f'#!/bin/sh\nexec gpg {PAST} "$@"\n')
    program.chmod(0o755)
    subprocess.run(
        ["git", "-c", f"gpg.program={program}", "-c", "gpg.format=openpgp", "tag", "-u",
         "old@example.org", "-m", "x", "1.0"],
        check=True, cwd=own_repository.directory,
        env={**os.environ, "GNUPGHOME": str(keys.home), "GIT_COMMITTER_NAME": "A",
             "GIT_COMMITTER_EMAIL": "a@example.org"},
    )  # fmt: skip
    assert "of Old <old@example.org> has expired" in refusal(own_repository, "1.0", keys.of_gnupg)


def test_a_revoked_gnupg_key(own_repository: ClojureRepository, keys: Keys) -> None:
    sign(own_repository, keys, "1.0", "alice@example.org")
    keys.revoke("alice@example.org")
    message = refusal(own_repository, "1.0", keys.of_gnupg)
    assert "of Alice <alice@example.org> was revoked" in message


@pytest.mark.parametrize("by", ["alice", "alice@example.org"])
def test_a_tag_that_was_changed_after_it_was_signed(
    own_repository: ClojureRepository, keys: Keys, by: str
) -> None:
    sign(own_repository, keys, "1.0", by)
    settings = keys.of_gnupg if "@" in by else keys.listed("alice")
    commit, other = own_repository.commit("1.0"), own_repository.commit(SECOND)
    changed = content(own_repository, "1.0").replace(commit.encode(), other.encode())
    with pytest.raises(DeployError, match="it was changed after it was signed"):
        signer_of_tag(changed, "1.0", settings)


def test_a_signed_tag_under_another_name(own_repository: ClojureRepository, keys: Keys) -> None:
    sign(own_repository, keys, "1.0", "alice")
    own_repository.git("update-ref", "refs/tags/2.0", "refs/tags/1.0")
    message = refusal(own_repository, "2.0", keys.listed("alice"))
    assert message == "the tag 2.0 was signed as another tag, '1.0'"


def test_the_name_in_the_message_of_a_tag_does_not_count(
    own_repository: ClojureRepository, keys: Keys
) -> None:
    sign(own_repository, keys, "1.0", "alice", "HEAD", "-m", "tag 2.0")
    own_repository.git("update-ref", "refs/tags/2.0", "refs/tags/1.0")
    assert "as another tag" in refusal(own_repository, "2.0", keys.listed("alice"))


def test_tags_without_a_signature(own_repository: ClojureRepository, keys: Keys) -> None:
    own_repository.git("tag", "light", f"{SECOND}^{{commit}}")
    own_repository.git("tag", "-a", "-m", "annotated", "unsigned", f"{SECOND}^{{commit}}")
    assert "is lightweight" in refusal(own_repository, "light", keys.listed("alice"))
    assert "is not signed" in refusal(own_repository, "unsigned", keys.listed("alice"))


@pytest.mark.parametrize(("by", "other"), [("alice@example.org", "SSH"), ("alice", "GnuPG")])
def test_a_key_of_the_other_kind(
    own_repository: ClojureRepository, keys: Keys, by: str, other: str
) -> None:
    sign(own_repository, keys, "1.0", by)
    settings = keys.listed("alice") if "@" in by else keys.of_gnupg
    assert f"{other} keys" in refusal(own_repository, "1.0", settings)


def test_a_list_that_others_could_change(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        skip_or_fail("needs root, to own the list of signers")
    signers = tmp_path / "signers"
    settings = Verify("signed", signers=str(signers))
    with pytest.raises(NotReady, match="No such file"):
        refuse_unsafe_signers(settings)
    signers.touch(0o644)
    refuse_unsafe_signers(settings)
    signers.chmod(0o664)
    with pytest.raises(NotReady, match=f"users other than root can write to {signers}"):
        refuse_unsafe_signers(settings)
    signers.chmod(0o644)
    tmp_path.chmod(0o777)
    with pytest.raises(NotReady, match=f"users other than root can write to {tmp_path}"):
        refuse_unsafe_signers(settings)
    tmp_path.chmod(0o700)
    os.chown(signers, 1, 1)
    assert why_not_roots_alone(signers) == f"{signers} does not belong to root"


def test_a_link_to_the_list_that_others_could_lead_elsewhere(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        skip_or_fail("needs root, to own the list of signers")
    signers, others = tmp_path / "signers", tmp_path / "others"
    signers.touch(0o644)
    others.mkdir(0o755)
    link = others / "link"
    link.symlink_to(signers)
    assert why_not_roots_alone(link) is None
    others.chmod(0o777)
    assert why_not_roots_alone(link) == f"users other than root can write to {others}"
    others.chmod(0o1777)
    assert why_not_roots_alone(link) is None
    os.lchown(link, 1, 1)
    assert why_not_roots_alone(link) == f"{link} does not belong to root"


def test_keys_that_the_production_user_cannot_read() -> None:
    if os.geteuid() != 0:
        skip_or_fail("needs root, to own the list of signers")
    with TemporaryDirectory() as directory:  # others can enter it, unlike pytest's
        Path(directory).chmod(0o755)
        home, signers = Path(directory, "gnupg"), Path(directory, "signers")
        home.mkdir(0o700)  # as GnuPG makes it
        (home / "pubring.kbx").touch()
        signers.touch(0o600)
        with as_another_user():
            for each, file in ((home, home / "pubring.kbx"), (signers, signers)):
                with pytest.raises(NotReady, match=f"cannot be used: {file}") as refused:
                    refuse_unsafe_signers(Verify("signed", signers=str(each)))
                assert "must belong to root, be readable by this user" in refused.value.remedy


@contextmanager
def as_another_user() -> Iterator[None]:
    groups = os.getgroups()
    os.setgroups([])
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setgroups(groups)


# A whole deploy


@pytest.fixture
def host(new_light_host: NewHost, own_repository: ClojureRepository, keys: Keys) -> LittleHost:
    """A host that demands a signature by Alice."""
    if os.geteuid() != 0:
        skip_or_fail("needs root, to own the list of signers")
    signers = keys.listed("alice").signers
    host = new_light_host(verify=f'tags = "signed"\nsigners = "{signers}"')
    host.write_config(top=f'repository = "{own_repository.url}"\nhome = "{host.home}"')
    host.serving(ClojureRepository.FIRST)
    return host


def test_a_signed_tag_is_deployed_and_its_signer_shown_and_kept(
    host: LittleHost, own_repository: ClojureRepository, keys: Keys
) -> None:
    sign(own_repository, keys, SECOND, "alice", f"{SECOND}^{{commit}}")
    with host.typing(SECOND) as terminal:
        terminal.asked()
        assert "signed by alice@example.org (SHA256:" in terminal.shown
        terminal.types("yes")
        terminal.ends(0)
    [verified] = [line for line in host.events if line["event"] == "verified"]
    assert verified["version"] == SECOND
    assert verified["signer"].startswith("alice@example.org (SHA256:")


def test_what_nobody_trusted_has_signed_is_neither_checked_out_nor_reused(
    host: LittleHost, own_repository: ClojureRepository, keys: Keys, tmp_path: Path
) -> None:
    # The user's own settings trust Bob, and a program that trusts everybody.
    sign(own_repository, keys, SECOND, "bob", f"{SECOND}^{{commit}}")
    settings = tmp_path / "gitconfig"
    settings.write_text(
        '[gpg]\n\tprogram = true\n[gpg "ssh"]\n\tprogram = true\n'
        f"\tallowedSignersFile = {keys.listed('bob').signers}\n"
    )
    host.environment = {**host.environment, "GIT_CONFIG_GLOBAL": str(settings)}
    host.have(SECOND)
    for words in ((SECOND, "--yes"), ("deploy", SECOND, "--dry-run")):
        result = host.run(*words)
        assert result.returncode == 1, result.stderr
        assert f"the tag {SECOND} is signed by the key SHA256:" in result.stderr
        assert "which is not in" in result.stderr
    assert not list(host.deploy.glob("checkouts/*"))
    assert host.status["ok"]
    sign(own_repository, keys, SECOND, "alice", f"{SECOND}^{{commit}}")
    host.done("deploy", SECOND, "--dry-run")
    host.done(SECOND, "--yes")


def test_a_list_that_others_can_change_is_refused_before_anything_is_done(
    host: LittleHost, keys: Keys
) -> None:
    signers = Path(keys.listed("alice").signers or "")
    assert f"ok  only tags signed by somebody in {signers} are deployed" in host.run("check").stdout
    signers.chmod(0o666)
    try:
        result = host.run(SECOND, "--yes")
        assert result.returncode == 4, result.stderr
        assert "users other than root can write to" in result.stderr
        assert f"users other than root can write to {signers}" in host.run("check").stdout
    finally:
        signers.chmod(0o644)


# Jars that were built elsewhere


def sign_jar(jar: Path, keys: Keys, by: str = "alice", purpose: str = "file") -> None:
    Path(f"{jar}.sig").unlink(missing_ok=True)  # ssh-keygen would ask whether to overwrite it
    key = str(keys.directory / by)
    words = ["ssh-keygen", "-q", "-Y", "sign", "-n", purpose, "-f", key, str(jar)]
    subprocess.run(words, check=True, capture_output=True)


@pytest.fixture
def host_for_jars(new_light_host: NewHost, keys: Keys) -> LittleHost:
    """A host that demands Alice's signature of a jar."""
    if os.geteuid() != 0:
        skip_or_fail("needs root, to own the list of signers")
    signers = keys.listed("alice").signers
    host = new_light_host(verify=f'jars = "signed"\nsigners = "{signers}"')
    host.serving(ClojureRepository.FIRST)
    return host


def test_a_jar_needs_a_signature_by_somebody_in_the_list(
    host_for_jars: LittleHost, keys: Keys, tmp_path: Path
) -> None:
    host = host_for_jars
    jar = Path(shutil.copyfile(host.jar(SECOND), tmp_path / "elsewhere.jar"))
    words = ("deploy", SECOND, "--jar", str(jar), "--yes")

    def refusal_of(*words: str) -> str:
        result = host.run(*words)
        assert result.returncode == 1, result.stderr
        assert not (host.releases / f"clojars-web-{SECOND}-standalone.jar").exists()
        return result.stderr

    assert f"{jar} is not signed: there is no {jar}.sig" in refusal_of(*words)
    sign_jar(jar, keys, purpose="git")
    assert "was signed for another purpose than 'file' (ssh-keygen's -n)" in refusal_of(*words)
    sign_jar(jar, keys, "bob")
    assert "which is not in" in refusal_of(*words)
    sign_jar(jar, keys)
    content = jar.read_bytes()
    shutil.copyfile(host.jar(ClojureRepository.THIRD), jar)
    assert "it was changed after it was signed" in refusal_of(*words)
    sign_jar(jar, keys)
    said = f"{jar} is version {ClojureRepository.THIRD}, not {SECOND}"
    assert said in refusal_of(*words)
    jar.write_bytes(content)
    sign_jar(jar, keys)
    result = host.done(*words)
    assert "signed by alice@example.org (SHA256:" in result.stderr
    # And once it is there, its signer is known.
    host.done("rollback", ClojureRepository.FIRST, "--yes")
    assert "signed by alice@example.org (SHA256:" in host.done(SECOND, "--yes").stderr


def test_a_jar_signed_by_gnupg(keys: Keys, tmp_path: Path) -> None:
    jar, signature = tmp_path / "app.jar", tmp_path / "app.jar.sig"
    settings = Verify(jars="signed", signers=str(keys.trusted))
    words = ["--yes", "--detach-sign", "-u", "alice@example.org", "-o", str(signature), str(jar)]
    jar.write_bytes(b"jar")
    keys.gpg("--armor", *words)
    signer = signer_of_file(jar, "app.jar", signature, settings)
    assert signer.startswith("Alice <alice@example.org> (")
    jar.write_bytes(b"other")
    with pytest.raises(DeployError, match=r"app.jar is not accepted: .* was changed after it"):
        signer_of_file(jar, "app.jar", signature, settings)
    keys.gpg(*words)
    with pytest.raises(DeployError, match="neither SSH nor armored GnuPG") as refused:
        signer_of_file(jar, "app.jar", signature, settings)
    assert "gpg --armor --detach-sign -o JAR.sig JAR" in refused.value.remedy


def test_a_jar_that_came_before_signatures_were_demanded_is_not_reused(
    host_for_jars: LittleHost, keys: Keys, tmp_path: Path
) -> None:
    host = host_for_jars
    jar = Path(shutil.copyfile(host.jar(SECOND), tmp_path / "elsewhere.jar"))
    settings = host.options.pop("verify")
    host.write_config()
    host.done("deploy", SECOND, "--jar", str(jar), "--yes")
    host.done("rollback", ClojureRepository.FIRST, "--yes")
    host.write_config(verify=settings)
    result = host.run(SECOND, "--yes")
    assert result.returncode == 1
    assert f"release {SECOND} was not signed when it was installed" in result.stderr
    assert "give a signed jar another version\n" in result.stderr


def test_what_the_command_fetches_needs_a_signature_too(
    host_for_jars: LittleHost, keys: Keys, tmp_path: Path
) -> None:
    host = host_for_jars
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    jar = Path(shutil.copyfile(host.jar(SECOND), bucket / "app.jar"))
    host.write_config(release=f'command = "cp {bucket}/* ."')
    assert "is not signed: there is no " in host.run(SECOND, "--yes").stderr
    sign_jar(jar, keys)
    assert "signed by alice@example.org" in host.done(SECOND, "--yes").stderr
