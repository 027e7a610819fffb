"""A connection that waits for a server that is away."""

import asyncio
from collections.abc import Callable

from temporalio.client import Client
from temporalio.service import RetryConfig

from .connection import Temporal
from .errors import TemporalCredentialsError, TemporalUnreachableError

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 2.0
"""Between two attempts."""


async def connect_patiently(temporal: Temporal, note: Callable[[TemporalUnreachableError], None]) -> Client:
    """Connect when the server answers. ``note`` gets the error of each attempt before.

    Raises ``TemporalSettingsError`` and ``TemporalCredentialsError``, because waiting does not help then.
    """
    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            return await temporal.connect(retry_config=RetryConfig(), interceptors=())
        except TemporalCredentialsError:
            raise
        except TemporalUnreachableError as error:
            note(error)
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
