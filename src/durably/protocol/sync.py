"""Sync: an app telling an engine its functions (spec §4.3).

Reading is lenient: official SDKs send ``appname`` or ``appName``, nulls for absent options, and durations
as text that may also be an RFC 3339 date. An option that is not known is passed over, since newer SDKs may have more
of them; a field that a known option does not have is refused, since it is misspelt. Writing goes through
``durably.options``, which checks values.
"""

import re
from typing import Any, TypeVar

import msgspec

from .decoding import decode

SYNC_VERSION = "0.1"


class _Wire(msgspec.Struct, kw_only=True, omit_defaults=True, rename="camel"):
    """Base of the wire's structs: camelCase names, absent where default."""


class Trigger(_Wire):
    event: str | None = None
    expression: str | None = None
    cron: str | None = None
    jitter: str | None = None


class Runtime(_Wire):
    """``answer_signature`` is an addition of Durably (see ``protocol.answer_signatures``)."""

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


class BatchEvents(_Wire, rename={"max_size": "maxSize", "if_exp": "if"}):
    max_size: int
    timeout: str | None = None
    key: str | None = None
    if_exp: str | None = None


class Cancel(_Wire, rename={"if_exp": "if"}):
    event: str
    if_exp: str | None = None
    timeout: str | None = None


class RateLimit(_Wire):
    limit: int
    period: str
    key: str | None = None


class Throttle(_Wire):
    limit: int
    period: str
    burst: int | None = None
    key: str | None = None


class Debounce(_Wire):
    period: str
    timeout: str | None = None
    key: str | None = None


class Priority(_Wire):
    run: str | None = None


class Concurrency(_Wire):
    limit: int
    key: str | None = None
    scope: str | None = None


class Singleton(_Wire):
    mode: str
    key: str | None = None


class Timeouts(_Wire):
    start: str | None = None
    finish: str | None = None


class Checkpoint(_Wire, rename=None):
    batch_steps: int | None = None
    batch_interval: str | None = None
    max_runtime: str | None = None


class FunctionConfig(_Wire):
    id: str
    triggers: list[Trigger]
    steps: dict[str, StepConfig]
    name: str | None = None
    idempotency: str | None = None
    batch_events: BatchEvents | None = None
    cancel: list[Cancel] | None = None
    rate_limit: RateLimit | None = None
    throttle: Throttle | None = None
    debounce: Debounce | None = None
    priority: Priority | None = None
    concurrency: list[Concurrency] | Concurrency | int | None = None
    singleton: Singleton | None = None
    timeouts: Timeouts | None = None
    checkpoint: Checkpoint | bool | None = None


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

_decoder = msgspec.json.Decoder(SyncRequest)
_OPTIONS: dict[str, type[_Wire]] = {
    "triggers": Trigger,
    "batchEvents": BatchEvents,
    "cancel": Cancel,
    "rateLimit": RateLimit,
    "throttle": Throttle,
    "debounce": Debounce,
    "priority": Priority,
    "concurrency": Concurrency,
    "singleton": Singleton,
    "timeouts": Timeouts,
}
"""The options that engines act on; that of checkpoints is for SDKs."""
_FIELDS = {
    option: sorted(field.encode_name for field in msgspec.structs.fields(struct)) for option, struct in _OPTIONS.items()
}
_PLACE_IN_FUNCTION = re.compile(r" - at `\$\.functions\[(\d+)\]\.(.+)`$")


def decode_sync(body: bytes) -> SyncRequest:
    """Raises ``msgspec.ValidationError``, which names the function and the option or else the place of a wrong
    value, or ``msgspec.DecodeError``."""
    return decode_functions(body, _decoder)


def decode_functions(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Whatever JSON object has configurations as its ``functions``. Raises like ``decode_sync``."""
    try:
        decoded = decode(decoder, body)
    except msgspec.ValidationError as error:
        raise msgspec.ValidationError(_name_function(str(error), body)) from None
    for config in msgspec.json.decode(body)["functions"]:
        _check_fields(config)
    return decoded


def _name_function(fault: str, body: bytes) -> str:
    if not (place := _PLACE_IN_FUNCTION.search(fault)):
        return fault
    function_id = msgspec.json.decode(body)["functions"][int(place[1])].get("id")
    if not isinstance(function_id, str):
        return fault
    return f"function {function_id!r}: {place[2]}: {fault[: place.start()]}"


def _check_fields(config: dict[str, Any]) -> None:
    """Nulls ask for nothing, whatever their names."""
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
