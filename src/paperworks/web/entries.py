"""Papers as the pages list them: facts, verdict counts and votes beside each other, read once for a whole listing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import func, select

from paperworks.feed.records import PaperRecord
from paperworks.feed.store import CHUNK, Store
from paperworks.feed.tables import papers, votes
from paperworks.feed.verdicts import Verdicts
from paperworks.lab.report.html import is_web_address
from paperworks.web.models import Entry, Span, Status

if TYPE_CHECKING:
    from paperworks.feed.search import Item, Search


class Allowed(Protocol):
    """The settings that the views read."""

    @property
    def base_url(self) -> str:
        """Address under which the site is reached, without a slash at the end."""

    @property
    def runs_allowed(self) -> bool:
        """Whether the owner may start runs from the page."""


class Site(Protocol):
    """What the views want of a site."""

    @property
    def settings(self) -> Allowed:
        """What the site was made with."""

    @property
    def store(self) -> Store:
        """The catalogue."""

    @property
    def search(self) -> Search:
        """The search over it."""

    @property
    def verdicts(self) -> Verdicts:
        """What is known of the claims of the carried papers."""

    def now(self) -> datetime:
        """The time, with its zone."""


def verdict_counts(site: Site) -> dict[str, dict[Status, int]]:
    """How many claims have each status, by the id of the carried paper's card."""
    return {paper["id"]: paper["counts"] for paper in site.verdicts.report()["papers"]}


def vote_counts(store: Store, keys: Sequence[str]) -> dict[str, int]:
    """How many votes were given to the papers of these keys; papers without votes are left out."""
    found: dict[str, int] = {}
    query = select(papers.c.key, func.count()).join(votes, votes.c.paper == papers.c.number).group_by(papers.c.key)
    with store.database.read() as connection:
        for start in range(0, len(keys), CHUNK):
            for key, count in connection.execute(query.where(papers.c.key.in_(keys[start : start + CHUNK]))):
                found[key] = int(count)
    return found


def entries(
    site: Site, records: Iterable[PaperRecord], extras: Sequence[Mapping[str, Any]] | None = None
) -> list[Entry]:
    """The records as entries, in their order. A fixed number of queries, however many there are.

    Args:
        site: where they are.
        records: the papers.
        extras: further fields of each entry: score, snippet and why.
    """
    listed = list(records)
    if not listed:
        return []
    counts = verdict_counts(site)
    given = vote_counts(site.store, [record.key for record in listed])
    more = [{}] * len(listed) if extras is None else extras
    return [
        Entry(**_facts(record, counts), votes=given.get(record.key, 0), **extra)
        for record, extra in zip(listed, more, strict=True)
    ]


def scored(site: Site, ranked: Iterable[tuple[PaperRecord, float]]) -> list[Entry]:
    """Ranked papers as entries with their score."""
    pairs = list(ranked)
    return entries(site, [record for record, _ in pairs], [{"score": score} for _, score in pairs])


def found(site: Site, items: Iterable[Item]) -> list[Entry]:
    """What a search found as entries: with score, snippet and why."""
    hits = list(items)
    extras = [{"score": hit.score, "snippet": spans(hit.snippet, hit.marks), "why": hit.why} for hit in hits]
    return entries(site, [hit.paper for hit in hits], extras)


def spans(text: str, marks: Iterable[tuple[int, int]]) -> list[Span]:
    """`text` cut at the marks ``(start, end)``; put together the pieces are the text again."""
    pieces, at = [], 0
    for start, end in sorted(marks):
        start, end = max(start, at), min(end, len(text))
        if start >= end:
            continue
        if at < start:
            pieces.append(Span(text=text[at:start]))
        pieces.append(Span(text=text[start:end], match=True))
        at = end
    return [*pieces, Span(text=text[at:])] if at < len(text) else pieces


def web_address(address: str | None) -> str | None:
    """An address of the data where it leads to the web, else None: no other scheme gets into a link."""
    return address if address is not None and is_web_address(address) else None


def _facts(record: PaperRecord, counts: Mapping[str, Mapping[Status, int]]) -> dict[str, Any]:
    of_card = counts.get(record.card) if record.card else None
    return {
        "id": record.key,
        "title": record.title,
        "state": "carried" if of_card is not None else "announced" if record.card else "listed",
        "card": record.card,
        "area": record.area,
        "published": record.published,
        "first_seen": record.first_seen,
        "authors": record.authors or [],
        "n_authors": record.n_authors,
        "upvotes": record.upvotes,
        "comments": record.comments,
        "code": web_address(record.code),
        "arxiv_url": f"https://arxiv.org/abs/{record.id}" if record.id else None,
        "summary": record.summary,
        "abstract": record.abstract,
        "verdicts": of_card,
    }
