"""Syncs in dev mode: the apps' functions, and inspection."""

import pytest

from .app_under_test import APP_ID, App
from .client import request


@pytest.fixture
def synced(app: App) -> App:
    answer = app.put(headers={"x-inngest-server-kind": "dev"}, query="?deployId=dep1")
    assert answer.status == 200, answer.body
    return app


def test_the_payload_names_the_app_its_url_and_its_sdk(synced: App) -> None:
    (request,) = synced.engine.to("/fn/register")
    assert request.method == "POST"
    assert request.query["deployId"] == ["dep1"]
    body = request.json
    assert body.get("appName") or body["appname"] == APP_ID
    assert body["url"].partition("?")[0] == synced.url
    assert ":v" in body["sdk"]
    assert body["v"] == "0.1"
    assert body["framework"]
    assert body.get("deployType") or body["deploy_type"] == "ping"


def test_a_function_says_how_it_is_triggered_and_called(synced: App) -> None:
    plain = synced.functions["conformance-plain"]
    assert [trigger["event"] for trigger in plain["triggers"]] == ["conformance/plain"]
    step = plain["steps"]["step"]
    assert step["id"] == "step"
    assert step["runtime"]["type"] == "http"
    url = step["runtime"]["url"]
    assert url.startswith(synced.url)
    assert "fnId=conformance-plain" in url
    assert "stepId=step" in url


def test_options_are_in_the_protocols_form(synced: App) -> None:
    function = synced.functions["conformance-configured"]
    assert function["name"] == "Configured"
    assert function["steps"]["step"]["retries"] == {"attempts": 2}
    event, schedule = function["triggers"]
    assert (event["event"], event["expression"]) == ("conformance/configured", "event.data.ok == true")
    assert schedule["cron"] == "0 0 1 1 *"
    (cancel,) = function["cancel"]
    assert cancel["event"] == "conformance/cancel"
    assert cancel["if"] == "event.data.id == async.data.id"
    assert cancel["timeout"] in ("1h", "60m")
    (concurrency,) = function["concurrency"]
    assert (concurrency["limit"], concurrency["key"], concurrency["scope"]) == (2, "event.data.user", "fn")
    assert function["idempotency"] == "event.data.id"
    assert function["priority"]["run"] == "event.data.vip ? 60 : 0"
    throttle = function["throttle"]
    assert (throttle["limit"], throttle["burst"], throttle["key"]) == (5, 2, "event.data.user")
    assert throttle["period"] in ("1m", "60s")
    assert function["timeouts"]["start"] == "10s"
    assert function["timeouts"]["finish"] == "5m"


def test_debounce_singleton_batching_and_rate_limit(synced: App) -> None:
    limited = synced.functions["conformance-limited"]
    assert limited["debounce"]["period"] == "5s"
    assert limited["debounce"]["timeout"] in ("1m", "60s")
    assert limited["debounce"]["key"] == "event.data.user"
    assert limited["singleton"] == {"mode": "skip", "key": "event.data.user"}
    batch = synced.functions["conformance-batched"]["batchEvents"]
    assert (batch["maxSize"], batch["timeout"], batch["key"]) == (10, "30s", "event.data.user")
    rate_limit = synced.functions["conformance-rated"]["rateLimit"]
    assert (rate_limit["limit"], rate_limit["key"]) == (3, "event.data.user")
    assert rate_limit["period"] in ("1h", "60m")


def test_a_failure_handler_is_triggered_by_its_functions_failure(synced: App) -> None:
    handler = synced.functions["conformance-guarded-failure"]
    (trigger,) = handler["triggers"]
    assert trigger["event"] == "inngest/function.failed"
    assert trigger["expression"].replace('"', "'") == "event.data.function_id == 'conformance-guarded'"
    assert "fnId=conformance-guarded-failure" in handler["steps"]["step"]["runtime"]["url"]


def test_a_refused_sync_is_not_reported_as_a_success(app: App) -> None:
    app.excuse("inngest", "it answers 200 with the engine's error")
    app.engine.answers["/fn/register"] = 400, {"error": "no such function option", "status": 400}
    answer = app.put(headers={"x-inngest-server-kind": "dev"})
    assert answer.status >= 400
    assert "no such function option" in answer.body.decode()


def test_inspection_has_the_number_of_functions_and_the_mode(app: App) -> None:
    answer = app.get({"x-inngest-server-kind": "dev"})
    assert answer.status == 200
    inspection = answer.json
    assert inspection["mode"] == "dev"
    assert inspection["function_count"] > 20
    assert inspection["has_event_key"] is False
    assert inspection["has_signing_key"] is False
    assert inspection["schema_version"] == "2024-05-24"


def test_other_methods_are_refused(app: App) -> None:
    assert request("DELETE", app.url).status in (404, 405)
