"""The backend of Django's tasks: ``TASKS = {"default": {"BACKEND": "durably.django.TaskBackend"}}``.

``enqueue`` writes an event into the outbox, as a part of the current transaction. Each backend has a durable function
with one step, which runs the task. The event's id is the id of the result, which is read from the engine. The project's
``SECRET_KEY`` signs the event: others who may send events cannot run tasks or import modules.
"""

import builtins
import datetime as dt
import json
import time
import uuid
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, cast

from django.conf import settings
from django.core import checks
from django.core.signing import BadSignature, Signer
from django.db import DEFAULT_DB_ALIAS
from django.utils import timezone
from django.utils.module_loading import import_string

try:  # Django 6
    from django.tasks import Task, TaskContext, TaskResult, TaskResultStatus, task_backends  # pyright: ignore[reportMissingImports]
    from django.tasks.backends.base import BaseTaskBackend  # pyright: ignore[reportMissingImports]
    from django.tasks.base import TaskError  # pyright: ignore[reportMissingImports]
    from django.tasks.exceptions import TaskResultDoesNotExist  # pyright: ignore[reportMissingImports]
    from django.tasks.signals import task_enqueued, task_finished, task_started  # pyright: ignore[reportMissingImports]
    from django.utils.json import normalize_json  # pyright: ignore[reportMissingImports]
except ImportError:
    try:
        from django_tasks import TaskContext, TaskResult, TaskResultStatus, task_backends
        from django_tasks.backends.base import BaseTaskBackend
        from django_tasks.base import Task, TaskError
        from django_tasks.exceptions import TaskResultDoesNotExist
        from django_tasks.signals import task_enqueued, task_finished, task_started
        from django_tasks.utils import normalize_json
    except ImportError as error:
        raise ImportError(
            "durably.django.TaskBackend needs the tasks of Django 6, or their backport for older versions: "
            'pip install "durably[django-tasks]"'
        ) from error

import durably.errors
from durably.client import Client
from durably.context import ContextSync
from durably.engine_client import block, execute, find_run
from durably.errors import FunctionConfigInvalidError, NonRetriableError
from durably.events import encode_event
from durably.functions.function import Function
from durably.io.http_client import IO
from durably.protocol.errors import Error, ErrorCode, ErrorData, StepError, describe_error, error_message, format_stack
from durably.protocol.events import Event, RunStatus
from durably.protocol.options import Priority, TriggerEvent

from .adapter import Discovered
from .models import OutboxEvent
from .outbox import relays, send

_STEP = "task"
_RUN_AFTER = "run_after"
_PRIORITY = Priority(run="event.data.priority * 6")
"""Priorities of tasks are -100 to 100, those of runs -600 to 600 seconds."""


