"""Checking what an app syncs, before it is accepted (spec §4.3). Flow control is checked where it is read."""

from yarl import URL

from durably.engine.errors import ConfigInvalidError
from durably.engine.flow.reading import OptionReader
from durably.engine.flow.triggers import check_triggers
from durably.protocol.limits import MAX_FUNCTION_ID_LENGTH, MAX_RETRIES
from durably.protocol.sync import FunctionConfig, StepConfig, SyncRequest
from durably.protocol.text import redact_url

from .registry import Function

_LONGEST_QUOTE = 200


def read_sync(request: SyncRequest, *, in_process: bool) -> list[Function]:
    """The functions of an app. ``in_process`` says that its URLs are never called.

    Raises ``ConfigInvalidError``, which names the function and the option.
    """
    if not request.app_id.strip():
        raise ConfigInvalidError("the app has no id: set app_id where the client is made")
    functions: dict[str, Function] = {}
    for config in request.functions:
        _check_id(config.id, request.app_id)
        if config.id in functions:
            raise ConfigInvalidError(f"app {request.app_id!r}: two functions have the id {config.id!r}")
        reader = OptionReader(config.id)
        _check_steps(config, reader, in_process)
        check_triggers(config.id, config.triggers)
        functions[config.id] = Function.from_config(config, request.app_id)
    return list(functions.values())


def _check_id(function_id: str, app_id: str) -> None:
    if not function_id.strip():
        raise ConfigInvalidError(f"app {app_id!r}: a function has no id")
    if len(function_id) > MAX_FUNCTION_ID_LENGTH:
        raise ConfigInvalidError(
            f"app {app_id!r}: the function id {function_id[:40]!r}… has more than {MAX_FUNCTION_ID_LENGTH} characters"
        )


def _check_steps(config: FunctionConfig, reader: OptionReader, in_process: bool) -> None:
    if len(config.steps) != 1:
        reason = "there must be exactly one, with the URL at which to call the function"
        raise reader.refuse("steps", f"are {len(config.steps)}; {reason}")
    (step,) = config.steps.values()
    if not in_process:
        _check_runtime(step, reader)
    attempts = step.retries.attempts if step.retries else None
    if attempts is not None:
        reader.count("retries", attempts, at_least=0, at_most=MAX_RETRIES)


def _check_runtime(step: StepConfig, reader: OptionReader) -> None:
    if step.runtime.type != "http":
        raise reader.refuse(
            "runtime.type",
            f"is {step.runtime.type!r}; this engine calls functions over 'http' only: it does not support Connect, so "
            "serve the functions over HTTP",
        )
    try:
        url = URL(step.runtime.url)
        is_good = url.scheme in ("http", "https") and bool(url.host) and url.port != 0
    except ValueError:  # a port that is no number, a bracket that is not closed, a name that is none
        is_good = False
    if not is_good:
        # URLs may hold passwords.
        shown = redact_url(step.runtime.url)[:_LONGEST_QUOTE]
        raise reader.refuse("runtime.url", f"is {shown!r}; it must be an http or https URL")
