"""Mocks of steps.

They replace a step's own handler, or the request of the step to the engine. A mocked step of any kind becomes a
``step.run`` with the mock as its handler. It is memoised, retried and shown like any other step, and the function gets
the mock's result in the form of the real one.
"""

from collections.abc import Callable, Collection
from typing import Any

import msgspec

from durably.execution import ReplaceStep, StepRequest
from durably.protocol.opcodes import Opcode

Handler = Callable[..., Any]


class _Rule(msgspec.Struct, frozen=True):
    """A mock, for ``function_id`` and ``attempts``; ``None`` means any.

    ``make`` returns the handler for a step.
    """

    step_id: str
    function_id: str | None
    attempts: frozenset[int] | None
    make: Callable[[StepRequest], Handler]

    def applies(self, function_id: str, step_id: str, attempt: int) -> bool:
        return (
            self.step_id == step_id
            and self.function_id in (None, function_id)
            and (self.attempts is None or attempt in self.attempts)
        )


class Mocks:
    """The mocks and failures of steps that a test has set.

    The latest rule of a kind wins. A failure wins over a mock, so that one step may have both.
    """

    def __init__(self) -> None:
        self._mocked: list[_Rule] = []
        self._failing: list[_Rule] = []
        self._applied: set[int] = set()  # Rules by identity; no rule is removed.

    def mock(self, step_id: str, function_id: str | None, make: Callable[[StepRequest], Handler]) -> None:
        self._mocked.insert(0, _Rule(step_id, function_id, None, make))

    def fail(
        self, step_id: str, function_id: str | None, attempts: Collection[int] | None, error: BaseException
    ) -> None:
        chosen = None if attempts is None else frozenset(attempts)
        self._failing.insert(0, _Rule(step_id, function_id, chosen, raising(error)))

    def unmet(self) -> list[str]:
        """Calls of ``mock_step`` and ``fail_step`` that no step has used so far.

        Their ids are probably mistyped.
        """
        kinds = (("mock_step", self._mocked), ("fail_step", self._failing))
        return [
            f"{method}({rule.step_id!r})"
            for method, rules in kinds
            for rule in reversed(rules)
            if id(rule) not in self._applied
        ]

    def replace_step(self, function_id: str) -> ReplaceStep | None:
        """The replacement of a function's steps; ``None`` without mocks."""
        if not self._mocked and not self._failing:
            return None

        def replaced(request: StepRequest, attempt: int) -> StepRequest:
            for rule in (*self._failing, *self._mocked):
                if rule.applies(function_id, request.step_id, attempt):
                    self._applied.add(id(rule))
                    return _replace(request, rule.make(request))
            return request

        return replaced


def returning(value: Any) -> Callable[[StepRequest], Handler]:
    def handler(*args: Any, **kwargs: Any) -> Any:
        return value

    return lambda request: handler


def raising(error: BaseException) -> Callable[[StepRequest], Handler]:
    def handler(*args: Any, **kwargs: Any) -> Any:
        raise error.with_traceback(None)

    return lambda request: handler


def calling(function: Handler) -> Callable[[StepRequest], Handler]:
    """A function that creates handlers which call ``function``.

    ``function`` gets the handler's arguments, or the options of a step without a handler as one dictionary.
    """
    return lambda request: function if request.is_run else lambda: function(dict(request.opts or {}))


def _replace(request: StepRequest, handler: Handler) -> StepRequest:
    if request.is_run:
        return msgspec.structs.replace(request, handler=handler)
    encode = request.encode or _to_json
    return StepRequest(request.step_id, Opcode.STEP_RUN, handler=handler, encode=encode, decode=request.decode)


def _to_json(value: Any) -> Any:
    """The engine's answer: the data of an event, another struct, or a pydantic model."""
    if isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value)
    dump = getattr(value, "model_dump", None)
    return value if dump is None else dump(mode="json")
