"""The engine's check of a function's configuration, for functions that are created where the engine is installed."""

from collections.abc import Mapping
from typing import Any

import msgspec

from durably.protocol.sync import FunctionConfig


def check_config(config: Mapping[str, Any]) -> str | None:
    """The fault that the engine would report at the sync; ``None`` if there is none, or no engine is installed."""
    try:
        from durably.engine.errors import ConfigInvalidError
        from durably.engine.flow.config import read_flow
        from durably.engine.flow.triggers import check_triggers
    except ImportError:
        return None
    read = msgspec.convert(config, FunctionConfig)
    # Other engines know more than fields: @daily, say. Ours refuses it at the sync.
    read.triggers = [trigger for trigger in read.triggers if not (trigger.cron or "").strip().startswith("@")]
    try:
        check_triggers(read.id, read.triggers)
        read_flow(read)
    except ConfigInvalidError as error:
        return str(error)
    return None
