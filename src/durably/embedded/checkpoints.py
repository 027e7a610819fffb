"""Checkpoints of calls that an engine without HTTP made: finished steps reach it by a function call."""

import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

from durably.engine.errors import EngineError, RunNotFoundError, StaleCallError
from durably.errors import CallStaleError, CheckpointRefusedError, TransportError
from durably.protocol.checkpoint import CheckpointRequest

from .pulse import Pulse


class EngineCheckpoints:
    """``checkpoint`` is ``EmbeddedEngine.checkpoint``, or leads to it; see ``durably.checkpointing.Checkpoints``.

    They are cheap, so they are the default unless ``are_default`` is false. ``pulse`` is the heartbeat of a process
    that others may give up. ``submit`` gets the function that makes the committing coroutine.
    """

    def __init__(
        self,
        checkpoint: Callable[[str, CheckpointRequest], Awaitable[None]],
        pulse: Pulse | None = None,
        *,
        are_default: bool = True,
        submit: Callable[[Callable[[], Coroutine[Any, Any, None]]], Awaitable[None]] = lambda commit: commit(),
    ) -> None:
        self._checkpoint = checkpoint
        self._submit = submit
        self._pulse = pulse
        self.are_default = are_default
        self.join_answers = True

    def certain_at_arrival(self) -> float:
        return time.monotonic() if self._pulse is None else self._pulse.certain_at_arrival()

    def may_be_stale(self, since: float) -> bool:
        return self._pulse is not None and self._pulse.is_doubtful(since)

    def commit(self, request: CheckpointRequest) -> Awaitable[None]:
        return self._submit(partial(self._commit, request))

    async def _commit(self, request: CheckpointRequest) -> None:
        try:
            await self._checkpoint(request.run_id, request)
        except (StaleCallError, RunNotFoundError) as error:
            raise CallStaleError(error.message) from None
        except (EngineError, TransportError) as error:
            raise CheckpointRefusedError(error.message) from None
