"""The page on authorisation: each example as printed, on a real server of its framework."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ..wire import Answer
from .app_server import AppServer, running
from .authorisation_page import examples
from .dev_server import DevServer

pytestmark = pytest.mark.usefixtures("worker")


class Shop:
    """``user`` is a token, or a user's name in Django."""

    def __init__(self, app: AppServer) -> None:
        self._app = app

    def ask(self, user: str | None, method: str, path: str, body: Any = None) -> Answer:
        headers = {} if user is None else {"Authorization": f"Bearer token-of-{user}", "X-User": user}
        return self._app.ask(method, path if path.startswith("/") else f"/api/{path}", body, headers)

    def place(self, user: str, order_id: str | None = None, lines: Any = ("wait",)) -> Answer:
        order = {"order_id": order_id or uuid.uuid4().hex, "amount": 1, "lines": list(lines)}
        return self.ask(user, "POST", "orders", order)

    def statuses(self, method: str, path: str, *users: str | None) -> list[int]:
        return [self.ask(user, method, path).status for user in users]


@pytest.fixture
def serve_example(server: DevServer) -> Any:
    @contextmanager
    def serve(heading: str) -> Iterator[Shop]:
        with running(heading, server.address, "tests.temporal.authorisation_page") as app:
            yield Shop(app)

    return serve


def test_each_example_has_its_test() -> None:
    assert list(examples()) == [
        "Each user has their own workflows",
        "Each tenant has its own workflows",
        "Staff",
        "Workflows that your own code starts",
        "Django's permissions, with a check of the object",
        "FastAPI's dependencies",
    ]


@pytest.mark.slow
def test_example_of_each_user_isolates_users(serve_example: Any) -> None:
    with serve_example("Each user has their own workflows") as shop:
        place = shop.place("ada").headers["Location"]
        assert shop.statuses("GET", place, "ada", "bob", None, "stranger") == [200, 404, 401, 401]
        assert shop.statuses("GET", "orders", "ada", "bob", None) == [200, 200, 401]
        others = shop.ask("bob", "GET", "orders").json["workflows"]
        assert place.rpartition("/")[2] not in {workflow["workflow_id"] for workflow in others}
        assert shop.statuses("POST", f"{place}/cancel", "bob", "ada") == [404, 202]


@pytest.mark.slow
def test_example_of_each_tenant_isolates_tenants(serve_example: Any) -> None:
    order_id = uuid.uuid4().hex
    with serve_example("Each tenant has its own workflows") as shop:
        place = shop.place("ada", order_id).headers["Location"]
        assert place == f"/api/orders/acme-{order_id}"
        assert shop.place("eve", order_id).headers["Location"] == f"/api/orders/other-{order_id}"
        assert shop.ask("bob", "GET", place).json["memo"] == {"placed_by": 1}
        assert shop.statuses("GET", place, "ada", "bob", "eve", None) == [200, 200, 404, 401]
        assert shop.statuses("POST", f"{place}/cancel", "bob", "eve", "ada") == [403, 404, 202]
        assert shop.ask("eve", "POST", f"/api/orders/other-{order_id}/cancel").status == 202


@pytest.mark.slow
def test_example_of_staff_allows_staff_only(serve_example: Any) -> None:
    with serve_example("Staff") as shop:
        place = shop.place("ada").headers["Location"]
        assert shop.statuses("GET", place, "ada", "bob", "staff", None) == [200, 404, 200, 401]
        operators = place.replace("orders", "all-orders", 1)
        assert shop.statuses("POST", f"{operators}/terminate", "ada", "bob", "staff") == [403, 403, 202]


@pytest.mark.slow
def test_workflows_that_the_app_starts(serve_example: Any) -> None:
    with serve_example("Workflows that your own code starts") as shop:
        order = {"order_id": uuid.uuid4().hex, "amount": 1, "lines": ["wait"]}
        placed = shop.ask("ada", "POST", "/place-order", order).json["workflow_id"]
        assert shop.statuses("GET", f"orders/{placed}", "ada", "bob", None) == [200, 404, 401]
        assert placed in [row["workflow_id"] for row in shop.ask("ada", "GET", "orders").json["workflows"]]
        assert shop.place("ada").status == 405
        assert shop.statuses("POST", f"orders/{placed}/cancel", "bob", "ada") == [404, 202]


def test_example_of_djangos_permissions_checks_them(serve_example: Any) -> None:
    with serve_example("Django's permissions, with a check of the object") as shop:
        assert shop.place("eve").status == 403
        place = shop.place("ada").headers["Location"]
        locked = shop.place("ada", lines=["wait", "locked"]).headers["Location"]
        assert shop.statuses("GET", place, "ada", "bob", "root", None) == [200, 404, 200, 401]
        assert shop.statuses("POST", f"{locked}/cancel", "ada", "root") == [403, 403]
        assert shop.statuses("POST", f"{place}/cancel", "bob", "ada") == [403, 202]


@pytest.mark.slow
def test_example_of_fast_apis_dependencies_checks_them(serve_example: Any) -> None:
    with serve_example("FastAPI's dependencies") as shop:
        place = shop.place("ada").headers["Location"]
        assert shop.statuses("GET", place, "ada", "bob", "eve", None) == [200, 200, 403, 401]
        assert shop.statuses("GET", "/api/orders/none", "ada", "eve") == [403, 403]
        assert shop.statuses("POST", f"{place}/cancel", "bob", "ada") == [403, 202]
