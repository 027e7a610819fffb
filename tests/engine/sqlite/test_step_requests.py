"""Requests that the engine makes for steps: what becomes of failures, and how long what they send is kept."""

from typing import Any

import pytest
from aiohttp import web

from durably.engine.model.requests import OutboundClient
from durably.engine.sqlite.engine import SqliteEngine

from ..conftest import output, run_to_end
from ..small_app import SmallApp, StepFailed, Steps, serving


def held(engine: SqliteEngine) -> dict[int, Any]:
    """The stored requests that the engine has yet to make, or to repeat."""
    return engine._runtime._requests._opts


async def test_unexpected_failure_fails_the_step(
    engine: SqliteEngine, app: SmallApp, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @app.function("fetching")
    def fetching(steps: Steps) -> object:
        try:
            steps.options("get", "Gateway", url=app.url, headers={"authorization": "Bearer hunter2"})
        except StepFailed as failure:
            return failure.args

    async def break_down(self: OutboundClient, opts: dict[str, Any]) -> object:
        raise LookupError(f"cannot send {opts}")

    monkeypatch.setattr(OutboundClient, "fetch", break_down)
    await engine.sync_app(app.sync_request())
    message, name = output(await run_to_end(engine, "fetching"))
    assert (name, message) == ("RequestFailedError", "the engine could not make the request of step 'get': LookupError")
    assert "the request of step 'get' could not be made" in caplog.text
    assert "hunter2" not in caplog.text


async def test_request_body_is_dropped_when_its_step_ends(engine: SqliteEngine, app: SmallApp) -> None:
    kept_while: list[int] = []

    async def answer(request: web.Request) -> web.Response:
        kept_while.append(len(held(engine)))
        if len(kept_while) == 1:
            assert request.transport is not None
            request.transport.close()
        return web.Response()

    async with serving(answer) as url:

        @app.function("fetching")
        def fetching(steps: Steps) -> object:
            steps.options("get", "Gateway", url=url)
            return len(held(engine))

        await engine.sync_app(app.sync_request())
        assert output(await run_to_end(engine, "fetching")) == 0
    assert kept_while == [1, 1]
