"""Page tokens: each is valid for one request only."""

import logging
import uuid
from dataclasses import replace
from typing import Any

import pytest

from durably.io.background_loop import get_background_loop
from durably.temporal import Temporal, TemporalSettingsError
from durably.temporal.gateway import FOR_OPERATORS, Gateway, expose
from durably.temporal.gateway.authorization import principal_key
from durably.temporal.gateway.problems import Problem
from durably.temporal.gateway.services import VARIABLE, PageTokens

from ...waiting import async_eventually
from ..app_server import AppServer
from ..dev_server import BILLING
from ..workflows import SleepingWorkflow
from .gateway_client import Answer, make_request

SECRET = "for tests only, and long enough"
REFUSAL = "page is not a next_page of this request"


class Site:
    """A gateway with two exposures, ``ours`` and ``theirs``, and three workflows of each."""

    def __init__(self, temporal: Temporal, mark: str, **options: Any) -> None:
        self.temporal, self.mark, self.options = temporal, mark, options
        exposed = [
            replace(exposure, workflow_type=f"{exposure.name}-{mark}")
            for exposure in (
                expose(SleepingWorkflow, name=name, operations=FOR_OPERATORS) for name in ("ours", "theirs")
            )
        ]
        self.gateway = Gateway(temporal, exposed, authorize=lambda action: True, **options)

    async def fill(self) -> None:
        client = await self.temporal.client()
        for name in ("ours", "theirs"):
            for number in range(3):
                await client.start_workflow(
                    f"{name}-{self.mark}", id=f"{name}-{self.mark}-{number}", task_queue="unpolled"
                )

        async def are_listed() -> bool:
            pages = [await self.ask(name) for name in ("ours", "theirs")]
            return [len(page.json["workflows"]) for page in pages] == [3, 3]

        await async_eventually(are_listed, "all workflows are listed")

    async def ask(self, path: str, principal: Any = "ada", secrets: Any = (), **query: str) -> Answer:
        request = replace(make_request(principal, "GET", path, **query), secrets=secrets)
        return Answer(await self.gateway.handle(request))

    def again(self, **options: Any) -> "Site":
        """The same app in another process."""
        return Site(self.temporal, self.mark, **(options or self.options))


@pytest.fixture(scope="module")
def site(temporal: Temporal) -> Site:
    made = Site(temporal, uuid.uuid4().hex, secret=SECRET)
    get_background_loop().run(made.fill())
    return made


async def test_a_page_token_of_a_list_is_bound_to_user_exposure_and_query(site: Site) -> None:
    query = {"started_after": "2020-01-01T00:00:00Z", "status": "running"}
    first = await site.ask("ours", page_size="1", **query)
    page = first.json["next_page"]
    seconds = [await each.ask("ours", page_size="2", page=page, **query) for each in (site, site.again())]
    assert [len(second.json["workflows"]) for second in seconds] == [2, 2]
    others = [
        await site.ask("ours", principal="bob", page=page, **query),
        await site.ask("ours", principal=None, page=page, **query),
        await site.ask("theirs", page=page, **query),
        await site.ask("ours", page=page, status="running"),
        await site.ask("ours", page=page, **{**query, "started_after": "2020-01-02T00:00:00Z"}),
        await site.ask("ours", page=page, **{**query, "status": "completed"}),
        await site.ask(f"ours/ours-{site.mark}-0/history", page=page),
        await site.again(secret="another one, long enough").ask("ours", page=page, **query),
    ]
    assert [(other.status, other.json["detail"]) for other in others] == [(400, REFUSAL)] * len(others)


async def test_a_page_token_of_a_history_is_bound_to_user_workflow_and_run(site: Site) -> None:
    place = f"ours/ours-{site.mark}-0"
    first = await site.ask(f"{place}/history", page_size="1")
    page, run_id = first.json["next_page"], (await site.ask(place)).json["run_id"]
    assert (await site.ask(f"{place}/history", page=page)).status == 200
    others = [
        await site.ask(f"{place}/history", principal="bob", page=page),
        await site.ask(f"{place}/history", run_id=run_id, page=page),
        await site.ask(f"{place}/history/raw", page=page),
        await site.ask(f"ours/ours-{site.mark}-1/history", page=page),
        await site.ask("ours", page=page),
    ]
    assert [(other.status, other.json["detail"]) for other in others] == [(400, REFUSAL)] * len(others)


