"""Thousands of malformed requests, made from the OpenAPI document: ``python -m tests.temporal.fuzz``.

schemathesis makes valid and malformed requests; half of them are about existing workflows. They come from two users in
turn, and each is repeated about a workflow of the other user. No response may be an internal error, each must fit the
document, and none may reveal anything of the other user: ids, inputs, memos, keys. With ``--absent`` there is no
Temporal server, and valid requests get 503. The exit code is 1 after a fault; the requests are printed as curl
commands. A test is a short form of it.
"""

import argparse
import functools
import itertools
import json
import math
import random
import re
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import FlakyStrategyDefinition, Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.core.transport import Response
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from durably.temporal import Temporal

from .app_server import QUICK, AppServer, running
from .dev_server import DevServer
from .serve import SERVERS
from .workflows import ACTIVITIES, TASK_QUEUE, WORKFLOWS

CHECKS = [status_code_conformance, content_type_conformance, response_headers_conformance]
FRAMEWORKS = (*SERVERS, "starlette")
MOUNT = "/mine"
"""The gateway with owners. It has the same exposures and document as the open one."""
MOST_TRIES = 40
"""Number of attempts to make a malformed request for an operation, before it counts as one without any."""
UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""Ids of runs, and random ids of workflows."""


@dataclass
class User:
    """``secrets`` are strings that no other user may see. Strings of responses to the user are added."""

    name: str
    order_ids: list[str] = field(default_factory=list)
    key: str = ""
    secrets: set[str] = field(default_factory=set)
    workflows: dict[str, list[str]] = field(default_factory=dict)

    @property
    def headers(self) -> dict[str, str]:
        return {"X-User": self.name}


def make_user(app: AppServer, name: str, *, is_server_absent: bool) -> User:
    """A user with unique strings in each part of the workflows."""
    user = User(f"{name}-{uuid.uuid4().hex}", [uuid.uuid4().hex for _ in range(2)], f"key-{uuid.uuid4().hex}")
    line, note, address = (f"{part}-{uuid.uuid4().hex}" for part in ("line", "note", "address"))
    user.secrets = {user.name, user.key, line, note, address, *user.order_ids}
    if is_server_absent:
        return user
    headers = {**user.headers, "Idempotency-Key": user.key}

    def ask(path: str, body: Any = None) -> Any:
        answer = app.post(f"{MOUNT}/{path}", body, headers)
        assert answer.status in (200, 202), answer.body
        return answer.json

    orders = [ask("orders", {"order_id": id, "amount": 1, "lines": ["wait", line]}) for id in user.order_ids]
    for order in orders:
        ask(f"orders/{order['workflow_id']}/signals/add_note", {"text": note})
        ask(f"orders/{order['workflow_id']}/updates/change_address", {"address": address})
    sleeping = ask("sleeping")
    user.workflows = {"orders": [each["workflow_id"] for each in orders], "sleeping": [sleeping["workflow_id"]]}
    user.secrets |= {sleeping["workflow_id"], *(each["run_id"] for each in (*orders, sleeping))}
    return user


@dataclass
class Report:
    """``faults`` contains a request for each kind of fault."""

    is_server_absent: bool = False
    statuses: Counter[int] = field(default_factory=Counter)
    foreign: Counter[int] = field(default_factory=Counter)
    faults: dict[str, str] = field(default_factory=dict)

    def add(self, case: Case, response: Response) -> None:
        self.statuses[response.status_code] += 1
        label = f"{case.operation.label}: {response.status_code}"
        is_told_to_come_again = response.status_code == 503 and "retry-after" in response.headers
        if response.status_code >= 500 and not (self.is_server_absent and is_told_to_come_again):
            self._note(f"{label}: an error of the server's", case, response)
        # schemathesis compares each event with the schema of the whole stream.
        is_stream = response.headers["content-type"][0].startswith("text/event-stream")
        checks = CHECKS if is_stream else [*CHECKS, response_schema_conformance]
        try:
            case.validate_response(response, checks=checks)
        except FailureGroup as failures:
            for failure in failures.exceptions:
                self._note(f"{label}: {failure.title}", case, response)

    def add_user(self, case: Case, response: Response, user: User, other: User, *, is_foreign: bool) -> None:
        """Search the response for secrets of ``other``. Strings of the request may be repeated."""
        request = response.request
        sent = f"{unquote(request.url or '')} {request.headers} {_text(request.body)}"
        seen = f"{response.text} {unquote(response.text)} {dict(response.headers)}"
        label = f"{case.operation.label}: {response.status_code}"
        if leaked := [secret for secret in other.secrets if secret in seen and secret not in sent]:
            self._note(f"{label}: reveals to {user.name} a text of {other.name}: {leaked[0]}", case, response)
        if is_foreign:
            self.foreign[response.status_code] += 1
            if response.status_code < 400:
                self._note(f"{label}: {user.name} reaches a workflow of {other.name}", case, response)
        user.secrets |= {each for each in UUID.findall(seen) if each not in sent}

    def _note(self, kind: str, case: Case, response: Response) -> None:
        self.faults.setdefault(kind, f"{case.as_curl_command()}\n  {response.text[:500]}")


@dataclass(frozen=True)
class Attempt:
    """A request, and a number that selects its workflow: 0 leaves the generated id.

    ``is_borrowed``: it has the other user's key, and names the other's order.
    """

    case: Case
    workflow: int
    is_borrowed: bool


def make_attempts(app: AppServer, *, amount: int, first_seed: int) -> list[Attempt]:
    """At least ``count`` requests to the gateway with owners. They are the same for the same document."""
    document = app.get("/openapi.json" if app.name == "fastapi" else "/open/openapi.json").json
    paths = document["paths"].items()
    paths = {MOUNT + path.removeprefix("/open"): what for path, what in paths if path.startswith("/open/")}
    description = {**document, "paths": paths, "info": {"title": "the gateway", "version": "1"}}
    return _make_attempts(json.dumps(description), amount, first_seed)


@functools.cache
def _make_attempts(document: str, amount: int, first_seed: int) -> list[Attempt]:
    """Cached: it takes most of the time of a short run."""
    operations = [found.ok() for found in schemathesis.openapi.from_dict(json.loads(document)).get_all_operations()]
    made: list[Attempt] = []

    def make(case: Case, workflow: int, is_borrowed: bool) -> None:
        made.append(Attempt(case, workflow, is_borrowed))

    next_seed = first_seed
    # Some operations cannot be malformed: they are left for another round.
    while (missing := amount - len(made)) > 0:
        each = math.ceil(missing / (2 * len(operations)))
        for operation, mode in itertools.product(operations, GenerationMode):
            _repeat(
                make, each, next_seed, operation.as_strategy(generation_mode=mode), st.integers(0, 4), st.booleans()
            )
        next_seed += 1
    return made


def fuzz(app: AppServer, attempts: Iterable[Attempt], *, is_server_absent: bool = False) -> Report:
    """Alternate requests of two users, with or without a server and a worker behind the app."""
    users = [make_user(app, name, is_server_absent=is_server_absent) for name in ("ada", "bob")]
    report = Report(is_server_absent)
    session = requests.Session()
    for attempt, (user, other) in zip(attempts, itertools.cycle([users, users[::-1]]), strict=False):
        case = attempt.case
        made = case.path_parameters, case.body, case.query
        exposure = case.operation.path.split("/")[2]
        own, foreign = user.workflows.get(exposure, []), other.workflows.get(exposure, [])
        ids = [None, *own, *foreign]
        workflow_id = ids[attempt.workflow % len(ids)]
        names_workflow = workflow_id is not None and "workflow_id" in (made[0] or {})
        if names_workflow:
            case.path_parameters = {**made[0], "workflow_id": workflow_id}
        headers = {**user.headers, **(_borrow(case, other) if attempt.is_borrowed else {})}
        response = case.call(base_url=app.origin, session=session, timeout=60, allow_redirects=False, headers=headers)
        report.add(case, response)
        report.add_user(case, response, user, other, is_foreign=names_workflow and workflow_id in foreign)
        case.path_parameters, case.body, case.query = made
    return report


def _borrow(case: Case, other: User) -> dict[str, str]:
    """Put the other user's order, query and key into the request."""
    if isinstance(case.body, dict) and "order_id" in case.body:
        case.body = {**case.body, "order_id": other.order_ids[0]}
    elif isinstance(case.body, dict) and isinstance(case.body.get("input"), dict):
        case.body = {**case.body, "input": {**case.body["input"], "order_id": other.order_ids[0]}}
    if case.operation.path.count("/") == 2 and case.method == "GET":
        case.query = {"owner": other.name}
    return {"Idempotency-Key": other.key} if case.method == "POST" else {}


