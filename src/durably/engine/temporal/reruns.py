"""Reruns of runs, also from one of their steps."""

import hashlib

import msgspec

from durably.engine.core.errors import FunctionPausedError, NotSupportedError, RunNotFoundError
from durably.engine.scheduling.events import ENTROPY_BYTES, make_id
from durably.engine.views import FromStep

from .function_lists import FunctionLists
from .router import Router
from .run_views import RunViews


class Reruns:
    def __init__(self, router: Router, functions: FunctionLists, views: RunViews) -> None:
        self._router = router
        self._functions = functions
        self._views = views

    async def start(self, run_id: str, now: int, seed: str, from_step: FromStep | None = None) -> str:
        """Repeat a run. The same ``now`` and ``seed`` give the same run.

        Raises ``RunNotFoundError``, ``FunctionNotFoundError`` and ``FunctionPausedError``.
        """
        if from_step is not None:
            raise NotSupportedError("an engine on Temporal does not run a function again from one of its steps")
        given = await self._views.input(run_id)
        if given is None:
            raise RunNotFoundError(f"there is no run with the id {run_id!r}")
        record = await self._functions.get(given.function_id)
        if record.is_paused:
            raise FunctionPausedError(
                f"the function {given.function_id!r} is paused; resume it before you run anything again"
            )
        # The step that invoked the run has its result already.
        events = tuple(msgspec.structs.replace(event, invoker=None) for event in given.events)
        digest = hashlib.sha256(f"{seed}\n{run_id}".encode()).digest()[:ENTROPY_BYTES]
        run = msgspec.structs.replace(
            self._router.run_input(record, events),
            run_id=make_id(now, lambda _: digest),
            rerun_of=run_id,
            parent=None,
            parent_step=None,
        )
        return await self._router.gates.start(run, record)
