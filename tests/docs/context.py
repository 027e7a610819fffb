"""Names that the examples of the pages leave to the reader: a client, workflows, activities, users."""

import asyncio
import datetime
import os
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any
from unittest.mock import MagicMock
from uuid import UUID

from temporalio import activity, workflow

import durably
from durably.engine.model.runs import Run
from durably.temporal import Temporal
from durably.temporal.gateway import Gateway
from durably.testing import SyncTestEngine, SyncTestRun, TestEngine, TestRun

KNOWN: dict[str, tuple[type, ...]] = {
    "ctx": (durably.Context, durably.ContextSync),
    "client": (durably.Client,),
    "engine": (durably.Embedded, TestEngine, SyncTestEngine),
    "run": (TestRun, SyncTestRun, Run),
    "temporal": (Temporal,),
    "gateway": (Gateway,),
}
"""The classes of names that pages use and do not define."""


@dataclass
class Order:
    order_id: str = ""
    amount: float = 0


@workflow.defn
class OrderWorkflow:
    @workflow.run
    async def run(self, order: Order) -> str:
        return ""

    @workflow.signal
    def ship(self) -> None: ...

    @workflow.query
    def state(self) -> str:
        return ""

    @workflow.update
    async def change_address(self, address: str) -> str:
        return address


@workflow.defn
class InvoiceWorkflow:
    @workflow.run
    async def run(self, customer: str) -> None: ...


@activity.defn
async def process_order(order: Order) -> str:
    return ""


@activity.defn
async def send_mail(to: str, subject: str) -> None: ...


order_placed = durably.EventType("shop/order.placed", dict)


def may(action: Any) -> bool:
    return True


def current_user(request: Any = None) -> str | None:
    return None


modules = [asyncio, datetime, timedelta, os, Decimal, UUID]
"""Names that every page may use without their imports."""

vault = MagicMock()
vault.read.return_value = ["2026:" + "A" * 43 + "="]
key = "secret"


def make() -> dict[str, Any]:
    """The names, with objects of their own for each block."""
    client = durably.Client(app_id="shop", is_production=False)

    @client.create_function(fn_id="report", trigger=durably.TriggerEvent(event="shop/report"))
    def function(ctx: durably.ContextSync) -> None: ...

    temporal = Temporal(task_queue="orders")
    gateway = Gateway(temporal, [], allow_anonymous=True)
    own = {"client": client, "temporal": temporal, "gateway": gateway, "functions": [function]}
    return globals() | own | dict.fromkeys(("greet", "onboard", "report", "checkout"), function)


def public() -> dict[str, Any]:
    """Names that pages use in their text without an import."""
    from durably import encryption, testing
    from durably.temporal import gateway
    from durably.testing import temporal as temporal_tests

    names: dict[str, Any] = {"durably": durably, "Temporal": Temporal}
    for module in (durably, encryption, testing, gateway, temporal_tests):
        names |= {name: getattr(module, name) for name in module.__all__}
    return names
