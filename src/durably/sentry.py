"""Sentry: middleware that reports the errors of functions and steps.

``Client(middleware=[Sentry()])`` reports each failed run once; ``Sentry(capture="attempt")`` each failed attempt. It
needs ``sentry-sdk`` (the extra ``durably[sentry]``), and an app that calls ``sentry_sdk.init``.
"""

from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Literal

import sentry_sdk
from sentry_sdk.scope import add_global_event_processor

from .client import Client
from .comm.handler import RAISED_MESSAGE
from .context import Context, ContextSync
from .errors import FunctionConfigInvalidError, StepError
from .execution import StepInfo, StepMemos
from .functions.function import Function
from .functions.middleware import TransformOutputResult
from .middleware import MiddlewareSync
from .protocol.errors import is_quiet, is_retriable
from .protocol.limits import DEFAULT_RETRIES
from .protocol.text import printable

Capture = Literal["run", "attempt"]

_MAX_TAG = 200
_MAX_STACK = 8000
_SEEN = "_durably_sentry_seen"

_in_call: ContextVar[bool] = ContextVar("durably_sentry_in_call", default=False)
"""Whether a function with this middleware is being called."""


class Sentry:
    """Makes the middleware: ``Client(middleware=[Sentry()])``.

    ``capture="run"`` reports the error with which a run fails, once. ``capture="attempt"`` reports the error of each
    attempt of a step or function, even if a retry succeeds. Events have the tags ``durably.app``, ``durably.function``,
    ``durably.run``, ``durably.step`` and ``durably.attempt``. Errors that the app logs, and those that Sentry's
    integrations find in tasks of functions, are not reported a second time.
    """

    def __init__(self, *, capture: Capture = "run") -> None:
        if capture not in ("run", "attempt"):
            raise FunctionConfigInvalidError(f'Sentry.capture must be "run" or "attempt", not {capture!r}')
        self.capture: Capture = capture
        _drop_repetitions()

    def __call__(self, client: Client, raw_request: object) -> "SentryMiddleware":
        return SentryMiddleware(client, raw_request, self.capture)


class SentryMiddleware(MiddlewareSync):
    """The middleware of one call."""

    def __init__(self, client: Client, raw_request: object, capture: Capture) -> None:
        super().__init__(client, raw_request)
        self._capture = capture
        self._tags: dict[str, str] = {}
        self._attempt = 0
        self._max_attempts = 1

    def transform_input(self, ctx: Context | ContextSync, function: Function[Any], steps: StepMemos) -> None:
        _in_call.set(True)
        retries = function.opts.retries
        self._max_attempts = ctx.max_attempts or 1 + (DEFAULT_RETRIES if retries is None else retries)
        self._attempt = ctx.attempt
        self._tags = {
            "durably.app": self.client.app_id,
            "durably.function": ctx.function_id,
            "durably.run": ctx.run_id,
            "durably.attempt": str(ctx.attempt),
        }

    def after_step(self, step: StepInfo, result: TransformOutputResult) -> None:
        if result.error is None:
            return
        _mark(result.error)
        if self._capture == "attempt" and not is_quiet(result.error):
            self._report(result.error, {**self._tags, "durably.step": step.id})

    def transform_output(self, result: TransformOutputResult) -> None:
        error = result.error
        if error is None or result.step is not None:
            return
        _mark(error)
        is_last = not is_retriable(error) or self._attempt + 1 >= self._max_attempts
        # The attempts of the failed step have been reported.
        is_wanted = is_last if self._capture == "run" else not isinstance(error, StepError)
        if is_wanted and not is_quiet(error):
            self._report(error, self._tags)

    def _report(self, error: Exception, tags: dict[str, str]) -> None:
        with sentry_sdk.new_scope() as scope:
            for name, value in tags.items():
                scope.set_tag(name, printable(value)[:_MAX_TAG])
            if isinstance(error, StepError):
                # The step's own exception was raised in another call, possibly of another process.
                scope.set_context("step error", {"name": error.name, "stack": (error.stack or "")[-_MAX_STACK:]})
            scope.capture_exception(error)


def _mark(error: BaseException) -> None:
    """Mark an error that this middleware reports or ignores."""
    with suppress(AttributeError):  # an exception that takes no attributes
        setattr(error, _SEEN, True)


def _is_repetition(event: Any, hint: Any) -> bool:
    """Whether an integration's event has an error that the middleware handles."""
    error = (hint.get("exc_info") or (None, None))[1]
    if error is None:
        return False
    if (record := hint.get("log_record")) is not None:
        return record.msg == RAISED_MESSAGE and getattr(error, _SEEN, False)
    values = (event.get("exception") or {}).get("values") or [{}]
    return _in_call.get() and (values[-1].get("mechanism") or {}).get("type") == "asyncio"


_processors: list[object] = []


def _drop_repetitions() -> None:
    """Add the event processor, once per process."""
    if not _processors:

        def process(event: Any, hint: Any) -> Any:
            return None if _is_repetition(event, hint or {}) else event

        _processors.append(process)
        add_global_event_processor(process)
