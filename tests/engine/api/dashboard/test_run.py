"""The page of a run, its values and its actions."""

import datetime as dt
import html
import re
import threading
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

import durably
from durably.cli.run_text import describe_run
from durably.engine.api.dashboard.dashboard import Dashboard
from durably.engine.api.dashboard.values import PointerError
from durably.protocol.opcodes import hash_step_id
from durably.testing.engine import TestEngine, TestRun

from .dashboard_client import get, header, page, post, token_of

HOSTILE = '"><script>alert(1)</script>\u202e\x1b[31m'


class Shop:
    """A function that fails while ``is_broken``, in a test engine with its dashboard."""

    def __init__(self) -> None:
        self.client = durably.Client(app_id="shop", app_version="7.1")
        self.is_broken = True
        self.charged: list[Any] = []
        self.functions = [self._order(), self._child()]
        self.engine = TestEngine(self.client, self.functions)

    @property
    def dashboard(self) -> Dashboard:
        return Dashboard(self.engine._engine, allow_anonymous=True)

    def _order(self) -> durably.Function[Any]:
        @self.client.create_function(
            fn_id="order", name="Take an order", trigger=durably.TriggerEvent(event="order/placed"), retries=1
        )
        async def order(ctx: durably.Context) -> Any:
            await ctx.step.run("reserve", lambda: {"left": 3, HOSTILE: HOSTILE})
            ctx.progress(0.4, f"charging {HOSTILE}")
            await ctx.step.run("charge", self._charge, ctx.event.data["amount"])
            return {"items": list(range(ctx.event.data["items"])), "text": HOSTILE}

        return order

    def _child(self) -> durably.Function[Any]:
        @self.client.create_function(fn_id="waiter", trigger=durably.TriggerEvent(event="wait/began"))
        async def waiter(ctx: durably.Context) -> None:
            await ctx.step.wait_for_event("answer", event="answer/given", timeout=dt.timedelta(days=1))

        return waiter

    async def _charge(self, amount: int) -> str:
        self.charged.append(amount)
        if self.is_broken:
            raise ConnectionError("the provider does not answer")
        return f"charged {amount}"

    async def order(self, *, items: int = 3) -> TestRun:
        data = {"amount": 10, "items": items, "by": HOSTILE}
        return await (await self.engine.send(durably.Event(name="order/placed", data=data))).wait()

    async def act(self, run_id: str, action: str, **form: str) -> str:
        """Send a form of the run's page, and return where the answer leads."""
        token, cookie = await token_of(self.dashboard, f"/runs/{run_id}")
        answer = await post(self.dashboard, f"/runs/{run_id}/{action}", token, cookie, **form)
        assert answer.status_code == 303, answer.body.decode()
        await self.engine.run_until_idle()
        return header(answer, "location") or ""

    async def rerun(self, run_id: str, **form: str) -> TestRun:
        location = await self.act(run_id, "rerun", **form)
        [new_id] = re.findall(r"^/runs/(\w+)\?notice=rerun$", location)
        [new] = [run for run in self.engine.runs() if run.id == new_id]
        return new


@pytest.fixture
async def shop() -> AsyncIterator[Shop]:
    shop = Shop()
    async with shop.engine:
        yield shop


async def test_the_head_has_the_facts(shop: Shop) -> None:
    run = await shop.order()
    text = await page(shop.dashboard, f"/runs/{run.id}")
    for part in (
        "Take an order",
        "shop-order",
        "order/placed",
        "Failed attempts of steps",
        ">shop",
        run.id,
        "status-failed",
        '<progress value="0.4" max="1"',
        "40 %<br>charging &#34;&gt;&lt;script&gt;",
    ):
        assert part in text
    report = await shop.engine._engine.inspect_run(run.id)
    assert report is not None
    shown = describe_run(report.run)
    assert "40%: charging" in shown
    assert "\u202e" not in shown


async def test_a_huge_error_does_not_make_a_huge_page() -> None:
    client = durably.Client(app_id="huge")

    @client.create_function(fn_id="fail", trigger=durably.TriggerEvent(event="fail"), retries=0)
    async def fail(ctx: durably.Context) -> None:
        raise ValueError("begin " + "x" * 1_000_000 + " end")

    async with TestEngine(client, [fail]) as engine:
        run = await (await engine.send(durably.Event(name="fail"))).wait()
        shown = await page(Dashboard(engine._engine, allow_anonymous=True), f"/runs/{run.id}")
        assert len(shown) < 200_000
        assert "begin xxx" in shown
        assert "characters are not shown" in shown
        report = await engine._engine.inspect_run(run.id)
        assert report is not None
        text = describe_run(report.run, None)
        assert len(text) < 100_000
        assert "characters are not shown" in text


