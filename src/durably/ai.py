"""Adapters for ``step.ai.infer``: addresses and request formats of AI providers.

The engine makes the request. It gets the key with the step, and neither stores nor shows it.
"""

from collections.abc import Mapping
from typing import Any, ClassVar


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
