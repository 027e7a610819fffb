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

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from temporalio.envconfig import ClientConfigProfile, ClientConfigTLS
from temporalio.service import TLSConfig

from durably.protocol.text import FALSE_WORDS, TRUE_WORDS, parse_switch

from .errors import TemporalSettingsError

DEFAULT_ADDRESS = "localhost:7233"
DEFAULT_NAMESPACE = "default"

FRAMEWORK_KEYS = frozenset(
    {
        "ADDRESS",
        "API_KEY",
        "CONFIG_FILE",
        "DEPLOYMENT_NAME",
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
        "VERSIONING_BEHAVIOR",
        "WORKER_BUILD_ID",
    }
)
"""The settings that a framework may give: ``TEMPORAL_ADDRESS`` in Flask, ``ADDRESS`` in Django's ``TEMPORAL``."""

PREFIX = "TEMPORAL_"
_TLS = f"{PREFIX}TLS"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*([_-][A-Za-z0-9]+)*\Z")
_OTHER_WORDS = frozenset({"CLIENT", "CONNECTIONS", "DEPLOYMENT", "GATEWAY", "GRPC", "OPTIONS", "UI", "WORKER"})
_TAKEN = _OTHER_WORDS | {key.partition("_")[0] for key in FRAMEWORK_KEYS}
"""First words of other variables. Variables of a connection with such a name would be ambiguous."""
_OF_A_SERVER = frozenset({"ADDRESS", "SERVER", "PROFILE", "CONFIG_FILE"})

_OF_WORKERS = {
    "deployment_name": "DEPLOYMENT_NAME",
    "build_id": "WORKER_BUILD_ID",
    "versioning_behavior": "VERSIONING_BEHAVIOR",
}
"""Fields of ``ConnectionSettings`` that are for worker versioning, and their settings."""

_NOT_OF_THE_SDK = ("CONFIG_FILE", "ENCRYPTION_KEYS", "PROFILE", "TASK_QUEUE", *_OF_WORKERS.values())
"""Settings that ``temporalio.envconfig`` does not read from variables."""

_FRAMEWORK = "the framework's settings"
_SERVER_ALIAS = "SERVER"
_OTHER_NAMES = {
    "ADDRESS": f"{_SERVER_ALIAS} GRPC_ENDPOINT HOST HOSTPORT HOST_PORT HOST_URL SERVER_ADDRESS SERVER_URL URL",
    "DEPLOYMENT_NAME": "DEPLOYMENT WORKER_DEPLOYMENT_NAME",
    "TASK_QUEUE": "QUEUE",
    "TLS": "TLS_ENABLED USE_TLS",
    "TLS_CLIENT_CERT_PATH": "CLIENT_CERT CLIENT_CERT_PATH MTLS_TLS_CERT TLS_CERT TLS_CERT_FILE TLS_CERT_PATH",
    "TLS_CLIENT_KEY_PATH": "CLIENT_KEY CLIENT_KEY_PATH MTLS_TLS_KEY TLS_KEY TLS_KEY_FILE TLS_KEY_PATH",
    "TLS_SERVER_CA_CERT_PATH": "TLS_CA TLS_CA_CERT TLS_CA_CERT_PATH TLS_CA_FILE TLS_CA_PATH",
    "WORKER_BUILD_ID": "BUILD_ID",
}
_MEANT_BY_OTHER_NAME = {other: key for key, others in _OTHER_NAMES.items() for other in others.split()}
"""Names that Temporal's other programs and samples use, and the SDK does not read. ``SERVER`` is Django's."""
_READ_KEYS = sorted(FRAMEWORK_KEYS - {_SERVER_ALIAS})
"""Variables that are read, without their prefix. The app chooses the names of ``GRPC_META_…`` ones."""
_OF_ONE_PROCESS = ("GATEWAY_SECRET", "UI_URL")
"""Variables of Durably that are not settings of a connection."""
_SIMILARITY = 0.85
"""The minimum ``difflib`` ratio of a misspelt name and a valid one: one or two letters. Valid names are less similar to
each other."""


