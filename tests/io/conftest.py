"""The fixtures of ``tests/comm``: an engine, and no settings of the machine."""

from ..comm.conftest import _comm_engine, _no_settings, engine

__all__ = ["_comm_engine", "_no_settings", "engine"]
