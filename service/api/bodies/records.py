"""The bodies of routes that take records, as the API's description has them."""

from collections.abc import Mapping
from typing import Any

import msgspec

from streams.wire.decode import JsonRecord

(RECORD,), COMPONENTS = msgspec.json.schema_components(
    (JsonRecord,), ref_template="#/components/schemas/{name}"
)
"""JSON Schema of a record, derived from the decoder's own type."""

LABELLED = {
    "type": "object",
    "required": ["id", "label"],
    "additionalProperties": False,
    "properties": {"id": {"type": "string"}, "label": {"type": "string"}},
}
"""JSON Schema of a record of which only the label counts."""


def records_body(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a route says of its body, in each media type that records come in.

    Args:
        record: JSON Schema of one record.
    """
    many = {"type": "array", "minItems": 1, "items": record}
    content = {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["records"],
                "additionalProperties": False,
                "properties": {"records": many},
            }
        },
        "application/x-ndjson": {"schema": {"type": "string", "description": "One record, as JSON, a line."}},
        "application/msgpack": {"schema": {**many, "description": "An array of maps, each one record."}},
        "application/vnd.apache.arrow.stream": {
            "schema": {
                "type": "string",
                "format": "binary",
                "description": "An Arrow IPC stream: a row is a record, and a column one of its fields.",
            }
        },
    }
    return {"requestBody": {"required": True, "content": content}}
