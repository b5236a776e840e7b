"""What every page shows, as data: the templates are filled from these models and the JSON under ``/api`` is them.

A page and its JSON twin can so not say different things; the OpenAPI description comes from here as well.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def encodable(value: Any) -> Any:
    """Text with a question mark in place of each lone surrogate, which a source may hold and no response can carry.

    In lists and in the values of mappings too.
    """
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [encodable(one) for one in value]
    return {name: encodable(one) for name, one in value.items()} if isinstance(value, dict) else value


Said = Annotated[str, BeforeValidator(encodable)]
"""Text that comes from a source or from a reader."""

Data = Annotated[dict[str, Any], BeforeValidator(encodable)]
"""JSON data whose texts come from anywhere."""

Status = Literal["holds", "inconclusive", "fails", "not run", "error"]


class Model(BaseModel):
    """Base of the models: unknown fields are an error."""

    model_config = ConfigDict(extra="forbid")


class Span(Model):
    """A piece of a snippet, and whether the query matched it."""

    text: Said
    match: bool = False


class Entry(Model):
    """A paper in a listing."""

    id: str = Field(description="arXiv id without version, or an id made from the title")
    title: Said
    state: Literal["carried", "announced", "listed"] = Field(
        description="carried: its method and claims are here; announced: it has a card, not carried yet; listed: known "
        "from the feed alone"
    )
    card: str | None = Field(default=None, description="id of the card")
    area: str | None = None
    published: date | None = Field(default=None, description="day of the paper's first version (UTC)")
    first_seen: date | None = Field(default=None, description="day it entered the feed (UTC)")
    authors: list[Said] = []
    n_authors: int | None = None
    upvotes: int | None = Field(default=None, description="votes at the source")
    votes: int = Field(default=0, description="votes given here")
    comments: int | None = None
    code: Said | None = None
    arxiv_url: str | None = None
    summary: Said = Field(default="", description="in our own words, of papers that have a card")
    abstract: Said = Field(default="", description="of the source, where one was ingested")
    verdicts: dict[Status, int] | None = Field(default=None, description="claims by verdict; null unless carried")
    score: float | None = Field(default=None, description="of the search or of trending")
    snippet: list[Span] = []
    why: Said = Field(default="", description="why a search found it")


class Page(Model):
    """Fields of every listing that has pages."""

    total: int = 0
    page: int = 1
    pages: int = 1
    limit: int = 50


class DayCount(Model):
    """A day that has papers."""

    day: date
    papers: int = Field(description="that entered the feed on that day, or whose own date it is")


class Listing(Page):
    """The papers of a day, a week or a month, or the latest."""

    kind: Literal["latest", "day", "week", "month"]
    name: str = Field(description="2026-04-24, 2026-W17, 2026-04 or latest")
    heading: str = Field(description="as people say it: Friday, 24 April 2026")
    since: date
    until: date
    entries: list[Entry] = Field(description="papers that entered the feed then, the newest day first, then by rank")
    published: list[Entry] = Field(description="papers of the catalogue whose own date is then, not among `entries`")
    previous: str | None = Field(default=None, description="path of the listing before this one that has papers")
    following: str | None = None
    rising: list[Entry] = Field(default=[], description="trending now; on the latest listing only")
    calendar: list[DayCount] = Field(
        default=[], description="the days with papers of the month in which the listing ends"
    )


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

    query: Said
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
    categories: list[Said] = []
    keywords: list[Said] = []
    venue: str = ""
    project_page: Said | None = None
    feed_days: list[date] = []
    provenance: list[Provenance] = []
    report: Data | None = Field(
        default=None,
        description="the card with its claims, verdicts, findings and history, as in docs/report-schema.md",
    )
    changes: list[Change] = Field(default=[], description="verdicts that changed, the newest first")
    similar: list[Entry] = []
    can_run: bool = Field(default=False, description="whether the page offers to run the claims to the one who asks")


class ArenaRow(Model):
    """One arm of an arena."""

    arm: str
    mean: float | None = Field(description="over the seeds; null for an arm whose trials ended in an error")
    low: float | None
    high: float | None
    difference: float | None = Field(
        default=None, description="paired, from the reference arm; null for that arm itself"
    )
    difference_low: float | None = None
    difference_high: float | None = None
    seeds: int
    error: str = Field(default="", description="what the first trial that ended in an error said")


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


class SubscribeRequest(Model):
    """Who asks for the digest."""

    email: str = Field(min_length=3, max_length=254)


class Subscribed(Model):
    """The answer to everyone who asks for the digest."""

    detail: str = "A mail with a link to confirm has been sent, unless the address is subscribed already."


State = Literal["waiting", "running", "done", "failed", "stopped"]
Tier = Literal["smoke", "desk", "gpu", "full"]


class RunRequest(Model):
    """What may be started from the page: a paper's claims at a tier, with the settings that the claims have."""

    paper: str = Field(min_length=1, max_length=64, description="id of the card of a carried paper")
    tier: Tier = "smoke"
    claims: list[Annotated[str, Field(max_length=100)]] | None = Field(
        default=None, min_length=1, max_length=100, description="ids of the claims to measure; null for all"
    )


class RunState(Model):
    """A run that was started from the page."""

    id: str
    paper: str
    tier: str
    claims: list[str] | None = None
    state: State
    total: int = Field(default=0, description="trials")
    done: int = Field(default=0, description="trials that are finished, those the store had included")
    running: list[str] = Field(default=[], description="the trials that run now, with their progress")
    verdicts: dict[str, Status] = Field(default={}, description="by claim, as they become known")
    message: str = Field(default="", description="why it failed, or what was kept when it was stopped")
    started: datetime = Field(description="when it was asked for; once it runs, when it began")
    finished: datetime | None = None


class RunsPage(Model):
    """The runs since the server was started, the newest first."""

    runs: list[RunState]


class Problem(Model):
    """Why a request was refused."""

    detail: str
