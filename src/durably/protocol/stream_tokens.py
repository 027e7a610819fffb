"""Tokens with which browsers read the messages of some channels for a limited time."""

import base64
import hashlib
import hmac
from collections.abc import Iterable, Sequence

import msgspec

_CONTEXT = b"durably: tokens of streams, 1"
"""Context of a derived key: a token reveals nothing about other signatures with the same secret."""
MAX_TOKEN_LENGTH = 3000
"""In characters. A token is a part of a URL, which gunicorn limits to 4,094."""


class StreamGrant(msgspec.Struct, frozen=True, array_like=True):
    """What a token allows: the messages of ``topics`` in ``channels`` until ``expires`` (unix seconds).

    ``topics`` is ``None`` for all of them.
    """

    channels: list[str]
    topics: list[str] | None
    expires: int


class StreamTokenError(ValueError):
    """A token is malformed, was not made with one of the keys, or has expired. The message does not contain it."""


_decoder = msgspec.json.Decoder(StreamGrant)


def derive_key(secret: str | bytes) -> bytes:
    """The key of tokens for a signing key, or for another secret of the app's processes."""
    return hmac.digest(secret.encode() if isinstance(secret, str) else secret, _CONTEXT, "sha256")


def sign_grant(grant: StreamGrant, key: bytes) -> str:
    """The token of a grant. Raises ``ValueError`` if it has too many channels or topics for a URL."""
    payload = _encode(msgspec.json.encode(grant))
    token = f"{payload}.{_sign(payload, key)}"
    if len(token) > MAX_TOKEN_LENGTH:
        raise ValueError(
            f"a token for {len(grant.channels)} channels and {len(grant.topics or ())} topics is longer than "
            f"{MAX_TOKEN_LENGTH} characters: make several tokens"
        )
    return token


def verify_token(token: str, keys: Iterable[bytes], now: float) -> StreamGrant:
    """What a token allows at ``now`` (unix seconds). Raises ``StreamTokenError``."""
    payload, _, signature = token.partition(".")
    given = signature.encode(errors="replace")
    if len(token) > MAX_TOKEN_LENGTH or not any(
        hmac.compare_digest(_sign(payload, key).encode(), given) for key in keys
    ):
        raise StreamTokenError("the token of the stream is not valid here")
    grant = _decoder.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    if now >= grant.expires:
        raise StreamTokenError("the token of the stream has expired: get a new one from the app")
    return grant


def covers(allowed: Sequence[str] | None, wanted: Sequence[str] | None) -> bool:
    """Whether ``wanted`` is a part of ``allowed``. ``None`` is everything."""
    return allowed is None or (wanted is not None and set(wanted) <= set(allowed))


def _sign(payload: str, key: bytes) -> str:
    return _encode(hmac.digest(key, payload.encode(errors="replace"), hashlib.sha256))


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
