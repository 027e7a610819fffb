"""The app of the official Python SDK in the docs, on our engine, in both modes."""

from pathlib import Path

import pytest

from .. import wire
from ..conformance.engine_under_test import Engine
from ..docs.pages import DOCS, blocks
from ..waiting import eventually
from .harness import running_app, uvicorn

PAGE = DOCS / "how-to" / "run-other-sdks.md"


@pytest.mark.parametrize("kind", ["dev", "cloud"])
def test_python_app_of_the_page_runs(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    engine: Engine = request.getfixturevalue(f"{kind}_engine")
    [app] = [block.text for block in blocks(PAGE) if "inngest.fast_api" in block.text]
    (tmp_path / "main.py").write_text(app)
    with running_app(engine, "shop-py", uvicorn("main", tmp_path), cloud=kind == "cloud"):
        [event_id] = engine.send(wire.event("shop/visitor.came", {"name": "Ada"}))
        [run] = eventually(lambda: engine.data(f"/v1/events/{event_id}/runs") or None, "a run")
        assert engine.completed(run["run_id"]) == "Hello, Ada!"
