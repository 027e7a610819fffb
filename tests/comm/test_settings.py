"""Settings: arguments first, then the environment, then defaults. Each has our name and the official SDKs'."""

from typing import Any

import pytest

from durably import Client, Streaming
from durably import settings as settings_module
from durably.comm import CommHandler
from durably.comm.serve_options import mount_path
from durably.engine.api.http.requests import ApiKeys
from durably.engine.model.settings import EngineSettings
from durably.errors import (
    FunctionConfigInvalidError,
    SettingConflictError,
    SigningKeyInvalidError,
    URLInvalidError,
)
from durably.protocol.headers import ServerKind
from durably.settings import SETTINGS, Environment, Setting, parse_origin

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
def test_mode_comes_from_argument_then_environment(
    monkeypatch: pytest.MonkeyPatch, value: str | None, mode: ServerKind
) -> None:
    if value is not None:
        monkeypatch.setenv("DURABLY_DEV", value)
    assert Client(app_id="app").mode is mode
    assert Client(app_id="app", is_production=True).mode is CLOUD
    assert Client(app_id="app", is_production=False).mode is DEV


@pytest.mark.parametrize("is_production", [None, True, False])
@pytest.mark.parametrize("value", ["n", "blah", "production", "2", "http://", "ftp://host:1", "engine", "a b:1", "é:"])
def test_development_mode_is_not_guessed(
    monkeypatch: pytest.MonkeyPatch, value: str, is_production: bool | None
) -> None:
    monkeypatch.setenv("DURABLY_DEV", value)
    monkeypatch.setenv("DURABLY_ENGINE_URL", "https://engine.example.com")
    monkeypatch.setenv("DURABLY_SIGNING_KEY", "signkey-prod-0123456789abcdef0123456789abcdef")
    with pytest.raises((FunctionConfigInvalidError, URLInvalidError), match="DURABLY_DEV"):
        Client(app_id="app", is_production=is_production)
    with pytest.raises((FunctionConfigInvalidError, URLInvalidError), match="DURABLY_DEV"):
        Client(app_id="app", is_production=is_production, engine="https://other.example.com")


@pytest.mark.parametrize("value", ["localhost:8288", "localhost", "[::1]:8288", "https://engine.example.com/"])
def test_development_mode_takes_an_engine(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("DURABLY_DEV", value)
    assert value.strip("/") in Client(app_id="app").api_origin


@pytest.mark.parametrize(
    ("dev", "is_warned"), [("1", True), ("on", True), ("http://127.0.0.1:99", False), ("0", False)]
)
def test_a_signing_key_in_development_mode_is_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, dev: str, is_warned: bool
) -> None:
    monkeypatch.setattr(settings_module, "_warned_apps", set())
    monkeypatch.setenv("DURABLY_DEV", dev)
    Client(app_id="app")
    assert "signing key" not in caplog.text
    for _ in range(2):
        Client(app_id="app", signing_key="signkey-prod-0123456789abcdef0123456789abcdef")
    messages = [record.getMessage() for record in caplog.records if "unsigned calls" in record.getMessage()]
    assert len(messages) == is_warned
    assert all("'app' is in development mode (DURABLY_DEV is on)" in message for message in messages)
    assert "0123456789" not in caplog.text


@pytest.mark.parametrize(
    ("key", "is_warned"), [("hello", True), ("signkey-prod-" + "0" * 31, True), ("signkey-prod-" + "0" * 32, False)]
)
def test_a_signing_key_that_could_be_guessed_is_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, key: str, is_warned: bool
) -> None:
    monkeypatch.setattr(settings_module, "_warned", set())
    monkeypatch.setenv("DURABLY_SIGNING_KEY", key)
    Client(app_id="app", is_production=False)
    assert "guessed" not in caplog.text
    for _ in range(2):
        Client(app_id="app")
    assert caplog.text.count("could be guessed") == is_warned
    assert key not in caplog.text


def test_keys_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (Client(app_id="app").event_key, Client(app_id="app").signing_keys) == (None, (None, None))
    monkeypatch.setenv("DURABLY_EVENT_KEY", " from env ")
    monkeypatch.setenv("DURABLY_SIGNING_KEY", "key")
    monkeypatch.setenv("DURABLY_SIGNING_KEY_FALLBACK", "fallback")
    client = Client(app_id="app")
    assert (client.event_key, client.signing_keys) == ("from env", ("key", "fallback"))
    client = Client(app_id="app", event_key="mine", signing_key="mine-too")
    assert (client.event_key, client.signing_keys) == ("mine", ("mine-too", "fallback"))
    assert "mine" not in repr(client)


