"""The value of ``--data``: a JSON object given in place, in a file, or on stdin."""

import json
import sys
from typing import Any

from .failures import CliError


def read_data(text: str | None) -> dict[str, Any]:
    """``text`` is JSON, ``@file``, or ``-`` for stdin; without it, the object is empty."""
    if text is None:
        return {}
    source, content = "--data", text
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
    if not isinstance(data, dict):
        raise CliError(f"{source} must be a JSON object like '{{\"id\": 1}}', not {type(data).__name__}")
    return data
