"""Which papers go into a subscriber's digest, in which order, and why each.

New are the papers that entered the feed since the last digest; those without a day in the feed count by their own date.
Each gets a score: 2 q + a + p, with q in [0, 1] how well it matches the best saved query, a = 1 where it belongs to a
chosen area, and p = s / (s + 10) for the decayed votes s of `trending`. With queries or areas, only papers that match
one of them are chosen.

A paper matches a saved query when most of the query's words stand in it, or when the search places it among the first
2 % of the papers of the last two months, at most ten: a search by meaning finds something near to any query.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sqlalchemy import Select, func, or_, select

from paperworks.feed.preferences import Preferences
from paperworks.feed.records import PaperRecord, from_mapping
from paperworks.feed.store import Store
from paperworks.feed.tables import feed_days, paper_versions, papers, votes
from paperworks.feed.terms import STOP_WORDS, stem, words
from paperworks.feed.trends import rising, trending
from paperworks.feed.verdicts import Flip, Verdicts
from paperworks.lab.report.wording import MONTHS, plural

if TYPE_CHECKING:
    from paperworks.feed.search import Search

__all__ = ["Change", "Pick", "Round"]

LATE = timedelta(days=7)
"""How long after its day in the feed a paper that was ingested late is still news."""

SEARCHED = timedelta(days=60)
"""Of the catalogue behind the new papers that a saved query is compared over."""

RESULTS = 100
NEAREST, NEAREST_SHARE = 10, 50
POPULAR = 10
"""Decayed votes at which the part for votes is a half."""

TRENDING = 400
RISING = 5
CHUNK = 400


@dataclass
class Pick:
    """A paper chosen for a digest."""

    number: int
    paper: PaperRecord
    score: float
    votes: int
    reasons: list[str]


@dataclass(frozen=True)
class Change:
    """A claim whose verdict is another than at the last digest."""

    paper: PaperRecord
    sentence: str
    before: str
    after: str
    tier: str


@dataclass
class _Match:
    """How a paper meets a subscriber's interests."""

    query: float = 0.0
    area: float = 0.0
    reasons: list[str] = field(default_factory=list)


