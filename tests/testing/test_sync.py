"""The sync flavour: in plain functions and in Django's own test case."""

import datetime as dt
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import flask
import pytest

import durably
import durably.flask
from durably.testing import RunStuckError, TestEngine

from .shop import DAY, approve, billing, client, mail, onboard, order

SIGN_UP = durably.Event(name="user/signed.up", data={"email": "ada@example.com"})


def test_all_of_it_without_an_event_loop() -> None:
    begin = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
    with TestEngine(client, [onboard, approve, order], now=begin).with_app(billing, [mail]).sync() as engine:
        run = engine.send(SIGN_UP)
        engine.advance(days=1, hours=1)
        assert engine.now == begin + dt.timedelta(hours=25)
        with pytest.raises(RunStuckError):
            run.wait(max_time=DAY)
        run.wait().assert_completed(output="reminded")
        approval, ordering = engine.send(
            [durably.Event(name="approval/asked"), durably.Event(name="order/placed", data={"amount": 1})]
        )
        assert engine.signal("approval-1", "yes")
        approval.assert_completed(output="yes")
        assert ordering.cancel()
        mailing = engine.invoke(mail, {"receipt": 1})
        assert not mailing.has_ended
        engine.run_until_idle()
        mailing.assert_completed()
        assert [run.id for run in engine.runs(mail)] == [mailing.id]
    assert client.in_process is None


def test_sync_functions_run_in_the_tests_own_thread_and_async_ones_do_not() -> None:
    threads: dict[str, Any] = {}

    @client.create_function(fn_id="sync", trigger=durably.TriggerEvent(event="where"))
    def sync(ctx: durably.ContextSync) -> None:
        threads["sync"] = threading.current_thread()
        ctx.step.run("send", client.send_sync, durably.Event(name="approval/asked"))

    @client.create_function(fn_id="async", trigger=durably.TriggerEvent(event="where"))
    async def not_sync(ctx: durably.Context) -> None:
        threads["async"] = threading.current_thread()

    with TestEngine(client, [sync, not_sync, approve], checkpointing=True).sync() as engine:
        for run in engine.send([durably.Event(name="where")]):
            run.wait().assert_completed()
        (approval,) = engine.runs(approve)
        approval.wait()
    assert threads["sync"] is threading.current_thread()
    assert threads["async"] is not threading.current_thread()


def test_an_app_that_is_loaded_while_the_engine_is_open_changes_no_threads() -> None:
    """As Django loads ``urls.py`` with the first request."""
    threads: list[threading.Thread] = []

    @client.create_function(fn_id="where", trigger=durably.TriggerEvent(event="where"))
    def where(ctx: durably.ContextSync) -> None:
        threads.append(threading.current_thread())

    with TestEngine(client, [where]).sync() as engine:
        durably.flask.serve(flask.Flask(__name__), client, [where])
        engine.send(durably.Event(name="where")).wait().assert_completed()
    assert threads == [threading.current_thread()]


def test_events_of_a_view_are_visible_to_the_test() -> None:
    with TestEngine(client, [approve]).sync() as engine:
        client.send_sync(durably.Event(name="approval/asked"))
        engine.advance(days=3)
        (run,) = engine.runs(approve)
        run.assert_completed(output=None)


def test_a_function_that_uses_its_engine_fails_instead_of_hanging() -> None:
    @client.create_function(fn_id="selfish", trigger=durably.TriggerEvent(event="selfish"), retries=0)
    def selfish(ctx: durably.ContextSync) -> None:
        engine.advance(days=1)

    with TestEngine(client, [selfish]).sync() as engine:
        run = engine.send(durably.Event(name="selfish"))
        run.assert_failed(message="a function under test used its test engine")


def test_in_djangos_test_case() -> None:
    """In a process of its own, since Django is configured once in each."""
    project = Path(__file__).parent / "django_project"
    done = subprocess.run(
        [sys.executable, "manage.py", "test"], cwd=project, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Ran 5 tests" in done.stderr
