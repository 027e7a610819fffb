"""``manage.py run_temporal_worker``: discovery, the ORM in activities, models in workflows, checks."""

import os
import signal
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import WorkflowFailureError

from durably.temporal import SyncWorkflowHandle, Temporal

from ...cli.conftest import Command
from ...variants import variants
from ..dev_server import DevServer
from ..user_projects import change_source
from .django_site import DjangoSite

PATIENCE = timedelta(seconds=90)
SIGNUP = """
from django.contrib.auth.models import User
result = User.objects.create_user("ada", "ada@example.com").id
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, server: DevServer) -> Iterator[DjangoSite]:
    site = DjangoSite(tmp_path_factory.mktemp("django"), server.address)
    site.migrate()
    yield site
    site.stop()


@pytest.fixture(scope="module")
def working(site: DjangoSite) -> Command:
    return site.work()


@pytest.fixture
def fresh_site(tmp_path: Path, server: DevServer) -> Iterator[DjangoSite]:
    site = DjangoSite(tmp_path, server.address)
    yield site
    site.stop()


def start_workflow(temporal: Temporal, site: DjangoSite, name: str, *arguments: Any) -> SyncWorkflowHandle[Any, Any]:
    id = f"{name}-{uuid.uuid4().hex}"
    return temporal.sync.start_workflow(name, args=arguments, id=id, task_queue=site.task_queue)


def execute(temporal: Temporal, site: DjangoSite, *calls: str) -> list[Any]:
    """The results of activities, each ``name argument…``."""
    split = [call.split() for call in calls]
    return start_workflow(temporal, site, "AnyWorkflow", [(each[0], each[1:]) for each in split]).result(
        timeout=PATIENCE
    )


@pytest.mark.slow
def test_the_seeds_sign_up(site: DjangoSite, working: Command, temporal: Temporal) -> None:
    user_id = site.shell(SIGNUP)
    assert start_workflow(temporal, site, "UserSignupWorkflow", user_id).result() == "Email sent to ada@example.com"
    [mail] = (site.directory / "sent").iterdir()
    assert "Hello ada" in mail.read_text()
    assert execute(temporal, site, "count_users") == [1]


def test_worker_prints_its_task_queues(site: DjangoSite, working: Command) -> None:
    working.until(rf"working on {site.task_queue}: UserSignupWorkflow, AnyWorkflow.*; send_welcome_email, count_users")
    working.until(rf"working on {site.task_queue}-mails: no workflows; send_mail")


def test_connections_are_closed_around_an_activity(site: DjangoSite, working: Command, temporal: Temporal) -> None:
    states = execute(temporal, site, *["state_of_connection"] * 5)
    assert [state[:2] for state in states] == [[False, True]] * 5
    execute(temporal, site, "count_users")  # An asynchronous activity.
    files = [os.readlink(each) for each in Path(f"/proc/{working.process.pid}/fd").iterdir() if each.is_symlink()]
    assert [file for file in files if "db.sqlite3" in file] == []


@pytest.mark.slow
def test_connections_may_last_and_are_closed_when_too_old(fresh_site: DjangoSite, temporal: Temporal) -> None:
    fresh_site.migrate()
    declare = "\nfrom durably.temporal.django import temporal\ntemporal.add_worker(max_concurrent_activities=1)\n"
    path = fresh_site.directory / "temporal_app" / "activities.py"
    path.write_text(path.read_text() + declare)
    fresh_site.work(TEST_CONN_MAX_AGE="600")
    states = execute(temporal, fresh_site, "state_of_connection", "state_of_connection")
    assert [state[:2] for state in states] == [[False, True], [True, True]]
    _, state = execute(temporal, fresh_site, "age_connection", "state_of_connection")
    assert state[:2] == [False, True]


def test_failure_rolls_back_only_the_transaction(site: DjangoSite, working: Command, temporal: Temporal) -> None:
    notes = [uuid.uuid4().hex, uuid.uuid4().hex]
    results = execute(temporal, site, f"visit_twice {notes[0]}", f"visit_without_transaction {notes[1]}")
    assert results == ["2 visits", "2 visits"]  # The second activity has one write of the failed attempt.


def test_a_transaction_is_undone_by_a_cancellation(site: DjangoSite, working: Command, temporal: Temporal) -> None:
    note = uuid.uuid4().hex
    handle = start_workflow(temporal, site, "CancelledWorkflow", note)
    working.until(f"visiting {note}")
    handle.cancel()
    with pytest.raises(WorkflowFailureError):
        handle.result()
    assert site.query(f"select * from temporal_app_visit where note = '{note}'") == []


@pytest.mark.parametrize("name", ["SyncQueryWorkflow", "AsyncQueryWorkflow"])
def test_a_query_in_a_workflow_is_refused_and_its_line_named(
    site: DjangoSite, working: Command, temporal: Temporal, name: str
) -> None:
    handle = start_workflow(temporal, site, name)
    after = len(working.output)
    working.until(r"ModelInWorkflowError: a workflow uses the database, at .*people.py, line \d+: return", after=after)
    assert "use models in activities" in working.output
    handle.terminate()


def test_a_signal_stops_it_gracefully(fresh_site: DjangoSite) -> None:
    command = fresh_site.work("--grace", "7")
    assert command.stop(signal.SIGTERM) == 0
    assert "activities have 7 seconds to end" in command.output
    assert "Traceback" not in command.output


def test_it_restarts_when_the_source_changes(fresh_site: DjangoSite, temporal: Temporal) -> None:
    fresh_site.migrate()
    command = fresh_site.work("--reload")
    path = fresh_site.directory / "mails" / "activities.py"
    source = path.read_text().replace("send_mail", "post_mail")
    end = change_source(command, path, source, "activities.py changed, reloading")
    command.until(r"working on .*post_mail", after=end)
    assert command.stop(signal.SIGTERM) in (0, -signal.SIGTERM)


IMPORTS_A_MODEL = """
from temporalio import workflow
from django.contrib.auth.models import User

