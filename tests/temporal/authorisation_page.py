"""The examples of ``docs/how-to/temporal/authorise.md``, each as an app in a separate process."""

import os
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from . import serve, workflows

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "temporal" / "authorise.md"


def examples() -> dict[str, str]:
    """The complete examples by their headings."""
    found = re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    codes = {heading: re.findall(r"```python\n(.*?)```", body, re.DOTALL) for heading, body in found}
    return {heading: code for heading, [code] in ((h, c) for h, c in codes.items() if c)}


def _django(code: str) -> Any:
    """A project around the example's URLs; ``X-User`` names a user of its database."""
    import django
    from django.conf import settings

    settings.configure(
        ALLOWED_HOSTS=["127.0.0.1"],
        INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "file:users?mode=memory&cache=shared"}},
        MIDDLEWARE=["tests.temporal.authorisation_page.log_in"],
        ROOT_URLCONF="page",
        SECRET_KEY="for tests only",
        TEMPORAL_SERVER=os.environ["TEMPORAL_ADDRESS"],
        TEMPORAL_TASK_QUEUE=workflows.TASK_QUEUE,
    )
    django.setup()
    from django.contrib.auth.models import Permission, User
    from django.core.management import call_command
    from django.core.wsgi import get_wsgi_application

    call_command("migrate", verbosity=0)
    for name, permissions in {"ada": ["add_user", "delete_user"], "bob": ["add_user"], "eve": []}.items():
        user = User.objects.create_user(name)
        user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    User.objects.create_superuser("root")
    sys.modules["page"] = page = ModuleType("page")
    exec(compile(code, str(PAGE), "exec"), vars(page))
    return get_wsgi_application()


def log_in(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Django's middleware, for users that a test names."""
    from django.contrib.auth.models import AnonymousUser, User

    def middleware(request: Any) -> Any:
        request.user = User.objects.filter(username=request.headers.get("X-User")).first() or AnonymousUser()
        return get_response(request)

    return middleware


def main() -> None:
    heading, address, descriptor = sys.argv[1:]
    os.environ["TEMPORAL_ADDRESS"] = address
    sys.modules["workflows"] = workflows
    code, listener = examples()[heading], socket.socket(fileno=int(descriptor))
    if "durably.temporal.django" in code:
        serve.serve_wsgi(_django(code), listener)
        return
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(code, str(PAGE), "exec"), names)
    if "durably.temporal.flask" in code:
        serve.serve_wsgi(names["app"], listener)
    elif "durably.temporal.tornado" in code:
        serve.serve_tornado(names["app"], listener)
    else:
        serve.serve_asgi(names["app"], listener)


if __name__ == "__main__":
    main()
