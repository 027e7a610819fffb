"""Workflows of the tests: an order that is paid, changed and shipped, and some that fail or wait."""

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta

from temporalio import activity, workflow
from temporalio.common import RetryPolicy, SearchAttributeKey
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from pydantic import BaseModel, Field


class Order(BaseModel):
    order_id: str = Field(min_length=1, max_length=40, description="The shop's own id.")
    amount: float = Field(ge=0)
    lines: list[str] = []


class Receipt(BaseModel):
    order_id: str
    paid: float
    note: str = ""


@activity.defn
async def charge(order: Order) -> str:
    if "decline" in order.lines:
        raise ApplicationError(
            "the card was declined", {"card": "4242-secret"}, type="CardDeclined", non_retryable=True
        )
    if "flaky" in order.lines:
        raise ApplicationError("the bank does not answer", type="BankAway")
    return f"charged {order.amount}"


@workflow.defn
class OrderWorkflow:
    """Charges an order, and waits until it is shipped."""

    def __init__(self) -> None:
        self.status = "placed"
        self.notes: list[str] = []
        self.shipped = False
        self.address = ""
        self.order: Order | None = None

    @workflow.run
    async def run(self, order: Order) -> Receipt:
        self.order = order
        await workflow.execute_activity(
            charge,
            order,
            start_to_close_timeout=timedelta(seconds=10),
            retry_policy=RetryPolicy(
                initial_interval=timedelta(milliseconds=50), maximum_interval=timedelta(seconds=1)
            ),
        )
        self.status = "charged"
        if "wait" in order.lines:
            await workflow.wait_condition(lambda: self.shipped)
            self.status = "shipped"
        return Receipt(order_id=order.order_id, paid=order.amount, note=",".join(self.notes))

    @workflow.signal
    def ship(self) -> None:
        """The order was shipped."""
        self.shipped = True

    @workflow.signal
    def add_note(self, text: str) -> None:
        self.notes.append(text)

    @workflow.signal
    def secret(self) -> None:
        """Not exposed by the tests' gateway."""

    @workflow.query
    def state(self) -> str:
        return self.status

    @workflow.query
    def note(self, index: int) -> str:
        return self.notes[index]

    @workflow.query
    def has_lines(self, lines: list[str]) -> bool:
        return self.order is not None and self.order.lines == lines

    @workflow.update
    async def change_address(self, address: str) -> str:
        before, self.address = self.address, address
        return before

    @workflow.update
    def decide(self, secret: str) -> str:
        """Not exposed by the tests' gateways."""
        if secret == "refused":
            raise ApplicationError("a secret reason")
        return secret

    @change_address.validator
    def check_address(self, address: str) -> None:
        if not address:
            raise ApplicationError("an address is needed", type="AddressMissing")


@dataclass
class Pair:
    left: int
    right: list[int] = field(default_factory=list)


@workflow.defn(name="sum-of-pair")
class SumWorkflow:
    @workflow.run
    async def run(self, pair: Pair, factor: int = 1) -> int:
        return (pair.left + sum(pair.right)) * factor


@workflow.defn
class SleepingWorkflow:
    @workflow.run
    async def run(self) -> str:
        await asyncio.sleep(3600)
        return "awake"


@workflow.defn
class MistypedWorkflow:
    """Its results and answers do not match its type hints."""

    def __init__(self) -> None:
        self.is_over = False

    @workflow.run
    async def run(self) -> Receipt:
        await workflow.wait_condition(lambda: self.is_over)
        return {"order_id": "1", "paid": "top secret"}  # type: ignore[return-value]

    @workflow.query
    def size(self) -> int:
        return "top secret"  # type: ignore[return-value]

    @workflow.update
    def finish(self) -> list[int]:
        self.is_over = True
        return [1, "top secret"]  # type: ignore[list-item]


@workflow.defn
class ChainWorkflow:
    """Ends each of its two runs as its input says."""

    @workflow.run
    async def run(self, how: str, run: int = 1) -> str:
        info = workflow.info()
        if how == "hand over":
            workflow.upsert_search_attributes([SearchAttributeKey.for_keyword("DurablyOwner").value_set("bob")])
        elif how == "continue as new" and run == 1:
            workflow.continue_as_new(args=[how, 2])
        elif how == "retry" and info.attempt == 1:
            raise ApplicationError("once more")
        await workflow.wait_condition(lambda: False)
        return how


@workflow.defn
class StepsWorkflow:
    """Does its steps: ``again`` continues as new, ``fail`` fails the first attempt, ``wait`` waits for ``go``,
    ``hand over`` gives it to Bob, ``become another`` continues as another type."""

    def __init__(self) -> None:
        self.may_go = False

    @workflow.run
    async def run(self, steps: list[str]) -> str:
        for number, step in enumerate(steps):
            if step == "again":
                workflow.continue_as_new(steps[number + 1 :])
            if step == "become another":
                workflow.continue_as_new(workflow="SleepingWorkflow")
            if step == "hand over":
                workflow.upsert_search_attributes([SearchAttributeKey.for_keyword("DurablyOwner").value_set("bob")])
            if step == "fail" and workflow.info().attempt == 1:
                raise ApplicationError("the first attempt fails")
            if step == "wait":
                await workflow.wait_condition(lambda: self.may_go)
        return "done"

    @workflow.signal
    def go(self) -> None:
        self.may_go = True


WORKFLOWS = [OrderWorkflow, SumWorkflow, SleepingWorkflow, MistypedWorkflow, ChainWorkflow, StepsWorkflow]
ACTIVITIES = [charge]
TASK_QUEUE = "orders"
