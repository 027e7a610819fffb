"""The owner of a workflow as a search attribute, for workflows that an app's own code starts.

``expose(owner=…)`` stamps the owner of workflows that the gateway starts. ``owned_by`` does it elsewhere:
``start_workflow(…, search_attributes=owned_by("ada"))``.
"""

import re
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from temporalio.client import Client, Interceptor, OutboundInterceptor, StartWorkflowInput, WorkflowHandle
from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes

from .errors import TemporalSettingsError
from .search_attributes import ensure_keyword

OWNER_ATTRIBUTE = "DurablyOwner"

DURABLY_OWNER = SearchAttributeKey.for_keyword(OWNER_ATTRIBUTE)
"""For ``workflow.upsert_search_attributes([DURABLY_OWNER.value_set("bob")])``."""

_MAXIMUM_OWNER = 255
"""Characters. SQL visibility stores keep no more of a Keyword."""

_UNFIT = frozenset('"\\`')
"""SQL visibility stores do not find keywords with these characters."""


_DEFAULT_REPR = re.compile(r"<.* at 0x[0-9a-fA-F]+.*>")


def describe_shared_text(text: str) -> str | None:
    """What is wrong with a text that several users can have; ``None`` for any other text.

    ``str`` makes such texts of a missing attribute, and of an object without ``__str__``: its text has the address in
    memory, which another user's object gets later.
    """
    if text == "None":
        return 'the text "None", as str(None) makes it'
    if _DEFAULT_REPR.fullmatch(text):
        return "the text of an object without __str__, which contains its address in memory"
    return None


def owned_by(
    owner: str, others: TypedSearchAttributes | None = None, *, attribute: str = OWNER_ATTRIBUTE
) -> TypedSearchAttributes:
    """Search attributes of a workflow that belongs to ``owner``, a text as ``expose(owner=…)`` returns it.

    ``others`` are further search attributes. ``attribute`` is that of ``Gateway(owner_attribute=…)``.
    Raises ``TemporalSettingsError`` for an owner that a server cannot find, and if ``others`` has the attribute.
    """
    pairs = list(others or ())
    if any(pair.key.name == attribute for pair in pairs):
        raise TemporalSettingsError(f"owned_by() got {attribute} among the other search attributes: leave it out there")
    text = check_owner(owner, "owned_by(…) got")
    return TypedSearchAttributes([*pairs, SearchAttributePair(SearchAttributeKey.for_keyword(attribute), text)])


def check_owner(owner: Any, source: str) -> str:
    """``source`` begins the error. Raises ``TemporalSettingsError``, without the text: it may be personal data."""
    if not isinstance(owner, str):
        kind = "a coroutine" if hasattr(owner, "__await__") else type(owner).__name__
        raise TemporalSettingsError(f"{source} {kind}: an owner is a text, such as str(user.id), or None for nobody")
    if (shared := describe_shared_text(owner)) is not None:
        raise TemporalSettingsError(
            f"{source} {shared}: several users could have it. Use a text that is unique, such as str(user.id), or None "
            'for nobody. If users may really have that name, put a word before it: f"user:{user.name}"'
        )
    is_unfit = not owner.isprintable() or _UNFIT & set(owner) or "'" in (owner[:1], owner[-1:])
    if not owner or len(owner) > _MAXIMUM_OWNER or is_unfit:
        raise TemporalSettingsError(
            f"{source} a text that is empty, longer than {_MAXIMUM_OWNER} characters, has control characters, double "
            "quotes, backquotes or backslashes, or starts or ends with a single quote: a Temporal server cannot find "
            "workflows by it"
        )
    return owner


class OwnerInterceptor(Interceptor):
    """Registers the owner's search attribute before the first workflow that is started with it.

    Without it, a workflow that is started before any request to a gateway would be refused by a new server.
    """

    def __init__(self, client: Callable[[], Awaitable[Client]], rpc_timeout: timedelta) -> None:
        self._client, self._rpc_timeout = client, rpc_timeout

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
        return _Registering(next, self._client, self._rpc_timeout)


class _Registering(OutboundInterceptor):
    def __init__(
        self, next: OutboundInterceptor, client: Callable[[], Awaitable[Client]], rpc_timeout: timedelta
    ) -> None:
        super().__init__(next)
        self._client, self._rpc_timeout = client, rpc_timeout

    async def start_workflow(self, input: StartWorkflowInput) -> WorkflowHandle[Any, Any]:
        attributes = input.search_attributes
        if isinstance(attributes, TypedSearchAttributes) and any(pair.key == DURABLY_OWNER for pair in attributes):
            await ensure_keyword(await self._client(), OWNER_ATTRIBUTE, self._rpc_timeout)
        return await super().start_workflow(input)
