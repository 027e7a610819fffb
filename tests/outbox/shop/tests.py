"""Tests as users write them, with Django's test runner. ``tests/outbox/test_django.py`` runs them."""

import itertools
import logging
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connections, transaction
from django.test import SimpleTestCase, TestCase, TransactionTestCase

import durably
import durably.django
from durably.django.models import OutboxEvent, TransactionResult
from durably.django.outbox import relays
from durably.errors import FunctionConfigInvalidError
from durably.testing import TestEngine

from . import durable
from .models import Order, Shipment

FUNCTIONS = [durable.fulfil, durable.thank]


class SendTest(TestCase):
    databases = ("default", "other")

    def setUp(self) -> None:
        self.engine = self.enterContext(TestEngine(durable.client, FUNCTIONS).sync())

    def test_committed_event_starts_a_run(self) -> None:
        with self.captureOnCommitCallbacks(execute=True):
            durable.place("a", fails=False)
        [run] = self.engine.runs(durable.fulfil)
        run.wait().assert_completed()
        assert Shipment.objects.get().ref == "a"
        assert [each.ref for each in Order.objects.all()] == ["a"]

    def test_rolled_back_event_starts_none(self) -> None:
        with self.captureOnCommitCallbacks(execute=True):
            durable.place("a", fails=True)
        assert self.engine.runs() == []
        assert not OutboxEvent.objects.exists()

    def test_event_stays_in_the_outbox_until_the_commit(self) -> None:
        durable.place("a", fails=False)
        assert self.engine.runs() == []
        assert OutboxEvent.objects.count() == 1

    def test_each_database_has_an_outbox(self) -> None:
        with self.captureOnCommitCallbacks(using="other", execute=True):
            ids = durably.django.send(
                [durably.Event(name="shop/shipped", data={"ref": ref}) for ref in "ab"], using="other"
            )
            assert OutboxEvent.objects.using("other").count() == 2
            assert OutboxEvent.objects.count() == 0
        assert len(set(ids)) == 2
        assert len(self.engine.runs(durable.thank)) == 2
        assert OutboxEvent.objects.using("other").count() == 0

    def test_refused_event_is_kept_with_its_reason(self) -> None:
        logging.disable(logging.ERROR)
        self.addCleanup(logging.disable, logging.NOTSET)
        with self.captureOnCommitCallbacks(execute=True):
            durably.django.send(durably.Event(name="inngest/reserved"))
            durable.place("a", fails=False)
        assert len(self.engine.runs(durable.fulfil)) == 1
        row = OutboxEvent.objects.get()
        assert "reserved" in str(row.error)
        assert relays["default"].backlog().refused == 1


class AdminTest(TestCase):
    def setUp(self) -> None:
        self.client.force_login(User.objects.create_superuser("ada"))
        self.waiting = OutboxEvent.objects.create(app="shop", event='{"name": "shop/waiting"}')
        self.refused = OutboxEvent.objects.create(app="shop", event='{"name": "shop/refused"}', error="it has no id")

    def test_events_are_listed_and_refused_ones_can_be_sent_again(self) -> None:
        page = "/admin/durably/outboxevent/"
        self.assertContains(self.client.get(page), "it has no id")
        assert self.client.get(f"{page}?error__isempty=0").content.count(b"shop/") == 1
        self.client.post(page, {"action": "send_again", "_selected_action": [self.refused.pk]})
        assert OutboxEvent.objects.filter(error=None).count() == 2

    def test_a_correction_is_sent(self) -> None:
        page = f"/admin/durably/outboxevent/{self.refused.pk}/change/"
        self.assertContains(self.client.get(page), "it has no id")
        corrected = '{"name": "shop/refused", "id": "a"}'
        assert self.client.post(page, {"event": corrected}).status_code == 302
        self.refused.refresh_from_db()
        assert (self.refused.event, self.refused.error) == (corrected, None)
        waiting = f"/admin/durably/outboxevent/{self.waiting.pk}/change/"
        assert self.client.post(waiting, {"event": "x"}).status_code == 403


