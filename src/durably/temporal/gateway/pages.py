"""Page tokens: the server's ``next_page_token``, signed and bound to one request.

The server accepts its tokens with any query, so a token of one query could reveal the results of another. A token of
the gateway is valid only for the same principal, exposure, operation, query and workflow.
"""

import base64
import binascii
import hashlib
import hmac
import logging
import os
import secrets as randomness
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from durably.temporal.errors import TemporalSettingsError

from .problems import bad_request

logger = logging.getLogger("durably.temporal")

Secret = str | bytes

VARIABLE = "TEMPORAL_GATEWAY_SECRET"
_MINIMUM_BYTES = 16
_CONTEXT = b"durably: page tokens of the Temporal gateway, 1"
"""Context of a derived key: a token reveals nothing about other signatures with the app's secret."""
_REFUSAL = "page is not a next_page of this request"
_REMEDY = (
    "set Gateway(secret=…) or the environment variable TEMPORAL_GATEWAY_SECRET, to the same string of 16 characters "
    "or more in each process"
)


class PageTokens:
    """Keys of page tokens.

    They are derived from the first available secret: ``secret``, ``TEMPORAL_GATEWAY_SECRET``, the framework's secrets,
    or a random secret of this process. Raises ``TemporalSettingsError`` for a short secret.
    """

    def __init__(self, secret: Secret | None = None) -> None:
        self._keys = _keys(_configured(secret))
        self._random_key = randomness.token_bytes(32)
        self._has_warned = False

    def of(self, scope: Sequence[str], framework_secrets: Sequence[Secret] = ()) -> "Pages":
        """The page tokens of one request, which are bound to ``scope``.

        The first of the framework's secrets signs. Tokens of the others, former secrets, are still accepted.
        """
        keys = self._keys or _keys(framework_secrets)
        return Pages(self, msgspec.json.encode(list(scope)), keys or [self._random_key], is_random=not keys)

    def warn(self) -> None:
        """Warn of a missing secret, once for each gateway."""
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "the gateway has no secret to sign next_page with: pages are valid only in this process, until it "
                "ends; %s",
                _REMEDY,
            )


@dataclass(frozen=True)
class Pages:
    """The page tokens of one request."""

    _tokens: PageTokens
    _scope: bytes
    _keys: Sequence[bytes]
    is_random: bool

    def give(self, token: bytes | None) -> str | None:
        """``next_page`` for a token of the server; ``None`` after the last page."""
        if not token:
            return None
        if self.is_random:
            self._tokens.warn()
        return base64.urlsafe_b64encode(self._mac(self._keys[0], token) + token).decode()

    def take(self, text: str | None) -> bytes | None:
        """The server's token in ``next_page``; ``None`` without one. Raises a problem."""
        if not text:
            return None
        try:
            decoded = base64.b64decode(text, altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            decoded = b""
        mac, token = decoded[:32], decoded[32:]
        if not token or not any(hmac.compare_digest(mac, self._mac(key, token)) for key in self._keys):
            raise bad_request(self._refusal())
        return token

    def _mac(self, key: bytes, token: bytes) -> bytes:
        return hmac.digest(key, hashlib.sha256(self._scope).digest() + token, "sha256")

    def _refusal(self) -> str:
        if not self.is_random:
            return _REFUSAL
        self._tokens.warn()
        return f"{_REFUSAL}, or another process of the app returned it: the app has no secret for pages, see its log"


def _configured(secret: Secret | None) -> list[Secret]:
    name, given = ("Gateway(secret=…)", secret) if secret is not None else (VARIABLE, os.environ.get(VARIABLE))
    if given is None:
        return []
    if len(given) < _MINIMUM_BYTES:
        raise TemporalSettingsError(
            f"{name} is shorter than {_MINIMUM_BYTES} characters: use a random one, such as the output of "
            "python -c 'import secrets; print(secrets.token_urlsafe())'"
        )
    return [given]


def _keys(given: Sequence[Secret]) -> list[bytes]:
    encoded = [secret.encode() if isinstance(secret, str) else secret for secret in given]
    return [hmac.digest(secret, _CONTEXT, "sha256") for secret in encoded if secret]
