"""Many waits, and long-lived workflows that continue as new ones."""

import asyncio
import base64
import os
import re
from collections.abc import Iterator

import msgspec
import pytest

import durably
from durably.engine.model.events import make_id
from durably.engine.model.settings import EngineSettings
from durably.engine.temporal.ids import app_workflow_id, function_workflow_id, topic_workflow_id, wait_workflow_id
from durably.engine.temporal.messages import LeaveInput, WaitRecord
from durably.engine.temporal.routing import workflows
from durably.engine.temporal.routing.workflows import FULL_BYTES, Waiting, WaitState, wait_key
from durably.engine.temporal.workflow_code import pack
from durably.protocol.opcodes import hash_step_id

from ....temporal.dev_server import DevServer
from ....waiting import async_eventually
from ...small_app import Steps
from .. import running_apps as apps
from ..routed_app import RoutedApp, data_of, routed_app, running
from ..running_apps import make_client, on

SAME = "event.data.n == async.data.n"


@pytest.fixture(scope="module")
def restless() -> Iterator[DevServer]:
    """A server that suggests early to continue as new."""
    with DevServer(settings={"limit.historyCount.suggestContinueAsNew": 12}) as server:
        yield server


def wait_for(app: RoutedApp, value: int, run_id: str, step_id: str = "step") -> WaitRecord:
    key = wait_key(SAME, {"data": {"n": value}})
    return WaitRecord(
        run_id=run_id,
        step_id=step_id,
        event=app.event("reply"),
        until=None,
        path=key.path,
        value=key.value,
        is_exact=key.is_exact,
    )


@pytest.mark.parametrize("many", [30, *(pytest.param(many, marks=pytest.mark.soak) for many in (1000, 10_000))])
async def test_event_reaches_at_most_one_of_many_waits(server: DevServer, many: int) -> None:
    async with routed_app(server.address) as app:
        waits = [wait_for(app, value, f"{app.app_id}-{value}") for value in range(many)]
        await app.engine._router.waits.register(waits[0])
    # Without workers, workflows have no tasks, which would cost most of the time. Histories show only the signals.
    for start in range(1, many, 50):
        await asyncio.gather(*map(app.engine._router.waits.register, waits[start : start + 50]))
    topic = topic_workflow_id(app.event("reply"))
    ids = [wait_workflow_id(wait.event, wait.path, wait.value) for wait in waits]

    async def lengths() -> list[int]:
        found = [await app.client.get_workflow_handle(each).describe() for each in [*ids, topic]]
        return [each.history_length for each in found]

    before = await lengths()
    await app.send("reply", n=many)
    assert await lengths() == before
    await app.send("reply", n=7)
    after = await lengths()
    assert [index for index, length in enumerate(after) if length != before[index]] == [7]
    for each in ids:
        await app.client.get_workflow_handle(each).terminate()


async def first_run_id(app: RoutedApp, workflow_id: str) -> str:
    described = await app.client.get_workflow_handle(workflow_id).describe()
    return described.raw_description.workflow_execution_info.first_run_id


async def has_continued(app: RoutedApp, workflow_id: str) -> None:
    async def is_so() -> bool:
        described = await app.client.get_workflow_handle(workflow_id).describe()
        return described.run_id != await first_run_id(app, workflow_id)

    await async_eventually(is_so, "the workflow has continued as a new run")