def _text(body: bytes | str | None) -> str:
    return body.decode(errors="replace") if isinstance(body, bytes) else body or ""


class _NothingMadeError(Exception):
    """None of the first tries made a request."""


def _repeat(
    make: Callable[..., None], times: int, first_seed: int, cases: st.SearchStrategy[Case], *strategies: Any
) -> None:
    """Make a number of requests, or none if the operation has nothing to malform."""
    tries, is_any_made = 0, False

    @st.composite
    def limited(draw: st.DrawFn) -> Case:
        nonlocal tries, is_any_made
        tries += 1
        if tries > MOST_TRIES and not is_any_made:
            raise _NothingMadeError
        case = draw(cases)
        is_any_made = True
        return case

    checks = list(HealthCheck)
    repeated = settings(
        max_examples=times, deadline=None, suppress_health_check=checks, phases=[Phase.generate], database=None
    )(seed(first_seed)(given(limited(), *strategies)(make)))
    try:
        repeated()
    except (Unsatisfiable, _NothingMadeError, FlakyStrategyDefinition):
        # The last one comes from the attempt without data. Without any request, the operation has nothing to malform.
        if is_any_made:
            raise


def main() -> None:
    parser = argparse.ArgumentParser(description="Send malformed requests to the gateway in each framework.")
    parser.add_argument("--requests", type=int, default=10_000, help="to each framework")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--absent", action="store_true", help="without a Temporal server")
    parser.add_argument("--framework", action="append", choices=FRAMEWORKS, help="all unless given")
    arguments = parser.parse_args()
    first_seed = random.randrange(1_000_000) if arguments.seed is None else arguments.seed
    names = arguments.framework or list(FRAMEWORKS)
    sys.exit(0 if _run(names, arguments.requests, first_seed, arguments.absent) else 1)


def _run(names: Sequence[str], amount: int, first_seed: int, is_server_absent: bool) -> bool:
    is_good = True
    with ExitStack() as stack:
        server = DevServer()
        if not is_server_absent:
            server.start()
            stack.callback(server.kill)
            stack.enter_context(_worker(server))
        for name in names:
            with running(name, server.address, **QUICK) as app:
                attempts = make_attempts(app, amount=amount, first_seed=first_seed)
                report = fuzz(app, attempts, is_server_absent=is_server_absent)
            statuses = ", ".join(f"{count} × {status}" for status, count in sorted(report.statuses.items()))
            print(f"{name}, seed {first_seed}: {report.statuses.total()} requests: {statuses}", flush=True)
            print(f"about workflows of the other user: {dict(report.foreign)}", flush=True)
            for kind, request in report.faults.items():
                print(f"\n{kind}\n  {request}", flush=True)
            is_good = is_good and not report.faults
    return is_good


def _worker(server: DevServer) -> Any:
    """A worker in a thread."""
    from .worker_thread import working

    temporal = Temporal(server.address, task_queue=TASK_QUEUE)
    return working(temporal, TASK_QUEUE, workflows=WORKFLOWS, activities=ACTIVITIES)


if __name__ == "__main__":
    main()
