"""Activities: the effects of workflows outside. They use the ORM.

An activity may be retried after a failure at any point, so each checks the work of earlier attempts first.
"""

from datetime import timedelta

from django.contrib.auth.models import User
from django.core.mail import send_mail
from django.db import transaction
from django.utils import timezone
from temporalio import activity

from .models import Order


@activity.defn
def send_welcome_email(user_id: int) -> str:
    user = User.objects.get(id=user_id)
    send_mail("Welcome!", f"Hello {user.username}", "from@example.com", [user.email])
    return f"Email sent to {user.email}"


@activity.defn
def process_order(order_id: str) -> str:
    with transaction.atomic():  # All of it or nothing, should this process end in the middle.
        order = Order.objects.select_for_update().get(order_id=order_id)
        if order.status == Order.Status.PLACED:
            order.status = Order.Status.PROCESSED
            order.save()
    return f"Processed order {order_id}"


@activity.defn
def restock(order_id: str) -> None:
    Order.objects.filter(order_id=order_id).update(status=Order.Status.CANCELLED)


@activity.defn
async def find_forgotten_orders() -> list[str]:
    """Orders that were stored at least a minute ago, and that no workflow has processed yet."""
    a_minute_ago = timezone.now() - timedelta(minutes=1)
    forgotten = Order.objects.filter(status=Order.Status.PLACED, placed_at__lt=a_minute_ago)
    return [order.order_id async for order in forgotten[:100]]
