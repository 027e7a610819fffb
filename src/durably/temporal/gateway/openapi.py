"""The gateway's OpenAPI 3.1 document, for frameworks that have none of their own."""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from .endpoints import NO_BODY, PROBLEM, SUCCESSES, Endpoint, EndpointParameter, endpoints
from .problems import MEDIA_TYPE
from .schedule_exposure import Place
from .security import requirements

_REFERENCE = "#/components/schemas/{model}"


def openapi(
    places: Mapping[str, Place],
    *,
    mount: str,
    title: str,
    version: str,
    security_schemes: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """``mount`` is the path before the gateway's own, such as ``/api``."""
    security = {"security": requirements(security_schemes)} if security_schemes else {}
    all_endpoints = endpoints(places)
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
    """All types of all endpoints at once, so that two of one name get different names."""

    def __init__(self, all_endpoints: list[Endpoint]) -> None:
        adapters: list[tuple[tuple[Any, str], Any, TypeAdapter[Any]]] = []
        wanted: list[tuple[Any, str]] = [(PROBLEM, "serialization")]
        for endpoint in all_endpoints:
            wanted += [(parameter.type, "validation") for parameter in endpoint.parameters]
            wanted += [(endpoint.body, "validation")] if endpoint.body is not None else []
            wanted += [(body, "serialization") for body in endpoint.responses.values() if body not in (None, NO_BODY)]
        self._keys: list[tuple[Any, str]] = []
        for body, mode in wanted:
            if self._index(body, mode) is None:
                adapters.append(((len(self._keys), mode), mode, TypeAdapter(body)))
                self._keys.append((body, mode))
        found, shared = TypeAdapter.json_schemas(adapters, ref_template=_REFERENCE)
        self._schemas = {key[0]: schema for (key, _), schema in found.items()}
        self.definitions: dict[str, Any] = shared.get("$defs", {})

    def _index(self, body: Any, mode: str) -> int | None:
        """By equality, since not every type can be hashed."""
        return next((i for i, key in enumerate(self._keys) if key == (body, mode)), None)

    def of(self, body: Any, mode: str) -> dict[str, Any]:
        index = self._index(body, mode)
        assert index is not None
        return dict(self._schemas[index])


def _operation(endpoint: Endpoint, schemas: _Schemas) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "tags": [endpoint.tag],
        "summary": endpoint.summary,
        "operationId": endpoint.operation_id,
        "responses": _responses(endpoint, schemas),
    }
    if endpoint.description:
        operation["description"] = endpoint.description
    if endpoint.parameters:
        operation["parameters"] = [_parameter(parameter, schemas) for parameter in endpoint.parameters]
    if endpoint.body is not None:
        required = {"required": True} if endpoint.is_body_required else {}
        content = {"application/json": {"schema": schemas.of(endpoint.body, "validation")}}
        operation["requestBody"] = {**required, "content": content}
    return operation


def _parameter(parameter: EndpointParameter, schemas: _Schemas) -> dict[str, Any]:
    described: dict[str, Any] = {
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.is_required,
        "schema": schemas.of(parameter.type, "validation"),
    }
    if parameter.description:
        described["description"] = parameter.description
    if parameter.default is not None:
        described["schema"]["default"] = parameter.default
    return described


def _responses(endpoint: Endpoint, schemas: _Schemas) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, body in endpoint.responses.items():
        if body is NO_BODY:
            responses[str(int(status))] = {"description": SUCCESSES[status]}
            continue
        content = (
            {"text/event-stream": {"schema": {"type": "string"}}}
            if body is None
            else {"application/json": {"schema": schemas.of(body, "serialization")}}
        )
        responses[str(int(status))] = {"description": SUCCESSES[status], "content": content}
    problem = {MEDIA_TYPE: {"schema": schemas.of(PROBLEM, "serialization")}}
    for status in endpoint.problems:
        responses[str(int(status))] = {"description": status.phrase, "content": problem}
    return responses
