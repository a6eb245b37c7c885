"""The description of the API at /openapi.json, and the page at /docs that shows it."""

from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, HTMLResponse
from pydantic import BaseModel, ConfigDict, Field

from service.api.bodies.records import COMPONENTS
from service.api.problems import MEDIA_TYPE
from service.pipelines import PipelineSpec

STATIC = Path(__file__).parent / "static"
PAGE_FILES = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "docs.js": "text/javascript",
}
# swagger-ui sets styles on elements and draws its icons from data: URLs; nothing may come from another host.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Holdfast API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="reference"><noscript>This page needs JavaScript. The description itself is at
<a href="openapi.json">openapi.json</a>.</noscript></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/docs.js"></script>
</body>
</html>
"""

router = APIRouter(include_in_schema=False)


class Problem(BaseModel):
    """RFC 9457: what is wrong, and what to do."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="urn:holdfast:problem:NAME; stable, for programs.")
    title: str = Field(description="The kind of problem, the same every time.")
    status: int
    detail: str = Field(description="What is wrong with this request, in a sentence.")
    fix: str = Field(description="What to do about it, in a sentence.")


@router.get("/docs")
def page() -> HTMLResponse:
    """The API, to read and to try."""
    return HTMLResponse(PAGE, headers={"Content-Security-Policy": PAGE_POLICY})


def _serve(name: str, media_type: str) -> None:
    @router.get(f"/docs/{name}")
    def file(_request: Request) -> FileResponse:
        return FileResponse(
            STATIC / name, media_type=media_type, headers={"Cache-Control": "public, max-age=86400"}
        )


for _name, _media_type in PAGE_FILES.items():
    _serve(_name, _media_type)


def describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, in which every error is a problem document."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        schemas = document["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        schemas.update(COMPONENTS)
        schemas["Problem"] = Problem.model_json_schema()
        schemas["PipelineDeclaration"] = _declaration(schemas)
        for operations in document["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
                operation["responses"]["default"] = {
                    "description": "What is wrong, and what to do.",
                    "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
                }
        app.openapi_schema = document
    return app.openapi_schema


def _declaration(schemas: dict[str, Any]) -> dict[str, Any]:
    """Schema of a declared pipeline: fields with a default are optional, unlike in answers."""
    declared = PipelineSpec.model_json_schema(ref_template="#/components/schemas/Declared{model}")
    parts: dict[str, Any] = declared.pop("$defs")
    schemas.update({f"Declared{name}": part for name, part in parts.items()})
    return declared
