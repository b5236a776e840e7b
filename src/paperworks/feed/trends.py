"""What readers turn to now: papers ordered by decayed votes, by points and age, or by the votes of a window.

``decay`` is the score S(t) = sum over events of w 2^(-(t - t_e) / h) + u 2^(-(t - t_0) / h), with w by kind of event
(`ranking.WEIGHTS`), h by window (`ranking.HALF_LIVES`), u the votes of the source and t_0 the start (UTC) of the day on
which the paper entered the feed. The sum is kept by `Store.event` as one number a paper, so nothing is summed here.

What happens after `now` does not count: a paper whose newest event is later is summed from its events until `now`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from typing import Literal

from sqlalchemy import ColumnElement, Connection, case, func, select, true

from paperworks.feed.ranking import HALF_LIVES, WEIGHTS, check_aware, decay, hn, hot, wilson
from paperworks.feed.records import PaperRecord
from paperworks.feed.store import Store
from paperworks.feed.tables import events, papers, scores, votes

__all__ = ["METHODS", "WINDOWS", "rising", "trending"]

Window = Literal["day", "week", "month"]
Method = Literal["decay", "hn", "hot", "top"]

METHODS: tuple[Method, ...] = ("decay", "hn", "hot", "top")
WINDOWS = {"day": timedelta(days=1), "week": timedelta(days=7), "month": timedelta(days=30)}
"""Span of each window, for ``top``."""

REACH = 12
"""Half-lives behind `now` that are read first: what is older has lost all but 1/4096 of its score."""

RISING_FLOOR = 3.0
"""Votes added below the fraction of `rising`, so that one vote for a silent paper is no rise."""

CHUNK = 400


Scored = dict[int, tuple[float, str]]
"""Score and key of papers by number."""

Reader = Callable[[Connection, datetime, datetime | None], Scored]
"""Scores the papers that had an event or entered the feed from a time on, None for all."""


def trending(
    store: Store, now: datetime, window: str = "day", method: str = "decay", limit: int = 20
) -> list[tuple[PaperRecord, float]]:
    """The papers with the highest scores at `now`, best first, ties by id; those that nobody turned to are left out.

    Args:
        now: timezone-aware. Events after it, and papers that enter the feed after its day, do not count.
        window: ``day``, ``week`` or ``month``: half-lives of 24, 72 and 240 h, for ``top`` 1, 7 and 30 days.
        method: ``decay`` as above. ``hn`` and ``hot`` of `ranking`, from the votes here and at the source and the time
            since the paper entered the feed (else since it was published, else since its first vote). ``top``: the
            votes of the window, those of the source counted on the day of entry; where pages were viewed in the
            window, the lower end of Wilson's interval of votes among views instead, a vote of the source counted as
            a view too, which leaves the order of papers without views as it is.
        limit: at least 1.

    But for ``top``, papers with neither an event nor a day of entry in the last 12 half-lives are read only where
    fewer than `limit` others are found. Such a paper has a ``decay`` score below 1/4096 of its votes.

    Raises ValueError for a naive `now` or an unknown window, method or limit.
    """
    check_aware("now", now)
    _check_choice("window", window, HALF_LIVES)
    _check_choice("method", method, METHODS)
    _check_limit(limit)
    if method == "top":
        return _top(store, now, WINDOWS[window], limit)
    half_life = HALF_LIVES[window]
    if method == "decay":
        return _best(store, now, half_life, limit, partial(_decayed, half_life))
    if method == "hn":
        return _best(store, now, half_life, limit, partial(_pointed, hn))
    epoch = now.timestamp()
    return _best(store, now, half_life, limit, partial(_pointed, lambda votes, hours: hot(votes, epoch - 3600 * hours)))


def rising(store: Store, now: datetime, limit: int = 20) -> list[tuple[PaperRecord, float]]:
    """The papers whose votes are the most recent: S of 24 h / (S of 240 h + 3), between 0 and 1, best first.

    S is the ``decay`` score of `trending`. The 3 is a floor: few votes, however new, are no rise. Raises ValueError for
    a naive `now` or a limit below 1.
    """
    check_aware("now", now)
    _check_limit(limit)
    return _best(store, now, HALF_LIVES["day"], limit, _risen)


def _check_choice(name: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise ValueError(f"{name}: got {value!r}, wanted one of {', '.join(known)}")


def _check_limit(limit: int) -> None:
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ValueError(f"limit: got {limit!r}, wanted a whole number from 1")


def _best(store: Store, now: datetime, half_life: int, limit: int, read: Reader) -> list[tuple[PaperRecord, float]]:
    """The `limit` highest scores among the papers that `read` finds, first near `now`, then among all."""
    found: Scored = {}
    for since in (_before(now, timedelta(hours=REACH * half_life)), None):
        with store.database.read() as connection:
            found = read(connection, now, since)
        if len(found) >= limit:
            break
    return _first(store, found, limit)


def _before(now: datetime, span: timedelta) -> datetime | None:
    try:
        return now - span
    except OverflowError:  # the first days of the year 1
        return None


def _first(store: Store, scored: Scored, limit: int) -> list[tuple[PaperRecord, float]]:
    order = sorted(scored, key=lambda number: (-scored[number][0], scored[number][1]))[:limit]
    records = store.numbered(order)
    return [(records[number], scored[number][0]) for number in order if number in records]


def _hours(now: datetime, day: date) -> float:
    """From the start of a day to now."""
    return (now - datetime.combine(day, time(), UTC)).total_seconds() / 3600


def _near(column: ColumnElement[datetime], since: datetime | None) -> ColumnElement[bool]:
    return true() if since is None else column >= since


def _entered(now: datetime, since: datetime | None) -> ColumnElement[bool]:
    """Whether a paper has votes of the source and entered the feed from `since` to `now`."""
    day = papers.c.first_seen
    entered = (papers.c.upvotes > 0) & (day <= now.astimezone(UTC).date())
    return entered if since is None else entered & (day >= since.astimezone(UTC).date())


def _decayed(half_life: int, connection: Connection, now: datetime, since: datetime | None) -> Scored:
    mine = (scores.c.paper == papers.c.number) & (scores.c.half_life == half_life)
    facts = (papers.c.number, papers.c.key, papers.c.upvotes, papers.c.first_seen, scores.c.value, scores.c.at)
    rows = {}
    for query in (
        select(*facts).join(scores, mine).where(_near(scores.c.at, since)),
        select(*facts).outerjoin(scores, mine).where(_entered(now, since)),
    ):
        rows.update({row.number: row for row in connection.execute(query)})
    later = [number for number, row in rows.items() if row.at is not None and row.at > now]
    summed = _summed(connection, now, later, half_life)
    found: Scored = {}
    for number, row in rows.items():
        if row.at is None or number in summed or row.at > now:
            score = summed.get(number, 0.0)
        else:
            score = decay([(row.value, (now - row.at).total_seconds() / 3600)], half_life)
        if row.upvotes and row.first_seen is not None and (hours := _hours(now, row.first_seen)) >= 0:
            score += decay([(row.upvotes, hours)], half_life)
        if score > 0:
            found[number] = (score, row.key)
    return found


def _summed(connection: Connection, now: datetime, numbers: list[int], half_life: int) -> dict[int, float]:
    """The sums of papers that have events after `now`, from the events until then."""
    told: dict[int, list[tuple[float, float]]] = {}
    for chunk in _chunks(numbers):
        query = select(events.c.paper, events.c.kind, events.c.at)
        for number, kind, at in connection.execute(query.where(events.c.paper.in_(chunk), events.c.at <= now)):
            told.setdefault(number, []).append((WEIGHTS[kind], (now - at).total_seconds() / 3600))
    return {number: decay(one, half_life) for number, one in told.items()}


def _risen(connection: Connection, now: datetime, since: datetime | None) -> Scored:
    short = _decayed(HALF_LIVES["day"], connection, now, since)
    long = _decayed(HALF_LIVES["month"], connection, now, since)
    return {number: (score / (long[number][0] + RISING_FLOOR), key) for number, (score, key) in short.items()}


def _pointed(
    score: Callable[[float, float], float], connection: Connection, now: datetime, since: datetime | None
) -> Scored:
    """Scores from the votes, here until `now` and at the source, and the age in hours."""
    near = select(scores.c.paper).where(_near(scores.c.at, since))
    facts = (papers.c.number, papers.c.key, papers.c.upvotes, papers.c.first_seen, papers.c.published)
    wanted = papers.c.number.in_(near) | _entered(now, since)
    cast = select(votes.c.paper, func.count().label("number"), func.min(votes.c.at).label("first"))
    counted = cast.where(votes.c.at <= now).group_by(votes.c.paper).subquery()
    query = select(*facts, counted.c.number.label("votes"), counted.c.first)
    found: Scored = {}
    for row in connection.execute(query.outerjoin(counted, counted.c.paper == papers.c.number).where(wanted)):
        entered = row.first_seen is None or _hours(now, row.first_seen) >= 0
        points = (row.votes or 0) + (row.upvotes or 0 if entered else 0)
        if points:
            day = row.first_seen or row.published
            hours = _hours(now, day) if day is not None else 0.0
            if day is None and row.first is not None:
                hours = (now - row.first).total_seconds() / 3600
            found[row.number] = (score(points, max(0.0, hours)), row.key)
    return found


def _top(store: Store, now: datetime, span: timedelta, limit: int) -> list[tuple[PaperRecord, float]]:
    since = _before(now, span)
    in_window = (events.c.at <= now) if since is None else (events.c.at <= now) & (events.c.at > since)
    kinds = [func.sum(case((events.c.kind == kind, 1), else_=0)) for kind in ("vote", "view")]
    query = select(events.c.paper, papers.c.key, *kinds).join(papers, papers.c.number == events.c.paper)
    query = query.where(in_window, events.c.kind.in_(("vote", "view"))).group_by(events.c.paper, papers.c.key)
    with store.database.read() as connection:
        counts = {number: (key, int(cast), int(seen)) for number, key, cast, seen in connection.execute(query)}
        upvotes: dict[int, int] = {}
        for number, key, votes_there in connection.execute(
            select(papers.c.number, papers.c.key, papers.c.upvotes).where(_entered(now, since))
        ):
            upvotes[number] = votes_there
            counts.setdefault(number, (key, 0, 0))
    viewed = any(seen for _, _, seen in counts.values())
    scored: Scored = {}
    for number, (key, cast, seen) in counts.items():
        there = upvotes.get(number, 0)
        if cast + there:
            points = cast + there
            scored[number] = (wilson(points, max(seen + there, points)) if viewed else float(points), key)
    return _first(store, scored, limit)


def _chunks(numbers: Iterable[int]) -> Iterable[list[int]]:
    ordered = sorted(numbers)
    return (ordered[start : start + CHUNK] for start in range(0, len(ordered), CHUNK))
