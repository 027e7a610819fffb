"""End-to-end encryption: middleware that encrypts and decrypts data of the app.

It encrypts data that leaves the app, and decrypts data that comes back.

On the wire an encrypted value is an *envelope*, ``{"__ENCRYPTED__": true, "__STRATEGY__": "inngest/libsodium", "data":
base64}``: XSalsa20-Poly1305 (libsodium's secretbox) of the value's JSON, after a random nonce of 24 bytes. This is the
format of ``inngest-encryption`` (Python) and ``@inngest/middleware-encryption`` (JavaScript, from 1.0).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from durably.functions.middleware import TransformOutputResult, TransformStepInput
from durably.protocol.events import INTERNAL_PREFIX
from durably.protocol.opcodes import Opcode
from durably.values.outputs import encode_output

from .errors import Error, FunctionConfigInvalidError
from .events import Event, as_data
from .middleware import MiddlewareSync

try:
    from nacl.exceptions import CryptoError
    from nacl.secret import SecretBox
except ImportError as error:
    raise ImportError('durably.encryption needs PyNaCl: pip install "durably[encryption]"') from error

if TYPE_CHECKING:
    from durably.functions.function import Function

    from .client import Client
    from .context import Context, ContextSync
    from .execution import StepMemos

__all__ = ["ALL_FIELDS", "Cipher", "DecryptionError", "EncryptionMiddleware"]

Key = bytes | str

_MARKER: Final = "__ENCRYPTED__"
_STRATEGY: Final = "__STRATEGY__"
_STRATEGY_ID: Final = "inngest/libsodium"
_ENVELOPE: Final = frozenset((_MARKER, _STRATEGY, "data"))
_ENGINES_FIELD: Final = "_inngest"
"""The field of an invoke's data that the engine adds and reads."""

ALL_FIELDS: Final = "*"
"""Value of ``event_encryption_field`` for all top-level fields."""


class DecryptionError(Error):
    """An encrypted value cannot be decrypted.

    The message states the reason, and never shows the value or a key.
    """

    include_stack = False


class Cipher:
    """Encrypts with one key. Decrypts with it or with a fallback key.

    The key is ``secret_key``, the fallback keys are ``fallback_decryption_keys``. A key is a string of any length (a
    long random one: ``openssl rand -hex 32``), or 32 bytes, raw or as 64 hex digits. Raises
    ``FunctionConfigInvalidError``.
    """

    def __init__(self, secret_key: Key, fallback_decryption_keys: Sequence[Key] | None = None) -> None:
        if isinstance(fallback_decryption_keys, bytes | str):
            raise FunctionConfigInvalidError("encryption: fallback_decryption_keys must be a list of keys")
        self._box = _box(secret_key, "secret_key")
        self._fallbacks = [_box(key, "fallback_decryption_keys") for key in fallback_decryption_keys or ()]

    def encrypt(self, value: Any, source: str = "the value") -> dict[str, Any]:
        """The envelope of a JSON value.

        Raises ``OutputUnserializableError``, naming the source.
        """
        sealed = self._box.encrypt(encode_output(value, source))
        return {_MARKER: True, _STRATEGY: _STRATEGY_ID, "data": base64.b64encode(sealed).decode()}

    def decrypt(self, value: Any) -> Any:
        """The content of an envelope; any other value unchanged.

        Raises ``DecryptionError``.
        """
        if not is_encrypted(value):
            return value
        if (strategy := value.get(_STRATEGY)) != _STRATEGY_ID:
            reason = f"the strategy {str(strategy)[:64]!r}; only {_STRATEGY_ID!r} is supported"
            if strategy is None:
                reason = "AES, by @inngest/middleware-encryption before 1.0. Let such runs end with that version first"
            raise DecryptionError(f"it was encrypted with {reason}")
        plain = self._open(value["data"])
        try:
            return msgspec.json.decode(plain)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise DecryptionError("the decrypted data is not JSON") from None

    def _open(self, data: str) -> bytes:
        try:
            sealed = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            raise DecryptionError("the encrypted data is damaged: it is not base64") from None
        for box in (self._box, *self._fallbacks):
            try:
                return box.decrypt(sealed)
            except (CryptoError, ValueError):
                continue
        raise DecryptionError(
            f"none of the {1 + len(self._fallbacks)} keys decrypts it. It was encrypted with another key, which "
            "fallback_decryption_keys must have, or it was changed"
        )


