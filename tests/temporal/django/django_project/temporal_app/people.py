"""Functions that a workflow should not call."""

from django.contrib.auth import get_user_model


def count() -> int:
    return get_user_model().objects.count()


async def count_async() -> int:
    return await get_user_model().objects.acount()
