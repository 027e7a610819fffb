"""The worker resource of the leader's HTTP API, as both sides know it: processes ask for calls, and post their answers.

    POST   /v1/workers                a ``Registration``: the functions and the capacity of a process
    PUT    /v1/workers/{id}           a changed ``Registration``
    POST   /v1/workers/{id}/calls     an ``Exchange`` of answers and finished steps for calls
    DELETE /v1/workers/{id}           the process leaves

A request for calls waits until there is one, at most for the heartbeat. So the requests of a live worker are its
heartbeats, and those of an idle one cost little. A request that brings something takes the calls that are ready and
does not wait for others, so a busy worker needs one exchange for many calls and steps. A worker makes all requests
itself, and nothing connects to it.

A worker is lost when the connection of a waiting request breaks, or when it has sent no request for the lease. Its
calls then fail with ``WorkerLostError``, and are made again. Its later requests are answered with 404, and the steps of
its old calls with 409.
"""

import msgspec

from durably.engine.core.calls import Answer, CallData
from durably.engine.model.dispatcher import Capacity
from durably.protocol.call import CheckpointRequest
from durably.protocol.events import ErrorBody
from durably.protocol.limits import MAX_REQUEST_BYTES
from durably.protocol.sync import SyncRequest

WORKERS_PATH = "/v1/workers"
WORKER_PATH = f"{WORKERS_PATH}/{{worker_id}}"
CALLS_PATH = f"{WORKER_PATH}/calls"
MAX_EXCHANGE_BYTES = 2 * MAX_REQUEST_BYTES
"""The largest body of an exchange. A worker sends further answers in the next one."""


class Timing(msgspec.Struct, frozen=True):
    """Seconds: the longest silence of a live process, and the longest wait of a request for calls."""

    lease: float
    heartbeat: float


class Registration(msgspec.Struct, frozen=True):
    """The functions of a process, by app, and its capacity."""

    capacity: Capacity
    syncs: list[SyncRequest] = []


class Registered(msgspec.Struct, frozen=True):
    worker_id: str


class CallAnswer(msgspec.Struct, frozen=True):
    """The answer to the call with ``call_id``. JSON documents of users are base64, so that they stay as they are."""

    call_id: int
    answer: Answer


class Exchange(msgspec.Struct, frozen=True):
    """What a worker sends: answers, and finished steps of calls that continue (checkpoints)."""

    answers: list[CallAnswer] = []
    checkpoints: list[CheckpointRequest] = []


class AssignedCall(msgspec.Struct, frozen=True):
    call_id: int
    app_id: str
    data: CallData


class Assignment(msgspec.Struct, frozen=True):
    """New calls for a worker, the ids of calls that it should cancel, and the results of its checkpoints.

    A result is an error, or ``None`` for stored steps.
    """

    calls: list[AssignedCall]
    cancelled: list[int] = []
    results: list[ErrorBody | None] = []
