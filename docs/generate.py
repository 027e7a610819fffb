"""Writes what the docs have from the code: settings, and the operations of the HTTP API.

``make docs`` runs it, and a test compares. After a change of the code: ``python docs/generate.py``.
"""

import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path

from durably.engine.interface import Engine
from durably.engine.operations import REQUIRED, Access, Argument, Operation, Place, operations_of
from durably.settings import SETTINGS

REFERENCE = Path(__file__).parent / "reference"
BEGIN, END = "<!-- generated: begin -->\n", "<!-- generated: end -->\n"
KEYS = {Access.OPEN: "none", Access.EVENT_KEY: "event key, in the path", Access.DEVELOPMENT: "none; only in dev mode"}


def settings() -> str:
    """A section for each setting of the SDK."""
    return "\n".join(
        f"### `{each.name}`\n\n{fill(each.meaning[0].upper() + each.meaning[1:] + '.')}\n\n"
        f"Also read: `{each.inngest}`.{f' Argument: {each.argument}.' if each.argument else ''}\n"
        for each in SETTINGS
    )


def operations() -> str:
    """A section for each operation, in the order of their declarations."""
    order = list(vars(Engine))
    found = sorted(operations_of(Engine).values(), key=lambda each: order.index(each.name))
    return "\n".join(operation(each) for each in found)


def operation(declared: Operation) -> str:
    docstring = inspect.getdoc(getattr(Engine, declared.name)) or ""
    paragraphs = [fill(" ".join(part.split()).replace("``", "`")) for part in docstring.split("\n\n")]
    arguments = [argument(each) for each in declared.arguments if each.place is not Place.PATH]
    facts = [f"Method: `{declared.name}`."]
    if declared.access in KEYS:
        facts.append(f"Key: {KEYS[declared.access]}.")
    parts = [f"### `{declared.http_method} {declared.path}`", *paragraphs, "\n".join(arguments), " ".join(facts)]
    return "\n\n".join(part for part in parts if part) + "\n"


def argument(declared: Argument) -> str:
    place = "JSON body" if declared.place is Place.BODY else declared.place.value
    default = declared.default if declared.http_default is None else declared.http_default
    if default is REQUIRED:
        note = ", required"
    elif default is None:
        note = ""
    else:
        values = [str(each) for each in default] if isinstance(default, tuple) else [str(default)]
        note = f", default {', '.join(f'`{value}`' for value in values)}"
    return f"- `{declared.wire_name}` ({place}{note})"


def fill(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


GENERATED: dict[Path, Callable[[], str]] = {
    REFERENCE / "settings.md": settings,
    REFERENCE / "http-api.md": operations,
}


def page(text: str, made: str) -> str:
    """The page with its generated part replaced."""
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}\n{made}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    for file, generate in GENERATED.items():
        file.write_text(page(file.read_text(), generate()))
