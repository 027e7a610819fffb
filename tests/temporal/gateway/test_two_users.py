"""Two users at one gateway with owners, in each framework: neither can reach the workflows of the other."""

import uuid
from typing import Any

import pytest

from ...waiting import eventually
from ...wire import Answer
from ..app_server import AppServer

pytestmark = pytest.mark.usefixtures("worker")

OPERATIONS = [
    ("GET", "", None),
    ("GET", "/result", None),
    ("GET", "/queries/state", None),
    ("POST", "/queries/note", {"index": 0}),
    ("POST", "/signals/ship", None),
    ("POST", "/updates/change_address", {"address": "b"}),
    ("GET", "/updates/change_address/{update_id}", None),
    ("GET", "/history", None),
    ("GET", "/history/raw", None),
    ("GET", "/events", None),
    ("POST", "/pause", None),
    ("POST", "/resume", None),
    ("POST", "/cancel", None),
    ("POST", "/reset", {"to": "first_workflow_task"}),
    ("POST", "/terminate", None),
]


class User:
    def __init__(self, app: AppServer, name: str) -> None:
        self._app, self.name = app, name

    def ask(self, method: str, path: str, body: Any = None, key: str | None = None, **query: Any) -> Answer:
        headers = {"X-User": self.name, **({} if key is None else {"Idempotency-Key": key})}
        return self._app.ask(method, path if path.startswith("/mine") else f"/mine/{path}", body, headers, **query)


@pytest.fixture
def ada(app: AppServer) -> User:
    return User(app, f"ada-{uuid.uuid4().hex[:8]}")


@pytest.fixture
def bob(app: AppServer) -> User:
    return User(app, f"bob-{uuid.uuid4().hex[:8]}")


@pytest.fixture
def staff(app: AppServer) -> User:
    return User(app, "staff")


def new_order() -> dict[str, Any]:
    return {"order_id": uuid.uuid4().hex, "amount": 3, "lines": ["wait"]}


def replayed(answer: Answer) -> bool:
    return "Idempotent-Replayed" in answer.headers


def test_another_user_cannot_reach_a_workflow(ada: User, bob: User, staff: User) -> None:
    place = ada.ask("POST", "orders", new_order()).headers["Location"]
    update_id = ada.ask("POST", f"{place}/updates/change_address", {"address": "a"}).json["update_id"]
    run_id = ada.ask("GET", place).json["run_id"]
    absent = bob.ask("GET", "orders/none")
    for method, path, body in OPERATIONS:
        refused = bob.ask(method, place + path.format(update_id=update_id), body)
        assert (path, refused.status, refused.json) == (path, 404, absent.json)
        if method == "GET":
            refused = bob.ask(method, place + path.format(update_id=update_id), run_id=run_id)
            assert (path, refused.status, refused.json) == (path, 404, absent.json)
    assert ada.ask("GET", place).json["status"] == "running"
    assert ada.ask("GET", f"{place}/queries/state").status == 200
    assert ada.ask("GET", place).json["memo"] == {"by": ada.name, "lines": 1}
    assert staff.ask("GET", place).json["search_attributes"]["DurablyOwner"] == ada.name
    assert staff.ask("POST", f"{place}/terminate").status == 202


def test_keys_of_starts_are_separate_for_each_user(ada: User, bob: User) -> None:
    body = {"pair": {"left": 20}, "factor": 2}
    first, mine, again = (user.ask("POST", "sum-of-pair", body, key="k") for user in (ada, bob, ada))
    assert first.json["workflow_id"] != mine.json["workflow_id"]
    assert (replayed(first), replayed(mine), replayed(again)) == (False, False, True)
    assert again.json["run_id"] == first.json["run_id"]
    assert bob.ask("GET", first.headers["Location"]).status == 404
    other = {"pair": {"left": 21}}
    for user in (ada, bob):
        assert user.ask("POST", "sum-of-pair", other, key="k").status == 422


