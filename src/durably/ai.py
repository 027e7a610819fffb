"""AI models: the tokens that a step has used, and the providers of ``step.ai.infer``.

The engine makes the request of ``step.ai.infer``. It gets the key with the step, and neither stores nor shows it.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from .errors import FunctionConfigInvalidError
from .execution import in_step
from .protocol.usage import ModelUsage as ModelUsage


def record_usage(*, model: str, input_tokens: int | None = 0, output_tokens: int | None = 0) -> None:
    """Record the tokens of a model that the running step has used. Call it in the step's handler, in any thread.

    ``None``, which some client libraries have, counts as 0. Several calls are summed for each model. The tokens of a
    failed attempt count too. Raises ``FunctionConfigInvalidError`` outside of a step's handler, and ``ValueError`` for
    a negative number.
    """
    step = in_step.get()
    if step is None:
        raise FunctionConfigInvalidError(
            "record_usage was called outside of a step: call it in the handler that calls the model. In threads of "
            "your own, run the handler's code in contextvars.copy_context()"
        )
    if step.usage is None:
        raise FunctionConfigInvalidError(
            f'record_usage was called after step "{step.name}" had ended: await the model\'s answer in its handler'
        )
    usage = ModelUsage(model, input_tokens or 0, output_tokens or 0)
    if min(usage.input_tokens, usage.output_tokens) < 0:
        raise ValueError(f'step "{step.name}": numbers of tokens must not be negative')
    step.usage.append(usage)


class Adapter:
    """Base of the adapters. ``base_url`` and ``headers`` replace the provider's own."""

    wire_format: ClassVar[str] = "openai-chat"
    default_url: ClassVar[str]
    default_headers: ClassVar[Mapping[str, str]] = {}
    path: ClassVar[str] = "/chat/completions"

    def __init__(
        self, *, auth_key: str, model: str, base_url: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        self.model = model
        self._auth_key = auth_key
        self._base_url = (base_url or self.default_url).rstrip("/")
        self._headers = dict(self.default_headers if headers is None else headers)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(model={self.model!r})"

    def auth_key(self) -> str:
        return self._auth_key

    def format(self) -> str:
        """The name that engines use for the format of the provider's requests and answers."""
        return self.wire_format

    def headers(self) -> dict[str, str]:
        return dict(self._headers)

    def on_call(self, body: dict[str, Any]) -> None:
        """Complete a request's body: add the model if it is missing."""
        body.setdefault("model", self.model)

    def url_infer(self) -> str:
        return self._base_url + self.path


class OpenAI(Adapter):
    default_url = "https://api.openai.com/v1"


class DeepSeek(Adapter):
    default_url = "https://api.deepseek.com/v1"


class Grok(Adapter):
    default_url = "https://api.x.ai/v1"


class Anthropic(Adapter):
    wire_format = "anthropic"
    default_url = "https://api.anthropic.com/v1"
    default_headers: ClassVar[Mapping[str, str]] = {"anthropic-version": "2023-06-01"}
    path = "/messages"


class Gemini(Adapter):
    """Has the model in the URL, not in the body."""

    wire_format = "gemini"
    default_url = "https://generativelanguage.googleapis.com/v1beta"

    def on_call(self, body: dict[str, Any]) -> None:
        body.pop("model", None)

    def url_infer(self) -> str:
        return f"{self._base_url}/models/{self.model}:generateContent"
