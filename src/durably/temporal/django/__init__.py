"""Temporal in a Django project.

It has the connection of the project's settings, the gateway, transactions, permissions and errors.

``temporal`` is the project's connection, made from its settings at its first use. ``connections`` has all connections
by name.
"""

try:
    import django
except ImportError as error:
    raise ImportError('durably.temporal.django needs Django: pip install "durably[django,temporal]"') from error

from .conf import connections, start_on_commit, temporal
from .views import TemporalErrorMiddleware, request_log_middleware, require_permissions, urls

__all__ = [
    "TemporalErrorMiddleware",
    "connections",
    "request_log_middleware",
    "require_permissions",
    "start_on_commit",
    "temporal",
    "urls",
]

del django
