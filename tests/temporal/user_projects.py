"""Projects of users, written to a directory, and the real commands run in them."""

import os
import time
from pathlib import Path

from ..cli.conftest import TIMEOUT_SECONDS, Command, write

WORKFLOWS = """
    import asyncio
    from datetime import timedelta
    from temporalio import workflow
    from activities import block, outlive, process_order, slow

    @workflow.defn
    class OrderWorkflow:
        @workflow.run
        async def run(self, order_id: str) -> str:
            return await workflow.execute_activity(
                process_order, order_id, start_to_close_timeout=timedelta(seconds=10)
            )

    @workflow.defn
    class SlowWorkflow:
        @workflow.run
        async def run(self, seconds: float) -> str:
            return await workflow.execute_activity(
                slow, seconds, start_to_close_timeout=timedelta(seconds=60)
            )

    @workflow.defn
    class OutliveWorkflow:
        @workflow.run
        async def run(self) -> str:
            return await workflow.execute_activity(
                outlive,
                start_to_close_timeout=timedelta(seconds=60),
                heartbeat_timeout=timedelta(seconds=1),
            )

    @workflow.defn
    class BlockWorkflow:
        @workflow.run
        async def run(self, seconds: float) -> None:
            await workflow.execute_activity(block, seconds, start_to_close_timeout=timedelta(seconds=60))
"""
ACTIVITIES = """
    import threading
    import time
    from temporalio import activity

    @activity.defn
    def process_order(order_id: str) -> str:
        return f"processed {order_id} in {threading.current_thread().name.rpartition('_')[0]}"

    @activity.defn
    def slow(seconds: float) -> str:
        print("slow begins", flush=True)
        time.sleep(seconds)
        return "slow is done"

    @activity.defn
    def outlive() -> str:
        attempt = activity.info().attempt
        print(f"attempt {attempt}", flush=True)
        while attempt == 1:
            activity.heartbeat()
            time.sleep(0.05)
        return f"attempt {attempt}"

    @activity.defn
    async def block(seconds: float) -> None:
        print("blocking", flush=True)
        time.sleep(seconds)
"""
SHOP = """
    from durably.temporal import Temporal
    from activities import block, outlive, process_order, slow
    from workflows import BlockWorkflow, OrderWorkflow, OutliveWorkflow, SlowWorkflow

    temporal = Temporal()
    temporal.add_worker("orders-{id}", workflows=[OrderWorkflow], activities=[process_order])
    temporal.add_worker("slow-{id}", workflows=[SlowWorkflow], activities=[slow])
    temporal.add_worker("slow-{id}", workflows=[BlockWorkflow, OutliveWorkflow], activities=[block, outlive])
    temporal.add_worker("slow-{id}", max_cached_workflows=0)
    other = 5
"""


def write_shop(directory: Path, id: str) -> None:
    """A project with workers for two task queues, ``orders-{id}`` and ``slow-{id}``."""
    write(directory / "workflows.py", WORKFLOWS)
    write(directory / "activities.py", ACTIVITIES)
    write(directory / "shop.py", SHOP.replace("{id}", id))


def change_source(command: Command, path: Path, source: str, noticed: str) -> int:
    """Write a file until the output contains ``noticed``. Returns its earliest position in the output."""
    after = len(command.output)
    write(path, source)
    end = time.monotonic() + TIMEOUT_SECONDS
    while noticed not in command.output[after:]:
        assert time.monotonic() < end, f"no {noticed!r} in the output:\n{command.output}"
        time.sleep(0.1)
        os.utime(path)
    return after


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and their descendants."""
    children = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*children, *(each for child in children for each in descendants(child))]