def test_a_conflict_with_another_users_id_reveals_nothing(ada: User, bob: User) -> None:
    order = new_order()
    place = ada.ask("POST", "orders", order, key="k").headers["Location"]
    for status in ("running", "terminated"):
        assert ada.ask("GET", place).json["status"] == status
        for path, body in (("orders", order), ("orders/signal-with-start/ship", {"input": order})):
            for key in (None, "k"):
                taken = bob.ask("POST", path, body, key=key)
                assert (taken.status, taken.json["type"]) == (409, "urn:durably:problem:already-started")
                assert taken.json.keys() == {"type", "title", "status", "detail", "workflow_id"}
                assert "Location" not in taken.headers
        assert ada.ask("GET", place).json["status"] == status
        if status == "running":
            assert ada.ask("POST", f"{place}/terminate").status == 202


def test_keys_of_updates_and_signals_are_separate_for_each_user(ada: User, bob: User, staff: User) -> None:
    """Staff can reach the workflow, but have their own idempotency keys."""
    place = ada.ask("POST", "orders", new_order()).headers["Location"]
    for path, body, other in (
        ("updates/change_address", {"address": "a"}, {"address": "b"}),
        ("signals/add_note", {"text": "a"}, {"text": "b"}),
    ):
        asked = [user.ask("POST", f"{place}/{path}", body, key="k") for user in (ada, staff, ada)]
        assert [replayed(answer) for answer in asked] == [False, False, True]
        assert {answer.status for answer in asked} <= {200, 202}
        assert ada.ask("POST", f"{place}/{path}", other, key="k").status == 422
        assert bob.ask("POST", f"{place}/{path}", body, key="k").status == 404
    assert ada.ask("POST", f"{place}/updates/change_address", {"address": "c"}).json["result"] == "a"


def test_lists_show_each_user_its_own_workflows(ada: User, bob: User, staff: User) -> None:
    places = [user.ask("POST", "sleeping").headers["Location"] for user in (ada, ada, bob)]
    ids = [place.rpartition("/")[2] for place in places]

    def listed(user: User, **query: str) -> list[str]:
        page = user.ask("GET", "sleeping", **query)
        assert page.status == 200, page.body
        return sorted(item["workflow_id"] for item in page.json["workflows"])

    eventually(lambda: listed(ada) == sorted(ids[:2]) and listed(bob) == ids[2:], "both users' lists are complete")
    for owner, own in ((ada, ids[:2]), (bob, ids[2:])):
        assert listed(staff, owner=owner.name) == sorted(own)
        assert listed(ada, owner=owner.name) == (sorted(own) if owner is ada else [])
    for place in places:
        assert staff.ask("POST", f"{place}/terminate").status == 202


def test_an_anonymous_principal_cannot_start_or_see_workflows(app: AppServer, ada: User) -> None:
    place = ada.ask("POST", "sleeping").headers["Location"]
    for answer in (app.get(place), app.get("/mine/sleeping"), app.post("/mine/sleeping")):
        assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    ada.ask("POST", f"{place}/terminate")


def test_event_streams_are_bounded_for_each_user_and_freed_when_they_end(app: AppServer, ada: User, bob: User) -> None:
    place, other = (user.ask("POST", "sleeping").headers["Location"] for user in (ada, bob))
    headers = {"X-User": ada.name}
    readers = [app.events(f"{place}/events", headers) for _ in range(4)]
    for reader in readers:
        assert next(reader) == {"retry": "2000"}
    refused = ada.ask("GET", f"{place}/events")
    assert (refused.status, refused.json["type"]) == (429, "urn:durably:problem:too-many-streams")
    assert (refused.headers["Retry-After"], refused.json["limit"]) == ("2", 4)
    assert ada.ask("HEAD", f"{place}/events").status == 429
    assert next(app.events(f"{other}/events", {"X-User": bob.name})) == {"retry": "2000"}
    readers.pop().close()  # The client disconnects.
    eventually(lambda: ada.ask("HEAD", f"{place}/events").status == 200, "the run has ended")
    assert ada.ask("POST", f"{place}/terminate").status == 202
    for reader in readers:
        assert [event["event"] for event in reader][-1] == "problem"
    assert bob.ask("POST", f"{other}/terminate").status == 202
    for _ in range(9):  # Each ends immediately or is never read.
        eventually(lambda: ada.ask("GET", f"{place}/events").status == 200, "the run has ended")
        assert ada.ask("HEAD", f"{place}/events").status == 200
