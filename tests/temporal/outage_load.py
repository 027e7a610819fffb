"""Requests of all kinds that go on while the server behind an app is killed, is away and comes back."""

import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..waiting import eventually
from .app_server import Answer, AppServer

PATIENCE = 120.0
PACE = 0.6
"""Seconds between two requests of a kind, so that a small machine has time for other things."""

FOR_WORKERS = frozenset({"query", "update"})
"""Kinds that a worker answers, which may come to 504."""

MAY_WAIT = "update"
"""The server gives what it had handed to a worker ten seconds: then only it is asked of a worker again."""


@dataclass
class Told:
    """What a request of a kind came to; ``status`` is the exception's name if there was no answer."""

    kind: str
    phase: str
    status: int | str
    headers: Any = field(default_factory=dict)
    body: bytes = b""


class Load:
    """One thread for each kind of request to one app, and three requests that are held all the while."""

    def __init__(self, app: AppServer) -> None:
        self.app = app
        self.phase = "before"
        self.told: list[Told] = []
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
        """In the present phase."""

        def have_had() -> bool:
            had = {told.kind for told in list(self.told) if told.phase == self.phase and told.status in statuses}
            return had >= self._kinds.keys() - {MAY_WAIT}

        eventually(have_had, f"{statuses} for each kind of request in {self.app.name}")

    def end(self) -> None:
        """Also of the workflow that the held requests are about."""
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
            self.told.append(Told(kind, phase, f"{type(error).__name__}: {error}"))
        else:
            self.told.append(Told(kind, phase, answer.status, answer.headers, answer.body))

    def _follow(self) -> None:
        for event in self.app.events(f"{self.place}/events"):
            self.events.append(event)
