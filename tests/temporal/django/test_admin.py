"""The admin's pages of workflows, on a real site with a real server: filters, permissions, actions."""

import html
import re
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from temporalio.client import WorkflowExecutionStatus, WorkflowFailureError

from durably.temporal import SyncWorkflowHandle, Temporal

from ...ports import free_port
from ...variants import variants
from ...waiting import eventually, wait_until_listening
from ..dev_server import DevServer
from .django_site import DjangoSite

USERS = """
from django.contrib.auth.models import Permission, User
User.objects.create_superuser("root", password="secret")
watcher = User.objects.create_user("watcher", password="secret", is_staff=True)
watcher.user_permissions.add(Permission.objects.get(codename="view_workflow"))
signaller = User.objects.create_user("signaller", password="secret", is_staff=True)
for codename in ("view_workflow", "signal_workflow"):
    signaller.user_permissions.add(Permission.objects.get(codename=codename))
viewer = User.objects.create_user("viewer", password="secret", is_staff=True)
for codename in ("view_workflow", "view_payloads"):
    viewer.user_permissions.add(Permission.objects.get(codename=codename))
User.objects.create_user("stranger", password="secret", is_staff=True)
result = None
"""
PATIENCE = timedelta(seconds=90)
LIST = "/admin/durably_temporal/workflow/"


def serve(site: DjangoSite, kind: str = "wsgi", **variables: str) -> str:
    """Start the site. Returns its origin."""
    port = free_port()
    if kind == "wsgi":
        command = site.start("runserver", "--noreload", f"127.0.0.1:{port}", **variables)
    else:
        command = site.start_asgi(port)
    wait_until_listening(port, command.process, lambda: command.output)
    return f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, server: DevServer) -> Iterator[DjangoSite]:
    site = DjangoSite(tmp_path_factory.mktemp("admin"), server.address)
    site.migrate()
    site.shell(USERS)
    site.work()
    yield site
    site.stop()


@pytest.fixture(scope="module", params=variants(["wsgi", "asgi"], ["asgi"]))
def origin(site: DjangoSite, request: pytest.FixtureRequest) -> str:
    return serve(site, request.param)


class Browser:
    """A browser with a logged-in user."""

    def __init__(self, origin: str, user: str) -> None:
        self.client = httpx.Client(base_url=origin, follow_redirects=True, timeout=30)
        login = self.client.get("/admin/login/")
        self.client.post("/admin/login/", data={**_token(login.text), "username": user, "password": "secret"})

    def get(self, url: str, **query: str) -> httpx.Response:
        return self.client.get(url, params=query or None)

    def submit(self, page: httpx.Response, action: str, **fields: str) -> httpx.Response:
        """Fill in and send the form of an action on a workflow's page."""
        forms = re.findall(r'<form method="post" action="([^"]*)">(.*?)</form>', page.text, re.S)
        [(url, form)] = [(url, form) for url, form in forms if url.endswith(f"/{action}/")]
        return self.client.post(url, data={**_hidden(form), **fields})

    def ask_to_terminate(self, page: httpx.Response) -> httpx.Response:
        """Follow the link on a workflow's page."""
        [url] = re.findall(r'href="([^"]*/terminate/[^"]*)"', page.text)
        return self.client.get(html.unescape(url))

    def confirm(self, page: httpx.Response, **fields: str) -> httpx.Response:
        """Send the form of a confirmation page."""
        [form] = re.findall(r'<form method="post">(.*?)</form>', page.text, re.S)
        return self.client.post(page.url, data={**_hidden(form), **fields})


def _hidden(form: str) -> dict[str, str]:
    return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', form))


def _token(text: str) -> dict[str, str]:
    found = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', text)
    assert found is not None
    return {"csrfmiddlewaretoken": found[1]}


@pytest.fixture(scope="module")
def root(origin: str) -> Browser:
    return Browser(origin, "root")


Handle = SyncWorkflowHandle[Any, Any]


def wait(temporal: Temporal, site: DjangoSite, id: str | None = None, failing: bool = False) -> Handle:
    id = id or f"waiting-{uuid.uuid4().hex}"
    return temporal.sync.start_workflow("WaitingWorkflow", failing, id=id, task_queue=site.task_queue)


def page_of(browser: Browser, handle: Handle) -> httpx.Response:
    return browser.get(f"{LIST}{handle.id}/change/")


