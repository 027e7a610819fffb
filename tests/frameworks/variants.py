"""The apps that every server under test serves: one for each way of configuring a client and its endpoint."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.sdk.trace import TracerProvider

import durably.otel
from durably import Client, Streaming, events
from durably.comm import requests, syncer

from . import app_calls
from .functions import make_functions

KEEP_ALIVE_SECONDS = 0.05

logger = logging.getLogger("durably.tests")


@dataclass(frozen=True)
class Variant:
    """``client`` and ``serve`` are arguments, ``environ`` variables that are set while both are called."""

    name: str
    client: Mapping[str, Any] = field(default_factory=dict)
    serve: Mapping[str, Any] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)
    has_own_path: bool = False
    is_traced: bool = False


AWAY = "http://127.0.0.1:9"
"""An address at which no server listens."""

ORIGIN = "https://app.example.com"
"""The configured origin of apps in production."""

_DEV = {"is_production": False}
_CLOUD = {
    "is_production": True,
    "signing_key": app_calls.SIGNING_KEY,
    "event_key": app_calls.EVENT_KEY,
    "env": "my-env",
    "app_version": "1.2.3",
}
_FALLBACK = {"DURABLY_SIGNING_KEY_FALLBACK": app_calls.FALLBACK_KEY}

VARIANTS = (
    Variant("default", _DEV, has_own_path=True),
    Variant("dev", _DEV),
    Variant("dev-keys", {**_DEV, "signing_key": app_calls.SIGNING_KEY}),
    Variant("cloud", _CLOUD, environ=_FALLBACK),
    Variant("origin", _CLOUD, {"serve_origin": ORIGIN}, environ=_FALLBACK),
    Variant("strict", _CLOUD, {"enable_unauthed_sync": False, "serve_origin": ORIGIN}),
    Variant("no-in-band", _CLOUD, {"serve_origin": ORIGIN}, environ={"DURABLY_ALLOW_IN_BAND_SYNC": "0"}),
    Variant("away", {**_CLOUD, "api_base_url": AWAY, "event_api_base_url": AWAY}, {"serve_origin": ORIGIN}),
    Variant("public", _DEV, {"serve_origin": "https://public.example.com", "public_path": "/behind/proxy"}),
    Variant(
        "by-env",
        _DEV,
        environ={"DURABLY_SERVE_ORIGIN": "https://env.example.com", "DURABLY_SERVE_PATH": "/by-env/from.env"},
        has_own_path=True,
    ),
    Variant("no-pool", _DEV, environ={"DURABLY_THREAD_POOL_MAX_WORKERS": "0"}),
    Variant("traced", _DEV, is_traced=True),
    Variant("stream", _DEV, {"streaming": Streaming.FORCE}),
    Variant("stream-cloud", _CLOUD, environ={**_FALLBACK, "DURABLY_STREAMING": "force"}),
    Variant("stream-no-pool", _DEV, {"streaming": Streaming.FORCE}, {"DURABLY_THREAD_POOL_MAX_WORKERS": "0"}),
)

PATHS = {
    variant.name: "/api/inngest"
    if variant.name == "default"
    else f"/{variant.name}/from.env"
    if variant.has_own_path
    else f"/{variant.name}/api/inngest"
    for variant in VARIANTS
}


def serve_all(engine_origin: str, serve: Callable[..., Any], *, can_stream: bool = True) -> dict[str, Any]:
    """Make each variant's client and functions and hand them to ``serve``; returns what it returned, by path."""
    requests.KEEP_ALIVE_SECONDS = KEEP_ALIVE_SECONDS
    events.BASE_DELAY = 0.001
    syncer.UNSIGNED_SECONDS = 0.0
    logger.setLevel(logging.DEBUG)
    served = {}
    for variant in VARIANTS:
        options = dict(variant.serve)
        if not variant.has_own_path:
            options["serve_path"] = PATHS[variant.name]
        if not can_stream:
            options.pop("streaming", None)
        with _environ(variant.environ):
            settings = {"api_base_url": engine_origin, "event_api_base_url": engine_origin, "logger": logger}
            client = Client(app_id=f"app-{variant.name}", **(settings | dict(variant.client)))
            if variant.is_traced:
                durably.otel.instrument(client, tracer_provider=TracerProvider())
            served[PATHS[variant.name]] = serve(client, make_functions(client), **options)
    return served


@contextmanager
def _environ(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
