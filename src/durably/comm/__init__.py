"""The layer that answers an engine's requests, the same for every web framework.

An adapter makes a ``CommRequest`` from its framework's request, and writes the ``CommResponse``. ``CommHandler``
decides everything in between.
"""

from durably.web import read_body, read_chunks

from .handler import CommHandler
from .requests import CommRequest, CommResponse
from .syncer import Syncer

__all__ = ["CommHandler", "CommRequest", "CommResponse", "Syncer", "read_body", "read_chunks"]
