"""Keys of principals of all frameworks: unique, and never guessed."""

import enum
import uuid
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from durably.temporal import Temporal, UnknownPrincipalError
from durably.temporal.gateway import Action, Gateway, expose
from durably.temporal.gateway.authorization import ANONYMOUS, check_principal, is_anonymous, principal_key

from ...ports import free_port
from ..workflows import SumWorkflow
from .gateway_client import make_request


class User:
    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)

    def key(self) -> str: ...


class ServiceAccount(User):
    """A class with its own ids."""


class Name(enum.StrEnum):
    ADA = "ada"


ID = uuid.UUID(int=7)


def test_principals_that_differ_have_different_keys() -> None:
    principals: list[Any] = [
        None,
        "ada",
        "bob",
        "7",
        7,
        ID,
        str(ID),
        User(pk=7),
        User(pk="7"),
        User(id=7),
        ServiceAccount(id=7),
        type("User", (User,), {"__module__": "staff.models"})(id=7),
        User(sub="7"),
        {"sub": "7", "iss": "https://a"},
        {"sub": "7", "iss": "https://b"},
    ]
    keys = [principal_key(principal) for principal in principals]
    assert len(set(keys)) == len(keys)
    assert keys == [principal_key(principal) for principal in principals]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (User(pk=7, id=8), User(pk=7, id=9)),
        (User(sub="7"), {"sub": "7", "scope": "read"}),
        ("ada", Name.ADA),
        (None, User(is_anonymous=True, pk=None)),
        (None, User(is_authenticated=False)),
    ],
    ids=["pk-before-id", "claims", "enumeration", "django-anonymous", "starlette-anonymous"],
)
def test_the_same_principal_has_the_same_key(one: Any, other: Any) -> None:
    assert principal_key(one) == principal_key(other)


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ({"is_anonymous": True}, True),
        ({"is_authenticated": False}, True),
        ({"is_anonymous": False, "is_authenticated": False}, False),  # an inactive user
        ({"is_anonymous": lambda: True}, None),
    ],
)
def test_is_anonymous_is_an_attribute(verdicts: dict[str, Any], expected: bool | None) -> None:
    user = User(id=7, **verdicts)
    if expected is None:
        with pytest.raises(UnknownPrincipalError, match=r"is_anonymous of a principal of the class .*User"):
            is_anonymous(user)
    else:
        assert is_anonymous(user) is (principal_key(user) == ANONYMOUS) is expected


@pytest.mark.parametrize(
    "principal",
    [object(), SimpleNamespace(name="ada"), User(pk=None), User(id=""), User(id=True), "", True, {"name": "a"}, 1.5],
    ids=["object", "name", "unsaved", "empty", "bool-id", "empty-text", "bool", "no-sub", "float"],
)
def test_an_unidentifiable_principal_is_an_error_with_a_remedy(principal: Any) -> None:
    with pytest.raises(UnknownPrincipalError, match=r"Gateway\(identify=…\)") as raised:
        principal_key(principal)
    assert "ada" not in str(raised.value)


def test_identify_determines_the_principal() -> None:
    key = principal_key(User(email="ada@example.com"), lambda user: str(user.email))
    assert key == principal_key({"email": "ada@example.com"}, lambda user: str(user["email"]))
    assert key != principal_key("ada@example.com")
    assert principal_key(None, lambda user: str(user.email)) == ANONYMOUS
    with pytest.raises(UnknownPrincipalError, match="not empty"):
        principal_key("ada", lambda user: "")
    for shared in ("None", repr(object())):
        with pytest.raises(UnknownPrincipalError, match=r"several users could have it.*put a word before it"):
            principal_key("ada", lambda user, shared=shared: shared)  # type: ignore[misc]


async def _find_user() -> str:
    return "ada"


async def _yield_user() -> Any:
    yield "ada"


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (_find_user, "coroutine"),
        (lambda: (each for each in "ada"), "generator"),
        (_yield_user, "async_generator"),
        (lambda: _find_user, "function"),
        (lambda: User(id=1).key, "method"),
    ],
    ids=["coroutine", "generator", "asynchronous generator", "function", "method"],
)
def test_coroutines_and_functions_as_principals_are_refused(make: Callable[[], Any], kind: str) -> None:
    """``authorize`` that allows each principal except ``None`` is never called."""
    with pytest.raises(UnknownPrincipalError, match=f"principal= gives a {kind}"):
        check_principal(make())
    temporal = Temporal("127.0.0.1:1", task_queue="sums")
    gateway = Gateway(temporal, [expose(SumWorkflow, name="sums")], authorize=lambda action: pytest.fail("asked"))
    request = make_request(make(), "POST", "sums", {"pair": {"left": 1}})
    assert gateway.handle_sync(request).status_code == 500


def test_lazy_object_of_none_is_anonymous() -> None:
    functional = pytest.importorskip("django.utils.functional")
    assert check_principal(functional.SimpleLazyObject(lambda: None)) is None
    assert check_principal(None) is None
    user = functional.SimpleLazyObject(lambda: User(pk=3))
    assert check_principal(user) is user


def guarded(seen: list[Any]) -> Gateway:
    """Collects the principals, and refuses all."""

    def authorize(action: Action) -> bool:
        seen.append(action.principal)
        return False

    temporal = Temporal(f"127.0.0.1:{free_port()}", task_queue="sums")
    exposures = [expose(SumWorkflow, name="sums"), expose(SumWorkflow, name="owned", owner=str)]
    return Gateway(temporal, exposures, authorize=authorize)


def test_flasks_proxy_has_the_key_of_the_user() -> None:
    flask, local = pytest.importorskip("flask"), pytest.importorskip("werkzeug.local")
    from durably.temporal.flask import blueprint

    app, seen = flask.Flask("shop"), list[Any]()
    user = local.LocalProxy(lambda: flask.request.headers.get("X-User"))
    app.register_blueprint(blueprint(guarded(seen), principal=lambda: user))
    for name, status in ((None, 401), ("ada", 403)):
        for place in ("sums", "owned"):
            answer = app.test_client().get(f"/{place}/x", headers={} if name is None else {"X-User": name})
            assert (place, answer.status_code) == (place, status)
    assert seen == [None, "ada", "ada"], "without a user, authorize is not asked for a workflow that has an owner"
    assert [type(each) for each in seen] == [type(None), str, str]


def test_starlettes_principal_may_be_an_asynchronous_object() -> None:
    applications, testclient = (pytest.importorskip(f"starlette.{name}") for name in ("applications", "testclient"))
    from durably.temporal.starlette import routes

    class FindUser:
        async def __call__(self, request: Any) -> Any:
            return request.headers.get("x-user")

    seen: list[Any] = []
    client = testclient.TestClient(applications.Starlette(routes=routes(guarded(seen), principal=FindUser())))
    assert client.get("/sums/x", headers={"X-User": "ada"}).status_code == 403
    assert client.get("/sums/x").status_code == 401
    assert seen == ["ada", None]
