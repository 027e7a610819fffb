"""Functions that a call defers: ops that accompany the next answer or checkpoint.

They have no memo. A replay makes them again, and leaves out those that the engine has.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from durably.errors import CallStaleError, FunctionConfigInvalidError, OutputUnserializableError
from durably.events import as_data
from durably.execution import FoundSteps, Outcome, Returned, StepReport, StepRequest, in_step, nested
from durably.protocol.call import DeferredState
from durably.protocol.errors import ErrorCode, is_retriable
from durably.protocol.events import inherit_sessions
from durably.protocol.opcodes import FUNCTION_END_ID, Op, Opcode, Userland, hash_step_id
from durably.values.json_values import encode_checked
from durably.values.outputs import to_end_op

from .config import FunctionDefinition
from .middleware import MiddlewareStack


class CallDefers:
    """The functions that one call defers.

    ``known`` are those that the engine had before the call, and ``sessions`` those that the run passes on.
    """

    def __init__(self, known: Mapping[str, DeferredState], sessions: Mapping[str, str]) -> None:
        self.sessions = sessions
        self._known = known
        self._repeats: dict[str, int] = {}
        self._new: list[StepReport] = []
        self._ops: dict[str, Op] = {}

    def add(self, step_id: str, function: FunctionDefinition[Any], data: Any) -> "_Deferred":
        if not isinstance(step_id, str) or not step_id:
            raise FunctionConfigInvalidError(f"the id of a defer must be a string that names it, not {step_id!r}")
        if (outer := in_step.get()) is not None:
            raise nested(StepRequest(step_id, Opcode.DEFER_ADD), outer)
        if not isinstance(function, FunctionDefinition):
            raise FunctionConfigInvalidError(
                f'defer "{step_id}": function must be a durable function, not {function!r}'
            )
        if not function.opts.can_be_deferred:
            raise FunctionConfigInvalidError(
                f'defer "{step_id}": the function "{function.id}" cannot be deferred: give it '
                "trigger=durably.TriggerDeferred(), alone or in a list"
            )
        try:
            encoded = encode_checked(as_data(data) or {})[0]
        except (TypeError, ValueError) as error:
            raise OutputUnserializableError(f'defer "{step_id}" was given unserializable data: {error}') from None
        index = self._repeats[step_id] = self._repeats.get(step_id, -1) + 1
        hashed_id = hash_step_id(step_id, index)
        if hashed_id not in self._known:
            opts: dict[str, Any] = {"fn_slug": function.id, "input": msgspec.json.decode(encoded)}
            if self.sessions:
                opts["meta"] = inherit_sessions(None, self.sessions)
            self._add(Opcode.DEFER_ADD, hashed_id, step_id, index, opts)
        return _Deferred(self, hashed_id, step_id, index, function.id)

    def abort(self, deferred: "_Deferred") -> None:
        known = self._known.get(deferred.hashed_id)
        if known is not None and not known.abortable:
            return
        self._new = [report for report in self._new if report.op.id != deferred.hashed_id]
        self._ops.pop(deferred.hashed_id, None)
        opts = {"target_hashed_id": deferred.hashed_id, "fn_slug": deferred.function_id, "id": deferred.step_id}
        abort_id = hash_step_id(f"{deferred.hashed_id}:abort")
        self._add(Opcode.DEFER_ABORT, abort_id, deferred.step_id, deferred.index, opts)

    def _add(self, op: Opcode, hashed_id: str, step_id: str, index: int, opts: dict[str, Any]) -> None:
        userland = Userland(id=step_id, index=index or None)
        sent = Op(id=hashed_id, op=op, name=step_id, display_name=step_id, opts=opts, userland=userland)
        self._new.append(StepReport(sent))

    async def transform(self, middleware: MiddlewareStack | None) -> None:
        """Pass new ones through middleware, which may encrypt their data. Then they can be sent."""
        new, self._new = self._new, []
        if middleware is not None:
            await middleware.transform_step_inputs(new)
        self._ops |= {report.op.id: report.op for report in new}

    @property
    def ops(self) -> list[Op]:
        """Those that can be sent."""
        return list(self._ops.values())

    def note_sent(self, ops: Sequence[Op]) -> None:
        for op in ops:
            self._ops.pop(op.id, None)

    def join(self, outcome: Outcome) -> Outcome:
        """The answer with those that the engine does not have. The end of the function becomes an op for that."""
        own = [StepReport(op) for op in self._ops.values()]
        if not own:
            return outcome
        if isinstance(outcome, Returned):
            outcome = to_end_op(outcome)
        if isinstance(outcome, FoundSteps):
            return FoundSteps([*own, *outcome.reports])
        error = outcome.error
        if isinstance(error, CallStaleError) or getattr(error, "code", None) == ErrorCode.STEP_UNEXPECTED:
            return outcome  # The engine makes another call, or reads the error itself.
        op = Opcode.STEP_ERROR if is_retriable(error) else Opcode.STEP_FAILED
        return FoundSteps([*own, StepReport(Op(id=FUNCTION_END_ID, op=op), error=error)])


class _Deferred(msgspec.Struct, frozen=True):
    """See ``context.DeferredRun``."""

    defers: CallDefers
    hashed_id: str
    step_id: str
    index: int
    function_id: str

    def abort(self) -> None:
        self.defers.abort(self)
