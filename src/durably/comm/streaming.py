"""Streamed answers: spaces while the call runs, then the whole answer as one JSON object (spec §9).

Proxies and platforms close connections that stay silent; JSON readers skip leading spaces.
"""

from collections.abc import AsyncGenerator, Callable

import msgspec

from durably.transport import IO, Job

from .models import CommResponse

KEEP_ALIVE_SECONDS = 3.0


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
            "body": response.body_bytes().decode(),
        }
    )
