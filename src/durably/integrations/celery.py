"""Tasks of a Celery app as durable functions: each call of a task is a run, without a broker, a worker or beat.

Celery keeps its part: signatures, canvas, retries, hooks and signals are its own code. ``functions`` replaces what
takes messages (``app.send_task``) and what has results (``app.backend``). Celery makes a chain a task with a list of
those that follow, and a chord a group whose tasks have the signature of its body. A run does what a worker does after
its task: each continuation is a step that starts a run with the id of its task, once.

Private parts of Celery (checked with 5.7): ``app._backend``, the cache of ``app.backend``, and ``app._fixups``.
"""

import builtins
import datetime as dt
import json
import sys
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

try:
    import celery
except ImportError as error:
    raise ImportError('durably.integrations.celery needs Celery: pip install "durably[celery]"') from error

import celery.exceptions
import celery.schedules
import celery.signals
from celery.app.task import Context
from celery.app.trace import build_tracer
from celery.backends.base import BaseBackend
from celery.canvas import Signature
from celery.fixups.django import DjangoFixup
from celery.result import AsyncResult, GroupResult
from celery.utils.time import maybe_make_aware, rate
from kombu.exceptions import EncodeError
from kombu.utils import json as kombu_json
from kombu.utils.uuid import uuid

from durably.client import Client
from durably.context import ContextSync
from durably.engine_client import block
from durably.errors import FunctionConfigInvalidError, QuestionClosedError, RunNotFoundError, StepError
from durably.events import id_seed, seeded_id, sending_run
from durably.functions.function import Function
from durably.protocol.errors import error_message, format_stack
from durably.protocol.events import RunStatus
from durably.protocol.options import Throttle, TriggerCron
from durably.runs import RunHandle, start_run

__all__ = ["functions"]

_REFUSED = {
    "time_limit": "no thread can be interrupted: give the calls in the task timeouts of their own",
    "soft_time_limit": "no thread can be interrupted: give the calls in the task timeouts of their own",
    "priority": "no queue orders messages: see the option priority of a durable function",
    "serializer": 'arguments and results are JSON: use "json", and pass ids or texts in place of objects',
}
"""Options of tasks and of calls that have no equivalent, and the remedies."""
_HEADERS = ("root_id", "parent_id", "group_id", "group_index", "shadow", "ignore_result", "headers")
"""Options of a call that the task finds in ``self.request``."""
_OF_CELERY = {"celery.backend_cleanup", "celery.chain", "celery.chord", "celery.chord_unlock", "celery.group"}
"""Celery's own tasks that nothing sends here."""
_STATES = {
    RunStatus.SCHEDULED: "PENDING",
    RunStatus.RUNNING: "STARTED",
    RunStatus.COMPLETED: "SUCCESS",
    RunStatus.FAILED: "FAILURE",
    RunStatus.CANCELLED: "REVOKED",
    RunStatus.SKIPPED: "REVOKED",
}


def functions(
    app: celery.Celery, client: Client, *, exclude: Collection[str] = (), ignore: Collection[str] = ()
) -> list[Function[Any]]:
    """A durable function for each task and each beat entry of a Celery app, for ``serve``.

    From then on, ``delay``, ``apply_async``, ``send_task`` and canvas start runs in this process, and ``AsyncResult``
    reads them. In Celery's workers and beat it changes nothing and returns no functions.

    - ``exclude``: Names of tasks that stay on Celery: they go to its broker, as tasks of other apps do.
    - ``ignore``: Options without an equivalent that shall have no effect: ``time_limit``, ``soft_time_limit`` (with
      or without ``task_``), ``priority``.

    Raises ``FunctionConfigInvalidError``, which names the task or the entry, the option, and the remedy.
    """
    if app.loader.worker_initialized:
        return []
    return _Bridge(
        app, client, frozenset(exclude), frozenset(name.removeprefix("task_") for name in ignore)
    ).make_functions()


