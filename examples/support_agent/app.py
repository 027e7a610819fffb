"""A support agent that talks with customers for days, streams its answers, and asks before it pays money back.

    uvicorn examples.support_agent.app:app

Ask at http://127.0.0.1:8000 for a refund of order 42, and approve it at http://127.0.0.1:8000/staff (password: staff).
Without keys it uses the scripted model of model.py. ``SUPPORT_MODEL=openai:gpt-5`` takes a real one (and
``pip install "pydantic-ai-slim[openai]"``).

Kill the server at any time, and start it again: the conversation continues where it was.
"""

import html
import os
import secrets
from pathlib import Path
from typing import Annotated

import fastapi
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage

import durably
import durably.fast_api
from durably.errors import AskTimeoutError
from durably.integrations.pydantic_ai import Approval, DurableSteps

from .model import scripted_model

agent = Agent(
    os.environ.get("SUPPORT_MODEL") or scripted_model,
    name="support",
    instructions="You help the customers of a shop for tea. Look an order up before you answer. Be brief.",
    capabilities=[DurableSteps(stream_to="agent", approval_timeout="7d")],
)


@agent.tool_plain
async def find_order(number: int) -> str:
    """What was ordered, and for how much."""
    return f"order {number}: 250 g of green tea, €12"


@agent.tool_plain(requires_approval=True)
async def refund(order: int, euros: float) -> str:
    """Pay money back. A person of our staff decides."""
    return f"€{euros:g} for order {order} are on their way"


engine = durably.Embedded(os.environ.get("DATABASE", "support.db"))
client = durably.Client(app_id="support", engine=engine)


@client.create_function(fn_id="conversation", trigger=[])
async def conversation(ctx: durably.Context) -> int:
    """One run for each conversation. Its history is made of the stored steps."""
    messages: list[ModelMessage] = []
    while (question := await ctx.step.receive("message", type=str, timeout="30d")) is not None:
        ctx.publish("customer", question.data)
        result = await agent.run(question.data, message_history=messages)
        messages = result.all_messages()
        await question.reply(result.output)
    return len(messages)


# -- customers


app = fastapi.FastAPI(title="Support")
COOKIE = "conversation"
PAGE = Path(__file__).with_name("page.html").read_text()


class Message(BaseModel):
    text: str


@app.get("/")
async def page(request: fastapi.Request) -> HTMLResponse:
    """The page. Its cookie is the right to read and continue the conversation."""
    run_id = request.cookies.get(COOKIE) or (await conversation.start()).id
    response = HTMLResponse(PAGE.replace("RUN_ID", html.escape(run_id)))
    response.set_cookie(COOKIE, run_id, httponly=True, samesite="strict")
    return response


@app.post("/messages", status_code=202)
async def send(message: Message, run_id: Annotated[str, fastapi.Cookie(alias=COOKIE)]) -> None:
    try:
        await client.run(run_id).answer("message", message.text, timeout="5s")
    except AskTimeoutError:
        raise fastapi.HTTPException(409, "The agent still works on your last message.") from None


def may_read(request: fastapi.Request, channel: str) -> bool:
    return channel == request.cookies.get(COOKIE)


# -- staff


def check_password(given: Annotated[HTTPBasicCredentials, fastapi.Depends(HTTPBasic())]) -> None:
    expected = os.environ.get("STAFF_PASSWORD", "staff")
    if not secrets.compare_digest(given.password.encode(), expected.encode()):
        raise fastapi.HTTPException(401, headers={"WWW-Authenticate": "Basic"})


staff = fastapi.APIRouter(prefix="/staff", dependencies=[fastapi.Depends(check_password)])
FORM = """<form method="post"><p>{prompt}</p>
<input type="hidden" name="run" value="{run}"><input type="hidden" name="name" value="{name}">
<button name="answer" value="yes">Approve</button> <button name="answer" value="no">Deny</button></form>"""


@staff.get("")
async def list_approvals() -> HTMLResponse:
    """The tools that wait for an approval, in all conversations."""
    questions = [each for each in await engine.list_questions() if each.name.startswith("support/")]
    forms = [
        FORM.format(prompt=html.escape(each.prompt or ""), run=each.run_id, name=html.escape(each.name))
        for each in questions
    ]
    return HTMLResponse("<!doctype html><title>Approvals</title>" + ("".join(forms) or "<p>Nothing to approve.</p>"))


@staff.post("")
async def decide(
    run: Annotated[str, fastapi.Form()], name: Annotated[str, fastapi.Form()], answer: Annotated[str, fastapi.Form()]
) -> RedirectResponse:
    await client.run(run).answer(name, Approval(answer == "yes", reason="Our staff has denied it."))
    return RedirectResponse("/staff", status_code=303)


app.include_router(staff)
durably.fast_api.serve(app, client, [conversation])
durably.fast_api.streams(app, client, authorize=may_read)
