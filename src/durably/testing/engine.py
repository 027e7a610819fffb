"""``TestEngine``, and ``check_determinism``, which runs a function in one."""

from collections.abc import Mapping
from typing import Any

from durably.client import Client
from durably.events import Event
from durably.functions.function import Function

from .engine_base import TestEngineBase
from .sync import SyncTestEngine


class TestEngine(TestEngineBase):
    """Runs ``functions`` of ``client``'s app: ``async with TestEngine(client, [function]) as engine:``.

    While it is open, all that the client sends goes to it. It belongs to the event loop that opened it.

    ``now`` is the start of its clock (default: the real time). ``calls_at_once`` is the maximum number of concurrent
    calls; with one, the default, a test is deterministic.
    ``checkpointing`` lets a call execute several steps, as in-process mode does; without it each step
    ends its call, so that functions are replayed as often as possible. ``allow_private_addresses`` lets
    ``fetch`` and ``ai.infer``, if they are not mocked, reach servers on this machine. ``retention`` is how long ended
    runs are kept, for tests with very many runs; by default all are kept. ``max_steps`` and ``max_depth`` are as
    in ``EngineSettings``.
    """

    def sync(self) -> SyncTestEngine:
        """This engine for synchronous tests: ``with TestEngine(client, [function]).sync() as engine:``."""
        return SyncTestEngine(self)


async def check_determinism(
    client: Client, function: Function[Any], event: Event, *, mocks: Mapping[str, Any] | None = None, orders: int = 5
) -> None:
    """Run a function on an event, in a ``TestEngine`` of its own, to its end, and check that it is deterministic.

    ``mocks`` are what its steps return, by id; see ``TestEngine.mock_step``, and ``TestEngine.check_determinism``.
    """
    async with TestEngine(client, [function]) as engine:
        for step_id, output in (mocks or {}).items():
            engine.mock_step(step_id, returns=output)
        run = await engine.send(event)
        await run.wait()
        await engine.check_determinism(run, orders=orders)
