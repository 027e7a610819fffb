"""Orders over HTTP: views written by hand, and the gateway's endpoints for the shop's staff beside them.

durably temporal dev app:app
"""

import os
import re
import secrets
from typing import Any

import flask
from activities import process_order
from workflows import OrderWorkflow

from durably.temporal import Temporal
from durably.temporal.flask import blueprint, init_app
from durably.temporal.gateway import FOR_OPERATORS, Action, Gateway, Unauthenticated, expose

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
    handle = temporal.sync.start_workflow(OrderWorkflow.run, order_id, id=f"order-{order_id}")
    return {"workflow_id": handle.id, "status": "started"}


@app.get("/orders/<workflow_id>")
def get_order(workflow_id: str) -> dict[str, Any]:
    """Get workflow status, in the SDK's words: RUNNING, COMPLETED …"""
    if not workflow_id.startswith("order-"):  # Other workflows of the namespace are none of our visitors' business.
        flask.abort(404, "there is no such order")
    description = temporal.sync.get_workflow_handle(workflow_id).describe()
    return {"workflow_id": workflow_id, "status": description.status.name if description.status else "UNKNOWN"}


def bearer() -> str:
    authorization = flask.request.authorization
    return (authorization.token or "") if authorization and authorization.type == "bearer" else ""


def is_staff(action: Action) -> bool:
    """Without STAFF_TOKEN nobody is."""
    token = os.environ.get("STAFF_TOKEN", "")
    if not token or not secrets.compare_digest(action.principal.encode(), token.encode()):
        raise Unauthenticated
    return True


gateway = Gateway(
    temporal,
    [expose(OrderWorkflow, name="orders", id="order-{order_id}", operations=FOR_OPERATORS)],
    authorize=is_staff,
)
app.register_blueprint(blueprint(gateway, url_prefix="/api", principal=bearer))
