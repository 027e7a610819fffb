"""Settings: arguments first, then the environment, then defaults."""

import datetime as dt
import logging
from typing import Any

import pytest

from durably import Client, Streaming
from durably.comm.paths import mount_path
from durably.errors import FunctionConfigInvalidError, URLInvalidError
from durably.protocol.headers import ServerKind
from durably.settings import Environment, parse_origin

DEV, CLOUD = ServerKind.DEV, ServerKind.CLOUD


@pytest.mark.parametrize(
    ("value", "mode"),
    [
        (None, CLOUD),
        ("", CLOUD),
        (" ", CLOUD),
        ("0", CLOUD),
        ("false", CLOUD),
        ("False", CLOUD),
        ("1", DEV),
        ("true", DEV),
        ("http://127.0.0.1:9999", DEV),
    ],
)
def test_the_mode(monkeypatch: pytest.MonkeyPatch, value: str | None, mode: ServerKind) -> None:
    if value is not None:
        monkeypatch.setenv("INNGEST_DEV", value)
    assert Client(app_id="app").mode is mode
    assert Client(app_id="app", is_production=True).mode is CLOUD
    assert Client(app_id="app", is_production=False).mode is DEV


API, EVENTS = "https://api.inngest.com", "https://inn.gs"
LOCAL = "http://127.0.0.1:8288"


@pytest.mark.parametrize(
    ("environ", "arguments", "api", "events"),
    [
        ({}, {}, API, EVENTS),
        ({"INNGEST_DEV": "1"}, {}, LOCAL, LOCAL),
        ({}, {"is_production": False}, LOCAL, LOCAL),
        ({"INNGEST_DEV": "http://engine:99/"}, {}, "http://engine:99", "http://engine:99"),
        ({"INNGEST_DEV": "engine:99"}, {}, "http://engine:99", "http://engine:99"),
        ({"INNGEST_BASE_URL": "https://own.example.com"}, {}, "https://own.example.com", "https://own.example.com"),
        (
            {"INNGEST_BASE_URL": "https://own.example.com", "INNGEST_API_BASE_URL": "https://api.example.com"},
            {},
            "https://api.example.com",
            "https://own.example.com",
        ),
        (
            {"INNGEST_DEV": "http://engine:99", "INNGEST_EVENT_API_BASE_URL": "http://events:98"},
            {},
            "http://engine:99",
            "http://events:98",
        ),
        (
            {"INNGEST_API_BASE_URL": "https://env.example.com"},
            {"api_base_url": "arg.example.com"},
            "https://arg.example.com",
            EVENTS,
        ),
        ({}, {"event_api_base_url": "https://arg.example.com/"}, API, "https://arg.example.com"),
        ({"INNGEST_DEV": "0"}, {}, API, EVENTS),
    ],
)
def test_where_the_engine_is(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], arguments: dict[str, Any], api: str, events: str
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    client = Client(app_id="app", **arguments)
    assert (client.api_origin, client.event_api_origin) == (api, events)


def test_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (Client(app_id="app").event_key, Client(app_id="app").signing_keys) == (None, (None, None))
    monkeypatch.setenv("INNGEST_EVENT_KEY", " from env ")
    monkeypatch.setenv("INNGEST_SIGNING_KEY", "key")
    monkeypatch.setenv("INNGEST_SIGNING_KEY_FALLBACK", "fallback")
    client = Client(app_id="app")
    assert (client.event_key, client.signing_keys) == ("from env", ("key", "fallback"))
    client = Client(app_id="app", event_key="mine", signing_key="mine too")
    assert (client.event_key, client.signing_keys) == ("mine", ("mine too", "fallback"))
    assert "mine" not in repr(client)


