"""Django: ``serve`` and ``dashboard`` for ``urls.py``, ``send`` and ``transaction`` for its databases, and an app.

``INSTALLED_APPS += ["durably.django"]`` finds the functions in each app's ``durable.py``. It also starts an engine in
the project's processes with the server, and sends the events that ``send`` writes.
"""

from .adapter import serve
from .dashboard_urls import dashboard
from .outbox import send, transaction

__all__ = ["dashboard", "send", "serve", "transaction"]
