"""Page tokens: the server's ``next_page_token``, signed and bound to one request.

The server accepts its tokens with any query, so a token of one query could reveal the results of another. A token of
the gateway is valid only for the same principal, exposure, operation, query and workflow.
"""

import base64
import hashlib
import hmac
import os
import secrets as randomness
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from durably.temporal.errors import TemporalSettingsError

from .problems import bad_request, logger

Secret = str | bytes

VARIABLE = "TEMPORAL_GATEWAY_SECRET"
_MINIMUM_BYTES = 16
_CONTEXT = b"durably: page tokens of the Temporal gateway, 1"
"""Context of a derived key: a token reveals nothing about other signatures with the app's secret."""


class PageTokens:
    """Keys of page tokens.

    They are derived from the first available secret: ``secret``, ``TEMPORAL_GATEWAY_SECRET``, the framework's secrets,
    or a random secret of this process. Raises ``TemporalSettingsError`` for a short secret.
    """

    def __init__(self, secret: Secret | None = None) -> None:
        name, given = ("Gateway(secret=…)", secret) if secret is not None else (VARIABLE, os.environ.get(VARIABLE))
        if given is not None and len(given) < _MINIMUM_BYTES:
            raise TemporalSettingsError(
                f"{name} is shorter than {_MINIMUM_BYTES} characters: use a random one, such as the output of "
                "python -c 'import secrets; print(secrets.token_urlsafe())'"
            )
        self._keys = [] if given is None else _keys([given])
        self._random_key = randomness.token_bytes(32)
        self._has_warned = False

    def of(self, scope: Sequence[str], framework_secrets: Sequence[Secret] = ()) -> "Pages":
        """The page tokens of one request, which are bound to ``scope``.

        The first of the framework's secrets signs. Tokens of the others, former secrets, are still accepted.
        """
        keys = self._keys or _keys(framework_secrets)
        if not keys and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "the gateway has no secret to sign next_page with: pages are valid only in this process, until it "
                "ends; set Gateway(secret=…) or the environment variable %s, to the same string of %s characters or "
                "more in each process",
                *(VARIABLE, _MINIMUM_BYTES),
            )
        return Pages(hashlib.sha256(msgspec.json.encode(list(scope))).digest(), keys or [self._random_key])


def _keys(secrets: Sequence[Secret]) -> list[bytes]:
    encoded = [secret.encode() if isinstance(secret, str) else secret for secret in secrets]
    return [hmac.digest(secret, _CONTEXT, "sha256") for secret in encoded if secret]


@dataclass(frozen=True)
class Pages:
    """The page tokens of one request."""

    _scope: bytes
    _keys: Sequence[bytes]

    def give(self, token: bytes | None) -> str | None:
        """``next_page`` for a token of the server; ``None`` after the last page."""
        if not token:
            return None
        return base64.urlsafe_b64encode(self._mac(self._keys[0], token) + token).decode()

    def take(self, text: str | None) -> bytes | None:
        """The server's token in ``next_page``; ``None`` without one. Raises a problem."""
        if not text:
            return None
        try:
            decoded = base64.b64decode(text, altchars=b"-_", validate=True)
        except ValueError:
            decoded = b""
        mac, token = decoded[:32], decoded[32:]
        if not token or not any(hmac.compare_digest(mac, self._mac(key, token)) for key in self._keys):
            raise bad_request("page is not a next_page of this request")
        return token

    def _mac(self, key: bytes, token: bytes) -> bytes:
        return hmac.digest(key, self._scope + token, "sha256")