class _Bridge:
    def __init__(self, app: celery.Celery, client: Client, exclude: frozenset[str], ignore: frozenset[str]) -> None:
        self.app: Any = app
        self.client, self._ignore = client, ignore
        for fixup in self.app._fixups:
            # The fixup sets up Django and checks the project. Django itself is doing that if it imports a durable.py.
            if isinstance(fixup, DjangoFixup) and sys.modules["django.apps"].apps.models_ready:
                celery.signals.import_modules.disconnect(fixup.on_import_modules, sender=app)
        app.loader.import_default_modules()
        app.finalize()
        if unknown := (exclude - set(app.tasks)) | (ignore - (_REFUSED.keys() - {"serializer"})):
            raise FunctionConfigInvalidError(
                f"durably.integrations.celery.functions: {sorted(unknown)} is no task of {app!r} to exclude, or no "
                "option to ignore"
            )
        self._on_celery = exclude | _OF_CELERY
        self._tasks = {name: task for name, task in app.tasks.items() if name not in self._on_celery}
        self._functions: dict[str, Function[Any]] = {}
        self._send_to_broker, self._revoke_at_broker = app.send_task, self.app.control.revoke
        self._broker_results = app.backend if exclude else None

    def make_functions(self) -> list[Function[Any]]:
        for setting in ("time_limit", "soft_time_limit"):
            self._check(f"the setting task_{setting}", {setting: self.app.conf[f"task_{setting}"]})
        for task in self._tasks.values():
            self._check(f'task "{task.name}"', {name: getattr(task, name) for name in _REFUSED})
            if task.Strategy != celery.Task.Strategy or task.Request != celery.Task.Request:
                raise FunctionConfigInvalidError(
                    f'task "{task.name}": its own Strategy or Request belongs to Celery\'s worker: remove it, or '
                    f'leave the task on Celery: functions(…, exclude=["{task.name}"])'
                )
            task.replace = partial(_replace, task.replace)
            limit = None if task.rate_limit is None else _throttle(task.rate_limit)
            create = self.client.create_function(fn_id=task.name, trigger=[], throttle=limit)
            self._functions[task.name] = create(partial(self._run, task, self._tracer(task)))
        self._chords = self.client.create_function(fn_id="celery.chord", trigger=[])(self._join)
        entries = [
            self.client.create_function(fn_id=f"beat.{name}", trigger=TriggerCron(cron=_cron(name, entry, self.app)))(
                partial(self._beat, entry)
            )
            for name, entry in self.app.conf.beat_schedule.items()
            if entry["task"] in self._tasks
        ]
        self.app.send_task, self.app.control.revoke = self.send_task, self.revoke
        self.app._backend = _Backend(self)
        return [*self._functions.values(), self._chords, *entries]

    def _tracer(self, task: celery.Task) -> Callable[..., Any]:
        # An eager tracer leaves results, and the messages of retries, to its caller.
        return build_tracer(task.name, task, app=self.app, eager=True)  # type: ignore[no-any-return]

    def _check(self, what: str, options: Mapping[str, Any]) -> None:
        for name, remedy in _REFUSED.items():
            value = options.get(name)
            if name not in self._ignore and value is not None and (name, value) != ("serializer", "json"):
                accept = "" if name == "serializer" else f', or accept that it has no effect: ignore=["{name}"]'
                raise FunctionConfigInvalidError(
                    f"{what}: {name}={value!r} has no equivalent on Durably, because {remedy}; or leave the task on "
                    f"Celery: functions(…, exclude=[…]){accept}"
                )

    # -- starts

    def send_task(
        self,
        name: str,
        args: Any = None,
        kwargs: Any = None,
        countdown: float | None = None,
        eta: dt.datetime | str | None = None,
        task_id: str | None = None,
        *,
        expires: Any = None,
        result_cls: Any = None,
        add_to_parent: bool = True,
        **options: Any,
    ) -> AsyncResult:
        """``Celery.send_task``, which starts a run."""
        function = self._functions.get(name)
        if function is None and name in self.app.tasks and name not in self._on_celery:
            raise FunctionConfigInvalidError(
                f'task "{name}" was registered after functions(app, client), so Durably does not serve it: import '
                f"{self.app.tasks[name].__module__} before that call, or name it in Celery's setting imports"
            )
        if function is None:
            if options.get("chord") is not None:
                raise FunctionConfigInvalidError(
                    f'task "{name}" is on Celery, so it cannot be in a chord with tasks on Durably: move both, or none'
                )
            timing = {"countdown": countdown, "eta": eta, "expires": expires, "result_cls": result_cls}
            timing = {key: value for key, value in timing.items() if value is not None}
            return self._send_to_broker(
                name, args, kwargs, task_id=task_id, add_to_parent=add_to_parent, **timing, **options
            )
        self._check(f'a call of the task "{name}"', options)
        task_id, parent = task_id or uuid(), self.app.current_worker_task
        if parent:
            options["root_id"] = options.get("root_id") or parent.request.root_id
            options["parent_id"] = options.get("parent_id") or parent.request.id
        message = {
            "id": task_id,
            "retries": options.get("retries") or 0,
            "eta": self._time(eta),
            "expires": self._time(expires),
            **{key: options[key] for key in _HEADERS if options.get(key) is not None},
        }
        following: dict[str, Any] = {key: _listed(options.get(key)) for key in ("link", "link_error", "chain")}
        following["chord"] = options.get("chord")
        custom = message.pop("headers", {})
        published = {**message, "lang": "py", "task": name, **custom}
        body = (args or (), kwargs or {}, following)
        sent = {"sender": name, "headers": published, "body": body, "exchange": "", "routing_key": ""}
        celery.signals.before_task_publish.send(
            declare=[], properties={"correlation_id": task_id}, retry_policy={}, **sent
        )
        # The receivers may add headers.
        custom = {key: published[key] for key in published.keys() - {*message, "lang", "task"}}
        message |= {"args": body[0], "kwargs": body[1], "countdown": countdown, "headers": custom or None, **following}
        self._start(function, _encode(f'the arguments of the task "{name}"', message), task_id)
        celery.signals.after_task_publish.send(**sent)
        result = (result_cls or self.app.AsyncResult)(task_id)
        result.ignored = bool(options.get("ignore_result"))
        if add_to_parent and parent:
            parent.add_trail(result)
        return result

    def _start(self, function: Function[Any], data: Any, task_id: str) -> None:
        block(self.client, lambda io: start_run(self.client, function, data, task_id, io, id_seed(task_id)))

    def revoke(self, task_id: str | Collection[str], *args: Any, **options: Any) -> None:
        """``Control.revoke``, which cancels runs."""
        for each in [task_id] if isinstance(task_id, str) else task_id:
            try:
                self.handle(each).cancel_sync()
            except RunNotFoundError:
                if self._broker_results is not None:
                    self._revoke_at_broker(each, *args, **options)

    def handle(self, task_id: str) -> RunHandle[Any]:
        return self.client.run(seeded_id(id_seed(task_id)))

    def _time(self, given: dt.datetime | str | float | None) -> str | None:
        """A time, or seconds from now, as ISO 8601 with a time zone."""
        if given is None or isinstance(given, str):
            return given
        time = given if isinstance(given, dt.datetime) else self.app.now() + dt.timedelta(seconds=given)
        return maybe_make_aware(time, self.app.timezone).isoformat()  # type: ignore[no-any-return]

    # -- runs

    def _run(self, task: celery.Task, tracer: Callable[..., Any], ctx: ContextSync) -> Any:
        """One call of a task: its attempts, then what follows it. Returns its result."""
        message = dict(ctx.event.data)
        try:
            while True:
                retries = message["retries"]
                until = f"until retry {retries}" if retries else "until eta"
                if message["countdown"]:
                    ctx.step.sleep(until, dt.timedelta(seconds=message["countdown"]))
                elif message["eta"] is not None:
                    ctx.step.sleep_until(until, dt.datetime.fromisoformat(message["eta"]))
                outcome = ctx.step.run(f"retry {retries}" if retries else "run", self._attempt, task, tracer, message)
                if "retry" not in outcome:
                    break
                message |= outcome["retry"]
        except StepError as error:
            if message["chord"] is not None:
                part = {"error": f"{error.name}: {error.message}"}
                ctx.step.run("report to chord", self._report, message, part)
            raise
        if outcome.get("ignored"):
            return None
        for number, link in enumerate(message["link"] or ()):
            ctx.step.run(f"link {number}", self._follow, message, link, outcome["result"], f"link-{number}")
        if message["chain"]:
            *rest, following = message["chain"]
            ctx.step.run("next", self._follow, message, following, outcome["result"], "next", chain=rest)
        if message["chord"] is not None:
            ctx.step.run("report to chord", self._report, message, {"result": outcome["result"]})
        return None if task.ignore_result or message.get("ignore_result") else outcome["result"]

    def _attempt(self, task: celery.Task, tracer: Callable[..., Any], message: dict[str, Any]) -> dict[str, Any]:
        """Call the task as a worker does. Returns its result, or the message of its retry."""
        expires = message["expires"]
        args, kwargs = _decode([message["args"], message["kwargs"]])
        headers = {key: message.get(key) for key in _HEADERS}
        request = {
            **(message.get("headers") or {}),
            **{key: value for key, value in headers.items() if value is not None},
            "id": message["id"],
            "root_id": headers["root_id"] or message["id"],
            "group": headers["group_id"],
            "retries": message["retries"],
            "errbacks": message["link_error"],
            "is_eager": True,
            "hostname": "durably",
            "delivery_info": {"is_eager": True, "exchange": None, "routing_key": None, "priority": None},
            "eta": message["eta"],
            "expires": expires,
        }
        if expires is not None and dt.datetime.fromisoformat(expires) <= self.app.now():
            celery.signals.task_revoked.send(
                task, request=Context(request), terminated=False, signum=None, expired=True
            )
            raise StepError(f'task "{task.name}" has expired: it had to run before {expires}', "TaskRevokedError", None)
        traced = tracer(message["id"], args, kwargs, request)
        value: Any = traced.retval if traced.info is None else traced.info.retval
        if isinstance(value, celery.exceptions.Retry):
            signature: Any = value.sig
            is_time = isinstance(value.when, dt.datetime | str)
            when = {"countdown": None if is_time else value.when, "eta": self._time(value.when) if is_time else None}
            retry = {"args": signature.args, "kwargs": signature.kwargs, "retries": message["retries"] + 1, **when}
            return {"retry": _encode("a retry", retry)}
        if traced.info is None:
            return {"result": _encode(f'the result of the task "{task.name}"', value)}
        if isinstance(value, _Replaced):
            return {"result": _encode(f'the result of the task "{task.name}"', *value.args)}
        if isinstance(value, celery.exceptions.Ignore) or (
            isinstance(value, celery.exceptions.Reject) and not value.requeue
        ):
            return {"ignored": True}
        if isinstance(value, celery.exceptions.Reject):
            raise value  # The step is retried.
        # Celery's tasks are retried only if they ask for it. Steps are retried for lost calls.
        raise StepError(error_message(value), type(value).__name__, format_stack(value))

    def _follow(self, message: dict[str, Any], following: Any, result: Any, name: str, **options: Any) -> None:
        """Send what follows a task. Its id is known before, so that a repeated step starts nothing again."""
        signature = Signature.from_dict(_decode(following), app=self.app)
        if signature.id is None:
            options["task_id"] = f"{message['id']}-{name}"
        token = sending_run.set(None)  # A chain has an end, however long it is.
        try:
            ids = {"parent_id": message["id"], "root_id": message.get("root_id") or message["id"]}
            signature.apply_async((_decode(result),), **ids, **options)
        finally:
            sending_run.reset(token)

    def _beat(self, entry: Mapping[str, Any], ctx: ContextSync) -> None:
        def send() -> None:
            options = {"task_id": ctx.run_id, **(entry.get("options") or {})}
            self._tasks[entry["task"]].apply_async(entry.get("args"), entry.get("kwargs"), **options)

        ctx.step.run("send", send)

    # -- chords

    def start_chord(self, header: Any, body: Signature) -> None:
        data = {"parts": _ids(header), "body": body}
        self._start(self._chords, _encode("a chord", data), header.id)

    def _report(self, message: dict[str, Any], part: dict[str, Any]) -> None:
        try:
            self.handle(message["group_id"]).answer_sync(message["id"], part, id=message["id"])
        except QuestionClosedError:  # Another part has failed.
            return

    def _join(self, ctx: ContextSync) -> None:
        """Wait for all parts of a chord, then send its body."""
        parts, body = ctx.event.data["parts"], ctx.event.data["body"]
        ids = _leaves(parts)
        received = ctx.group.parallel([partial(ctx.step.receive, part) for part in ids])
        results = {part: question.data for part, question in zip(ids, received, strict=True)}
        for part, result in results.items():
            if "error" in result:
                ctx.step.run("fail", self._fail_chord, body, f"Dependency {part} raised {result['error']}")
        values = _values(parts, results)
        message = {"id": ctx.event.id}
        ctx.step.run("body", self._follow, message, body, values, "body")

    def _fail_chord(self, body: Any, problem: str) -> None:
        try:
            raise celery.exceptions.ChordError(problem)
        except celery.exceptions.ChordError:
            self.app.backend.chord_error_from_stack(Signature.from_dict(_decode(body), app=self.app))
        raise StepError(problem, "ChordError", None)


