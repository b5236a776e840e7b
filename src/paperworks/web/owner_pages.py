"""The owner's pages: signing in, starting and watching runs, the digest as it would be sent."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from pydantic import ValidationError

from paperworks.feed.preferences import Preferences
from paperworks.web import security
from paperworks.web.forms import Form, many, text_field
from paperworks.web.models import RunRequest, RunState
from paperworks.web.pages import page, site_of

router = APIRouter(default_response_class=HTMLResponse)

MAIL_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; sandbox"
"""Of a mail shown by itself: mail programs want its style inline, and nothing in it may run."""


@router.get("/owner")
def owner_form(request: Request) -> Response:
    """Where the owner signs in and out."""
    _check_has_owner(request)
    return _unkept(page(request, "owner.html.j2", reason=""))


@router.post("/owner")
def sign_in(request: Request, form: Form) -> Response:
    """Begin the owner's session, or end it."""
    _check_has_owner(request)
    tokens = security.tokens_of(request)
    if text_field(form, "action") == "leave":
        return RedirectResponse("/", 303, {"set-cookie": tokens.forget_owner()})
    if not tokens.is_owner_token(text_field(form, "token")):
        return _unkept(page(request, "owner.html.j2", 403, reason="This is not the owner's token."))
    cookie = tokens.set_owner(site_of(request).now().timestamp())
    return RedirectResponse("/runs", 303, {"set-cookie": cookie})


@router.get("/runs")
def runs(request: Request) -> Response:
    """The runs since the server was started."""
    _check_owner(request)
    site = site_of(request)
    carried = [(card.id, card.title) for card in site.verdicts.cards.values()]
    return _unkept(page(request, "runs.html.j2", runs=_runs(request), carried=carried, allowed=_allowed(request)))


@router.post("/runs")
def start(request: Request, form: Form) -> Response:
    """Start a paper's claims at a tier: nothing else can be asked for."""
    _check_owner(request)
    if not _allowed(request):
        raise HTTPException(403, "Runs cannot be started on this server.")
    wanted: dict[str, Any] = {"paper": text_field(form, "paper"), "tier": text_field(form, "tier") or "smoke"}
    if claims := many(form, "claims"):
        wanted["claims"] = claims
    try:
        asked = RunRequest.model_validate(wanted)
    except ValidationError as error:
        raise HTTPException(422, "; ".join(one["msg"] for one in error.errors())) from None
    return RedirectResponse(f"/runs/{site_of(request).runs.start(asked).id}", 303)


@router.get("/runs/{id}")
def run(request: Request, id: str) -> Response:
    """A run as it goes on."""
    _check_owner(request)
    return _unkept(page(request, "run.html.j2", run=_run(request, id)))


@router.post("/runs/{id}/stop")
def stop(request: Request, id: str, form: Form) -> Response:
    """Stop a run; what it finished is kept."""
    _check_owner(request)
    site_of(request).runs.stop(_run(request, id).id)
    return RedirectResponse(f"/runs/{id}", 303)


@router.get("/digest/preview")
def preview(
    request: Request,
    frequency: Annotated[str, Query(max_length=10)] = "daily",
    query: Annotated[list[str], Query(max_length=20)] = [],  # noqa: B006 - read only
    area: Annotated[list[str], Query(max_length=50)] = [],  # noqa: B006 - read only
    part: Annotated[str, Query(pattern="^(html|text)$")] = "html",
) -> Response:
    """The digest as a subscriber with such preferences would get it now."""
    _check_owner(request)
    site = site_of(request)
    message = site.digest.preview(Preferences(frequency=frequency, queries=query, areas=area), site.now())
    body = message.get_body(preferencelist=("html",) if part == "html" else ("plain",))
    text = str(body.get_content()) if body is not None else ""
    headers = {"cache-control": "no-store", "content-security-policy": MAIL_POLICY}
    return HTMLResponse(text, headers=headers) if part == "html" else PlainTextResponse(text, headers=headers)


def _check_has_owner(request: Request) -> None:
    if site_of(request).settings.owner_token is None:
        raise HTTPException(404, "This site has no owner's pages.")


def _check_owner(request: Request) -> None:
    _check_has_owner(request)
    if not security.is_owner(request):
        raise HTTPException(401, "Sign in as the owner first.", {"www-authenticate": "Bearer"})


def _allowed(request: Request) -> bool:
    return site_of(request).settings.runs_allowed


def _runs(request: Request) -> list[RunState]:
    return list(site_of(request).runs.all())


def _run(request: Request, id: str) -> RunState:
    found = site_of(request).runs.get(id)
    if found is None:
        raise HTTPException(404, "There is no such run.")
    return found


def _unkept(response: HTMLResponse) -> HTMLResponse:
    response.headers["cache-control"] = "private, no-store"
    return response
