"""Payloads that the Temporal server stores but cannot read.

They are encrypted by AES-GCM, with keys that can be replaced. The wire format is that of Temporal's encryption samples
(``binary/encrypted``, the key's id in the metadata, a nonce of 12 bytes before the ciphertext). Codec servers and SDKs
that follow the samples understand it.
"""

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from temporalio.api.common.v1 import Payload
from temporalio.converter import PayloadCodec

try:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
except ImportError as error:
    raise ImportError(
        'encryption of payloads needs cryptography: pip install "durably[temporal-encryption]"'
    ) from error

from .errors import PayloadEncryptionError, TemporalSettingsError

__all__ = ["EncryptionCodec", "EncryptionKey", "PayloadEncryptionError"]

_ENCODING = b"binary/encrypted"
_NONCE_BYTES = 12
_HOW_TO_MAKE = "`durably temporal encryption-key` makes one"


@dataclass(frozen=True)
class EncryptionKey:
    """A key, and the id by which payloads refer to it.

    The key has 16, 24 or 32 bytes (AES-128, -192, -256).
    """

    id: str
    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        _check_length(self.key, f'the encryption key "{self.id}"')

    @classmethod
    def parse(cls, text: str) -> "EncryptionKey":
        """Read a key from ``id:key``, the key in Base64.

        Raises ``TemporalSettingsError``, which does not contain the input.
        """
        id, colon, encoded = text.strip().partition(":")
        if not colon or not id:
            raise TemporalSettingsError(f"an encryption key is written id:key, the key in Base64; {_HOW_TO_MAKE}")
        try:
            key = base64.b64decode(encoded, validate=True)
        except ValueError:
            raise TemporalSettingsError(f"the key of an encryption key id:key is not Base64; {_HOW_TO_MAKE}") from None
        _check_length(key, "an encryption key id:key")
        return cls(id, key)

    @classmethod
    def parse_all(cls, keys: str | Sequence[str]) -> list["EncryptionKey"]:
        """Read keys from a list of such strings, or one string with commas between them.

        Raises ``TemporalSettingsError``.
        """
        texts = keys.split(",") if isinstance(keys, str) else keys
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
            raise TemporalSettingsError("encryption keys are a list of strings, each written id:key")
        found = []
        for number, text in enumerate(texts, start=1):
            try:
                found.append(cls.parse(text))
            except TemporalSettingsError as error:
                raise TemporalSettingsError(f"encryption key {number} of {len(texts)}: {error}") from None
        return found

    @classmethod
    def generate(cls, id: str) -> "EncryptionKey":
        return cls(id, os.urandom(32))

    def export(self) -> str:
        """The string that ``parse`` reads, which is a secret."""
        return f"{self.id}:{base64.b64encode(self.key).decode()}"


def _check_length(key: bytes, what: str) -> None:
    if len(key) not in (16, 24, 32):
        raise TemporalSettingsError(f"{what} has {len(key)} bytes, not 16, 24 or 32; {_HOW_TO_MAKE}")


class EncryptionCodec(PayloadCodec):
    """Encrypts with the first key, and decrypts with the key that a payload names.

    To replace a key: add the new key at the end in all processes, then move it to the front in all processes. Remove
    the old key when the server has no workflow with it. Payloads that are not encrypted are read unchanged, so that
    encryption can be turned on while workflows run. ``require_encrypted=True`` refuses them.
    """

    def __init__(self, *keys: EncryptionKey, require_encrypted: bool = False) -> None:
        if not keys:
            raise TemporalSettingsError(f"EncryptionCodec needs a key; {_HOW_TO_MAKE}")
        if len({key.id for key in keys}) < len(keys):
            raise TemporalSettingsError("two encryption keys have the same id")
        self._ciphers = {key.id: AESGCM(key.key) for key in keys}
        self._active = keys[0].id
        self._require_encrypted = require_encrypted

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        return [self._encrypt(payload) for payload in payloads]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        return [self._decrypt(payload) for payload in payloads]

    def _encrypt(self, payload: Payload) -> Payload:
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._ciphers[self._active].encrypt(nonce, payload.SerializeToString(), None)
        return Payload(
            metadata={"encoding": _ENCODING, "encryption-key-id": self._active.encode()},
            data=nonce + sealed,
        )

    def _decrypt(self, payload: Payload) -> Payload:
        if payload.metadata.get("encoding") != _ENCODING:
            if self._require_encrypted:
                raise PayloadEncryptionError("a payload is not encrypted, and this codec requires it")
            return payload
        id = payload.metadata.get("encryption-key-id", b"").decode(errors="replace")
        cipher = self._ciphers.get(id)
        if cipher is None:
            known = ", ".join(self._ciphers)
            raise PayloadEncryptionError(f'a payload is encrypted with the key "{id}"; known are {known}')
        try:
            plain = cipher.decrypt(payload.data[:_NONCE_BYTES], payload.data[_NONCE_BYTES:], None)
        except (InvalidTag, ValueError):
            raise PayloadEncryptionError(
                f'a payload of the key "{id}" cannot be decrypted: it has another key, or was changed'
            ) from None
        return Payload.FromString(plain)
