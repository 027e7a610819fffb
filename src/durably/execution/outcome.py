"""How a call ends: the function returned, raised, or there are ops for the engine."""

from dataclasses import dataclass
from typing import Any

import msgspec

from durably.protocol.opcodes import Op

from .step import StepInfo


@dataclass(slots=True)
class Returned:
    """The function ran to its end."""

    value: Any


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

    @property
    def is_executed(self) -> bool:
        return self.error is not None or self.output is not msgspec.UNSET


@dataclass(slots=True)
class Found:
    """Steps without memos: executed, planned, or left to the engine."""

    reports: list[StepReport]


Outcome = Returned | Raised | Found
