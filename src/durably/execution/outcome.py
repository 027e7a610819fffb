"""How a call ends: the function returned, raised, or there are ops for the engine.

``Outcome`` is the answer to the engine. ``Ending`` is the result of running the function: it does not repeat steps that
are in checkpoints.
"""

from dataclasses import dataclass
from typing import Any

import msgspec

from durably.protocol.opcodes import Op, Opcode

from .step import StepInfo


@dataclass(slots=True)
class Returned:
    """The function ran to its end. ``source`` names it in errors about the value."""

    value: Any
    source: str = "the function"


@dataclass(slots=True)
class Raised:
    """The function raised, or the call cannot go on."""

    error: BaseException


@dataclass(slots=True)
class StepReport:
    """An op for the engine; of an executed step with what it returned or raised, not yet encoded."""

    op: Op
    info: StepInfo
    output: Any = msgspec.UNSET
    error: BaseException | None = None
    function_id: str = ""

    def replace(self, output: Any, error: BaseException | None) -> None:
        """What middleware made of the step's result; an executed step whose error it took away has succeeded."""
        if self.error is not None and error is None:
            self.op.op = Opcode.STEP_RUN
        self.output, self.error = output, error


@dataclass(slots=True)
class Found:
    """Steps without memos: executed, planned, or left to the engine."""

    reports: list[StepReport]


@dataclass(slots=True)
class Checkpointed:
    """The function cannot continue. The ``Checkpointer`` has every step that the call has executed."""


Outcome = Returned | Raised | Found
Ending = Outcome | Checkpointed
