"""The examples' functions over all of their time, on a virtual clock; and each is deterministic."""

import datetime as dt
from typing import Any

import pytest

import durably
from durably.testing import TestEngine

with pytest.MonkeyPatch.context() as environment:
    environment.setenv("DURABLY_DEV", "1")
    from examples.digital_ocean_webhooks import app as webhooks
    from examples.fastapi_orders import app as orders
    from examples.flask_signup import app as signup
    from examples.tornado_thumbnails import app as thumbnails

DAY = dt.timedelta(days=1)


@pytest.fixture(autouse=True)
def _development(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the processes in which functions are called again."""
    monkeypatch.setenv("DURABLY_DEV", "1")


@pytest.fixture
def order() -> durably.Event:
    return orders.order_placed(orders.Order(id="A-1", total=42))


async def test_unsigned_order_is_lost_after_two_weeks(order: durably.Event) -> None:
    async with TestEngine(orders.client, [orders.fulfil_order]) as engine:
        run = await (await engine.send(order)).wait()
        run.assert_completed(output={"order": "A-1", "status": "lost", "payment": "paid 42 for A-1"})
        run.assert_step("charge-card", attempts=2)
        assert engine.now - run.created_at == 14 * DAY + dt.timedelta(seconds=15 + 2)
        await engine.check_determinism(run)


async def test_an_order_that_is_delivered_on_the_thirteenth_day(order: durably.Event) -> None:
    async with TestEngine(orders.client, [orders.fulfil_order]) as engine:
        run = await engine.send(order)
        await engine.advance(days=13)
        await engine.send(orders.order_delivered(orders.Delivered(id="A-2", signed_by="Eve")))
        assert not run.has_ended
        await engine.send(orders.order_delivered(orders.Delivered(id="A-1", signed_by="Ada")))
        assert run.output["signed_by"] == "Ada"
        await engine.check_determinism(run)


@pytest.mark.parametrize(("login_after", "output"), [(2 * DAY, "came back"), (4 * DAY, "reminded")])
def test_inactive_user_is_reminded_after_three_days(login_after: dt.timedelta, output: str) -> None:
    data = {"email": "ada@example.com"}
    with TestEngine(signup.client, [signup.onboard]).sync() as engine:
        run = engine.send(durably.Event(name="user/signed.up", data=data))
        engine.advance(login_after)
        engine.send(durably.Event(name="user/logged.in", data=data))
        run.assert_completed(output=output)
        engine.check_determinism(run)


@pytest.mark.parametrize(("answer", "output"), [(True, "delivered to u"), (False, "given up"), (None, "given up")])
def test_a_webhook_is_given_up_after_a_day(answer: bool | None, output: str) -> None:
    with TestEngine(webhooks.client, [webhooks.deliver]).sync() as engine:
        engine.fail_step("deliver", attempts=[0], error=ConnectionError)
        run = engine.send(durably.Event(name="webhook/requested", data={"url": "u"}))
        run.assert_step("deliver", error="ConnectionError")
        engine.mock_step("deliver", returns="delivered to u")
        if answer is not None:
            assert engine.signal("retry u", answer)
        run.wait()
        engine.check_determinism(run)


async def test_thumbnails_of_a_failed_run_are_removed() -> None:
    async with TestEngine(thumbnails.client, [thumbnails.make_thumbnails]) as engine:
        (run,) = await engine.send([durably.Event(name="picture/uploaded", data={"name": "cat.txt"})])
        await run.wait()
        run.assert_failed()
        (failure,) = (other for other in engine.runs() if other.id != run.id)
        failure.assert_completed(output="removed what was made of cat.txt")
        thumbnails.cleaned.clear()


async def test_thumbnails_are_deterministic(recwarn: Any) -> None:
    async with TestEngine(thumbnails.client, [thumbnails.make_thumbnails]) as engine:
        run = await engine.send(durably.Event(name="picture/uploaded", data={"name": "cat.png"}))
        await run.wait()
        run.assert_completed(output=["cat.png@64", "cat.png@256", "cat.png@1024"])
        await engine.check_determinism(run)
    assert not recwarn.list
