"""Ids of runs and events that are given by their end, as `durably dev` prints them."""

from collections.abc import Sequence

from .failures import CliError

_ID_LENGTH = 26


def is_short_id(text: str) -> bool:
    """Whether the text may be the end of an id."""
    return len(text) < _ID_LENGTH and text.isascii() and text.isalnum()


def only_id(kind: str, text: str, found: Sequence[str]) -> str:
    """The only id that was found to end with ``text``. ``kind`` is run or event. Raises ``CliError``."""
    if not found:
        raise CliError(
            f"no {kind} has the id {text!r}, or an id that ends with it; `durably {kind}s list` lists {kind}s"
        )
    if len(found) > 1:
        ids = ", ".join(found)
        raise CliError(f"several {kind}s have ids that end with {text!r}: {ids}; give more of the one you mean")
    return found[0]
