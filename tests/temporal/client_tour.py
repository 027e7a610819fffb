"""A program with ``made_client``, which openapi-python-client has generated: ``python client_tour.py ORIGIN …``.

mypy checks it with the types of the client.
"""

import sys
import uuid

import httpx
from made_client import Client
from made_client.api.orders import (
    describe_orders,
    list_orders,
    query_orders_note,
    query_orders_note_get,
    result_orders,
    signal_orders_add_note,
    signal_orders_ship,
    start_orders,
    update_orders_change_address,
)
from made_client.models import (
    Accepted,
    Description,
    Order,
    OrdersAddNoteInput,
    OrdersChangeAddressDone,
    OrdersChangeAddressInput,
    OrdersNoteAnswer,
    OrdersNoteInput,
    OrdersResult,
    Page,
    ProblemDocument,
    Started,
)


def tour(client: Client) -> None:
    order = Order(order_id=uuid.uuid4().hex, amount=3, lines=["wait"])
    started = start_orders.sync(client=client, body=order, idempotency_key=uuid.uuid4().hex)
    assert isinstance(started, Started), started
    id = started.workflow_id

    described = describe_orders.sync(id, client=client)
    assert isinstance(described, Description), described
    assert described.memo is not None
    assert (described.status, described.workflow_id) == ("running", id)

    accepted = signal_orders_add_note.sync(id, client=client, body=OrdersAddNoteInput(text="fragile"))
    assert isinstance(accepted, Accepted), accepted
    for answer in (
        query_orders_note.sync(id, client=client, body=OrdersNoteInput(index=0)),
        query_orders_note_get.sync(id, client=client, index=0),
    ):
        assert isinstance(answer, OrdersNoteAnswer), answer
        assert answer.result == "fragile"

    done = update_orders_change_address.sync(id, client=client, body=OrdersChangeAddressInput(address="here"))
    assert isinstance(done, OrdersChangeAddressDone), done
    assert done.result == ""

    waiting = result_orders.sync(id, client=client)
    assert isinstance(waiting, Started), waiting
    assert isinstance(signal_orders_ship.sync(id, client=client), Accepted)
    completed = result_orders.sync(id, client=client, wait=30)
    assert isinstance(completed, OrdersResult), completed
    assert (completed.result.paid, completed.result.note) == (3.0, "fragile")

    page = list_orders.sync(client=client, page_size=1)
    assert isinstance(page, Page), page
    assert all(workflow.workflow == "OrderWorkflow" for workflow in page.workflows)

    problem = describe_orders.sync("absent", client=client)
    assert isinstance(problem, ProblemDocument), problem
    assert (problem.status, problem.type_) == (404, "urn:durably:problem:not-found")


if __name__ == "__main__":
    for origin in sys.argv[1:]:
        with Client(origin, timeout=httpx.Timeout(60)) as client:
            tour(client)
        print(origin)
