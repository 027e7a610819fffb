"""Webhooks as services send them, signed as their documents say, and the endpoints that each app has for them."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

from durably import Client
from durably.webhooks import GitHub, Slack, Source, StandardWebhooks, Stripe

from . import app_calls
from .variants import AWAY, logger

SECRET = "whsec_" + base64.b64encode(b"a secret of 24 bytes....").decode()
OLD_SECRET = "whsec_" + base64.b64encode(b"another secret, replaced").decode()

SOURCES: dict[str, type[Source]] = {"stripe": Stripe, "github": GitHub, "slack": Slack, "clerk": StandardWebhooks}
"""By the names of the sources, which are the last parts of their paths. The app named ``away`` has no engine."""


def receive_all(engine: str, webhook: Callable[..., Any]) -> dict[str, Any]:
    """Hand each source to ``webhook``; returns what it returned, by path."""
    keys: dict[str, Any] = {"is_production": True, "signing_key": app_calls.SIGNING_KEY, "logger": logger}
    keys |= {"event_key": app_calls.EVENT_KEY}
    client = Client(app_id="hooks", api_base_url=engine, event_api_base_url=engine, **keys)
    away = Client(app_id="away", api_base_url=AWAY, event_api_base_url=AWAY, **keys)
    served = {
        f"/webhooks/{name}": webhook(client, kind(SECRET, OLD_SECRET, name=name)) for name, kind in SOURCES.items()
    }
    return served | {"/webhooks/away": webhook(away, Stripe(SECRET, name="away"))}


def signed(source: str, body: bytes, *, secret: str = SECRET, delivery: str = "d1", age: float = 0.0) -> dict[str, str]:
    """The headers of a webhook that was sent ``age`` seconds ago."""
    sent = str(int(time.time() - age))

    def digest(text: bytes, key: bytes = secret.encode()) -> bytes:
        return hmac.new(key, text, hashlib.sha256).digest()

    if source == "github":
        return {
            "X-Hub-Signature-256": "sha256=" + digest(body).hex(),
            "X-GitHub-Event": "issues",
            "X-GitHub-Delivery": delivery,
        }
    if source == "slack":
        signature = digest(b"v0:" + sent.encode() + b":" + body).hex()
        return {"X-Slack-Request-Timestamp": sent, "X-Slack-Signature": f"v0={signature}"}
    if source == "clerk":
        key = base64.b64decode(secret.removeprefix("whsec_"))
        signature = base64.b64encode(digest(f"{delivery}.{sent}.".encode() + body, key)).decode()
        return {"svix-id": delivery, "svix-timestamp": sent, "svix-signature": f"v1a,x v1,AAAA v1,{signature}"}
    return {"Stripe-Signature": f"t={sent},v1={'0' * 64},v1={digest(sent.encode() + b'.' + body).hex()},v0=1"}


def payload_of(source: str) -> tuple[bytes, str, str]:
    """A webhook's body, and the name and id of its event."""
    name, event_id, payload = {
        "stripe": ("stripe/customer.created", "evt_1", {"id": "evt_1", "type": "customer.created", "data": {"n": 1.0}}),
        "github": ("github/issues.opened", "d1", {"action": "opened", "issue": {"title": "é"}}),
        "slack": ("slack/app_mention", "Ev1", {"event_id": "Ev1", "event": {"type": "app_mention"}}),
        "clerk": ("clerk/user.created", "d1", {"type": "user.created", "data": {}}),
        "away": ("away/x", "evt_1", {"id": "evt_1", "type": "x"}),
    }[source]
    return json.dumps(payload, indent=1, ensure_ascii=False).encode(), name, event_id
