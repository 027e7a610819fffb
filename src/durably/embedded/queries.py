"""What user code asks the engine in its own processes about runs, and tells it to do with them."""

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from durably.engine.embedded.views import InvokeReceipt, RunStatus, RunView, StepView

T = TypeVar("T")


class Queries:
    """Methods may be awaited on any event loop; those ending in ``_sync`` are the same for synchronous code.

    They raise ``durably.errors.TransportError`` where no engine answers within 30 s, and those that start something
    also where the engine's process ended before it could tell whether it has. The errors named below are those of
    ``durably.engine.errors``.
    """

    async def _ask(self, operation: str, *arguments: Any) -> Any:
        raise NotImplementedError

    def _block(self, coroutine: Coroutine[Any, Any, T]) -> T:
        raise NotImplementedError

    async def get_run(self, run_id: str) -> "RunView | None":
        """A run's status, its output (JSON) and more; ``None`` where there is none of this id."""
        return cast("RunView | None", await self._ask("get_run", run_id))

    def get_run_sync(self, run_id: str) -> "RunView | None":
        return self._block(self.get_run(run_id))

    async def event_runs(self, event_id: str) -> "list[RunView]":
        """The runs that an event started; its id is what ``Client.send`` returned."""
        return cast("list[RunView]", await self._ask("event_runs", event_id))

    def event_runs_sync(self, event_id: str) -> "list[RunView]":
        return self._block(self.event_runs(event_id))

    async def list_runs(
        self,
        *,
        status: "RunStatus | None" = None,
        function_id: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> "list[RunView]":
        """Newest first; ``cursor`` is the id of the last run seen."""
        return cast("list[RunView]", await self._ask("list_runs", status, function_id, limit, cursor))

    def list_runs_sync(
        self,
        *,
        status: "RunStatus | None" = None,
        function_id: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> "list[RunView]":
        return self._block(self.list_runs(status=status, function_id=function_id, limit=limit, cursor=cursor))

    async def run_steps(self, run_id: str) -> "list[StepView]":
        """Finished steps in the order in which they finished, then those under way."""
        return cast("list[StepView]", await self._ask("run_steps", run_id))

    def run_steps_sync(self, run_id: str) -> "list[StepView]":
        return self._block(self.run_steps(run_id))

    async def cancel_run(self, run_id: str) -> bool:
        """False where the run has ended already. Raises ``RunNotFoundError``."""
        return cast("bool", await self._ask("cancel_run", run_id))

    def cancel_run_sync(self, run_id: str) -> bool:
        return self._block(self.cancel_run(run_id))

    async def rerun(self, run_id: str) -> str:
        """Run the same function again with the same event; the new run's id. Raises ``RunNotFoundError``,
        ``FunctionNotFoundError``."""
        return cast("str", await self._ask("rerun", run_id))

    def rerun_sync(self, run_id: str) -> str:
        return self._block(self.rerun(run_id))

    async def invoke(self, function_id: str, data: dict[str, Any]) -> "InvokeReceipt":
        """Start a run of one function, whatever triggers it otherwise; its id begins with its app's. Raises
        ``FunctionNotFoundError``, ``EventInvalidError``."""
        return cast("InvokeReceipt", await self._ask("invoke", function_id, data))

    def invoke_sync(self, function_id: str, data: dict[str, Any]) -> "InvokeReceipt":
        return self._block(self.invoke(function_id, data))

    async def signal(self, name: str, data: Any = None) -> str | None:
        """Wake the run that waits for a signal, and answer with its id; ``None`` where none waits."""
        return cast("str | None", await self._ask("signal", name, data))

    def signal_sync(self, name: str, data: Any = None) -> str | None:
        return self._block(self.signal(name, data))
