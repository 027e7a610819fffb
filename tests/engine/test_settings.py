"""A setting of another type or range is an error that names it, at once."""

import datetime as dt
import re
from pathlib import Path
from typing import Any

import pytest

import durably
from durably import Durability, EngineSettings
from durably.engine.model.settings import SystemClock
from durably.protocol.signatures import SigningKeyInvalidError

SECOND = dt.timedelta(seconds=1)


@pytest.mark.parametrize(
    ("name", "value", "error", "text"),
    [
        *((name, 1, TypeError, "timedelta(seconds=30)") for name in ("call_timeout", "connect_timeout")),
        *((name, "5s", TypeError, "timedelta(seconds=30)") for name in ("close_grace", "retention")),
        *((name, -SECOND, ValueError, "must be") for name in ("call_timeout", "close_grace", "retention")),
        ("connect_timeout", dt.timedelta(0), ValueError, "more than 0"),
        ("max_calls", "500", TypeError, "a whole number"),
        ("max_calls", 0, ValueError, "1 or more"),
        ("max_calls", True, TypeError, "a whole number"),
        ("max_steps", 1.5, TypeError, "a whole number"),
        ("max_depth", 0, ValueError, "1 or more"),
        ("max_event_bytes", None, TypeError, "a whole number"),
        ("allow_private_addresses", "no", TypeError, "True or False"),
        ("log_runs", 1, TypeError, "True or False"),
        ("backoff", SECOND, TypeError, "a function"),
        ("unsigned_apps", "shop", TypeError, 'frozenset({"shop"})'),
        ("unsigned_apps", {"shop": 1}, TypeError, 'frozenset({"shop"})'),
        ("unsigned_apps", frozenset({1}), TypeError, 'frozenset({"shop"})'),
        ("durability", "full", TypeError, "Durability.NORMAL"),
        ("temporal_ui", 8233, TypeError, "a string"),
        ("temporal_ui", "localhost:8233", ValueError, "http://localhost:8233"),
        ("temporal_ui", "http://[", ValueError, "http://localhost:8233"),
        ("temporal_ui", "http://me:s3cret@localhost:8233", ValueError, "without user"),
        ("temporal_ui", "http://localhost:99999999", ValueError, "http://localhost:8233"),
        ("clock", 5, TypeError, "the methods of SystemClock"),
        ("clock", SystemClock, TypeError, "not the class SystemClock"),
        ("tracing", "otel", TypeError, "durably.otel"),
        ("signing_key", "", SigningKeyInvalidError, "is empty"),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as raised:
        EngineSettings(**{name: value})
    assert name in str(raised.value)
    assert text in str(raised.value)


def test_a_key_of_another_type_is_not_shown() -> None:
    with pytest.raises(TypeError, match="not a value of type bytes") as raised:
        EngineSettings(signing_key=b"signkey-prod-5ec2e7")  # type: ignore[arg-type]
    assert "5ec2e7" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_calls": "5"}, "max_calls must be a whole number"),
        ({"settings": {"max_steps": 5}}, "settings must be EngineSettings(…)"),
    ],
)
def test_a_wrong_setting_of_an_engine_in_process_is_named(tmp_path: Path, options: dict[str, Any], text: str) -> None:
    with pytest.raises(TypeError) as raised:
        durably.Embedded(tmp_path / "durably.db", **options)
    assert text in str(raised.value)
    with pytest.raises(TypeError) as raised:
        durably.TemporalEngine("localhost:7233", **options)
    assert text in str(raised.value)


def test_settings_at_the_edge_of_their_range() -> None:
    settings = EngineSettings(close_grace=dt.timedelta(0), retention=None, max_calls=1, durability=Durability.OFF)
    assert settings.durability is Durability.OFF


@pytest.mark.parametrize("encryption", ["", 0, [], "key"])
def test_invalid_encryption_is_refused(encryption: Any) -> None:
    with pytest.raises(TypeError, match="encryption must be a PayloadCodec"):
        durably.TemporalEngine("localhost:7233", encryption=encryption)


@pytest.mark.parametrize(
    ("path", "options", "text"),
    [
        (5, {}, "Embedded.path must be the path of a file"),
        (b"durably.db", {}, "Embedded.path must be the path of a file"),
        ("durably.db", {"lease": "2,5s"}, "Embedded.lease: invalid duration '2,5s'"),
    ],
)
def test_a_wrong_path_or_lease_is_named(path: Any, options: dict[str, Any], text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(text)):
        durably.Embedded(path, **options)
