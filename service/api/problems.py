"""Every error as an RFC 9457 problem document: what is wrong, and what to do."""

from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from service.errors import HoldfastError

MEDIA_TYPE = "application/problem+json"

FIXES = {
    404: "See /docs for what there is.",
    405: "See /docs for the methods of this path.",
    413: "Send the records in several requests.",
    415: "Send application/json or application/x-ndjson.",
}


def problem(
    status: int,
    *,
    slug: str,
    title: str,
    detail: str,
    fix: str,
    members: Mapping[str, object] | None = None,
) -> JSONResponse:
    """One problem document. `fix` and `members` are extension members."""
    document = {
        **(members or {}),
        "type": f"urn:holdfast:problem:{slug}",
        "title": title,
        "status": status,
        "detail": detail,
        "fix": fix,
    }
    headers = {"Retry-After": "1"} if status == 429 else None
    return JSONResponse(document, status_code=status, media_type=MEDIA_TYPE, headers=headers)


def install(app: FastAPI) -> None:
    """Answer every failure of the app with a problem document."""
    app.add_exception_handler(HoldfastError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


def _ours(_request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, HoldfastError):
        raise error
    return problem(
        error.status,
        slug=error.slug,
        title=error.title,
        detail=error.detail,
        fix=error.fix,
        members=error.members,
    )


def _invalid(_request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, RequestValidationError):
        raise error
    errors = [
        {"where": ".".join(str(part) for part in entry["loc"]), "problem": entry["msg"]}
        for entry in error.errors()
    ]
    first = errors[0]
    return problem(
        422,
        slug="request-invalid",
        title="The request is not valid",
        detail=f"{first['where']}: {first['problem']}.",
        fix="Correct what `errors` names; /docs shows what this path takes.",
        members={"errors": errors},
    )


def _http(_request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, HTTPException):
        raise error
    return problem(
        error.status_code,
        slug=f"http-{error.status_code}",
        title=str(error.detail),
        detail=f"{error.detail}.",
        fix=FIXES.get(error.status_code, "See /docs."),
    )


def _unexpected(_request: Request, _error: Exception) -> JSONResponse:
    # The server logs the traceback; a caller learns nothing of our inside.
    return problem(
        500,
        slug="internal",
        title="Internal error",
        detail="Something failed inside the service. Nothing was promoted by this request.",
        fix="Try again; if it stays, the API's log has the reason.",
    )