@workflow.defn
class UserWorkflow:
    @workflow.run
    async def run(self) -> None: ...
"""


@pytest.mark.slow
def test_models_in_the_modules_of_workflows_are_an_error(fresh_site: DjangoSite) -> None:
    (fresh_site.directory / "mails" / "workflows.py").write_text(IMPORTS_A_MODEL)
    for command in ("check", "run_temporal_worker"):
        done = fresh_site.run(command)
        assert done.returncode == 1
        assert "(durably_temporal.E002) mails.workflows has the model User, and workflows must not" in done.stderr
        assert "HINT: Workflows run again from their history: use models in activities.py" in done.stderr
        assert "Traceback" not in done.stderr


BAD_SETTINGS = [
    (
        {"TEST_TEMPORAL_SERVER": "http://example.com"},
        "E001) the address of the Temporal server must be",
    ),
    (
        {"TEST_TEMPORAL": '{"COLOUR": "red"}'},
        "E001) settings.TEMPORAL has an unknown key 'COLOUR'",
    ),
    ({"TEST_TEMPORAL": '{"OPTIONS": {"colour": "red"}}'}, "E001)"),
    ({"TEST_TEMPORAL": '{"ENCRYPTION_KEYS": "x"}'}, "E001) encryption key 1 of 1"),
    ({"TEST_TASK_QUEUE": ""}, "E003) a worker is declared without a task queue"),
]


@pytest.mark.parametrize(("variables", "message"), variants(BAD_SETTINGS, BAD_SETTINGS[:1]))
def test_bad_settings_are_errors_of_the_check(fresh_site: DjangoSite, variables: dict[str, str], message: str) -> None:
    done = fresh_site.run("check", **variables)
    assert done.returncode == 1
    assert f"(durably_temporal.{message}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_check_before_deployment_warns_of_an_open_connection(fresh_site: DjangoSite) -> None:
    done = fresh_site.run("check", "--deploy", "--tag", "temporal", TEST_TEMPORAL_SERVER="temporal.example.com:7233")
    assert "(durably_temporal.W001) The connection to the Temporal server at temporal.example.com:7233" in done.stderr
    encrypted = '{"TLS": true}'
    done = fresh_site.run("check", "--deploy", "--tag", "temporal", TEST_TEMPORAL=encrypted, TEST_TEMPORAL_SERVER="a:1")
    assert "W001" not in done.stderr


GATEWAY = """
from temporal_app.workflows import UserSignupWorkflow
from temporalio.common import SearchAttributeKey

from durably.temporal.django import temporal, urls
from durably.temporal.gateway import Gateway, expose

exposed = expose(UserSignupWorkflow, search_attributes={SearchAttributeKey.for_keyword("Unknown"): lambda id: "x"})
urlpatterns += [path("api/", urls(Gateway(temporal, [exposed], allow_anonymous=True)))]
"""


@pytest.mark.slow
def test_a_check_before_deployment_names_search_attributes_that_are_not_registered(fresh_site: DjangoSite) -> None:
    check = ("check", "--deploy", "--tag", "temporal")
    path = fresh_site.directory / "project" / "urls.py"
    path.write_text(path.read_text() + GATEWAY)
    done = fresh_site.run(*check)
    assert done.returncode == 1
    assert "(durably_temporal.E005) expose(UserSignupWorkflow) sets the search attribute Unknown" in done.stderr
    assert "search-attribute create --namespace default --name Unknown --type Keyword" in done.stderr
    away = fresh_site.run(*check, TEST_TEMPORAL_SERVER="127.0.0.1:1")
    assert away.returncode == 0
    assert "(durably_temporal.W002) Cannot check whether the search attributes Unknown are registered" in away.stderr
    assert "Traceback" not in done.stderr + away.stderr


@pytest.mark.slow
def test_worker_that_cannot_run_reports_why(fresh_site: DjangoSite) -> None:
    done = fresh_site.run("run_temporal_worker", "--task-queue", "none")
    assert done.returncode == 1
    assert 'CommandError: no worker is declared for the task queue "none"' in done.stderr


@pytest.mark.slow
def test_no_migrations_are_missing(fresh_site: DjangoSite) -> None:
    assert fresh_site.run("makemigrations", "--check", "--dry-run").returncode == 0
