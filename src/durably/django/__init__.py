"""Django: ``serve`` for ``urls.py``, and an app for ``INSTALLED_APPS``.

``INSTALLED_APPS += ["durably.django"]`` finds the functions in each app's ``durable.py``, and starts an engine in the
app's own processes with the server.
"""

from .adapter import serve

__all__ = ["serve"]
