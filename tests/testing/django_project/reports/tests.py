from django.test import TestCase

import durably
from durably.testing import TestEngine

from .functions import client, report, report_async
from .models import Report


class ReportTest(TestCase):
    def setUp(self) -> None:
        self.engine = self.enterContext(TestEngine(client, [report]).sync())

    def test_a_function_sees_the_tests_transaction(self) -> None:
        Report.objects.create(title="there before")
        run = self.engine.send(durably.Event(name="report/asked", data={"title": "Sales"}))
        assert Report.objects.filter(is_ready=False).count() == 2
        run.wait()
        assert Report.objects.get(is_ready=True).title == "Sales"

    def test_what_a_function_wrote_is_rolled_back(self) -> None:
        assert Report.objects.count() == 0
        self.engine.send(durably.Event(name="report/asked", data={"title": "Sales"})).wait()
        assert Report.objects.count() == 1

    def test_from_the_view_to_the_report(self) -> None:
        answer = self.client.post("/ask", {"title": "Stock"})
        assert answer.status_code == 202
        self.engine.advance(hours=12)
        (run,) = self.engine.runs(report)
        run.assert_completed(output=Report.objects.get(title="Stock", is_ready=True).pk)

    def test_the_dashboard_shows_the_run(self) -> None:
        run = self.engine.send(durably.Event(name="report/asked", data={"title": "Sales"}))
        answer = self.client.get(f"/durably/runs/{run.id}")
        self.assertContains(answer, "overnight")


class AsyncReportTest(TestCase):
    async def test_an_async_function_sees_the_tests_transaction(self) -> None:
        await Report.objects.acreate(title="there before")
        async with TestEngine(client, [report_async]) as engine:
            run = await engine.send(durably.Event(name="report/asked.async", data={"title": "Sales"}))
            await run.wait()
        assert await Report.objects.acount() == 2