@dataclass(frozen=True, kw_only=True)
class ConnectionSettings:
    """Settings of a connection.

    ``address`` is ``host:port``. If ``tls`` is ``None``, TLS is used only with an API key. ``encryption_keys`` are read
    by ``EncryptionKey.parse_all``; without keys there is no encryption. ``deployment_name`` and ``build_id`` are the
    version of workers, see ``durably.temporal.worker.deployments``.
    """

    address: str = DEFAULT_ADDRESS
    namespace: str = DEFAULT_NAMESPACE
    task_queue: str | None = None
    api_key: str | None = field(default=None, repr=False)
    tls: bool | TLSConfig | None = field(default=None, repr=False)
    rpc_metadata: Mapping[str, str] = field(default_factory=dict, repr=False)
    encryption_keys: str | Sequence[str] = field(default=(), repr=False)
    variable_prefix: str = "TEMPORAL_"
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
    environment = variables_of(name, os.environ if environment is None else environment)
    given = _framework_variables(framework)
    profile = profile or (framework.get("PROFILE") if "TEMPORAL_PROFILE" not in environment else None)
    source = _config_file(config_file, framework, environment, prefix_of(name))
    has_server = _names_a_server(arguments, framework, environment) or profile is not None or source is not None
    settings = _inherit(same_server_as, with_server=not has_server)
    keys = environment.get("TEMPORAL_ENCRYPTION_KEYS") or framework.get("ENCRYPTION_KEYS", settings.encryption_keys)
    queue = environment.get("TEMPORAL_TASK_QUEUE") or framework.get("TASK_QUEUE")
    settings = replace(settings, task_queue=queue, encryption_keys=keys or (), variable_prefix=prefix_of(name))
    versions = {
        field: environment.get(f"{PREFIX}{key}") or framework.get(key) or None for field, key in _OF_WORKERS.items()
    }
    settings = replace(settings, **_given(versions))
    settings = _apply(settings, _load(given, _FRAMEWORK, disable_file=True), _FRAMEWORK)
    # The file's default profile is that of the connection without a name.
    needs_file = name is None or profile is not None or source is not None or "TEMPORAL_PROFILE" in environment
    own = _load(
        environment,
        "the environment or the configuration file",
        profile=profile,
        config_source=source,
        disable_file=not needs_file,
    )
    settings = _apply(settings, own, environment)
    settings = replace(settings, **_given(arguments))
    _check(settings)
    return settings


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


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


def variables_of(name: str | None, environment: Mapping[str, str]) -> Mapping[str, str]:
    """The variables of a connection, under the names without the connection's name.

    These are the names that they have for the connection without a name.
    """
    prefix = prefix_of(name)
    if prefix == PREFIX:
        return environment
    return {PREFIX + key.removeprefix(prefix): value for key, value in environment.items() if key.startswith(prefix)}


def misspelt_variables(
    name: str | None, environment: Mapping[str, str], other_prefixes: Iterable[str] = ()
) -> dict[str, str]:
    """Unknown variables that resemble a valid one of this connection.

    Each is returned with the valid one. ``other_prefixes`` are those of the app's other connections. Other unknown
    names belong to Temporal's own programs.
    """
    prefix = prefix_of(name)
    others = tuple(each for each in other_prefixes if each not in (prefix, PREFIX))
    found = {}
    for variable in sorted(environment):
        if not variable.startswith(PREFIX) or variable.startswith(others):
            continue
        if variable.startswith(prefix):
            meant = _meant_key(variable.removeprefix(prefix))
        else:
            meant = _key_after_misspelt_prefix(variable, prefix)
        if meant is not None:
            found[variable] = f"{prefix}{meant}"
    return found


def _meant_key(key: str) -> str | None:
    if key.upper() in _MEANT_BY_OTHER_NAME:
        return _MEANT_BY_OTHER_NAME[key.upper()]
    if key in _READ_KEYS or key in _OF_ONE_PROCESS or key.startswith("GRPC_META_"):
        return None
    return next(iter(difflib.get_close_matches(key.upper(), _READ_KEYS, 1, _SIMILARITY)), None)


def _key_after_misspelt_prefix(variable: str, prefix: str) -> str | None:
    """The key of a variable with a misspelt prefix.

    It is the key of ``TEMPORAL_BILING_ADDRESS`` for the prefix ``TEMPORAL_BILLING_``. A different digit is not a
    misspelling.
    """
    wanted = prefix.removeprefix(PREFIX).rstrip("_")
    for key in _READ_KEYS:
        other = variable.removeprefix(PREFIX).removesuffix(f"_{key}")
        if not variable.endswith(f"_{key}") or re.sub("[0-9]", "", other) == re.sub("[0-9]", "", wanted):
            continue
        if difflib.get_close_matches(other, [wanted], 1, _SIMILARITY):
            return key
    return None


def _names_a_server(arguments: Mapping[str, Any], framework: Mapping[str, Any], environment: Mapping[str, str]) -> bool:
    in_environment = any(environment.get(f"{PREFIX}{key}") for key in _OF_A_SERVER)
    return bool(arguments.get("address") or in_environment or any(framework.get(key) for key in _OF_A_SERVER))


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


def _framework_variables(framework: Mapping[str, Any]) -> dict[str, str]:
    """A framework's settings as environment variables.

    This way one reader understands both.
    """
    if unknown := sorted(set(framework) - FRAMEWORK_KEYS):
        raise TemporalSettingsError(
            f"unknown setting {unknown[0]!r} for Temporal; known are {', '.join(sorted(FRAMEWORK_KEYS))}"
        )
    variables = {}
    for key, value in framework.items():
        if value is None or key in _NOT_OF_THE_SDK:
            continue
        if not isinstance(value, str | bool | Path):
            raise TemporalSettingsError(
                f"the setting {key!r} for Temporal must be a string, not {type(value).__name__}"
            )
        name = "ADDRESS" if key == "SERVER" else key
        variables[f"TEMPORAL_{name}"] = str(value).lower() if isinstance(value, bool) else str(value)
    return variables


