"""Settings of a connection, from several sources.

The first source with a value is used:

- arguments
- ``TEMPORAL_…`` environment variables
- the profile of Temporal's own configuration file (``temporalio.envconfig`` reads it and the variables, so the
  ``temporal`` command and the app agree)
- the framework's settings, with the same names without the prefix
- the defaults of a development server

An app with several connections gives the others a name. The variables of the connection ``billing`` begin with
``TEMPORAL_BILLING_``; it ignores other ``TEMPORAL_…`` variables.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from temporalio.envconfig import ClientConfigProfile
from temporalio.service import TLSConfig

from durably.protocol.text import FALSE_WORDS, TRUE_WORDS, parse_switch

from .errors import TemporalSettingsError

DEFAULT_ADDRESS = "localhost:7233"
DEFAULT_NAMESPACE = "default"
PREFIX = "TEMPORAL_"

_OF_THE_SDK = frozenset(
    {
        "ADDRESS",
        "API_KEY",
        "NAMESPACE",
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
"""Settings that ``temporalio.envconfig`` reads from variables."""

_OWN = {
    "task_queue": "TASK_QUEUE",
    "encryption_keys": "ENCRYPTION_KEYS",
    "deployment_name": "DEPLOYMENT_NAME",
    "build_id": "WORKER_BUILD_ID",
    "versioning_behavior": "VERSIONING_BEHAVIOR",
}
"""Other fields of ``ConnectionSettings``, and their settings."""

FRAMEWORK_KEYS = frozenset({*_OF_THE_SDK, *_OWN.values(), "CONFIG_FILE", "PROFILE", "SERVER"})
"""The settings that a framework may give: ``TEMPORAL_ADDRESS`` in Flask, ``ADDRESS`` in Django's ``TEMPORAL``.

``SERVER`` is another name of ``ADDRESS`` there."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*([_-][A-Za-z0-9]+)*\Z")
_TAKEN = {key.partition("_")[0] for key in FRAMEWORK_KEYS} | {"CLIENT", "CONNECTIONS", "GATEWAY", "GRPC", "UI"}
"""First words of other variables. Variables of a connection with such a name would be ambiguous."""


@dataclass(frozen=True, kw_only=True)
class ConnectionSettings:
    """Settings of a connection.

    ``address`` is ``host:port``. If ``tls`` is ``None``, TLS is used only with an API key. ``encryption_keys`` are read
    by ``EncryptionKey.parse_all``; without keys there is no encryption. ``deployment_name``, ``build_id`` and
    ``versioning_behavior`` are the version of workers.
    """

    address: str = DEFAULT_ADDRESS
    namespace: str = DEFAULT_NAMESPACE
    task_queue: str | None = None
    api_key: str | None = field(default=None, repr=False)
    tls: bool | TLSConfig | None = field(default=None, repr=False)
    rpc_metadata: Mapping[str, str] = field(default_factory=dict, repr=False)
    encryption_keys: str | Sequence[str] = field(default=(), repr=False)
    variable_prefix: str = PREFIX
    deployment_name: str | None = None
    build_id: str | None = None
    versioning_behavior: str | None = None


def resolve(
    arguments: Mapping[str, Any],
    framework: Mapping[str, Any],
    *,
    profile: str | None = None,
    config_file: str | Path | None = None,
    environment: Mapping[str, str] | None = None,
    name: str | None = None,
    same_server_as: ConnectionSettings | None = None,
) -> ConnectionSettings:
    """Settings from their sources.

    ``arguments`` are fields of ``ConnectionSettings``, unset if they are ``None``. ``name`` is that of one of several
    connections. ``same_server_as`` gives the address, TLS and credentials if no source of this connection has a server,
    and the encryption keys if no source has any. Raises ``TemporalSettingsError``.
    """
    prefix = prefix_of(name)
    environment = os.environ if environment is None else environment
    if prefix != PREFIX:  # The SDK reads the names without the connection's name.
        own = {key.removeprefix(prefix): value for key, value in environment.items() if key.startswith(prefix)}
        environment = {PREFIX + key: value for key, value in own.items()}
    if unknown := sorted(set(framework) - FRAMEWORK_KEYS):
        raise TemporalSettingsError(
            f"unknown setting {unknown[0]!r} for Temporal; known are {', '.join(sorted(FRAMEWORK_KEYS))}"
        )
    framework = {key: value for key, value in framework.items() if value is not None}
    if "SERVER" in framework:
        framework = {"ADDRESS": framework["SERVER"], **framework}
    profile = profile or (None if environment.get("TEMPORAL_PROFILE") else framework.get("PROFILE"))
    file = config_file or environment.get("TEMPORAL_CONFIG_FILE") or framework.get("CONFIG_FILE")
    if file and not Path(file).exists():  # The SDK would ignore it.
        raise TemporalSettingsError(f"there is no file {str(file)!r}, which {prefix}CONFIG_FILE or config_file= names")
    # The file's default profile is that of the connection without a name.
    reads_file = name is None or bool(profile or file or environment.get("TEMPORAL_PROFILE"))
    has_server = (name is not None and reads_file) or any(
        (arguments.get("address"), environment.get("TEMPORAL_ADDRESS"), framework.get("ADDRESS"), profile, file)
    )

    settings = _inherit(same_server_as, with_server=not has_server)
    given = {key: framework[key] for key in _OF_THE_SDK & framework.keys()}
    variables = {PREFIX + key: str(value).lower() if key == "TLS" else str(value) for key, value in given.items()}
    changes = _read_profile(variables, "the framework's settings", True)
    changes |= _read_profile(
        environment,
        "the environment or the configuration file",
        not reads_file,
        profile=profile,
        config_source=Path(file) if file else None,
    )
    for key, setting in _OWN.items():
        if value := environment.get(PREFIX + setting) or framework.get(setting):
            changes[key] = value
    changes |= {key: value for key, value in arguments.items() if value is not None}
    settings = replace(settings, **changes, variable_prefix=prefix)
    check_address(settings.address, "the address of the Temporal server")
    tls = settings.tls
    if isinstance(tls, TLSConfig) and (tls.client_cert is None) != (tls.client_private_key is None):
        raise TemporalSettingsError(
            f"only one of {prefix}TLS_CLIENT_CERT_… and {prefix}TLS_CLIENT_KEY_… is set: a client certificate needs "
            "its private key (in code: TLSConfig(client_cert=…, client_private_key=…))"
        )
    return settings


