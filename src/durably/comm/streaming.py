"""Streamed answers: spaces while the call runs, then the whole answer as one JSON object (spec §9).

Proxies and platforms close connections that stay silent; JSON readers skip leading spaces.
"""

from collections.abc import AsyncGenerator, Callable

import msgspec

from durably.errors import FunctionConfigInvalidError
from durably.settings import Streaming
from durably.transport import IO, Job

from .models import CommResponse

KEEP_ALIVE_SECONDS = 3.0

StreamingOption = Streaming | str | bool | None
"""Values that adapters accept as ``streaming``."""


def read_streaming(option: StreamingOption) -> Streaming | None:
    """``None`` means the environment decides. Raises ``FunctionConfigInvalidError``."""
    if option is None or isinstance(option, Streaming):
        return option
    if isinstance(option, bool):
        return Streaming.FORCE if option else Streaming.DISABLE
    try:
        return Streaming(option)
    except ValueError:
        raise FunctionConfigInvalidError(
            f'serve takes durably.Streaming.FORCE, "force" or True as its streaming (or Streaming.DISABLE, "disable", '
            f"False), not {option!r}"
        ) from None


async def stream(start: Callable[[], Job[CommResponse]], io: IO) -> AsyncGenerator[bytes, None]:
    """The chunks of one answer, which ``start`` begins to make.

    It is started here and cancelled here: a reader who goes away, even before the first chunk, leaves
    nothing running.
    """
    job = start()
    try:
        yield b" "
        while not await io.wait(job, KEEP_ALIVE_SECONDS):
            yield b" "
        yield _envelope(job.result())
    finally:
        job.cancel()


def _envelope(response: CommResponse) -> bytes:
    return msgspec.json.encode(
        {
            "status": int(response.status_code),
            "headers": response.headers,
            "body": response.body.decode(),
        }
    )
