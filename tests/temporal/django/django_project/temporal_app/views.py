"""The seed's view, with what the library has for it."""

from django.contrib.auth.models import User
from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from durably.temporal.django import start_on_commit, temporal

from .workflows import UserSignupWorkflow


@csrf_exempt
@require_POST
@transaction.atomic
def sign_up(request: HttpRequest) -> JsonResponse:
    user = User.objects.create_user(request.POST["name"], f"{request.POST['name']}@example.com")
    workflow_id = f"signup-{user.id}"
    start_on_commit(UserSignupWorkflow.run, user.id, id=workflow_id, task_queue=temporal.task_queue)
    return JsonResponse({"status": "started", "workflow_id": workflow_id})
