"""What an app does with runs that it starts: the same code for each engine, async and sync."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest

from durably import (
    Client,
    Context,
    ContextSync,
    Debounce,
    Event,
    Function,
    NonRetriableError,
    TriggerDeferred,
    TriggerEvent,
)
from durably.browser_streams import StreamRequest, StreamResponse, Streams
from durably.comm import CommRequest
from durably.endpoints import mount_endpoint
from durably.errors import (
    EventTooLargeError,
    FunctionNotFoundError,
    RunCancelledError,
    RunFailedError,
    RunNotFoundError,
    RunSkippedError,
)

from .waiting import async_eventually, eventually

MAILS: list[dict[str, Any]] = []
"""The data of each deferred run, with its sessions and its parent. Some engines have several processes' functions."""
UNKNOWN = "01J0000000ABCDEFGHJKMNPQRS"


class Functions:
    """The functions of an app. ``other`` is served by none."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.calls = 0

        @client.create_function(fn_id="add", trigger=[])
        async def add(ctx: Context) -> set[int]:
            return {1, await ctx.step.run("number", lambda: int(ctx.event.data["n"]))}

        @client.create_function(fn_id="add-sync", trigger=[])
        def add_sync(ctx: ContextSync) -> set[int]:
            return {1, ctx.step.run("number", lambda: int(ctx.event.data["n"]))}

        @client.create_function(fn_id="fail", trigger=[], retries=0)
        async def fail(ctx: Context) -> int:
            raise ValueError("no card")

        @client.create_function(fn_id="wait", trigger=[])
        async def wait(ctx: Context) -> str:
            signal = await ctx.step.wait_for_signal("answer", signal=ctx.event.data["signal"], timeout=86_400_000)
            return "" if signal is None else str(signal.data)

        @client.create_function(fn_id="last", trigger=[], debounce=Debounce(period=1_000))
        async def last(ctx: Context) -> int:
            return int(ctx.event.data["n"])

        @client.create_function(fn_id="other", trigger=[])
        async def other(ctx: Context) -> None: ...

        self.add, self.add_sync, self.fail, self.wait, self.last, self.other = add, add_sync, fail, wait, last, other

        @client.create_function(fn_id="mail", trigger=TriggerDeferred())
        async def mail(ctx: Context) -> None:
            data = dict(ctx.event.data)
            MAILS.append({**data, "_inngest": data["_inngest"]["parent_run_id"], "meta": ctx.event.meta})

        @client.create_function(fn_id="meta", trigger=[])
        async def meta(ctx: Context) -> Any:
            return ctx.event.meta

        ordered = TriggerEvent(event=f"{client.app_id}/ordered")

        @client.create_function(fn_id="order", trigger=ordered, retries=0)
        async def order(ctx: Context) -> str:
            ctx.defer("kept", function=mail, data={"n": 1})
            dropped = ctx.defer("dropped", function=mail, data={"n": 2})
            heard = await ctx.step.invoke("invoke", function=meta)
            dropped.abort()
            ctx.defer("heard", function=mail, data={"n": 3, "heard": heard})
            await ctx.step.run("quick", lambda: None)
            for n in (4, 5):
                ctx.defer("again", function=mail, data={"n": n})
            if ctx.event.data.get("fails"):
                raise NonRetriableError("no stock")
            return "ordered"

        @client.create_function(fn_id="order-sync", trigger=[])
        def order_sync(ctx: ContextSync) -> str:
            ctx.defer("kept", function=mail, data={"n": 1})
            ctx.step.run("quick", lambda: None)
            ctx.defer("dropped", function=mail, data={"n": 2}).abort()
            return "ordered"

        self.order, self.order_sync, self.mail, self.meta = order, order_sync, mail, meta

    @property
    def served(self) -> list[Function[None]]:
        first = [self.add, self.add_sync, self.fail, self.wait, self.last]
        return [*first, self.order, self.order_sync, self.mail, self.meta]  # type: ignore[list-item]


async def tell_of_defers(shop: Functions) -> None:
    """Functions that runs defer, and sessions that they inherit."""
    client, sessions = shop.client, {"chat": "7"}

    async def mails_of(run_id: str, number: int) -> dict[int, Any]:
        def found() -> list[dict[str, Any]]:
            return [mail for mail in MAILS if mail["_inngest"] == run_id]

        await async_eventually(lambda: len(found()) >= number, f"{number} deferred functions run: {MAILS}")
        return {mail["n"]: mail for mail in found()}

    name = f"{client.app_id}/ordered"
    for fails in (False, True):
        await client.send(Event(name=name, data={"fails": fails}, meta={"sessions": sessions}))
    runs = {}
    async with asyncio.timeout(60):
        while len(runs) < 2:
            page = await client.runs(shop.order)
            runs = {run.status: run.id for run in page if run.status.has_ended}
            await asyncio.sleep(0.02)
    for status in ("Completed", "Failed"):
        mails = await mails_of(runs[status], 4)
        assert sorted(mails) == [1, 3, 4, 5]
        assert all(mail["meta"] == {"sessions": sessions} for mail in mails.values())
        assert mails[3]["heard"] == {"sessions": sessions}
    handle = await shop.order_sync.start()
    assert await handle.result() == "ordered"
    assert list((await mails_of(handle.id, 1)).values()) == [{"n": 1, "_inngest": handle.id, "meta": None}]
    ids = {handle.id, *runs.values()}
    assert len([mail for mail in MAILS if mail["_inngest"] in ids]) == 9


async def tell(shop: Functions) -> None:
    handle = await shop.add.start({"n": 2}, id="order-42")
    assert await handle.result(timeout="60s") == {1, 2}
    run = await handle.status()
    assert (run.id, run.function_id, run.status) == (handle.id, shop.add.id, "Completed")
    assert (await shop.add.start({"n": 3}, id="order-42")).id == handle.id
    assert (await shop.add_sync.start({"n": 3}, id="order-42")).id != handle.id
    again = await asyncio.gather(*(shop.add.start({"n": 4}, id="order-43") for _ in range(8)))
    assert len({each.id for each in again}) == 1
    assert await shop.client.run(handle.id, shop.add).result() == {1, 2}
    assert sorted(await shop.client.run(handle.id).result()) == [1, 2]
    repeated = await handle.rerun()
    assert repeated.id != handle.id
    assert await repeated.result() == {1, 2}

    failed = await shop.fail.start()
    with pytest.raises(RunFailedError, match="ValueError: no card") as info:
        await failed.result()
    assert (info.value.name, info.value.message, info.value.run_id) == ("ValueError", "no card", failed.id)

    waiting = await shop.wait.start({"signal": "a"})
    other = await shop.wait.start({"signal": "b"})
    with pytest.raises(TimeoutError):
        await waiting.result(timeout="50ms")
    assert not await other.signal("a", "for the first")
    assert await async_eventually(lambda: waiting.signal("a", "yes"), "the run waits")
    assert await waiting.result() == "yes"
    assert not await waiting.cancel()
    assert await other.cancel()
    assert not await other.cancel()
    with pytest.raises(RunCancelledError, match=other.id):
        await other.result()

    with pytest.raises(FunctionNotFoundError, match="other"):
        await shop.other.start()
    with pytest.raises(EventTooLargeError, match="send less, and where the rest is stored"):
        await shop.add.start({"text": "x" * 4_000_000})
    for use in (shop.client.run(UNKNOWN).status, shop.client.run(UNKNOWN).result, shop.client.run(UNKNOWN).cancel):
        with pytest.raises(RunNotFoundError, match=UNKNOWN):
            await use()
    refused = await open_stream(shop.client, UNKNOWN)
    assert refused.status_code == 404
    assert UNKNOWN in refused.body.decode()


async def open_stream(client: Client, run_id: str) -> StreamResponse:
    """What a browser gets that follows a run."""
    streams = Streams(client, "/streams", allow_anonymous=True, caller="streams")
    return await streams.handle(StreamRequest(method="GET", query=f"channel={run_id}", headers={}))


async def tell_of_held_runs(shop: Functions) -> None:
    first = await shop.last.start({"n": 1})
    second = await shop.last.start({"n": 2}, id="last")
    assert (await shop.last.start({"n": 3}, id="last")).id == second.id
    held = second.id
    assert (await second.status()).status == "Scheduled"
    with pytest.raises(RunNotFoundError, match="holds the run back"):
        await second.cancel()
    assert (await open_stream(shop.client, held)).status_code == 404
    assert await second.result() == 2
    assert second.id != held
    stream = (await open_stream(shop.client, held)).stream
    assert stream is not None
    assert b'"output":2' in b"".join([chunk async for chunk in stream()])
    assert (await shop.client.run(held).status()).id == second.id
    assert not await shop.client.run(held).cancel()
    assert await (await shop.client.run(held).rerun()).result() == 2
    assert (await first.status()).status == "Skipped"
    for use in (first.result, first.cancel):
        with pytest.raises(RunSkippedError, match="debounce"):
            await use()


def tell_sync(shop: Functions) -> None:
    handle = shop.add_sync.start_sync({"n": 2}, id="order-42")
    assert handle.result_sync(timeout="60s") == {1, 2}
    assert handle.status_sync().status == "Completed"
    assert shop.add_sync.start_sync({"n": 3}, id="order-42").id == handle.id
    assert shop.client.run(handle.id, shop.add_sync).result_sync() == {1, 2}
    assert handle.rerun_sync().result_sync() == {1, 2}
    # Lists of an engine on Temporal lag.
    eventually(
        lambda: handle.id in [run.id for run in shop.client.runs_sync(shop.add_sync, status="completed", limit=10)],
        "the run is listed",
    )
    with pytest.raises(ValueError, match="Completed"):
        shop.client.runs_sync(status="done")

    failed = shop.fail.start_sync()
    with pytest.raises(RunFailedError, match="no card"):
        failed.result_sync()

    waiting, other = shop.wait.start_sync({"signal": "c"}), shop.wait.start_sync({"signal": "d"})
    with pytest.raises(TimeoutError):
        waiting.result_sync(timeout="50ms")
    eventually(lambda: waiting.signal_sync("c", "yes"), "the run waits")
    assert waiting.result_sync() == "yes"
    assert other.cancel_sync()
    with pytest.raises(RunCancelledError):
        other.result_sync()
    with pytest.raises(FunctionNotFoundError):
        shop.other.start_sync()
    with pytest.raises(RunNotFoundError):
        shop.client.run(UNKNOWN).result_sync()


def request_of(url: str, data: object = None, **headers: str) -> tuple[str, CommRequest]:
    """The method and the request for a URL of an endpoint: a POST with data, or else a GET."""
    request = CommRequest(
        body=b"" if data is None else msgspec.json.encode(data),
        headers={
            "content-type": "application/json",
            **{name.replace("_", "-"): text for name, text in headers.items()},
        },
        query_params=parse_qs(urlsplit(url).query),
        raw_request=None,
        request_url=f"http://shop{url}",
    )
    return "GET" if data is None else "POST", request


async def tell_of_endpoints(shop: Functions) -> None:
    async def ask(
        function: Function[Any], data: object = None, *, url: str = "/go", wait: str = "60s", **headers: str
    ) -> Any:
        handler = mount_endpoint(function, "/go", "endpoint", allow_anonymous=True, wait=wait).handler
        response = await handler.handle(*request_of(url, data, **headers))
        return int(response.status_code), msgspec.json.decode(response.body)

    status, numbers = await ask(shop.add, {"n": 2})
    assert (status, sorted(numbers)) == (200, [1, 2])
    status, failure = await ask(shop.fail, {})
    assert (status, failure.pop("run_id", None) is not None) == (500, True)
    assert failure == {"message": "no card", "name": "ValueError"}
    status, failure = await ask(shop.other, {})
    assert (status, failure) == (503, {"message": "the run could not be started: see the app's log"})
    assert (await ask(shop.add, {"text": "x" * 4_000_000}))[0] == 413

    first = await ask(shop.wait, {"signal": "f"}, wait="50ms", idempotency_key="k")
    assert first[0] == 202
    run_id, url = first[1]["run_id"], first[1]["url"]
    again = await ask(shop.wait, {"signal": "f"}, wait="50ms", idempotency_key="k")
    assert (again[0], again[1]["run_id"]) == (202, run_id)
    others = [
        await ask(shop.wait, {"signal": "g"}, wait="50ms", idempotency_key="k"),
        await ask(shop.wait, {"signal": "h"}, wait="50ms"),
    ]
    assert len({run_id, *(other[1]["run_id"] for other in others)}) == 3
    assert (await ask(shop.wait, url=url, wait="50ms"))[0] == 202
    assert await async_eventually(lambda: shop.client.run(run_id).signal("f", "yes"), "the run waits")
    assert await ask(shop.wait, url=url) == (200, "yes")
    assert (await ask(shop.add, url=url))[0] == 404, "a link is for the run's own endpoint"
    assert await ask(shop.wait, {"signal": "f"}, idempotency_key="k") == (200, "yes")
    assert await shop.client.run(others[0][1]["run_id"]).cancel()
    status, failure = await ask(shop.wait, url=others[0][1]["url"])
    assert (status, failure["name"]) == (500, "RunCancelledError")

    token = shop.client.stream_token
    statuses = {
        token(UNKNOWN): 404,
        token(run_id, ["$run"]): 200,
        token(run_id, ["words"]): 401,
        token([run_id, UNKNOWN]): 401,
        token(run_id, expires="0s"): 401,
        f"{token(run_id)}x": 401,
        "": 401,
    }
    assert {text: (await ask(shop.wait, url=f"/go?token={text}"))[0] for text in statuses} == statuses


def tell_of_endpoints_sync(shop: Functions) -> None:
    def ask(function: Function[Any], data: object = None, *, url: str = "/go", wait: str = "60s") -> Any:
        handler = mount_endpoint(function, "/go", "endpoint", authorize=may_start, wait=wait).handler
        response = handler.handle_sync(*request_of(url, data))
        return int(response.status_code), msgspec.json.decode(response.body)

    async def may_start(request: object, data: dict[str, Any]) -> bool:
        return data.get("signal") != "not mine"

    status, numbers = ask(shop.add_sync, {"n": 2})
    assert (status, sorted(numbers)) == (200, [1, 2])
    assert ask(shop.wait, {"signal": "not mine"})[0] == 403
    status, link = ask(shop.wait, {"signal": "i"}, wait="50ms")
    assert status == 202
    assert ask(shop.wait, url=link["url"], wait="50ms")[0] == 202
    assert eventually(lambda: shop.client.run(link["run_id"]).signal_sync("i", "yes"), "the run waits")
    assert ask(shop.wait, url=link["url"]) == (200, "yes")


def start_in_threads(shop: Functions) -> None:
    with ThreadPoolExecutor(8) as threads:
        starts = [threads.submit(shop.add_sync.start_sync, {"n": n}, id="order-44") for n in range(16)]
        assert len({start.result().id for start in starts}) == 1
