"""What a reader sees when a request is refused: a page with the reason, or under ``/api`` a Problem."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from paperworks.web.rendering import render

HEADINGS = {
    400: "This request is not understood",
    401: "Only the owner may do this",
    403: "This is not allowed",
    404: "Nothing is here",
    405: "This cannot be done here",
    413: "This is too large",
    414: "This address is too long",
    415: "This kind of data is not understood",
    422: "This cannot be looked up",
    429: "Please wait a little",
    500: "Something went wrong here",
    503: "This is not available",
}


def problem(scope: Scope, status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """The response that refuses a request. `detail` is shown to the reader, escaped."""
    sent = {"cache-control": "no-store", **(headers or {})}
    detail = detail[:500]
    if f"{scope['path']}/".startswith("/api/"):
        body = json.dumps({"detail": detail}, ensure_ascii=True)
        return Response(body, status, sent, media_type="application/json")
    heading = HEADINGS.get(status) or HTTPStatus(status).phrase
    page = render("error.html.j2", status=status, heading=heading, detail=detail)
    return Response(page, status, sent, media_type="text/html")


def add_handlers(app: FastAPI) -> None:
    """Let `app` answer what its pages raise."""

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        detail = str(error.detail)
        if error.status_code == 404 and detail == "Not Found":
            detail = "There is no page at this address."
        if error.status_code == 405:
            detail = f"{request.method} is not possible at this address."
        return problem(request.scope, error.status_code, detail, error.headers)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return problem(request.scope, 422, "; ".join(map(_said, error.errors()[:5])))

    async def unknown(request: Request, error: Exception) -> Response:
        if isinstance(error, KeyError | IndexError):  # a mistake of ours, not something asked for
            raise error
        return problem(request.scope, 404, str(error))

    async def wrong(request: Request, error: Exception) -> Response:
        return problem(request.scope, 422, str(error))

    async def broken(request: Request, error: Exception) -> Response:
        return problem(request.scope, 500, "The error has been written to the log.")

    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(LookupError, unknown)
    app.add_exception_handler(ValueError, wrong)
    app.add_exception_handler(Exception, broken)


def _said(error: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in error["loc"] if part not in ("query", "path", "body"))
    return f"{where}: {error['msg']}" if where else str(error["msg"])
