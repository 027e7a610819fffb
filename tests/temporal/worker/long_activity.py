"""A workflow whose activity runs until a file ends it, and records its process, because its worker is killed."""

import os
import time
from datetime import timedelta
from pathlib import Path

from temporalio import activity, workflow
from temporalio.common import RetryPolicy

from durably.temporal import Temporal


@activity.defn
def endure(directory: str) -> list[int]:
    """Each attempt leaves a file with its worker's process id. The file ``go`` ends the current attempt."""
    attempt = activity.info().attempt
    (Path(directory) / f"attempt-{attempt}").write_text(str(os.getpid()))
    while not (Path(directory) / "go").exists():
        activity.heartbeat()
        time.sleep(0.05)
    return [attempt, os.getpid()]


@workflow.defn
class EnduringWorkflow:
    @workflow.run
    async def run(self, directory: str) -> list[int]:
        return await workflow.execute_activity(
            endure,
            directory,
            start_to_close_timeout=timedelta(minutes=1),
            heartbeat_timeout=timedelta(seconds=1),
            retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=50)),
        )


def declare(temporal: Temporal) -> None:
    """No cache: the server would wait ten seconds for the killed worker, which had the workflow in its cache."""
    temporal.add_worker(workflows=[EnduringWorkflow], activities=[endure], max_cached_workflows=0)
