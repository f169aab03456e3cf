"""The keys that credentials are sealed with: from a file that only its owner can read, or from the environment.

    HEADRACE_CREDENTIAL_KEY_FILE   path of a key file (mode 0600)
    HEADRACE_CREDENTIAL_KEYS       the same text, with commas in place of line ends

One key a line, 32 bytes as URL-safe base64; empty lines and lines that begin with # do not count. The first key seals,
all of them open: so a key is rotated by a new first line, `headrace credential reseal`, and taking the old line away.
A key goes by an id that follows from it. The file is read each time, so that no process needs a restart for it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from headrace.model.credential import SealedValue
from headrace.model.errors import InvalidInput, WrongState

FILE_VARIABLE = "HEADRACE_CREDENTIAL_KEY_FILE"
KEYS_VARIABLE = "HEADRACE_CREDENTIAL_KEYS"
KEY_BYTES = 32
NONCE_BYTES = 12
MAX_KEYS = 16
MAX_FILE_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True, repr=False)
class SealingKey:
    """A key and its id: 8 hex digits that follow from it and tell nothing about it."""

    id: str
    secret: bytes


class KeyRing:
    """Seals and opens. `source` says where the keys come from, for errors."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._file = environ.get(FILE_VARIABLE, "")
        self._text = environ.get(KEYS_VARIABLE, "")

    @property
    def source(self) -> str:
        """`file PATH`, `$HEADRACE_CREDENTIAL_KEYS`, or empty where nothing was given."""
        return f"file {self._file}" if self._file else f"${KEYS_VARIABLE}" if self._text else ""

    def keys(self) -> list[SealingKey]:
        """As they are now; WrongState where there are none, or the file cannot be used."""
        if self._file:
            return parse_keys(_read(Path(self._file)), self.source)
        if self._text:
            return parse_keys(self._text.replace(",", "\n"), self.source)
        raise WrongState(
            "there is no key for credentials",
            reason="CREDENTIAL_KEY_MISSING",
            next_step=f"Start the mesh with `headrace up`, or set {FILE_VARIABLE} for orchestrators and agent",
        )

    def seal(self, raw: bytes, bound_to: bytes) -> SealedValue:
        """Encrypts with the first key. A value opens only with the same `bound_to`."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        key, nonce = self.keys()[0], secrets.token_bytes(NONCE_BYTES)
        return SealedValue(key.id, nonce, AESGCM(key.secret).encrypt(nonce, raw, bound_to + b"\n" + key.id.encode()))

    def open(self, sealed: SealedValue, bound_to: bytes, what: str) -> bytes:
        """The clear value; WrongState where its key is not there, or it is not what it should be: never a part."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        key = next((key for key in self.keys() if key.id == sealed.key_id), None)
        if key is None:
            raise WrongState(
                f"{what} is sealed with key {sealed.key_id}, which is not in {self.source}",
                reason="CREDENTIAL_KEY_MISSING",
                next_step="Put that key back as a line of the key file; without it give the credential a new value",
                metadata={"key_id": sealed.key_id},
            )
        try:
            return AESGCM(key.secret).decrypt(sealed.nonce, sealed.ciphertext, bound_to + b"\n" + key.id.encode())
        except (InvalidTag, ValueError) as error:
            raise WrongState(
                f"{what} does not open: what is stored was altered, or belongs to something else",
                reason="CREDENTIAL_DAMAGED",
                next_step="Give the credential a new value: headrace credential update",
            ) from error

    def fingerprint(self, raw: bytes) -> bytes:
        """A digest that nobody without the key can hold guesses against."""
        return hashlib.blake2b(raw, key=self.keys()[0].secret, digest_size=16).digest()


def without_keys(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment for a process that has nothing to do with credentials."""
    return {name: value for name, value in environ.items() if name not in (FILE_VARIABLE, KEYS_VARIABLE)}


def new_key() -> str:
    """A fresh key, as a line of a key file."""
    return base64.urlsafe_b64encode(secrets.token_bytes(KEY_BYTES)).decode()


def make_key_file(path: Path) -> None:
    """Writes a key file (0600) with one fresh key, unless there is one; two that do so at once agree."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return
    with os.fdopen(descriptor, "w") as opened:
        opened.write(f"# Keys of this mesh's credentials. Keep a copy: without it they are lost.\n{new_key()}\n")
        opened.flush()
        os.fsync(descriptor)


def parse_keys(text: str, source: str) -> list[SealingKey]:
    """The keys of a key file's text; WrongState, which shows none of it, where a line is no key."""
    keys: list[SealingKey] = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        try:
            secret = base64.b64decode(line.replace("-", "+").replace("_", "/"), validate=True)
        except (binascii.Error, ValueError):
            secret = b""
        if len(secret) != KEY_BYTES:
            raise _unusable(source, f"line {number} is not {KEY_BYTES} bytes of base64")
        keys.append(SealingKey(hashlib.sha256(b"headrace key id\n" + secret).hexdigest()[:8], secret))
    if not keys:
        raise _unusable(source, "it holds no key")
    if len(keys) > MAX_KEYS:
        raise _unusable(source, f"it holds more than {MAX_KEYS} keys")
    return keys


def check_key_file(path: Path) -> None:
    """InvalidInput where a key file that a person named cannot be used."""
    try:
        parse_keys(_read(path), f"file {path}")
    except WrongState as error:
        raise InvalidInput.at(
            "credential-key-file", str(path), f"cannot be used: {error.message}", reason=error.reason,
            next_step=error.next_step,
        ) from error  # fmt: skip


def _read(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise WrongState(
            f"the key file {path} cannot be read: {error.strerror}",
            reason="CREDENTIAL_KEY_MISSING",
            next_step="Put the file back from your copy; what is sealed with its keys cannot be opened without",
        ) from error
    with os.fdopen(descriptor, "rb") as opened:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise _unusable(f"file {path}", "it is not a file")
        if stat.S_IMODE(found.st_mode) & 0o077:
            raise _unusable(
                f"file {path}", f"others may read it (mode {stat.S_IMODE(found.st_mode):04o})", f"chmod 600 {path}"
            )
        if found.st_uid not in (os.getuid(), 0):
            raise _unusable(f"file {path}", "it belongs to somebody else")
        return opened.read(MAX_FILE_BYTES).decode(errors="replace")


def _unusable(source: str, why: str, next_step: str = "") -> WrongState:
    return WrongState(
        f"the credential keys of {source} cannot be used: {why}",
        reason="CREDENTIAL_KEY_UNUSABLE",
        next_step=next_step or "One key a line: 32 bytes as base64, made by `headrace credential new-key`",
    )
