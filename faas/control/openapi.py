"""
The admin API's table of endpoints, and the OpenAPI document that is made from it.

Source: OpenAPI 3.1.0.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from faas import __version__
from faas.control import views
from faas.control.access import Role
from faas.control.endpoints import access, jobs, kv, settings, traffic
from faas.control.endpoints.base import JSON, NDJSON, TOML, Endpoint, Query
from faas.manifest import Manifest
from faas.problems import CONTENT_TYPE

PROMETHEUS = "text/plain"

_PARAM = re.compile(r"\{(\w+)\}")


_NOT_FOUND = {404: "No such function."}

_CORE = (
    Endpoint("GET", "/api/openapi.json", "document", "This document.", content={JSON: None}, public=True),
    Endpoint("GET", "/api/status", "status", "The host and its workers.", content={JSON: views.Status}),
    Endpoint("GET", "/api/functions", "functions", "Every function.", content={JSON: views.Functions}),
    Endpoint(
        "GET",
        "/api/functions/{name}",
        "function",
        "One function: its serving version, sizes and counters.",
        content={JSON: views.FunctionView},
        refusals=_NOT_FOUND,
    ),
    Endpoint(
        "PUT",
        "/api/functions/{name}",
        "deploy",
        "Deploy a new version; the answer comes when every worker serves it.",
        status=201,
        content={JSON: views.DeploymentView},
        upload=True,
        query=traffic.DEPLOY_QUERY,
        events=(views.ProgressEvent, views.DoneEvent, views.FailedEvent),
        refusals={
            400: "The request is not the documented form.",
            409: "Another function answers on one of the routes, or a canary runs.",
            413: "The upload is over the host's limit.",
            422: "The manifest or the module was refused.",
            503: "Every worker went away while it tried the version.",
        },
    ),
    Endpoint(
        "DELETE",
        "/api/functions/{name}",
        "remove",
        "Remove a function with its versions, config values and secrets; the answer comes when no worker serves it.",
        status=204,
        query=(
            Query(
                "purge",
                {"type": "string", "enum": ["0", "1"], "default": "0"},
                "1: what its key-value store holds, too, and the grants of it.",
            ),
        ),
        refusals=_NOT_FOUND,
    ),
    Endpoint(
        "GET",
        "/api/functions/{name}/versions",
        "versions",
        "Every version of a function, newest first.",
        content={JSON: views.Versions},
        refusals=_NOT_FOUND,
    ),
    Endpoint(
        "GET",
        "/api/functions/{name}/logs",
        "logs",
        "Log lines, oldest first, one JSON document a line.",
        content={NDJSON: None},
        query=(
            Query(
                "tail",
                {"type": "integer", "minimum": 0, "maximum": 100_000, "default": 100},
                "How many of the last lines to begin with.",
            ),
            Query(
                "follow",
                {"type": "string", "enum": ["0", "1"], "default": "0"},
                "1: go on with new lines until the caller hangs up.",
            ),
        ),
        refusals={400: "A parameter is out of its range.", **_NOT_FOUND},
    ),
    Endpoint(
        "GET",
        "/api/models",
        "models",
        "Every model, and the process that serves them.",
        content={JSON: views.Models},
    ),
    Endpoint(
        "GET",
        "/api/models/{name}",
        "model",
        "One model.",
        content={JSON: views.ModelView},
        refusals={404: "No such model."},
    ),
    Endpoint(
        "PUT",
        "/api/models/{name}",
        "add_model",
        "Register a GGUF file of the host's machine; the answer comes when it can be used.",
        status=201,
        content={JSON: views.ModelView},
        body=views.AddModel,
        events=(views.HashingEvent, views.ModelAddedEvent, views.FailedEvent),
        refusals={
            400: "The request is not the documented form, or the name is another model's.",
            422: "The file is no GGUF, truncated or unreadable.",
            507: "The model is larger than the memory budget.",
        },
        role=Role.ADMIN,
    ),
    Endpoint(
        "DELETE",
        "/api/models/{name}",
        "remove_model",
        "Forget a registered model; its file stays.",
        status=204,
        refusals={400: "The model is not a registered one.", 404: "No such model."},
        role=Role.ADMIN,
    ),
    Endpoint(
        "GET",
        "/api/keys",
        "keys",
        "Every key for the OpenAI-compatible endpoints, without its text.",
        content={JSON: views.Keys},
    ),
    Endpoint(
        "POST",
        "/api/keys",
        "add_key",
        "Make a key; its text is in this answer and nowhere else. The answer comes when every worker takes it.",
        status=201,
        content={JSON: views.NewKey},
        body=views.AddKey,
        refusals={400: "The request does not have the documented form.", 409: "The name is taken."},
        role=Role.ADMIN,
    ),
    Endpoint(
        "DELETE",
        "/api/keys/{name}",
        "remove_key",
        "Remove a key; the answer comes when no worker takes it.",
        status=204,
        refusals={404: "No such key."},
        role=Role.ADMIN,
    ),
    Endpoint(
        "GET", "/metrics", "metrics", "Counters in Prometheus' text format.", content={PROMETHEUS: None}, public=True
    ),
)
ENDPOINTS: tuple[Endpoint, ...] = (
    *_CORE,
    *access.ENDPOINTS,
    *kv.ENDPOINTS,
    *settings.ENDPOINTS,
    *jobs.ENDPOINTS,
    *traffic.ENDPOINTS,
)
"""Those of ``AdminApi``, and one table for each of ``faas.control.endpoints``."""


def openapi_document(endpoints: tuple[Endpoint, ...] = ENDPOINTS) -> dict[str, Any]:
    """Return the OpenAPI document of *endpoints*, as plain dicts and lists."""
    structs = {struct for endpoint in endpoints for struct in endpoint.content.values() if struct is not None}
    structs |= {endpoint.body for endpoint in endpoints if endpoint.body is not None}
    structs |= {event for endpoint in endpoints for event in endpoint.events}
    structs |= {views.Problem, Manifest}
    ordered = sorted(structs, key=lambda struct: str(struct.__name__))
    _, components = msgspec.json.schema_components(ordered, ref_template="#/components/schemas/{name}")
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "faas admin API",
            "version": __version__,
            "description": "Deploys functions, keeps models and keys, shows what the host does. Errors: RFC 9457.",
        },
        "paths": paths,
        "components": {
            "schemas": _with_ecma_patterns(components),
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The content of `token` in the home, or a token that was made: its role is read, "
                    "deploy or admin, and each may do what the one before it may.",
                }
            },
        },
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    content = {media: {"schema": _schema(struct, media)} for media, struct in endpoint.content.items()}
    answer: dict[str, Any] = {"description": endpoint.summary}
    if content:
        answer["content"] = content
    responses: dict[str, Any] = {str(endpoint.status): answer}
    if endpoint.events:
        done = endpoint.events[-2].__struct_config__.tag
        responses["200"] = {
            "description": f"With `Accept: {NDJSON}`: one event a line; the last one is `{done}` or `failed`.",
            "content": {NDJSON: {"schema": {"oneOf": [_ref(event) for event in endpoint.events]}}},
        }
    refusals = (
        dict(endpoint.refusals)
        if endpoint.public
        else {
            401: "The token is missing or wrong.",
            403: f"The token's role is below {endpoint.needed_role.value}.",
            **endpoint.refusals,
        }
    )
    for status, text in refusals.items():
        responses[str(status)] = {"description": text, "content": {CONTENT_TYPE: {"schema": _ref(views.Problem)}}}
    operation: dict[str, Any] = {
        "operationId": endpoint.operation,
        "summary": endpoint.summary,
        "responses": responses,
    }
    if not endpoint.public:
        operation["security"] = [{"token": [endpoint.needed_role.value]}]
        operation["description"] = f"Wants a token of the role `{endpoint.needed_role.value}` or a higher one."
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PARAM.findall(endpoint.path)
    ] + [
        {"name": query.name, "in": "query", "schema": query.schema, "description": query.text}
        for query in endpoint.query
    ]
    if parameters:
        operation["parameters"] = parameters
    if endpoint.upload:
        operation["requestBody"] = _upload_body()
    elif endpoint.body is not None:
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": _ref(endpoint.body)}}}
    elif endpoint.raw_body:
        operation["requestBody"] = {"required": True, "content": {endpoint.raw_body: {"schema": {"type": "string"}}}}
    return operation


def _upload_body() -> dict[str, Any]:
    return {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["module"],
                    "properties": {
                        "manifest": {
                            **_ref(Manifest),
                            "description": f"JSON, or TOML with content type {TOML}; `name` may be left out.",
                        },
                        "module": {"type": "string", "contentMediaType": "application/wasm"},
                        "bundle": {
                            "type": "string",
                            "contentMediaType": "application/x-tar",
                            "description": "Read-only files of the function.",
                        },
                    },
                }
            }
        },
    }


def _schema(struct: type[msgspec.Struct] | None, media: str) -> dict[str, Any]:
    if struct is not None:
        return _ref(struct)
    return {"type": "object"} if media == JSON else {"type": "string"}


def _ref(struct: type[msgspec.Struct]) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{struct.__name__}"}


def _with_ecma_patterns(schema: Any) -> Any:
    r"""Return *schema* with patterns as JSON Schema writes them: Python's ``\Z`` is ``$`` there."""
    if isinstance(schema, dict):
        return {
            key: value.replace(r"\Z", "$")
            if key == "pattern" and isinstance(value, str)
            else _with_ecma_patterns(value)
            for key, value in schema.items()
        }
    return [_with_ecma_patterns(item) for item in schema] if isinstance(schema, list) else schema
