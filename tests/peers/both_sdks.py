"""Tests of the official SDKs in both languages, whose modules bring the ``app``."""

from .conftest import Provider
from .harness import PeerApp


class BothSdks:
    def test_the_failure_handler_runs(self, app: PeerApp) -> None:
        run = app.run_of_event("inngest/function.failed", "guarded-failure")
        assert run["status"] == "Completed"
        assert run["output"] == {"message": "guarded failed", "event": f"{app.id}/guarded"}

    def test_sent_events_arrive(self, app: PeerApp) -> None:
        run = app.run_of_event(f"{app.id}/received", "received")
        assert run["output"]["n"] in (0, 1)

    def test_each_trigger_starts_the_function(self, app: PeerApp) -> None:
        assert app.output("triggers") == f"{app.id}/triggers"
        assert app.output("triggers-b") == f"{app.id}/triggers-b"

    def test_encrypted_steps_are_never_readable_here(self, app: PeerApp) -> None:
        app.output("encrypted")
        shown = app.engine.api("GET", f"/v1/runs/{app.run_id('encrypted')}/steps").body
        assert b"__ENCRYPTED__" in shown
        assert b"plain text" not in shown

    def test_the_models_key_reaches_the_provider_and_is_not_shown(self, app: PeerApp, provider: Provider) -> None:
        app.output("infer")
        keys = [headers.get("authorization") or headers.get("x-api-key") for _, headers, _ in provider.received]
        assert any("sk-peer-secret" in (key or "") for key in keys)
        assert b"sk-peer-secret" not in app.engine.api("GET", f"/v1/runs/{app.run_id('infer')}/steps").body
