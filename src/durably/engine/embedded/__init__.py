"""The embedded engine: the run machine on one SQLite file, in one process.

``EmbeddedEngine`` in ``engine`` is the whole of its interface; ``settings`` and ``views`` hold what goes in
and what comes out. Its HTTP API is a thin layer over that interface, in ``api``.
"""

from .engine import EmbeddedEngine
from .settings import EngineSettings

__all__ = ["EmbeddedEngine", "EngineSettings"]
