"""Tests as a Django project has them."""

from django.core import mail
from django.test import TransactionTestCase

from durably.temporal.django import temporal
from durably.temporal.django.worker import discover
from durably.testing.temporal import TemporalServer

from .activities import send_welcome_email
from .workflows import UserSignupWorkflow


class SignUpTest(TransactionTestCase):
    """Activities have their own connections, which see only committed data. So it is not a ``TestCase``."""

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.server = cls.enterClassContext(TemporalServer())

    def sign_up(self, name: str) -> str:
        response = self.client.post("/signup/", {"name": name})
        assert response.status_code == 200
        handle = temporal.sync.get_workflow_handle_for(UserSignupWorkflow.run, response.json()["workflow_id"])
        return handle.result()

    def test_with_the_orm(self) -> None:
        with self.server.working(temporal, declarations=discover()):
            assert self.sign_up("ada") == "Email sent to ada@example.com"
        assert mail.outbox[0].to == ["ada@example.com"]

    def test_with_a_mock(self) -> None:
        with self.server.working(temporal, declarations=discover(), mocks={send_welcome_email: "nothing sent"}):
            assert self.sign_up("eve") == "nothing sent"
        assert mail.outbox == []
