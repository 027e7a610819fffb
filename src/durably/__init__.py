"""Durably: durable execution for Python web apps."""

from typing import TYPE_CHECKING

from durably.functions.config import register
from durably.functions.function import Function
from durably.functions.middleware import SendEventsResult, TransformOutputResult, TransformStepInput
from durably.in_process import check_config
from durably.protocol.opcodes import ParallelMode
from durably.protocol.options import (
    Batch,
    Cancel,
    Checkpointing,
    Concurrency,
    Debounce,
    Priority,
    RateLimit,
    Singleton,
    Throttle,
    Timeouts,
    TriggerCron,
    TriggerEvent,
)

from .client import Client
from .context import Context, ContextSync, Group, GroupSync
from .engines import InngestCloud
from .errors import EngineNotConfiguredError, NonRetriableError, RetryAfterError, StepError
from .events import Event, EventType
from .execution import StepMemos
from .middleware import Middleware, MiddlewareSync
from .serializers import PydanticSerializer, Serializer
from .settings import Streaming
from .steps import FetchResponse, Signal, Step, StepSync

if TYPE_CHECKING:
    from durably.engine.alerts.settings import Alerts
    from durably.engine.settings import EngineSettings

    from .in_process.embedded import Embedded

register(check_config)

Inngest = Client
JSON = bool | int | float | str | dict[str, object] | list[object] | None

__all__ = [
    "JSON",
    "Alerts",
    "Batch",
    "Cancel",
    "Checkpointing",
    "Client",
    "Concurrency",
    "Context",
    "ContextSync",
    "Debounce",
    "Embedded",
    "EngineNotConfiguredError",
    "EngineSettings",
    "Event",
    "EventType",
    "FetchResponse",
    "Function",
    "Group",
    "GroupSync",
    "Inngest",
    "InngestCloud",
    "Middleware",
    "MiddlewareSync",
    "NonRetriableError",
    "ParallelMode",
    "Priority",
    "PydanticSerializer",
    "RateLimit",
    "RetryAfterError",
    "SendEventsResult",
    "Serializer",
    "Signal",
    "Singleton",
    "Step",
    "StepError",
    "StepMemos",
    "StepSync",
    "Streaming",
    "Throttle",
    "Timeouts",
    "TransformOutputResult",
    "TransformStepInput",
    "TriggerCron",
    "TriggerEvent",
]


def __getattr__(name: str) -> object:
    """Import ``Embedded``, ``EngineSettings`` and ``Alerts`` at their first use.

    Importing ``durably`` imports no engine.
    """
    if name not in ("Alerts", "Embedded", "EngineSettings"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from durably.engine.alerts.settings import Alerts
    from durably.engine.settings import EngineSettings
    from durably.in_process.embedded import Embedded

    globals().update(Alerts=Alerts, Embedded=Embedded, EngineSettings=EngineSettings)
    return globals()[name]
