"""Deferred functions: functions that a run starts when it has ended. Pure.

The ops ``DeferAdd`` and ``DeferAbort`` are not steps. They have no memo, come with other ops or alone, and an error in
one never fails the run. The run continues without it, and the engine logs the reason.
"""

import msgspec

from durably.engine.asks import read_defer, read_defer_abort, step_name
from durably.engine.errors import OpInvalidError
from durably.engine.head import Deferred
from durably.engine.inputs import AbortDeferred, Defer, RefuseDeferred
from durably.engine.turn import Turn
from durably.protocol.limits import MAX_DEFERRED, MAX_DEFERRED_BYTES
from durably.protocol.opcodes import Op, Opcode

LAZY = frozenset({Opcode.DEFER_ADD, Opcode.DEFER_ABORT})
"""Ops that come with other ops, or alone, and have no effect before the run's end."""


def note_deferred(turn: Turn, op: Op) -> bool:
    """Whether anything has changed: apps may repeat these ops."""
    try:
        return _add(turn, op) if op.op == Opcode.DEFER_ADD else _abort(turn, op)
    except OpInvalidError as error:
        turn.commands.append(RefuseDeferred(step_name(op), str(error)))
        return False


def _add(turn: Turn, op: Op) -> bool:
    if not op.id:
        raise OpInvalidError(f"an op {op.op!r} has no id")
    if op.id in turn.defers:
        return False
    if len(turn.defers) >= MAX_DEFERRED:
        raise OpInvalidError(f"a run may defer {MAX_DEFERRED} functions, and has done so")
    try:
        ask = read_defer(op)
        size = sum(deferred.size for deferred in turn.defers.values()) + len(ask.data)
        if size > MAX_DEFERRED_BYTES:
            raise OpInvalidError(f"all its deferred data has {size} bytes; at most {MAX_DEFERRED_BYTES} are possible")
    except OpInvalidError:
        # The app gets it as accepted, so that it does not repeat it with each call.
        turn.defers[op.id] = Deferred(step_id=op.id, is_abortable=False)
        raise
    turn.defers[op.id] = Deferred(step_id=op.id, size=len(ask.data))
    turn.commands.append(Defer(op.id, ask))
    return True


def _abort(turn: Turn, op: Op) -> bool:
    target = read_defer_abort(op)
    before = turn.defers.get(target)
    if before is None or not before.is_abortable:
        return False
    turn.defers[target] = msgspec.structs.replace(before, is_abortable=False, size=0)
    turn.commands.append(AbortDeferred(target))
    return True
