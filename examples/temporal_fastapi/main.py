"""Orders over HTTP: endpoints written by hand, and beside them the gateway's, in which orders have owners.

The former are for everybody who knows an order's number, and do not reach orders that are placed at the gateway. The
gateway shows customers their own orders, and staff all.

durably temporal dev main:app
"""

from typing import Annotated, Any

import temporalio.client
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, Field
from users import User, authorize, find_user
from worker import TASK_QUEUE, temporal
from workflows import OrderWorkflow

from durably.temporal.fast_api import add_exception_handlers, router
from durably.temporal.gateway import FOR_OPERATORS, Gateway, expose

app = FastAPI(title="Orders", lifespan=temporal.lifespan)
add_exception_handlers(app)

Client = Annotated[temporalio.client.Client, Depends(temporal.client)]


class OrderRequest(BaseModel):
    order_id: str = Field(pattern=r"^[A-Za-z0-9-]{1,40}$")


class OrderResponse(BaseModel):
    workflow_id: str
    run_id: str | None
    status: str


async def find_order(workflow_id: str, client: Client) -> temporalio.client.WorkflowHandle[Any, Any]:
    """Other workflows of the namespace are none of our visitors' business."""
    if not workflow_id.startswith("order-"):
        raise HTTPException(404, "there is no such order")
    return client.get_workflow_handle(workflow_id)


Order = Annotated[temporalio.client.WorkflowHandle[Any, Any], Depends(find_order)]


@app.post("/orders")
async def create_order(request: OrderRequest, client: Client) -> OrderResponse:
    """Start a new order workflow"""
    handle = await client.start_workflow(
        OrderWorkflow.run,
        request.order_id,
        id=f"order-{request.order_id}",
        task_queue=TASK_QUEUE,
    )
    return OrderResponse(workflow_id=handle.id, run_id=handle.result_run_id, status="started")


@app.get("/orders/{workflow_id}")
async def get_order_status(order: Order) -> OrderResponse:
    """The status of an order's workflow, in the SDK's words: RUNNING, COMPLETED, CANCELED …"""
    description = await order.describe()
    status = description.status.name if description.status else "UNKNOWN"
    return OrderResponse(workflow_id=order.id, run_id=description.run_id, status=status)


@app.post("/orders/{workflow_id}/cancel")
async def cancel_order(order: Order) -> dict[str, str]:
    """Cancel an order workflow"""
    await order.cancel()
    return {"status": "cancelled"}


def current_user(
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))],
) -> User | None:
    return find_user(credentials.credentials) if credentials else None


orders = expose(
    OrderWorkflow,
    name="orders",
    id="{principal}-{order_id}",
    owner=lambda user: user.id,
    staff=lambda user: user.is_staff,
    input=OrderRequest,
    signals="all",
    queries="all",
    operations=FOR_OPERATORS,
)
gateway = Gateway(temporal, [orders], authorize=authorize)
app.include_router(router(gateway, prefix="/api", principal=current_user))
