"""How a request that the engine made for a step failed."""

from durably.engine.errors import EngineError


class OutboundError(EngineError):
    """A request for a step failed. Holds no credential.

    ``name`` is ``GatewayError`` or ``AIGatewayError``, as the public server has it; ``retriable`` says whether
    another attempt may end otherwise; ``status`` is the answer's, where there was one.
    """

    def __init__(self, name: str, message: str, retriable: bool, status: int | None = None) -> None:
        super().__init__(message)
        self._name = name
        self.retriable = retriable
        self.is_retriable = retriable
        self.status = status

    @property
    def name(self) -> str:
        return self._name
