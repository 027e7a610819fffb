"""Syncs of apps' functions."""

from typing import Any

import msgspec
import pytest

from durably.engine.model.overview import SyncResult
from durably.engine.sqlite.engine import SqliteEngine
from durably.protocol.engine_errors import ConfigInvalidError
from durably.protocol.sync import SyncRequest, decode_sync


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


def _step(url: str) -> dict[str, Any]:
    return {"id": "step", "runtime": {"type": "http", "url": url}}


async def test_synced_functions_are_listed(engine: SqliteEngine) -> None:
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
    assert await engine.sync_app(request(everything, config("shop-b"))) == SyncResult(
        app_id="shop", modified=True, added=("shop-a", "shop-b")
    )
    assert await engine.sync_app(request(everything, config("shop-b"))) == SyncResult(app_id="shop", modified=False)
    functions = await engine.list_app_functions("shop")
    assert functions is not None
    assert [function.id for function in functions] == ["shop-a", "shop-b"]
    assert functions[0].config.throttle is not None
    assert functions[0].config.throttle.burst == 2
    (app,) = await engine.list_apps()
    assert (app.id, app.url, app.sdk, app.framework, app.function_count) == (
        "shop",
        "http://127.0.0.1:1/api",
        "py:v1",
        "flask",
        2,
    )
    assert await engine.sync_app(request(config("shop-b"))) == SyncResult(
        app_id="shop", modified=True, removed=("shop-a",)
    )
    assert [function.id for function in await engine.list_app_functions("shop") or []] == ["shop-b"]
    assert await engine.list_app_functions("other") is None


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"triggers": [{"event": "x"}] * 11}, "triggers are 11; at most 10"),
        ({"triggers": [{"event": "x", "cron": "* * * * *"}]}, "triggers must each have either"),
        ({"triggers": [{}]}, "triggers must each have either"),
        ({"triggers": [{"event": " "}]}, "triggers must each have either"),
        ({"triggers": [{"event": "x"}] * 2}, "triggers has the same trigger twice"),
        ({"triggers": [{"event": "x", "jitter": "5s"}]}, "triggers.jitter is about cron schedules"),
        ({"triggers": [{"event": "x", "expression": "event.total > 1"}]}, "write event.data.total"),
        ({"triggers": [{"event": "x", "expression": "async.data.n == 1"}]}, "`async` is not known here"),
        ({"triggers": [{"cron": "* * * * *", "expression": "true"}]}, "triggers.if_exp is about events"),
        ({"triggers": [{"event": "x" * 600}]}, "more than 512 characters"),
        ({"triggers": [{"event": "x", "expression": "event.data.n >"}]}, "triggers.if_exp is not valid"),
        ({"cancel": [{"event": "x"}] * 6}, "cancel has 6 entries; at most 5"),
        ({"cancel": [{"event": "x", "if": "("}]}, "cancel[0].if_exp is not valid"),
        ({"concurrency": [{"limit": 1}] * 3}, "concurrency has 3 entries; at most 2"),
        ({"concurrency": [{"limit": 1, "key": "("}]}, "concurrency[0].key is not valid"),
        ({"idempotency": "("}, "idempotency is not valid"),
        ({"priority": {"run": "("}}, "priority.run is not valid"),
        ({"debounce": {"period": "1s", "key": "("}}, "debounce.key is not valid"),
        ({"steps": {}}, "steps are 0; there must be exactly one"),
        ({"steps": {"a": _step("http://x"), "b": _step("http://x")}}, "steps are 2; there must be exactly one"),
        ({"steps": {"step": _step("embedded://shop")}}, "runtime.url is 'embedded://shop/'; it must be an http"),
        ({"steps": {"step": _step("ftp://me:hunter2@files/x")}}, "runtime.url is 'ftp://files/x'; it must be an http"),
        ({"steps": {"step": _step("http://me:hunter2@[::1/x")}}, "runtime.url is '***'; it must be an http"),
        ({"steps": {"step": _step("http://me:hunter2@x:port/")}}, "runtime.url is '***'; it must be an http"),
        ({"steps": {"step": {"id": "s", "runtime": {"type": "ws", "url": "ws://x"}}}}, "runtime.url is 'ws://x/'"),
        ({"steps": {"step": {"id": "s", "runtime": {"type": "grpc", "url": "x"}}}}, "runtime.type is 'grpc'"),
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
async def test_refused_config_names_function_and_option(
    engine: SqliteEngine, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigInvalidError) as caught:
        await engine.sync_app(request(config(**options)))
    assert "function 'shop-f'" in str(caught.value)
    assert reason in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert await engine.list_apps() == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"throttle": {"limit": 1, "period": "1m", "brst": 2}}, "throttle has no field 'brst'; it takes burst, key,"),
        ({"concurrency": [{"limit": 1}, {"limit": 2, "keys": "x"}]}, "concurrency has no field 'keys'"),
        ({"cancel": [{"event": "x", "match": "data.id"}]}, "cancel has no field 'match'; it takes event, if, timeout"),
        ({"triggers": [{"event": "x", "if": "true"}]}, "triggers has no field 'if'"),
    ],
)
def test_fields_that_an_option_does_not_have_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        request(config("shop-other"), config(**options))
    assert f"function 'shop-f': {reason}" in str(caught.value)


async def test_options_of_newer_sdks_and_fields_that_ask_for_nothing_are_passed_over(engine: SqliteEngine) -> None:
    newer = config(
        quantum={"leap": True},
        checkpoint={"batch_steps": 3, "novel": 1},
        throttle={"limit": 1, "period": "1m", "q": None},
    )
    await engine.sync_app(request(newer))
    (function,) = await engine.list_app_functions("shop") or []
    assert function.config.throttle is not None


async def test_nothing_of_a_refused_sync_is_kept(engine: SqliteEngine) -> None:
    await engine.sync_app(request(config("shop-before")))
    with pytest.raises(ConfigInvalidError):
        await engine.sync_app(request(config("shop-good"), config(idempotency="(")))
    assert [function.id for function in await engine.list_app_functions("shop") or []] == ["shop-before"]


async def test_missing_duplicate_or_long_ids_are_refused(engine: SqliteEngine) -> None:
    with pytest.raises(ConfigInvalidError, match="two functions have the id 'shop-f'"):
        await engine.sync_app(request(config(), config()))
    with pytest.raises(ConfigInvalidError, match="the app has no id"):
        await engine.sync_app(request(config(), app=""))
    with pytest.raises(ConfigInvalidError, match="a function has no id"):
        await engine.sync_app(request(config("")))
    with pytest.raises(ConfigInvalidError, match="more than 512 characters"):
        await engine.sync_app(request(config("f" * 513)))


async def test_functions_of_two_apps_have_ids_of_their_own(engine: SqliteEngine) -> None:
    """``a`` and ``b-c`` make the same id as ``a-b`` and ``c``."""
    await engine.sync_app(request(config("a-b-c"), app="a"))
    with pytest.raises(
        ConfigInvalidError, match="app 'a-b': the function id 'a-b-c' is taken by a function of app 'a'"
    ):
        await engine.sync_app(request(config("a-b-c"), app="a-b"))
    assert await engine.list_app_functions("a-b") is None
    await engine.sync_app(request(app="a"))
    assert (await engine.sync_app(request(config("a-b-c"), app="a-b"))).modified
