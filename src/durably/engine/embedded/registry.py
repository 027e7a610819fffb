"""The functions that apps have synced, as the engine looks them up: by id, and by the events that trigger them.

Immutable: a sync makes a new one, so that the writer's thread and the event loop may both read it.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence

import msgspec
from yarl import URL

from durably.engine.expressions import Expression, ExpressionInvalidError, compile_expression
from durably.protocol.headers import Query
from durably.protocol.limits import DEFAULT_RETRIES, MAX_RETRIES
from durably.protocol.sync import FunctionConfig

from .arrivals import Arrival

_logger = logging.getLogger("durably.engine")


class Function(msgspec.Struct, frozen=True):
    """``is_active`` is false where its app has not synced it the last time; runs of it go on."""

    id: str
    app_id: str
    is_active: bool
    config: FunctionConfig

    @property
    def max_attempts(self) -> int:
        retries = next(iter(self.config.steps.values())).retries
        attempts = DEFAULT_RETRIES if retries is None or retries.attempts is None else retries.attempts
        return min(max(attempts, 0), MAX_RETRIES) + 1

    def url_of(self, step_id: str) -> URL:
        """Where to call the function: to discover, or for one step."""
        url = URL(next(iter(self.config.steps.values())).runtime.url)
        return url.update_query({Query.FUNCTION_ID: url.query.get(Query.FUNCTION_ID, self.id), Query.STEP_ID: step_id})


class _Triggered(msgspec.Struct, frozen=True):
    function: Function
    expression: Expression | None


_config_decoder = msgspec.json.Decoder(FunctionConfig)


class Registry:
    @classmethod
    def from_rows(cls, rows: Iterable[tuple[str, str, bool, bytes]]) -> "Registry":
        """Of ids, apps, whether active, and configurations as JSON."""
        return cls(Function(id, app, bool(active), _config_decoder.decode(config)) for id, app, active, config in rows)

    def __init__(self, functions: Iterable[Function]) -> None:
        self._functions = {function.id: function for function in functions}
        self._by_pattern: dict[str, list[_Triggered]] = {}
        for function in self._functions.values():
            if function.is_active:
                self._index(function)

    def _index(self, function: Function) -> None:
        for trigger in function.config.triggers:
            if not trigger.event:
                continue
            try:
                expression = compile_expression(trigger.expression) if trigger.expression else None
            except ExpressionInvalidError as error:
                # Checked when it was synced, by an earlier version perhaps: no reason not to start.
                _logger.error("function %s: its trigger %s is left out: %s", function.id, trigger.event, error)
            else:
                self._by_pattern.setdefault(trigger.event, []).append(_Triggered(function, expression))

    def with_app(self, app_id: str, functions: Sequence[Function]) -> "Registry":
        """This registry, after an app has synced: those of its functions that it left out are inactive."""
        synced = {function.id for function in functions}
        others = [function for function in self._functions.values() if function.id not in synced]
        kept = [
            msgspec.structs.replace(function, is_active=False) if function.app_id == app_id else function
            for function in others
        ]
        return Registry([*kept, *functions])

    def find(self, function_id: str) -> Function | None:
        return self._functions.get(function_id)

    def triggered_by(self, event: Arrival) -> list[Function]:
        """The active functions that an event triggers, each once, whichever of its triggers match."""
        found: dict[str, Function] = {}
        for pattern in patterns_of(event.name):
            for triggered in self._by_pattern.get(pattern, ()):
                if triggered.function.id not in found and (
                    triggered.expression is None or triggered.expression.matches(event.fields)
                ):
                    found[triggered.function.id] = triggered.function
        return list(found.values())


def patterns_of(name: str) -> Iterator[str]:
    """The trigger names that match an event's: its own, and ``a/*``, ``a/b.*`` for each of its prefixes that
    ends in a slash or a dot."""
    yield name
    for index, character in enumerate(name):
        if character in "/.":
            yield f"{name[: index + 1]}*"
