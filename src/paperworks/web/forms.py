"""The pages that change something for a reader: the subscription, and votes."""

from __future__ import annotations

import logging
from typing import Annotated, Any
from zoneinfo import available_timezones

from fastapi import APIRouter, BackgroundTasks, Depends, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from paperworks.feed.mail import confirmation_mail
from paperworks.web import security, views
from paperworks.web.pages import page, site_of
from paperworks.web.rendering import segment
from paperworks.web.state import Site

log = logging.getLogger(__name__)
router = APIRouter(default_response_class=HTMLResponse)

Form = Annotated[dict[str, Any], Depends(security.own_form)]
"""The fields of a form of ours, its token checked."""


def text_field(form: dict[str, Any], name: str, longest: int = 300) -> str:
    """A field of a form as one line of text, empty where it is missing. Raises HTTPException (422) for what is none."""
    value = form.get(name, "")
    if not isinstance(value, str) or len(value) > longest:
        raise HTTPException(422, f"{name}: wanted one text of at most {longest} characters")
    return value.strip()


def many(form: dict[str, Any], name: str) -> list[str]:
    """A field that may be given several times."""
    value = form.get(name, [])
    return value if isinstance(value, list) else [value]


@router.get("/subscribe")
def subscribe_form(request: Request) -> Response:
    """The form for the digest."""
    return page(request, "subscribe.html.j2", asked=False, email="", reason="")


@router.post("/subscribe")
def subscribe(request: Request, form: Form, later: BackgroundTasks) -> Response:
    """Take an address; the answer is the same whatever is known of it."""
    site, email = site_of(request), text_field(form, "email")
    try:
        ask_to_confirm(site, email, later)
    except ValueError as error:
        reason = str(error).partition(": ")[2] or str(error)
        return page(request, "subscribe.html.j2", 422, asked=False, email=email, reason=reason)
    return page(request, "subscribe.html.j2", asked=True, email="", reason="")


def ask_to_confirm(site: Site, email: str, later: BackgroundTasks) -> None:
    """Let the mail with the confirming link be sent after the answer, where there is one to send.

    Raises ValueError for a malformed address.
    """
    token = site.subscriptions.request(email, site.now())
    if token is not None:
        later.add_task(_send_confirmation, site, email, token)


def _send_confirmation(site: Site, email: str, token: str) -> None:
    settings = site.settings
    if settings.transport is None:
        log.warning("no mail is sent: the site was started without a mail server")
        return
    message = confirmation_mail(email, token, base_url=settings.base_url, sender=settings.sender)
    try:
        settings.transport.send(message)
    except Exception:
        log.exception("a confirmation mail could not be sent")


@router.get("/confirm/{token}")
def confirm_form(request: Request, token: str) -> Response:
    """A button: programs that follow the links of a mail do not press it."""
    return _private(page(request, "confirm.html.j2", subscriber=None))


@router.post("/confirm/{token}")
def confirm(request: Request, token: str, form: Form) -> Response:
    """Make the subscription valid."""
    site = site_of(request)
    try:
        subscriber = site.subscriptions.confirm(token, site.now())
    except ValueError:
        detail = "This link is unknown, was used before, or is older than two days. Ask for a new one."
        raise HTTPException(422, detail) from None
    return _private(page(request, "confirm.html.j2", subscriber=subscriber))


@router.get("/u/{token}")
def unsubscribe_form(request: Request, token: str) -> Response:
    """A button that ends the subscription."""
    if site_of(request).subscriptions.find(token) is None:
        raise HTTPException(404, "This link belongs to no subscription.")
    return _private(page(request, "unsubscribe.html.j2", done=False, token=token))


@router.post("/u/{token}")
def unsubscribe(request: Request, token: str) -> Response:
    """End the subscription at once. Mail programs send this by themselves (RFC 8058): no token of a form is wanted."""
    site = site_of(request)
    if not site.subscriptions.unsubscribe(token, site.now()):
        raise HTTPException(404, "This link belongs to no subscription.")
    return _private(page(request, "unsubscribe.html.j2", done=True, token=token))


@router.get("/preferences/{token}")
def preferences_form(request: Request, token: str) -> Response:
    """What the digest should hold, and when it comes."""
    return _private(_preferences(request, token))


@router.post("/preferences/{token}")
def change_preferences(request: Request, token: str, form: Form) -> Response:
    """Keep what was chosen."""
    site = site_of(request)
    subscriber = site.subscriptions.find(token)
    if subscriber is None:
        raise HTTPException(404, "This link belongs to no subscription.")
    given = {name: text_field(form, name) for name in ("frequency", "minimum_score", "timezone", "hour", "count")}
    queries = [line.strip() for line in text_field(form, "queries", 5000).splitlines() if line.strip()]
    typed: dict[str, Any] = {**given, "queries": queries, "areas": many(form, "areas")}
    try:
        numbers = {"hour": int(given["hour"] or 0), "count": int(given["count"] or 10)}
        changes = {**typed, **numbers, "minimum_score": float(given["minimum_score"] or 0)}
        site.subscriptions.preferences(subscriber, **changes)
    except ValueError as error:
        return _private(_preferences(request, token, typed, reason=str(error)))
    return _private(_preferences(request, token, kept=True))


def _preferences(
    request: Request, token: str, typed: dict[str, Any] | None = None, *, kept: bool = False, reason: str = ""
) -> HTMLResponse:
    """The form, with what is kept; where that was refused with what was typed."""
    site = site_of(request)
    subscriber = site.subscriptions.find(token)
    if subscriber is None:
        raise HTTPException(404, "This link belongs to no subscription.")
    return page(
        request,
        "preferences.html.j2",
        422 if reason else 200,
        subscriber=subscriber,
        chosen=subscriber.preferences.to_mapping() if typed is None else typed,
        areas=[one.area for one in views.areas(site).areas],
        zones=sorted(zone for zone in available_timezones() if "/" in zone or zone == "UTC"),
        kept=kept,
        reason=reason,
    )


def _private(response: HTMLResponse) -> HTMLResponse:
    """Addresses with a token in them are nobody else's."""
    response.headers["cache-control"] = "private, no-store"
    response.headers["x-robots-tag"] = "noindex"
    return response


@router.post("/paper/{id:path}/vote")
def vote(request: Request, id: str, form: Form) -> Response:
    """Count a reader's vote, once a paper."""
    site, tokens = site_of(request), security.tokens_of(request)
    record = site.store.get(id)
    if record is None:
        raise HTTPException(404, "This paper is not in the catalogue.")
    counted = site.store.vote(record.key, tokens.person(tokens.visitor(request.scope)), site.now())
    return RedirectResponse(f"/paper/{segment(record.key)}?voted={'now' if counted else 'before'}", 303)