@pytest.mark.parametrize("variable", ["VERCEL_GIT_COMMIT_REF", "RENDER_GIT_BRANCH", "RAILWAY_GIT_BRANCH"])
def test_the_environments_name(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    assert Client(app_id="app").env is None
    monkeypatch.setenv(variable, "of the platform")
    assert Client(app_id="app").env == "of the platform"
    monkeypatch.setenv("INNGEST_ENV", "set by hand")
    assert Client(app_id="app").env == "set by hand"
    assert Client(app_id="app", env="argument").env == "argument"


@pytest.mark.parametrize("url", ["", " ", "://", "ftp://host", "http://", "nodots", "http://host:port", "http://[::1"])
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(URLInvalidError, match="INNGEST_BASE_URL is not a valid URL"):
        parse_origin(url, CLOUD, "INNGEST_BASE_URL")


@pytest.mark.parametrize(
    ("url", "mode", "origin"),
    [
        ("engine.example.com", CLOUD, "https://engine.example.com"),
        ("engine.example.com", DEV, "http://engine.example.com"),
        (" http://localhost ", CLOUD, "http://localhost"),
        ("http://[::1]:8288", DEV, "http://[::1]:8288"),
        ("https://host.example.com/prefix/", CLOUD, "https://host.example.com/prefix"),
    ],
)
def test_a_url_is_made_whole(url: str, mode: ServerKind, origin: str) -> None:
    assert parse_origin(url, mode, "api_base_url") == origin


@pytest.mark.parametrize(
    ("value", "streaming"),
    [
        (None, None),
        ("force", Streaming.FORCE),
        ("FORCE", Streaming.FORCE),
        ("allow", Streaming.FORCE),
        ("disable", Streaming.DISABLE),
    ],
)
def test_streaming(value: str | None, streaming: Streaming | None) -> None:
    assert Environment({"INNGEST_STREAMING": value} if value else {}).streaming is streaming


@pytest.mark.parametrize(
    ("variable", "value", "property_name"),
    [
        ("INNGEST_STREAMING", "yes please", "streaming"),
        ("INNGEST_THREAD_POOL_MAX_WORKERS", "many", "thread_pool_max_workers"),
        ("INNGEST_THREAD_POOL_MAX_WORKERS", "-1", "thread_pool_max_workers"),
    ],
)
def test_values_that_are_none(variable: str, value: str, property_name: str) -> None:
    with pytest.raises(FunctionConfigInvalidError, match=f"{variable} must be .*{value}"):
        getattr(Environment({variable: value}), property_name)


@pytest.mark.parametrize(("value", "workers"), [(None, None), ("", None), ("0", 0), ("12", 12)])
def test_the_size_of_the_pool(value: str | None, workers: int | None) -> None:
    variables = {} if value is None else {"INNGEST_THREAD_POOL_MAX_WORKERS": value}
    assert Environment(variables).thread_pool_max_workers == workers


@pytest.mark.parametrize(("value", "allowed"), [(None, True), ("1", True), ("0", False), ("false", False)])
def test_switches(value: str | None, allowed: bool) -> None:
    names = ("INNGEST_ALLOW_IN_BAND_SYNC", "INNGEST_ENABLE_UNAUTHED_SYNC")
    environment = Environment({} if value is None else dict.fromkeys(names, value))
    assert environment.allows_in_band_sync is environment.allows_unsigned_sync is allowed


def test_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mount_path(None) == "/api/inngest"
    monkeypatch.setenv("INNGEST_SERVE_PATH", "of/env")
    assert mount_path(None) == "/of/env"
    assert mount_path("/argument") == mount_path("argument") == "/argument"


@pytest.mark.parametrize(("timeout", "seconds"), [(None, 30), (1500, 1.5), (dt.timedelta(minutes=1), 60)])
def test_the_timeout_of_requests(timeout: Any, seconds: float) -> None:
    assert Client(app_id="app", request_timeout=timeout).request_timeout == seconds


def test_the_log_level(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("durably")
    level = logger.level
    try:
        monkeypatch.setenv("INNGEST_LOG_LEVEL", "warning")
        assert Client(app_id="app").logger is logger
        assert logger.level == logging.WARNING
    finally:
        logger.setLevel(level)


@pytest.mark.parametrize("app_id", ["", "  ", None, 5])
def test_an_app_needs_a_name(app_id: Any) -> None:
    with pytest.raises(FunctionConfigInvalidError, match=r"Client\.app_id"):
        Client(app_id=app_id)
