"""Workflows of another connection."""

from datetime import timedelta

from temporalio import workflow

from durably.temporal.django import connections

from . import activities

TEMPORAL_CONNECTION = "billing"

connections["billing"].add_schedule("monthly-invoices", "InvoiceWorkflow", "all", cron="0 3 1 * *")


@workflow.defn
class InvoiceWorkflow:
    @workflow.run
    async def run(self, customer: str) -> str:
        return await workflow.execute_activity(
            activities.send_invoice, customer, start_to_close_timeout=timedelta(seconds=10)
        )
