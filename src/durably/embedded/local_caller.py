"""An engine's way to the functions that its own process serves: a function call in place of an HTTP request."""

import asyncio
from collections.abc import Callable, Mapping

from durably.checkpointing import Checkpoints
from durably.comm import CommHandler
from durably.engine.answers import Answer, Unreached, failed
from durably.engine.embedded.bodies import CallData
from durably.engine.embedded.registry import Function
from durably.engine.embedded.settings import EngineSettings
from durably.execution import StandIn
from durably.protocol.errors import ErrorData

from .calls import answer_call, hand_over, read_handed


class LocalCaller:
    """A ``Caller``. ``handlers`` are those of the apps by their ids, and may come to be more while it is used.
    ``checkpoints`` is how finished steps reach the engine. ``stand_ins`` tells, for tests, what takes the place of a
    function's steps."""

    def __init__(
        self,
        handlers: Mapping[str, CommHandler],
        settings: EngineSettings,
        checkpoints: Checkpoints,
        stand_ins: Callable[[str], StandIn | None] | None = None,
    ) -> None:
        self._handlers = handlers
        self._settings = settings
        self._checkpoints = checkpoints
        self._stand_ins = stand_ins

    async def call(self, function: Function, data: CallData, body: bytes) -> Answer:
        handler = self._handlers.get(function.app_id)
        if handler is None:
            message = f"this process does not serve the app {function.app_id!r}"
            return Unreached(ErrorData(name="AppUnreachableError", message=message))
        handed = hand_over(function, data, body, self._settings)
        stand_in = self._stand_ins(function.id) if self._stand_ins is not None else None
        try:
            async with asyncio.timeout(self._settings.call_timeout.total_seconds()):
                answer = await answer_call(handed, handler, self._checkpoints, stand_in)
        except TimeoutError:
            return failed("CallTimeoutError", f"the function {function.id!r} did not answer in time")
        return read_handed(answer, self._settings)

    async def close(self) -> None:
        """Nothing is kept open."""
