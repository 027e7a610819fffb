"""In-process mode: the engine in the web app's own processes.

Layers of a process, from the app to the engine:

- Public handle: ``Embedded`` (SQLite) or ``TemporalEngine``. It has the operations for users. Base class
  ``InProcessHandle``, in ``handle.py``.
- Process: ``EmbeddedProcess`` or ``TemporalProcess``. It decides when the engine starts and stops, also at forks. Base
  class ``ProcessEngine``, in ``process.py``. It implements ``durably.engines.InProcessEngine``.
- Node: ``Node`` or ``TemporalNode``. It connects the process to the engine. Protocol ``EngineNode``, in ``process.py``.
- Role of a ``Node``: ``Leader`` (runs the engine, and serves its HTTP API at a Unix socket) or ``Follower`` (uses it).
- Calls: the leader's ``Dispatcher`` gives a call to its ``LocalWorker`` or to the ``RemoteWorker`` of a follower, which
  fetches it and runs it in a ``LocalWorker`` of its own.
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
    # Other engines accept more than five cron fields, such as @daily. Ours refuses them at the sync.
    read.triggers = [trigger for trigger in read.triggers if not (trigger.cron or "").strip().startswith("@")]
    try:
        check_triggers(read.id, read.triggers)
        read_flow(read)
    except ConfigInvalidError as error:
        return str(error)
    return None
