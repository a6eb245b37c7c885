"""Every error as an RFC 9457 problem document: what is wrong, and what to do."""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from service import incidents
from service.api.methods import methods_at
from service.errors import DatabaseAwayError, HoldfastError

log = structlog.get_logger(__name__)

MEDIA_TYPE = "application/problem+json"
SHOWN_ERRORS = 20

SECURITY_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Headers of every answer. The page under /docs sets its own policy, so that it can load its files."""

# pydantic's commonest messages, in words for callers instead of programmers.
WORDS = {
    "missing": "is missing",
    "extra_forbidden": "is not a field of this request",
    "string_too_short": "must not be empty",
    "string_type": "must be a text",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "is too large a number",
    "list_type": "must be a list",
    "model_attributes_type": "must be a JSON object",
    "dict_type": "must be a JSON object",
}


class RefusedError(HTTPException):
    """A request that is refused before its body is validated."""

    def __init__(
        self,
        status: int,
        *,
        slug: str,
        title: str,
        detail: str,
        fix: str,
        members: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, detail, dict(headers or {}))
        self.slug, self.title, self.fix = slug, title, fix
        self.members = dict(members or {})


def not_json(reason: str) -> RefusedError:
    """The error of a body that is not JSON."""
    return RefusedError(
        400,
        slug="not-json",
        title="The body is not JSON",
        detail=f"The body cannot be read as JSON: {reason}.",
        fix="Send one JSON document in UTF-8; NaN and Infinity are not JSON.",
    )


def problem_response(
    status: int,
    *,
    slug: str,
    title: str,
    detail: str,
    fix: str,
    members: Mapping[str, object] | None = None,
    headers: Mapping[str, str] | None = None,
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
    retry = {"Retry-After": "1"} if status in (429, 503) else {}
    return JSONResponse(
        document,
        status_code=status,
        media_type=MEDIA_TYPE,
        headers={**SECURITY_HEADERS, **retry, **(headers or {})},
    )


def refusal(error: RefusedError) -> JSONResponse:
    """The answer to a request that is refused."""
    return problem_response(
        error.status_code,
        slug=error.slug,
        title=error.title,
        detail=error.detail,
        fix=error.fix,
        members=error.members,
        headers=error.headers,
    )


def install(app: FastAPI) -> None:
    """Answer every failure of the app with a problem document."""
    app.add_exception_handler(HoldfastError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    for error in (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError):
        app.add_exception_handler(error, _database_away)
    app.add_exception_handler(Exception, _unexpected)


def _ours(_request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, HoldfastError):
        raise error
    return problem_response(
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
    found: Sequence[Any] = error.errors()
    return refusal(
        invalid([(_where(entry["loc"]), WORDS.get(entry["type"], entry["msg"])) for entry in found])
    )


def invalid(found: Sequence[tuple[str, str]]) -> RefusedError:
    """The error of a request of which something is wrong: where, and what."""
    where, problem = found[0]
    errors = [{"where": where, "problem": problem} for where, problem in found[:SHOWN_ERRORS]]
    return RefusedError(
        422,
        slug="request-invalid",
        title="The request is not valid",
        detail=f"{where}: {problem}.",
        fix="Correct what `errors` names; /docs shows what this path takes.",
        members={"errors": errors},
    )


def _where(location: Sequence[Any]) -> str:
    """Where the fault is, as the caller wrote it: the body's own fields need no prefix."""
    kind, *rest = (str(part) for part in location)
    if not rest:
        return f"the {kind}"
    path = ".".join(rest)
    return path if kind == "body" else f"{kind} {path}"


def _http(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, HTTPException):
        raise error
    if isinstance(error, RefusedError):
        return refusal(error)
    headers = error.headers or {}
    status, title, detail, fix = error.status_code, str(error.detail), f"{error.detail}.", "See /docs."
    if status == 404:
        title, detail = "Nothing is here", f"There is nothing at {request.url.path[:200]!r}."
        fix = "See /docs for the paths there are; they end without a slash."
    elif status == 405:
        title, detail = (
            "Not with this method",
            f"{request.method} does nothing at {request.url.path[:200]!r}.",
        )
        # A route names its own methods only, and the path may have several.
        headers = {"Allow": ", ".join(methods_at(request.app.routes, request.scope))}
        fix = f"This path takes {headers['Allow']}; see /docs."
    return problem_response(
        status, slug=f"http-{status}", title=title, detail=detail, fix=fix, headers=headers
    )


def _database_away(_request: Request, error: Exception) -> JSONResponse:
    log.error("database does not answer", exc_info=error)
    return problem_response(
        DatabaseAwayError.status,
        slug=DatabaseAwayError.slug,
        title=DatabaseAwayError.title,
        detail="The API is up, and its database does not answer.",
        fix="Try again in a moment. If it stays: see the API's log, and check HOLDFAST_DATABASE_URL.",
    )


def _unexpected(request: Request, error: Exception) -> JSONResponse:
    # The log has the traceback; the caller gets only the incident number that finds it there.
    incident = incidents.number()
    log.error(
        "request failed", incident=incident, method=request.method, path=request.url.path, exc_info=error
    )
    return problem_response(
        500,
        slug="internal",
        title="Internal error",
        detail="Something failed inside the service.",
        fix=f"See whether the request took effect, then try again; the API's log names incident {incident}.",
        members={"incident": incident},
    )
