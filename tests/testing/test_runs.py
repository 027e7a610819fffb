"""Assertions on runs and their steps, and the messages with which they fail."""

import datetime as dt

import pytest

import durably
from durably.protocol.engine_errors import EngineClosedError
from durably.testing import TestEngine

from .shop import DAY, CardError, client, onboard

SIGN_UP = durably.Event(name="user/signed.up", data={"email": "ada@example.com"})


@client.create_function(fn_id="chain", trigger=durably.TriggerEvent(event="chain"), retries=1)
async def chain(ctx: durably.Context) -> str:
    first = await ctx.step.run("first", lambda: {"n": 1})
    try:
        await ctx.step.run("second", fail)
    except durably.StepError:
        await ctx.step.sleep("third", 1500)
    await ctx.step.run("first", lambda: "again")
    return str(first)


def fail() -> None:
    raise CardError("declined")


async def test_assertions_pass_or_report_the_difference() -> None:
    async with TestEngine(client, [chain]) as engine:
        run = await (await engine.send(durably.Event(name="chain"))).wait()
        run.assert_completed(output="{'n': 1}")
        assert run.assert_step("first", output={"n": 1}).attempts == 1
        run.assert_step("first:1", output="again")
        run.assert_step("second", error="CardError", attempts=2)
        run.assert_step("third", output=None)
        run.assert_no_step("fourth")
        wrong = [
            (lambda: run.assert_completed(output=2), "output is \"{'n': 1}\", not 2"),
            (lambda: run.assert_failed(), "not failed but Completed"),
            (lambda: run.assert_cancelled(), "not cancelled but Completed"),
            (
                lambda: run.assert_step("forth"),
                "no step 'forth'; the run's steps are: 'first', 'second', 'third', 'first:1'",
            ),
            (lambda: run.assert_step("first", output=1), "step 'first' is {\"n\":1}, not 1"),
            (lambda: run.assert_step("first", attempts=2), "attempts of step 'first' is 1, not 2"),
            (lambda: run.assert_step("first", error="CardError"), "step 'first' did not fail"),
            (lambda: run.assert_step("second"), "step 'second' failed: declined"),
            (lambda: run.assert_step("second", error="ValueError"), "failed otherwise: CardError: declined"),
            (lambda: run.assert_no_step("third"), "there is a step 'third'"),
        ]
        for assertion, message in wrong:
            with pytest.raises(AssertionError) as caught:
                assertion()
            assert message in str(caught.value)
            assert str(caught.value).endswith(run.timeline())


async def test_unfinished_step_does_not_count_as_finished() -> None:
    async with TestEngine(client, [onboard]) as engine:
        run = await engine.send(SIGN_UP)
        with pytest.raises(AssertionError, match="'a-month' has not finished: it is sleeping"):
            run.assert_step("a-month")
        with pytest.raises(AssertionError, match="not completed but Running"):
            run.assert_completed()
        assert run.output is None
        assert run.error is None


async def test_timeline_has_all_steps_and_attempts() -> None:
    async with TestEngine(client, [chain], now=dt.datetime(2030, 1, 1, tzinfo=dt.UTC)) as engine:
        run = await (await engine.send(durably.Event(name="chain", data={"a": 1}))).wait()
        assert (
            run.timeline()
            == f"""\
run {run.id} of shop-chain: Completed after 16s 500ms
  +0s         (run)    began: chain {{"a":1}}
  +0s         first    → {{"n":1}}
  +0s         second   attempt 1 failed, again at +15s: CardError: declined
  +15s        second   failed: CardError: declined
  +15s        third    sleeps until +16s 500ms
  +16s 500ms  third    woke
  +16s 500ms  first:1  → "again"
  +16s 500ms  (run)    completed → "{{'n': 1}}\""""
        )
        assert repr(run) == f"<{run.timeline()}>"


async def test_failed_run_reports_its_error() -> None:
    @client.create_function(fn_id="fails", trigger=durably.TriggerEvent(event="fails"), retries=0)
    async def fails(ctx: durably.Context) -> None:
        raise CardError("stolen")

    async with TestEngine(client, [fails]) as engine:
        run = await engine.send(durably.Event(name="fails"))
        assert run.error is not None
        assert (run.error.name, run.error.message) == ("CardError", "stolen")
        assert run.timeline().endswith("failed: CardError: stolen")
        run.assert_failed(error="CardError")
        with pytest.raises(AssertionError, match="the run failed otherwise: CardError: stolen"):
            run.assert_failed(error="ValueError")


async def test_only_the_latest_is_remembered_of_very_many_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("durably.testing.runs._MOST_REMEMBERED", 5)
    async with TestEngine(client, [onboard]) as engine:
        runs = await engine.send([SIGN_UP] * 3)
        assert "the first updates are no longer kept" in runs[0].timeline()
        assert runs[0].steps["welcome"].output == "Welcome, ada@example.com!"
        assert runs[-1].steps["a-month"].due_at == engine.now + 30 * DAY


async def test_after_the_engine_is_closed_its_runs_say_so() -> None:
    async with TestEngine(client, [onboard]) as engine:
        run = await engine.send(SIGN_UP)
    with pytest.raises(EngineClosedError, match="inside its `with` block"):
        _ = run.status
    assert "is closed" in repr(run)
