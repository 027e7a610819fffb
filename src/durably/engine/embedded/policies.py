"""The run machine's policy, made from an engine's settings. Delays have random jitter, so that calls that failed
together are not retried together."""

import datetime as dt
import random

from durably.engine.turn import Policy

from .settings import EngineSettings

_MILLISECOND = dt.timedelta(milliseconds=1)


def make_policy(settings: EngineSettings) -> Policy:
    return Policy(
        retry_delay=lambda attempt: settings.backoff(attempt, random.random()) // _MILLISECOND,
        unreached_delay=lambda failures: settings.unreached_backoff(failures, random.random()) // _MILLISECOND,
        max_steps=settings.max_steps,
        max_depth=settings.max_depth,
    )
