"""Replays in another process, in which sets of text have another order: Python chooses the order for each process.

The process imports the module that the function was defined in; ``python -m durably.testing.other_process`` is its
main program, which reads a ``Task`` from its input and writes what each call found.
"""

import asyncio
import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from durably.app import App
from durably.comm import CommHandler
from durably.functions.function import Function
from durably.protocol.headers import ServerKind

from .replays import Found, replay

_TIMEOUT_SECONDS = 60


class Place(msgspec.Struct, frozen=True):
    """Where an object is found by importing: a module's attribute."""

    module: str
    file: str | None
    attribute: str


class Task(msgspec.Struct, frozen=True):
    client: Place
    function: Place
    function_id: str
    path: list[str]
    bodies: list[bytes]


class OtherProcessError(Exception):
    """The calls could not be repeated in another process."""


def find_place(wanted: object) -> Place | None:
    """``None`` for what no module has, such as a function that was made inside of another."""
    for name, module in list(sys.modules.items()):
        if name == "__main__" or not hasattr(module, "__dict__"):
            continue
        for attribute, value in list(vars(module).items()):
            if value is wanted:
                return Place(name, getattr(module, "__file__", None), attribute)
    return None


def replay_elsewhere(client: App, function: Function[Any], function_id: str, bodies: Sequence[bytes]) -> list[Found]:
    """What each of the calls finds in a new process. Raises ``OtherProcessError``."""
    client_place, function_place = find_place(client), find_place(function)
    if client_place is None or function_place is None:
        what = repr(client) if client_place is None else f"function {function.id!r}"
        raise OtherProcessError(f"{what} is no variable of a module that another process could import")
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
        return msgspec.json.decode(done.stdout, type=list[Found])
    except subprocess.CalledProcessError as error:
        last_line = error.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise OtherProcessError(f"{function_place.module} could not be used there: {last_line}") from None
    except (subprocess.TimeoutExpired, msgspec.MsgspecError, OSError) as error:
        raise OtherProcessError(f"no answer came from there: {type(error).__name__}") from None


def _other_seed() -> str:
    """A fixed one, so that a test does the same each time; another than this process may have been given."""
    return "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"


async def _replay_all(task: Task) -> list[Found]:
    client, function = _load(task.client), _load(task.function)
    client.mode = ServerKind.DEV  # in production mode it would want its keys, for which there is no use here
    handler = CommHandler(client=client, framework="testing", functions=[function])
    return [await replay(handler, task.function_id, body) for body in task.bodies]


def _load(place: Place) -> Any:
    try:
        module = importlib.import_module(place.module)
    except ImportError:
        # As test runners do, which load files that lie on no path.
        if place.file is None:
            raise
        spec = importlib.util.spec_from_file_location(place.module, place.file)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[place.module] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return getattr(module, place.attribute)


def _set_up_django() -> None:
    if os.environ.get("DJANGO_SETTINGS_MODULE"):
        import django

        django.setup()


def main() -> None:
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    sys.path[:] = task.path
    # What user code prints is not the answer.
    answer, sys.stdout = sys.stdout.buffer, sys.stderr
    _set_up_django()
    answer.write(msgspec.json.encode(asyncio.run(_replay_all(task))))
    answer.flush()


if __name__ == "__main__":
    main()
