"""The number of requests to the server for one request of a client."""

import uuid
from typing import Any

import pytest
from temporalio.client import Interceptor, OutboundInterceptor

from durably.temporal import Temporal
from durably.temporal.gateway import Gateway, expose

from ..gateway_requests import get
from ..workflows import SleepingWorkflow

pytestmark = pytest.mark.usefixtures("worker")


class Descriptions(Interceptor):
    """Counts descriptions of a workflow."""

    def __init__(self) -> None:
        self.asked = 0

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
        counter = self

        class Counting(OutboundInterceptor):
            async def describe_workflow(self, input: Any) -> Any:
                counter.asked += 1
                return await super().describe_workflow(input)

        return Counting(next)


@pytest.mark.parametrize("path", ["", "/result"])
async def test_the_owner_costs_no_second_description(temporal: Temporal, path: str) -> None:
    counter = Descriptions()
    own = Temporal(temporal.settings.address, task_queue=temporal.settings.task_queue, interceptors=[counter])
    gateway = Gateway(own, [expose(SleepingWorkflow, name="sleeping")], allow_anonymous=True)
    workflow_id = f"sleeping-{uuid.uuid4()}"
    client = await own.client()
    await client.start_workflow(SleepingWorkflow.run, id=workflow_id, task_queue="unpolled")
    assert (await gateway.handle(get(f"sleeping/{workflow_id}{path}", mount="/api"))).status_code in (200, 202)
    assert counter.asked == 1
