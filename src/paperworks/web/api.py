"""A JSON twin of every page, at the page's path under ``/api``; subscribing; and the owner's runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import date
from typing import Annotated, Any, Literal

from fastapi import APIRouter, BackgroundTasks, Depends, Header, HTTPException, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from paperworks.web import views
from paperworks.web.forms import ask_to_confirm
from paperworks.web.listings import PER_PAGE
from paperworks.web.models import (
    AreaPage,
    AreasPage,
    FeedsPage,
    Filters,
    HowPage,
    Listing,
    PaperPage,
    Problem,
    RunRequest,
    RunsPage,
    RunState,
    SearchPage,
    Status,
    Subscribed,
    SubscribeRequest,
    Trending,
)
from paperworks.web.pages import site_of
from paperworks.web.runs import FINAL
from paperworks.web.security import check_origin, is_owner
from paperworks.web.state import Site

HEARTBEAT_SECONDS = 15.0
"""Of silence, after which a stream of events says that it is still there."""


def problems(**reasons: str) -> dict[int | str, dict[str, Any]]:
    """What a refusal is documented as: ``_404="no such paper"``."""
    return {int(status[1:]): {"model": Problem, "description": reason} for status, reason in reasons.items()}


BEARER = HTTPBearer(auto_error=False, description="the owner's token; the owner's session on the pages does as well")


def only_owner(request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]) -> None:
    """Lets pass the owner of a site that allows runs; else raises HTTPException, 403 or 401."""
    if not site_of(request).settings.runs_allowed:
        raise HTTPException(403, "Runs cannot be started from this site.")
    if not is_owner(request):
        raise HTTPException(401, "Only the owner of this site may do this.", {"WWW-Authenticate": "Bearer"})
    if request.method != "GET":
        check_origin(request)  # a session's cookie comes with what pages of other ports of this host send


SiteOf = Annotated[Site, Depends(site_of)]
PageNumber = Annotated[int, Query(ge=1, le=100_000, description="page of the listing, from 1")]
Limit = Annotated[int, Query(ge=1, le=views.MOST, description="entries a page")]
Day = Annotated[str, Path(pattern="^[0-9]{4}-[0-9]{2}-[0-9]{2}$", description="a date from 1990 to 2100 (UTC)")]
Week = Annotated[str, Path(pattern="^[0-9]{4}-W[0-9]{2}$", description="an ISO week; 30 December 2024 is in 2025-W01")]
Month = Annotated[str, Path(pattern="^[0-9]{4}-[0-9]{2}$", description="a month")]
PaperId = Annotated[
    str, Path(min_length=1, max_length=200, description="arXiv id, with or without version, or id of the card")
]
AreaName = Annotated[str, Path(min_length=1, max_length=64, description="name of an area")]
RunId = Annotated[str, Path(min_length=1, max_length=40, description="id of a run")]
WRONG = problems(_422="a parameter cannot be understood, or there is no such page")
GONE = problems(_404="there is no such one", _422="a parameter cannot be understood")

OWNERS = problems(_401="not the owner", _403="runs cannot be started from this site, or not from that page")

EVERYWHERE = problems(_400="the request is malformed", _414="the address is too long")
BODY = problems(_413="the body is too large", _422="the body cannot be understood")

router = APIRouter(prefix="/api", responses=EVERYWHERE, generate_unique_id_function=lambda route: route.name)


@router.get("/latest", responses=WRONG, tags=["papers"])
def latest(site: SiteOf, page: PageNumber = 1) -> Listing:
    """The newest day of the feed, filled up with the newest papers of the catalogue, and what is rising."""
    return views.latest(site, page)


@router.get("/papers/{day}", responses=WRONG, tags=["papers"])
def day(site: SiteOf, day: Day, page: PageNumber = 1) -> Listing:
    """The papers of a day: those that entered the feed, then those published on it."""
    return views.day(site, day, page)


@router.get("/week/{week}", responses=WRONG, tags=["papers"])
def week(site: SiteOf, week: Week, page: PageNumber = 1) -> Listing:
    """The papers of an ISO week."""
    return views.week(site, week, page)


@router.get("/month/{month}", responses=WRONG, tags=["papers"])
def month(site: SiteOf, month: Month, page: PageNumber = 1) -> Listing:
    """The papers of a month."""
    return views.month(site, month, page)


@router.get("/trending", responses=WRONG, tags=["papers"])
def trending(
    site: SiteOf,
    window: views.Window = "day",
    method: views.Method = "decay",
    page: PageNumber = 1,
    limit: Limit = PER_PAGE,
) -> Trending:
    """The papers by what readers do now, the best first."""
    return views.trending(site, window, method, page, limit)


@router.get(
    "/search",
    responses=WRONG | problems(_429="too many searches; Retry-After says when to ask again"),
    tags=["papers"],
)
def search(
    site: SiteOf,
    q: Annotated[str, Query(max_length=300, description="words, or a sentence; a blank query finds nothing")] = "",
    since: Annotated[date | None, Query(description="of this day or later, a date from 1990 to 2100")] = None,
    until: Annotated[date | None, Query(description="of this day or earlier")] = None,
    area: Annotated[str | None, Query(max_length=64, description="of this area")] = None,
    author: Annotated[str | None, Query(max_length=200, description="with an author of this name")] = None,
    code: Annotated[bool | None, Query(description="with published code, or without")] = None,
    verdict: Annotated[Status | Literal["any"] | None, Query(description="with a claim of this verdict")] = None,
    page: PageNumber = 1,
    limit: Limit = 20,
) -> SearchPage:
    """The papers that a query finds by words, in spite of typos, and by meaning, the best first."""
    filters = Filters(since=since, until=until, area=area, author=author, code=code, verdict=verdict)
    return views.search(site, q, filters, page, limit)


@router.get("/paper/{id:path}", responses=GONE, tags=["papers"])
def paper(request: Request, site: SiteOf, id: PaperId) -> PaperPage:
    """All that is known of a paper: facts, claims with verdicts and numbers, findings, history, similar papers."""
    return views.paper(site, id, owner=is_owner(request))


@router.get("/areas", tags=["areas"])
def areas(site: SiteOf) -> AreasPage:
    """The areas with their papers and verdicts."""
    return views.areas(site)


@router.get("/area/{area}", responses=GONE, tags=["areas"])
def area(site: SiteOf, area: AreaName) -> AreaPage:
    """The papers of an area, and its arena: all its methods on one task."""
    return views.area(site, area)


@router.get("/how", tags=["about"])
def how(site: SiteOf) -> HowPage:
    """How verdicts are made."""
    return views.how(site)


@router.get("/feeds", tags=["about"])
def feeds(site: SiteOf) -> FeedsPage:
    """The feeds that can be followed."""
    return views.feeds(site)


@router.post(
    "/subscribe",
    status_code=202,
    responses=BODY
    | problems(_422="no such address can be", _429="too many requests; Retry-After says when to ask again"),
    tags=["subscription"],
)
def subscribe(site: SiteOf, body: SubscribeRequest, later: BackgroundTasks) -> Subscribed:
    """Ask for the digest. The answer is the same for an address that is subscribed and for one that is not."""
    ask_to_confirm(site, body.email, later)
    return Subscribed()


runs = APIRouter(prefix="/runs", tags=["runs"], dependencies=[Depends(only_owner)], responses=OWNERS)


@runs.get("")
def all_runs(site: SiteOf) -> RunsPage:
    """The runs since the server was started, the newest first."""
    return RunsPage(runs=site.runs.all())


@runs.post(
    "",
    status_code=202,
    responses=BODY
    | problems(
        _409="the tier wants a device that is not here, or too many runs wait",
        _422="no such paper is carried, or it has no such claim",
    ),
)
def start_run(site: SiteOf, body: RunRequest, response: Response) -> RunState:
    """Measure claims of a carried paper at a tier. One run is carried out at a time; others wait."""
    started = site.runs.start(body)
    response.headers["Location"] = f"/api/runs/{started.id}"
    return started


@runs.get("/{id}", responses=GONE)
def one_run(site: SiteOf, id: RunId) -> RunState:
    """A run as it is now."""
    return site.runs.get(id)


@runs.delete("/{id}", responses=GONE)
def stop_run(site: SiteOf, id: RunId) -> RunState:
    """End a run; the trials that it finished are kept."""
    return site.runs.stop(id)


@runs.get(
    "/{id}/events",
    response_class=Response,
    responses=GONE
    | {
        200: {
            "description": "the run's state as JSON, at once and at each change, up to the final one",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        204: {"description": "the final state was received already"},
    },
)
async def run_events(
    site: SiteOf, id: RunId, last_event_id: Annotated[str | None, Header(max_length=40)] = None
) -> Response:
    """Watch a run. Each event is a whole state, so that a reader who missed some has missed nothing."""
    if site.runs.get(id).state in FINAL and last_event_id in FINAL:
        return Response(status_code=204)  # a browser connects again after the end, unless it is told this
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_stream(site, id), headers=headers, media_type="text/event-stream")


async def _stream(site: Site, id: str) -> AsyncIterator[str]:
    async with aclosing(site.runs.events(id, HEARTBEAT_SECONDS)) as states:
        async for state in states:
            if state is None:
                yield ": nothing new\n\n"
            else:
                yield f"id: {state.state}\ndata: {state.model_dump_json()}\n\n"


router.include_router(runs)
