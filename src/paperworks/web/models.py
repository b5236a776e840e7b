"""What every page shows, as data: the templates are filled from these models and the JSON under ``/api`` is them.

A page and its JSON twin can so not say different things; the OpenAPI description comes from here as well.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Status = Literal["holds", "inconclusive", "fails", "not run", "error"]


class Model(BaseModel):
    """Base of the models: unknown fields are an error."""

    model_config = ConfigDict(extra="forbid")


class Span(Model):
    """A piece of a snippet, and whether the query matched it."""

    text: str
    match: bool = False


class Entry(Model):
    """A paper in a listing."""

    id: str = Field(description="arXiv id without version, or an id made from the title")
    title: str
    state: Literal["carried", "announced", "listed"] = Field(
        description="carried: its method and claims are here; announced: it has a card, not carried yet; listed: known "
        "from the feed alone"
    )
    card: str | None = Field(None, description="id of the card")
    area: str | None = None
    published: date | None = Field(None, description="day of the paper's first version (UTC)")
    first_seen: date | None = Field(None, description="day it entered the feed (UTC)")
    authors: list[str] = []
    n_authors: int | None = None
    upvotes: int | None = Field(None, description="votes at the source")
    votes: int = Field(0, description="votes given here")
    comments: int | None = None
    code: str | None = None
    arxiv_url: str | None = None
    summary: str = Field("", description="in our own words, of papers that have a card")
    abstract: str = Field("", description="of the source, where one was ingested")
    verdicts: dict[Status, int] | None = Field(None, description="claims by verdict; null unless carried")
    score: float | None = Field(None, description="of the search or of trending")
    snippet: list[Span] = []
    why: str = Field("", description="why a search found it")


class Page(Model):
    """Fields of every listing that has pages."""

    total: int = 0
    page: int = 1
    pages: int = 1
    limit: int = 50


class Listing(Page):
    """The papers of a day, a week or a month, or the latest."""

    kind: Literal["latest", "day", "week", "month"]
    name: str = Field(description="2026-04-24, 2026-W17, 2026-04 or latest")
    heading: str = Field(description="as people say it: Friday, 24 April 2026")
    since: date
    until: date
    entries: list[Entry] = Field(description="papers that entered the feed then, the newest day first, then by rank")
    published: list[Entry] = Field(description="papers of the catalogue whose own date is then, not among `entries`")
    previous: str | None = Field(None, description="path of the listing before this one that has papers")
    following: str | None = None
    rising: list[Entry] = Field([], description="trending now; on the latest listing only")


class Trending(Page):
    """What is rising."""

    window: Literal["day", "week", "month"]
    method: Literal["decay", "hn", "hot", "top"]
    entries: list[Entry]


class Filters(Model):
    """What a search is restricted to."""

    since: date | None = None
    until: date | None = None
    area: str | None = None
    author: str | None = None
    code: bool | None = None
    verdict: Status | Literal["any"] | None = None


class SearchPage(Page):
    """The answer to a query."""

    query: str
    filters: Filters
    took_ms: float
    entries: list[Entry]
    areas: list[str] = Field(description="that the filter offers")


class Provenance(Model):
    """Which source a field came from."""

    field: str
    source: str


class Change(Model):
    """A verdict that changed."""

    card: str
    claim: str
    sentence: str
    before: Status
    after: Status
    tier: str
    at: datetime


class PaperPage(Model):
    """All that is known of a paper."""

    entry: Entry
    version: int | None = None
    categories: list[str] = []
    keywords: list[str] = []
    venue: str = ""
    project_page: str | None = None
    feed_days: list[date] = []
    provenance: list[Provenance] = []
    report: dict[str, Any] | None = Field(
        None, description="the card with its claims, verdicts, findings and history, as in docs/report-schema.md"
    )
    changes: list[Change] = Field([], description="verdicts that changed, the newest first")
    similar: list[Entry] = []
    can_run: bool = Field(False, description="whether the page offers to run the claims to the one who asks")


class ArenaRow(Model):
    """One arm of an arena."""

    arm: str
    mean: float
    low: float
    high: float
    difference: float | None = Field(None, description="paired, from the reference arm; null for that arm itself")
    difference_low: float | None = None
    difference_high: float | None = None
    seeds: int
    error: str = ""


class ArenaTable(Model):
    """All arms of an area on one protocol."""

    protocol: str
    metric: str
    meaning: str
    higher_is_better: bool
    reference: str
    tier: str
    command: str
    rows: list[ArenaRow] = Field(description="best first; empty where nothing has been measured with this code")


class AreaPage(Model):
    """An area: its papers, and its arena where it has one."""

    area: str
    entries: list[Entry]
    verdicts: dict[Status, int]
    arena: ArenaTable | None = None


class AreaSummary(Model):
    """An area in the list of areas."""

    area: str
    papers: int
    carried: int
    verdicts: dict[Status, int]


class AreasPage(Model):
    """The areas, and the verdicts over all."""

    areas: list[AreaSummary]
    verdicts: dict[Status, int]
    papers: int
    carried: int


class HowPage(Model):
    """How verdicts are made."""

    sentences: list[str]
    statuses: list[Status]
    version: str


class FeedLink(Model):
    """A feed that can be followed."""

    title: str
    format: Literal["atom", "rss", "json"]
    url: str


class FeedsPage(Model):
    """The feeds, and what may be put behind their addresses."""

    feeds: list[FeedLink]
    parameters: dict[str, str]


class RunRequest(Model):
    """What may be started from the page: a paper's claims at a tier, with the settings that the claims have."""

    paper: str = Field(max_length=64)
    tier: Literal["smoke", "desk", "gpu", "full"] = "smoke"
    claims: list[str] | None = Field(None, max_length=100)


class RunState(Model):
    """A run that was started from the page."""

    id: str
    paper: str
    tier: str
    claims: list[str] | None = None
    state: Literal["waiting", "running", "done", "failed", "stopped"]
    total: int = Field(0, description="trials")
    done: int = Field(0, description="trials that are finished, those the store had included")
    running: list[str] = []
    verdicts: dict[str, Status] = Field({}, description="by claim, as they become known")
    message: str = ""
    started: datetime
    finished: datetime | None = None


class RunsPage(Model):
    """The runs since the server was started, the newest first."""

    runs: list[RunState]


class Problem(Model):
    """Why a request was refused."""

    detail: str
