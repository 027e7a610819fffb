"""Inspection: what an app says of itself to a GET request (spec §4.5, schema 2024-05-24).

Secrets are only ever shown hashed, and only to those who sign.
"""

from typing import TYPE_CHECKING, Any

from durably.client import VERSION
from durably.protocol.signatures import hash_event_key, hash_signing_key

from .requests import CommRequest

if TYPE_CHECKING:
    from .handler import CommHandler

SCHEMA_VERSION = "2024-05-24"
_SHOWN_DIGITS = 12
CAPABILITIES = {"in_band_sync": "v1", "trust_probe": "v1"}


def unauthenticated(handler: "CommHandler", succeeded: bool | None) -> dict[str, Any]:
    """``succeeded`` is ``None`` for an unsigned request, ``False`` for a badly signed one."""
    return {"authentication_succeeded": succeeded, **_common(handler)}


def authenticated(handler: "CommHandler", req: CommRequest) -> dict[str, Any]:
    client = handler.client
    return {
        "authentication_succeeded": True,
        **_common(handler),
        "api_origin": client.origins.api,
        "app_id": client.app_id,
        "env": client.env,
        "event_api_origin": client.origins.events,
        "event_key_hash": hash_event_key(client.event_key) if client.event_key else None,
        "framework": handler.framework,
        "sdk_language": "py",
        "sdk_version": VERSION,
        "serve_origin": req.serve_origin or handler.serve_origin,
        "serve_path": req.serve_path or handler.serve_path,
        "signing_key_fallback_hash": _hashed(client.signing_key_fallback),
        "signing_key_hash": _hashed(client.signing_key),
    }


def _common(handler: "CommHandler") -> dict[str, Any]:
    client = handler.client
    return {
        "capabilities": CAPABILITIES,
        "function_count": len(handler.functions),
        "has_event_key": client.event_key is not None,
        "has_signing_key": client.signing_key is not None,
        "has_signing_key_fallback": client.signing_key_fallback is not None,
        "mode": client.mode.value,
        "schema_version": SCHEMA_VERSION,
    }


def _hashed(key: str | None) -> str | None:
    """The start of the hash, as the official JavaScript SDK shows it: the whole is the token of the engine's API."""
    return hash_signing_key(key)[:_SHOWN_DIGITS] if key else None
