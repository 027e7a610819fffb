"""Worker declarations for the workflows that a gateway exposes, so that their histories can be replayed."""

from collections.abc import Iterable, Sequence

from durably.temporal.compat import workflow_parts
from durably.temporal.declarations import WorkerDeclaration
from durably.temporal.gateway import Exposure


def with_exposed(declared: Sequence[WorkerDeclaration], exposures: Iterable[Exposure]) -> list[WorkerDeclaration]:
    """``declared``, and a declaration for each exposed workflow that is not among them."""
    known = {each for declaration in declared for each in declaration.workflows}
    added: list[WorkerDeclaration] = []
    for exposure in exposures:
        parts = workflow_parts(exposure.definition.run_function)
        if parts is not None and parts.cls not in known:
            added.append(WorkerDeclaration(task_queue=exposure.task_queue, workflows=(parts.cls,)))
            known.add(parts.cls)
    return [*declared, *added]