@pytest.mark.parametrize("variable", ["VERCEL_GIT_COMMIT_REF", "RENDER_GIT_BRANCH", "RAILWAY_GIT_BRANCH"])
def test_env_comes_from_the_setting_then_the_platforms_branch(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    assert Client(app_id="app").env is None
    monkeypatch.setenv(variable, "of the platform")
    assert Client(app_id="app").env == "of the platform"
    monkeypatch.setenv("DURABLY_ENV", "set by hand")
    assert Client(app_id="app").env == "set by hand"
    assert Client(app_id="app", env="argument").env == "argument"


@pytest.mark.parametrize("url", ["", " ", "://", "ftp://host", "http://", "http://host:port", "http://[::1", "a b"])
def test_a_url_that_is_not_valid_is_refused(url: str) -> None:
    with pytest.raises(URLInvalidError, match="DURABLY_ENGINE_URL is not a valid URL"):
        parse_origin(url, "DURABLY_ENGINE_URL")


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("localhost:8406", "http://localhost:8406"),
        ("127.0.0.2", "http://127.0.0.2"),
        ("[::1]:8288", "http://[::1]:8288"),
        ("engine.localhost:80", "http://engine.localhost:80"),
        ("http://engine", "http://engine"),
        ("https://engine:8288", "https://engine:8288"),
        (" http://localhost ", "http://localhost"),
        ("https://host.example.com/prefix/", "https://host.example.com/prefix"),
    ],
)
def test_urls_on_this_machine_need_no_scheme(url: str, origin: str) -> None:
    assert parse_origin(url, "api_base_url") == origin


@pytest.mark.parametrize("host", ["engine.example.com", "engine:8288", "10.0.0.1:8288", "localhost.example.com"])
def test_urls_of_other_hosts_need_a_scheme(host: str) -> None:
    with pytest.raises(URLInvalidError) as raised:
        parse_origin(host, "DURABLY_ENGINE_URL")
    assert raised.value.message == f"DURABLY_ENGINE_URL has no scheme; write https://{host} or http://{host}"


def test_errors_about_urls_do_not_show_passwords() -> None:
    for url in ("ann:hunter2@engine.example.com", "ann:hunter2@engine:port", "ftp://ann:hunter2@engine"):
        with pytest.raises(URLInvalidError) as raised:
            parse_origin(url, "engine")
        assert "hunter2" not in str(raised.value)


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
def test_streaming_accepts_force_and_disable(value: str | None, streaming: Streaming | None) -> None:
    assert Environment({"DURABLY_STREAMING": value} if value else {}).read(settings_module.STREAMING) is streaming


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DURABLY_STREAMING", "yes please"),
        ("DURABLY_THREAD_POOL_MAX_WORKERS", "many"),
        ("DURABLY_THREAD_POOL_MAX_WORKERS", "-1"),
        ("DURABLY_ENABLE_UNAUTHED_SYNC", "disable"),
        ("INNGEST_ALLOW_IN_BAND_SYNC", "maybe"),
        ("DURABLY_STRICT_REPLAY", "2"),
        ("DURABLY_LOG_LEVEL", "verbose"),
    ],
)
def test_invalid_values_are_refused(variable: str, value: str) -> None:
    [setting] = [setting for setting in SETTINGS if variable in setting.names]
    with pytest.raises(FunctionConfigInvalidError, match=f"{variable} must be .*{value}"):
        Environment({variable: value}).read(setting)


@pytest.mark.parametrize(
    ("value", "allowed"),
    [
        (None, True),
        ("1", True),
        ("True", True),
        ("yes", True),
        ("on", True),
        ("0", False),
        ("false", False),
        ("No", False),
        ("off", False),
    ],
)
def test_boolean_settings_accept_on_off_words(value: str | None, allowed: bool) -> None:
    names = ("DURABLY_ALLOW_IN_BAND_SYNC", "DURABLY_ENABLE_UNAUTHED_SYNC")
    environment = Environment({} if value is None else dict.fromkeys(names, value))
    for setting in (settings_module.ALLOW_IN_BAND_SYNC, settings_module.ENABLE_UNAUTHED_SYNC):
        assert (environment.read(setting) is not False) is allowed
    if value is not None:
        assert Environment({"DURABLY_STRICT_REPLAY": value}).read(settings_module.STRICT_REPLAY) is allowed
        assert Environment({"DURABLY_DEV": value}).mode is (DEV if allowed else CLOUD)


def test_serve_path_comes_from_argument_then_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mount_path(None) == "/api/inngest"
    monkeypatch.setenv("DURABLY_SERVE_PATH", "of/env")
    assert mount_path(None) == "/of/env"
    assert mount_path("/argument") == mount_path("argument") == "/argument"


@pytest.mark.parametrize("app_id", ["", "  ", None, 5])
def test_an_app_needs_a_name(app_id: Any) -> None:
    with pytest.raises(FunctionConfigInvalidError, match=r"Client\.app_id"):
        Client(app_id=app_id)


