"""In-process mode: the engine in the web app's own processes.

``embedded.Embedded`` and ``temporal.engine.TemporalEngine`` are its public classes.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from durably.protocol.sync import FunctionConfig


def check_config(config: Mapping[str, Any]) -> str | None:
    """The error that the engine would report at the sync.

    Returns ``None`` if the config is valid or no engine is installed.
    """
    try:
        from durably.engine.core.flow.config import check_triggers, read_flow
        from durably.protocol.engine_errors import ConfigInvalidError
    except ImportError:
        return None
    read = msgspec.convert(config, FunctionConfig)
    # Other engines know more than five fields, such as @daily. Ours refuses it at the sync.
    read.triggers = [trigger for trigger in read.triggers if not (trigger.cron or "").strip().startswith("@")]
    try:
        check_triggers(read.id, read.triggers)
        read_flow(read)
    except ConfigInvalidError as error:
        return str(error)
    return None
