"""Django: ``serve`` and ``dashboard`` for ``urls.py``, and an app.

``INSTALLED_APPS += ["durably.django"]`` finds the functions in each app's ``durable.py``. It also starts an engine in
the project's processes with the server.
"""

from .adapter import serve
from .dashboard_urls import dashboard

__all__ = ["dashboard", "serve"]
