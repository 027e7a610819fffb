"""Requests of all kinds during an outage: the server behind an app is killed and started again."""

import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..waiting import eventually
from ..wire import Answer
from .app_server import AppServer

PATIENCE = 120.0
PACE = 0.6
"""Seconds between two requests of a kind, so that a small machine has time for other work."""

FOR_WORKERS = frozenset({"query", "update"})
"""Kinds that a worker answers. They may end with 504."""

MAY_WAIT = "update"
"""The server waits ten seconds for a worker's answer before it gives the task to another worker."""


@dataclass
class Outcome:
    """The outcome of a request; ``status`` is the exception's name if there was no answer."""

    kind: str
    phase: str
    status: int | str
    headers: Any = field(default_factory=dict)
    body: bytes = b""


class Load:
    """One thread for each kind of request to one app, and three requests that stay open."""

    def __init__(self, app: AppServer) -> None:
        self.app = app
        self.phase = "before"
        self.outcomes: list[Outcome] = []
        self.events: list[dict[str, str]] = []
        self._stop = threading.Event()
        self.place = place = self._place_order()
        busy = self._place_order()
        self._kinds: dict[str, Callable[[], Answer]] = {
            "start": lambda: app.post("/open/sleeping", headers={"Idempotency-Key": uuid.uuid4().hex}),
            "list": lambda: app.get("/open/orders"),
            "describe": lambda: app.get(place),
            "result": lambda: app.get(f"{place}/result"),
            "history": lambda: app.get(f"{place}/history"),
            "signal": lambda: app.post(f"{busy}/signals/add_note", {"text": "fragile"}),
            "query": lambda: app.get(f"{place}/queries/state"),
            "update": lambda: app.post(f"{busy}/updates/change_address", {"address": "here"}),
            "direct": lambda: app.get(f"/direct/{place.rpartition('/')[2]}"),
        }
        self._holding = [
            threading.Thread(target=self._ask, args=("long poll", lambda: app.get(f"{place}/result", wait=60))),
            threading.Thread(target=self._follow),
        ]
        self._repeating = [threading.Thread(target=self._repeat, args=item) for item in self._kinds.items()]

    def _place_order(self) -> str:
        order = {"order_id": uuid.uuid4().hex, "amount": 1, "lines": ["wait"]}
        return str(self.app.post("/open/orders", order).headers["Location"])

    def start(self) -> None:
        for thread in (*self._holding, *self._repeating):
            thread.start()

    def wait_until_each_kind_had(self, *statuses: int) -> None:
        """Wait until each kind had a request in the current phase."""

        def have_had() -> bool:
            had = {
                outcome.kind
                for outcome in list(self.outcomes)
                if outcome.phase == self.phase and outcome.status in statuses
            }
            return had >= self._kinds.keys() - {MAY_WAIT}

        eventually(have_had, f"{statuses} for each kind of request in {self.app.name}")

    def end(self) -> None:
        """End the threads and the workflow of the open requests."""
        self._stop.set()
        assert self.app.post(f"{self.place}/signals/ship").status == 202

    def join(self) -> None:
        for thread in (*self._repeating, *self._holding):
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a request never ends"

    def _repeat(self, kind: str, ask: Callable[[], Answer]) -> None:
        while not self._stop.wait(PACE):
            self._ask(kind, ask)

    def _ask(self, kind: str, ask: Callable[[], Answer]) -> None:
        phase = self.phase
        try:
            answer = ask()
        except Exception as error:
            self.outcomes.append(Outcome(kind, phase, f"{type(error).__name__}: {error}"))
        else:
            self.outcomes.append(Outcome(kind, phase, answer.status, answer.headers, answer.body))

    def _follow(self) -> None:
        for event in self.app.events(f"{self.place}/events"):
            self.events.append(event)
