"""The flow control of one function, read from its configuration; what cannot work together is refused."""

import msgspec

from durably.engine.core.expressions import Expression, Kind
from durably.protocol.sync import FunctionConfig

from .cancellation import CancelRule, Timeouts, read_cancels, read_timeouts
from .concurrency import ConcurrencyLimit, read_concurrency
from .cron import Schedule, read_schedules
from .held_events import Batch, Debounce, read_batch, read_debounce
from .option_values import OptionReader
from .rates import RateLimit, Throttle, read_rate_limit, read_throttle
from .single_runs import Idempotency, Singleton, read_idempotency, read_singleton

_NOT_WITH_BATCHES = {
    "debounce": "a debounce keeps one event of many, a batch all of them",
    "singleton": "a batch has no single event by which to tell whose run it is",
    "cancel": "a batch has no single event to compare the cancelling one with",
    "priority": "a batch has no single event to take the priority from",
    "rate_limit": "events are dropped one by one, before they make a batch",
    "idempotency": "events are dropped one by one, before they make a batch",
}
"""The options that batches exclude, as on the public server, and why."""


class Flow(msgspec.Struct, frozen=True, kw_only=True):
    """What each option came to; ``None`` or empty where it is not used."""

    function_id: str
    rate_limit: RateLimit | None = None
    idempotency: Idempotency | None = None
    debounce: Debounce | None = None
    batch: Batch | None = None
    singleton: Singleton | None = None
    priority: Expression | None = None
    throttle: Throttle | None = None
    concurrency: tuple[ConcurrencyLimit, ...] = ()
    cancels: tuple[CancelRule, ...] = ()
    timeouts: Timeouts = Timeouts()
    schedules: tuple[Schedule, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether every event starts a run at once, whose calls are made as they come."""
        return self == Flow(function_id=self.function_id, schedules=self.schedules)

    def limit(self, name: str) -> int | None:
        """The concurrency limit of this name; ``None`` where the function has it no more."""
        return next((limit.limit for limit in self.concurrency if limit.name == name), None)


def read_flow(config: FunctionConfig) -> Flow:
    """Raises ``ConfigInvalidError``, which names the function and the option."""
    reader = OptionReader(config.id)
    flow = Flow(
        function_id=config.id,
        rate_limit=read_rate_limit(config.rate_limit, reader),
        idempotency=read_idempotency(config.idempotency, reader),
        debounce=read_debounce(config.debounce, reader),
        batch=read_batch(config.batch_events, reader),
        singleton=read_singleton(config.singleton, reader),
        priority=reader.expression("priority.run", config.priority.run if config.priority else None, gives=Kind.NUMBER),
        throttle=read_throttle(config.throttle, reader),
        concurrency=read_concurrency(config.concurrency, reader),
        cancels=read_cancels(config.cancel, reader),
        timeouts=read_timeouts(config.timeouts, reader),
        schedules=read_schedules(config.triggers, reader),
    )
    if flow.batch is not None:
        _check_batch_alone(flow, reader)
    return flow


def _check_batch_alone(flow: Flow, reader: OptionReader) -> None:
    used = {
        "debounce": flow.debounce,
        "singleton": flow.singleton,
        "cancel": flow.cancels or None,
        "priority": flow.priority,
        "rate_limit": flow.rate_limit,
        "idempotency": flow.idempotency,
    }
    for option, reason in _NOT_WITH_BATCHES.items():
        if used[option] is not None:
            raise reader.refuse("batch_events", f"and {option} cannot be used together: {reason}")
