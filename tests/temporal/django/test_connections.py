"""Several connections in a Django project: its settings, workers, commands and checks."""

import json
import uuid
from collections.abc import Iterator

import pytest
from temporalio.client import WorkflowExecutionStatus

from durably.temporal import Temporal

from ..dev_server import BILLING, DevServer
from .django_site import DjangoSite

CONNECTIONS = {"billing": {"NAMESPACE": BILLING, "TASK_QUEUE": "invoices"}}
CHECK = """
from django.test import override_settings
from durably.temporal.django import checks, connections

def check(given, check=checks.check):
    connections._made.clear()
    with override_settings(TEMPORAL_CONNECTIONS=given):
        return [f"{each.id}: {each.msg}" for each in check()]
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, server: DevServer) -> Iterator[DjangoSite]:
    site = DjangoSite(tmp_path_factory.mktemp("connections"), server.address)
    site.variables["TEST_CONNECTIONS"] = json.dumps(CONNECTIONS)
    site.migrate()
    yield site
    site.stop()


@pytest.fixture(scope="module")
def billing(temporal: Temporal) -> Temporal:
    return Temporal(namespace=BILLING, name="billing", same_server_as=temporal)


@pytest.mark.slow
def test_the_worker_of_each_connection(site: DjangoSite, billing: Temporal) -> None:
    worker = site.start("run_temporal_worker", "--connection", "billing")
    default = site.work()
    worker.until("namespace billing")
    worker.until("working on invoices: InvoiceWorkflow; send_invoice")
    assert "not working for the connection default: its worker is --connection default" in worker.output
    assert "UserSignupWorkflow" not in worker.output
    done = billing.sync.execute_workflow("InvoiceWorkflow", "ada", id=uuid.uuid4().hex, task_queue="invoices")
    assert done == "invoice to ada in billing, of 0 users"
    default.until("working on .*-mails")
    assert "InvoiceWorkflow" not in default.output
    assert "not working for the connection billing: its worker is --connection billing" in default.output


@pytest.mark.slow
def test_commands_know_the_connection(site: DjangoSite) -> None:
    code = """
import io
from django.core.management import CommandError, call_command

def call(*arguments, **options):
    out = io.StringIO()
    try:
        call_command(*arguments, stdout=out, **options)
    except CommandError as error:
        return f"{error.returncode}: {error}"
    return out.getvalue()

result = [
    call("sync_temporal_schedules", "--connection", "billing"),
    call("sync_temporal_schedules"),
    call("run_temporal_worker", "--connection", "bills"),
]
"""
    billing, default, unknown = site.shell(code)
    assert "monthly-invoices: " in billing
    assert "monthly-invoices" not in default
    there_is_none = "there is no connection 'bills' to Temporal: settings.TEMPORAL_CONNECTIONS has default, billing"
    assert unknown == f"1: {there_is_none}"


@pytest.mark.slow
def test_the_admin_shows_the_workflows_of_the_connection_that_is_chosen(
    site: DjangoSite, temporal: Temporal, billing: Temporal
) -> None:
    site.shell("from django.contrib.auth.models import User\nresult = User.objects.create_superuser('root').pk")
    id = f"invoice-{uuid.uuid4().hex}"
    handle = billing.sync.start_workflow("InvoiceWorkflow", "ada", id=id, task_queue="unpolled")
    code = f"""
import html, re, time
from django.contrib.auth.models import User
from django.test import Client

client = Client()
client.force_login(User.objects.get(username="root"))
path = "/admin/durably_temporal/workflow/"

def get(url, **query):
    return client.get(url, query or None)

def found_in(page, pattern):
    return html.unescape(re.search(pattern, page.content.decode())[1])

end = time.monotonic() + 30
while "change/" not in get(path, connection="billing", id="{id}").content.decode():
    assert time.monotonic() < end
chosen = get(path, connection="billing", id="{id}")
page = get(found_in(chosen, r'href="([^"]*/change/[^"]*)"'))
asking = get(found_in(page, r'href="([^"]*/terminate/[^"]*)"'))
run = found_in(asking, r'name="run" value="([^"]*)"')
fields = {{"run": run, "connection": "billing", "reason": "a test"}}
done = client.post(asking.request["PATH_INFO"], fields, follow=True)
result = [
    found_in(chosen, r'class="selected"><a href="([^"]*)">'),
    found_in(page, r'<a href="(http[^"]*)">http'),
    "terminated" in done.content.decode(),
    get(path, id="{id}").content.decode().count("change/?"),
    get(path, connection="bills").status_code,
    client.post(path + "x/cancel/", {{"connection": "bills"}}).status_code,
]
"""
    chosen, ui, is_terminated, of_default, *unknown = site.shell(code)
    assert chosen == "?connection=billing"
    assert ui.startswith(f"http://localhost:8233/namespaces/billing/workflows/{id}/")
    assert (is_terminated, of_default, unknown) == (True, 0, [404, 404])
    assert handle.describe().status is WorkflowExecutionStatus.TERMINATED
    [log] = site.query(f"select change_message from django_admin_log where object_id = '{id}'")
    assert log[0].endswith(", connection billing.")


@pytest.mark.slow
def test_the_address_of_temporals_ui(site: DjangoSite) -> None:
    code = """
