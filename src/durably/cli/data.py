"""JSON that an option gives in place, in a file, or on stdin."""

import json
import sys
from typing import Any, TypeVar

from .failures import CliError

T = TypeVar("T")
_SHAPES: dict[type, str] = {dict: "a JSON object like '{\"id\": 1}'", list: "a JSON array like '[1]'"}


def read_data(text: str | None) -> dict[str, Any]:
    """``text`` is JSON, ``@file``, or ``-`` for stdin; without it, the object is empty."""
    return {} if text is None else read_json(text, "--data", dict)


def read_json(text: str, option: str, shape: type[T]) -> T:
    """The value of an option that takes a JSON object or array in the same ways."""
    source, content = option, text
    if text == "-":
        source, content = "the JSON on stdin", sys.stdin.read()
    elif text.startswith("@"):
        source = text[1:]
        try:
            with open(source, encoding="utf-8") as file:
                content = file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise CliError(f"cannot read {source}: {error}") from None
    try:
        data = json.loads(content)
    except json.JSONDecodeError as error:
        raise CliError(f"{source} is not valid JSON: {error}") from None
    except RecursionError:
        raise CliError(f"{source} is nested too deeply") from None
    if not isinstance(data, shape):
        raise CliError(f"{source} must be {_SHAPES[shape]}, not {type(data).__name__}")
    return data
