"""The end of a random run on the SQLite engine: the reference for the engine on Temporal.

Time is virtual, and the app is a fake. ``fetch`` asks a real server.
"""

import datetime as dt
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from durably.engine.core.calls import Answer, AttemptFailed, CallData, ReportedOps, Returned
from durably.engine.model.functions import SyncedFunction
from durably.engine.model.runs import RunStatus
from durably.engine.model.settings import Durability, EngineSettings
from durably.engine.sqlite.engine import SqliteEngine
from durably.protocol.errors import ErrorData
from durably.protocol.opcodes import Opcode
from durably.testing.link import VirtualClock

from ..core.fake_app import FakeApp
from ..small_app import SmallApp

MAX_ATTEMPTS = 6
CHILD_FAILED = ErrorData(name="ChildFailedError", message="as it had to be")
FUNCTION_FAILED = ErrorData(name="FunctionFailedError", message="as it had to be")
_NOW = 1_790_000_000_000


def lot(seed: int, name: str) -> float:
    """Random decisions about a part of a run, the same whenever it comes."""
    return random.Random(f"{seed}/{name}").random()


def arrives(seed: int, event: str) -> bool:
    """Whether an event arrives before the wait for it ends."""
    return lot(seed, event) < 0.7


def child_fails(seed: int, step: str) -> bool:
    return lot(seed, step) < 0.5


def output_of(seed: int, memos: Iterable[bytes]) -> Answer:
    """The output of a function whose steps have all ended: their results, or its own error."""
    if lot(seed, "function") < 0.3:
        return AttemptFailed(FUNCTION_FAILED, no_retry=True)
    return Returned(msgspec.json.encode(sorted(map(str, map(outline, memos)))))


def outline(memo: bytes) -> tuple[str, object]:
    """A memo without what differs from server to server: events and responses."""
    decoded = msgspec.json.decode(memo)
    if isinstance(decoded, dict) and "error" in decoded:
        return "error", decoded["error"]["name"]
    data = decoded["data"] if isinstance(decoded, dict) else decoded
    return "data", "an object" if isinstance(data, dict) else data


@dataclass(frozen=True)
class Ending:
    """The end of a run. For a failed run ``output`` is the name of the error. ``memos`` are outlines by hashed step."""

    status: RunStatus
    output: object
    memos: dict[str, tuple[str, object]]


class _Caller:
    """Calls the fake app, and a function that its steps invoke."""

    def __init__(self, app: FakeApp, seed: int) -> None:
        self._app = app
        self._seed = seed
        self.awaited: set[str] = set()
        """Names of events that the run has waited for."""

    async def call(self, function: SyncedFunction, data: CallData) -> Answer:
        if function.id == "app-child":
            step = msgspec.json.decode(data.events[0])["data"]["step"]
            return AttemptFailed(CHILD_FAILED, no_retry=True) if child_fails(self._seed, step) else Returned(b"3")
        answer = self._app.run(data.call.step_id, dict(data.memos), data.disable_immediate)
        if isinstance(answer, ReportedOps):
            waits = [op for op in answer.ops if op.op is Opcode.WAIT_FOR_EVENT]
            self.awaited |= {str((op.opts or {})["event"]) for op in waits}
        return answer

    async def close(self) -> None:
        """Do nothing, because nothing is open."""


@asynccontextmanager
async def other_server() -> AsyncIterator[str]:
    """The URL of a server for ``fetch``."""

    async def answer(request: web.BaseRequest) -> web.Response:
        return web.Response(text="ok")

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


async def end_on_sqlite(path: Path, app: FakeApp, seed: int) -> Ending:
    clock, caller = VirtualClock(_NOW), _Caller(app, seed)
    settings = EngineSettings(
        clock=clock,
        durability=Durability.OFF,
        allow_private_addresses=True,
        backoff=lambda attempt, jitter: dt.timedelta(seconds=1),
    )
    engine = await SqliteEngine.open(path, settings, make_caller=lambda _: caller)
    try:
        await engine.sync_app(_functions().sync_request(), in_process=True)
        (event_id,) = (await engine.receive_events(b'{"name":"go","data":{}}')).ids
        await clock.rest()
        (run,) = await engine.event_runs(event_id)
        await _advance_to_end(engine, clock, caller, run.id, seed)
        ended = await engine.get_run(run.id)
        assert ended is not None
        assert ended.output is not None
        output: Any = msgspec.json.decode(ended.output)
        actions = await engine.run_actions(run.id)
        assert actions is not None
        memos = msgspec.json.decode(actions, type=dict[str, msgspec.Raw])
        return Ending(
            ended.status,
            output["name"] if ended.status is RunStatus.FAILED else output,
            {step_id: outline(bytes(memo)) for step_id, memo in memos.items()},
        )
    finally:
        await engine.close()


def _functions() -> SmallApp:
    app = SmallApp("app")
    app.url = "embedded://app"
    app.function("random", event="go", retries=MAX_ATTEMPTS - 1)(lambda steps: None)
    app.function("child", event="child", retries=0)(lambda steps: None)
    return app


async def _advance_to_end(engine: SqliteEngine, clock: VirtualClock, caller: _Caller, run_id: str, seed: int) -> None:
    sent: set[str] = set()
    while True:
        await clock.rest()
        run = await engine.get_run(run_id)
        assert run is not None
        if run.status.has_ended:
            return
        new = {name for name in caller.awaited - sent if arrives(seed, name)}
        for name in sorted(new):
            await engine.receive_events(msgspec.json.encode({"name": name, "data": {}}))
        sent |= new
        if not new:
            assert await clock.advance(), f"nothing will ever move the run: {run}"
