"""An HTTP interface to Temporal workflows, for any framework.

``expose`` opens a workflow, ``Gateway`` handles requests, and adapters such as ``durably.temporal.fast_api`` mount it.
This package uses no framework.
"""

try:
    import pydantic
except ImportError as error:
    raise ImportError('the gateway needs pydantic: pip install "durably[temporal]"') from error

from durably.io.background_loop import iterate_sync

from .authorization import Action, Authorize
from .exposure import (
    FOR_OPERATORS,
    FOR_OWNERS,
    FOR_USERS,
    Exposure,
    Operation,
    expose,
)
from .gateway import Gateway
from .messages import GatewayRequest, GatewayResponse
from .problems import Unauthenticated
from .services import Limits

__all__ = [
    "FOR_OPERATORS",
    "FOR_OWNERS",
    "FOR_USERS",
    "Action",
    "Authorize",
    "Exposure",
    "Gateway",
    "GatewayRequest",
    "GatewayResponse",
    "Limits",
    "Operation",
    "Unauthenticated",
    "expose",
    "iterate_sync",
]

del pydantic
