"""Every page as data: plain functions of a site that return the models of `paperworks.web.models`.

The pages are rendered from what these return, and ``/api`` returns it as JSON. A date, week, month or page that cannot
be raises ValueError; a paper or an area that is not there raises LookupError.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Literal, TypeVar, get_args
from urllib.parse import quote

from sqlalchemy import select

from paperworks import __version__
from paperworks.feed.records import PaperRecord, provenance
from paperworks.feed.tables import feed_days, papers
from paperworks.lab.nouns import Paper
from paperworks.lab.records import STATUSES
from paperworks.lab.report.wording import HOW_VERDICTS_ARE_MADE
from paperworks.web import listings
from paperworks.web.arenas import arena_table
from paperworks.web.entries import Site, entries, found, scored, verdict_counts, web_address
from paperworks.web.listings import PER_PAGE, check_page, pages
from paperworks.web.models import (
    AreaPage,
    AreasPage,
    AreaSummary,
    Change,
    FeedLink,
    FeedsPage,
    Filters,
    HowPage,
    Listing,
    PaperPage,
    Provenance,
    SearchPage,
    Status,
    Trending,
)
from paperworks.web.periods import PERIODS, Period, check_date, day_of, month_of, week_of

__all__ = [
    "Site", "area", "areas", "day", "feeds", "how", "latest", "month", "paper", "search", "trending", "week",
]  # fmt: skip

Window = Literal["day", "week", "month"]
Method = Literal["decay", "hn", "hot", "top"]
Format = Literal["atom", "rss", "json"]

RANKED = 500
"""Papers that a ranking goes down to."""
RISING, SIMILAR = 8, 6
MOST = 100
"""Entries on a page of a ranking or a search."""

T = TypeVar("T")


def latest(site: Site, page: int = 1) -> Listing:
    """The newest day of the feed, filled up to a page with the newest papers of the catalogue, and what is rising.

    Where nothing has entered the feed: the papers of the catalogue by their own date, the newest first.
    """
    from paperworks.feed.trends import rising

    now = site.now()
    today = now.astimezone(UTC).date()
    entered = listings.newest_day(site.store, today)
    newest = day_of(entered or listings.newest_published(site.store, today) or today)
    made = _listing(site, listings.filled(site.store, entered, today, page), newest, page)
    heading = newest.heading if entered is not None else "The newest papers"
    update = {"kind": "latest", "name": "latest", "heading": heading}
    return made.model_copy(update={**update, "rising": scored(site, rising(site.store, now, limit=RISING))})


def day(site: Site, day: date | str, page: int = 1) -> Listing:
    """The papers of a day (UTC), a date or ``2026-04-24``: those that entered the feed, then those published then."""
    return _period(site, day_of(day), page)


def week(site: Site, week: date | str, page: int = 1) -> Listing:
    """The papers of an ISO week, ``2026-W17`` or the one of a date."""
    return _period(site, week_of(week), page)


def month(site: Site, month: date | str, page: int = 1) -> Listing:
    """The papers of a month, ``2026-04`` or the one of a date."""
    return _period(site, month_of(month), page)


def _period(site: Site, period: Period, page: int) -> Listing:
    return _listing(site, listings.between(site.store, period.since, period.until, page), period, page)


def _listing(site: Site, part: listings.Slice, period: Period, page: int) -> Listing:
    of_kind = PERIODS[period.kind]
    before, after = listings.neighbours(site.store, period.since, period.until)
    made = entries(site, [*part.entered, *part.published])
    around = month_of(period.until)
    return Listing(
        kind=period.kind,
        name=period.name,
        heading=period.heading,
        since=period.since,
        until=period.until,
        entries=made[: len(part.entered)],
        published=made[len(part.entered) :],
        previous=of_kind(before).path if before is not None else None,
        following=of_kind(after).path if after is not None else None,
        calendar=listings.calendar(site.store, around.since, around.until),
        total=part.total,
        page=page,
        pages=pages(part.total, PER_PAGE),
        limit=PER_PAGE,
    )


def trending(
    site: Site, window: Window = "day", method: Method = "decay", page: int = 1, limit: int = PER_PAGE
) -> Trending:
    """The papers by what readers do now, the best first, down to the five hundredth.

    Raises ValueError for an unknown window or method, a limit that is not from 1 to 100, or a page that is not there.
    """
    from paperworks.feed.trends import trending as ranking

    _check_choice("window", window, get_args(Window))
    _check_choice("method", method, get_args(Method))
    _check_limit(limit)
    ranked = ranking(site.store, site.now(), window=window, method=method, limit=RANKED)
    return Trending(
        window=window,
        method=method,
        entries=scored(site, _page(ranked, page, limit)),
        total=len(ranked),
        page=page,
        pages=pages(len(ranked), limit),
        limit=limit,
    )


def search(site: Site, query: str, filters: Filters | None = None, page: int = 1, limit: int = 20) -> SearchPage:
    """The papers that a query finds, the best first; a blank one finds none.

    Raises ValueError for a query that is too long, dates that cannot be, a limit that is not from 1 to 100, or a page
    that is not there.
    """
    filters = filters or Filters()
    for name, when in (("since", filters.since), ("until", filters.until)):
        if when is not None:
            check_date(name, when)
    if filters.since and filters.until and filters.since > filters.until:
        raise ValueError(f"since: got {filters.since}, wanted no day after until, {filters.until}")
    _check_limit(limit)
    if page < 1:
        check_page(page, 0, limit)
    wanted = filters.model_dump(exclude_none=True)
    results = site.search.query(query, wanted, limit=limit, offset=(page - 1) * limit)
    check_page(page, results.total, limit)
    return SearchPage(
        query=query,
        filters=filters,
        took_ms=results.took_ms,
        entries=found(site, results.items),
        areas=_areas(site),
        total=results.total,
        page=page,
        pages=pages(results.total, limit),
        limit=limit,
    )


def paper(site: Site, id: str, owner: bool = False) -> PaperPage:
    """All that is known of a paper, by its arXiv id, its card's id, or the id made from its title.

    Args:
        site: where it is.
        id: of the paper.
        owner: whether the owner asks, who may run the claims of a carried paper.
    """
    record = _known(site, id)
    entry = entries(site, [record])[0]
    card = site.verdicts.cards.get(record.card) if record.card else None
    return PaperPage(
        entry=entry,
        version=record.version,
        categories=record.categories,
        keywords=record.keywords,
        venue=card.venue if card is not None else "",
        project_page=web_address(record.project_page),
        feed_days=_feed_days(site, record.key),
        provenance=[Provenance(field=name, source=source) for name, source in sorted(provenance(record).items())],
        report=site.verdicts.paper(card.id) if card is not None else None,
        changes=_changes(site, card) if card is not None else [],
        similar=found(site, site.search.similar(record.key, limit=SIMILAR)),
        can_run=owner and card is not None and site.settings.runs_allowed,
    )


def _known(site: Site, id: str) -> PaperRecord:
    record = site.store.get(id)
    if record is None:
        raise LookupError(f"paper: there is none with the id {id[:100]!r}")
    return record


def _feed_days(site: Site, key: str) -> list[date]:
    query = select(feed_days.c.day).join(papers, papers.c.number == feed_days.c.paper).where(papers.c.key == key)
    with site.store.database.read() as connection:
        return list(connection.scalars(query.order_by(feed_days.c.day.desc())))


def _changes(site: Site, card: Paper) -> list[Change]:
    flips = site.verdicts.flips(datetime.min.replace(tzinfo=UTC), site.now())
    names = ("card", "claim", "sentence", "before", "after", "tier", "at")
    return [Change(**{name: getattr(flip, name) for name in names}) for flip in flips if flip.card == card.id]


def area(site: Site, area: str) -> AreaPage:
    """The papers of an area, those carried first, then the newest, and its arena where it has one."""
    query = select(papers.c.data).where(papers.c.area == area).order_by(papers.c.published.desc(), papers.c.key)
    listed = entries(site, site.store.records(query))
    if not listed:
        raise LookupError(f"area: got {area[:100]!r}, wanted one of {', '.join(_areas(site))}")
    listed.sort(key=lambda entry: entry.state != "carried")
    return AreaPage(
        area=area,
        entries=listed,
        verdicts=_total([entry.verdicts for entry in listed if entry.verdicts]),
        arena=arena_table(site, area),
    )


def areas(site: Site) -> AreasPage:
    """The areas by name, with their papers and verdicts, and the sums over all."""
    counts = verdict_counts(site)
    query = select(papers.c.area, papers.c.card).where(papers.c.area.is_not(None)).order_by(papers.c.area)
    cards: dict[str, list[str | None]] = {}
    with site.store.database.read() as connection:
        for name, card in connection.execute(query):
            cards.setdefault(name, []).append(card)
    made = [
        AreaSummary(
            area=name,
            papers=len(members),
            carried=sum(card in counts for card in members),
            verdicts=_total([counts[card] for card in members if card in counts]),
        )
        for name, members in cards.items()
    ]
    return AreasPage(
        areas=made,
        verdicts=_total([one.verdicts for one in made]),
        papers=sum(one.papers for one in made),
        carried=sum(one.carried for one in made),
    )


def _areas(site: Site) -> list[str]:
    query = select(papers.c.area).where(papers.c.area.is_not(None)).distinct().order_by(papers.c.area)
    with site.store.database.read() as connection:
        return list(connection.scalars(query))


def _total(several: Iterable[Mapping[Status, int]]) -> dict[Status, int]:
    summed = dict.fromkeys(STATUSES, 0)
    for one in several:
        for status, number in one.items():
            summed[status] += number
    return summed


def _page(ranked: Sequence[T], page: int, limit: int) -> Sequence[T]:
    start = (check_page(page, len(ranked), limit) - 1) * limit
    return ranked[start : start + limit]


def _check_limit(limit: int) -> None:
    if not 1 <= limit <= MOST:
        raise ValueError(f"limit: got {limit}, wanted one from 1 to {MOST}")


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: got {value[:40]!r}, wanted one of {', '.join(choices)}")


def how(site: Site) -> HowPage:
    """How verdicts are made."""
    return HowPage(sentences=list(HOW_VERDICTS_ARE_MADE), statuses=list(STATUSES), version=__version__)


def feeds(site: Site) -> FeedsPage:
    """The feeds of all papers and of each area, in three formats."""
    base = site.settings.base_url.rstrip("/")
    formats: tuple[tuple[str, Format, str], ...] = (
        ("Atom", "atom", "atom.xml"),
        ("RSS", "rss", "rss.xml"),
        ("JSON Feed", "json", "feed.json"),
    )
    topics = [("All papers", ""), *((f"Area {name}", f"?area={quote(name, safe='')}") for name in _areas(site))]
    return FeedsPage(
        feeds=[
            FeedLink(title=f"{topic}, {said}", format=format, url=f"{base}/feeds/{file}{query}")
            for topic, query in topics
            for said, format, file in formats
        ],
        parameters={
            "query": "only what a search finds",
            "day": "only what entered the feed on this day, as 2026-04-24",
            "area": "only of this area",
            "author": "only with this author",
            "min_score": "only with at least so many votes",
            "limit": "at most so many entries, from 1 to 200",
        },
    )
