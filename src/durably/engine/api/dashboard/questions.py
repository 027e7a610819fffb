"""Open questions of runs: their list, and the form that answers one.

The form has a field for each field of a flat JSON schema, and otherwise takes JSON.
"""

import secrets
from collections.abc import Mapping
from typing import Any

import msgspec

from durably.engine.model.questions import resolve
from durably.engine.model.runs import RunReport, Step, StepStatus
from durably.protocol.engine_errors import AnswerRefusedError, QuestionClosedError, TooLargeError
from durably.protocol.questions import QuestionInfo

from .messages import DashboardResponse
from .visit import Live, Route, Visit

PAGE_SIZE = 50
_PREFIX = "answer."
_SCALARS = ("boolean", "integer", "number", "string")
_MOST_FIELDS = 30


class AnswerField(msgspec.Struct, frozen=True):
    """A field of a form: ``kind`` is a JSON type or ``choice``, ``choices`` are JSON values with their labels."""

    name: str
    label: str
    kind: str
    is_required: bool
    value: str = ""
    choices: list[tuple[str, str]] = []
    hint: str | None = None


class AnswerForm(msgspec.Struct, frozen=True):
    """The form that answers an open question.

    ``fields`` is ``None`` for a field of JSON with ``text``. ``is_whole``: the only field is the whole answer.
    """

    step: Step
    question: QuestionInfo
    fields: list[AnswerField] | None
    text: str = ""
    is_whole: bool = False
    error: str | None = None


def answer_forms(report: RunReport) -> list[AnswerForm]:
    """The forms of a run's open questions."""
    return [
        make_form(step, step.question)
        for step in report.steps
        if step.question is not None and step.status is StepStatus.WAITING
    ]


def make_form(
    step: Step, question: QuestionInfo, given: Mapping[str, str] | None = None, error: str | None = None
) -> AnswerForm:
    """The form of a question, with what a person has given before, if the answer has an ``error``."""
    schema = question.schema or {}
    whole = _resolve(schema, schema)
    is_whole = whole.get("type") != "object"
    named = {"": whole} if is_whole else whole.get("properties")
    fields: list[AnswerField] | None = None
    if isinstance(named, Mapping) and 0 < len(named) <= _MOST_FIELDS:
        required = [""] if is_whole else whole.get("required") or []
        made = [_make_field(schema, name, each, name in required, given) for name, each in named.items()]
        found = [each for each in made if each is not None]
        fields = found if len(found) == len(made) else None
    text = "" if given is None else given.get(_PREFIX, "")
    return AnswerForm(step, question, fields, text, is_whole, error)


def _resolve(root: Mapping[str, Any], schema: Any) -> Mapping[str, Any]:
    for _ in range(10):
        if not isinstance(schema, Mapping) or not isinstance(ref := schema.get("$ref"), str):
            break
        schema = resolve(root, ref)
    return schema if isinstance(schema, Mapping) else {}


def _make_field(
    root: Mapping[str, Any], name: str, schema: Any, is_required: bool, given: Mapping[str, str] | None
) -> AnswerField | None:
    schema = _resolve(root, schema)
    if isinstance(choices := schema.get("anyOf"), list):
        others = [each for each in choices if _resolve(root, each).get("type") != "null"]
        if len(others) != 1:
            return None
        schema, is_required = {**schema, **_resolve(root, others[0])}, False
    kind = schema.get("type")
    values = schema.get("enum") if isinstance(schema.get("enum"), list) else None
    if values is None and kind == "boolean":
        values = [True, False]
    if values is None and kind not in _SCALARS:
        return None
    if given is not None:
        value = given.get(f"{_PREFIX}{name}", "")
    else:
        default = schema.get("default")
        value = "" if default is None else default if isinstance(default, str) and values is None else _encode(default)
    title, hint = schema.get("title"), schema.get("description")
    return AnswerField(
        name=f"{_PREFIX}{name}",
        label=title if isinstance(title, str) else name.replace("_", " ").capitalize() or "Answer",
        kind="choice" if values is not None else str(kind),
        is_required=is_required,
        value=value,
        choices=[(_encode(each), _label(each)) for each in values or ()],
        hint=hint if isinstance(hint, str) else None,
    )


def _label(choice: Any) -> str:
    if isinstance(choice, bool):
        return "Yes" if choice else "No"
    return choice if isinstance(choice, str) else _encode(choice)


def _encode(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def read_answer(form: AnswerForm, given: Mapping[str, str]) -> Any:
    """The answer in the fields of a form. Raises ``AnswerRefusedError``."""
    if form.fields is None:
        try:
            return msgspec.json.decode(given.get(_PREFIX, ""))
        except (msgspec.DecodeError, RecursionError) as error:
            raise AnswerRefusedError(f"The answer must be JSON: {error}.") from None
    answer: dict[str, Any] = {}
    for field in form.fields:
        text = given.get(field.name)
        if text is None and field.kind == "string" and field.is_required:
            text = ""
        if text is None and field.is_required:
            raise AnswerRefusedError(f"{field.label} is missing.")
        if text is not None:
            answer[field.name.removeprefix(_PREFIX)] = text if field.kind == "string" else _read(field, text)
    return answer.get("") if form.is_whole else answer


def _read(field: AnswerField, text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        raise AnswerRefusedError(f"{field.label} must be a {field.kind}.") from None


async def show_questions(visit: Visit) -> DashboardResponse:
    questions = await visit.engine.list_questions(
        function_id=visit.query.get("function"), limit=PAGE_SIZE, cursor=visit.query.get("cursor")
    )
    cursor = f"{questions[-1].run_id}.{questions[-1].step_id}" if len(questions) == PAGE_SIZE else None
    return await visit.page("questions.html", questions=questions, cursor=cursor)


ROUTES = (Route("GET", "/questions", show_questions, live=Live.ALL, needs="list_questions"),)


async def deliver(visit: Visit, form: AnswerForm) -> str:
    """Deliver the answer of a form. Returns the name of a notice. Raises ``AnswerRefusedError``."""
    answer = read_answer(form, visit.form)
    try:
        asked = await visit.engine.ask_run(
            visit.arguments["run_id"],
            form.question.name,
            answer,
            id=f"form-{secrets.token_hex(8)}",
            step_id=form.step.hashed_id,
            needs_reply=False,
            within=0,
        )
    except QuestionClosedError:
        return "closed"
    except TooLargeError as error:
        raise AnswerRefusedError(error.message) from None
    return "answered" if asked.state == "delivered" else "closed"


def find_form(report: RunReport, step_id: str | None) -> AnswerForm | None:
    return next((each for each in answer_forms(report) if each.step.hashed_id == step_id), None)
