"""Usage of AI models: the tokens that a step has paid for, as metadata of its op, and in the answers of providers.

The metadata's kind and fields are those of official SDKs, which follow the conventions of OpenTelemetry for generative
AI: input tokens include tokens that were read from or written to a cache, and output tokens include those of reasoning.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

USAGE_KIND = "inngest.ai"
"""The kind of the metadata."""
_LONGEST_MODEL = 100
_MOST_TOKENS = 10**12
"""A larger number is a mistake, and sums of many would not fit into a column."""
_MODEL_FIELDS = ("request_model", "response_model", "model")


class ModelUsage(msgspec.Struct, frozen=True, gc=False):
    """Tokens of one model. ``model`` is empty if it is not known."""

    model: str
    input_tokens: int = 0
    output_tokens: int = 0


def sum_usage(usage: Iterable[ModelUsage]) -> tuple[ModelUsage, ...]:
    """The sum for each model, in the order of their first use."""
    sums: dict[str, tuple[int, int]] = {}
    for each in usage:
        before = sums.get(each.model, (0, 0))
        sums[each.model] = before[0] + each.input_tokens, before[1] + each.output_tokens
    return tuple(ModelUsage(model, *tokens) for model, tokens in sums.items())


# in ops


def usage_metadata(usage: Iterable[ModelUsage]) -> list[dict[str, Any]]:
    """The metadata of an op: an item for each model.

    Further items are added to the first, so that servers that keep one item of a kind have the sum of the tokens.
    """
    return [
        {
            "kind": USAGE_KIND,
            "scope": "step",
            "op": "add" if position else "merge",
            "values": {
                "request_model": each.model,
                "input_tokens": each.input_tokens,
                "output_tokens": each.output_tokens,
            },
        }
        for position, each in enumerate(sum_usage(usage))
    ]


def read_usage_metadata(metadata: Any) -> tuple[ModelUsage, ...]:
    """The usage in an op's metadata. Other metadata, and what is not in its form, is ignored."""
    if not isinstance(metadata, Sequence):
        return ()
    found = []
    for item in metadata:
        values = item.get("values") if isinstance(item, Mapping) and item.get("kind") == USAGE_KIND else None
        if isinstance(values, Mapping):
            usage = _usage_of(_model_of(values, _MODEL_FIELDS), values, "input_tokens", "output_tokens")
            found += [] if usage is None else [usage]
    return sum_usage(found)


# in the answers of providers

_SHAPES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("prompt_tokens",), ("completion_tokens",)),  # OpenAI: chat completions and embeddings
    (("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"), ("output_tokens",)),
    # Anthropic, and OpenAI's responses, whose input tokens include cached ones
    (("promptTokenCount", "toolUsePromptTokenCount"), ("candidatesTokenCount", "thoughtsTokenCount")),  # Gemini
    (("prompt_token_count", "tool_use_prompt_token_count"), ("candidates_token_count", "thoughts_token_count")),
)
"""The fields of input and of output tokens, which are summed. The first of the input tokens identifies a shape."""


def read_answer_usage(answer: Any, model: str = "") -> ModelUsage | None:
    """The usage in a provider's answer, ``None`` if it has none.

    The answer is JSON, or an object of a provider's client library with the same fields. ``model`` is the requested
    model, for answers that do not name one.
    """
    reported = next(
        (found for name in ("usage", "usageMetadata", "usage_metadata") if (found := _field(answer, name)) is not None),
        None,
    )
    for inputs, outputs in _SHAPES:
        if _field(reported, inputs[0]) is not None:
            named = _model_of(answer, ("model", "modelVersion", "model_version")) or model[:_LONGEST_MODEL]
            return _usage_of(named, reported, inputs, outputs)
    return None


def _field(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(name)
    return None if value is None else getattr(value, name, None)


def _model_of(value: Any, names: Iterable[str]) -> str:
    found = (_field(value, name) for name in names)
    return next((each[:_LONGEST_MODEL] for each in found if isinstance(each, str) and each), "")


def _usage_of(model: str, value: Any, inputs: str | Sequence[str], outputs: str | Sequence[str]) -> ModelUsage | None:
    counts = []
    for names in (inputs, outputs):
        numbers = (_field(value, name) for name in ((names,) if isinstance(names, str) else names))
        counts.append(sum(int(each) for each in numbers if isinstance(each, int | float) and 0 <= each <= _MOST_TOKENS))
    return ModelUsage(model, *counts) if any(counts) else None
