"""The OpenAPI 3.1 document, and its page with Swagger UI.

FastAPI has a document of its own. Swagger UI: https://swagger.io/tools/swagger-ui/.
"""

import functools
import html
import json
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from pydantic import TypeAdapter

from .endpoints import PROBLEM, PROBLEMS, SUCCESSES, Bodies, Endpoint, not_allowed, options
from .messages import JSON, GatewayRequest, GatewayResponse
from .problems import MEDIA_TYPE

SecuritySchemes = Mapping[str, Mapping[str, Any]]
"""Scheme objects of OpenAPI by name, such as ``{"token": {"type": "http", "scheme": "bearer"}}``."""

_REFERENCE = "#/components/schemas/{model}"


def openapi(
    endpoints: Iterable[Endpoint],
    *,
    mount: str,
    title: str,
    version: str,
    security_schemes: SecuritySchemes | None = None,
) -> dict[str, Any]:
    """The document. ``mount`` is the path before the gateway's own, such as ``/api``."""
    security: dict[str, Any] = {}
    if security_schemes:
        security = {"security": [{name: []} for name in security_schemes]}
    all_endpoints = list(endpoints)
    schemas = _Schemas(all_endpoints)
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in all_endpoints:
        paths.setdefault(f"{mount}{endpoint.path}", {})[endpoint.method.lower()] = {
            **_operation(endpoint, schemas),
            **security,
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "paths": paths,
        "components": {
            "schemas": schemas.definitions,
            **({"securitySchemes": security_schemes} if security_schemes else {}),
        },
    }


class _Schemas:
    """The schemas of all types together: two types never get the same name."""

    def __init__(self, all_endpoints: list[Endpoint]) -> None:
        wanted: list[tuple[Any, str]] = [(PROBLEM, "serialization")]
        for endpoint in all_endpoints:
            wanted += [(parameter.type, "validation") for parameter in endpoint.parameters]
            wanted += [(body.type, "validation") for body in (endpoint.body,) if body is not None and not body.is_empty]
            wanted += [(body, "serialization") for body in endpoint.responses.values() if not isinstance(body, Bodies)]
        # Not every type can be hashed.
        self._wanted = [each for index, each in enumerate(wanted) if each not in wanted[:index]]
        adapters: Any = [((i, mode), mode, TypeAdapter(body)) for i, (body, mode) in enumerate(self._wanted)]
        found, shared = TypeAdapter.json_schemas(adapters, ref_template=_REFERENCE)
        self._schemas = {key[0]: schema for (key, _), schema in found.items()}
        self.definitions: dict[str, Any] = shared.get("$defs", {})

    def of(self, body: Any, mode: str) -> dict[str, Any]:
        return dict(self._schemas[self._wanted.index((body, mode))])


def _operation(endpoint: Endpoint, schemas: _Schemas) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "tags": [endpoint.exposure.name],
        "summary": endpoint.summary,
        "operationId": endpoint.operation_id,
        "responses": _responses(endpoint, schemas),
    }
    if endpoint.description:
        operation["description"] = endpoint.description
    if endpoint.parameters:
        operation["parameters"] = []
    for parameter in endpoint.parameters:
        schema = schemas.of(parameter.type, "validation")
        if parameter.default is not None:
            schema["default"] = parameter.default
        operation["parameters"].append(
            {
                "name": parameter.name,
                "in": parameter.place,
                "required": parameter.is_required,
                "schema": schema,
                **({"description": parameter.description} if parameter.description else {}),
            }
        )
    if (body := endpoint.body) is not None and not body.is_empty:
        required = {"required": True} if body.is_required else {}
        content = {"application/json": {"schema": schemas.of(body.type, "validation")}}
        operation["requestBody"] = {**required, "content": content}
    return operation


def _responses(endpoint: Endpoint, schemas: _Schemas) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, body in endpoint.responses.items():
        response: dict[str, Any] = {"description": SUCCESSES[status]}
        if body is Bodies.STREAM:
            response["content"] = {"text/event-stream": {"schema": {"type": "string"}}}
        elif body is not Bodies.NONE:
            response["content"] = {"application/json": {"schema": schemas.of(body, "serialization")}}
        responses[str(int(status))] = response
    problem = {MEDIA_TYPE: {"schema": schemas.of(PROBLEM, "serialization")}}
    for status in (*PROBLEMS, *endpoint.route.problems):
        responses[str(int(status))] = {"description": status.phrase, "content": problem}
    return responses


SWAGGER_VERSION = "5.35.0"

_CDN = f"https://cdn.jsdelivr.net/npm/swagger-ui-dist@{SWAGGER_VERSION}"

_INTEGRITY = {
    "swagger-ui.css": "sha384-WlYgdmXYOOBWL5apwjDEZwN+U3HmXSSu5R6V5aGxEcf7z+KuRNwBhoxKVN1i3D5I",
    "swagger-ui-bundle.js": "sha384-gjRm0bEPMeTmMh5jT2cHccIwCUZSTd8YC+j0d0sXw0MdGEfScduGpSyF3ZSSLkX9",
}
"""Hashes of files in the npm package ``swagger-ui-dist`` of this version: browsers refuse other files of the CDN."""


def swagger_page(*, title: str, assets: str | None) -> bytes:
    """The page. ``assets`` is the URL of the app's own copy; ``None`` is the CDN."""
    style, script = (_source(name, assets) for name in _INTEGRITY)
    options = json.dumps({"url": "openapi.json", "dom_id": "#swagger-ui", "deepLinking": True})
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<link rel="stylesheet" href={style}>
</head>
<body>
<div id="swagger-ui"></div>
<script src={script}></script>
<script>SwaggerUIBundle({options})</script>
</body>
</html>
""".encode()


def _source(name: str, assets: str | None) -> str:
    if assets is not None:
        return f'"{html.escape(assets.rstrip("/"))}/{name}"'
    return f'"{_CDN}/{name}" integrity="{_INTEGRITY[name]}" crossorigin="anonymous"'


class Documents:
    """The OpenAPI document of a gateway at ``openapi.json``, and with ``docs`` the page with Swagger UI at ``docs``.

    ``docs`` is ``True`` for the code of a CDN, or the URL of the app's own copy of ``swagger-ui-dist``.
    """

    def __init__(
        self, endpoints: Iterable[Endpoint], security_schemes: SecuritySchemes, title: str, docs: bool | str
    ) -> None:
        self._title, self._docs = title, docs

        @functools.lru_cache(maxsize=8)
        def make(mount: str) -> bytes:
            return msgspec.json.encode(
                openapi(endpoints, mount=mount, title=title, version="1", security_schemes=security_schemes)
            )

        self._make = make

    def answer(self, request: GatewayRequest) -> GatewayResponse | None:
        """The response to a request for one of them; ``None`` for another path. All clients can read them."""
        path = request.path.strip("/")
        if path != "openapi.json" and not (path == "docs" and self._docs):
            return None
        if request.method == "OPTIONS":
            return options({"GET"})
        if request.method not in ("GET", "HEAD"):
            return not_allowed({"GET"}).response()
        if path == "docs":
            assets = self._docs if isinstance(self._docs, str) else None
            kind, body = "text/html; charset=utf-8", swagger_page(title=self._title, assets=assets)
        else:
            kind, body = JSON, self._make(request.mount)
        made = GatewayResponse(status_code=HTTPStatus.OK, headers={"Content-Type": kind}, body=body)
        return made.without_body() if request.method == "HEAD" else made