def is_encrypted(value: Any) -> bool:
    """Whether a value is marked as encrypted, with any strategy."""
    return isinstance(value, Mapping) and value.get(_MARKER) is True and isinstance(value.get("data"), str)


def _box(key: Key, option: str) -> SecretBox:
    """The box of a key. Keys that are strings are hashed with BLAKE2b."""
    if isinstance(key, str):
        if not key.strip():
            raise FunctionConfigInvalidError(f"encryption: {option} is empty")
        if key != key.strip():
            raise FunctionConfigInvalidError(
                f"encryption: {option} begins or ends with white space, which other SDKs treat differently; strip it"
            )
        return SecretBox(hashlib.blake2b(key.encode(), digest_size=SecretBox.KEY_SIZE).digest())
    if not isinstance(key, bytes):
        raise FunctionConfigInvalidError(f"encryption: {option} must be a string or bytes, not {type(key).__name__}")
    raw = key
    if len(key) != SecretBox.KEY_SIZE:
        with contextlib.suppress(ValueError):
            raw = binascii.unhexlify(key)
    if len(raw) != SecretBox.KEY_SIZE:
        raise FunctionConfigInvalidError(f"encryption: {option}, as bytes, must be 32 bytes, raw or as 64 hex digits")
    return SecretBox(raw)


