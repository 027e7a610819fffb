"""Sync: an app sends an engine its functions (spec §4.3).

Reading is lenient: official SDKs send ``appname`` or ``appName``, nulls and zeros for absent options, and dates (RFC
3339) for some durations. An unknown option is ignored, because newer SDKs may have more options. An unknown field of a
known option is refused, because it is misspelt. ``options`` declares the options and their checks.
"""

import re
from typing import Any, TypeVar

import msgspec

from .call import decode
from .options import OPTIONS, FunctionOptions, Option, OptionInvalidError

SYNC_VERSION = "0.1"


class _Wire(msgspec.Struct, kw_only=True, omit_defaults=True, rename="camel"):
    """Base of the wire's structs: camelCase names, default values omitted."""


class Trigger(_Wire):
    event: str | None = None
    expression: str | None = None
    cron: str | None = None
    jitter: str | None = None


class Runtime(_Wire):
    """The address at which an engine calls a function, and its protocol.

    ``answer_signature`` is an addition of Durably (see ``protocol.answer_signatures``).
    """

    url: str
    type: str = "http"
    answer_signature: str | None = None


class Retries(_Wire):
    attempts: int | None = None


class StepConfig(_Wire):
    id: str
    runtime: Runtime
    name: str | None = None
    retries: Retries | None = None


class FunctionConfig(FunctionOptions, rename="camel"):
    """A function's entry in the payload.

    ``checkpoint`` is for SDKs; engines ignore it.
    """

    id: str
    triggers: list[Trigger]
    steps: dict[str, StepConfig]
    name: str | None = None
    checkpoint: dict[str, Any] | bool | None = None


class SyncRequest(msgspec.Struct, kw_only=True):
    """``POST {api}/fn/register``."""

    url: str
    functions: list[FunctionConfig]
    app_name: str | None = msgspec.field(default=None, name="appName")
    appname: str | None = None
    app_version: str | None = msgspec.field(default=None, name="appVersion")
    deploy_type: str | None = msgspec.field(default=None, name="deployType")
    framework: str | None = None
    sdk: str | None = None
    v: str | None = None
    capabilities: Any = None

    @property
    def app_id(self) -> str:
        return self.app_name or self.appname or ""


T = TypeVar("T")

_json = msgspec.json.Decoder()
_FIELDS = {
    option.wire_name: sorted(field.encode_name for field in msgspec.structs.fields(option.type))
    for option in OPTIONS
    if issubclass(option.type, Option)
} | {"triggers": ["cron", "event", "expression", "jitter"]}
_PLACE = re.compile(r" - at `\$(?:\.functions\[(\d+)\])?\.(.+)`$")
_CAPITAL = re.compile(r"(?<=[a-z])([A-Z])")


def decode_sync(body: bytes) -> SyncRequest:
    """Decode the body of a sync.

    Raises ``msgspec.ValidationError``, which names the function and the option or else the position of a wrong value,
    or ``msgspec.DecodeError``.
    """
    return decode_functions(body, SyncRequest)


def decode_functions(body: bytes, as_type: type[T]) -> T:
    """Decode a JSON object with configurations as its ``functions``.

    Raises the errors of ``decode_sync``.
    """
    document = decode(_json, body)
    configs = document.get("functions") if isinstance(document, dict) else None
    if isinstance(configs, list):
        document["functions"] = [_drop_unused(config) for config in configs]
    try:
        decoded = msgspec.convert(document, as_type)
    except msgspec.ValidationError as error:
        raise msgspec.ValidationError(_name_option(error, configs)) from None
    for config in document["functions"]:
        _check_fields(config)
    return decoded


def decode_function(stored: bytes) -> FunctionConfig:
    """Decode the configuration of one function.

    Raises ``msgspec.ValidationError`` or ``msgspec.DecodeError``.
    """
    config = msgspec.json.decode(stored)
    try:
        return msgspec.convert(_drop_unused(config), FunctionConfig)
    except msgspec.ValidationError as error:
        raise msgspec.ValidationError(_name_option(error, [config], 0)) from None


def _drop_unused(config: Any) -> Any:
    """Drop values that SDKs send for unused options.

    They are nulls, blank strings, and limits and bursts of 0.
    """
    if not isinstance(config, dict):
        return config
    used = config.copy()
    for option in OPTIONS:
        value = used.pop(option.wire_name, None)
        if option.name == "concurrency":
            value = _limits(value)
        if isinstance(value, list):
            value = [_drop_unused_fields(entry) for entry in value] or None
        elif isinstance(value, dict):
            value = _drop_unused_fields(value)
            if option.name in ("priority", "timeouts") and not any(
                each.strip() if isinstance(each, str) else each for each in value.values()
            ):
                value = None
        if value is not None and not (isinstance(value, str) and not value.strip()):
            used[option.wire_name] = value
    return used


def _limits(value: Any) -> Any:
    """Concurrency as a list. The payload may have a single entry, or only its limit."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = {"limit": value}
    entries = [value] if isinstance(value, dict) else value
    if not isinstance(entries, list):
        return entries
    return [entry for entry in entries if not (isinstance(entry, dict) and entry.get("limit") == 0)]


def _drop_unused_fields(entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    unused = (("burst", 0), ("scope", ""))
    return {name: value for name, value in entry.items() if value is not None and (name, value) not in unused}


def _name_option(error: msgspec.ValidationError, configs: Any, index: int | None = None) -> str:
    """The error with the function and the option instead of the JSON path.

    ``index`` is the function's, if the path does not name it.
    """
    fault = str(error)
    if not (isinstance(configs, list) and (place := _PLACE.search(fault))):
        return fault
    at = index if place[1] is None else int(place[1])
    config = None if at is None else configs[at]
    function_id = config.get("id") if isinstance(config, dict) else None
    if not isinstance(function_id, str):
        return fault
    option = _CAPITAL.sub(r"_\1", place[2]).lower()
    if isinstance(error.__cause__, OptionInvalidError):
        return f"function {function_id!r}: {option}.{error.__cause__.field} {error.__cause__.problem}"
    return f"function {function_id!r}: {option}: {fault[: place.start()]}"


def _check_fields(config: dict[str, Any]) -> None:
    """Refuse fields that an option does not have.

    Nulls are ignored, whatever their names.
    """
    for option, known in _FIELDS.items():
        value = config.get(option)
        for entry in value if isinstance(value, list) else [value]:
            if not isinstance(entry, dict):
                continue
            for name, given in entry.items():
                if name not in known and given is not None:
                    raise msgspec.ValidationError(
                        f"function {config['id']!r}: {option} has no field {name!r}; it takes {', '.join(known)}"
                    )