class _Replaced(celery.exceptions.Ignore):  # type: ignore[misc]
    """Its argument is the result of the task that has replaced another."""


def _replace(replace: Callable[[Any], Any], signature: Any) -> None:
    """``Task.replace``, which raises in a worker, and returns in eager tasks. Tasks may ``raise`` what it returns."""
    raise _Replaced(replace(signature))


class _Backend(BaseBackend):  # type: ignore[misc]
    """Celery's result backend: results are those of runs."""

    def __init__(self, bridge: _Bridge) -> None:
        super().__init__(app=bridge.app)
        self.thread_safe = True
        self._bridge = bridge

    def __reduce__(self, args: Any = (), kwargs: Any = None) -> Any:
        raise TypeError("the results of tasks on Durably cannot be pickled: pass the id, and use app.AsyncResult(id)")

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        try:
            run = self._bridge.handle(task_id).status_sync()
        except RunNotFoundError:
            if self._bridge._broker_results is not None:
                return self._bridge._broker_results.get_task_meta(task_id)  # type: ignore[no-any-return]
            return {"status": "PENDING", "result": None}
        meta = {"status": _STATES[run.status], "result": None, "date_done": run.ended_at}
        if run.status is RunStatus.COMPLETED:
            meta["result"] = _decode(run.decode_output())
        elif run.status is RunStatus.FAILED:
            failed = run.decode_output()
            name = failed.get("name") or "Exception"
            task = self.app.tasks.get(run.function_id.removeprefix(f"{self._bridge.client.app_id}-"))
            modules = (builtins, celery.exceptions, sys.modules.get(getattr(task, "__module__", "")))
            found = next((module.__name__ for module in modules if module is not None and hasattr(module, name)), None)
            meta["traceback"] = failed.get("stack")
            meta["status"] = "REVOKED" if name == "TaskRevokedError" else "FAILURE"
            meta["result"] = self.exception_to_python(
                {"exc_type": name, "exc_module": found, "exc_message": (failed.get("message") or "",)}
            )
        elif meta["status"] == "REVOKED":
            meta["result"] = celery.exceptions.TaskRevokedError("revoked")
        return meta

    def _store_result(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the engine has the result."""

    def _forget(self, task_id: str) -> None:
        """Do nothing: the engine's retention decides."""

    def apply_chord(self, header_result_args: Any, body: Signature, **kwargs: Any) -> None:
        self._bridge.start_chord(self.app.GroupResult(*header_result_args), body)


def _encode(what: str, value: Any) -> Any:
    """A value as JSON values, with Celery's own forms of times, decimals and others. Raises ``EncodeError``."""
    try:
        return json.loads(kombu_json.dumps(value))  # type: ignore[no-untyped-call]
    except (TypeError, ValueError) as error:
        raise EncodeError(f"{what} cannot be JSON: {error}. Pass ids or texts in place of objects") from None


def _decode(value: Any) -> Any:
    return kombu_json.loads(json.dumps(value))  # type: ignore[no-untyped-call]


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def _ids(result: GroupResult) -> list[Any]:
    """The ids of the tasks of a group, nested as its results are."""
    return [_ids(each) if isinstance(each, GroupResult) else each.id for each in result.results or ()]


def _leaves(parts: list[Any]) -> list[str]:
    return [leaf for part in parts for leaf in (_leaves(part) if isinstance(part, list) else [part])]


def _values(parts: list[Any], results: Mapping[str, Any]) -> list[Any]:
    return [_values(part, results) if isinstance(part, list) else results[part]["result"] for part in parts]


def _throttle(limit: Any) -> Throttle | None:
    """Celery's ``rate_limit``, such as ``"10/m"``, for all processes together."""
    amount, _, unit = str(limit).partition("/")
    if not rate(limit):
        return None
    if float(amount).is_integer():
        seconds = {"": 1, "s": 1, "m": 60, "h": 3600}[unit]
        return Throttle(limit=int(float(amount)), period=dt.timedelta(seconds=seconds))
    return Throttle(limit=1, period=dt.timedelta(seconds=1 / rate(limit)))


def _cron(name: str, entry: Mapping[str, Any], app: celery.Celery) -> str:
    """The cron expression of a beat entry. Raises ``FunctionConfigInvalidError`` for other schedules."""
    schedule = celery.schedules.maybe_schedule(entry["schedule"], app=app)
    if isinstance(schedule, celery.schedules.crontab):
        fields = [
            ("minute", schedule.minute, 60),
            ("hour", schedule.hour, 24),
            ("day_of_month", schedule.day_of_month, 31),
            ("month_of_year", schedule.month_of_year, 12),
            ("day_of_week", schedule.day_of_week, 7),
        ]
        written = ["*" if len(field) == size else ",".join(map(str, sorted(field))) for _, field, size in fields]
        if "*" not in (written[2], written[4]):
            problem = "both day_of_month and day_of_week: cron means one or the other. Use one, and check in the task"
            raise FunctionConfigInvalidError(f'beat entry "{name}" limits {problem}')
        return f"TZ={app.timezone} {' '.join(written)}"
    if type(schedule) is celery.schedules.schedule:
        minutes, rest = divmod(schedule.run_every, dt.timedelta(minutes=1))
        if not rest and minutes and 60 % minutes == 0:
            return f"*/{minutes} * * * *" if minutes < 60 else "0 * * * *"
        if not rest and minutes and minutes % 60 == 0 and 24 % (minutes // 60) == 0:
            return f"TZ={app.timezone} 0 {f'*/{minutes // 60}' if minutes < 1440 else '0'} * * *"
    raise FunctionConfigInvalidError(
        f'beat entry "{name}": its schedule {schedule!r} has no cron expression. Write a crontab(…), or a number of '
        "minutes that divides an hour or of hours that divides a day. For shorter intervals take the entry out of "
        "beat_schedule, and write a function with a trigger each minute, which sleeps between its calls of the task"
    )