class EncryptionMiddleware(MiddlewareSync):
    """Encrypts outputs and a field of event data. Decrypts both.

    The outputs are those of steps and functions. The field belongs to the data of events and invokes. Give
    ``EncryptionMiddleware.factory(key)`` to a client or function.
    """

    def __init__(
        self,
        client: Client,
        raw_request: object,
        secret_key: Key | Cipher,
        *,
        decrypt_only: bool = False,
        event_encryption_field: str | Sequence[str] = "encrypted",
        fallback_decryption_keys: Sequence[Key] | None = None,
    ) -> None:
        """See ``factory``."""
        super().__init__(client, raw_request)
        self._cipher = _make_cipher(secret_key, fallback_decryption_keys)
        self._decrypt_only = decrypt_only
        self._fields = _field_names(event_encryption_field)

    @classmethod
    def factory(
        cls,
        secret_key: Key | Cipher,
        *,
        decrypt_only: bool = False,
        event_encryption_field: str | Sequence[str] = "encrypted",
        fallback_decryption_keys: Sequence[Key] | None = None,
    ) -> Callable[[Client, object], EncryptionMiddleware]:
        """Create a factory for a client's or function's ``middleware``.

        - ``secret_key``: Encrypts and decrypts.
        - ``fallback_decryption_keys``: Decrypt only. A ``Cipher`` may replace both.
        - ``decrypt_only``: Encrypts no data.
        - ``event_encryption_field``: The top-level field, or fields, of the data of events and invokes that are
          encrypted. ``ALL_FIELDS`` means all.

        Raises ``FunctionConfigInvalidError``.
        """
        _field_names(event_encryption_field)
        return partial(
            cls,
            secret_key=_make_cipher(secret_key, fallback_decryption_keys),  # its repr shows no key
            decrypt_only=decrypt_only,
            event_encryption_field=event_encryption_field,
        )

    # -- out of the app

    def before_send_events(self, events: list[Event]) -> None:
        """Encrypt the fields of each event's data in copies of the sender's events."""
        if self._decrypt_only:
            return
        for index, event in enumerate(events):
            if isinstance(event, Event):  # otherwise sending refuses it
                events[index] = _with_data(event, self._encrypt_fields(event.data, f"event {event.name!r}"))

    def transform_step_input(self, step: TransformStepInput) -> None:
        """Encrypt the data of invokes and defers, and messages for runs."""
        if self._decrypt_only or step.opts is None:
            return
        if step.op is Opcode.WAIT_FOR_SIGNAL and step.opts.get("message") is not None:
            encrypted = self._cipher.encrypt(step.opts["message"], f"the message for {step.id!r}")
            step.opts = {**step.opts, "message": encrypted}
        if step.op is Opcode.DEFER_ADD:
            step.opts = {
                **step.opts,
                "input": self._encrypt_fields(step.opts["input"], f"the data deferred as {step.id!r}"),
            }
        if step.op is not Opcode.INVOKE_FUNCTION:
            return
        payload = step.opts.get("payload") or {}
        data = self._encrypt_fields(payload.get("data"), f'step "{step.id}"')
        step.opts = {**step.opts, "payload": {**payload, "data": data}}

    def transform_output(self, result: TransformOutputResult) -> None:
        """Encrypt outputs of steps and functions, except ``None``."""
        if self._decrypt_only or not result.has_output() or result.output is None:
            return
        source = "the function" if result.step is None else f'step "{result.step.id}"'
        result.output = self._cipher.encrypt(result.output, source)

    def _encrypt_fields(self, data: Any, source: str) -> Any:
        """Encrypt fields of data, which may also be a pydantic model."""
        try:
            fields = as_data(data)
        except TypeError:
            return data  # refused when it is sent
        if not fields:
            return fields
        return {
            name: self._cipher.encrypt(value, f"{source}: the field {name!r}")
            if value is not None and (name in self._fields or (ALL_FIELDS in self._fields and name != _ENGINES_FIELD))
            else value
            for name, value in fields.items()
        }

    # -- back into the app

    def transform_result(self, result: TransformOutputResult) -> None:
        """Decrypt the result of a run, or a reply."""
        result.output = self._cipher.decrypt(result.output)

    def transform_input(self, ctx: Context | ContextSync, function: Function[Any], steps: StepMemos) -> None:
        """Decrypt memos and events."""
        for hashed_id, memo in steps.items():
            try:
                memo.data = self._decrypt_memo(memo.data)
            except DecryptionError as error:
                steps.refuse(hashed_id, f"its output cannot be decrypted: {error}")
        decrypted = [self._decrypt_event(event) for event in ctx.events]
        ctx.event = self._decrypt_event(ctx.event)
        ctx.events = decrypted

    def _decrypt_memo(self, data: Any) -> Any:
        """Decrypt an output, or a wait's memo, which is an event or a signal."""
        if is_encrypted(data):
            return self._cipher.decrypt(data)
        if isinstance(data, dict) and isinstance(data.get("data"), dict) and ("name" in data or "signal" in data):
            return {**data, "data": self._decrypt_data(data["data"], str(data.get("name", "")))}
        return data

    def _decrypt_event(self, event: Event) -> Event:
        try:
            return _with_data(event, self._decrypt_data(event.data, event.name))
        except DecryptionError as error:
            raise DecryptionError(
                f"the data of event {event.name!r} (id {event.id!r}) cannot be decrypted: {error}"
            ) from None

    def _decrypt_data(self, data: Mapping[str, Any], event: str) -> Mapping[str, Any]:
        """Decrypt the data as a whole, or its top-level fields.

        The data of engines' own events contain other events and outputs.
        """
        decrypt: Callable[[Any], Any] = self._cipher.decrypt
        if is_encrypted(data):
            whole = decrypt(data)
            if not isinstance(whole, dict):
                raise DecryptionError("the decrypted data is not an object")
            return {name: value for name, value in data.items() if name not in _ENVELOPE} | whole
        if event.startswith(INTERNAL_PREFIX):
            decrypt = _throughout(decrypt)
        fields = {}
        for name, value in data.items():
            try:
                fields[name] = decrypt(value)
            except DecryptionError as error:
                raise DecryptionError(f"in the field {name!r}: {error}") from None
        return fields


def _make_cipher(secret_key: Key | Cipher, fallback_decryption_keys: Sequence[Key] | None) -> Cipher:
    if not isinstance(secret_key, Cipher):
        return Cipher(secret_key, fallback_decryption_keys)
    if fallback_decryption_keys:
        raise FunctionConfigInvalidError("encryption: give fallback_decryption_keys to the Cipher")
    return secret_key


def _field_names(event_encryption_field: str | Sequence[str]) -> frozenset[str]:
    names = [event_encryption_field] if isinstance(event_encryption_field, str) else list(event_encryption_field)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise FunctionConfigInvalidError("encryption: event_encryption_field must be the name of a field, or several")
    return frozenset(names)


def _with_data(event: Event, data: Any) -> Event:
    changed = copy.copy(event)
    changed.data = data
    return changed


def _throughout(decrypt: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Decrypt each envelope within a value.

    Envelopes inside decrypted values are not decrypted.
    """

    def visit(value: Any) -> Any:
        if is_encrypted(value):
            return decrypt(value)
        if isinstance(value, dict):
            return {name: visit(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [visit(inner) for inner in value]
        return value

    return visit
