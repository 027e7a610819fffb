"""The number of our functions that a start over HTTP passes, in a FastAPI app in front of a real server."""

import fastapi
import httpx

from durably.temporal import Temporal
from durably.temporal.fast_api import router
from durably.temporal.gateway import Action, Gateway, expose

from ...paths import CallPath, Tracer
from ..dev_server import DevServer
from ..workflows import TASK_QUEUE, SumWorkflow

_MAX_FUNCTIONS = 32
_MAX_MODULES = 10


async def test_a_start_passes_few_functions(server: DevServer) -> None:
    # The shared connection has one more function once another test has used an idempotency key.
    temporal = Temporal(server.address, task_queue=TASK_QUEUE)

    async def authorize(action: Action) -> bool:
        return action.principal == "ada"

    app = fastapi.FastAPI()
    gateway = Gateway(temporal, [expose(SumWorkflow, name="sums")], authorize=authorize)
    app.include_router(router(gateway, prefix="/api", principal=lambda: "ada"))
    paths: list[CallPath] = []
    with Tracer() as tracer:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            for _ in range(3):
                tracer.start()
                started = await client.post("/api/sums", json={"pair": {"left": 1}})
                paths.append(tracer.stop())
                assert started.status_code == 202, started.text
    shortest = min(paths, key=lambda path: len(path.calls))
    assert len(shortest.calls) <= _MAX_FUNCTIONS, str(shortest)
    assert len(shortest.modules) <= _MAX_MODULES, str(shortest)
