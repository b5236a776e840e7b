"""The pages that are only read."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from markupsafe import Markup

from paperworks.feed import atom, json_feed, rss
from paperworks.web import security, views
from paperworks.web.drawings import without_style
from paperworks.web.models import Filters, PaperPage
from paperworks.web.rendering import render
from paperworks.web.state import Site

router = APIRouter(default_response_class=HTMLResponse)

PageNumber = Annotated[int, Query(alias="page", ge=1, le=100_000)]
Words = Annotated[str, Query(max_length=300)]
Word = Annotated[str, Query(max_length=100)]

ROBOTS = (
    "User-agent: *\n"
    + "".join(
        f"Disallow: {path}\n"
        for path in ("/api/", "/confirm/", "/digest/", "/owner", "/preferences/", "/runs", "/search", "/u/")
    )
    + "Allow: /\n"
)


def site_of(request: Request) -> Site:
    """The site that serves the request."""
    found: Site = request.app.state.site
    return found


def page(request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """A template as a response, with what the frame of every page needs."""
    site = site_of(request)
    frame = {
        "here": request.url.path,
        "owner": security.is_owner(request),
        "csrf": security.tokens_of(request).placeholder,
        "sends_mail": site.settings.transport is not None,
        "base_url": site.settings.base_url,
    }
    return HTMLResponse(render(template, **{**frame, **values}), status)


@router.get("/")
def latest(request: Request, page_: PageNumber = 1) -> Response:
    """The newest papers."""
    return page(request, "listing.html.j2", listing=views.latest(site_of(request), page_))


@router.get("/papers/{name}")
def day(request: Request, name: str, page_: PageNumber = 1) -> Response:
    """The papers of a day."""
    return page(request, "listing.html.j2", listing=views.day(site_of(request), name, page_))


@router.get("/week/{name}")
def week(request: Request, name: str, page_: PageNumber = 1) -> Response:
    """The papers of a week."""
    return page(request, "listing.html.j2", listing=views.week(site_of(request), name, page_))


@router.get("/month/{name}")
def month(request: Request, name: str, page_: PageNumber = 1) -> Response:
    """The papers of a month."""
    return page(request, "listing.html.j2", listing=views.month(site_of(request), name, page_))


@router.get("/go")
def go(day: Annotated[str, Query(max_length=10)]) -> Response:
    """The day that a reader chose in the calendar's field."""
    chosen = _date("day", day)
    return RedirectResponse(f"/papers/{chosen}" if chosen else "/", 303)


@router.get("/trending")
def trending(
    request: Request,
    window: Literal["day", "week", "month"] = "day",
    method: Literal["decay", "hn", "hot", "top"] = "decay",
    page_: PageNumber = 1,
) -> Response:
    """What is rising."""
    found = views.trending(site_of(request), window, method, page_)
    return page(request, "trending.html.j2", found=found)


@router.get("/search")
def search(
    request: Request,
    q: Words = "",
    since: Word = "",
    until: Word = "",
    area: Word = "",
    author: Word = "",
    code: Word = "",
    verdict: Word = "",
    page_: PageNumber = 1,
    fragment: bool = False,
) -> Response:
    """What a query finds; with `fragment` the results alone, for the page to put in as one types."""
    filters = Filters.model_validate(
        {
            "since": _date("since", since),
            "until": _date("until", until),
            "area": area.strip() or None,
            "author": author.strip() or None,
            "code": _choice("code", code, ("yes", "no")) == "yes" if code else None,
            "verdict": _choice("verdict", verdict, ("any", "holds", "inconclusive", "fails", "not run", "error")),
        }
    )
    found = views.search(site_of(request), q, filters, page_)
    template = "search_results.html.j2" if fragment else "search.html.j2"
    return page(request, template, found=found, query=q)


def _date(name: str, text: str) -> date | None:
    try:
        return date.fromisoformat(text.strip()) if text.strip() else None
    except ValueError:
        raise ValueError(f"{name}: got {text[:40]!r}, wanted a date such as 2026-04-24") from None


def _choice(name: str, text: str, choices: tuple[str, ...]) -> str | None:
    if text and text not in choices:
        raise ValueError(f"{name}: got {text[:40]!r}, wanted one of {', '.join(choices)}")
    return text or None


@router.get("/paper/{id:path}")
def paper(request: Request, id: str, voted: Literal["", "now", "before"] = "") -> Response:
    """A paper: facts, claims, numbers, figures, what is like it."""
    site = site_of(request)
    found = views.paper(site, id, owner=security.is_owner(request))
    if id != found.entry.id and not voted:
        return RedirectResponse(f"/paper/{found.entry.id}", 301)
    return page(request, "paper_of_site.html.j2", found=found, figures=_figures(site, found), voted=voted)


def _figures(site: Site, found: PaperPage) -> list[dict[str, Any]]:
    """The figures as the report's macro wants them, fit for the policy of these pages."""
    if found.report is None:
        return []
    drawn = site.verdicts.figures(found.report["id"])
    return [
        {"caption": one.caption, "missing": one.missing, "svg": Markup(without_style(one.svg)) if one.svg else ""}
        for one in drawn
    ]


@router.get("/areas")
def areas(request: Request) -> Response:
    """The areas."""
    return page(request, "areas.html.j2", found=views.areas(site_of(request)))


@router.get("/area/{name}")
def area(request: Request, name: str) -> Response:
    """An area: its papers and its arena."""
    return page(request, "area.html.j2", found=views.area(site_of(request), name))


@router.get("/how")
def how(request: Request) -> Response:
    """How verdicts are made."""
    return page(request, "how.html.j2", found=views.how(site_of(request)))


@router.get("/feeds")
def feeds(request: Request) -> Response:
    """The feeds."""
    return page(request, "feeds.html.j2", found=views.feeds(site_of(request)))


@router.get("/feeds/{file}")
def feed(
    request: Request,
    file: str,
    query: Annotated[str | None, Query(max_length=300)] = None,
    day: Annotated[str, Query(max_length=10)] = "",
    area: Annotated[str | None, Query(max_length=100)] = None,
    author: Annotated[str | None, Query(max_length=100)] = None,
    min_score: float | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 20,
) -> Response:
    """A feed as Atom, RSS or JSON Feed."""
    site = site_of(request)
    given: dict[str, Any] = {
        "query": query,
        "day": _date("day", day),
        "area": area,
        "author": author,
        "min_score": min_score,
        "limit": limit,
    }
    given |= {
        "base_url": site.settings.base_url,
        "now": site.now(),
        "search": site.search,
        "verdicts": site.verdicts,
    }
    if file == "atom.xml":
        return Response(atom(site.store, **given), media_type="application/atom+xml")
    if file == "rss.xml":
        return Response(rss(site.store, **given), media_type="application/rss+xml")
    if file == "feed.json":
        return JSONResponse(json_feed(site.store, **given), media_type="application/feed+json")
    raise HTTPException(404, "The feeds are atom.xml, rss.xml and feed.json.")


@router.get("/robots.txt")
def robots() -> Response:
    """What crawlers should leave alone."""
    return PlainTextResponse(ROBOTS)


@router.get("/healthz")
def health(request: Request) -> Response:
    """Whether the store answers."""
    papers = len(site_of(request).store)
    return JSONResponse({"status": "ok", "papers": papers}, headers={"cache-control": "no-store"})
