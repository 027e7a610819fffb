"""Streamed answers: spaces while the call runs, then the whole answer as one JSON object (spec §9).

Proxies and platforms close connections that stay silent; JSON readers skip leading spaces.
"""

from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from durably.transport import IO, Job

KEEP_ALIVE_SECONDS = 3.0


async def stream(job: Job, io: IO, finish: Callable[[Any], tuple[int, dict[str, str], bytes]]) -> AsyncIterator[bytes]:
    """The chunks of one answer. ``finish`` makes status, headers and body of the job's result.

    The job is cancelled if the reader goes away.
    """
    try:
        yield b" "
        while not await io.wait(job, KEEP_ALIVE_SECONDS):
            yield b" "
        status, headers, body = finish(job.result())
        yield msgspec.json.encode({"status": int(status), "headers": headers, "body": body.decode()})
    finally:
        job.cancel()
