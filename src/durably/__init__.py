"""Durably: durable execution for Python web apps."""

from importlib import import_module
from typing import TYPE_CHECKING

from durably.functions.config import register
from durably.functions.function import Function
from durably.functions.middleware import SendEventsResult, TransformOutputResult, TransformStepInput
from durably.functions.publishing import publish
from durably.protocol.events import RunStatus
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
    TriggerDeferred,
    TriggerEvent,
)

from . import ai as ai
from .client import Client
from .context import Context, ContextSync, Group, GroupSync
from .embedded import check_config
from .engines import EngineHandle, InngestCloud, register_temporal
from .errors import EngineNotConfiguredError, NonRetriableError, RetryAfterError, StepError
from .events import Event, EventType
from .execution import StepMemos
from .middleware import Middleware, MiddlewareSync
from .questions import Question, QuestionSync
from .runs import RunHandle
from .settings import Streaming
from .steps import FetchResponse, Signal, Step, StepSync
from .values.codecs import PydanticSerializer, Serializer

if TYPE_CHECKING:
    from .connection import WorkerConnection, connect
    from .embedded.embedded import Embedded
    from .embedded.temporal_engine import TemporalEngine
    from .engine.model.questions import OpenQuestion
    from .engine.model.runs import Run
    from .engine.model.settings import Durability, EngineSettings

register(check_config)


def _engine_on_temporal(url: str, setting: str) -> EngineHandle:
    from .embedded.temporal_engine import engine_at

    return engine_at(url, setting)


register_temporal(_engine_on_temporal)

Inngest = Client
JSON = bool | int | float | str | dict[str, object] | list[object] | None

__all__ = [
    "JSON",
    "Batch",
    "Cancel",
    "Checkpointing",
    "Client",
    "Concurrency",
    "Context",
    "ContextSync",
    "Debounce",
    "Durability",
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
    "OpenQuestion",
    "ParallelMode",
    "Priority",
    "PydanticSerializer",
    "Question",
    "QuestionSync",
    "RateLimit",
    "RetryAfterError",
    "Run",
    "RunHandle",
    "RunStatus",
    "SendEventsResult",
    "Serializer",
    "Signal",
    "Singleton",
    "Step",
    "StepError",
    "StepMemos",
    "StepSync",
    "Streaming",
    "TemporalEngine",
    "Throttle",
    "Timeouts",
    "TransformOutputResult",
    "TransformStepInput",
    "TriggerCron",
    "TriggerDeferred",
    "TriggerEvent",
    "WorkerConnection",
    "connect",
    "publish",
]


_IMPORTED_AT_FIRST_USE = {
    "Durability": "durably.engine.model.settings",
    "Embedded": "durably.embedded.embedded",
    "EngineSettings": "durably.engine.model.settings",
    "OpenQuestion": "durably.engine.model.questions",
    "Run": "durably.engine.model.runs",
    "TemporalEngine": "durably.embedded.temporal_engine",
    "WorkerConnection": "durably.connection",
    "connect": "durably.connection",
}


def __getattr__(name: str) -> object:
    """Import a name that needs an engine, or aiohttp, at its first use.

    Importing ``durably`` imports no engine.
    """
    module = _IMPORTED_AT_FIRST_USE.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(module), name)
    return found
