"""Sources of the connection's settings, and their order."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio.service import TLSConfig

from durably.temporal import Temporal, TemporalSettingsError, TemporalUnreachableError
from durably.temporal.settings import FRAMEWORK_KEYS, misspelt_variables, resolve

NOTHING: dict[str, str] = {}


@pytest.fixture(autouse=True)
def no_profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "empty.toml").touch()
    monkeypatch.setenv("TEMPORAL_CONFIG_FILE", str(tmp_path / "empty.toml"))


def test_the_defaults_are_those_of_a_development_server() -> None:
    settings = resolve({}, {}, environment=NOTHING)
    assert (settings.address, settings.namespace, settings.tls) == ("localhost:7233", "default", None)


def test_arguments_come_before_the_environment_and_that_before_the_framework(tmp_path: Path) -> None:
    framework = {"SERVER": "f:1", "NAMESPACE": "f", "TASK_QUEUE": "f"}
    environment = {"TEMPORAL_ADDRESS": "e:1", "TEMPORAL_NAMESPACE": "e"}
    settings = resolve({"address": "a:1", "namespace": None}, framework, environment=environment)
    assert (settings.address, settings.namespace, settings.task_queue) == ("a:1", "e", "f")


def test_a_profile_is_read_and_the_environment_comes_before_it(tmp_path: Path) -> None:
    file = tmp_path / "temporal.toml"
    file.write_text('[profile.prod]\naddress = "p:1"\nnamespace = "p"\n')
    settings = resolve(
        {}, {"ADDRESS": "f:1"}, profile="prod", config_file=file, environment={"TEMPORAL_NAMESPACE": "e"}
    )
    assert (settings.address, settings.namespace) == ("p:1", "e")


def test_certificates_for_mutual_tls_are_read(tmp_path: Path) -> None:
    (tmp_path / "cert").write_bytes(b"-----BEGIN CERTIFICATE-----")
    (tmp_path / "key").write_bytes(b"-----BEGIN PRIVATE KEY-----")
    framework = {"TLS_CLIENT_CERT_PATH": tmp_path / "cert", "TLS_CLIENT_KEY_PATH": tmp_path / "key"}
    tls = resolve({}, framework, environment=NOTHING).tls
    assert isinstance(tls, TLSConfig)
    assert (tls.client_cert, tls.client_private_key) == (b"-----BEGIN CERTIFICATE-----", b"-----BEGIN PRIVATE KEY-----")


@pytest.mark.parametrize("word", ["1", "true", "Yes", " on "])
@pytest.mark.parametrize("framework", [{}, {"TLS": False}])
def test_tls_is_switched_on(word: str, framework: dict[str, Any]) -> None:
    assert isinstance(resolve({}, framework, environment={"TEMPORAL_TLS": word}).tls, TLSConfig)


@pytest.mark.parametrize("word", ["0", "false", "No", "off"])
def test_tls_is_switched_off_before_the_frameworks_settings(word: str) -> None:
    assert resolve({}, {"TLS": True}, environment={"TEMPORAL_TLS": word}).tls is False


def test_an_empty_switch_for_tls_counts_as_unset() -> None:
    assert resolve({}, {}, environment={"TEMPORAL_TLS": ""}).tls is None
    assert isinstance(resolve({}, {"TLS": True}, environment={"TEMPORAL_TLS": ""}).tls, TLSConfig)


def test_secrets_are_not_shown() -> None:
    settings = resolve({"api_key": "hush", "rpc_metadata": {"authorization": "hush"}}, {}, environment=NOTHING)
    assert "hush" not in repr(settings)


@pytest.mark.parametrize(
    ("arguments", "framework", "environment", "words"),
    [
        ({"address": "http://localhost:7233"}, {}, {}, "host:port"),
        ({"address": "localhost"}, {}, {}, "host:port"),
        ({}, {"ADRESS": "x:1"}, {}, "unknown setting 'ADRESS'"),
        ({}, {"NAMESPACE": 3}, {}, "'NAMESPACE' for Temporal must be a string"),
        ({}, {}, {"TEMPORAL_PROFILE": "none"}, "Profile 'none' not found"),
        ({}, {"TLS_CLIENT_CERT_PATH": "/nowhere"}, {}, "/nowhere"),
        ({}, {}, {"TEMPORAL_TLS": "maybe"}, "TEMPORAL_TLS in the environment .* is 'maybe': it must be on"),
        ({}, {"TLS": "ture"}, {}, "TEMPORAL_TLS in the framework's settings is 'ture'"),
    ],
)
def test_a_wrong_setting_is_named(
    arguments: dict[str, Any], framework: dict[str, Any], environment: dict[str, str], words: str
) -> None:
    with pytest.raises(TemporalSettingsError, match=words):
        resolve(arguments, framework, environment=environment)


@pytest.mark.parametrize(
    ("arguments", "framework", "environment", "words"),
    [
        ({}, {"TLS_CLIENT_KEY_PATH": "/nowhere"}, {}, r"TEMPORAL_TLS_CLIENT_KEY_PATH \(the framework's settings\)"),
        (
            {"name": "billing"},
            {"TLS_CLIENT_KEY_PATH": "/nowhere"},
            {},
            r"TEMPORAL_BILLING_TLS_CLIENT_KEY_PATH \(the framework's settings\)",
        ),
        ({}, {}, {"TEMPORAL_TLS_CLIENT_CERT_PATH": "/nowhere"}, r"TEMPORAL_TLS_CLIENT_CERT_PATH \(the environment\)"),
        (
            {"name": "billing"},
            {},
            {"TEMPORAL_BILLING_TLS_SERVER_CA_CERT_PATH": "/nowhere"},
            r"TEMPORAL_BILLING_TLS_SERVER_CA_CERT_PATH \(the environment\)",
        ),
        ({"profile": "prod"}, {}, {}, r"tls\.client_cert_path \(Temporal's configuration file\)"),
        (
            {"profile": "prod"},
            {"TLS_SERVER_CA_CERT_PATH": "{cert}"},
            {"TEMPORAL_TLS_CLIENT_KEY_PATH": "/nowhere/too"},
            r"tls\.client_cert_path \(Temporal's configuration file\)",
        ),
    ],
)
def test_unreadable_file_is_named_with_its_setting(
    arguments: dict[str, Any], framework: dict[str, Any], environment: dict[str, str], words: str, tmp_path: Path
) -> None:
    file, cert = tmp_path / "temporal.toml", tmp_path / "cert"
    file.write_text('[profile.prod.tls]\nclient_cert_path = "/nowhere"\n')
    cert.write_text("-----BEGIN CERTIFICATE-----")
    framework = {name: value.format(cert=cert) for name, value in framework.items()}
    options = {"config_file": file, **arguments} if "profile" in arguments else arguments
    with pytest.raises(TemporalSettingsError, match=f"the file of {words} cannot be read: .*'/nowhere'"):
        resolve({}, framework, environment=environment, **options)


@pytest.mark.parametrize(
    ("name", "arguments", "framework", "environment", "words"),
    [
        (None, {"config_file": "{missing}"}, {}, {}, r"Temporal\(config_file=…\)"),
        (None, {}, {}, {"TEMPORAL_CONFIG_FILE": "{missing}"}, r"TEMPORAL_CONFIG_FILE \(the environment\)"),
        ("billing", {}, {}, {"TEMPORAL_BILLING_CONFIG_FILE": "{missing}"}, "TEMPORAL_BILLING_CONFIG_FILE "),
        (None, {}, {"CONFIG_FILE": "{missing}"}, {}, r"CONFIG_FILE \(the framework's settings\)"),
    ],
)
def test_a_configuration_file_that_does_not_exist_is_refused(
    name: str | None,
    arguments: dict[str, str],
    framework: dict[str, str],
    environment: dict[str, str],
    words: str,
    tmp_path: Path,
) -> None:
    missing = str(tmp_path / "missing.toml")
    arguments, framework, environment = (
        {key: value.format(missing=missing) for key, value in source.items()}
        for source in (arguments, framework, environment)
    )
    with pytest.raises(TemporalSettingsError, match=f"there is no file '{re.escape(missing)}', which {words}"):
        resolve({}, framework, environment=environment, name=name, config_file=arguments.get("config_file"))


def test_the_environments_configuration_file_comes_before_the_frameworks(tmp_path: Path) -> None:
    for name in ("argument", "environment", "framework"):
        (tmp_path / name).write_text(f'[profile.default]\naddress = "{name}:1"\n')
    framework = {"CONFIG_FILE": str(tmp_path / "framework")}
    environment = {"TEMPORAL_CONFIG_FILE": str(tmp_path / "environment")}
    argument = tmp_path / "argument"
    assert resolve({}, framework, environment=environment).address == "environment:1"
    assert resolve({}, framework, environment={"TEMPORAL_CONFIG_FILE": ""}).address == "framework:1"
    assert resolve({}, framework, environment=environment, config_file=argument).address == "argument:1"


@pytest.mark.parametrize(
    ("name", "variable", "meant"),
    [
        (None, "TEMPORAL_ADRESS", "TEMPORAL_ADDRESS"),
        (None, "TEMPORAL_TASKQUEUE", "TEMPORAL_TASK_QUEUE"),
        (None, "TEMPORAL_TLS_CLIENT_CERT", "TEMPORAL_TLS_CLIENT_CERT_PATH"),
        (None, "TEMPORAL_SERVER", "TEMPORAL_ADDRESS"),
        (None, "TEMPORAL_HOST", "TEMPORAL_ADDRESS"),
        (None, "TEMPORAL_TLS_CERT", "TEMPORAL_TLS_CLIENT_CERT_PATH"),
        (None, "TEMPORAL_TLS_KEY_PATH", "TEMPORAL_TLS_CLIENT_KEY_PATH"),
        (None, "TEMPORAL_TLS_CA", "TEMPORAL_TLS_SERVER_CA_CERT_PATH"),
        (None, "TEMPORAL_BUILD_ID", "TEMPORAL_WORKER_BUILD_ID"),
        (None, "TEMPORAL_FRONTEND_SERVICE_HOST", None),
        (None, "TEMPORAL_ADDRESS", None),
        (None, "TEMPORAL_TLS", None),
        (None, "TEMPORAL_UI_URL", None),
        (None, "TEMPORAL_GRPC_META_AUTHORIZATION", None),
        (None, "TEMPORAL_CODEC_ENDPOINT", None),
        (None, "TEMPORAL_LOG_LEVEL", None),
        (None, "TEMPORAL_ENV", None),
        (None, "TEMPORAL_A_ADDRESS", None),
        (None, "ADRESS", None),
        ("billing", "TEMPORAL_BILLING_ADRESS", "TEMPORAL_BILLING_ADDRESS"),
        ("billing", "TEMPORAL_BILLING_TLS_CERT", "TEMPORAL_BILLING_TLS_CLIENT_CERT_PATH"),
        ("billing", "TEMPORAL_BILING_ADDRESS", "TEMPORAL_BILLING_ADDRESS"),
        ("billing", "TEMPORAL_BILLING_NAMESPACE", None),
        ("billing", "TEMPORAL_BILLING2_NAMESPACE", None),
        ("billing", "TEMPORAL_ADRESS", None),
        ("eu", "TEMPORAL_US_ADDRESS", None),
    ],
)
def test_misspelt_variables_are_found(name: str | None, variable: str, meant: str | None) -> None:
    prefixes = ["TEMPORAL_", "TEMPORAL_A_", "TEMPORAL_BILLING_"]
    expected = {} if meant is None else {variable: meant}
    assert misspelt_variables(name, {variable: "x"}, prefixes) == expected


def test_no_two_settings_resemble_each_other() -> None:
    for key in FRAMEWORK_KEYS:
        others = {f"TEMPORAL_{key}": "x"}
        assert misspelt_variables(None, others) == ({"TEMPORAL_SERVER": "TEMPORAL_ADDRESS"} if key == "SERVER" else {})


async def test_a_misspelt_variable_is_warned_of_at_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TEMPORAL_ADRESS", "secret.example.com:7233")
    monkeypatch.setenv("TEMPORAL_BILLING_NAMSPACE", "x")
    default = Temporal("127.0.0.1:1", connect_timeout=timedelta(seconds=5))
    billing = Temporal(name="billing", same_server_as=default)
    assert not caplog.records
    for _ in range(2):
        for temporal in (default, billing):
            with pytest.raises(TemporalUnreachableError):
                await temporal.client()
    assert [each.getMessage() for each in caplog.records if each.levelname == "WARNING"] == [
        "The environment variable TEMPORAL_ADRESS is not used. Is TEMPORAL_ADDRESS meant?",
        "The environment variable TEMPORAL_BILLING_NAMSPACE is not used. Is TEMPORAL_BILLING_NAMESPACE meant?",
    ]


def test_settings_are_read_at_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    temporal = Temporal()
    temporal.configure(lambda: {"ADDRESS": "f:1"})
    assert temporal.settings.address == "f:1"
    with pytest.raises(TemporalSettingsError, match="already in use"):
        temporal.configure(dict)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("localhost", "'localhost'"),
        ("localhost:0", "'localhost:0'"),
        ("localhost:99999", "'localhost:99999'"),
        ("local host:7233", "'local host:7233'"),
        ("[::1:7233", r"'\[::1:7233'"),
        ("user:secret@localhost:7233", r"'\*\*\*@localhost:7233'"),
        ("http://localhost:7233", "'http://localhost:7233'"),
    ],
)
def test_an_address_is_a_host_and_a_port(address: str, shown: str) -> None:
    with pytest.raises(TemporalSettingsError, match=f"such as localhost:7233, not {shown}$"):
        Temporal(address).settings  # noqa: B018
    for valid in ("localhost:7233", "10.0.0.1:7233", "[::1]:7233", "shop.a1b2.tmprl.cloud:7233"):
        assert Temporal(valid).settings.address == valid
