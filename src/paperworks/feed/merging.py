"""Records into the catalogue: which paper each one tells of, and one transaction that keeps what it adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from paperworks.feed.records import PaperRecord, from_mapping, merge, provenance, title_key, to_mapping
from paperworks.feed.tables import aliases, feed_days, paper_versions, papers


@dataclass(frozen=True)
class AddReport:
    """How many of the given records were new, changed a known paper, joined one by its title, or told nothing new."""

    new: int = 0
    updated: int = 0
    merged: int = 0
    unchanged: int = 0

    def __add__(self, other: AddReport) -> AddReport:
        return AddReport(
            self.new + other.new,
            self.updated + other.updated,
            self.merged + other.merged,
            self.unchanged + other.unchanged,
        )


class Batch:
    """One transaction of `Store.add`: what the database knows of these records, and what it has to know after."""

    def __init__(self, connection: Connection, records: Sequence[PaperRecord], seen: datetime) -> None:
        self.connection, self.given, self.seen = connection, records, seen.astimezone(UTC)
        self.number: dict[str, int] = {}  # by key, aliases included
        self.by_title: dict[str, list[int]] = {}
        self.record: dict[int, PaperRecord] = {}
        self.kept: dict[int, dict[str, Any]] = {}  # as in the database
        self.days: dict[tuple[date, int], int | None] = {}
        self.aliases: dict[str, int] = {}
        if connection.dialect.name == "postgresql":  # numbers are given here, one writer at a time
            connection.exec_driver_sql("LOCK TABLE papers IN SHARE ROW EXCLUSIVE MODE")
        self._read()

    @classmethod
    def merge(cls, connection: Connection, records: Sequence[PaperRecord], seen: datetime) -> AddReport:
        """Merge records into the catalogue in the transaction that `connection` is in."""
        return cls(connection, records, seen).add()

    def _read(self) -> None:
        keys = {record.key for record in self.given}
        titles = {title_key(record.title) for record in self.given}
        known = select(aliases.c.key, aliases.c.paper).where(aliases.c.key.in_(keys))
        self.number = {row.key: row.paper for row in self.connection.execute(known)}
        wanted = papers.c.key.in_(keys) | papers.c.title_key.in_(titles) | papers.c.number.in_(self.number.values())
        query = select(papers.c.number, papers.c.key, papers.c.title_key, papers.c.data).where(wanted)
        for number, key, title, data in self.connection.execute(query.order_by(papers.c.number)):
            self.number[key] = number
            self.by_title.setdefault(title, []).append(number)
            self.record[number], self.kept[number] = from_mapping(data), data

    def add(self) -> AddReport:
        """Merge the records, in order, and write what changed."""
        counts = dict.fromkeys(("new", "updated", "merged", "unchanged"), 0)
        following = (self.connection.scalar(select(func.max(papers.c.number))) or 0) + 1
        for record in self.given:
            number, joined = self._find(record)
            if number is None:
                number, following = following, following + 1
                self.record[number], outcome = record, "new"
            else:
                before = self.record[number]
                after = merge(before, record)
                if before.key != after.key:
                    self.aliases[before.key] = number
                if after == replace(before, provenance=provenance(before)):
                    outcome = "unchanged"
                else:
                    self.record[number], outcome = after, "merged" if joined else "updated"
            after = self.record[number]
            self.number[after.key] = self.number[record.key] = number
            same_title = self.by_title.setdefault(title_key(after.title), [])
            if number not in same_title:
                same_title.append(number)
            if record.first_seen is not None:
                self.days[record.first_seen, number] = record.rank
            counts[outcome] += 1
        self._write()
        return AddReport(**counts)

    def _find(self, record: PaperRecord) -> tuple[int | None, bool]:
        """The number of the paper that a record tells of, and whether it was found by title alone."""
        if record.key in self.number:
            return self.number[record.key], False
        same = self.by_title.get(title_key(record.title), [])
        if record.id is not None:  # another arXiv id is another paper, whatever its title
            same = [number for number in same if self.record[number].id is None]
        return (same[0], True) if same else (None, False)

    def _write(self) -> None:
        new: list[dict[str, Any]] = []
        old: list[dict[str, Any]] = []
        for number, record in self.record.items():
            data = to_mapping(record)
            if data != self.kept.get(number):
                (old if number in self.kept else new).append(self._row(number, record, data))
        if new:
            self.connection.execute(insert(papers), new)
        for row in old:
            self.connection.execute(update(papers).where(papers.c.number == row["number"]).values(row))
        if new or old:
            self._keep_versions([*new, *old])
        if self.aliases:
            rows = [{"key": key, "paper": number} for key, number in self.aliases.items()]
            self.connection.execute(insert(aliases), rows)
        self._keep_days()

    def _row(self, number: int, record: PaperRecord, data: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "number": number,
            "key": record.key,
            "title_key": title_key(record.title),
            "card": record.card,
            "area": record.area,
            "published": record.published,
            "first_seen": record.first_seen,
            "upvotes": record.upvotes,
            "title": record.title,
            "keywords": ", ".join(dict.fromkeys([*record.keywords, *record.categories, *(record.authors or [])])),
            "body": "\n".join(filter(None, (record.summary, record.abstract))),
            "data": data,
            "changed": self.seen,
        }

    def _keep_versions(self, rows: Sequence[Mapping[str, Any]]) -> None:
        version = paper_versions.c.version
        numbers = [row["number"] for row in rows]
        query = select(paper_versions.c.paper, func.max(version)).where(paper_versions.c.paper.in_(numbers))
        last = {row[0]: row[1] for row in self.connection.execute(query.group_by(paper_versions.c.paper))}
        self.connection.execute(
            insert(paper_versions),
            [
                {
                    "paper": row["number"],
                    "version": last.get(row["number"], 0) + 1,
                    "source": self.record[row["number"]].source,
                    "data": row["data"],
                    "seen": self.seen,
                }
                for row in rows
            ],
        )

    def _keep_days(self) -> None:
        if not self.days:
            return
        query = select(feed_days.c.day, feed_days.c.paper, feed_days.c.rank).where(
            feed_days.c.paper.in_({number for _, number in self.days})
        )
        known = {(day, number): rank for day, number, rank in self.connection.execute(query)}
        for (day, number), rank in self.days.items():
            values = {"day": day, "paper": number, "rank": rank}
            if (day, number) not in known:
                self.connection.execute(insert(feed_days).values(values))
            elif rank is not None and rank != known[day, number]:
                this = (feed_days.c.day == day) & (feed_days.c.paper == number)
                self.connection.execute(update(feed_days).where(this).values(rank=rank))
