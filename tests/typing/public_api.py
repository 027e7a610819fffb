"""Types that checkers infer for users. `make lint` checks it with mypy and pyright; nothing runs it."""

from typing import Any, assert_type

import durably
import durably.testing

client = durably.Client(app_id="typing", is_production=False)


async def load(number: int) -> str:
    return str(number)


def count(text: str) -> int:
    return len(text)


@client.create_function(fn_id="sync", trigger=durably.TriggerEvent(event="never"))
def sync_function(ctx: durably.ContextSync) -> float:
    assert_type(ctx.step.run("count", count, "text"), int)
    assert_type(ctx.group.parallel((lambda: ctx.step.run("count", count, "text"),)), tuple[int, ...])
    assert_type(ctx.group.parallel((lambda: ctx.step.run("count", count, "text"), lambda: "b")), tuple[int, str])
    assert_type(ctx.step.invoke("again", function=async_function), bytes)
    assert_type(ctx.step.wait_for_signal("signal", signal="go"), durably.Signal | None)
    return 1.0


async def branch() -> int:
    return 1


async def other_branch() -> float:
    return 1.0


@client.create_function(fn_id="async", trigger=durably.TriggerEvent(event="never"))
async def async_function(ctx: durably.Context) -> bytes:
    assert_type(ctx.progress(0.5, "half"), None)
    assert_type(ctx.publish("topic", {"any": 1}, channel="all"), None)
    assert_type(durably.publish("topic", [1]), None)
    ctx.progress("half")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(await ctx.step.run("load", load, 1), str)
    assert_type(await ctx.step.run("count", count, "text"), int)
    assert_type(await ctx.step.ai.wrap("model", load, 1), str)
    openai = durably.ai.OpenAI(auth_key="key", model="gpt")
    assert_type(await ctx.step.ai.infer("infer", adapter=openai, body={}, stream=True, topic="text"), Any)
    assert_type(await ctx.step.invoke("other", function=sync_function), float)
    assert_type(await ctx.step.wait_for_event("event", event="never", timeout=1000), durably.Event | None)
    assert_type(await ctx.step.fetch("fetch", "https://example.com"), durably.FetchResponse)
    assert_type(await ctx.group.parallel((lambda: ctx.step.run("load", load, 1),)), tuple[str, ...])
    assert_type(await ctx.group.parallel((branch, lambda: load(2), other_branch)), tuple[int, str, float])
    assert_type(await ctx.group.parallel([lambda: load(1), lambda: load(2)]), tuple[str, ...])
    return b""


async def test_handles() -> None:
    handle = await async_function.start({"n": 1}, id="one")
    assert_type(handle, durably.RunHandle[bytes])
    assert_type(await handle.result(timeout="1s"), bytes)
    assert_type((await handle.status()).status, durably.RunStatus)
    assert_type(await handle.cancel(), bool)
    assert_type(await handle.signal("go", {"n": 1}), bool)
    assert_type(await handle.rerun(), durably.RunHandle[bytes])
    assert_type(sync_function.start_sync().result_sync(), float)
    assert_type(client.run(handle.id, sync_function), durably.RunHandle[float])
    assert_type(await client.runs(sync_function, status="Failed"), list[durably.Run])
    _: int = await handle.result()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    await async_function.start("text")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await async_function.start({}, id=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.run(handle)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await handle.result(timeout=10)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    handle.result_sync(timeout=2.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    handle.results()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


assert_type(sync_function, durably.Function[float])
assert_type(async_function, durably.Function[bytes])


async def test_async() -> None:
    async with durably.testing.TestEngine(client, [sync_function, async_function]) as engine:
        run = await engine.send(durably.Event(name="never"))
        assert_type(run, durably.testing.TestRun)
        assert_type(await run.wait(), durably.testing.TestRun)
        assert_type(await engine.send([durably.Event(name="never")]), list[durably.testing.TestRun])
        assert_type(run.steps["load"], durably.testing.TestStep)


def test_sync() -> None:
    with durably.testing.TestEngine(client, [sync_function]).sync() as engine:
        assert_type(engine.send(durably.Event(name="never")).wait(), durably.testing.SyncTestRun)


async def test_in_process() -> None:
    engine = durably.Embedded("durably.db", max_calls=10)
    durably.Client(app_id="app", engine=engine)
    assert_type(await engine.cancel_run("run"), bool)
    assert_type(engine.rerun_sync("run"), str)


class Audit(durably.Middleware):
    def __init__(self, client: durably.Client, raw_request: object) -> None:
        super().__init__(client, raw_request)
        assert_type(self.client, durably.Client)

    async def transform_input(
        self, ctx: durably.Context | durably.ContextSync, function: durably.Function[object], steps: durably.StepMemos
    ) -> None:
        assert_type(function.id, str)

    async def before_send_events(self, events: list[durably.Event]) -> None:
        events.clear()


class AuditSync(durably.MiddlewareSync):
    def transform_output(self, result: durably.TransformOutputResult) -> None:
        assert_type(result.error, Exception | None)


def make_audit(client: durably.Client, raw_request: object) -> Audit:
    return Audit(client, raw_request)


durably.Client(app_id="app", middleware=[Audit, AuditSync, make_audit])
durably.Client(app_id="app", middleware=[object])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
client.add_middleware(AuditSync)