class WithoutEngineTest(TestCase):
    def test_events_wait_in_the_outbox(self) -> None:
        with self.captureOnCommitCallbacks(execute=True):
            durable.place("a", fails=False)
        assert OutboxEvent.objects.count() == 1


class CommitTest(TransactionTestCase):
    """Really commits."""

    def test_events_are_sent_at_the_commit(self) -> None:
        with TestEngine(durable.client, FUNCTIONS).sync() as engine:
            durable.place("a", fails=True)
            with transaction.atomic():
                durable.place("b", fails=False)
                assert engine.runs() == []
            [run] = engine.runs(durable.fulfil)
            run.wait().assert_completed()
            assert [each.ref for each in Shipment.objects.all()] == ["b"]
            assert len(engine.runs(durable.thank)) == 1  # which `ship` sends

    def test_step_of_an_async_function_is_a_transaction(self) -> None:
        @durable.client.create_function(fn_id="ship", trigger=durably.TriggerEvent(event="ship"))
        async def run_ship(ctx: durably.Context) -> int:
            return await ctx.step.run("ship", durable.ship, "c")

        with TestEngine(durable.client, [run_ship]).sync() as engine:
            engine.send(durably.Event(name="ship")).wait().assert_completed()
        assert [each.ref for each in Shipment.objects.all()] == ["c"]
        assert TransactionResult.objects.count() == 1

    async def test_async_code_sends(self) -> None:
        event = durably.Event(name="shop/shipped", data={"ref": "b"})
        async with TestEngine(durable.client, [durable.thank]) as engine:
            await sync_to_async(durably.django.send)(event)
            [run] = engine.runs()
            (await run.wait()).assert_completed(output="b")


class TransactionTest(TestCase):
    databases = ("default", "other")

    def test_committed_step_is_not_repeated(self) -> None:
        results = itertools.count(1)

        @durably.django.transaction(using="other")
        def pay(by: str, *, cents: int) -> dict[str, Any]:
            return {"number": next(results), "by": by, "cents": cents}

        def lose_first() -> dict[str, Any]:
            found = pay("ada", cents=900)
            if not lost:
                lost.append(found)
                raise RuntimeError("lost")
            return found

        lost: list[object] = []

        @durable.client.create_function(fn_id="pay", trigger=durably.TriggerEvent(event="pay"))
        def run_pay(ctx: durably.ContextSync) -> list[Any]:
            return [ctx.step.run("first", lose_first), ctx.step.run("second", pay, "ada", cents=1)]

        with TestEngine(durable.client, [run_pay]).sync() as engine:
            engine.send(durably.Event(name="pay")).wait().assert_completed(
                output=[{"number": 1, "by": "ada", "cents": 900}, {"number": 2, "by": "ada", "cents": 1}]
            )
        assert TransactionResult.objects.using("other").count() == 2
        assert pay("ada", cents=2)["number"] == 3  # outside of steps

    def test_async_handler_is_refused(self) -> None:
        async def pay() -> None: ...

        with pytest.raises(FunctionConfigInvalidError, match="async"):
            durably.django.transaction(pay)


class ProjectTest(SimpleTestCase):
    databases = ("default",)

    def test_the_migrations_are_complete(self) -> None:
        call_command("makemigrations", "durably", check=True, dry_run=True, verbosity=0)

    def test_a_database_without_a_relay_is_named(self) -> None:
        before = dict(relays)
        self.addCleanup(relays.update, before)
        relays.clear()
        with pytest.raises(FunctionConfigInvalidError, match=r"durable\.py"):
            durably.django.send(durably.Event(name="shop/placed"))

    def test_relays_are_those_of_the_databases(self) -> None:
        assert sorted(relays) == sorted(connections)
