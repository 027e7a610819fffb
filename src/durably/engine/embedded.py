"""The former module of ``EngineSettings`` and ``EmbeddedEngine``.

Apps may still import them from here.
"""

import warnings

from .settings import EngineSettings
from .sqlite_engine import SqliteEngine

EmbeddedEngine = SqliteEngine

__all__ = ["EmbeddedEngine", "EngineSettings"]

warnings.warn(
    "durably.engine.embedded is deprecated: import EngineSettings from durably", DeprecationWarning, stacklevel=2
)
