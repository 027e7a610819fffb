"""The workflow sandbox of workers.

The module decides which modules the sandbox shares with the process, and explains why a workflow cannot be loaded.

The SDK imports a workflow's module again for each run. In an app of one file, that module also imports the web
framework, the database library and HTTP clients. These cannot be imported again (the SDK's restricted modules break
class definitions in them), and it would be slow. Workflows do not use them, so they are shared with the process.
"""

import inspect
import os
import sys
import traceback
from dataclasses import replace

from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxMatcher, SandboxRestrictions

from durably.temporal.declarations import WorkerDeclaration

_FRAMEWORKS = """
    aiohttp asgiref bottle channels click django falcon fastapi fastapi_users flask gunicorn hypercorn itsdangerous
    jinja2 litestar markupsafe multipart ninja python_multipart quart rest_framework sanic sqladmin starlette
    strawberry tornado typer uvicorn werkzeug wtforms
"""
FRAMEWORKS = frozenset(_FRAMEWORKS.split())
"""Web frameworks and their dependencies."""

_LIBRARIES = """
    MySQLdb PIL aioboto3 aiobotocore aiofiles aiokafka aiomysql aiosqlite alembic anthropic anyio argon2 asyncpg
    authlib azure bcrypt beanie beartype boto3 botocore celery certifi confluent_kafka cryptography dotenv elasticsearch
    email_validator environ h11 h2 httpcore httpx httpx_sse idna jose joblib jwt kombu limits loguru mongoengine
    motor mysql numpy openai opentelemetry pandas paramiko passlib peewee pika playwright prometheus_client psycopg
    psycopg2 psycopg_pool pwdlib pydantic_settings pymongo pymysql pyodbc redis requests s3transfer scipy selenium
    sendgrid sentry_sdk sklearn slowapi sniffio sqlalchemy sqlmodel stripe structlog tortoise twilio urllib3
    websockets yarl
"""
LIBRARIES = frozenset(_LIBRARIES.split())
"""Libraries of activities and views: for databases, HTTP, queues, mail, security, numbers."""

FAMILIES = ("aiohttp_", "django_", "fastapi_", "flask_", "sqlalchemy_", "starlette_")
"""Extensions of frameworks that the process has imported."""

_CALLS_OF_CLIENTS = {
    "boto3": {"client", "resource"},
    "httpx": {"delete", "get", "head", "options", "patch", "post", "put", "request", "stream"},
    "requests": {"delete", "get", "head", "options", "patch", "post", "put", "request"},
}
"""Calls that a workflow must not make although it can import them. Each replay would repeat them.

They are restricted while workflows run, not while their module is imported.
"""


def make_runner(declaration: WorkerDeclaration) -> SandboxedWorkflowRunner:
    """The sandbox of a worker's workflows."""
    default = SandboxRestrictions.default
    restrictions = default.with_passthrough_modules(*shared_modules(declaration, frozenset(sys.modules)))
    return SandboxedWorkflowRunner(
        restrictions=replace(restrictions, invalid_module_members=_restricted(default.invalid_module_members))
    )


def shared_modules(declaration: WorkerDeclaration, imported: frozenset[str]) -> set[str]:
    """Names of modules that workflows share with the process.

    ``imported`` are those that the process has imported.
    """
    families = {name for name in imported if name.startswith(FAMILIES) and "." not in name}
    own = {workflow.__module__.partition(".")[0] for workflow in declaration.workflows}
    return declared_modules(declaration) | ((FRAMEWORKS | LIBRARIES | families) - own)


def declared_modules(declaration: WorkerDeclaration) -> set[str]:
    """Modules that only have activities, and ``passed_through`` of the declaration.

    A workflow imports its activities for their names and types. To import all of their dependencies again would be
    slow, and fails for a module that can exist only once, such as Django's models.
    """
    workflows = {workflow.__module__ for workflow in declaration.workflows}
    activities = {
        getattr(activity, "__module__", None) or type(activity).__module__ for activity in declaration.activities
    }
    return {
        module
        for module in {"durably", *declaration.passed_through, *activities}
        if not any(workflow == module or workflow.startswith(f"{module}.") for workflow in workflows)
    }


def _restricted(members: SandboxMatcher) -> SandboxMatcher:
    """The SDK's restrictions, and those of HTTP clients.

    Paths such as ``Path(__file__).resolve()`` are allowed while a module is imported."""
    children = dict(members.children)
    path = replace(children["pathlib"].children["Path"], only_runtime=True)
    children["pathlib"] = replace(children["pathlib"], children={"Path": path})
    for module, calls in _CALLS_OF_CLIENTS.items():
        children[module] = SandboxMatcher(use=calls, only_runtime=True)
    return replace(members, children=children)


def explain(error: BaseException, declaration: WorkerDeclaration) -> str | None:
    """The line of the app that prevents the import of a workflow, and a remedy.

    Returns ``None`` for any other error. The line is in the module of a workflow.
    """
    origin = error.__cause__
    if origin is None:
        return None
    files = {os.path.abspath(inspect.getfile(each)) for each in declaration.workflows}
    frames = traceback.extract_tb(origin.__traceback__)
    own = [each for each in frames if os.path.abspath(each.filename) in files]
    if not own:
        return None
    return (
        "a workflow's module is imported again in the workflow sandbox, and this import fails.\n"
        f"At {own[-1].filename}, line {own[-1].lineno}: {own[-1].line}\n{type(origin).__name__}: {origin}\n"
        "Share an imported module with the process, by `with workflow.unsafe.imports_passed_through():` around the "
        "import, or move the workflow into a module that imports only what it needs."
    )
