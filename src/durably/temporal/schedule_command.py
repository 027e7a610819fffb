"""What the commands that sync schedules have in common: a line for each schedule, and one error."""

import asyncio
from collections.abc import Callable

from temporalio.service import RPCError

from .connect_failures import explain_refusal
from .connection import Temporal
from .errors import TemporalSettingsError
from .schedules import sync_schedules


def run_sync_schedules(
    temporal: Temporal, *, say: Callable[[str], None], app: str | None, prune: bool, dry_run: bool
) -> None:
    """Raises ``TemporalSettingsError``, also for what the server refuses, and ``TemporalUnreachableError``."""

    async def run() -> None:
        found = False
        async for id, outcome in sync_schedules(temporal, app=app, prune=prune, dry_run=dry_run):
            found = True
            say(f"{id}: {outcome}{' (dry run)' if dry_run else ''}")
        if not found:
            say("no schedules are declared; temporal.add_schedule(…) declares one")
        elif dry_run:
            say("nothing was changed, and the server has not checked the declarations")

    try:
        asyncio.run(run())
    except RPCError as error:
        raise TemporalSettingsError(explain_refusal(error.message, temporal.settings)) from error
