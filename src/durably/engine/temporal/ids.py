"""Workflow ids.

Events, waits and invocations are routed by these ids. No lookup uses visibility, which lags.

Each kind of workflow has its own prefix below ``durably/``.
"""

import hashlib
import uuid
import zlib

from durably.engine.model.events import ENTROPY_BYTES, make_id

WORKFLOWS_QUEUE = "durably"
"""The task queue of all workflows of the engine."""
HTTP_QUEUE = "durably/http"
"""The task queue of calls over HTTP."""
_RUN_PREFIX = "durably/run/"
_MAX_NAME_BYTES = 800
"""The maximum size of a name that is used unchanged in an id. A name may have 512 characters of up to 4 bytes."""


def app_queue(app_id: str) -> str:
    """The task queue of calls to functions in the app's own processes."""
    return f"durably/app/{_bounded(app_id)}"


def process_queue() -> str:
    """A task queue for activities that only this process can execute."""
    return f"durably/process/{uuid.uuid4()}"


CALL_ID_PREFIX = "call/"
"""The prefix of activity ids of calls. The generation follows."""


def run_workflow_id(run_id: str) -> str:
    return _RUN_PREFIX + run_id


def run_id_of(workflow_id: str) -> str:
    """The run id of a workflow with a ``run_workflow_id``."""
    return workflow_id.removeprefix(_RUN_PREFIX)


def make_run_id(milliseconds: int, event_id: str, function_id: str) -> str:
    """The id of the run that an event starts: a ULID.

    The same event and function always give the same id, so that a repeated send starts no second run. ``milliseconds``
    is the event's time.
    """
    digest = hashlib.sha256(f"{event_id}\n{function_id}".encode()).digest()
    return make_id(milliseconds, lambda size: digest[:size])


def make_event_id(milliseconds: int, sender_id: str) -> str:
    """The engine's id for an event with an id of its sender."""
    digest = hashlib.sha256(sender_id.encode()).digest()[:ENTROPY_BYTES]
    return make_id(milliseconds, lambda _: digest)


_EXECUTION_BITS = 20
_GENERATION_BITS = 32
"""Both together stay below 2^53, the largest integer that JavaScript reads exactly."""


def execution_of(workflow_run_id: str) -> int:
    """A number above 0 that identifies an execution of a run's workflow.

    A reset begins a new execution.
    """
    return 1 + zlib.crc32(workflow_run_id.encode()) % ((1 << _EXECUTION_BITS) - 1)


def app_generation(generation: int, execution: int) -> int:
    """The generation of a call as the app receives it.

    After a reset, the generations of the new execution begin again from an earlier one.
    """
    return (execution << _GENERATION_BITS) + generation


def split_generation(generation: int) -> tuple[int, int]:
    """The generation and the execution of an ``app_generation``.

    The execution is 0 if there is none.
    """
    return generation & ((1 << _GENERATION_BITS) - 1), generation >> _GENERATION_BITS


def app_workflow_id(app_id: str) -> str:
    return f"durably/app/{_bounded(app_id)}"


def function_workflow_id(function_id: str) -> str:
    return f"durably/function/{_bounded(function_id)}"


def topic_workflow_id(event_name: str) -> str:
    return f"durably/topic/{_bounded(event_name)}"


def schedule_id(function_id: str, text: str, jitter: int) -> str:
    """The id of a cron schedule, as the app wrote it. A Schedule with this id never changes."""
    digest = _digest(f"{text}\n{jitter}")
    return f"durably/cron/{_bounded(function_id)}/{digest}"


def event_workflow_id(event_id: str) -> str:
    return f"durably/event/{event_id}"


def wait_workflow_id(event_name: str, path: str | None, value: str | None) -> str:
    """The workflow of waits for events of one name with one value at a path."""
    condition = f"{path}\n{value}"
    return f"durably/wait/{_bounded(event_name)}/{_digest(condition)}"


def signal_workflow_id(signal: str) -> str:
    return f"durably/signal/{_digest(signal)}"


def bucket_workflow_id(function_id: str, option: str, key: str) -> str:
    """The bucket workflow for one key value of an option, in a function or a scope."""
    return f"durably/bucket/{_bounded(function_id)}/{option}/{_digest(key)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _bounded(name: str) -> str:
    """A name as part of an id. The server accepts ids of at most 1,000 bytes.

    Shortened names are longer than every unchanged name, so no two names share an id.
    """
    encoded = name.encode()
    if len(encoded) <= _MAX_NAME_BYTES:
        return name
    return f"{encoded[:_MAX_NAME_BYTES].decode(errors='ignore')}…{_digest(name)}"
