"""The shop's endpoints, written by hand: synchronous views that write, asynchronous ones that only ask Temporal.

They are for everybody. There is no session that a forged request could use, so none checks for that.
"""

import json
from typing import Any

from django import forms
from django.contrib.auth.models import User
from django.db import transaction
from django.http import Http404, HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_POST
from temporalio.client import WorkflowHandle
from temporalio.common import WorkflowIDReusePolicy

from durably.temporal.django import start_on_commit, temporal

from .models import Order
from .workflows import OrderWorkflow, UserSignupWorkflow


class SignupForm(forms.ModelForm):
    class Meta:
        model = User
        fields = ("username", "email")


class OrderForm(forms.Form):
    order_id = forms.SlugField(max_length=40)


def parse(request: HttpRequest) -> dict[str, Any]:
    """The object that a request's body is; empty where it is none, which forms refuse."""
    try:
        data = json.loads(request.body)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


@csrf_exempt
@require_POST
def sign_up(request: HttpRequest) -> JsonResponse:
    """The mail is sent if, and as soon as, the user is stored."""
    form = SignupForm(parse(request))
    if not form.is_valid():
        return JsonResponse({"errors": form.errors}, status=400)
    with transaction.atomic():
        user = form.save()
        workflow_id = f"signup-{user.id}"
        start_on_commit(UserSignupWorkflow.run, user.id, id=workflow_id, task_queue=temporal.task_queue)
    return JsonResponse({"status": "started", "workflow_id": workflow_id})


@csrf_exempt
@require_POST
def create_order(request: HttpRequest) -> JsonResponse:
    """Answers 409 if the order exists, and 503 while the server is away. The order is then stored, and started by the
    next request for it, or by ``ForgottenOrdersWorkflow``."""
    form = OrderForm(parse(request))
    if not form.is_valid():
        return JsonResponse({"errors": form.errors}, status=400)
    with transaction.atomic():
        order, _ = Order.objects.get_or_create(order_id=form.cleaned_data["order_id"])
        start_on_commit(
            OrderWorkflow.run,
            order.order_id,
            id=order.workflow_id,
            id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
            task_queue=temporal.task_queue,
        )
    return JsonResponse({"workflow_id": order.workflow_id, "status": "started"})


@require_GET
async def get_order_status(request: HttpRequest, workflow_id: str) -> JsonResponse:
    """The status of an order's workflow, in the SDK's words: RUNNING, COMPLETED, CANCELED …"""
    description = await (await find_order(workflow_id)).describe()
    status = description.status.name if description.status else "UNKNOWN"
    return JsonResponse({"workflow_id": workflow_id, "run_id": description.run_id, "status": status})


@csrf_exempt
@require_POST
async def cancel_order(request: HttpRequest, workflow_id: str) -> JsonResponse:
    await (await find_order(workflow_id)).cancel()
    return JsonResponse({"status": "cancelled"})


async def find_order(workflow_id: str) -> WorkflowHandle[Any, Any]:
    """Other workflows of the namespace are none of our visitors' business."""
    if not workflow_id.startswith("order-"):
        raise Http404("there is no such order")
    client = await temporal.client()
    return client.get_workflow_handle(workflow_id)