async def test_pages_of_a_history_are_of_one_run(site: Site) -> None:
    client = await site.temporal.client()
    workflow_id = f"again-{site.mark}"
    runs = []
    for _ in range(2):
        handle = await client.start_workflow(f"ours-{site.mark}", id=workflow_id, task_queue="unpolled")
        runs.append(handle.first_execution_run_id)
        page = (await site.ask(f"ours/{workflow_id}/history/raw", page_size="1")).json["next_page"]
        await handle.terminate(reason=f"end of {len(runs)}")
        if len(runs) == 1:
            first_page = page
    rest = (await site.ask(f"ours/{workflow_id}/history/raw", page=first_page)).json["events"]
    assert rest[-1]["workflowExecutionTerminatedEventAttributes"]["reason"] == "end of 1"


async def test_a_page_token_is_bound_to_the_namespace(temporal: Temporal) -> None:
    """The server uses the run in its token, even if it belongs to another namespace."""
    mark = uuid.uuid4().hex
    billing = Temporal(namespace=BILLING, name="billing", task_queue="unpolled", same_server_as=temporal)
    first, second = Site(temporal, mark, secret=SECRET), Site(billing, mark, secret=SECRET)
    await first.fill()
    await second.fill()
    for path in ("ours", f"ours/ours-{mark}-0/history", f"ours/ours-{mark}-0/history/raw"):
        page = (await first.ask(path, page_size="1")).json["next_page"]
        assert (await first.ask(path, page_size="1", page=page)).status == 200
        refused = await second.ask(path, page_size="1", page=page)
        assert (refused.status, refused.json.get("detail")) == (400, REFUSAL), refused.json


async def test_each_edit_of_a_page_is_refused(site: Site) -> None:
    page = (await site.ask("ours", page_size="1")).json["next_page"]
    swapped = [
        page[:i] + ("A" if page[i] != "A" else "B") + page[i + 1 :] for i in range(0, len(page.rstrip("=")) - 1, 9)
    ]
    for edited in [*swapped, page[:-8], page + "AAAA", page[44:], "AAAA", "é", "?", " ", "=", "A" * 5000]:
        refused = await site.ask("ours", page=edited)
        assert (refused.status, refused.json["detail"]) == (400, REFUSAL), edited


async def test_a_missing_secret_is_named_in_the_log(
    site: Site, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    one, another = Site(site.temporal, site.mark), Site(site.temporal, site.mark)
    page = (await one.ask("ours", page_size="1")).json["next_page"]
    assert (await one.ask("ours", page=page)).status == 200
    [record] = caplog.records
    assert (record.levelno, "Gateway(secret=…)" in record.message, VARIABLE in record.message) == (
        logging.WARNING,
        True,
        True,
    )
    assert (await another.ask("ours", page=page)).status == 400


async def test_the_argument_precedes_the_variable_and_the_frameworks_secret(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(VARIABLE, "of the environment")
    monkeypatch.setattr(site, "options", {})
    by_variable = (await site.again().ask("ours", page_size="1", secrets=["framework"])).json["next_page"]
    monkeypatch.delenv(VARIABLE)
    by_framework = (await site.again().ask("ours", page_size="1", secrets=["framework", "former"])).json["next_page"]
    explicit = Site(site.temporal, site.mark, secret="of the environment")
    assert (await explicit.ask("ours", page=by_variable, secrets=["framework"])).status == 200
    assert (await explicit.ask("ours", page=by_framework, secrets=["framework"])).status == 400
    # The framework has a new secret, and this one is a former one.
    assert (await site.again().ask("ours", page=by_framework, secrets=["new", b"framework"])).status == 200
    assert (await site.again().ask("ours", page=by_framework, secrets=["new"])).status == 400
    assert caplog.records == []


@pytest.mark.parametrize("source", ["argument", "variable"])
def test_a_short_secret_is_refused(temporal: Temporal, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if source == "variable":
        monkeypatch.setenv(VARIABLE, "hush")
    name = {"argument": r"Gateway\(secret=…\)", "variable": VARIABLE}[source]
    with pytest.raises(TemporalSettingsError, match=f"{name} is shorter than 16 characters") as raised:
        Gateway(temporal, [], allow_anonymous=True, secret="hush" if source == "argument" else None)
    assert "hush" not in str(raised.value)


def test_each_framework_signs_with_its_own_secret(app: AppServer) -> None:
    order = {"order_id": uuid.uuid4().hex, "amount": 1, "lines": ["wait"]}
    workflow_id = app.post("/open/orders", order).json["workflow_id"]
    page = app.get(f"/open/orders/{workflow_id}/history", page_size="1").json["next_page"]
    assert app.get(f"/open/orders/{workflow_id}/history", page=page).status == 200
    scope = ("default", principal_key(None), "orders", "history", workflow_id, "")
    pages = PageTokens().of(scope, ["for tests only"])
    if app.name == "fastapi":  # It has no secret.
        with pytest.raises(Problem):
            pages.take(page)
    else:
        assert pages.take(page)