def with_own_names(text: str, settings: ConnectionSettings) -> str:
    """An error's message with the names of this connection's variables.

    The connection may be one of several, whose variables have other names.
    """
    return text.replace(PREFIX, settings.variable_prefix)


def prefix_of(name: str | None) -> str:
    """The prefix of a connection's environment variables.

    Raises ``TemporalSettingsError`` for an invalid name.
    """
    if name is None:
        return PREFIX
    upper = name.upper().replace("-", "_")
    if not _NAME.match(name) or upper.partition("_")[0] in _TAKEN:
        raise TemporalSettingsError(
            f"{name!r} cannot be the name of a connection to Temporal: use letters, digits, - and _, and another first "
            f"word than {', '.join(sorted(_TAKEN))}, since its variables begin with {PREFIX}NAME_"
        )
    return f"{PREFIX}{upper}_"


def _inherit(other: ConnectionSettings | None, *, with_server: bool) -> ConnectionSettings:
    """Inherit a connection's server. Never sends credentials to another server."""
    if other is None:
        return ConnectionSettings()
    if not with_server:
        return ConnectionSettings(encryption_keys=other.encryption_keys)
    return replace(
        other,
        namespace=DEFAULT_NAMESPACE,
        task_queue=None,
        deployment_name=None,
        build_id=None,
        versioning_behavior=None,
    )


def _read_profile(variables: Mapping[str, str], source: str, disable_file: bool, **options: Any) -> dict[str, Any]:
    """Fields of ``ConnectionSettings``, as the SDK reads them."""
    variables = dict(variables)
    word = variables.pop("TEMPORAL_TLS", "").strip().lower()
    if word:  # The SDK would read ``off``, ``no`` and an empty value as on.
        if (is_on := parse_switch(word)) is None:
            raise TemporalSettingsError(
                f"TEMPORAL_TLS in {source} is {word[:20]!r}: it must be on ({', '.join(TRUE_WORDS)}) or off "
                f"({', '.join(FALSE_WORDS)})"
            )
        variables["TEMPORAL_TLS"] = str(is_on).lower()
    try:
        profile = ClientConfigProfile.load(override_env_vars=variables, disable_file=disable_file, **options)
        tls = None if profile.tls is None else profile.tls.to_connect_tls_config()
    except Exception as error:
        raise TemporalSettingsError(f"the settings for Temporal in {source} cannot be read: {error}") from error
    found = {
        "address": profile.address,
        "namespace": profile.namespace,
        "api_key": profile.api_key,
        "rpc_metadata": profile.grpc_meta,
        "tls": tls,
    }
    return {key: value for key, value in found.items() if value or value is False}


_HOST = re.compile(r"[^\s:/@?#\[\]]+|\[[0-9A-Fa-f:.%]+\]")
"""A name or an IPv4 address, or an IPv6 address in brackets."""


def check_address(address: str, what: str, *, to_listen_at: bool = False) -> None:
    """Raises ``TemporalSettingsError`` unless it is ``host:port``.

    Port 0, any free one, is only for listening.
    """
    host, _, port = address.rpartition(":")
    is_port = port.isascii() and port.isdigit() and (0 if to_listen_at else 1) <= int(port[:6]) < 65536
    if not (_HOST.fullmatch(host) and is_port):
        shown = f"***@{address.rpartition('@')[2]}" if "@" in address else address
        raise TemporalSettingsError(f"{what} must be host:port, such as {DEFAULT_ADDRESS}, not {shown!r}")
