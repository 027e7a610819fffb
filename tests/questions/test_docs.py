"""The app of ``docs/how-to/ask-a-run.md``, word for word."""

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import httpx
import pytest

from durably.testing import TestEngine

from ..docs.pages import ROOT

PAGE = (ROOT / "docs" / "how-to" / "ask-a-run.md").read_text()


@pytest.fixture
def refunds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("DURABLY_SIGNING_KEY", "signkey-test-" + "ab" * 32)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    parts = [block for block in blocks if block.startswith("# refunds.py")]
    assert len(parts) == 4
    (tmp_path / "refunds.py").write_text("\n\n".join(parts))
    (test,) = [block for block in blocks if block.startswith("# test_refunds.py")]
    (tmp_path / "test_refunds.py").write_text(test)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "refunds", raising=False)
    return importlib.import_module("refunds")


async def test_the_app_of_the_page(refunds: ModuleType) -> None:
    transport = httpx.ASGITransport(app=refunds.app)
    async with (
        TestEngine(refunds.client, [refunds.refund]) as engine,
        httpx.AsyncClient(transport=transport, base_url="http://shop") as http,
    ):
        run_id = (await http.post("/orders/1/refund")).json()["run"]
        assert (await http.post("/orders/1/refund")).json()["run"] == run_id
        await engine.advance()
        (question,) = (await http.get("/questions")).json()
        assert question["question"] == "Refund order 1?"
        assert (await http.post(f"/runs/{run_id}/approve?by=Ada")).json() == {"receipt": 7}

        second = (await http.post("/orders/2/refund")).json()["run"]
        await engine.advance()
        (question,) = (await http.get("/questions")).json()
        await http.post(f"/questions/{second}/{question['step']}?approved=false&by=Bob")

        third = (await http.post("/orders/3/refund")).json()["run"]
        link = f"/answers/{refunds.client.answer_token(third, 'approval')}"
        await engine.advance()
        for _ in range(3):  # A scanner.
            assert "Refund order 3?" in (await http.get(link)).text
        assert (await http.post(link, data={"approved": "1"})).json() == "Thank you."
        assert (await http.post(link, data={"approved": "1"})).json() == "Thank you."
        assert (await http.post(link)).status_code == 409
        assert "not open" in (await http.get(link)).text
        assert (await http.get("/answers/abc.def")).status_code == 403
        await engine.advance()
        outputs = [run.output for run in engine.runs()]
    assert outputs == [
        "refunded, approved by Ada",
        "refused by Bob",
        "refunded, approved by the owner of the link",
    ]


def test_the_tests_of_the_page(refunds: ModuleType, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_refunds.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "2 passed" in done.stdout, done.stdout
