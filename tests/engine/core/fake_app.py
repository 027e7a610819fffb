"""An app without I/O: functions as trees of steps, replayed against memos as an SDK would."""

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from durably.engine.core.calls import Answer, ReportedOps, Returned
from durably.protocol.errors import ErrorData
from durably.protocol.headers import DISCOVER
from durably.protocol.opcodes import Op, Opcode, Userland, hash_step_id


@dataclass(frozen=True)
class Step:
    """``failures`` is how often it raises before it works."""

    id: str
    failures: int = 0


@dataclass(frozen=True)
class Sleep:
    id: str


@dataclass(frozen=True)
class WaitForEvent:
    id: str


@dataclass(frozen=True)
class Invoke:
    id: str


@dataclass(frozen=True)
class Fetch:
    id: str


@dataclass(frozen=True)
class Parallel:
    """``race``: branches advance independently. ``first``: the first branch to end ends all."""

    branches: "tuple[tuple[Node, ...], ...]"
    race: bool = False
    first: bool = False


Node = Step | Sleep | WaitForEvent | Invoke | Fetch | Parallel
Leaf = Step | Sleep | WaitForEvent | Invoke | Fetch

_OPS = {
    Sleep: (Opcode.SLEEP, {"duration": "10s"}),
    WaitForEvent: (Opcode.WAIT_FOR_EVENT, {"timeout": "1h"}),
    Invoke: (Opcode.INVOKE_FUNCTION, {"function_id": "app-child"}),
    Fetch: (Opcode.GATEWAY, {}),
}


def leaves(nodes: tuple[Node, ...]) -> list[Leaf]:
    found: list[Leaf] = []
    for node in nodes:
        if isinstance(node, Parallel):
            for branch in node.branches:
                found += leaves(branch)
        else:
            found.append(node)
    return found


@dataclass
class FakeApp:
    """``run`` answers one call. How often each step was executed is counted.

    ``output`` makes the answer of a function whose steps have all ended, from the memos. A wait is for the event
    ``ready/`` and the wait's id; an invocation's data name it. ``url`` is what ``Fetch`` requests.
    """

    nodes: tuple[Node, ...]
    executions: dict[str, int] = field(default_factory=dict)
    output: Callable[[dict[str, bytes]], Answer] = lambda memos: Returned(b'"done"')
    url: str = "https://example.com"

    def run(self, step_id: str, memos: dict[str, bytes], disable_immediate: bool, parallel_steps: int = 0) -> Answer:
        found: list[tuple[Leaf, bool]] = []
        if self._replay(self.nodes, memos, found, race=False):
            return self.output(memos)
        if step_id != DISCOVER:
            return self._run_target(step_id, found)
        if len(found) == 1 and not disable_immediate and isinstance(found[0][0], Step):
            return ReportedOps([self._execute(found[0][0], found[0][1])])
        if 1 < len(found) <= parallel_steps and all(isinstance(leaf, Step) for leaf, _ in found):
            return ReportedOps([self._execute_together(leaf, race) for leaf, race in found if isinstance(leaf, Step)])
        return ReportedOps([self._report(leaf, race) for leaf, race in found])

    def _replay(
        self, nodes: tuple[Node, ...], memos: dict[str, bytes], found: list[tuple[Leaf, bool]], *, race: bool
    ) -> bool:
        """Whether the nodes have all ended; what they are parked on is added to ``found``."""
        for node in nodes:
            if isinstance(node, Parallel):
                parked: list[tuple[Leaf, bool]] = []
                ended = [self._replay(branch, memos, parked, race=race or node.race) for branch in node.branches]
                if not (any(ended) if node.first else all(ended)):
                    found += parked
                    return False
            elif hash_step_id(node.id) not in memos:
                found.append((node, race))
                return False
        return True

    def _run_target(self, step_id: str, found: list[tuple[Leaf, bool]]) -> Answer:
        for leaf, race in found:
            if hash_step_id(leaf.id) == step_id:
                op = self._execute(leaf, race) if isinstance(leaf, Step) else self._report(leaf, race)
                return ReportedOps([op])
        return ReportedOps([Op(id=step_id, op=Opcode.STEP_NOT_FOUND)])

    def _execute(self, step: Step, race: bool) -> Op:
        count = self.executions[step.id] = self.executions.get(step.id, 0) + 1
        if count <= step.failures:
            error = ErrorData(name="Boom", message="not yet")
            return _op(step.id, Opcode.STEP_ERROR, race, {}, error=error)
        return _op(step.id, Opcode.STEP_RUN, race, {}, data=msgspec.Raw(msgspec.json.encode(step.id)))

    def _execute_together(self, step: Step, race: bool) -> Op:
        op = self._execute(step, race)
        return op if race else msgspec.structs.replace(op, opts={"parallelMode": "wait"})

    def _report(self, leaf: Leaf, race: bool) -> Op:
        if isinstance(leaf, Step):
            return _op(leaf.id, Opcode.STEP_PLANNED, race, {})
        kind, opts = _OPS[type(leaf)]
        own = {
            WaitForEvent: {"event": f"ready/{leaf.id}"},
            Invoke: {"payload": {"data": {"step": leaf.id}}},
            Fetch: {"url": self.url},
        }
        return _op(leaf.id, kind, race, {**opts, **own.get(type(leaf), {})})


def _op(step_id: str, kind: Opcode, race: bool, opts: dict[str, object], **more: object) -> Op:
    opts = {**opts, "parallelMode": "race"} if race else opts
    return Op(id=hash_step_id(step_id), op=kind, opts=opts, userland=Userland(id=step_id), **more)  # type: ignore[arg-type]
