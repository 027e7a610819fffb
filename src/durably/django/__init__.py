"""Django: ``serve`` and other parts of ``urls.py``; ``send`` and ``transaction`` for the project's databases.

``INSTALLED_APPS += ["durably.django"]`` finds the functions in each app's ``durable.py``. It also starts an engine in
the project's processes with the server, and sends the events that ``send`` writes.
"""

from typing import Any

from .adapter import endpoint, serve, webhook
from .dashboard_urls import dashboard
from .outbox import send, transaction
from .streams_urls import streams

__all__ = ["dashboard", "endpoint", "send", "serve", "streams", "transaction", "webhook"]


def __getattr__(name: str) -> Any:
    """``TaskBackend``, which needs Django 6 or the package ``django-tasks``, and the project's settings."""
    if name != "TaskBackend":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from django.apps import apps
    from django.core.exceptions import ImproperlyConfigured

    if not apps.is_installed("durably.django"):
        raise ImproperlyConfigured('TASKS with durably.django.TaskBackend needs INSTALLED_APPS += ["durably.django"]')
    from .tasks import TaskBackend

    return TaskBackend