class TaskBackend(BaseTaskBackend):  # type: ignore[misc]
    """Runs Django's tasks as durable functions of the project's client, the first of a ``durable.py``.

    ``OPTIONS`` are those of ``Client.create_function``, such as ``retries`` (0 by default, as for other backends),
    ``concurrency`` and ``timeouts``. ``using`` is the database in which tasks are enqueued. A result's ``worker_ids``
    are the id of the run, once for each attempt.
    """

    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        self._function_options = dict(self.options)
        self._using: str = self._function_options.pop("using", DEFAULT_DB_ALIAS)
        self._event_name = f"django/tasks.{alias}"
        self._signer = Signer(salt=f"durably.{self._event_name}")

    def check(self, **kwargs: Any) -> Iterator[Any]:
        yield from super().check(**kwargs)
        try:
            self._client()
        except FunctionConfigInvalidError as error:
            yield checks.Error(str(error), id="durably.E001")

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        """Enqueue a task when the current transaction commits. Raises the errors of ``durably.django.send``."""
        self.validate_task(task)
        ts = int(time.time() * 1000)
        result = self._make(task, str(uuid.uuid4()), args, kwargs, enqueued_at=_to_datetime(ts))
        run_after = None if task.run_after is None else task.run_after.astimezone(dt.UTC).isoformat()
        data = {"task": task.module_path, "args": result.args, "kwargs": result.kwargs, "queue": task.queue_name}
        data |= {"priority": task.priority, "run_after": run_after}
        event = Event(name=self._event_name, id=result.id, data=data, ts=ts)
        data["signature"] = self._signer.signature(_signed_text(event))
        send(event, using=self._using)
        task_enqueued.send(type(self), task_result=result)
        return result

    def get_result(self, result_id: str) -> Any:
        """The result as it is now. Raises ``TaskResultDoesNotExist``, also when the engine has deleted its run."""
        client = self._client()
        read = partial(self._read_result, client, result_id)
        if (result := block(client, read)) is None:
            rows = cast(Any, OutboxEvent).objects.using(self._using)
            waiting = rows.filter(app=client.app_id, event__contains=result_id).first()
            # Between the two its event may have been sent.
            result = block(client, read) if waiting is None else self._read_waiting(result_id, waiting)
        if result is None:
            raise TaskResultDoesNotExist(result_id)
        return result

    def make_function(self, client: Client) -> Function[Any]:
        """The function that runs the tasks of this backend."""
        options: dict[str, Any] = {"retries": 0, "priority": _PRIORITY, "name": f"Tasks ({self.alias})"}
        options |= self._function_options

        def run_task(ctx: ContextSync) -> Any:
            try:
                self._verify(ctx.event)
            except BadSignature:
                raise NonRetriableError(
                    f"the event {ctx.event.id} has no valid signature of a task: another program has sent it, its id "
                    "or data were changed, or SECRET_KEY differs (keep former keys in SECRET_KEY_FALLBACKS)"
                ) from None
            if (run_after := ctx.event.data["run_after"]) is not None:
                ctx.step.sleep_until(_RUN_AFTER, dt.datetime.fromisoformat(run_after))
            return ctx.step.run(_STEP, self._run, ctx)

        trigger = TriggerEvent(event=self._event_name)
        return client.create_function(fn_id=f"django-tasks-{self.alias}", trigger=trigger, **options)(run_task)

    def _client(self) -> Client:
        if self._using not in relays:
            raise FunctionConfigInvalidError(
                f"durably.django.TaskBackend: the database {self._using!r} has no relay: put a client into the "
                "durable.py of an installed app, and let your routers migrate the app durably there"
            )
        return relays[self._using].client

    def _verify(self, event: Event) -> None:
        """Raises ``BadSignature`` unless a backend with this alias has made the event."""
        self._signer.unsign(f"{_signed_text(event)}:{event.data.get('signature')}")

    def _task(self, data: Mapping[str, Any]) -> Any:
        """The task of a verified event. Raises ``ImportError``, and ``TypeError`` for something else than a task."""
        task = import_string(data["task"])
        if not isinstance(task, Task):
            raise TypeError(f"{data['task']} is not a task")
        run_after = None if data["run_after"] is None else _local(dt.datetime.fromisoformat(data["run_after"]))
        return task.using(priority=data["priority"], queue_name=data["queue"], run_after=run_after, backend=self.alias)

    def _make(self, task: Any, result_id: str, args: Any, kwargs: Any, **fields: Any) -> Any:
        """A result that is ready, except for ``fields``."""
        defaults: dict[str, Any] = {"started_at": None, "finished_at": None, "last_attempted_at": None, "errors": []}
        defaults |= {"status": TaskResultStatus.READY, "enqueued_at": None, "worker_ids": []}
        given = {"task": task, "id": result_id, "args": args, "kwargs": kwargs, "backend": self.alias}
        return TaskResult(**(defaults | given | fields))

    # running

    def _run(self, ctx: ContextSync) -> Any:
        """Run the task, in a step. Its errors are raised as those that ``_to_error`` reads."""
        data, attempts, result = ctx.event.data, ctx.attempt + 1, None
        try:
            task, now = self._task(data), timezone.now()
            result = self._make(
                task, ctx.event.id, data["args"], data["kwargs"], enqueued_at=_to_datetime(ctx.event.ts)
            )
            started = {"started_at": now, "last_attempted_at": now, "worker_ids": [ctx.run_id] * attempts}
            _set(result, status=TaskResultStatus.RUNNING, **started)
            task_started.send(type(self), task_result=result)
            context = [TaskContext(task_result=result)] if task.takes_context else []
            value = normalize_json(task.call(*context, *data["args"], **data["kwargs"]))
        except KeyboardInterrupt:
            raise
        except BaseException as raised:  # SystemExit too
            error = raised if isinstance(raised, Error) else _TaskFailedError(raised)
            if result is not None and (attempts == ctx.max_attempts or not error.is_retriable):
                self._finish(result, status=TaskResultStatus.FAILED, errors=[_to_error(describe_error(error))])
            if error is raised:
                raise
            raise error from raised
        self._finish(result, status=TaskResultStatus.SUCCESSFUL, _return_value=value)
        return value

    def _finish(self, result: Any, **fields: Any) -> None:
        _set(result, finished_at=timezone.now(), **fields)
        task_finished.send(type(self), task_result=result)

    # results

    def _read_waiting(self, result_id: str, waiting: Any) -> Any:
        """The result of a task whose event is in the outbox."""
        event = Event.model_validate(json.loads(waiting.event))
        if event.id != result_id or event.name != self._event_name:
            return None
        result = self._make_of(event)
        if result is not None and waiting.error:
            refused = ErrorData(name="SendEventsError", message=waiting.error)
            _set(result, status=TaskResultStatus.FAILED, errors=[_to_error(refused)])
        return result

    async def _read_result(self, client: Client, result_id: str, io: IO) -> Any:
        """The result of a task whose event the engine has, or ``None``."""
        wanted = {"name": self._event_name, "id": result_id, "limit": 1}
        page = await execute(client, "search_events", wanted, io)
        stored = next((event for event in page.events if event.event_id == result_id), None)
        if stored is None:
            return None
        result = self._make_of(Event(name=stored.name, data=stored.data, id=result_id, ts=stored.ts))
        if result is None or not stored.runs:
            return result
        run = await find_run(client, stored.runs[0].id, io)
        steps = await execute(client, "run_steps", {"run_id": run.id}, io)
        step = next((step for step in steps if step.id == _STEP), None)
        attempts = await execute(client, "run_attempts", {"run_id": run.id}, io)
        failed = [each for each in attempts if not each.is_unreached]
        errors = [each.error for each in failed]
        has_failed = run.status.has_ended and run.status is not RunStatus.COMPLETED
        if step is not None and step.status == "failed":
            errors.append(step.error)
        elif has_failed and (step is None or not errors):
            errors.append(_error_of(run))
        waited = next((step for step in steps if step.id == _RUN_AFTER), None)
        is_running = run.status is RunStatus.RUNNING and run.started_at is not None and run.waiting is None
        if stored.data["run_after"] is not None:  # else its first call is under way, which says until when it waits
            is_running = is_running and waited is not None and waited.ended_at is not None
        # The step is a part of the function's own call, until it has failed there. A call is lost with its process.
        begun = [run.started_at if waited is None else waited.ended_at]
        begun += [each.ended_at for each in failed if each.step is None]
        spans = [] if step is None else [span.start for span in step.spans if span.kind == "running"]
        if spans or not (is_running or run.status.has_ended):
            begun[-1:] = spans
        begun = sorted(each for each in begun if each is not None)
        _set(
            result,
            status=_status_of(run, is_running=is_running),
            started_at=_local(begun[0]) if begun else None,
            last_attempted_at=_local(begun[-1]) if begun else None,
            finished_at=None if run.ended_at is None else _local(run.ended_at),
            errors=[_to_error(error) for error in errors],
            worker_ids=[run.id] * max(len(begun), len(errors)),
            _return_value=run.decode_output() if run.status is RunStatus.COMPLETED else None,
        )
        return result

    def _make_of(self, event: Event) -> Any:
        """A result that is ready. ``None`` if the event is not of a task, or its task does not exist any more."""
        try:
            self._verify(event)
            task, data = self._task(event.data), event.data
        except (BadSignature, ImportError, TypeError):
            return None
        return self._make(task, event.id, data["args"], data["kwargs"], enqueued_at=_to_datetime(event.ts))