class Round:
    """The choice for any number of subscribers at one moment: what they share is read once."""

    def __init__(self, store: Store, search: Search, verdicts: Verdicts, now: datetime) -> None:
        self.store, self.search, self.verdicts, self.now = store, search, verdicts, now
        self._known: dict[datetime, dict[int, PaperRecord]] = {}  # by the time since when
        self._stems: dict[str, set[str]] = {}  # of the words of a paper, by key

    def picks(self, preferences: Preferences, since: datetime, without: Iterable[int] = ()) -> list[Pick]:
        """The best new papers, at most `preferences.count`, best first.

        Args:
            preferences: of the subscriber.
            since: of the last digest.
            without: numbers of papers that were sent before.
        """
        known = set(without)
        found = {number: paper for number, paper in self._new(since).items() if number not in known}
        counted = self._votes(found)
        found = {n: p for n, p in found.items() if counted[n] >= preferences.minimum_score}
        matches = self._matches(preferences, found, since)
        if preferences.queries or preferences.areas:
            found = {number: paper for number, paper in found.items() if number in matches}
        picks = []
        for number, paper in found.items():
            match, votes_now = matches.get(number, _Match()), self._decayed(preferences).get(paper.key, 0.0)
            score = 2 * match.query + match.area + votes_now / (votes_now + POPULAR)
            picks.append(
                Pick(
                    number,
                    paper,
                    score,
                    counted[number],
                    self._reasons(match, paper, counted[number], counted.values()),
                )
            )
        picks.sort(key=lambda pick: (-pick.score, *_place(pick.paper)))
        return picks[: preferences.count]

    def changes(self, preferences: Preferences, since: datetime) -> list[Change]:
        """The verdicts that are others now than at `since`, of papers the subscriber follows, the newest first."""
        told: dict[tuple[str, str, str], list[Flip]] = {}
        for flip in self.verdicts.flips(since, self.now):
            told.setdefault((flip.card, flip.claim, flip.tier), []).append(flip)
        found = []
        for (card, _, tier), flips in told.items():
            newest, oldest = flips[0], flips[-1]
            paper = self.store.get(card)
            if paper is not None and oldest.before != newest.after and self._followed(preferences, paper):
                found.append(Change(paper, newest.sentence, oldest.before, newest.after, tier))
        return found

    # what is new

    def _new(self, since: datetime) -> dict[int, PaperRecord]:
        if since not in self._known:
            self._known[since] = self._read(since)
        return self._known[since]

    def _read(self, since: datetime) -> dict[int, PaperRecord]:
        first, last = since.astimezone(UTC).date(), self.now.astimezone(UTC).date()
        in_feed = select(feed_days.c.paper).where(feed_days.c.day.between(first, last))
        late = (
            select(feed_days.c.paper)
            .join(paper_versions, paper_versions.c.paper == feed_days.c.paper)
            .where(feed_days.c.day.between(_earlier(first, LATE), first), paper_versions.c.version == 1)
            .where(paper_versions.c.seen > since, paper_versions.c.seen <= self.now)
        )
        own = select(papers.c.number).where(papers.c.first_seen.is_(None), papers.c.published.between(first, last))
        query: Select[Any] = select(papers.c.number, papers.c.data).where(
            or_(papers.c.number.in_(in_feed), papers.c.number.in_(late), papers.c.number.in_(own))
        )
        with self.store.database.read() as connection:
            return {number: from_mapping(data) for number, data in connection.execute(query)}

    def _votes(self, found: Mapping[int, PaperRecord]) -> dict[int, int]:
        """Votes by number: those of the source, and those given here."""
        counts = {number: paper.upvotes or 0 for number, paper in found.items()}
        numbers = list(found)
        with self.store.database.read() as connection:
            for start in range(0, len(numbers), CHUNK):
                given = select(votes.c.paper, func.count()).where(votes.c.paper.in_(numbers[start : start + CHUNK]))
                for number, count in connection.execute(given.group_by(votes.c.paper)):
                    counts[number] += count
        return counts

    def _decayed(self, preferences: Preferences) -> Mapping[str, float]:
        return self._daily if preferences.frequency == "daily" else self._weekly

    @cached_property
    def _daily(self) -> dict[str, float]:
        return {paper.key: score for paper, score in trending(self.store, self.now, "day", limit=TRENDING)}

    @cached_property
    def _weekly(self) -> dict[str, float]:
        return {paper.key: score for paper, score in trending(self.store, self.now, "week", limit=TRENDING)}

    @cached_property
    def _rising(self) -> set[str]:
        return {paper.key for paper, _ in rising(self.store, self.now, limit=RISING)}

    # whom it matters to

    def _matches(
        self, preferences: Preferences, found: Mapping[int, PaperRecord], since: datetime
    ) -> dict[int, _Match]:
        matches: dict[int, _Match] = {}
        for query in preferences.queries if found else ():
            for number, (match, reason) in self._answers(query, found, since).items():
                kept = matches.setdefault(number, _Match())
                kept.query = max(kept.query, match)
                kept.reasons.append(reason)
        for number, paper in found.items():
            if reason := self._area_reason(preferences, paper):
                kept = matches.setdefault(number, _Match())
                kept.area = 1.0
                kept.reasons.append(reason)
        return matches

    def _answers(self, query: str, found: Mapping[int, PaperRecord], since: datetime) -> dict[int, tuple[float, str]]:
        """Of the papers `found` those that match a saved query: how well, in (0, 1], and in words."""
        # a filter by date goes by the paper's own, which may lie long before its day in the feed: hence the words too
        results = self.search.query(query, {"since": _earlier(since.astimezone(UTC).date(), SEARCHED)}, RESULTS)
        scores = {item.paper.key: item.score / results.items[0].score for item in results.items}
        near = {item.paper.key for item in results.items[: min(NEAREST, results.total // NEAREST_SHARE)]}
        asked = _asked(query)
        answers = {}
        for number, paper in found.items():
            shared = self._shared(asked, paper)
            if 2 * len(shared) > len(asked):
                said = f" by {', '.join(shared)}" if len(shared) < len(asked) else ""
                score = scores.get(paper.key, len(shared) / len(asked) / 2)
                answers[number] = (score, f"matches “{query}”{said}")
            elif paper.key in near:
                answers[number] = (scores[paper.key], f"near “{query}” in meaning")
        return answers

    def _shared(self, asked: Sequence[str], paper: PaperRecord) -> list[str]:
        known = self._stems.get(paper.key)
        if known is None:
            known = self._stems[paper.key] = {stem(word) for word in words(_text(paper))}
        return [word for word in asked if stem(word) in known]

    def _area_reason(self, preferences: Preferences, paper: PaperRecord) -> str:
        if paper.area in preferences.areas:
            return f"area {paper.area}"
        if paper.area is None and preferences.areas:
            text = f" {' '.join(map(stem, words(_text(paper))))} "
            for area in preferences.areas:
                for phrase, stems in self._phrases.get(area, {}).items():
                    if f" {stems} " in text:
                        return f"area {area}: speaks of “{phrase}”"
        return ""

    @cached_property
    def _phrases(self) -> dict[str, dict[str, str]]:
        """Of each area the phrases that several of its cards have as a keyword and no card of another area has."""
        seen: dict[str, dict[str, int]] = {}
        query = select(papers.c.area, papers.c.data).where(papers.c.card.is_not(None), papers.c.area.is_not(None))
        with self.store.database.read() as connection:
            for area, data in connection.execute(query):
                for phrase in {keyword.lower() for keyword in from_mapping(data).keywords}:
                    if re.search(r"[ -]", phrase):  # one word alone says too little
                        by_area = seen.setdefault(phrase, {})
                        by_area[area] = by_area.get(area, 0) + 1
        found: dict[str, dict[str, str]] = {}
        for phrase, by_area in sorted(seen.items()):
            for area, count in by_area.items():
                if len(by_area) == 1 and count > 1:
                    found.setdefault(area, {})[phrase] = " ".join(map(stem, words(phrase)))
        return found

    def _followed(self, preferences: Preferences, paper: PaperRecord) -> bool:
        if not (preferences.queries or preferences.areas):
            return True
        if paper.area in preferences.areas:
            return True
        asked = [_asked(query) for query in preferences.queries]
        return any(2 * len(self._shared(one, paper)) > len(one) for one in asked)

    def _reasons(self, match: _Match, paper: PaperRecord, counted: int, all_counted: Collection[int]) -> list[str]:
        reasons = list(match.reasons)
        if paper.key in self._rising:
            reasons.append("rising")
        if not reasons and counted:
            place = 1 + sum(other > counted for other in all_counted)
            reasons.append(f"number {place} by votes of {plural(len(all_counted), 'new paper')}")
        if not reasons:
            day = paper.first_seen or paper.published
            reasons.append("new in the feed" if day is None else f"new on {day.day} {MONTHS[day.month - 1]}")
        return reasons


def _earlier(day: date, span: timedelta) -> date:
    return day - span if day - date.min > span else date.min


def _place(paper: PaperRecord) -> tuple[bool, int, float, str]:
    """Order of papers of equal score: the place in the feed's list, the newest day first, the key."""
    day = datetime.combine(paper.first_seen or date.min, time(), UTC)
    return paper.rank is None, paper.rank or 0, -day.toordinal(), paper.key


def _text(paper: PaperRecord) -> str:
    return " . ".join([paper.title, *paper.keywords, *(paper.authors or ()), paper.summary, paper.abstract])


def _asked(query: str) -> list[str]:
    """The words of a query that say something; all of them where none does."""
    asked = list(dict.fromkeys(words(query)))
    return [word for word in asked if word not in STOP_WORDS] or asked
