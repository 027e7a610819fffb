"""Orders over HTTP: views written by hand, and beside them the gateway's endpoints, in which orders have owners.

The former are for everybody who knows an order's number, and do not reach orders that are placed at the gateway. The
gateway shows customers their own orders, and staff all.

durably temporal dev app:app
"""

import re
from typing import Any

import flask
from activities import process_order
from users import User, authorize, find_user
from workflows import OrderWorkflow

from durably.temporal import Temporal
from durably.temporal.flask import blueprint, init_app
from durably.temporal.gateway import FOR_OPERATORS, Gateway, expose

app = flask.Flask(__name__)
temporal = Temporal(task_queue="order-queue")
temporal.add_worker(workflows=[OrderWorkflow], activities=[process_order])
init_app(app, temporal)


@app.post("/orders")
def create_order() -> dict[str, Any]:
    """Start order workflow"""
    data = flask.request.get_json()
    order_id = data.get("order_id") if isinstance(data, dict) else None
    if not isinstance(order_id, str) or not re.fullmatch(r"[A-Za-z0-9-]{1,40}", order_id):
        flask.abort(400, "order_id is 1 to 40 letters, digits and dashes")
    handle = temporal.sync.start_workflow(
        OrderWorkflow.run, order_id, id=f"order-{order_id}", task_queue=temporal.task_queue
    )
    return {"workflow_id": handle.id, "status": "started"}


@app.get("/orders/<workflow_id>")
def get_order(workflow_id: str) -> dict[str, Any]:
    """Get workflow status, in the SDK's words: RUNNING, COMPLETED …"""
    if not workflow_id.startswith("order-"):  # Other workflows of the namespace are none of our visitors' business.
        flask.abort(404, "there is no such order")
    description = temporal.sync.get_workflow_handle(workflow_id).describe()
    return {"workflow_id": workflow_id, "status": description.status.name if description.status else "UNKNOWN"}


def current_user() -> User | None:
    authorization = flask.request.authorization
    if authorization is None or authorization.type != "bearer":
        return None
    return find_user(authorization.token or "")


orders = expose(
    OrderWorkflow,
    name="orders",
    id="{principal}-{order_id}",
    owner=lambda user: user.id,
    staff=lambda user: user.is_staff,
    operations=FOR_OPERATORS,
)
gateway = Gateway(temporal, [orders], authorize=authorize)
app.register_blueprint(blueprint(gateway, url_prefix="/api", principal=current_user))
