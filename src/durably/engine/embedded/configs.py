"""Checking what an app syncs, before it is accepted (spec §4.3). Flow control is checked where it is read."""

from urllib.parse import urlsplit

from durably.engine.errors import ConfigInvalidError
from durably.engine.expressions import ExpressionInvalidError, compile_expression
from durably.protocol.limits import MAX_EVENT_NAME_LENGTH, MAX_RETRIES, MAX_TRIGGERS
from durably.protocol.sync import FunctionConfig, SyncRequest

from .registry import Function


def read_sync(request: SyncRequest) -> list[Function]:
    """The functions of an app. Raises ``ConfigInvalidError``, which names the function and the option."""
    if not request.app_id:
        raise ConfigInvalidError("the app has no id: set app_id where the client is made")
    functions: dict[str, Function] = {}
    for config in request.functions:
        if not config.id:
            raise ConfigInvalidError(f"app {request.app_id!r}: a function has no id")
        if config.id in functions:
            raise ConfigInvalidError(f"app {request.app_id!r}: two functions have the id {config.id!r}")
        _check_steps(config)
        _check_triggers(config)
        functions[config.id] = Function.from_config(config, request.app_id)
    return list(functions.values())


def _refuse(config: FunctionConfig, option: str, reason: str) -> ConfigInvalidError:
    return ConfigInvalidError(f"function {config.id!r}: {option} {reason}")


def _check_steps(config: FunctionConfig) -> None:
    if not config.steps:
        raise _refuse(config, "steps", "are empty; there must be one, with the URL at which to call the function")
    step = next(iter(config.steps.values()))
    if step.runtime.type != "http":
        raise _refuse(config, "runtime.type", f"is {step.runtime.type!r}; this engine calls functions over 'http' only")
    parts = urlsplit(step.runtime.url)
    if parts.scheme not in ("http", "https", "embedded") or not parts.hostname:
        raise _refuse(config, "runtime.url", f"is {step.runtime.url!r}; it must be an http or https URL")
    attempts = step.retries.attempts if step.retries else None
    if attempts is not None and not 0 <= attempts <= MAX_RETRIES:
        raise _refuse(config, "retries", f"is {attempts}; it must be between 0 and {MAX_RETRIES}")


def _check_triggers(config: FunctionConfig) -> None:
    if len(config.triggers) > MAX_TRIGGERS:
        raise _refuse(config, "triggers", f"are {len(config.triggers)}; at most {MAX_TRIGGERS} are possible")
    for trigger in config.triggers:
        if bool(trigger.event) == bool(trigger.cron):
            raise _refuse(config, "triggers", "must each have either an event or a cron schedule")
        if trigger.event and len(trigger.event) > MAX_EVENT_NAME_LENGTH:
            raise _refuse(config, "triggers", f"name an event of more than {MAX_EVENT_NAME_LENGTH} characters")
        if trigger.expression:
            try:
                compile_expression(trigger.expression, has_async=False)
            except ExpressionInvalidError as error:
                raise _refuse(config, "triggers.expression", f"is not valid: {error}") from error
