"""The requests that the engine makes for steps: ``step.fetch`` (``Gateway``) and ``step.ai.infer`` (``AIGateway``).

Apps choose the address, so a request may go to public addresses only, unless the engine is told otherwise
(``addresses``); and it carries credentials, which appear in no error, log or stored value (``secrets``).
"""

from .client import Outbound, OutboundError
from .request import redact

__all__ = ["Outbound", "OutboundError", "redact"]
