"""Sending events: ids, duplicates, limits, and what they trigger."""

from durably.engine.sqlite.engine import SqliteEngine

from ...conftest import send
from ...small_app import SmallApp


async def test_events_are_listed_in_pages(engine: SqliteEngine) -> None:
    ids = [await send(engine, name) for name in ("a", "b", "a", "c")]
    assert [event.id for event in await engine.list_events()] == ids[::-1]
    assert [event.id for event in await engine.list_events(name="a")] == [ids[2], ids[0]]
    assert [event.id for event in await engine.list_events(limit=2)] == [ids[3], ids[2]]
    assert [event.id for event in await engine.list_events(cursor=ids[2])] == [ids[1], ids[0]]
    view = await engine.get_event(ids[0])
    assert view is not None
    assert await engine.list_events(received_before=view.received_at) == []
    assert len(await engine.list_events(received_after=view.received_at)) == 4


async def test_triggers_by_name_pattern_and_expression(engine: SqliteEngine, app: SmallApp) -> None:
    triggers = {
        "exact": [{"event": "shop/order.made"}],
        "slash": [{"event": "shop/*"}],
        "dot": [{"event": "shop/order.*"}],
        "dear": [{"event": "shop/order.made", "expression": "event.data.amount > 100"}],
        "twice": [{"event": "shop/order.made"}, {"event": "shop/*"}],
        "elsewhere": [{"event": "shop/orders.*"}, {"event": "*"}],
        "scheduled": [{"cron": "* * * * *"}],
    }
    for name, config in triggers.items():
        app.function(name, triggers=config)(lambda steps: steps.call.ctx.function_slug)
    await engine.sync_app(app.sync_request())
    event_id = await send(engine, "shop/order.made", amount=50)
    started = sorted(run.function_id for run in await engine.event_runs(event_id))
    assert started == ["app-dot", "app-exact", "app-slash", "app-twice"]
    event_id = await send(engine, "shop/order.made", amount=500)
    assert "app-dear" in [run.function_id for run in await engine.event_runs(event_id)]
