"""Replays: calls of a function with the memos of a past run.

They find steps and execute none. A replay needs no engine. ``python -m durably.testing.replays`` replays in another
process, in which sets of strings have another order, because Python chooses the order for each process. It imports the
module that defines the function, reads a ``Task`` from its input, and writes what each call found.
"""

import asyncio
import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from durably.app import App
from durably.comm import CommHandler, CommRequest
from durably.functions.function import Function
from durably.protocol.events import Event
from durably.protocol.headers import DISCOVER, Query, ServerKind
from durably.protocol.opcodes import Op


class PastStep(msgspec.Struct, frozen=True):
    """A step that has finished: its hashed id, its own id, and its memo as JSON."""

    hashed_id: str
    name: str
    memo: msgspec.Raw


class Past(msgspec.Struct, frozen=True):
    """A past run; ``steps`` are in the order of their memos."""

    run_id: str
    function_id: str
    events: list[Event]
    steps: list[PastStep]


class ReplayedCall(msgspec.Struct, frozen=True):
    """The result of a call: the steps that it found, or how the function ended.

    ``steps`` are the names of steps without memos, by their hashed ids.
    """

    steps: dict[str, str]
    end: str | None = None

    def is_like(self, other: "ReplayedCall") -> bool:
        return self.steps.keys() == other.steps.keys() and self.end == other.end

    def __str__(self) -> str:
        return self.end or ", ".join(f"step {name!r}" for name in self.steps.values())


RETURNED = "that it returned"
_ops_decoder = msgspec.json.Decoder(list[Op])


def call_body(past: Past, memos: Sequence[PastStep]) -> bytes:
    """The body of a call that discovers steps, with these memos in this order.

    A call that discovers steps executes none (spec §4.4.1).
    """
    ids = [step.hashed_id for step in memos]
    body: dict[str, Any] = {
        "ctx": {
            "run_id": past.run_id,
            "step_id": DISCOVER,
            "disable_immediate_execution": True,
            "stack": {"stack": ids, "current": len(ids)},
        },
        "event": past.events[0],
        "events": past.events,
        "steps": {step.hashed_id: step.memo for step in memos},
    }
    return msgspec.json.encode(body)


async def replay(handler: CommHandler, function_id: str, body: bytes) -> ReplayedCall:
    request = CommRequest(
        body=body,
        headers={},
        query_params={Query.FUNCTION_ID.value: function_id, Query.STEP_ID.value: DISCOVER},
        raw_request=None,
        request_url="test://replay",
        is_connect=True,
    )
    response = await handler.post(request)
    answer = response.body
    if response.status_code == HTTPStatus.OK:
        return ReplayedCall({}, RETURNED)
    if response.status_code != HTTPStatus.PARTIAL_CONTENT:
        return ReplayedCall({}, f"that it raised {msgspec.json.decode(answer)['name']}")
    return ReplayedCall({op.id: _name_of(op) for op in _ops_decoder.decode(answer)})


def _name_of(op: Op) -> str:
    if op.userland is None:
        return op.display_name or op.id
    return f"{op.userland.id}:{op.userland.index}" if op.userland.index else op.userland.id


_TIMEOUT_SECONDS = 60


class ImportPath(msgspec.Struct, frozen=True):
    """The module and attribute of an object that can be imported."""

    module: str
    file: str | None
    attribute: str


class Task(msgspec.Struct, frozen=True):
    client: ImportPath
    function: ImportPath
    function_id: str
    path: list[str]
    bodies: list[bytes]


class OtherProcessError(Exception):
    """The calls could not be repeated in another process."""


def find_import_path(wanted: object) -> ImportPath | None:
    """The path of the module variable with the object; ``None`` if there is none.

    For example, no module has a function within another function.
    """
    for name, module in list(sys.modules.items()):
        if name == "__main__" or not hasattr(module, "__dict__"):
            continue
        for attribute, value in list(vars(module).items()):
            if value is wanted:
                return ImportPath(name, getattr(module, "__file__", None), attribute)
    return None


def replay_elsewhere(
    client: App, function: Function[Any], function_id: str, bodies: Sequence[bytes]
) -> list[ReplayedCall]:
    """The steps that each of the calls finds in a new process.

    Raises ``OtherProcessError``.
    """
    client_place, function_place = find_import_path(client), find_import_path(function)
    if client_place is None or function_place is None:
        what = repr(client) if client_place is None else f"function {function.id!r}"
        raise OtherProcessError(f"{what} is not a variable of a module that another process could import")
    task = Task(client_place, function_place, function_id, sys.path, list(bodies))
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            input=msgspec.json.encode(task),
            capture_output=True,
            env={**os.environ, "PYTHONHASHSEED": _other_seed(), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            timeout=_TIMEOUT_SECONDS,
            check=True,
        )
        return msgspec.json.decode(done.stdout, type=list[ReplayedCall])
    except subprocess.CalledProcessError as error:
        last_line = error.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise OtherProcessError(f"{function_place.module} could not be used there: {last_line}") from None
    except (subprocess.TimeoutExpired, msgspec.MsgspecError, OSError) as error:
        raise OtherProcessError(f"no answer came from there: {type(error).__name__}") from None


def _other_seed() -> str:
    """A fixed seed, so that a test is repeatable; not the seed of this process."""
    return "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"


async def _replay_all(task: Task) -> list[ReplayedCall]:
    client, function = _load(task.client), _load(task.function)
    client.mode = ServerKind.DEV  # production mode would need keys
    handler = CommHandler(client=client, framework="testing", functions=[function])
    return [await replay(handler, task.function_id, body) for body in task.bodies]


def _load(path: ImportPath) -> Any:
    try:
        module = importlib.import_module(path.module)
    except ImportError:
        # Test runners load files outside sys.path in this way.
        if path.file is None:
            raise
        spec = importlib.util.spec_from_file_location(path.module, path.file)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[path.module] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return getattr(module, path.attribute)


def _set_up_django() -> None:
    if os.environ.get("DJANGO_SETTINGS_MODULE"):
        import django

        django.setup()


def main() -> None:
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    sys.path[:] = task.path
    # User code may print; only the answer goes to stdout.
    answer, sys.stdout = sys.stdout.buffer, sys.stderr
    _set_up_django()
    answer.write(msgspec.json.encode(asyncio.run(_replay_all(task))))
    answer.flush()


if __name__ == "__main__":
    main()
