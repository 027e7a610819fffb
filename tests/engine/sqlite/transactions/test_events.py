"""Sending events: ids, duplicates, limits, and what they trigger."""

import base64

import pytest

from durably.engine.sqlite.engine import SqliteEngine
from durably.protocol.engine_errors import EventInvalidError
from durably.protocol.events import Event

from ...conftest import ended, only_run, output, send
from ...small_app import SmallApp, Steps

SEED = f"1743130137367,{base64.b64encode(bytes(range(10))).decode()}"


async def test_an_event_gets_an_id_a_time_and_a_user(engine: SqliteEngine) -> None:
    event_id = await send(engine, "hello", n=1)
    view = await engine.get_event(event_id)
    assert view is not None
    assert view.event.id == view.id == event_id
    assert abs(view.event.ts - view.received_at.timestamp() * 1000) < 1000
    assert (view.event.data, view.event.user, view.event.v) == ({"n": 1}, {}, None)
    (custom,) = await engine.send_events([Event(name="x", id="mine", ts=1_700_000_000_000, user={"a": 1}, v="2")])
    view = await engine.get_event(custom)
    assert view is not None
    assert custom != "mine"
    assert (view.event.id, view.event.ts, view.event.user, view.event.v) == ("mine", 1_700_000_000_000, {"a": 1}, "2")
    assert await engine.get_event("unknown") is None


async def test_an_event_of_the_same_id_is_taken_once(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("hello")
    def hello(steps: Steps) -> object:
        return 1

    await engine.sync_app(app.sync_request())
    event = Event(name="hello", id="mine")
    first, second, other = await engine.send_events([event, event, Event(name="hello", id="other")])
    (third,) = await engine.send_events([event])
    assert first == second == third != other
    assert len(await engine.event_runs(first)) == 1


async def test_a_seed_makes_ids_the_same_each_time(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("hello")
    def hello(steps: Steps) -> object:
        return 1

    await engine.sync_app(app.sync_request())
    events = [Event(name="hello"), Event(name="hello")]
    first = await engine.send_events(events, seed=SEED)
    # A ULID of the seed's milliseconds, then its ten bytes with the event's index added to the last four.
    assert first == ["01JQDAE4RQ000G40R40M30E209", "01JQDAE4RQ000G40R40M30E20A"]
    assert await engine.send_events(events, seed=SEED) == first
    assert [len(await engine.event_runs(event_id)) for event_id in first] == [1, 1]


@pytest.mark.parametrize("seed", ["x", "1,", "0,AAAAAAAAAAAAAA==", "5,AAAA", "99999999999999999,AAAAAAAAAAAAAA=="])
async def test_malformed_seed_is_refused(engine: SqliteEngine, seed: str) -> None:
    with pytest.raises(EventInvalidError, match="seed"):
        await engine.send_events([Event(name="x")], seed=seed)


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (Event(name=""), "no name"),
        (Event(name="  "), "no name"),
        (Event(name="x" * 513), "513 characters"),
        (Event(name="inngest/function.failed"), "engine's own"),
        (Event(name="x", ts=1_700_000_000), "milliseconds"),
        (Event(name="x", ts=-5), "milliseconds"),
        (Event(name="x", data={"blob": "x" * 600_000}), "at most 524288"),
        (Event(name="x", data={"what": object()}), "not JSON"),
    ],
)
async def test_an_invalid_event_is_refused_with_all_of_its_request(
    engine: SqliteEngine, event: Event, reason: str
) -> None:
    with pytest.raises(EventInvalidError, match=reason):
        await engine.send_events([Event(name="fine"), event])
    assert await engine.list_events() == []


async def test_events_are_listed_in_pages(engine: SqliteEngine) -> None:
    ids = [await send(engine, name) for name in ("a", "b", "a", "c")]
    assert [event.id for event in await engine.list_events()] == ids[::-1]
    assert [event.id for event in await engine.list_events(name="a")] == [ids[2], ids[0]]
    assert [event.id for event in await engine.list_events(limit=2)] == [ids[3], ids[2]]
    assert [event.id for event in await engine.list_events(cursor=ids[2])] == [ids[1], ids[0]]
    view = await engine.get_event(ids[0])
    assert view is not None
    assert await engine.list_events(received_before=view.received_at) == []
    assert ids[0] not in [event.id for event in await engine.list_events(received_after=view.received_at)]


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


async def test_a_functions_finish_is_an_event_that_triggers(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("hello")
    def hello(steps: Steps) -> object:
        return {"greeting": "hi"}

    @app.function("after", triggers=[{"event": "inngest/function.finished"}])
    def after(steps: Steps) -> object:
        assert steps.event is not None
        return steps.event.data["result"]

    await engine.sync_app(app.sync_request())
    await ended(engine, await only_run(engine, await send(engine, "hello")))
    (finished,) = await engine.list_events(name="inngest/function.finished")
    assert finished.event.data is not None
    assert finished.event.data["_inngest"] == {"status": "Completed"}
    assert output(await ended(engine, await only_run(engine, finished.id))) == {"greeting": "hi"}
