"""Temporal workflows from web apps: the connection, the HTTP gateway, encryption.

``durably.temporal.fast_api``, ``.flask``, ``.django`` and ``.tornado`` mount the gateway in a framework.
"""

try:
    import temporalio
except ImportError as error:
    raise ImportError('durably.temporal needs temporalio: pip install "durably[temporal]"') from error

from durably.temporal.client.connection import Health, Temporal
from durably.temporal.client.interceptors import ActivityContext
from durably.temporal.client.sync import SyncClient, SyncWorkflowHandle
from durably.temporal.namespace import DURABLY_OWNER, owned_by

from .errors import (
    SearchAttributeError,
    TemporalCredentialsError,
    TemporalSettingsError,
    TemporalUnreachableError,
    TemporalVersionError,
    TemporalWorkerError,
    UnknownPrincipalError,
)
from .settings import ConnectionSettings
from .worker.workers import Workers

__all__ = [
    "DURABLY_OWNER",
    "ActivityContext",
    "ConnectionSettings",
    "Health",
    "SearchAttributeError",
    "SyncClient",
    "SyncWorkflowHandle",
    "Temporal",
    "TemporalCredentialsError",
    "TemporalSettingsError",
    "TemporalUnreachableError",
    "TemporalVersionError",
    "TemporalWorkerError",
    "UnknownPrincipalError",
    "Workers",
    "owned_by",
]

del temporalio
