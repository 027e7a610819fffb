"""Settings of the engine and options of functions for runs that start. Pure."""

import datetime as dt

from durably.engine.core.policy import standard_backoff
from durably.engine.scheduling.registry import Function
from durably.engine.settings import EngineSettings
from durably.engine.temporal.messages import RunPolicy
from durably.protocol.options import milliseconds

_MILLISECOND = dt.timedelta(milliseconds=1)


def finish_timeout_of(function: Function) -> int | str | None:
    timeouts = function.flow.options.timeouts
    finish = None if timeouts is None else timeouts.finish
    return milliseconds(finish) if isinstance(finish, dt.timedelta) else finish


def policy_of(settings: EngineSettings, max_attempts: int) -> RunPolicy:
    delays: list[tuple[int, int]] = []
    if settings.backoff is not standard_backoff:
        for attempt in range(max_attempts - 1):
            least, most = (settings.backoff(attempt, jitter) // _MILLISECOND for jitter in (0.0, 1.0))
            delays.append((least, most - least))
    return RunPolicy(
        retry_delays=tuple(delays),
        max_steps=settings.max_steps,
        max_depth=settings.max_depth,
        call_timeout=settings.call_timeout // _MILLISECOND,
    )
