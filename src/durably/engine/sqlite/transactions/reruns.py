"""Reruns of finished runs, and the lineage of events."""

from collections.abc import Iterator

import msgspec

from durably.engine.core.run_state import Origin, RunStatus, describe_chain, explain_runaway
from durably.engine.model.registry import SyncedFunction
from durably.engine.model.runs import FromStep
from durably.engine.sqlite.tables.runs import RunRow, RunStore
from durably.protocol.engine_errors import StepNotFoundError
from durably.protocol.errors import RUNAWAY_ERROR, ErrorData
from durably.protocol.opcodes import hash_step_id

from .transaction import Transaction

_MOST_NAMED = 20


class Rerun(msgspec.Struct, frozen=True):
    """A run to repeat, and the memos that the new run takes over.

    They are the memos of the run ``run_key`` before the position ``until``. ``memos`` is their number, and ``size``
    their bytes. ``step_input``: see the schema.
    """

    run_key: int
    run_id: str
    event_keys: tuple[int, ...]
    until: int = 0
    memos: int = 0
    size: int = 0
    step_input: bytes | None = None


def plan_rerun(store: RunStore, run: RunRow, from_step: FromStep | None) -> Rerun:
    """Plan a rerun. Raises ``StepNotFoundError``."""
    event_keys = store.event_keys(run)
    if from_step is None:
        return Rerun(run.key, run.id, event_keys)
    hashed_id, until = _find_step(store, run, from_step.step_id)
    memos, size = store.size_of_memos(run.key, until)
    step_input = None
    if from_step.input is not None:
        step_input = msgspec.json.encode({hashed_id: {"input": from_step.input}})
    return Rerun(run.key, run.id, event_keys, until, memos, size, step_input)


def _find_step(store: RunStore, run: RunRow, wanted: str) -> tuple[str, int]:
    """The hashed id of a step, and the position of its memo."""
    steps = store.memo_order(run.key)
    accepted = (wanted, hash_step_id(wanted))
    for place, hashed_id, name in steps:
        if name == wanted or hashed_id in accepted:
            return hashed_id, place
    names = ", ".join(repr(name) for _, _, name in steps[:_MOST_NAMED]) + (", …" if len(steps) > _MOST_NAMED else "")
    known = f"it has {names}" if steps else "no step has finished; rerun it from the start"
    raise StepNotFoundError(f"run {run.id} has no finished step {wanted!r}: {known}")


_MOST_NAMED_FUNCTIONS = 8
MOST_ANCESTORS = 100
"""The maximum number of ancestors to follow. Each costs two queries."""


def ancestors(transaction: Transaction, origin: Origin | None) -> Iterator[RunRow]:
    """The runs that led to an event, the latest first.

    They are the run that sent the event, the run that sent that run's event, and so on, until a run is no longer known.
    """
    for _ in range(MOST_ANCESTORS):
        run = None if origin is None else transaction.store.find_run(origin.run_key)
        if run is None:
            return
        yield run
        origin = transaction.event(run.event_key).origin


def descends_from_cancelled(transaction: Transaction, function_id: str, origin: Origin | None, since: int) -> bool:
    """Whether a cancelled run of this function led to an event.

    Only runs that were cancelled at ``since`` or later count.
    """
    return any(
        run.function_id == function_id
        and run.status is RunStatus.CANCELLED
        and transaction.store.ended_at(run.key) >= since
        for run in ancestors(transaction, origin)
    )


def refuse_runaway(
    transaction: Transaction, function: SyncedFunction, origin: Origin | None, *, is_run_end: bool = False
) -> ErrorData | None:
    """The reason why an event must not start a run of a function, or ``None``.

    ``origin`` is the event's.
    """
    reason = explain_runaway(origin, transaction.policy.max_depth, is_run_end=is_run_end)
    if reason is None:
        return None
    named = [function.id]
    is_whole = True
    for run in ancestors(transaction, origin):
        if len(named) == _MOST_NAMED_FUNCTIONS:
            is_whole = False
            break
        named.append(run.function_id)
    chain = describe_chain(named, is_whole)
    return ErrorData(name=RUNAWAY_ERROR, message=f"functions start each other endlessly ({chain}): {reason}")
