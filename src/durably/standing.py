"""Whether a call still stands (an ``execution.Standing``).

The engine gives a call up whose process it has not heard of for too long. Where that is possible, it is asked before
the call begins another step: a checkpoint without steps tells. Nothing here knows how the engine is reached.
"""

import time

import msgspec

from durably.checkpointing import Checkpoints
from durably.protocol.checkpoint import CheckpointRequest
from durably.transport import IO


class CallStanding:
    """``call`` tells the engine which call it is."""

    def __init__(self, checkpoints: Checkpoints, call: CheckpointRequest, io: IO) -> None:
        self._checkpoints = checkpoints
        self._call = call
        self._io = io
        self._known_at = checkpoints.certain_at_arrival()

    @property
    def is_doubtful(self) -> bool:
        return self._checkpoints.may_be_stale(self._known_at)

    async def confirm(self) -> None:
        """Raises ``CallStaleError``, and ``CheckpointRefusedError`` where the engine does not say."""
        while self.is_doubtful:  # again, where the answer itself may have been on its way for long
            asked_at = time.monotonic()
            request = msgspec.structs.replace(self._call, ts=time.time_ns() // 1_000_000)
            await self._io.resolve(self._checkpoints.commit(request))
            self._known_at = asked_at