async def test_invoked_run_shows_the_invoking_run() -> None:
    client = durably.Client(app_id="post")

    @client.create_function(fn_id="label", trigger=[])
    async def label(ctx: durably.Context) -> None: ...

    @client.create_function(fn_id="parcel", trigger=durably.TriggerEvent(event="parcel"))
    async def parcel(ctx: durably.Context) -> None:
        await ctx.step.invoke("print", function=label)

    async with TestEngine(client, [label, parcel]) as engine:
        dashboard = Dashboard(engine._engine, allow_anonymous=True)
        await (await engine.send(durably.Event(name="parcel"))).wait()
        [child] = engine.runs(label)
        direct = await (await engine.invoke(label)).wait()
        for run, text in ((child, ">invoked by post-parcel</a>"), (direct, ">invoked directly</a>")):
            shown = await page(dashboard, f"/runs/{run.id}")
            assert text in shown
            assert ">inngest/function.invoked</a>" not in shown


async def test_skip_delays_continues_sleeping_runs_and_retried_steps() -> None:
    client = durably.Client(app_id="night")
    is_broken = True

    @client.create_function(fn_id="nap", trigger=durably.TriggerEvent(event="nap"), retries=3)
    async def nap(ctx: durably.Context) -> str:
        await ctx.step.sleep("rest", dt.timedelta(days=1))
        await ctx.step.run("work", work)
        return "done"

    def work() -> None:
        if is_broken:
            raise ConnectionError("not yet")

    async with TestEngine(client, [nap]) as engine:
        dashboard = Dashboard(engine._engine, allow_anonymous=True)
        run = await engine.send(durably.Event(name="nap"))
        await engine.advance(dt.timedelta(milliseconds=1))
        path = f"/runs/{run.id}"
        assert ">Wake now</button>" in await page(dashboard, path)
        assert "Wake this step now" in await page(dashboard, path, f"step={hash_step_id('rest')}")
        token, cookie = await token_of(dashboard, path)

        async def wake(**form: str) -> str:
            answer = await post(dashboard, f"{path}/wake", token, cookie, **form)
            assert answer.status_code == 303
            await engine.advance(dt.timedelta(milliseconds=1))
            return header(answer, "location") or ""

        assert await engine._engine.skip_delays(run.id, step_id="other") == 0
        began = engine.now
        assert "notice=woken" in await wake(step=hash_step_id("rest"))
        text = await page(dashboard, path)
        assert ">Retry now</button>" in text
        assert "Retry this step now" in await page(dashboard, path, f"step={hash_step_id('work')}")
        is_broken = False
        assert await engine._engine.skip_delays(run.id, step_id="work") == 1
        await engine.advance(dt.timedelta(milliseconds=1))
        assert (await run.wait()).output == "done"
        assert engine.now - began < dt.timedelta(seconds=1)
        assert "notice=awake" in await wake()


async def test_a_run_that_does_not_exist_is_a_page_with_404(shop: Shop) -> None:
    for path in ("/runs/nothing", "/runs/nothing/value"):
        response = await get(shop.dashboard, path)
        assert response.status_code == 404
        assert b"There is no such run" in response.body


async def test_the_error_is_first_with_its_traceback_and_step(shop: Shop) -> None:
    run = await shop.order()
    text = await page(shop.dashboard, f"/runs/{run.id}")
    assert "<strong>ConnectionError</strong>: the provider does not answer" in text
    assert "in the step <a" in text
    chosen = await page(shop.dashboard, f"/runs/{run.id}", f"step={hash_step_id('charge')}")
    assert "Failed attempts" in chosen
    assert "Attempt 1" in chosen


async def test_hostile_text_is_escaped(shop: Shop) -> None:
    shop.is_broken = False
    run = await shop.order()
    for path, query in (
        (f"/runs/{run.id}", ""),
        (f"/runs/{run.id}", f"step={hash_step_id('reserve')}"),
        (f"/runs/{run.id}", "step=%22%3E%3Cscript%3E&zoom=%22%3E%3Cscript%3E&notice=%3Cscript%3E"),
        (f"/runs/{run.id}/value", "of=output"),
    ):
        text = await page(shop.dashboard, path, query)
        assert "<script>" not in text
        assert "\u202e" not in text
        assert "\x1b" not in text


async def test_parts_of_a_value_have_pages(shop: Shop) -> None:
    shop.is_broken = False
    run = await shop.order(items=500)
    text = await page(shop.dashboard, f"/runs/{run.id}")
    assert "400 more" in text
    rest = await page(shop.dashboard, f"/runs/{run.id}/value", "of=output&at=/items&from=450")
    assert ">499<" in rest
    assert ">100<" not in rest
    raw = await get(shop.dashboard, f"/runs/{run.id}/value", "of=output&raw=1")
    assert header(raw, "content-type") == "application/json"
    assert (header(raw, "content-disposition") or "").startswith("attachment")
    assert msgspec.json.decode(raw.body)["items"][499] == 499