@pytest.mark.parametrize("url", ["https://engine.example.com?token=s3cret", "http://localhost:8288/#x", "http://a/?"])
@pytest.mark.parametrize(
    "name", ["DURABLY_DEV", "INNGEST_DEV", "DURABLY_ENGINE_URL", "INNGEST_BASE_URL", "DURABLY_EVENT_API_BASE_URL"]
)
def test_a_base_url_has_no_query_and_no_fragment(monkeypatch: pytest.MonkeyPatch, name: str, url: str) -> None:
    monkeypatch.setenv(name, url)
    with pytest.raises(URLInvalidError, match=f"{name} is a base URL.*no query or fragment") as raised:
        Client(app_id="app")
    assert "s3cret" not in str(raised.value)


PATHS_THAT_ARE_NONE = [
    "https://evil.example.com/x",
    "//evil.example.com/x",
    "/a?b",
    "/a#b",
    "/a b",
    "/a\n",
    '"/a"',
    "/{a}",
]


@pytest.mark.parametrize("path", PATHS_THAT_ARE_NONE)
@pytest.mark.parametrize("name", ["DURABLY_SERVE_PATH", "INNGEST_SERVE_PATH"])
def test_a_serve_path_is_a_path(monkeypatch: pytest.MonkeyPatch, name: str, path: str) -> None:
    monkeypatch.setenv(name, path + "x")
    client = Client(app_id="app", is_production=False)
    for use in (lambda: mount_path(None), lambda: CommHandler(client=client, framework="x", functions=[])):
        with pytest.raises(FunctionConfigInvalidError, match=f"{name} must be a path like /api/inngest"):
            use()


BARE_KEY = "signkey-prod-0123456789abcdef0123456789abcdef"
WRONG_KEYS = {
    "double quotes": f'"{BARE_KEY}"',
    "single quotes": f"'{BARE_KEY}'",
    "space": BARE_KEY.replace("89", "8 9"),
    "line break": f"{BARE_KEY}\n{BARE_KEY}",
    "not UTF-8": f"{BARE_KEY}\udcff",
}


@pytest.mark.parametrize("key", WRONG_KEYS.values(), ids=WRONG_KEYS.keys())
@pytest.mark.parametrize("name", ["DURABLY_SIGNING_KEY", "INNGEST_SIGNING_KEY", "DURABLY_SIGNING_KEY_FALLBACK"])
def test_a_signing_key_that_is_written_wrongly_stops_the_client(
    monkeypatch: pytest.MonkeyPatch, name: str, key: str
) -> None:
    monkeypatch.setenv(name, key)
    with pytest.raises(SigningKeyInvalidError, match=f"{name} has quotes") as raised:
        Client(app_id="app")
    assert "0123" not in str(raised.value)
    monkeypatch.delenv(name)
    with pytest.raises(SigningKeyInvalidError, match="signing_key=…"):
        Client(app_id="app", signing_key=key)
    with pytest.raises(SigningKeyInvalidError, match="signing_key=…"):
        EngineSettings(signing_key=key)
    with pytest.raises(SigningKeyInvalidError, match="signing_keys=…"):
        ApiKeys(server_kind=CLOUD, event_keys=("e",), signing_keys=(key,))


# -- two names

VALUES = {
    "DURABLY_DEV": ("1", "http://127.0.0.1:9999"),
    "DURABLY_STREAMING": ("force", "disable"),
    "DURABLY_THREAD_POOL_MAX_WORKERS": ("1", "2"),
    "DURABLY_ALLOW_IN_BAND_SYNC": ("1", "0"),
    "DURABLY_ENABLE_UNAUTHED_SYNC": ("1", "0"),
    "DURABLY_STRICT_REPLAY": ("1", "0"),
    "DURABLY_SEND_STEP_INPUT": ("1", "0"),
    "DURABLY_LOG_LEVEL": ("debug", "ERROR"),
}
"""Two values of a setting that takes no other text."""


def by_name(setting: Setting[Any]) -> str:
    return setting.name


@pytest.mark.parametrize("setting", SETTINGS, ids=by_name)
def test_a_setting_has_two_names(setting: Setting[Any]) -> None:
    first, second = VALUES.get(setting.name, ("first-secret", "second-secret"))
    value = Environment({setting.name: first}).read(setting)
    assert value is not None
    assert Environment({}).read(setting) is None
    assert Environment({setting.inngest: first}).read(setting) == value
    assert Environment({setting.name: first, setting.inngest: f" {first} "}).read(setting) == value
    assert Environment({setting.name: first, setting.inngest: ""}).read(setting) == value
    with pytest.raises(SettingConflictError) as raised:
        Environment({setting.name: first, setting.inngest: second}).read(setting)
    text = str(raised.value)
    assert setting.name in text
    assert setting.inngest in text
    assert "secret" not in text


@pytest.mark.parametrize("setting", ["signing_key", "signing_key_fallback"])
def test_an_engine_refuses_such_keys_too(setting: str) -> None:
    with pytest.raises(SigningKeyInvalidError, match=setting):
        EngineSettings(**{setting: "signkey-prod-"})
    with pytest.raises(SigningKeyInvalidError, match="signing_keys"):
        ApiKeys(server_kind=CLOUD, event_keys=("key",), signing_keys=("signkey-prod-ab", "signkey-prod-"))
