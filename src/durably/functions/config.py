"""A function's configuration.

It is checked when the function is created, and written for the sync.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import urlencode

from durably.errors import FunctionConfigInvalidError
from durably.protocol.events import InternalEvent
from durably.protocol.headers import DISCOVER, Query
from durably.protocol.limits import MAX_RETRIES, MAX_TRIGGERS
from durably.protocol.options import (
    Checkpointing,
    FunctionOptions,
    Trigger,
    TriggerDeferred,
    TriggerEvent,
    check_checkpointing,
)
from durably.protocol.text import is_name
from durably.values.codecs import Codec, Serializer, Unset
from durably.values.outputs import function_codec

from .middleware import MiddlewareFactory

T = TypeVar("T")

_CHECKPOINTING = Checkpointing()


@dataclasses.dataclass(frozen=True, kw_only=True)
class FunctionOpts:
    """A function's configuration.

    Raises ``FunctionConfigInvalidError`` naming function and option.
    """

    app_id: str
    local_id: str
    name: str
    triggers: tuple[Trigger, ...]
    """As engines know them: ``TriggerDeferred`` is a trigger by an event."""
    retries: int | None = None
    output_type: Any = Unset
    options: FunctionOptions = dataclasses.field(default_factory=FunctionOptions)
    checkpointing: bool | Checkpointing | None = None
    strict_replay: bool | None = None

    def __post_init__(self) -> None:
        triggers = tuple(
            trigger.to_event(self.id) if isinstance(trigger, TriggerDeferred) else trigger for trigger in self.triggers
        )
        object.__setattr__(self, "triggers", triggers)
        if not is_name(self.local_id):
            raise FunctionConfigInvalidError(
                f"fn_id must be a string that names the function, without control characters, not {self.local_id!r}"
            )
        if len(self.triggers) > MAX_TRIGGERS:
            raise self._invalid("trigger", f"takes at most {MAX_TRIGGERS}, not {len(self.triggers)}")
        for trigger in self.triggers:
            if not isinstance(trigger, Trigger):
                raise self._invalid("trigger", f"takes TriggerEvent, TriggerCron and TriggerDeferred, not {trigger!r}")
            if self.triggers.count(trigger) > 1:
                raise self._invalid("trigger", f"has {trigger!r} twice")
        if self.retries is not None and not (
            isinstance(self.retries, int) and not isinstance(self.retries, bool) and 0 <= self.retries <= MAX_RETRIES
        ):
            raise self._invalid("retries", f"must be 0 to {MAX_RETRIES}, not {self.retries!r}")
        self._check_type("name", str)
        self._check_type("strict_replay", bool)
        check_checkpointing(self.checkpointing, f'function "{self.local_id}"')
        if (problem := self.options.find_problem()) is not None:
            raise FunctionConfigInvalidError(f'function "{self.local_id}": {problem}')
        check_config(self.to_wire("http://127.0.0.1"))

    def _check_type(self, option: str, expected: type) -> None:
        value = getattr(self, option)
        if value is not None and not isinstance(value, expected):
            raise self._invalid(option, f"takes {expected.__name__}, not {value!r}")

    def _invalid(self, option: str, problem: str) -> FunctionConfigInvalidError:
        return FunctionConfigInvalidError(f'function "{self.local_id}": {option} {problem}')

    @property
    def id(self) -> str:
        return f"{self.app_id}-{self.local_id}"

    @property
    def can_be_deferred(self) -> bool:
        return TriggerDeferred().to_event(self.id) in self.triggers

    @property
    def failure_id(self) -> str:
        return f"{self.id}-failure"

    def checkpointing_or(self, default: bool) -> Checkpointing | None:
        """The checkpointing of the function; ``None`` if it has none."""
        chosen = default if self.checkpointing is None else self.checkpointing
        return (_CHECKPOINTING if chosen else None) if isinstance(chosen, bool) else chosen

    def to_wire(self, app_url: str) -> dict[str, Any]:
        """The function's entry in the sync payload (spec §4.3.2)."""
        config: dict[str, Any] = {
            "id": self.id,
            "name": self.name,
            "triggers": [trigger.to_wire() for trigger in self.triggers],
            "steps": _steps(app_url, self.id, self.retries),
        }
        checkpointing = self.checkpointing_or(False)
        checkpoint = {} if checkpointing is None else {"checkpoint": checkpointing.to_wire()}
        return config | self.options.options_to_wire() | checkpoint

    def failure_to_wire(self, app_url: str) -> dict[str, Any]:
        """The entry of the failure handler (spec §11).

        The handler is a function that this function's failure triggers.
        """
        trigger = TriggerEvent(
            event=InternalEvent.FUNCTION_FAILED.value, expression=f"event.data.function_id == '{self.id}'"
        )
        return {
            "id": self.failure_id,
            "name": f"{self.name} (failure)",
            "triggers": [trigger.to_wire()],
            "steps": _steps(app_url, self.failure_id, 0),
        }


def _steps(app_url: str, function_id: str, retries: int | None) -> dict[str, Any]:
    url = f"{app_url}?{urlencode({Query.FUNCTION_ID.value: function_id, Query.STEP_ID.value: DISCOVER})}"
    step: dict[str, Any] = {"id": DISCOVER, "name": DISCOVER, "runtime": {"type": "http", "url": url}}
    if retries is not None:
        step["retries"] = {"attempts": retries}
    return {DISCOVER: step}


Check = Callable[[Mapping[str, Any]], str | None]
"""Takes a function's entry in the sync payload. Returns the problem, which names the function."""

_check: Check | None = None

_PLAIN = frozenset(("id", "name", "steps", "triggers"))


def register(check: Check) -> None:
    """Register the installed engine's check of all functions."""
    global _check
    _check = check


def check_config(config: Mapping[str, Any]) -> None:
    """Raises ``FunctionConfigInvalidError``."""
    needs_engine = not _PLAIN.issuperset(config) or any(
        "cron" in trigger or "expression" in trigger for trigger in config["triggers"]
    )
    if needs_engine and _check is not None and (problem := _check(config)) is not None:
        raise FunctionConfigInvalidError(problem)


class FunctionDefinition(Generic[T]):
    """A function's configuration and handler.

    Steps need this part to invoke the function. ``T`` is its output.
    """

    is_durable_function = True

    def __init__(
        self, opts: FunctionOpts, handler: Callable[..., Any], middleware: Sequence[MiddlewareFactory] = ()
    ) -> None:
        self.opts = opts
        self.middleware = middleware
        self._handler = handler
        self.__doc__ = handler.__doc__

    if not TYPE_CHECKING:  # type checkers refuse the call anyway

        def __call__(self, *args, **kwargs):
            raise FunctionConfigInvalidError(
                f'function "{self.id}" cannot be called: start it with its start(data), send an event that triggers '
                "it, invoke it from another function with ctx.step.invoke, or put the shared code into an ordinary "
                "function"
            )

    @property
    def handler(self) -> Callable[..., Any]:
        """The user's code."""
        return self._handler

    @property
    def id(self) -> str:
        """The id under which engines know the function: ``<app>-<fn_id>``."""
        return self.opts.id

    def get_id(self) -> str:
        """The same as ``id``, under the name that users of the ``inngest`` package know."""
        return self.id

    @property
    def local_id(self) -> str:
        return self.opts.local_id

    @property
    def name(self) -> str:
        return self.opts.name

    def output_codec(self, serializer: Serializer | None) -> Codec | None:
        """The output's codec, from ``output_type`` or the handler's annotation."""
        return function_codec(f'function "{self.id}"', self._handler, self.opts.output_type, serializer)
