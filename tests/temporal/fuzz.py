"""Malformed requests by the thousand, made from the OpenAPI document: ``python -m tests.temporal.fuzz``.

schemathesis makes requests that are as the document says, and requests that are not; half of them are about workflows
that exist. No answer may be an error of the server's, and each must be as the document says. With ``--absent`` there is
no Temporal server, and what makes sense is answered with 503. Exits with 1 and the requests, as curl commands, whose
answers are not as they should be. The short form of it is a test.
"""

import argparse
import functools
import itertools
import json
import math
import random
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
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


@dataclass
class Report:
    """``faults`` has one request of each kind of fault."""

    is_server_absent: bool = False
    statuses: Counter[int] = field(default_factory=Counter)
    faults: dict[str, str] = field(default_factory=dict)

    def add(self, case: Case, response: Response) -> None:
        self.statuses[response.status_code] += 1
        label = f"{case.operation.label}: {response.status_code}"
        is_told_to_come_again = response.status_code == 503 and "retry-after" in response.headers
        if response.status_code >= 500 and not (self.is_server_absent and is_told_to_come_again):
            self._note(f"{label}: an error of the server's", case, response)
        # schemathesis holds each event against the schema, which is of the stream as a whole.
        is_stream = response.headers["content-type"][0].startswith("text/event-stream")
        checks = CHECKS if is_stream else [*CHECKS, response_schema_conformance]
        try:
            case.validate_response(response, checks=checks)
        except FailureGroup as failures:
            for failure in failures.exceptions:
                self._note(f"{label}: {failure.title}", case, response)

    def _note(self, kind: str, case: Case, response: Response) -> None:
        self.faults.setdefault(kind, f"{case.as_curl_command()}\n  {response.text[:500]}")


@dataclass(frozen=True)
class Attempt:
    """A request, and a number that picks the workflow that it is about: 0 leaves the id as it was made."""

    case: Case
    workflow: int


def make_attempts(app: AppServer, *, amount: int, first_seed: int) -> list[Attempt]:
    """At least as many requests to the open gateway of an app. Apps with the same document get the same ones."""
    document = app.get("/openapi.json" if app.name == "fastapi" else "/open/openapi.json").json
    paths = {path: what for path, what in document["paths"].items() if path.startswith("/open/")}
    description = {**document, "paths": paths, "info": {"title": "the gateway", "version": "1"}}
    return _make_attempts(json.dumps(description), amount, first_seed)


@functools.cache
def _make_attempts(document: str, amount: int, first_seed: int) -> list[Attempt]:
    """Most of the time that a short run takes, so that it is spent once for each document."""
    operations = [found.ok() for found in schemathesis.openapi.from_dict(json.loads(document)).get_all_operations()]
    made: list[Attempt] = []

    def make(case: Case, workflow: int) -> None:
        made.append(Attempt(case, workflow))

    next_seed = first_seed
    # Not every operation can be malformed, so that some are left over for another round.
    while (missing := amount - len(made)) > 0:
        each = math.ceil(missing / (2 * len(operations)))
        for operation, mode in itertools.product(operations, GenerationMode):
            _repeat(make, each, next_seed, operation.as_strategy(generation_mode=mode), st.integers(0, 4))
        next_seed += 1
    return made


def fuzz(app: AppServer, attempts: Iterable[Attempt], *, is_server_absent: bool = False) -> Report:
    """Send requests to the open gateway of an app, with a server and a worker behind it or none."""
    known = {} if is_server_absent else {"orders": _place_orders(app), "sleeping": _start_sleeping(app)}
    report = Report(is_server_absent)
    session = requests.Session()
    for attempt in attempts:
        case = attempt.case
        made = case.path_parameters
        ids = [None, *known.get(case.operation.path.split("/")[2], [])]
        workflow_id = ids[attempt.workflow % len(ids)]
        if workflow_id is not None and "workflow_id" in (made or {}):
            case.path_parameters = {**made, "workflow_id": workflow_id}
        report.add(case, case.call(base_url=app.origin, session=session, timeout=60, allow_redirects=False))
        case.path_parameters = made
    return report


def _repeat(make: Callable[..., None], times: int, first_seed: int, *strategies: Any) -> None:
    checks = list(HealthCheck)
    repeated = settings(
        max_examples=times, deadline=None, suppress_health_check=checks, phases=[Phase.generate], database=None
    )(seed(first_seed)(given(*strategies)(make)))
    try:
        repeated()
    except Unsatisfiable:
        """Nothing of such an operation can be wrong."""


def _place_orders(app: AppServer) -> list[str]:
    orders = [{"order_id": uuid.uuid4().hex, "amount": 1, "lines": ["wait"]} for _ in range(4)]
    return [app.post("/open/orders", order).json["workflow_id"] for order in orders]


def _start_sleeping(app: AppServer) -> list[str]:
    return [app.post("/open/sleeping").json["workflow_id"] for _ in range(2)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Send malformed requests to the gateway in each framework.")
    parser.add_argument("--requests", type=int, default=10_000, help="to each framework")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--absent", action="store_true", help="without a Temporal server")
    parser.add_argument("--framework", action="append", choices=SERVERS, help="all unless given")
    arguments = parser.parse_args()
    first_seed = random.randrange(1_000_000) if arguments.seed is None else arguments.seed
    names = arguments.framework or list(SERVERS)
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
            for kind, request in report.faults.items():
                print(f"\n{kind}\n  {request}", flush=True)
            is_good = is_good and not report.faults
    return is_good


def _worker(server: DevServer) -> Any:
    """In a thread of its own."""
    from .worker_thread import working

    temporal = Temporal(server.address, task_queue=TASK_QUEUE)
    return working(temporal, TASK_QUEUE, workflows=WORKFLOWS, activities=ACTIVITIES)


if __name__ == "__main__":
    main()
