"""Events of ``send_event`` are stored once, even if the app dies before it reports the step."""

from typing import Any, ClassVar

import pytest

from durably import Context, ContextSync, Event, Middleware, SendEventsResult

from .conftest import App, durable


class FailsAfterSending(Middleware):
    """Each call that has sent fails, except the third."""

    sent: ClassVar[list[list[str]]] = []

    async def after_send_events(self, result: SendEventsResult) -> None:
        self.sent.append(list(result.ids))
        if len(self.sent) < 3:
            raise RuntimeError("the app has died")


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
async def test_events_of_a_repeated_step_are_stored_once(app: App, is_async: bool) -> None:
    FailsAfterSending.sent = []
    two = [Event(name="sent", data={"number": 1}), Event(name="sent", data={"number": 2})]

    async def send(ctx: Context) -> Any:
        return await ctx.step.send_event("send", two)

    def send_sync(ctx: ContextSync) -> Any:
        return ctx.step.send_event("send", two)

    ids = await app.run(durable(app, send if is_async else send_sync, middleware=[FailsAfterSending]))
    assert FailsAfterSending.sent == [ids] * 3
    assert len(await app.engine.engine.list_events(name="sent")) == 2


async def test_events_of_two_steps_and_two_runs_are_distinct(app: App) -> None:
    async def send(ctx: Context) -> Any:
        return [await ctx.step.send_event("send", Event(name="sent")) for _ in range(2)]

    function = durable(app, send)
    first, second = await app.run(function), await app.run(function)
    ids = {event_id for sent in [*first, *second] for event_id in sent}
    assert len(ids) == 4
    assert len(await app.engine.engine.list_events(name="sent")) == 4
