"""Running again what ran before: what the new run takes over from the old one."""

from typing import TYPE_CHECKING

import msgspec

from durably.engine.errors import StepNotFoundError
from durably.protocol.opcodes import hash_step_id

if TYPE_CHECKING:
    from .store import RunRow, Store

_MOST_NAMED = 20


class FromStep(msgspec.Struct, frozen=True):
    """``step_id`` is the step's id as the user wrote it, or the hashed one; ``input`` a JSON array of arguments for the
    step in place of its own."""

    step_id: str
    input: list[msgspec.Raw] | None = None


class Rerun(msgspec.Struct, frozen=True):
    """``memos`` and ``size`` (bytes) count what the new run takes over of the memos of the run ``run_key``: those
    before the place ``until``. ``step_input``: see the schema."""

    run_key: int
    run_id: str
    event_keys: tuple[int, ...]
    until: int = 0
    memos: int = 0
    size: int = 0
    step_input: bytes | None = None


def plan_rerun(store: "Store", run: "RunRow", from_step: FromStep | None) -> Rerun:
    """Raises ``StepNotFoundError``."""
    event_keys = store.event_keys(run)
    if from_step is None:
        return Rerun(run.key, run.id, event_keys)
    hashed_id, until = _find_step(store, run, from_step.step_id)
    memos, size = store.size_of_memos(run.key, until)
    step_input = None
    if from_step.input is not None:
        step_input = msgspec.json.encode({hashed_id: {"input": from_step.input}})
    return Rerun(run.key, run.id, event_keys, until, memos, size, step_input)


def _find_step(store: "Store", run: "RunRow", wanted: str) -> tuple[str, int]:
    """The hashed id of a step, and the place of its memo."""
    steps = store.memo_order(run.key)
    accepted = (wanted, hash_step_id(wanted))
    for place, hashed_id, name in steps:
        if name == wanted or hashed_id in accepted:
            return hashed_id, place
    names = ", ".join(repr(name) for _, _, name in steps[:_MOST_NAMED]) + (", …" if len(steps) > _MOST_NAMED else "")
    known = f"it has {names}" if steps else "it has none; run it again from the start"
    raise StepNotFoundError(f"run {run.id} has no finished step {wanted!r}: {known}")
