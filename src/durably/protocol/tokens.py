"""Signed tokens: what a view hands out for a link or a browser, so that the app recognises it later."""

import base64
import hmac
from collections.abc import Iterable

MAX_TOKEN_LENGTH = 4096
"""In characters. A token is a part of a URL."""


def derive_key(secret: str | bytes, context: bytes) -> bytes:
    """The key of one kind of tokens. A token reveals nothing about other signatures with the same secret."""
    return hmac.digest(secret.encode() if isinstance(secret, str) else secret, context, "sha256")


def sign_token(payload: bytes, key: bytes) -> str:
    text = _encode(payload)
    return f"{text}.{_mac(text, key)}"


def read_token(token: str, keys: Iterable[bytes]) -> bytes | None:
    """The payload of a token; ``None`` if it was not signed with one of the keys."""
    text, _, signature = token.partition(".")
    given = signature.encode(errors="replace")
    if len(token) > MAX_TOKEN_LENGTH or not any(hmac.compare_digest(_mac(text, key).encode(), given) for key in keys):
        return None
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _mac(text: str, key: bytes) -> str:
    return _encode(hmac.digest(key, text.encode(errors="replace"), "sha256"))


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
