"""The catalogue in the lab's database: papers merged from their sources, the days of the feed, and what readers did."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from datetime import date, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Select, func, insert, select

from paperworks.feed.merging import AddReport, Batch
from paperworks.feed.ranking import HALF_LIVES, WEIGHTS, DecayedScore, check_aware
from paperworks.feed.records import PaperRecord, arxiv_id, from_mapping
from paperworks.feed.tables import aliases, events, feed_days, paper_versions, papers, scores, votes
from paperworks.lab.nouns import Paper
from paperworks.lab.records import now as current_time
from paperworks.lab.store import Store as LabStore
from paperworks.lab.store.database import Database

__all__ = ["AddReport", "Store", "card_record"]

CHUNK = 400
"""Records in one transaction."""


def card_record(card: Paper) -> PaperRecord:
    """What a card says of its paper, as a record of the source ``card``."""
    return PaperRecord(
        card.title,
        id=card.arxiv or None,
        authors=[name.strip() for name in card.authors.split(",")] if card.authors else None,
        n_authors=card.n_authors,
        published=card.date,
        code=card.code or None,
        url=card.url or None,
        keywords=list(card.keywords),
        card=card.id,
        area=card.area,
        summary=" ".join(card.summary.split()),
        source="card",
    )


class Store:
    """Papers, feed days and events, in one database with the lab's trials and verdicts.

    A context manager that closes it. Threads may share a store; every process opens its own.

    Args:
        url: a path, ``sqlite:///path``, ``postgresql://...``, or None for the lab's default.

    Raises:
        ValueError: `url` is not understood.
        StoreError: the database cannot be reached, is no database, or was written by a newer version.
    """

    def __init__(self, url: str | Path | None = None) -> None:
        self.database = Database(url)
        self.lab = LabStore(self.database)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        with self.database.read() as connection:
            return int(connection.scalar(select(func.count()).select_from(papers)) or 0)

    def close(self) -> None:
        """Close the connections; closing twice is no error."""
        self.database.close()

    def migrate(self) -> None:
        """Bring the database to the newest tables. Opening a store has done so; here for one that stays open."""
        self.database.migrate()

    # papers

    def add(self, records: Iterable[PaperRecord], at: datetime | None = None) -> AddReport:
        """Merge records into the catalogue, in order; each batch is one transaction.

        A record belongs to the paper of the same arXiv id; without one, to the paper of the same normalised title. A
        title that gets its arXiv id later stays one paper, and its earlier id still resolves.
        """
        seen = current_time() if at is None else at
        check_aware("at", seen)
        found, rest = AddReport(), iter(records)
        while chunk := list(islice(rest, CHUNK)):
            for record in chunk:
                if not isinstance(record, PaperRecord):
                    raise TypeError(f"records: got {type(record).__name__}, wanted PaperRecord")
            found += self.database.write(partial(Batch.merge, records=chunk, seen=seen))
        return found

    def add_cards(self, cards: Iterable[Paper]) -> AddReport:
        """Merge the facts, keywords and summaries of cards into the catalogue."""
        return self.add(card_record(card) for card in cards)

    def get(self, id: str) -> PaperRecord | None:
        """The paper of an arXiv id (with or without version), of a card's id, or of an id made from a title."""
        number = self.number(id)
        return None if number is None else self.numbered([number])[number]

    def number(self, id: str) -> int | None:
        """The number of the paper that `get` would return."""
        if not isinstance(id, str):
            raise TypeError(f"id: got {type(id).__name__}, wanted a string")
        with contextlib.suppress(ValueError):
            id = arxiv_id(id)[0]
        with self.database.read() as connection:
            for query in (
                select(papers.c.number).where(papers.c.key == id),
                select(aliases.c.paper).where(aliases.c.key == id),
                select(papers.c.number).where(papers.c.card == id).order_by(papers.c.number).limit(1),
            ):
                if (number := connection.scalar(query)) is not None:
                    return int(number)
        return None

    def numbered(self, numbers: Iterable[int]) -> dict[int, PaperRecord]:
        """The papers of these numbers, in the order asked; unknown ones are left out."""
        asked = list(dict.fromkeys(numbers))
        found: dict[int, PaperRecord] = {}
        with self.database.read() as connection:
            for start in range(0, len(asked), CHUNK):
                wanted = papers.c.number.in_(asked[start : start + CHUNK])
                for number, data in connection.execute(select(papers.c.number, papers.c.data).where(wanted)):
                    found[number] = from_mapping(data)
        return {number: found[number] for number in asked if number in found}

    def records(self, query: Select[Any] | None = None) -> Iterator[PaperRecord]:
        """Every paper by number, or those that a ``select(papers.c.data)`` chooses, read in batches."""
        query = select(papers.c.data).order_by(papers.c.number) if query is None else query
        with self.database.read() as connection:
            for (data,) in connection.execution_options(yield_per=1000).execute(query):
                yield from_mapping(data)

    def generation(self) -> str:
        """A text that is another after each change of the papers: for what is computed from all of them."""
        with self.database.read() as connection:
            number, changed = connection.execute(select(func.max(papers.c.number), func.max(papers.c.changed))).one()
        return f"{number or 0}-{'' if changed is None else changed.isoformat()}"

    def versions(self, id: str) -> list[tuple[datetime, PaperRecord]]:
        """What was known of a paper after each change, oldest first, with the time."""
        number = self.number(id)
        query = select(paper_versions.c.seen, paper_versions.c.data).order_by(paper_versions.c.version)
        with self.database.read() as connection:
            rows = connection.execute(query.where(paper_versions.c.paper == number)).all()
        return [(seen, from_mapping(data)) for seen, data in rows]

    # days

    def day(self, day: date) -> list[PaperRecord]:
        """The papers that stood in the feed on a day, in the order of its list."""
        _check_dates(day=day)
        return self.between(day, day)

    def between(self, since: date, until: date) -> list[PaperRecord]:
        """The papers that entered the feed from `since` to `until`, both included: newest day first, then by rank.

        A paper that stood there on several of the days is given once, at the newest.
        """
        _check_dates(since=since, until=until)
        query = (
            select(papers.c.data)
            .join(feed_days, feed_days.c.paper == papers.c.number)
            .where(feed_days.c.day.between(since, until))
            .order_by(feed_days.c.day.desc(), feed_days.c.rank.is_(None), feed_days.c.rank, papers.c.key)
        )
        return list({record.key: record for record in self.records(query)}.values())

    def published(self, since: date, until: date, limit: int | None = None) -> list[PaperRecord]:
        """The papers whose own date lies from `since` to `until`, both included, the newest first."""
        _check_dates(since=since, until=until)
        query = select(papers.c.data).where(papers.c.published.between(since, until))
        return list(self.records(query.order_by(papers.c.published.desc(), papers.c.key).limit(limit)))

    def days(self, since: date | None = None, until: date | None = None) -> list[tuple[date, int]]:
        """The days of the feed that have papers, newest first, with their number."""
        query = select(feed_days.c.day, func.count()).group_by(feed_days.c.day).order_by(feed_days.c.day.desc())
        query = query if since is None else query.where(feed_days.c.day >= since)
        query = query if until is None else query.where(feed_days.c.day <= until)
        with self.database.read() as connection:
            return [(day, int(count)) for day, count in connection.execute(query)]

    # what readers do

    def vote(self, id: str, person: str, at: datetime) -> bool:
        """Count a person's vote for a paper; False where it was counted before. Raises ValueError for no such paper."""
        if not isinstance(person, str) or not person:
            raise ValueError(f"person: got {person!r}, wanted a name")
        return self.event(id, "vote", at, person)

    def event(self, id: str, kind: str, at: datetime, person: str | None = None) -> bool:
        """Keep what a reader did at a time, and bring the paper's scores up to date in constant time.

        Args:
            id: of the paper, as for `get`.
            kind: ``vote``, ``comment``, ``view`` or ``run`` (a verdict was measured).
            at: timezone-aware.
            person: who; wanted for a vote, which counts once a person.

        Returns whether it counted. Raises ValueError for an unknown paper or kind, or a naive time.
        """
        check_aware("at", at)
        if kind not in WEIGHTS:
            raise ValueError(f"kind: got {kind!r}, wanted one of {', '.join(WEIGHTS)}")
        if kind == "vote" and not person:
            raise ValueError("person: got none, wanted one for a vote")
        number = self.number(id)
        if number is None:
            raise ValueError(f"id: got {id!r}, which is not in the catalogue")

        def keep(connection: Connection) -> bool:
            if kind == "vote":
                row = self.database.insert(votes).values(paper=number, person=person, at=at).on_conflict_do_nothing()
                if not connection.execution_options(preserve_rowcount=True).execute(row).rowcount:
                    return False
            connection.execute(insert(events).values(paper=number, kind=kind, person=person, at=at))
            for half_life in HALF_LIVES.values():
                self._count(connection, number, half_life, WEIGHTS[kind], at)
            return True

        return self.database.write(keep)

    def _count(self, connection: Connection, number: int, half_life: int, weight: float, at: datetime) -> None:
        this = (scores.c.paper == number) & (scores.c.half_life == half_life)
        kept = connection.execute(select(scores.c.value, scores.c.at).where(this).with_for_update()).one_or_none()
        score = DecayedScore(half_life)
        if kept is not None:
            score.value, score.time = kept
        score.add(weight, at)
        values = {"value": score.value, "at": score.time}
        row = self.database.insert(scores).values(paper=number, half_life=half_life, **values)
        connection.execute(row.on_conflict_do_update(index_elements=["paper", "half_life"], set_=values))

    def history(self, id: str) -> list[tuple[str, str | None, datetime]]:
        """The events of a paper, ``(kind, person, time)``, in order of time."""
        query = select(events.c.kind, events.c.person, events.c.at).where(events.c.paper == self.number(id))
        with self.database.read() as connection:
            rows = connection.execute(query.order_by(events.c.at, events.c.id)).all()
        return [(kind, person, at) for kind, person, at in rows]


def _check_dates(**given: date) -> None:
    for name, value in given.items():
        if not isinstance(value, date) or isinstance(value, datetime):
            raise TypeError(f"{name}: got {type(value).__name__}, wanted a date")
