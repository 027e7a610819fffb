"""Events on the engine on Temporal: what they start, once."""

from collections.abc import AsyncIterator

import pytest

from durably.engine.temporal.ids import event_workflow_id

from ...temporal.dev_server import DevServer
from ..small_app import Steps
from .routed_app import RoutedApp, data_of, routed_app


@pytest.fixture
async def app(server: DevServer) -> AsyncIterator[RoutedApp]:
    async with routed_app(server.address) as app:
        yield app


async def test_one_event_starts_each_function_that_it_triggers(app: RoutedApp) -> None:
    @app.function("one", triggers=[{"event": app.event("go"), "expression": "event.data.n > 1"}])
    def one(steps: Steps) -> object:
        return data_of(steps)["n"]

    @app.function("all", triggers=[{"event": f"{app.app_id}/*"}, {"event": app.event("go")}])
    def all_(steps: Steps) -> object:
        return "all"

    await app.sync()
    both = await app.send("go", n=2)
    assert await app.result(app.run_id(both, "one")) == 2
    assert await app.result(app.run_id(both, "all")) == "all"
    fan_out = app.client.get_workflow_handle(event_workflow_id(both.ids[0]))
    await fan_out.result()

    single = await app.send("go", n=1)
    assert await app.result(app.run_id(single, "all")) == "all"
    assert await app.engine.get_run(app.run_id(single, "one")) is None
    with pytest.raises(Exception, match="not found"):
        await app.client.get_workflow_handle(event_workflow_id(single.ids[0])).describe()
