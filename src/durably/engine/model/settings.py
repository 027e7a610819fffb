"""Settings of engines, their clock, the run machine's policy, and the interface of tracing."""

import asyncio
import datetime as dt
import os
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from enum import StrEnum
from types import NoneType
from typing import Protocol, runtime_checkable
from urllib.parse import urlsplit

import msgspec

from durably.engine.core.backoff import Backoff, dev_backoff, unreached_backoff
from durably.engine.core.calls import Answer, CallData
from durably.engine.core.run_state import Policy, RunStatus
from durably.protocol.headers import ServerKind
from durably.protocol.limits import MAX_CALL_DURATION, MAX_DEPTH, MAX_EVENT_BYTES, MAX_STEPS
from durably.protocol.options import check_count, check_text, check_texts, check_time_span, check_type
from durably.protocol.signatures import check_signing_key
from durably.protocol.text import show_url

from .events import Entropy


class EndedRun(msgspec.Struct, frozen=True, gc=False):
    """A run that has ended. Times are milliseconds since the epoch.

    ``traceparents`` are the trace contexts of its events; ``error`` is the name of the error with which it failed.
    """

    run_id: str
    function_id: str
    app_id: str
    status: RunStatus
    created_at: int
    ended_at: int
    traceparents: tuple[str | None, ...]
    rerun_of: str | None = None
    error: str | None = None


class CallSpan(Protocol):
    """The span of one call to an app. ``traceparent`` is its context, for the app."""

    traceparent: str | None

    def answered(self, answer: Answer) -> None:
        """Record the result of the call."""
        ...


@runtime_checkable
class EngineTracing(Protocol):
    """Reports spans of an engine. The methods are quick, and raise no errors."""

    def receiving(self, names: Sequence[str], traceparent: str | None) -> AbstractContextManager[str | None]:
        """The span of a request that stores events, with their names.

        The value is the trace context to store with the events.
        """
        ...

    def run_context(self, run_id: str, traceparent: str | None) -> str | None:
        """The trace context of a run, from its event's. Called in any thread."""
        ...

    def calling(self, data: CallData, *, execution: int = 0, repetition: int = 0) -> AbstractContextManager[CallSpan]:
        """The span of a call.

        An engine of several processes passes ``execution``, the number of an execution of the run, because another
        execution has calls of the same generations. ``repetition`` counts repetitions of a call with the same
        generation.
        """
        ...

    def run_ended(self, run: EndedRun) -> None:
        """Report the span of a run."""
        ...


def trace_of_run(tracing: EngineTracing | None, run_id: str, traceparent: str | None) -> str | None:
    """The trace context that a run's events and invocations continue.

    ``traceparent`` is that of the run's event.
    """
    return traceparent if tracing is None else tracing.run_context(run_id, traceparent)


class Timer(Protocol):
    def cancel(self) -> None: ...


@runtime_checkable
class Clock(Protocol):
    """The clock of an engine, and its timers.

    ``now`` is milliseconds since the epoch. ``call_at`` runs a callback on the event loop once at a time.

    ``begin_work`` and ``end_work`` enclose work. A clock that skips time does not skip during work. Follow-up work
    calls ``begin_work`` before its cause calls ``end_work``. Call both on the event loop.
    """

    def now(self) -> int: ...

    def call_at(self, when: int, callback: Callable[[], None]) -> Timer: ...

    def begin_work(self) -> None: ...

    def end_work(self) -> None: ...


class SystemClock:
    """The wall clock.

    Timers follow changes of the wall clock within a minute, for example after the machine was suspended.
    """

    _MAX_TIMER_SECONDS = 60.0

    def now(self) -> int:
        return time.time_ns() // 1_000_000

    def call_at(self, when: int, callback: Callable[[], None]) -> Timer:
        seconds = min(max(when - self.now(), 0) / 1000, self._MAX_TIMER_SECONDS)
        return asyncio.get_running_loop().call_later(seconds, callback)

    def begin_work(self) -> None:
        """Do nothing: real time cannot be skipped."""

    def end_work(self) -> None:
        """Do nothing."""


