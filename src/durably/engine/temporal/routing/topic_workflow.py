"""Topics: the triggers of an event name, and the paths of waits for it.

Senders read a topic by Describe, which is strongly consistent and costs no action.
"""

import msgspec
from temporalio import workflow

from durably.engine.temporal.messages import TopicRecord, TriggerRecord

TOPIC = "topic"
"""The memo with the record."""


MAX_PATHS = 50
"""The maximum number of paths of a topic, because each costs every event of the name a request."""


class AppTriggers(msgspec.Struct, frozen=True):
    """The new triggers of some functions.

    ``triggers`` has none of a function that has no trigger any more.
    """

    function_ids: tuple[str, ...]
    triggers: tuple[TriggerRecord, ...]


@workflow.defn(name="durably.Topic", sandboxed=False)
class TopicWorkflow:
    @workflow.init
    def __init__(self, record: TopicRecord) -> None:
        self._record = record

    @workflow.run
    async def run(self, record: TopicRecord) -> None:
        await workflow.wait_condition(lambda: workflow.info().is_continue_as_new_suggested())
        await workflow.wait_condition(workflow.all_handlers_finished)
        workflow.continue_as_new(self._record, memo={TOPIC: self._record})

    @workflow.update(name="set_triggers")
    def set_triggers(self, change: AppTriggers) -> None:
        kept = [each for each in self._record.triggers if each.function_id not in change.function_ids]
        self._put(msgspec.structs.replace(self._record, triggers=(*kept, *change.triggers)))

    @workflow.update(name="add_path")
    def add_path(self, path: str | None) -> bool:
        """False if the topic has too many paths."""
        if path in self._record.paths:
            return True
        if path is not None and len(self._record.paths) >= MAX_PATHS:
            return False
        self._put(msgspec.structs.replace(self._record, paths=(*self._record.paths, path)))
        return True

    def _put(self, record: TopicRecord) -> None:
        self._record = record
        workflow.upsert_memo({TOPIC: record})
