"""The papers of a stretch of days: those that entered the feed in it, then those whose own date it is, by page."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any

from sqlalchemy import Column, ColumnElement, Select, Subquery, func, select, union

from paperworks.feed.records import PaperRecord
from paperworks.feed.store import Store
from paperworks.feed.tables import feed_days, papers
from paperworks.web.models import DayCount
from paperworks.web.periods import FIRST, LAST

PER_PAGE = 50
"""Entries on a page of a listing."""


@dataclass(frozen=True)
class Slice:
    """One page of a listing: of the feed, then of the catalogue, and how many there are on all pages."""

    entered: list[PaperRecord]
    published: list[PaperRecord]
    total: int


def pages(total: int, limit: int) -> int:
    """The number of pages, at least one."""
    return max(1, -(-total // limit))


def check_page(page: int, total: int, limit: int) -> int:
    """`page`, where there is such a one; else ValueError."""
    last = pages(total, limit)
    if not 1 <= page <= last:
        raise ValueError(f"page: got {page}, wanted one from 1 to {last}")
    return page


def between(store: Store, since: date, until: date, page: int, limit: int = PER_PAGE) -> Slice:
    """A page of the papers of the days from `since` to `until`, both included. Raises ValueError for no such page."""
    own = papers.c.published.between(since, until)
    return _slice(store, _entered(since, until), own, page, limit)


def filled(store: Store, day: date | None, today: date, page: int, limit: int = PER_PAGE) -> Slice:
    """A page of the papers of the feed's `day`, filled up to one page with the newest published by `today`.

    Without a day all that were published by `today` are given, the newest first. Raises ValueError for no such page.
    """
    own = papers.c.published <= today
    if day is None:
        return _slice(store, None, own, page, limit)
    found = between(store, day, day, page, limit)
    if found.total >= limit:
        return found
    return _slice(store, _entered(day, day), own, page, limit, most=limit)


def newest_day(store: Store, today: date) -> date | None:
    """The newest day of the feed that has papers, up to `today`."""
    return _newest(store, feed_days.c.day, today)


def newest_published(store: Store, today: date) -> date | None:
    """The newest day, up to `today`, on which a paper was published."""
    return _newest(store, papers.c.published, today)


def _newest(store: Store, column: Column[Any], today: date) -> date | None:
    with store.database.read() as connection:
        newest: date | None = connection.scalar(select(func.max(column)).where(column.between(FIRST, today)))
    return newest


def neighbours(store: Store, since: date, until: date) -> tuple[date | None, date | None]:
    """The nearest day before `since` and the nearest after `until` that has papers and can be listed.

    A source may say of a paper that it is of 1970, or of 2999.
    """
    columns = (feed_days.c.day, papers.c.published)
    with store.database.read() as connection:
        before = [connection.scalar(select(func.max(day)).where(day >= FIRST, day < since)) for day in columns]
        after = [connection.scalar(select(func.min(day)).where(day > until, day <= LAST)) for day in columns]
    return (
        max((day for day in before if day is not None), default=None),
        min((day for day in after if day is not None), default=None),
    )


def calendar(store: Store, since: date, until: date) -> list[DayCount]:
    """The days from `since` to `until` that have papers, in order."""
    days = union(
        select(feed_days.c.day.label("day"), feed_days.c.paper.label("paper")).where(
            feed_days.c.day.between(since, until)
        ),
        select(papers.c.published, papers.c.number).where(papers.c.published.between(since, until)),
    ).subquery()
    query = select(days.c.day, func.count()).group_by(days.c.day).order_by(days.c.day)
    with store.database.read() as connection:
        return [DayCount(day=day, papers=count) for day, count in connection.execute(query)]


def _entered(since: date, until: date) -> Subquery:
    """The papers that stood in the feed then, each at the newest of its days."""
    newest = select(feed_days.c.paper, func.max(feed_days.c.day).label("day"))
    return newest.where(feed_days.c.day.between(since, until)).group_by(feed_days.c.paper).subquery()


def _slice(
    store: Store, entered: Subquery | None, own: ColumnElement[bool], page: int, limit: int, most: int | None = None
) -> Slice:
    first: Select[Any] | None = None
    n_first = 0
    with store.database.read() as connection:
        if entered is not None:
            n_first = int(connection.scalar(select(func.count()).select_from(entered)) or 0)
            first = (
                select(papers.c.data)
                .join(entered, entered.c.paper == papers.c.number)
                .join(feed_days, (feed_days.c.paper == entered.c.paper) & (feed_days.c.day == entered.c.day))
                .order_by(entered.c.day.desc(), feed_days.c.rank.is_(None), feed_days.c.rank, papers.c.key)
            )
            own = own & papers.c.number.not_in(select(entered.c.paper))
        # Where only some are shown, not all are counted: that takes longer the more there are.
        wanted = select(papers.c.number).where(own).limit(most).subquery()
        n_second = int(connection.scalar(select(func.count()).select_from(wanted)) or 0)
    second = select(papers.c.data).where(own).order_by(papers.c.published.desc(), papers.c.key)
    total = n_first + n_second
    if most is not None:
        total = max(n_first, min(total, most))
    start = (check_page(page, total, limit) - 1) * limit
    end = min(start + limit, total)

    def part(query: Select[Any] | None, before: int, count: int) -> list[PaperRecord]:
        low, high = max(start - before, 0), min(end - before, count)
        return [] if query is None or low >= high else list(store.records(query.offset(low).limit(high - low)))

    return Slice(part(first, 0, n_first), part(second, n_first, n_second), total)
