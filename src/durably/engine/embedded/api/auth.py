"""Who may ask.

An engine in dev mode is open: it listens on the loopback interface, and any event key will do. What a browser
could be tricked into is closed still: a page of another origin may send events, as in production, and nothing
else. In cloud mode sending events takes one of the event keys (in the path), everything else the signing key,
hashed, as a bearer token. Keys are compared in constant time, and neither echoed nor logged.
"""

import hmac
from collections.abc import Iterable
from urllib.parse import urlsplit

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from durably.protocol.headers import Header, ServerKind
from durably.protocol.signatures import bearer_token, hash_signing_key

from .responses import ApiError

EVENTS_PATH = "/e/{key}"
_OPEN_PATHS = frozenset({"/health", EVENTS_PATH})
"""Need no bearer token. ``EVENTS_PATH`` checks the event key instead."""
LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})


class ApiKeys(msgspec.Struct, frozen=True, kw_only=True):
    """What the API accepts. Raises ``ValueError`` for cloud mode without keys."""

    server_kind: ServerKind
    event_keys: tuple[str, ...] = ()
    signing_keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.server_kind is ServerKind.CLOUD and not (all(self.event_keys) and self.event_keys):
            raise ValueError("an engine in cloud mode needs an event key")
        if self.server_kind is ServerKind.CLOUD and not (all(self.signing_keys) and self.signing_keys):
            raise ValueError("an engine in cloud mode needs a signing key")

    def __repr__(self) -> str:
        return f"ApiKeys({self.server_kind}, {len(self.event_keys)} event keys, {len(self.signing_keys)} signing keys)"


def authorize(keys: ApiKeys) -> Middleware:
    """Middleware that lets through who may ask, and answers 401 or 403 to others."""
    # The JavaScript SDK keeps the key's prefix before the hash, the Python SDK sends the hash alone.
    tokens = tuple(form(key) for key in keys.signing_keys for form in (bearer_token, hash_signing_key))

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        path = _route(request)
        if keys.server_kind is ServerKind.DEV:
            if path != EVENTS_PATH:
                _refuse_foreign_pages(request)
        elif path == EVENTS_PATH:
            _check_event_key(request, keys.event_keys)
        elif path not in _OPEN_PATHS:
            _check_bearer(request, tokens)
        return await handler(request)

    return middleware


def _route(request: web.Request) -> str | None:
    resource = request.match_info.route.resource
    return resource.canonical if resource else None


def _check_event_key(request: web.Request, event_keys: Iterable[str]) -> None:
    if not _is_one_of(request.match_info["key"], event_keys):
        raise ApiError(
            401,
            "unknown event key: send events to /e/<event key> with a key that the engine was given (senders take it "
            "from INNGEST_EVENT_KEY)",
        )


def _check_bearer(request: web.Request, tokens: Iterable[str]) -> None:
    scheme, _, token = request.headers.get(Header.AUTHORIZATION, "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise ApiError(
            401,
            "the request needs the header Authorization: Bearer <hashed signing key> (apps and commands send it where "
            "INNGEST_SIGNING_KEY is set)",
        )
    if not _is_one_of(token.strip(), tokens):
        raise ApiError(
            401,
            "the bearer token is not the hash of one of the engine's signing keys: give both sides the same "
            "INNGEST_SIGNING_KEY",
        )


def _is_one_of(given: str, accepted: Iterable[str]) -> bool:
    # All are compared before any counts: how long it takes must not tell which key matched.
    matches = [hmac.compare_digest(_bytes(given), _bytes(one)) for one in accepted]
    return any(matches)


def _bytes(text: str) -> bytes:
    # Bytes of a header that are no UTF-8 arrive as surrogates.
    return text.encode(errors="surrogateescape")


def _refuse_foreign_pages(request: web.Request) -> None:
    origin = request.headers.get("origin")
    if origin and urlsplit(origin).hostname not in LOOPBACK_HOSTS:
        raise ApiError(403, "pages of another origin may send events to a dev engine, and nothing else")