@pytest.mark.slow
async def test_long_lived_workflows_continue_as_new_with_their_state(restless: DevServer) -> None:
    async with routed_app(restless.address) as app:

        @app.function("f", triggers=[{"event": app.event("go")}, {"cron": "0 1 * * *"}])
        def f(steps: Steps) -> object:
            return data_of(steps)["n"]

        @app.function("waiter", event=app.event("wait"))
        def waiter(steps: Steps) -> object:
            return steps.wait_registered("wait", app.event("reply"))["data"]["n"]

        await app.sync()
        run_id = app.run_id(await app.send("wait"), "waiter")
        await app.wait_for_calls(2)
        router = app.engine._router
        waits = [wait_for(app, 0, f"{app.app_id}-{number}") for number in range(5)]
        for number in range(6):
            await app.engine.pause_function(app.id_of("f"))
            await app.engine.resume_function(app.id_of("f"))
            await router.waits.add_path(app.event("go"), f'["data","{number}"]')
            unindexed = [WaitRecord(run_id=each.run_id, step_id="s", event=each.event, until=None) for each in waits]
            await asyncio.gather(*map(router.waits.register, [*waits, *unindexed]))
            app.functions[app.id_of("f")][1]["triggers"] = [
                {"event": app.event("go")},
                {"cron": "0 1 * * *"},
                {"cron": f"{number} 2 * * *"},
            ]
            await app.sync()
        ids = [
            app_workflow_id(app.app_id),
            function_workflow_id(app.id_of("f")),
            topic_workflow_id(app.event("go")),
            wait_workflow_id(app.event("reply"), None, None),
            wait_workflow_id(waits[0].event, waits[0].path, waits[0].value),
        ]
        for workflow_id in ids:
            await has_continued(app, workflow_id)
        assert not (await app.sync()).modified
        assert await app.run_to_end("go", "f", n=5) == 5
        await app.send("reply", n=3)
        assert await app.result(run_id) == 3


@pytest.mark.slow
async def test_a_large_event_reaches_each_of_several_waits(restless: DevServer) -> None:
    """Deliveries are larger than a message of the server, and pending events than the input of a workflow."""
    async with routed_app(restless.address, EngineSettings(max_event_bytes=1_000_000)) as app:
        anywhere = WaitRecord(run_id="", step_id="step", event=app.event("reply"), until=None, is_exact=False)
        waits = [msgspec.structs.replace(anywhere, run_id=f"{app.app_id}-{n}") for n in range(9)]
        await app.engine._router.waits.register(waits[0])
    await asyncio.gather(*map(app.engine._router.waits.register, waits[1:]))
    for _ in range(2):
        await app.send("reply", large=base64.b64encode(os.urandom(660_000)).decode())
    async with running(app), asyncio.timeout(30):
        # There are no such runs, so a wait ends with its first delivery.
        await app.client.get_workflow_handle(wait_workflow_id(app.event("reply"), None, None)).result()


@pytest.mark.slow
async def test_wait_beyond_a_workflows_capacity_fails_its_step(
    restless: DevServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workflows, "FULL_BYTES", 0)
    app = make_client()
    reply = f"{app.app_id}/reply"

    @app.create_function(fn_id="wait", trigger=on(app, "wait"))
    async def function(ctx: durably.Context) -> str:
        try:
            await ctx.step.wait_for_event("w", event=reply, timeout="1h")
        except durably.StepError as error:
            return error.message
        return "got it"

    async with apps.running(restless.address, app, function) as on_temporal:
        waits = on_temporal.engine._router.waits
        others = [WaitRecord(run_id=f"{app.app_id}-{n}", step_id="s", event=reply, until=None) for n in range(12)]
        await asyncio.gather(*map(waits.register, others))
        queue = on_temporal.client.get_workflow_handle(wait_workflow_id(reply, None, None))

        async def has_continued() -> bool:
            info = (await queue.describe()).raw_description.workflow_execution_info
            return info.first_run_id != info.execution.run_id

        await async_eventually(has_continued, "the wait workflow has continued as a new run")
        message = await (await on_temporal.start("wait")).result()
        assert re.match(
            r"\d+ waits for the event '.*/reply' have the same value, or none, which is the maximum",
            message,
        )
        await waits.leave(LeaveInput(tuple(others)))
        await queue.result()


def test_workflow_stores_tens_of_thousands_of_waits() -> None:
    state = WaitState(
        tuple(Waiting(make_id(n, os.urandom), hash_step_id("wait"), n * 997, n * 999_983) for n in range(5000))
    )
    assert len(pack(state).packed) * 5 < FULL_BYTES


def test_long_names_have_distinct_ids_that_the_server_accepts() -> None:
    names = ["\U0001f9ea" * 512, "\U0001f9ea" * 511 + "x", "é" * 400, "é" * 400 + "x"]
    names += [topic_workflow_id(name).removeprefix(topic_workflow_id("")) for name in names]
    ids = {topic_workflow_id(name) for name in names}
    assert len(ids) == len(set(names))
    assert max(len(each.encode()) for each in ids) < 1000
    assert topic_workflow_id("a/../b\n") == "durably/topic/a/../b\n"
