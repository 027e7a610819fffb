"""Values of LangGraph's nodes as JSON, and back."""

import base64
import dataclasses
import math
from typing import Any

from langchain_core.messages import BaseMessage, message_to_dict, messages_from_dict
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.types import Command, Send

_serializer = JsonPlusSerializer()


def to_json(value: Any) -> Any:
    """Messages, commands and JSON values in a readable form, anything else in that of LangGraph's checkpoints."""
    kind = type(value)
    if value is None or kind in (bool, int, str) or (kind is float and math.isfinite(value)):
        return value
    if kind is list:
        return [to_json(each) for each in value]
    if kind is dict and all(type(key) is str and not key.startswith("$") for key in value):
        return {key: to_json(each) for key, each in value.items()}
    if isinstance(value, BaseMessage) and kind.__module__.startswith("langchain_core."):
        return {"$message": to_json(message_to_dict(value))}
    if isinstance(value, Command):
        return {"$command": {name: to_json(getattr(value, name)) for name in _COMMAND}}
    if isinstance(value, Send) and value.timeout is None:
        return {"$send": [value.node, to_json(value.arg)]}
    name, data = _serializer.dumps_typed(value)
    return {"$" + name: base64.b64encode(data).decode()}


_COMMAND = [field.name for field in dataclasses.fields(Command)]


def from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [from_json(each) for each in value]
    if not isinstance(value, dict):
        return value
    name = next(iter(value), "")
    match name[:1] and name:
        case "$message":
            return messages_from_dict([from_json(value[name])])[0]
        case "$command":
            return Command(**{key: from_json(each) for key, each in value[name].items()})
        case "$send":
            return Send(value[name][0], from_json(value[name][1]))
        case _ if name.startswith("$"):
            return _serializer.loads_typed((name[1:], base64.b64decode(value[name])))
    return {key: from_json(each) for key, each in value.items()}
