"""The engine of a client, by its arguments, the environment and the mode. Production has no default."""

from typing import Any

import pytest

import durably
from durably import Client
from durably.errors import FunctionConfigInvalidError, URLInvalidError
from durably.settings import development_variables

CLOUD = ("https://api.inngest.com", "https://inn.gs")
LOCAL = ("http://127.0.0.1:8288", "http://127.0.0.1:8288")
NONE = (None, None)


def both(origin: str) -> tuple[str, str]:
    return origin, origin


@pytest.mark.parametrize(
    ("environ", "arguments", "expected"),
    [
        ({}, {}, NONE),
        ({"DURABLY_DEV": "0"}, {}, NONE),
        ({"INNGEST_SIGNING_KEY": "signkey-prod-00", "INNGEST_EVENT_KEY": "key"}, {}, NONE),
        ({"DURABLY_DEV": "1"}, {}, LOCAL),
        ({"INNGEST_DEV": "1"}, {}, LOCAL),
        ({}, {"is_production": False}, LOCAL),
        ({"DURABLY_DEV": "http://engine:99/"}, {}, both("http://engine:99")),
        ({"INNGEST_DEV": "localhost:99"}, {}, both("http://localhost:99")),
        ({"DURABLY_ENGINE_URL": "https://own.example.com"}, {}, both("https://own.example.com")),
        ({"INNGEST_BASE_URL": "localhost:99"}, {}, both("http://localhost:99")),
        (
            {"DURABLY_ENGINE_URL": "https://own.example.com", "INNGEST_API_BASE_URL": "https://api.example.com"},
            {},
            ("https://api.example.com", "https://own.example.com"),
        ),
        (
            {"DURABLY_DEV": "http://engine:99", "DURABLY_EVENT_API_BASE_URL": "http://events:98"},
            {},
            ("http://engine:99", "http://events:98"),
        ),
        (
            {"DURABLY_API_BASE_URL": "https://env.example.com"},
            {"api_base_url": "https://arg.example.com"},
            ("https://arg.example.com", None),
        ),
        ({}, {"event_api_base_url": "https://arg.example.com/"}, (None, "https://arg.example.com")),
        ({}, {"engine": "https://own.example.com/"}, both("https://own.example.com")),
        (
            {"DURABLY_ENGINE_URL": "https://env.example.com"},
            {"engine": "localhost:99"},
            both("http://localhost:99"),
        ),
        ({}, {"engine": "http://127.0.0.1:99", "is_production": False}, both("http://127.0.0.1:99")),
        ({"DURABLY_DEV": "http://engine:99"}, {"engine": "https://own.example.com"}, both("http://engine:99")),
        (
            {"DURABLY_DEV": "http://engine:99"},
            {"engine": "https://own.example.com", "is_production": True},
            both("https://own.example.com"),
        ),
        ({"DURABLY_DEV": "1"}, {"engine": "http://127.0.0.1:99"}, both("http://127.0.0.1:99")),
        ({}, {"engine": durably.InngestCloud()}, CLOUD),
        ({"DURABLY_ENGINE_URL": "https://env.example.com"}, {"engine": durably.InngestCloud()}, CLOUD),
        ({}, {"engine": "https://api.inngest.com"}, CLOUD),
        ({"DURABLY_ENGINE_URL": "https://api.inngest.com"}, {}, CLOUD),
        ({"DURABLY_DEV": "1"}, {"engine": durably.InngestCloud()}, LOCAL),
        ({"DURABLY_DEV": "http://engine:99"}, {"engine": durably.InngestCloud()}, both("http://engine:99")),
    ],
)
def test_where_the_engine_is(
    monkeypatch: pytest.MonkeyPatch,
    environ: dict[str, str],
    arguments: dict[str, Any],
    expected: tuple[str | None, str | None],
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    origins = Client(app_id="app", **arguments).origins
    assert (origins.api, origins.events) == expected


def test_an_app_under_durably_dev_talks_to_no_other_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Independent of the variables in a developer's shell."""
    shell = {
        "DURABLY_ENGINE_URL": "https://own.example.com",
        "INNGEST_EVENT_API_BASE_URL": "https://events.example.com",
        "INNGEST_DEV": "0",
    }
    for name, value in (shell | development_variables("http://127.0.0.1:99")).items():
        monkeypatch.setenv(name, value)
    client = Client(app_id="app")
    assert (client.api_origin, client.event_api_origin, client.is_production) == (*both("http://127.0.0.1:99"), False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engine": 5}, "InngestCloud"),
        ({"engine": durably.Embedded}, "must be an Embedded"),
        ({"engine": durably.InngestCloud}, "must be an Embedded"),
        ({"engine": durably.InngestCloud(), "api_base_url": "https://a.example.com"}, "engine and api_base_url"),
        (
            {"engine": "https://b.example.com", "event_api_base_url": "https://a.example.com"},
            "engine and api_base_url or event_api_b",
        ),
    ],
)
def test_arguments_that_are_wrong(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(FunctionConfigInvalidError, match=message):
        Client(app_id="app", **arguments)


def test_error_of_an_invalid_url_names_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(URLInvalidError, match="engine has no scheme"):
        Client(app_id="app", engine="nodots")
    monkeypatch.setenv("INNGEST_BASE_URL", "nodots")
    with pytest.raises(URLInvalidError, match="INNGEST_BASE_URL has no scheme"):
        Client(app_id="app")
