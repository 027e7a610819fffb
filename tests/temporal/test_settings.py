"""Sources of the connection's settings, and their order."""

import re
from pathlib import Path
from typing import Any

import pytest
from temporalio.service import TLSConfig

from durably.temporal import Temporal, TemporalSettingsError
from durably.temporal.settings import resolve

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


@pytest.mark.parametrize("framework", [{}, {"TLS": False}, {"TLS": True}])
def test_the_environment_switches_tls_before_the_framework(framework: dict[str, Any]) -> None:
    def tls(word: str) -> Any:
        return resolve({}, framework, environment={"TEMPORAL_TLS": word}).tls

    assert all(isinstance(tls(word), TLSConfig) for word in ("1", "true", "Yes", " on "))
    assert [tls(word) for word in ("0", "false", "No", "off")] == [False] * 4
    is_on = framework.get("TLS")
    assert isinstance(tls(""), TLSConfig) if is_on else tls("") is is_on


def test_secrets_are_not_shown() -> None:
    settings = resolve({"api_key": "hush", "rpc_metadata": {"authorization": "hush"}}, {}, environment=NOTHING)
    assert "hush" not in repr(settings)


@pytest.mark.parametrize(
    ("arguments", "framework", "environment", "words"),
    [
        ({}, {"ADRESS": "x:1"}, {}, "unknown setting 'ADRESS'"),
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


def test_a_configuration_file_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.toml")
    for options in (
        {"config_file": missing},
        {"environment": {"TEMPORAL_CONFIG_FILE": missing}},
        {"environment": {"TEMPORAL_BILLING_CONFIG_FILE": missing}, "name": "billing"},
    ):
        with pytest.raises(TemporalSettingsError, match=f"there is no file '{re.escape(missing)}'"):
            resolve({}, {}, **{"environment": NOTHING, **options})  # type: ignore[arg-type]
    with pytest.raises(TemporalSettingsError, match=re.escape(missing)):
        resolve({}, {"CONFIG_FILE": missing}, environment=NOTHING)


def test_the_environments_configuration_file_comes_before_the_frameworks(tmp_path: Path) -> None:
    for name in ("argument", "environment", "framework"):
        (tmp_path / name).write_text(f'[profile.default]\naddress = "{name}:1"\n')
    framework = {"CONFIG_FILE": str(tmp_path / "framework")}
    environment = {"TEMPORAL_CONFIG_FILE": str(tmp_path / "environment")}
    argument = tmp_path / "argument"
    assert resolve({}, framework, environment=environment).address == "environment:1"
    assert resolve({}, framework, environment={"TEMPORAL_CONFIG_FILE": ""}).address == "framework:1"
    assert resolve({}, framework, environment=environment, config_file=argument).address == "argument:1"


def test_settings_are_read_at_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    temporal = Temporal()
    temporal.configure(lambda: {"ADDRESS": "f:1"})
    assert temporal.settings.address == "f:1"
    with pytest.raises(TemporalSettingsError, match="already in use"):
        temporal.configure(dict)


@pytest.mark.parametrize(
    "address",
    [
        "localhost",
        "localhost:0",
        "localhost:99999",
        "local host:7233",
        "[::1:7233",
        "user:secret@localhost:7233",
        "http://localhost:7233",
    ],
)
def test_an_address_is_a_host_and_a_port(address: str) -> None:
    with pytest.raises(TemporalSettingsError, match="must be host:port") as refused:
        Temporal(address).settings  # noqa: B018
    assert "secret" not in str(refused.value)
    for valid in ("localhost:7233", "10.0.0.1:7233", "[::1]:7233", "shop.a1b2.tmprl.cloud:7233"):
        assert Temporal(valid).settings.address == valid
