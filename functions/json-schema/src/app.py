# SPDX-License-Identifier: Apache-2.0
"""
json-schema: is a JSON document what a JSON schema (2020-12) says?

    POST /json-schema          {"schema": …, "instance": …}
    POST /json-schema/order    the document, against the schema src/schemas/order.json
    GET  /json-schema          the names of the schemas that are built in
    GET  /json-schema/order    that schema

The answer is {"valid": …, "errors": [{"instance", "schema", "message"}, …]} with JSON pointers; 400 for what is no
JSON or no schema, 404 for an unknown name.
"""

import json
from pathlib import Path
from typing import Any

import faas
from schema import Schema, SchemaError, parse_number, too_deep

# Read and checked while the component is built: a request finds them ready.
TEXTS = {path.stem: path.read_text() for path in sorted((Path(__file__).parent / "schemas").glob("*.json"))}
SCHEMAS = {name: Schema(json.loads(text, parse_float=parse_number)) for name, text in TEXTS.items()}


def respond(request: faas.Request) -> faas.Response:
    name = request.path.strip("/").partition("/")[2]
    if name and name not in SCHEMAS:
        return problem(404, f"there is no schema {name}; there are: {', '.join(SCHEMAS)}")
    if request.method in ("GET", "HEAD"):
        if name:
            return faas.Response(TEXTS[name], 200, {"content-type": "application/schema+json"})
        return faas.json_response({"schemas": list(SCHEMAS)})
    if request.method != "POST":
        return problem(405, "POST a document, or GET the schemas", {"allow": "GET, HEAD, POST"})
    try:
        document = parsed(request.body())
    except ValueError as exc:
        return problem(400, f"the body is not JSON: {exc}")
    try:
        if name:
            return result(SCHEMAS[name], document)
        if not isinstance(document, dict) or not {"schema", "instance"} <= document.keys():
            return problem(400, 'an object with "schema" and "instance" is needed')
        return result(Schema(document["schema"]), document["instance"])
    except SchemaError as exc:
        return problem(400, str(exc))


def parsed(body: bytes) -> Any:
    """Raises ValueError."""
    if too_deep(body):
        raise ValueError("it is nested too deep")
    return json.loads(body, parse_float=parse_number, parse_constant=refused)


def refused(word: str) -> None:
    raise ValueError(f"{word} is not a number of JSON")


def result(schema: Schema, document: Any) -> faas.Response:
    errors = [found._asdict() for found in schema.problems(document)]
    return faas.json_response({"valid": not errors, "errors": errors})


def problem(status: int, detail: str, headers: faas.Headers = ()) -> faas.Response:
    response = faas.json_response({"status": status, "detail": detail}, status, headers)
    response.headers[0] = ("content-type", "application/problem+json")
    return response


IncomingHandler = faas.handler(respond)
