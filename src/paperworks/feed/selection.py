"""Which papers a feed has: the newest, those of a day, or what a search finds, of an area or an author."""

from __future__ import annotations

import heapq
import re
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

from sqlalchemy import Select, func, select

from paperworks.feed.ranking import check_aware
from paperworks.feed.records import PaperRecord
from paperworks.feed.store import Store
from paperworks.feed.tables import papers, votes

if TYPE_CHECKING:
    from paperworks.feed.search import Search

__all__ = ["LARGEST", "Selected", "Selection"]

LARGEST = 200
"""Entries of one feed at most."""

USUAL = 20
_PAGE = 200
_DEEPEST = 2000
"""Search results that are looked at for those that are wanted."""


@dataclass(frozen=True)
class Selected:
    """A paper of a feed, when the store last learnt something of it, and its votes here and at the source."""

    record: PaperRecord
    changed: datetime
    votes: int


@dataclass(frozen=True)
class Selection:
    """What a feed is restricted to; the fields are the arguments of `paperworks.feed.atom`.

    Raises ValueError for a limit outside 1..200, a threshold that is no number or a naive `now`, TypeError for a day
    that is no date.
    """

    query: str | None = None
    day: date | None = None
    area: str | None = None
    author: str | None = None
    min_score: float | None = None
    limit: int = USUAL
    now: datetime | None = None

    def __post_init__(self) -> None:
        if self.now is not None:
            check_aware("now", self.now)
        if self.day is not None and (isinstance(self.day, datetime) or not isinstance(self.day, date)):
            raise TypeError(f"day: got {type(self.day).__name__}, wanted a date")
        if isinstance(self.limit, bool) or not isinstance(self.limit, int) or not 1 <= self.limit <= LARGEST:
            raise ValueError(f"limit: got {self.limit!r}, wanted a whole number from 1 to {LARGEST}")
        if self.min_score is not None and self.min_score != self.min_score:
            raise ValueError(f"min_score: got {self.min_score!r}, wanted a number")

    def parameters(self) -> dict[str, str]:
        """As they stand behind the address of a feed; what is as usual is left out."""
        given = {
            "query": self.query,
            "day": self.day,
            "area": self.area,
            "author": self.author,
            "min_score": None if self.min_score is None else f"{self.min_score:g}",
            "limit": None if self.limit == USUAL else self.limit,
        }
        return {name: str(value) for name, value in given.items() if value is not None}

    def words(self) -> Iterator[str]:
        """What a feed is restricted to, for its title."""
        if self.query is not None:
            yield f"on “{self.query}”"
        if self.area is not None:
            yield f"in {self.area}"
        if self.author is not None:
            yield f"by {self.author}"
        if self.day is not None:
            yield f"of {self.day.isoformat()}"
        if self.min_score is not None:
            yield f"with at least {self.min_score:g} votes"

    def papers(self, store: Store, search: Search | None = None) -> list[Selected]:
        """At most `limit` papers: a search's best first, a day's in the order of its list, else the newest first.

        The newest are those with the latest day of entry, or where there is none with the latest date of their own.
        """
        with ExitStack() as queries:
            if self.query is not None:
                candidates = self._found(store, search)
            elif self.day is not None:
                candidates = iter(store.day(self.day))
            else:
                candidates = self._newest(store, queries)
            wanted = (record for record in candidates if self._wants(record))
            return list(islice(self._voted(store, wanted), self.limit))

    def _found(self, store: Store, search: Search | None) -> Iterator[PaperRecord]:
        assert self.query is not None
        if search is None:
            from paperworks.feed.search import Search

            search = Search(store)
        filters = {name: value for name in ("area", "author") if (value := getattr(self, name)) is not None}
        stood = None if self.day is None else {record.key for record in store.day(self.day)}
        page = self.limit if stood is None and self.min_score is None else _PAGE
        for offset in range(0, _DEEPEST, page):
            items = search.query(self.query, filters, limit=page, offset=offset).items
            yield from (item.paper for item in items if stood is None or item.paper.key in stood)
            if len(items) < page:
                return

    def _newest(self, store: Store, queries: ExitStack) -> Iterator[PaperRecord]:
        query = select(papers.c.data)
        if self.area is not None:
            query = query.where(papers.c.area == self.area)
        if self.author is not None:  # of other letters the databases fold case in ways of their own
            plain = max(re.findall("[\x20-\x7e]+", self.author), key=len, default="")
            query = query.where(papers.c.keywords.icontains(plain, autoescape=True))
        if self.min_score is not None:
            here = select(func.count()).where(votes.c.paper == papers.c.number).scalar_subquery()
            query = query.where(func.coalesce(papers.c.upvotes, 0) + here >= self.min_score)
        entered = query.where(papers.c.first_seen.is_not(None)).order_by(papers.c.first_seen.desc(), papers.c.key)
        others = query.where(papers.c.first_seen.is_(None))
        others = others.order_by(papers.c.published.desc().nulls_last(), papers.c.key)
        both = [queries.enter_context(closing(_stream(store, one))) for one in (entered, others)]
        return heapq.merge(*both, key=lambda record: (-_day(record).toordinal(), record.key))

    def _wants(self, record: PaperRecord) -> bool:
        if self.area is not None and record.area != self.area:
            return False
        if self.now is not None and _day(record) > self.now.astimezone(UTC).date():
            return False
        author = self.author
        return author is None or any(author.casefold() in name.casefold() for name in record.authors or ())

    def _voted(self, store: Store, records: Iterator[PaperRecord]) -> Iterator[Selected]:
        """The papers with enough votes, with what the store knows beside the record."""
        while chunk := list(islice(records, self.limit if self.min_score is None else _PAGE)):
            query = select(papers.c.key, papers.c.changed, func.count(votes.c.person)).group_by(papers.c.number)
            query = query.outerjoin(votes, votes.c.paper == papers.c.number)
            with store.database.read() as connection:
                rows = connection.execute(query.where(papers.c.key.in_([record.key for record in chunk])))
                known = {key: (changed, int(count)) for key, changed, count in rows}
            for record in chunk:
                if record.key in known:
                    changed, here = known[record.key]
                    number = (record.upvotes or 0) + here
                    if self.min_score is None or number >= self.min_score:
                        yield Selected(record, changed, number)


def _stream(store: Store, query: Select[Any]) -> Generator[PaperRecord]:
    yield from store.records(query)


def _day(record: PaperRecord) -> date:
    return record.first_seen or record.published or date.min