def wait_for_list(browser: Browser, expected: set[str], **filters: str) -> None:
    """Wait until the list has exactly these: the server's index lags."""

    def look() -> set[str]:
        page = browser.get(LIST, **filters)
        assert page.status_code == 200, page.text
        return set(re.findall(r'change/\?run=[\w-]+">([^<]+)</a>', page.text))

    eventually(look, f"the list has {expected}", is_right=lambda ids: ids == expected)


def test_the_list_and_its_filters(root: Browser, site: DjangoSite, temporal: Temporal) -> None:
    kind = uuid.uuid4().hex
    waiting = wait(temporal, site, f"{kind}-it's/waiting")
    done = temporal.sync.start_workflow("AnyWorkflow", [], id=f"{kind}-done", task_queue=site.task_queue)
    done.result(timeout=PATIENCE)
    both = {"&#x27;".join(waiting.id.split("'")), done.id}
    [first] = both - {done.id}
    wait_for_list(root, both, id=kind)
    wait_for_list(root, {first}, id=f"{kind}-it's")
    wait_for_list(root, {first}, id=kind, status="running")
    wait_for_list(root, {done.id}, id=kind, status="completed", started="hour")
    wait_for_list(root, {done.id}, id=kind, type="AnyWorkflow")
    wait_for_list(root, both, queue=site.task_queue, id=kind)
    wait_for_list(root, {first}, id=kind, attribute="WorkflowType", value="WaitingWorkflow")
    wait_for_list(root, set(), id=kind, status="failed")
    assert f"of {temporal.settings.address}; times in" in root.get(LIST).text  # The time zone is shown.
    waiting.terminate()


def test_pages_of_the_list(root: Browser, site: DjangoSite, temporal: Temporal) -> None:
    kind = uuid.uuid4().hex
    handles = [wait(temporal, site, f"{kind}-{number}") for number in range(51)]
    eventually(lambda: "51 workflows" in root.get(LIST, id=kind).text, "the workflows are indexed")
    first = root.get(LIST, id=kind)
    rest = root.get(LIST + re.findall(r'href="(\?[^"]*page=[^"]*)"', first.text)[0].replace("&amp;", "&"))
    shown = [len(re.findall(r"change/\?run=", page.text)) for page in (first, rest)]
    assert shown == [50, 1]
    assert "Next page" not in rest.text
    for handle in handles:
        handle.terminate()


@pytest.mark.parametrize(
    ("wrong", "attribute", "value"),
    [("value", "Nothing", "of this name"), ("attribute", "x = (y", "1"), ("value", "WorkflowId", "<b>\\'")],
)
def test_invalid_filter_is_reported_at_its_field_and_the_form_keeps_its_values(
    root: Browser, wrong: str, attribute: str, value: str
) -> None:
    page = root.get(LIST, attribute=attribute, value=value, id="my-id", status="running")
    assert page.status_code == 400
    [field] = re.findall(r'<div class="field errors">(.*?)</div>', page.text, re.S)
    assert f'name="{wrong}" value="{html.escape(value if wrong == "value" else attribute)}"' in field
    assert re.search(r'<p class="errorlist">\S', field)
    assert 'name="id" value="my-id"' in page.text
    assert '<input type="hidden" name="status" value="running">' in page.text


def test_invalid_page_token_is_an_admin_page(root: Browser) -> None:
    page = root.get(LIST, page="x", attribute="WorkflowId", value="x")
    assert (page.status_code, 'class="errornote"' in page.text) == (400, True)


def links_of(page: httpx.Response) -> dict[str, str]:
    """The links of a workflow's page, by relation."""
    found = re.findall(r'<tr><th scope="row">([^<]+)</th><td><a href="([^"]*)">', page.text)
    return {relation: html.unescape(url) for relation, url in found}


def test_links_to_previous_next_and_first_run_and_to_temporals_ui(
    root: Browser, site: DjangoSite, temporal: Temporal
) -> None:
    id = f"count/down {uuid.uuid4().hex}"
    handle = temporal.sync.start_workflow("CountdownWorkflow", args=[2, "x"], id=id, task_queue=site.task_queue)
    handle.result(timeout=PATIENCE)
    last = page_of(root, handle)
    links = links_of(last)
    assert set(links) == {"Previous run", "First run", "Temporal's UI"}
    assert f"/namespaces/default/workflows/count%2Fdown%20{id.split()[1]}/" in last.text
    middle = root.get(links["Previous run"])
    assert {"Previous run", "First run", "Next run"} <= set(links_of(middle))
    first = root.get(links_of(middle)["Previous run"])
    assert f"<td>{handle.result_run_id}</td>" in first.text
    assert {"Previous run", "First run"} & set(links_of(first)) == set()
    assert root.get(links_of(first)["Next run"]).url == middle.url


