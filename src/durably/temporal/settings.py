"""Where the Temporal server is, read from arguments, the environment, a profile, and a framework's settings.

The first of these that says something counts: arguments; ``TEMPORAL_…`` environment variables; the profile of
Temporal's own configuration file (all that ``temporalio.envconfig`` reads, so the ``temporal`` command and the app
agree); what the framework's settings say, in the same words without the prefix; the defaults of a development server.
This module connects to nothing.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from temporalio.envconfig import ClientConfigProfile
from temporalio.service import TLSConfig

from .errors import TemporalSettingsError

DEFAULT_ADDRESS = "localhost:7233"
DEFAULT_NAMESPACE = "default"

FRAMEWORK_KEYS = frozenset(
    {
        "ADDRESS",
        "API_KEY",
        "CONFIG_FILE",
        "ENCRYPTION_KEYS",
        "NAMESPACE",
        "PROFILE",
        "SERVER",
        "TASK_QUEUE",
        "TLS",
        "TLS_CLIENT_CERT_DATA",
        "TLS_CLIENT_CERT_PATH",
        "TLS_CLIENT_KEY_DATA",
        "TLS_CLIENT_KEY_PATH",
        "TLS_SERVER_CA_CERT_DATA",
        "TLS_SERVER_CA_CERT_PATH",
        "TLS_SERVER_NAME",
    }
)
"""The settings that a framework may give: ``TEMPORAL_ADDRESS`` in Flask, ``ADDRESS`` in Django's ``TEMPORAL``."""

_NOT_OF_THE_SDK = ("CONFIG_FILE", "ENCRYPTION_KEYS", "PROFILE", "TASK_QUEUE")
"""Those that ``temporalio.envconfig`` does not read from variables."""


@dataclass(frozen=True, kw_only=True)
class ConnectionSettings:
    """``address`` is ``host:port``; ``tls`` is ``None`` to use TLS when there is an API key, and not otherwise.
    ``encryption_keys`` are what ``EncryptionKey.parse_all`` reads; there is no encryption where there are none."""

    address: str = DEFAULT_ADDRESS
    namespace: str = DEFAULT_NAMESPACE
    task_queue: str | None = None
    api_key: str | None = field(default=None, repr=False)
    tls: bool | TLSConfig | None = field(default=None, repr=False)
    rpc_metadata: Mapping[str, str] = field(default_factory=dict, repr=False)
    encryption_keys: str | Sequence[str] = field(default=(), repr=False)


def resolve(
    arguments: Mapping[str, Any],
    framework: Mapping[str, Any],
    *,
    profile: str | None = None,
    config_file: str | Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> ConnectionSettings:
    """Settings from their sources; ``arguments`` are fields of ``ConnectionSettings``, those that are ``None`` unset.

    Raises ``TemporalSettingsError``.
    """
    environment = os.environ if environment is None else environment
    given = _framework_variables(framework)
    settings = ConnectionSettings(
        task_queue=environment.get("TEMPORAL_TASK_QUEUE") or framework.get("TASK_QUEUE"),
        encryption_keys=environment.get("TEMPORAL_ENCRYPTION_KEYS") or framework.get("ENCRYPTION_KEYS") or (),
    )
    settings = _apply(settings, _load(given, "the framework's settings", disable_file=True))
    own = _load(
        environment,
        "the environment or the configuration file",
        profile=profile or (framework.get("PROFILE") if "TEMPORAL_PROFILE" not in environment else None),
        config_source=_path(config_file or framework.get("CONFIG_FILE")),
    )
    settings = _apply(settings, own)
    settings = replace(settings, **{name: value for name, value in arguments.items() if value is not None})
    _check(settings)
    return settings


def _framework_variables(framework: Mapping[str, Any]) -> dict[str, str]:
    """A framework's settings as environment variables, so that one reader understands both."""
    if unknown := sorted(set(framework) - FRAMEWORK_KEYS):
        raise TemporalSettingsError(
            f"unknown setting {unknown[0]!r} for Temporal; known are {', '.join(sorted(FRAMEWORK_KEYS))}"
        )
    variables = {}
    for key, value in framework.items():
        if value is None or key in _NOT_OF_THE_SDK:
            continue
        if not isinstance(value, str | bool | Path):
            raise TemporalSettingsError(f"the setting {key!r} for Temporal is not text but {type(value).__name__}")
        name = "ADDRESS" if key == "SERVER" else key
        variables[f"TEMPORAL_{name}"] = str(value).lower() if isinstance(value, bool) else str(value)
    return variables


def _load(variables: Mapping[str, str], source: str, **options: Any) -> ClientConfigProfile:
    try:
        return ClientConfigProfile.load(override_env_vars=dict(variables), **options)
    except Exception as error:
        raise TemporalSettingsError(f"the settings for Temporal in {source} cannot be read: {error}") from error


def _apply(settings: ConnectionSettings, profile: ClientConfigProfile) -> ConnectionSettings:
    changes: dict[str, Any] = {
        "address": profile.address,
        "namespace": profile.namespace,
        "api_key": profile.api_key,
        "rpc_metadata": profile.grpc_meta or None,
    }
    if profile.tls is not None:
        try:
            changes["tls"] = profile.tls.to_connect_tls_config()
        except OSError as error:
            raise TemporalSettingsError(f"a certificate or key for Temporal cannot be read: {error}") from error
    return replace(settings, **{name: value for name, value in changes.items() if value})


def _path(config_file: str | Path | None) -> Path | None:
    return None if config_file is None else Path(config_file)


def _check(settings: ConnectionSettings) -> None:
    check_address(settings.address, "the address of the Temporal server")
    if isinstance(settings.tls, TLSConfig):
        _check_tls(settings.tls)


_PEM_PARTS = (
    ("client_cert", "TLS_CLIENT_CERT", b"CERTIFICATE-----"),
    ("client_private_key", "TLS_CLIENT_KEY", b"PRIVATE KEY-----"),
    ("server_root_ca_cert", "TLS_SERVER_CA_CERT", b"CERTIFICATE-----"),
)
"""Fields of ``TLSConfig``, the settings that they come from, and what their PEM files have."""


def _check_tls(tls: TLSConfig) -> None:
    """What a mistyped path or a swapped pair of files leaves. Contents never appear in a message."""
    if (tls.client_cert is None) != (tls.client_private_key is None):
        missing, there = ("KEY", "CERT") if tls.client_private_key is None else ("CERT", "KEY")
        raise TemporalSettingsError(
            f"TEMPORAL_TLS_CLIENT_{there}_… is set, but TEMPORAL_TLS_CLIENT_{missing}_PATH and "
            f"TEMPORAL_TLS_CLIENT_{missing}_DATA are not: a client certificate needs its private key (in code: "
            "TLSConfig(client_cert=…, client_private_key=…))"
        )
    for name, setting, mark in _PEM_PARTS:
        content = getattr(tls, name)
        if content is not None and mark not in content:
            what = "private key" if mark.startswith(b"PRIVATE") else "certificate"
            raise TemporalSettingsError(
                f"TEMPORAL_{setting}_PATH or TEMPORAL_{setting}_DATA (TLSConfig({name}=…)) has no {what} in PEM format"
            )


def check_address(address: str, what: str) -> None:
    """Raises ``TemporalSettingsError`` unless it is ``host:port``."""
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise TemporalSettingsError(f"{what} is host:port, such as {DEFAULT_ADDRESS}, and not {address!r}")
