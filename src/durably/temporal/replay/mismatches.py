"""The first difference between a history and the code.

It is the event that the code does not produce, and what the code does instead. The functions are pure.

The SDK's error names the event in most cases. In the others (an activity of another type, for example) the commands of
the last workflow task are compared with the events that the history has for it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent

from durably.temporal.compat import Command, RecordedTask


@dataclass(frozen=True)
class Mismatch:
    """A difference between a history and the code.

    ``event`` is ``ActivityTaskScheduled (charge)``; ``instead`` is ``starts a timer``.
    """

    event_id: int | None = None
    event: str | None = None
    instead: str | None = None


NO_MISMATCH = Mismatch()


_EVENTS = {
    "cancel_timer": (EventType.EVENT_TYPE_TIMER_CANCELED, "cancels a timer"),
    "cancel_workflow_execution": (EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED, "ends as cancelled"),
    "complete_workflow_execution": (EventType.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED, "completes the workflow"),
    "continue_as_new_workflow_execution": (
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW,
        "continues as new",
    ),
    "fail_workflow_execution": (EventType.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED, "fails the workflow"),
    "modify_workflow_properties": (EventType.EVENT_TYPE_WORKFLOW_PROPERTIES_MODIFIED, "changes the memo"),
    "request_cancel_activity": (EventType.EVENT_TYPE_ACTIVITY_TASK_CANCEL_REQUESTED, "cancels an activity"),
    "request_cancel_external_workflow_execution": (
        EventType.EVENT_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED,
        "cancels another workflow",
    ),
    "schedule_activity": (EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED, "schedules an activity"),
    "schedule_local_activity": (EventType.EVENT_TYPE_MARKER_RECORDED, "runs a local activity"),
    "schedule_nexus_operation": (EventType.EVENT_TYPE_NEXUS_OPERATION_SCHEDULED, "schedules a Nexus operation"),
    "signal_external_workflow_execution": (
        EventType.EVENT_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED,
        "signals another workflow",
    ),
    "start_child_workflow_execution": (
        EventType.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED,
        "starts a child workflow",
    ),
    "start_timer": (EventType.EVENT_TYPE_TIMER_STARTED, "starts a timer"),
    "upsert_workflow_search_attributes": (
        EventType.EVENT_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES,
        "sets search attributes",
    ),
}
"""The event that the server records for a command, and the command in words. Other commands leave no event, or one that
depends on the command's content."""

_COMMAND_EVENTS = frozenset(event for event, _ in _EVENTS.values())
_EVENT_IN_MESSAGE = re.compile(r"HistoryEvent\(id: (\d+)")
_MARKER_OF_PATCHES = "core_patch"


def find_mismatch(events: Sequence[HistoryEvent], last: RecordedTask | None, message: str) -> Mismatch:
    """The event that the code does not produce, and what the code does instead.

    ``message`` is the SDK's. ``last`` is the last workflow task that the code did before the error.
    """
    recorded = _recorded(events, last)
    event = _named_by(message, events) or _first_difference(recorded, last)
    if event is None:
        return Mismatch(instead=_in_words(last.commands[0]) if last and last.commands else None)
    return Mismatch(event.event_id, describe_event(event), _instead(event, recorded, last))


def describe_event(event: HistoryEvent) -> str:
    """``ActivityTaskScheduled (charge)``."""
    words = EventType.Name(event.event_type).removeprefix("EVENT_TYPE_").split("_")
    kind, name = "".join(word.capitalize() for word in words), event_name(event)
    return f"{kind} ({name})" if name else kind


def event_name(event: HistoryEvent) -> str:
    """The name of an event's activity, child workflow, signal or marker.

    It is empty for other events.
    """
    match event.event_type:
        case EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
            return event.activity_task_scheduled_event_attributes.activity_type.name
        case EventType.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED:
            return event.start_child_workflow_execution_initiated_event_attributes.workflow_type.name
        case EventType.EVENT_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED:
            return event.signal_external_workflow_execution_initiated_event_attributes.signal_name
        case EventType.EVENT_TYPE_MARKER_RECORDED:
            return event.marker_recorded_event_attributes.marker_name
    return ""


def _recorded(events: Sequence[HistoryEvent], last: RecordedTask | None) -> list[HistoryEvent]:
    """The events that the workflow task left in the history."""
    if last is None:
        return []
    found: list[HistoryEvent] = []
    for event in events:
        if event.event_id <= last.history_length:
            continue
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_SCHEDULED:
            break
        if event.event_type in _COMMAND_EVENTS and event_name(event) != _MARKER_OF_PATCHES:
            found.append(event)
    return found


def _named_by(message: str, events: Sequence[HistoryEvent]) -> HistoryEvent | None:
    found = _EVENT_IN_MESSAGE.search(message)
    return next((each for each in events if found is not None and each.event_id == int(found[1])), None)


def _first_difference(recorded: list[HistoryEvent], last: RecordedTask | None) -> HistoryEvent | None:
    commands = _comparable(last)
    for index, event in enumerate(recorded):
        if index >= len(commands) or not _fits(commands[index], event):
            return event
    return recorded[0] if recorded else None


def _fits(command: Command, event: HistoryEvent) -> bool:
    return _EVENTS[command.kind][0] == event.event_type and command.name in ("", event_name(event))


def _instead(event: HistoryEvent, recorded: list[HistoryEvent], last: RecordedTask | None) -> str | None:
    """The command in place of the event.

    Returns ``None`` if the event is not of the last workflow task.
    """
    ids = [each.event_id for each in recorded]
    if event.event_id not in ids:
        return None
    commands, place = _comparable(last), ids.index(event.event_id)
    return _in_words(commands[place]) if place < len(commands) else "does nothing"


def _comparable(last: RecordedTask | None) -> list[Command]:
    return [each for each in last.commands if each.kind in _EVENTS] if last is not None else []


def _in_words(command: Command) -> str:
    words = _EVENTS[command.kind][1] if command.kind in _EVENTS else command.kind.replace("_", " ")
    return f"{words} ({command.name})" if command.name else words
