"""The layer that answers an engine's requests, the same for every web framework.

Adapters normalise a request into ``CommRequest`` and write out the ``CommResponse``; ``CommHandler``
decides everything between.
"""

from .bodies import read_body, read_chunks
from .handler import CommHandler
from .requests import CommRequest, CommResponse
from .syncer import Syncer

__all__ = ["CommHandler", "CommRequest", "CommResponse", "Syncer", "read_body", "read_chunks"]