@pytest.mark.parametrize("query", ["of=nothing", "of=output:abc", "of=event:x", "of=output&at=/x", "of=input:x&raw=1"])
async def test_a_value_that_does_not_exist_is_a_page_with_404(shop: Shop, query: str) -> None:
    shop.is_broken = False
    run = await shop.order()
    assert (await get(shop.dashboard, f"/runs/{run.id}/value", query)).status_code == 404


async def test_a_run_that_waits_can_be_cancelled(shop: Shop) -> None:
    run = await shop.engine.send(durably.Event(name="wait/began"))
    text = await page(shop.dashboard, f"/runs/{run.id}", f"step={hash_step_id('answer')}")
    assert "Times out" in text
    assert "answer/given" in text
    location = await shop.act(run.id, "cancel")
    assert run.status == "Cancelled"
    assert "The run was cancelled." in await page(shop.dashboard, *location.split("?"))
    assert "/cancel" not in await page(shop.dashboard, f"/runs/{run.id}")


async def test_a_failed_run_is_replayed_from_its_failed_step_after_a_fix(shop: Shop) -> None:
    run = await shop.order()
    text = await page(shop.dashboard, f"/runs/{run.id}")
    [step] = re.findall(r'name="step" value="(\w+)">\s*<button[^>]*>Replay from the failed step', text)
    shop.is_broken = False
    new = await shop.rerun(run.id, step=step)
    new.assert_completed()
    assert new.steps["reserve"].ended_at == run.steps["reserve"].ended_at


async def test_a_step_is_rerun_with_another_input(shop: Shop) -> None:
    shop.is_broken = False
    run = await shop.order()
    new = await shop.rerun(run.id, step=hash_step_id("charge"), input="[ 99 ]")
    assert new.steps["charge"].output == "charged 99"


@pytest.mark.parametrize("given", ["{", '{"a": 1}', "99", "[1,]", "[" * 5000])
async def test_input_that_is_not_an_array_is_explained(shop: Shop, given: str) -> None:
    run = await shop.order()
    token, cookie = await token_of(shop.dashboard, f"/runs/{run.id}")
    step = hash_step_id("charge")
    answer = await post(shop.dashboard, f"/runs/{run.id}/rerun", token, cookie, step=step, input=given)
    assert answer.status_code == 422
    text = answer.body.decode()
    assert 'id="rerun-error"' in text
    assert "JSON array" in text
    assert f">{html.escape(given, quote=True).replace('&quot;', '&#34;')}</textarea>" in text, "what was typed is kept"
    assert len(shop.engine.runs()) == 1


async def test_the_event_is_sent_again(shop: Shop) -> None:
    run = await shop.order()
    location = await shop.act(run.id, "send-event")
    assert re.fullmatch(r"/events/\w+\?notice=sent", location), "the page of the new event shows what it starts"
    first, second = shop.engine.runs()
    assert second.events[0].data == first.events[0].data
    assert second.events[0].id != first.events[0].id


async def test_large_values_are_written_outside_the_event_loop(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = list[threading.Thread]()

    def note(*args: Any, **options: Any) -> Any:
        threads.append(threading.current_thread())
        raise PointerError

    run = await shop.order()
    monkeypatch.setattr("durably.engine.api.dashboard.values.build_tree", note)
    report = await shop.engine._engine.inspect_run(run.id)
    assert report is not None
    await get(shop.dashboard, f"/runs/{run.id}/value", f"of=event:{report.events[0].id}")
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()


async def test_an_event_that_is_sent_again_says_why_it_starts_nothing() -> None:
    client = durably.Client(app_id="shop")

    @client.create_function(
        fn_id="bill", trigger=durably.TriggerEvent(event="order/placed"), idempotency="event.data.order"
    )
    async def bill(ctx: durably.Context) -> None: ...

    async with TestEngine(client, [bill]) as engine:
        run = await engine.send(durably.Event(name="order/placed", data={"order": 7}, id="order-7"))
        dashboard = Dashboard(engine._engine, allow_anonymous=True)
        token, cookie = await token_of(dashboard, f"/runs/{run.id}")
        path = f"/runs/{run.id}/send-event"
        for _ in range(2):  # the button of the run, and then that of the new event
            sent = header(await post(dashboard, path, token, cookie), "location")
            assert sent is not None
            path = f"{sent.partition('?')[0]}/send"
            text = await page(dashboard, *sent.split("?"))
            assert "The event was sent." in text
            assert "It started no run." in text
            assert "an event with the same value of its idempotency expression came less than 24 hours before" in text