def test_links_to_parent_and_children(root: Browser, site: DjangoSite, temporal: Temporal) -> None:
    id = f"parent-{uuid.uuid4().hex}"
    handle = temporal.sync.start_workflow("ParentWorkflow", id=id, task_queue=site.task_queue)
    page = eventually(
        lambda: page_of(root, handle), "the child runs", is_right=lambda page: "Running child" in links_of(page)
    )
    child = root.get(links_of(page)["Running child"])
    assert f"<td>{id}-child</td>" in child.text
    assert root.get(links_of(child)["Parent"]).url.path == page.url.path
    temporal.sync.get_workflow_handle(f"{id}-child").signal("greet", "hello")
    handle.result(timeout=PATIENCE)
    history = page_of(root, handle).text
    assert re.search(rf"<td>child_workflow_execution_started</td>.*?>{id}-child</a>", history, re.S)


def test_inputs_and_results_need_the_permission(
    origin: str, root: Browser, site: DjangoSite, temporal: Temporal
) -> None:
    note = "<script>" + "x" * 20_000

    def count_down(note: str) -> Handle:
        id = uuid.uuid4().hex
        handle = temporal.sync.start_workflow(
            "CountdownWorkflow", args=[0, note], id=id, task_queue=site.task_queue, memo={"customer": "ada smith"}
        )
        handle.result(timeout=PATIENCE)
        return handle

    handle, large = count_down(note), count_down("y" * 300_000)
    page = page_of(root, handle).text
    assert re.search(
        r'<h2>Input</h2>.*<pre class="payload">0</pre>.*<pre class="payload">&quot;&lt;script&gt;xxx', page, re.S
    )
    assert re.search(r'<h2>Result</h2>.*<pre class="payload">&quot;&lt;script&gt;xxx', page, re.S)
    assert "the first 10,000 of 20,010 characters" in page
    assert "x" * 10_001 not in page
    assert "bytes: too large to show" in page_of(root, large).text
    watcher = page_of(Browser(origin, "watcher"), handle)
    assert (watcher.status_code, "xxx" in watcher.text, "<h2>Input" in watcher.text) == (200, False, False)
    assert "Memo" not in watcher.text
    assert "ada smith" not in watcher.text
    viewer = page_of(Browser(origin, "viewer"), handle).text
    assert ("xxx" in viewer, "/terminate/" in viewer) == (True, False)
    assert re.search(r"Memo: customer</th><td>ada smith", viewer)


def test_a_workflow_with_its_pending_activities_and_its_history(
    root: Browser, site: DjangoSite, temporal: Temporal
) -> None:
    handle = wait(temporal, site, f"a b/{uuid.uuid4().hex}", failing=True)
    page = eventually(
        lambda: page_of(root, handle),
        "an attempt has failed",
        is_right=lambda page: "is not registered on this worker" in page.text,
    )
    assert re.search(r'<table id="pending">.*<td>absent</td>.*NotFoundError: Activity function absent', page.text, re.S)
    assert re.search(r'<table id="history">.*<td>activity_task_scheduled</td><td>absent</td>', page.text, re.S)
    handle.terminate()
    assert "Terminate…" not in page_of(root, handle).text