from durably.temporal.django.workflow_pages import run_in_ui

def where(given):
    connections._made.clear()
    with override_settings(TEMPORAL_CONNECTIONS={"billing": {"TASK_QUEUE": "q", "NAMESPACE": "b", **given}}):
        return run_in_ui(connections["billing"], "billing", "a/b?", "r")

result = [
    where({}),
    where({"SERVER": "acct.tmprl.cloud:7233"}),
    where({"SERVER": "temporal.example.com:7233"}),
    where({"UI_URL": "https://ui.example.com/t/"}),
    check({"billing": {"UI_URL": "javascript:alert(1)"}}),
]
"""
    *urls, wrong = site.shell(CHECK + code)
    path = "/namespaces/b/workflows/a%2Fb%3F/r/history"
    development, cloud, own = "http://localhost:8233", "https://cloud.temporal.io", "https://ui.example.com/t"
    assert urls == [f"{development}{path}", f"{cloud}{path}", None, f"{own}{path}"]
    assert "UI_URL for Temporal must begin with http:// or https://" in wrong[0]


@pytest.mark.slow
def test_connections_are_found_by_name(site: DjangoSite, server: DevServer) -> None:
    code = """
from durably.temporal.django import connections, temporal
from durably.temporal import TemporalSettingsError
assert (list(connections), len(connections), "billing" in connections) == (["default", "billing"], 2, True)
assert connections["billing"] is connections["billing"]
try:
    connections["bills"]
except TemporalSettingsError:
    pass
else:
    raise AssertionError
result = [connections[name].settings.address + " " + connections[name].settings.namespace for name in connections]
"""
    assert site.shell(code) == [f"{server.address} default", f"{server.address} billing"]


@pytest.mark.slow
def test_bad_settings_are_errors_of_the_check(site: DjangoSite) -> None:
    code = """
result = [check(each) for each in [
    {"billing": {"COLOUR": "red"}}, {"billing": {}, "default": {}}, {"tls": {}},
]]
"""
    found = [each for each, *_ in site.shell(CHECK + code)]
    of_billing = "durably_temporal.E001: connection 'billing': settings.TEMPORAL_CONNECTIONS['billing']"
    assert found[0].startswith(f"{of_billing} has an unknown key 'COLOUR'; known are")
    assert "settings.TEMPORAL_CONNECTIONS has the connection 'default', and so have settings.TEMPORAL_" in found[1]
    assert found[2].startswith("durably_temporal.E001: connection 'tls': 'tls' cannot be the name of a connection")


@pytest.mark.slow
def test_a_module_of_an_unknown_connection_is_an_error_of_the_check(site: DjangoSite) -> None:
    code = """
from invoices import activities, workflows
given, result = {"billing": {"TASK_QUEUE": "q"}}, []
activities.TEMPORAL_CONNECTION = workflows.TEMPORAL_CONNECTION = "bills"
result.append(check(given))
activities.TEMPORAL_CONNECTION = workflows.TEMPORAL_CONNECTION = "billing"
result.append(check(given))
result.append(check({"billing": {}}))
"""
    unknown, right, without_queue = site.shell(CHECK + code)
    assert len(unknown) == 2
    assert unknown[0].startswith("durably_temporal.E004: invoices.workflows has TEMPORAL_CONNECTION = 'bills', and")
    assert right == []
    assert [each.partition(" without")[0] for each in without_queue] == ["durably_temporal.E003: a worker is declared"]


@pytest.mark.slow
def test_an_open_connection_of_any_is_warned_of(site: DjangoSite) -> None:
    code = """
result = [check({"billing": {"SERVER": "a.example.com:7233", "TLS": tls}}, checks.check_deployment)
          for tls in (False, True)]
"""
    [[warning], none] = site.shell(CHECK + code)
    assert "W001: The connection to the Temporal server at a.example.com:7233" in warning
    assert none == []
