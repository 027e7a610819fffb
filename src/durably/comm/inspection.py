"""Inspection: what an app says of itself to a GET request (spec §4.5, schema 2024-05-24).

Secrets are only ever shown hashed, and only to those who sign.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from durably.app import VERSION, App
from durably.functions.function import Function
from durably.protocol.signatures import hash_event_key, hash_signing_key

from .requests import CommRequest

SCHEMA_VERSION = "2024-05-24"
_SHOWN_DIGITS = 12
CAPABILITIES = {"in_band_sync": "v1", "trust_probe": "v1"}


@dataclass(frozen=True)
class Endpoint:
    """An app's endpoint in a web framework: its functions, and the parts of its URL that settings give.

    ``functions`` are in the order of the sync. ``None`` for a part of the URL takes that of the request.
    """

    app: App
    framework: str
    functions: Sequence[Function[Any]]
    serve_origin: str | None
    serve_path: str | None
    public_path: str | None


def unauthenticated(endpoint: Endpoint, succeeded: bool | None) -> dict[str, Any]:
    """``succeeded`` is ``None`` for an unsigned request, ``False`` for a badly signed one."""
    return {"authentication_succeeded": succeeded, **_common(endpoint)}


def authenticated(endpoint: Endpoint, req: CommRequest) -> dict[str, Any]:
    app = endpoint.app
    return {
        "authentication_succeeded": True,
        **_common(endpoint),
        "api_origin": app.origins.api,
        "app_id": app.app_id,
        "env": app.env,
        "event_api_origin": app.origins.events,
        "event_key_hash": hash_event_key(app.event_key) if app.event_key else None,
        "framework": endpoint.framework,
        "sdk_language": "py",
        "sdk_version": VERSION,
        "serve_origin": req.serve_origin or endpoint.serve_origin,
        "serve_path": req.serve_path or endpoint.serve_path,
        "signing_key_fallback_hash": _hashed(app.signing_key_fallback),
        "signing_key_hash": _hashed(app.signing_key),
    }


def _common(endpoint: Endpoint) -> dict[str, Any]:
    app = endpoint.app
    return {
        "capabilities": CAPABILITIES,
        "function_count": len(endpoint.functions),
        "has_event_key": app.event_key is not None,
        "has_signing_key": app.signing_key is not None,
        "has_signing_key_fallback": app.signing_key_fallback is not None,
        "mode": app.mode.value,
        "schema_version": SCHEMA_VERSION,
    }


def _hashed(key: str | None) -> str | None:
    """The start of the hash, as the official JavaScript SDK shows it: the whole is the token of the engine's API."""
    return hash_signing_key(key)[:_SHOWN_DIGITS] if key else None