class Durability(StrEnum):
    """The data that survives a power failure.

    A crash of the process alone never loses data.

    ``FULL``: everything acknowledged. ``NORMAL``: the database stays intact, but the last transactions may be lost.
    ``OFF``: possibly nothing; for temporary databases.
    """

    FULL = "full"
    NORMAL = "normal"
    OFF = "off"


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of an engine.

    - ``server_kind``: the mode that calls announce. `durably start` sets it to production.
    - ``signing_key``: the key that signs calls. The API verifies requests with it. In production, answers to calls must
      be signed with it or with ``signing_key_fallback``.
    - ``signing_key_fallback``: the key before a rotation, which the API accepts too.
    - ``unsigned_apps``: the ids of apps whose unsigned answers are accepted, because their SDK does not sign.
    - ``backoff``: the delays between attempts, as a function of the attempt that failed (from 0) and a random number
      from 0 to 1. In process, the default in production mode is that of `durably start`.
    - ``unreached_backoff``: the delays before a call is repeated that did not reach its app. They use up no attempt.
      By default they grow from half a second to ten seconds.
    - ``call_timeout``: the longest time of one call.
    - ``connect_timeout``: the longest time to connect to an app.
    - ``max_calls``: the number of calls at a time.
    - ``max_event_bytes``: the largest size of an event, as JSON.
    - ``max_steps``: the maximum number of steps of a run.
    - ``max_depth``: the maximum depth of invocations. Ten times as many runs may start each other within an hour.
    - ``allow_private_addresses``: whether ``fetch`` and ``ai.infer`` may reach private addresses.
    - ``durability``: the data that survives a power failure.
    - ``close_grace``: the time that calls under way may take to end when the engine stops. A step that takes longer
      begins again in another process, so let servers wait longer than this before they kill their processes. In
      process, the default in development is 5 seconds, so that a server reloads soon.
    - ``retention``: the time for which ended runs are kept, and events that no run needs; ``None`` keeps them forever.
    - ``tracing``: the recipient of spans; see ``durably.otel``.
    - ``log_runs``: whether the end of each run is logged to ``durably.runs``.
    - ``temporal_ui``: the address of Temporal's UI, such as ``http://localhost:8233``, for links to runs.
    - ``clock``: the clock of the engine, which tests may replace.
    - ``entropy``: the source of random bytes for ids, which tests may replace.
    """

    server_kind: ServerKind = ServerKind.DEV
    signing_key: str | None = None
    signing_key_fallback: str | None = None
    unsigned_apps: frozenset[str] = frozenset()
    backoff: Backoff = dev_backoff
    unreached_backoff: Backoff = unreached_backoff
    call_timeout: dt.timedelta = MAX_CALL_DURATION
    connect_timeout: dt.timedelta = dt.timedelta(seconds=10)
    max_calls: int = 500
    max_event_bytes: int = MAX_EVENT_BYTES
    max_steps: int = MAX_STEPS
    max_depth: int = MAX_DEPTH
    allow_private_addresses: bool = False
    durability: Durability = Durability.FULL
    close_grace: dt.timedelta = dt.timedelta(seconds=20)
    retention: dt.timedelta | None = None
    tracing: EngineTracing | None = None
    log_runs: bool = False
    temporal_ui: str | None = None
    clock: Clock = msgspec.field(default_factory=SystemClock)
    entropy: Entropy = os.urandom

    def __post_init__(self) -> None:
        """Check each setting.

        Raises ``SigningKeyInvalidError``, ``TypeError`` and ``ValueError``, which name the setting.
        """
        for name in ("signing_key", "signing_key_fallback"):
            check_type(getattr(self, name), f"EngineSettings.{name}", (str, NoneType), "a string")
        check_text(self.temporal_ui, "EngineSettings.temporal_ui")
        check_signing_key(self.signing_key, "EngineSettings(signing_key=…)")
        check_signing_key(self.signing_key_fallback, "EngineSettings(signing_key_fallback=…)")
        for name in ("call_timeout", "connect_timeout"):
            check_time_span(getattr(self, name), f"EngineSettings.{name}")
        check_time_span(self.close_grace, "EngineSettings.close_grace", may_be_zero=True)
        if self.retention is not None:
            check_time_span(self.retention, "EngineSettings.retention")
        for name in ("max_calls", "max_event_bytes", "max_steps", "max_depth"):
            check_count(getattr(self, name), f"EngineSettings.{name}")
        for name in ("allow_private_addresses", "log_runs"):
            check_type(getattr(self, name), f"EngineSettings.{name}", bool, "True or False")
        for name in ("backoff", "unreached_backoff", "entropy"):
            if not callable(function := getattr(self, name)):
                raise TypeError(f"EngineSettings.{name} must be a function, not {function!r}")
        check_texts(self.unsigned_apps, "EngineSettings.unsigned_apps", 'frozenset({"shop"})')
        check_type(self.server_kind, "EngineSettings.server_kind", ServerKind, "a ServerKind")
        check_type(self.durability, "EngineSettings.durability", Durability, "a Durability, such as Durability.NORMAL")
        check_type(self.clock, "EngineSettings.clock", Clock, "a clock with the methods of SystemClock")
        check_type(
            self.tracing, "EngineSettings.tracing", (EngineTracing, NoneType), "an EngineTracing (see durably.otel)"
        )
        if self.temporal_ui is not None:
            _check_web_address(self.temporal_ui, "EngineSettings.temporal_ui", "http://localhost:8233")

    def __repr__(self) -> str:
        """Omits the keys: settings end up in logs and in assertion errors."""
        return f"EngineSettings(server_kind={self.server_kind.value!r}, signed={self.signing_key is not None})"


_MILLISECOND = dt.timedelta(milliseconds=1)


def _check_web_address(text: str, setting: str, example: str) -> None:
    """Raises ``ValueError`` for a string that is not a web address."""
    try:
        parts = urlsplit(text)
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        is_valid = is_valid and text.isprintable() and not any(each in text for each in " ?#@")
    except ValueError:
        is_valid = False
    if not is_valid:
        raise ValueError(
            f"{setting} must be a web address without user, query and fragment, such as {example}, not "
            f"{show_url(text)!r}"
        )


def make_policy(settings: EngineSettings) -> Policy:
    return Policy(
        retry_delay=lambda attempt: settings.backoff(attempt, random.random()) // _MILLISECOND,
        unreached_delay=lambda failures: settings.unreached_backoff(failures, random.random()) // _MILLISECOND,
        max_steps=settings.max_steps,
        max_depth=settings.max_depth,
    )
