"""Activities of another connection."""

from django.contrib.auth.models import User
from temporalio import activity

TEMPORAL_CONNECTION = "billing"


@activity.defn
def send_invoice(customer: str) -> str:
    return f"invoice to {customer} in {activity.info().workflow_namespace}, of {User.objects.count()} users"
