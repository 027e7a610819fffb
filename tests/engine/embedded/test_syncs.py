"""Apps that tell the engine their functions."""

from typing import Any

import msgspec
import pytest

from durably.engine.embedded import EmbeddedEngine
from durably.engine.embedded.views import SyncResult
from durably.engine.errors import ConfigInvalidError
from durably.protocol.sync import SyncRequest, decode_sync

from .conftest import only_run, run_to_end, send
from .small_app import SmallApp, Steps


def request(*functions: dict[str, Any], app: str = "shop") -> SyncRequest:
    body = {
        "url": "http://127.0.0.1:1/api",
        "appname": app,
        "framework": "flask",
        "sdk": "py:v1",
        "functions": functions,
    }
    return decode_sync(msgspec.json.encode(body))


def config(function_id: str = "shop-f", **options: Any) -> dict[str, Any]:
    step = {
        "id": "step",
        "name": "step",
        "runtime": {"type": "http", "url": f"http://127.0.0.1:1/api?fnId={function_id}"},
    }
    return {"id": function_id, "name": "f", "triggers": [{"event": "x"}], "steps": {"step": step}, **options}


async def test_what_was_synced_is_listed(engine: EmbeddedEngine) -> None:
    everything = config(
        "shop-a",
        idempotency="event.data.id",
        cancel=[{"event": "stop", "if": "async.data.id == event.data.id", "timeout": "1h"}],
        rateLimit={"limit": 1, "period": "1m", "key": "event.data.id"},
        throttle={"limit": 1, "period": "1m", "burst": 2},
        debounce={"period": "5s"},
        priority={"run": "event.data.vip ? 60 : 0"},
        concurrency=[{"limit": 5, "key": "event.data.id", "scope": "fn"}],
        singleton={"mode": "skip"},
        timeouts={"start": "1m", "finish": "1h"},
    )
    assert await engine.sync_app(request(everything, config("shop-b"))) == SyncResult(app_id="shop", modified=True)
    assert await engine.sync_app(request(everything, config("shop-b"))) == SyncResult(app_id="shop", modified=False)
    functions = await engine.list_functions("shop")
    assert functions is not None
    assert [function.id for function in functions] == ["shop-a", "shop-b"]
    assert functions[0].throttle is not None
    assert functions[0].throttle.burst == 2
    (app,) = await engine.list_apps()
    assert (app.id, app.url, app.sdk, app.framework, app.function_count) == (
        "shop",
        "http://127.0.0.1:1/api",
        "py:v1",
        "flask",
        2,
    )
    assert await engine.sync_app(request(config("shop-b"))) == SyncResult(app_id="shop", modified=True)
    assert [function.id for function in await engine.list_functions("shop") or []] == ["shop-b"]
    assert await engine.list_functions("other") is None


async def test_the_functions_of_an_app_are_what_it_synced_last(engine: EmbeddedEngine, app: SmallApp) -> None:
    @app.function("old", event="x")
    def old(steps: Steps) -> object:
        return "old"

    await engine.sync_app(app.sync_request())
    await run_to_end(engine, "x")
    app.functions.clear()

    @app.function("new", event="x")
    def new(steps: Steps) -> object:
        return "new"

    await engine.sync_app(app.sync_request())
    run = await engine.get_run(await only_run(engine, await send(engine, "x")))
    assert run is not None
    assert run.function_id == "app-new"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"triggers": [{"event": "x"}] * 11}, "triggers are 11; at most 10"),
        ({"triggers": [{"event": "x", "cron": "* * * * *"}]}, "triggers must each have either"),
        ({"triggers": [{}]}, "triggers must each have either"),
        ({"triggers": [{"event": "x" * 600}]}, "more than 512 characters"),
        ({"triggers": [{"event": "x", "expression": "event.data.n >"}]}, "triggers.expression is not valid"),
        ({"cancel": [{"event": "x"}] * 6}, "cancel has 6 entries; at most 5"),
        ({"cancel": [{"event": "x", "if": "("}]}, "cancel.if is not valid"),
        ({"concurrency": [{"limit": 1}] * 3}, "concurrency has 3 entries; at most 2"),
        ({"concurrency": [{"limit": 1, "key": "("}]}, "concurrency.key is not valid"),
        ({"idempotency": "("}, "idempotency is not valid"),
        ({"priority": {"run": "("}}, "priority.run is not valid"),
        ({"debounce": {"period": "1s", "key": "("}}, "debounce.key is not valid"),
        ({"steps": {}}, "steps are empty"),
        ({"steps": {"step": {"id": "s", "runtime": {"type": "ws", "url": "ws://x"}}}}, "runtime.type is 'ws'"),
        ({"steps": {"step": {"id": "s", "runtime": {"type": "http", "url": "nowhere"}}}}, "runtime.url is 'nowhere'"),
        (
            {
                "steps": {
                    "step": {"id": "s", "runtime": {"type": "http", "url": "http://x"}, "retries": {"attempts": 21}}
                }
            },
            "retries is 21",
        ),
    ],
)
async def test_what_is_refused_names_function_and_option(
    engine: EmbeddedEngine, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigInvalidError) as caught:
        await engine.sync_app(request(config(**options)))
    assert "function 'shop-f'" in str(caught.value)
    assert reason in str(caught.value)
    assert await engine.list_apps() == []


async def test_ids(engine: EmbeddedEngine) -> None:
    with pytest.raises(ConfigInvalidError, match="two functions have the id 'shop-f'"):
        await engine.sync_app(request(config(), config()))
    with pytest.raises(ConfigInvalidError, match="the app has no id"):
        await engine.sync_app(request(config(), app=""))
    with pytest.raises(ConfigInvalidError, match="a function has no id"):
        await engine.sync_app(request(config("")))


async def test_functions_of_two_apps_have_ids_of_their_own(engine: EmbeddedEngine) -> None:
    """``a`` and ``b-c`` make the same id as ``a-b`` and ``c``."""
    await engine.sync_app(request(config("a-b-c"), app="a"))
    with pytest.raises(
        ConfigInvalidError, match="app 'a-b': the function id 'a-b-c' is taken by a function of app 'a'"
    ):
        await engine.sync_app(request(config("a-b-c"), app="a-b"))
    assert await engine.list_functions("a-b") is None
    await engine.sync_app(request(app="a"))
    assert (await engine.sync_app(request(config("a-b-c"), app="a-b"))).modified
