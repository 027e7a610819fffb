"""The examples of the OpenAI Agents SDK and LangGraph in ``docs/how-to/durable-agents.md``, with models of tests."""

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage

import durably
from durably.integrations.openai_agents import Approval
from durably.testing import TestEngine

from . import langgraph_fakes, openai_fakes

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "durable-agents.md"


def example(heading: str, **names: Any) -> dict[str, Any]:
    """What the Python of a section defines. ``MODEL`` stands for the name of a model."""
    section = PAGE.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found: dict[str, Any] = {"__name__": "example", **names}
    for code in re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL):
        exec(code.replace('"openai:gpt-5"', "MODEL"), found)
    return found


@pytest.mark.parametrize(
    ("module", "library", "extra"),
    [
        ("openai_agents", "agents", "durably[openai-agents]"),
        ("langgraph", "langgraph", "durably[langgraph]"),
        ("celery", "celery", "durably[celery]"),
    ],
)
def test_a_missing_library_names_its_extra(
    module: str, library: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"durably.integrations.{module}", raising=False)
    with pytest.raises(ImportError, match=re.escape(extra)):
        importlib.import_module(f"durably.integrations.{module}")


async def test_example_of_the_openai_agents_sdk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = example("OpenAI Agents SDK")
    call, say = openai_fakes.call, openai_fakes.say
    order, transfer = call("find_order", "1", number=7), call("transfer_to_billing", "2")
    page["support"].model = openai_fakes.ScriptedModel("s", [order], [transfer], say("Hello."))
    page["billing"].model = openai_fakes.ScriptedModel("b", [call("refund", "3", order=7, euros=12)], say("Done."))
    async with TestEngine(page["client"], [page["answer"], page["talk"]]) as engine:
        run = await engine.send(durably.Event(name="desk/question.asked", data={"question": "Refund me."}))
        await engine.ask(run, "billing/refund/3", Approval(True))
        (await run.wait()).assert_completed(output="Done.")
        talk = await engine.invoke(page["talk"])
        page["support"].model = openai_fakes.ScriptedModel("s", say("Hello."))
        for _ in range(2):
            assert await engine.ask(talk, "message", "Hi.") == "Hello."
            await engine.advance(days=1)
        (await talk.wait()).assert_completed()


async def test_example_of_langgraph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refund = langgraph_fakes.ask(langgraph_fakes.call("refund", "1", order=7, euros=12))
    model = langgraph_fakes.ScriptedModel(answers=[refund, AIMessage("Done.")])
    page = example("LangGraph", MODEL=model)
    async with TestEngine(page["client"], [page["answer"]]) as engine:
        run = await engine.send(durably.Event(name="graphs/question.asked", data={"question": "Refund me."}))
        await engine.advance(days=3)
        await engine.answer(run, "approval", True)
        (await run.wait()).assert_completed(output="Done.")
    assert model.noted == [0, 1]
