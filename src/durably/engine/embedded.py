"""The former place of ``EngineSettings`` and ``EmbeddedEngine``, for apps that import them from here."""

import warnings

from .engine import EmbeddedEngine
from .settings import EngineSettings

__all__ = ["EmbeddedEngine", "EngineSettings"]

warnings.warn(
    "durably.engine.embedded is deprecated: import EngineSettings from durably", DeprecationWarning, stacklevel=2
)