def _with_plain_switch(variables: Mapping[str, str], source: str) -> dict[str, str]:
    """``TEMPORAL_TLS`` as ``true`` or ``false``.

    The SDK would read ``off``, ``no`` and an empty value as on.
    """
    others = {name: value for name, value in variables.items() if name != _TLS}
    word = variables.get(_TLS, "").strip().lower()
    if not word:
        return others
    if (is_on := parse_switch(word)) is None:
        raise TemporalSettingsError(
            f"{_TLS} in {source} is {word[:20]!r}: it must be on ({', '.join(TRUE_WORDS)}) or off "
            f"({', '.join(FALSE_WORDS)})"
        )
    return {**others, _TLS: "true" if is_on else "false"}


def _load(variables: Mapping[str, str], source: str, **options: Any) -> ClientConfigProfile:
    switches = _with_plain_switch(variables, source)
    try:
        return ClientConfigProfile.load(override_env_vars=switches, **options)
    except Exception as error:
        raise TemporalSettingsError(f"the settings for Temporal in {source} cannot be read: {error}") from error


def _apply(
    settings: ConnectionSettings, profile: ClientConfigProfile, source: str | Mapping[str, str]
) -> ConnectionSettings:
    """Settings changed by a profile.

    ``source`` is the profile's source: its name, or the environment that precedes a file.
    """
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
            raise TemporalSettingsError(
                f"the file of {_setting_of_file(profile.tls, error, source, settings)} cannot be read: {error}"
            ) from error
    given: dict[str, Any] = {name: value for name, value in changes.items() if value or value is False}
    return replace(settings, **given)


_FILES = (
    ("client_cert", "TLS_CLIENT_CERT_PATH"),
    ("client_private_key", "TLS_CLIENT_KEY_PATH"),
    ("server_root_ca_cert", "TLS_SERVER_CA_CERT_PATH"),
)
"""Fields of ``ClientConfigTLS``, and the settings that name their files."""


def _setting_of_file(
    tls: ClientConfigTLS, error: OSError, source: str | Mapping[str, str], settings: ConnectionSettings
) -> str:
    """The setting that names the file of the error, and where it is set."""
    of_file = [key for field, key in _FILES if getattr(tls, field) == Path(str(error.filename))]
    key = next((key for key in of_file if isinstance(source, str) or source.get(f"{PREFIX}{key}")), *of_file[:1])
    if isinstance(source, str):
        return f"{settings.variable_prefix}{key} ({source})"
    if source.get(f"{PREFIX}{key}"):
        return f"{settings.variable_prefix}{key} (the environment)"
    return f"tls.{key.removeprefix('TLS_').lower()} (Temporal's configuration file)"


def _config_file(
    argument: str | Path | None, framework: Mapping[str, Any], environment: Mapping[str, str], prefix: str
) -> Path | None:
    """The configuration file that is named, if one is.

    The SDK would ignore a missing file. Raises ``TemporalSettingsError``.
    """
    sources = (
        ("Temporal(config_file=…)", argument),
        (f"{prefix}CONFIG_FILE (the environment)", environment.get("TEMPORAL_CONFIG_FILE")),
        (f"CONFIG_FILE ({_FRAMEWORK})", framework.get("CONFIG_FILE")),
    )
    named = next(((setting, Path(path)) for setting, path in sources if path), None)
    if named is None:
        return None
    setting, path = named
    if not path.exists():
        raise TemporalSettingsError(f"there is no file {str(path)!r}, which {setting} names")
    return path


def _check(settings: ConnectionSettings) -> None:
    check_address(settings.address, "the address of the Temporal server")
    if isinstance(settings.tls, TLSConfig):
        try:
            _check_tls(settings.tls)
        except TemporalSettingsError as error:
            raise TemporalSettingsError(with_own_names(error.message, settings)) from None


_PEM_PARTS = (
    ("client_cert", "TLS_CLIENT_CERT", b"CERTIFICATE-----"),
    ("client_private_key", "TLS_CLIENT_KEY", b"PRIVATE KEY-----"),
    ("server_root_ca_cert", "TLS_SERVER_CA_CERT", b"CERTIFICATE-----"),
)
"""Fields of ``TLSConfig``, the settings that they come from, and what their PEM files have."""


def _check_tls(tls: TLSConfig) -> None:
    """Find mistyped paths and swapped files. Messages contain no contents."""
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


_HOST = re.compile(r"[^\s:/@?#\[\]]+|\[[0-9A-Fa-f:.%]+\]")
"""A name or an IPv4 address, or an IPv6 address in brackets."""


def check_address(address: str, what: str, *, to_listen_at: bool = False) -> None:
    """Raises ``TemporalSettingsError`` unless it is ``host:port``.

    Port 0, any free one, is only for listening.
    """
    host, _, port = address.rpartition(":")
    lowest = 0 if to_listen_at else 1
    is_port = port.isascii() and port.isdigit() and lowest <= int(port[:6]) < 65536
    if not (_HOST.fullmatch(host) and is_port):
        shown = f"***@{address.rpartition('@')[2]}" if "@" in address else address
        raise TemporalSettingsError(f"{what} must be host:port, such as {DEFAULT_ADDRESS}, not {shown!r}")
