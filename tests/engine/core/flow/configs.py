"""Configurations of functions as apps sync them, made short."""

from typing import Any

import msgspec

from durably.engine.core.flow.config import Flow, read_flow
from durably.protocol.sync import FunctionConfig, decode_function


def config_of(**options: Any) -> FunctionConfig:
    """``options`` as on the wire, in camel case."""
    config = {
        "id": "shop-fn",
        "triggers": [{"event": "order/placed"}],
        "steps": {"step": {"id": "step", "runtime": {"url": "http://127.0.0.1:1/api/inngest"}}},
    }
    return decode_function(msgspec.json.encode(config | options))


def flow_of(**options: Any) -> Flow:
    return read_flow(config_of(**options))


def event(**data: Any) -> dict[str, Any]:
    return {"name": "order/placed", "id": "e", "ts": 0, "data": data, "user": {}}
