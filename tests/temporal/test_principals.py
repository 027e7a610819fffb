"""Principals of frameworks are told apart, and none is guessed at."""

import enum
import uuid
from types import SimpleNamespace
from typing import Any

import pytest

from durably.temporal import UnknownPrincipalError
from durably.temporal.gateway.principals import ANONYMOUS, is_anonymous, principal_key


class User:
    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


class ServiceAccount(User):
    """Has ids of its own."""


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
        User(sub="7"),
        {"sub": "7", "iss": "https://a"},
        {"sub": "7", "iss": "https://b"},
    ]
    keys = [principal_key(principal) for principal in principals]
    assert len(set(keys)) == len(keys)
    assert keys == [principal_key(principal) for principal in principals]


def test_classes_of_one_name_in_two_modules_have_ids_of_their_own() -> None:
    elsewhere = type("User", (User,), {"__module__": "staff.models"})
    assert elsewhere.__qualname__ == User.__qualname__
    assert principal_key(elsewhere(id=7)) != principal_key(User(id=7))


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


class UserWithMethods:
    """Such as users of flask-login before 0.3, and of an app's own."""

    id = 7

    def __init__(self, **verdicts: Any) -> None:
        for name, verdict in verdicts.items():
            setattr(self, name, lambda verdict=verdict: verdict)


def test_verdicts_may_be_methods() -> None:
    assert is_anonymous(UserWithMethods(is_anonymous=True, is_authenticated=False))
    assert is_anonymous(UserWithMethods(is_authenticated=False))
    assert not is_anonymous(UserWithMethods(is_anonymous=False))
    assert not is_anonymous(UserWithMethods(is_authenticated=True))
    assert principal_key(UserWithMethods(is_anonymous=True)) == ANONYMOUS
    assert principal_key(UserWithMethods(is_anonymous=False)) != ANONYMOUS


async def _later() -> bool:
    return True


@pytest.mark.parametrize(
    ("method", "reason"),
    [(lambda: "no", "returns str"), (lambda self: True, "cannot be called without"), (_later, "is asynchronous")],
    ids=["text", "argument", "async"],
)
def test_a_method_without_a_verdict_is_an_error(method: Any, reason: str) -> None:
    with pytest.raises(UnknownPrincipalError, match=f"is_anonymous of a principal of the class .*User {reason}"):
        is_anonymous(User(is_anonymous=method, id=1))


def test_an_inactive_user_is_not_anonymous() -> None:
    assert principal_key(User(is_anonymous=False, is_authenticated=False, id=1)) != ANONYMOUS


def test_djangos_lazy_user_is_its_user() -> None:
    functional = pytest.importorskip("django.utils.functional")
    user = User(pk=3)
    assert principal_key(functional.SimpleLazyObject(lambda: user)) == principal_key(user)


@pytest.mark.parametrize(
    "principal",
    [object(), SimpleNamespace(name="ada"), User(pk=None), User(id=""), User(id=True), "", True, {"name": "a"}, 1.5],
    ids=["object", "name", "unsaved", "empty", "bool-id", "empty-text", "bool", "no-sub", "float"],
)
def test_a_principal_that_tells_nothing_is_an_error_that_names_the_remedy(principal: Any) -> None:
    with pytest.raises(UnknownPrincipalError, match=r"Gateway\(identify=…\)") as raised:
        principal_key(principal)
    assert "ada" not in str(raised.value)


def test_identify_decides() -> None:
    key = principal_key(User(email="ada@example.com"), lambda user: str(user.email))
    assert key == principal_key({"email": "ada@example.com"}, lambda user: str(user["email"]))
    assert key != principal_key("ada@example.com")
    assert principal_key(None, lambda user: str(user.email)) == ANONYMOUS
    with pytest.raises(UnknownPrincipalError, match="not empty"):
        principal_key("ada", lambda user: "")
