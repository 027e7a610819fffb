"""Requests of steps, and functions that a run starts at its end."""

import asyncio
from typing import Any

import pytest
from aiohttp import web
from temporalio.worker import Worker

import durably
from durably.engine.core.calls import Answer, CallData, ReportedOps
from durably.engine.temporal.messages import CallInput
from durably.engine.temporal.runs import calls
from durably.protocol.opcodes import Op, Opcode

from ....temporal.dev_server import DevServer
from ....waiting import async_eventually
from ..running_apps import make_client, on, running

SECRET = "s3cret-8a7f6e5d4c3b2a19"


class Api:
    """A server that requires a token. ``hold`` delays its answers."""

    def __init__(self) -> None:
        self.tokens: list[str | None] = []
        self.failures = 0
        self.url = ""
        self.transports: list[asyncio.Transport] = []
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> "Api":
        app = web.Application()
        app.router.add_get("/", self._answer)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        self.tokens.append(request.headers.get("authorization"))
        assert request.transport is not None
        self.transports.append(request.transport)
        if len(self.tokens) <= self.failures:
            request.transport.abort()
        return web.Response(text="answer")


def fetching(app: durably.Client, api: Api) -> durably.Function[Any]:
    @app.create_function(fn_id="fetch", trigger=on(app, "fetch"))
    async def fetch(ctx: durably.Context) -> Any:
        answer = await ctx.step.fetch("get", url=api.url, headers={"authorization": f"Bearer {SECRET}"})
        return answer.body if hasattr(answer, "body") else answer

    return fetch


async def test_requests_are_made_and_their_credentials_are_in_no_history(server: DevServer) -> None:
    app = make_client()
    async with Api() as api, running(server.address, app, fetching(app, api)) as on_temporal:
        api.failures = 1
        run = await on_temporal.start("fetch")
        assert "answer" in str(await run.result())
        assert api.tokens == [f"Bearer {SECRET}"] * 2, "a failed request is repeated"
        assert SECRET not in (await run.history()).to_json()
        assert SECRET not in str(await run.handle.describe())


async def test_a_request_whose_process_has_ended_is_asked_for_again(
    server: DevServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "_PICK_UP_TIMEOUT", calls._PICK_UP_TIMEOUT / 60)
    app = make_client()
    async with Api() as api, running(server.address, app, fetching(app, api)) as on_temporal:
        (requests,) = [
            worker
            for worker in on_temporal.workers
            if isinstance(worker, Worker) and worker.task_queue.startswith("durably/process/")
        ]
        await requests.shutdown()
        run = await on_temporal.start("fetch")
        await async_eventually(
            run.event_types, "the activity times out", is_right=lambda types: "ACTIVITY_TASK_TIMED_OUT" in types
        )
        await asyncio.gather(*(worker.shutdown() for worker in on_temporal.workers))
        async with on_temporal.working():
            assert "answer" in str(await run.result())
        assert api.tokens == [f"Bearer {SECRET}"]


async def test_the_handler_of_a_failed_run_gets_its_error(server: DevServer) -> None:
    app = make_client()
    reported: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def handle(ctx: durably.Context) -> None:
        reported.put_nowait(ctx.event.data)

    @app.create_function(fn_id="bad", trigger=on(app, "bad"), retries=0, on_failure=handle)
    async def bad(ctx: durably.Context) -> None:
        raise ValueError("no")

    async with running(server.address, app, bad) as on_temporal:
        run = await on_temporal.start("bad", {"n": 1})
        data = await asyncio.wait_for(reported.get(), 30)
        assert data["run_id"] == run.id
        assert data["error"]["message"] == "no"
        assert data["event"]["data"] == {"n": 1}


async def test_deferred_functions_start_at_the_end_of_the_run(server: DevServer) -> None:
    app = make_client()
    got: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    condition = f"event.data._inngest.fn_slug == '{app.app_id}-later'"

    @app.create_function(
        fn_id="later", trigger=durably.TriggerEvent(event="inngest/deferred.schedule", expression=condition)
    )
    async def later(ctx: durably.Context) -> None:
        got.put_nowait(ctx.event.data)

    @app.create_function(fn_id="first", trigger=on(app, "first"))
    async def first(ctx: durably.Context) -> None: ...

    def defer(step_id: str, n: int) -> Op:
        opts = {"fn_slug": f"{app.app_id}-later", "input": {"n": n}}
        return Op(id=step_id, op=Opcode.DEFER_ADD, display_name=step_id, opts=opts)

    async with running(server.address, app, later, first) as on_temporal:

        async def call(call_input: CallInput, data: CallData) -> Answer:
            if call_input.function_id.endswith("later"):
                return await on_temporal.call_function(call_input, data)
            abort = Op(id="x", op=Opcode.DEFER_ABORT, opts={"target_hashed_id": "b"})
            return ReportedOps([defer("a", 1), defer("b", 2), abort, Op(id="", op=Opcode.RUN_COMPLETE)])

        on_temporal.caller = call
        run = await on_temporal.start("first")
        await run.result()
        data = await asyncio.wait_for(got.get(), 30)
        assert data["n"] == 1
        assert data["_inngest"]["parent_run_id"] == run.id
        assert got.empty()


async def test_connections_of_requests_are_closed_at_the_end(server: DevServer) -> None:
    app = make_client()
    async with Api() as api:
        async with running(server.address, app, fetching(app, api)) as on_temporal:
            await (await on_temporal.start("fetch")).result()
            assert not api.transports[0].is_closing()
        # An idle connection is closed after 15 s.
        await async_eventually(api.transports[0].is_closing, "the connection is closed", timeout=5)
