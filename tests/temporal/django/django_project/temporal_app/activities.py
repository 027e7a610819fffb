"""Activities that use the ORM in all possible ways."""

import threading
import time

from django.contrib.auth.models import User
from django.core.mail import send_mail
from django.db import connection, connections, transaction
from temporalio import activity
from temporalio.exceptions import ApplicationError

from .models import Visit


@activity.defn
def send_welcome_email(user_id: int) -> str:
    """As in the seed."""
    user = User.objects.get(id=user_id)
    send_mail("Welcome!", f"Hello {user.username}", "from@example.com", [user.email])
    return f"Email sent to {user.email}"


@activity.defn
async def count_users() -> int:
    return await User.objects.acount()


@activity.defn
def state_of_connection() -> list[object]:
    """Whether this thread had a connection at its start, and whether it is open now, after a query."""
    before = connections["default"].connection is not None
    Visit.objects.count()
    return [before, connection.connection is not None, threading.current_thread().name]


@activity.defn
def age_connection() -> None:
    """Leaves a connection that is older than the settings allow."""
    Visit.objects.count()
    connection.close_at = time.monotonic() - 1


@activity.defn
def visit_twice(note: str) -> str:
    """The first attempt fails between two writes of one transaction."""
    with transaction.atomic():
        Visit.objects.create(note=note)
        if activity.info().attempt == 1:
            raise ApplicationError("between the two")
        Visit.objects.create(note=note)
    return f"{Visit.objects.filter(note=note).count()} visits"


@activity.defn
def visit_without_transaction(note: str) -> str:
    """The first attempt fails after a write, which stays."""
    Visit.objects.create(note=note)
    if activity.info().attempt == 1:
        raise ApplicationError("after the write")
    return f"{Visit.objects.filter(note=note).count()} visits"


@activity.defn
def visit_or_be_killed(note: str) -> list[object]:
    """The first attempt stays in its transaction forever."""
    attempt = activity.info().attempt
    with transaction.atomic():
        Visit.objects.create(note=note)
        if attempt == 1:
            print(f"visiting {note}", flush=True)
        while attempt == 1:
            activity.heartbeat()
            time.sleep(0.05)
    return [f"{Visit.objects.filter(note=note).count()} visits", attempt]


@activity.defn
def visit_until_cancelled(note: str) -> None:
    with transaction.atomic():
        Visit.objects.create(note=note)
        print(f"visiting {note}", flush=True)
        while True:
            activity.heartbeat()
            time.sleep(0.05)