class _TaskFailedError(StepError):
    """An error of a task. Its name is the path of the class. It is retried, unlike other errors of steps."""

    code = ErrorCode.UNKNOWN
    is_retriable = True

    def __init__(self, raised: BaseException) -> None:
        kind = type(raised)
        path = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        super().__init__(error_message(raised), path, format_stack(raised))


def _signed_text(event: Event) -> str:
    """The text that a signature covers. It does not depend on how an engine writes numbers.

    Raises ``EventUnserializableError``.
    """

    def to_number(text: str) -> int | float:
        return int(number) if (number := float(text)).is_integer() else number

    wire = json.loads(encode_event(event, now=event.ts), parse_float=to_number)
    data = wire.get("data") or {}
    return json.dumps([event.id, {**data, "signature": None}], sort_keys=True)


def _to_error(error: ErrorData) -> Any:
    name = error.name or "Exception"
    if "." not in name:
        known = (module for module in (builtins, durably.errors) if hasattr(module, name))
        module = next(known, None)
        name = "durably.errors.StepError" if module is None else f"{module.__name__}.{name}"
    return TaskError(exception_class_path=name, traceback=error.stack or f"{name}: {error.message}\n")


def _error_of(run: Any) -> ErrorData:
    """The error of a run that has ended without a result, and without the task."""
    if run.status is RunStatus.FAILED:
        output = run.decode_output()
        return ErrorData(name=output.get("name"), message=output.get("message"), stack=output.get("stack"))
    return ErrorData(name=f"Run{run.status}Error", message=f"run {run.id} was {run.status.lower()}")


def _status_of(run: Any, *, is_running: bool) -> Any:
    if run.status.has_ended:
        is_completed = run.status is RunStatus.COMPLETED
        return TaskResultStatus.SUCCESSFUL if is_completed else TaskResultStatus.FAILED
    return TaskResultStatus.RUNNING if is_running else TaskResultStatus.READY


def _to_datetime(milliseconds: int) -> dt.datetime:
    return _local(dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC))


def _local(at: dt.datetime) -> dt.datetime:
    """A time as Django has it: without a zone if the project has none."""
    return at if settings.USE_TZ else timezone.make_naive(at)


def _set(result: Any, **fields: Any) -> None:
    """Change a result, which is a frozen dataclass, as Django's own backends do."""
    for name, value in fields.items():
        object.__setattr__(result, name, value)


def add_functions(discovered: Discovered) -> None:
    """Add the functions of the project's backends to those of the first client."""
    for backend in task_backends.all():
        if isinstance(backend, TaskBackend) and discovered.clients:
            discovered.add(backend.make_function(discovered.clients[0]))
