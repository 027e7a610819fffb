"""A stable text that identifies a principal. Idempotency keys and page tokens are bound to it.

The text is hashed before it is stored or given out. Knows no framework, only attributes of
their users.
"""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

from durably.temporal.errors import UnknownPrincipalError
from durably.temporal.owners import describe_shared_text
from durably.temporal.surroundings import is_async

Identify = Callable[[Any], str]

ANONYMOUS = json.dumps(["anonymous"])

_REMEDY = (
    "Give Gateway(identify=…), a function of the principal that returns a text of its own for each, such as "
    "lambda user: user.email"
)


def check_principal(principal: Any) -> Any:
    """The principal as the app gave it; ``None`` for a proxy of ``None``.

    Raises ``UnknownPrincipalError`` for a coroutine, generator or function: it is no principal, but a sign that
    ``principal=`` is asynchronous or was not called. ``principal is not None`` would let everybody in.
    """
    if principal.__class__ is type(None):
        return None
    kind = next((name for check, name in _NO_PRINCIPALS if check(principal)), None)
    if kind is None:
        return principal
    if inspect.iscoroutine(principal):
        principal.close()
    raise UnknownPrincipalError(
        f"principal= gives {kind} instead of a principal. In Flask, Django and Tornado it is a plain function: in "
        "Tornado, set self.current_user in an asynchronous prepare(), and not in get_current_user()"
    )


_NO_PRINCIPALS: Sequence[tuple[Callable[[Any], bool], str]] = (
    (inspect.isawaitable, "a coroutine or another awaitable"),
    (inspect.isgenerator, "a generator"),
    (inspect.isasyncgen, "an asynchronous generator"),
    (inspect.isroutine, "a function"),
)


def principal_key(principal: Any, identify: Identify | None = None) -> str:
    """A text that is the same in each process, and another one for each principal.

    ``None`` and users that say so themselves (``is_anonymous``, or ``is_authenticated`` that is false) are anonymous.
    Otherwise ``identify`` decides, if it is given. A ``str``, ``int`` or ``UUID`` stands for itself. Of other objects
    ``pk`` counts, else ``id``, together with the class; else ``sub`` and ``iss``, as members of a mapping (claims of
    a token) or as attributes.

    Raises ``UnknownPrincipalError`` for any other principal: a guess could give one user another's workflows.
    """
    if is_anonymous(principal):
        return ANONYMOUS
    if identify is not None:
        text = identify(principal)
        if not isinstance(text, str) or not text:
            raise UnknownPrincipalError(
                f"Gateway(identify=…) returned {type(text).__name__} for a principal of the class "
                f"{_class_of(principal)}: it must return a text that is not empty"
            )
        if (shared := describe_shared_text(text)) is not None:
            raise UnknownPrincipalError(
                f"Gateway(identify=…) returned {shared}, for a principal of the class {_class_of(principal)}: several "
                "users could have it. It must return a text that is unique. If users may really have that name, put a "
                'word before it: f"user:{user.name}"'
            )
        return json.dumps(["identify", text])
    if isinstance(principal, (str, int, UUID)):
        return json.dumps(_plain(principal, principal, "value"))
    if isinstance(principal, Mapping):
        return _subject(principal, principal.get("sub"), principal.get("iss"))
    for name in ("pk", "id"):
        if (value := getattr(principal, name, None)) is not None:
            return json.dumps([name, _class_of(principal), *_plain(principal, value, name)])
    return _subject(principal, getattr(principal, "sub", None), getattr(principal, "iss", None))


def is_anonymous(principal: Any) -> bool:
    """Whether the principal is ``None``, or an object that says so itself.

    The users of Django, flask-login and Starlette have ``is_anonymous`` or ``is_authenticated``; in older libraries and
    in users of an app's own these may be methods. Raises ``UnknownPrincipalError`` for one that gives no verdict.
    """
    if principal is None:
        return True
    verdict = _verdict(principal, "is_anonymous")
    return _verdict(principal, "is_authenticated") is False if verdict is None else verdict


def _verdict(principal: Any, name: str) -> bool | None:
    """The value of an attribute or a method; ``None`` for a principal without it."""
    value = getattr(principal, name, None)
    if callable(value):
        value = _call(principal, name, value)
        if not isinstance(value, bool):
            raise _no_verdict(principal, name, f"returns {type(value).__name__}")
    # Attributes of other types were never a verdict, such as a database column of that name.
    return value if isinstance(value, bool) else None


def _call(principal: Any, name: str, method: Callable[[], Any]) -> Any:
    if is_async(method):
        raise _no_verdict(principal, name, "is asynchronous")
    try:
        return method()
    except TypeError as error:
        raise _no_verdict(principal, name, f"cannot be called without arguments ({error})") from error


def _no_verdict(principal: Any, name: str, why: str) -> UnknownPrincipalError:
    return UnknownPrincipalError(
        f"{name} of a principal of the class {_class_of(principal)} {why}: it must be True or False, or a plain method "
        "that returns one of them"
    )


def _subject(principal: Any, subject: Any, issuer: Any) -> str:
    """Subjects are unique within their issuer (RFC 7519, section 4.1.2)."""
    if subject is None:
        raise UnknownPrincipalError(
            f"a principal of the class {_class_of(principal)} has no pk, id or sub by which to tell it from others. "
            f"{_REMEDY}"
        )
    issuers = [] if issuer is None else _plain(principal, issuer, "iss")
    return json.dumps(["sub", *_plain(principal, subject, "sub"), *issuers])


def _plain(principal: Any, value: Any, name: str) -> list[str]:
    if isinstance(value, bool) or not isinstance(value, (str, int, UUID)) or value == "":
        raise UnknownPrincipalError(
            f"the {name} of a principal of the class {_class_of(principal)} is no text, number or UUID that tells it "
            f"from others: it is {'empty' if value == '' else 'of the class ' + type(value).__name__}. {_REMEDY}"
        )
    # A member of an enumeration may have a ``__str__`` of its own.
    if isinstance(value, str):
        return ["str", str.__str__(value)]
    if isinstance(value, int):
        return ["int", int.__repr__(value)]
    return ["UUID", str(value)]


def _class_of(principal: Any) -> str:
    """``__class__`` is that of the user even if a framework hands over a proxy for it."""
    kind = principal.__class__
    return f"{kind.__module__}.{kind.__qualname__}"
