"""A program that runs functions with Sentry's middleware, and prints the events that Sentry would send, as JSON.

It is a process of its own, because ``sentry_sdk.init`` changes logging, tasks and frameworks for the whole process.
"""

import asyncio
import json
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import fastapi
import fastapi.testclient
import flask
import sentry_sdk
from sentry_sdk.envelope import Envelope
from sentry_sdk.integrations.asyncio import AsyncioIntegration
from sentry_sdk.transport import Transport

import durably.fast_api
import durably.flask
from durably import Client, Context, ContextSync, Embedded, Event, TriggerEvent
from durably.comm import CommHandler
from durably.sentry import Sentry

from .otel.conftest import SETTINGS


class Recorder(Transport):
    """Keeps what would be sent."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[dict[str, Any]] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        if (event := envelope.get_event()) is not None:
            self.events.append(dict(event))


class OrderError(Exception):
    pass


def fail() -> None:
    raise OrderError("no such card")


def make_handler(client: Client) -> CommHandler:
    def create(name: str, **options: Any) -> Any:
        return client.create_function(fn_id=name, trigger=TriggerEvent(event=name), retries=1, **options)

    @create("step-fails")
    async def step_fails(ctx: Context) -> None:
        await ctx.step.run("charge", fail)

    @create("function-fails")
    def function_fails(ctx: ContextSync) -> None:
        fail()

    @create("recovers")
    async def recovers(ctx: Context) -> str:
        def charge() -> str:
            return "paid" if ctx.attempt else fail() or ""

        return await ctx.step.run("charge", charge)

    @create("catches")
    async def catches(ctx: Context) -> None:
        try:
            await ctx.step.run("charge", fail)
        except durably.StepError:
            ctx.logger.error("the card was refused")

    functions = [step_fails, function_fails, recovers, catches]
    return CommHandler(client=client, framework="test", functions=functions)


async def run_in_process(capture: Any, directory: Path) -> None:
    """Run each function to its end."""
    client = Client(
        app_id=capture,
        is_production=False,
        engine=Embedded(directory / f"{capture}.db", settings=SETTINGS),
        middleware=[Sentry(capture=capture)],
    )
    make_handler(client)
    async with client.engine.running():
        for name in ("step-fails", "function-fails", "recovers", "catches"):
            [event_id] = await client.send(Event(name=name))
            [run] = await client.engine.event_runs(event_id)
            await client.engine.wait_for_run(run.id)


def call_over_http() -> None:
    """One call of a failing function in each framework."""
    client = Client(app_id="http", is_production=False, middleware=[Sentry(capture="attempt")])

    @client.create_function(fn_id="async", trigger=TriggerEvent(event="x"))
    async def fails(ctx: Context) -> None:
        fail()

    @client.create_function(fn_id="sync", trigger=TriggerEvent(event="x"))
    def fails_sync(ctx: ContextSync) -> None:
        fail()

    event = {"name": "x", "data": {}, "ts": 1_700_000_000_000, "id": "e"}
    app, flask_app = fastapi.FastAPI(), flask.Flask("app")
    durably.fast_api.serve(app, client, [fails, fails_sync])
    durably.flask.serve(flask_app, client, [fails, fails_sync])
    for name in ("async", "sync"):
        url = f"/api/inngest?fnId=http-{name}&stepId=step"
        body = {"ctx": {"run_id": f"run-{name}", "attempt": 0}, "event": event, "events": [event], "steps": {}}
        body["ctx"]["stack"] = {"stack": [], "current": 0}
        assert fastapi.testclient.TestClient(app, raise_server_exceptions=False).post(url, json=body).status_code == 500
        assert flask_app.test_client().post(url, json=body).status_code == 500


async def main() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    recorder = Recorder()
    sentry_sdk.init(dsn="http://key@127.0.0.1:9/1", transport=recorder, integrations=[AsyncioIntegration()])
    with tempfile.TemporaryDirectory() as directory:
        for capture in ("run", "attempt"):
            await run_in_process(capture, Path(directory))
    await asyncio.to_thread(call_over_http)
    sentry_sdk.flush()
    print(json.dumps([summary(event) for event in recorder.events]))


def summary(event: dict[str, Any]) -> dict[str, Any]:
    errors = [each["type"] for each in (event.get("exception") or {}).get("values") or []]
    return {
        "errors": errors,
        "message": (event.get("logentry") or {}).get("formatted"),
        "tags": event.get("tags") or {},
        "context": (event.get("contexts") or {}).get("step error"),
    }


if __name__ == "__main__":
    asyncio.run(main())