def test_it_is_signalled_cancelled_and_terminated(root: Browser, site: DjangoSite, temporal: Temporal) -> None:
    handle = wait(temporal, site)
    page = page_of(root, handle)
    assert '<option value="greet">' in page.text
    answer = root.submit(page, "signal", name="greet", arguments='["hello"]')
    assert f"Asked to signal greet: {handle.id}." in answer.text
    assert handle.result(timeout=PATIENCE) == "hello"

    handle = wait(temporal, site)
    root.submit(page_of(root, handle), "cancel", reason="not needed")
    with pytest.raises(WorkflowFailureError):
        handle.result(timeout=PATIENCE)
    assert handle.describe().status is WorkflowExecutionStatus.CANCELED
    assert "not needed (by root in the admin)" in handle.fetch_history().to_json()

    handle = wait(temporal, site)
    asking = root.ask_to_terminate(page_of(root, handle))
    assert f"<li>Workflow: {handle.id}</li>" in asking.text
    assert handle.describe().status is WorkflowExecutionStatus.RUNNING
    assert "No, take me back" in asking.text
    assert root.client.post(asking.url, data={}).status_code == 403  # No CSRF token.
    assert handle.describe().status is WorkflowExecutionStatus.RUNNING
    root.confirm(asking, reason="hopeless")
    assert "hopeless (by root in the admin)" in handle.fetch_history().to_json()
    assert handle.describe().status is WorkflowExecutionStatus.TERMINATED
    log = site.query("select change_message from django_admin_log where object_id = " + repr(handle.id))
    assert log == [(f"Asked to terminate, run {handle.result_run_id}.",)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": " "}, "It has no name"),
        ({"name": "greet", "arguments": "hello"}, "are not JSON"),
        ({"name": "greet", "arguments": '"hello"'}, "a JSON array"),
    ],
)
def test_invalid_signal_is_reported(
    root: Browser, site: DjangoSite, temporal: Temporal, fields: dict[str, str], message: str
) -> None:
    handle = wait(temporal, site)
    assert message in root.submit(page_of(root, handle), "signal", **fields).text
    assert "SIGNALED" not in handle.fetch_history().to_json()
    handle.terminate()


def test_admin_pages_require_permissions(origin: str, site: DjangoSite, temporal: Temporal, root: Browser) -> None:
    handle = wait(temporal, site)
    page = page_of(root, handle)
    actions = ("signal", "cancel", "terminate")

    def seen(browser: Browser) -> list[str]:
        text = page_of(browser, handle).text
        return [action for action in actions if re.search(f'/{action}/[?"]', text)]

    def statuses(browser: Browser) -> list[int]:
        token = _token(browser.get("/admin/password_change/").text)
        urls = [f"{LIST}{handle.id}/{action}/" for action in actions]
        return [browser.client.post(url, data={**token, "name": ""}).status_code for url in urls]

    watcher, signaller, stranger = (Browser(origin, user) for user in ("watcher", "signaller", "stranger"))
    assert (seen(root), seen(watcher), seen(signaller)) == (list(actions), [], ["signal"])
    assert statuses(watcher) == [403, 403, 403]
    assert statuses(signaller) == [200, 403, 403]
    assert [each.get(f"{LIST}{handle.id}/terminate/").status_code for each in (root, watcher)] == [200, 403]
    assert statuses(stranger) == [403, 403, 403]
    assert (stranger.get(LIST).status_code, page_of(stranger, handle).status_code) == (403, 403)
    assert "login" in str(httpx.get(origin + LIST, follow_redirects=True).url)
    assert root.client.post(f"{LIST}{handle.id}/cancel/", data={}).status_code == 403  # No CSRF token.
    assert root.get(f"{LIST}{handle.id}/cancel/").status_code == 405
    assert "Workflows" in watcher.get("/admin/").text
    assert "Workflows" not in stranger.get("/admin/").text
    assert page.status_code == 200
    assert handle.describe().status is WorkflowExecutionStatus.RUNNING
    handle.terminate()


def test_a_workflow_that_does_not_exist(root: Browser) -> None:
    page = root.get(f"{LIST}nothing/change/")
    assert (page.status_code, 'class="errornote"' in page.text) == (404, True)


@pytest.mark.slow
def test_unreachable_server_is_an_admin_page(site: DjangoSite) -> None:
    away = f"127.0.0.1:{free_port()}"
    browser = Browser(serve(site, TEST_TEMPORAL_SERVER=away), "root")
    page = browser.get(LIST)
    assert page.status_code == 503
    assert f"the Temporal server at {away} cannot be reached" in page.text


def test_page_reports_a_missing_worker(root: Browser, temporal: Temporal) -> None:
    queue = f"unpolled-{uuid.uuid4().hex}"
    handle = temporal.sync.start_workflow("WaitingWorkflow", id=queue, task_queue=queue)
    assert f"no worker polls the task queue &quot;{queue}&quot;" in page_of(root, handle).text
    handle.terminate()
