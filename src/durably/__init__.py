"""Durably: durable execution for Python web apps."""

from durably.client import Client
from durably.context import Context, ContextSync, Step, StepSync
from durably.embedded import Embedded
from durably.embedded.config_check import check_config
from durably.engines import InngestCloud
from durably.errors import EngineNotConfiguredError, NonRetriableError, RetryAfterError, StepError
from durably.events import Event, EventType
from durably.execution import StepMemos
from durably.functions import Function
from durably.groups import Group, GroupSync
from durably.middleware import Middleware, MiddlewareSync, SendEventsResult, TransformOutputResult, TransformStepInput
from durably.option_checks import register
from durably.options import (
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
from durably.protocol.opcodes import ParallelMode
from durably.serializers import PydanticSerializer, Serializer
from durably.settings import Streaming
from durably.steps import FetchResponse, Signal

register(check_config)

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
    "Embedded",
    "EngineNotConfiguredError",
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
