"""Trending on SQLite and on PostgreSQL: the kept scores are the sums over all events; what comes later has no part."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import pytest

from paperworks.feed import ranking
from paperworks.feed.ranking import HALF_LIVES, WEIGHTS
from paperworks.feed.records import PaperRecord
from paperworks.feed.store import Store
from paperworks.feed.trends import METHODS, RISING_FLOOR, WINDOWS, rising, trending

DAY = date(2026, 4, 24)
NOW = datetime(2026, 4, 24, 18, tzinfo=UTC)


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with Store(store_url) as opened:
        yield opened


def record(number: int, **facts: Any) -> PaperRecord:
    return PaperRecord(f"Paper {number}", id=f"2604.{number:05d}", source="daily", **facts)


def id_of(number: int) -> str:
    return f"2604.{number:05d}"


def hours(at: datetime) -> float:
    return (NOW - at).total_seconds() / 3600


def start(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def recomputed(store: Store, paper: PaperRecord, half_life: int) -> float:
    """The score as the definition has it, from all events."""
    told = [(WEIGHTS[kind], hours(at)) for kind, _, at in store.history(paper.key) if at <= NOW]
    if paper.upvotes and paper.first_seen and start(paper.first_seen) <= NOW:
        told.append((paper.upvotes, hours(start(paper.first_seen))))
    return sum(weight * 2 ** (-age / half_life) for weight, age in told)


def fill(store: Store, number: int = 25, events: int = 150, after: float = 0) -> None:
    """Papers and events of the 40 days until `after` hours from now."""
    draw = random.Random(7)
    store.add(
        record(n, upvotes=draw.choice([None, 0, 3, 40]), first_seen=draw.choice([None, DAY - timedelta(days=n)]))
        for n in range(number)
    )
    for n in range(events):
        at = NOW + timedelta(hours=draw.uniform(-960, after))
        store.event(id_of(draw.randrange(number - 5)), draw.choice(list(WEIGHTS)), at, f"reader {n}")


@pytest.mark.parametrize("after", [0, 200])
def test_the_scores_are_the_sums_over_all_events_until_now(store: Store, after: float) -> None:
    fill(store, after=after)
    for window, half_life in HALF_LIVES.items():
        wanted = {paper.key: recomputed(store, paper, half_life) for paper in store.records()}
        found = trending(store, NOW, window, limit=100)
        assert {paper.key for paper, _ in found} == {key for key, score in wanted.items() if score > 0}
        for paper, score in found:
            assert score == pytest.approx(wanted[paper.key], rel=1e-9, abs=1e-9)
        assert [(-score, paper.key) for paper, score in found] == sorted((-score, paper.key) for paper, score in found)
        assert trending(store, NOW, window, limit=7) == found[:7]
        other_zone = NOW.astimezone(datetime.strptime("+0930", "%z").tzinfo)
        assert [paper.key for paper, _ in trending(store, other_zone, window, limit=100)] == [p.key for p, _ in found]


def test_rising_is_the_ratio_of_the_short_score_to_the_long_one(store: Store) -> None:
    fill(store)
    found = rising(store, NOW, limit=100)
    assert len(found) > 10
    for paper, score in found:
        short, long = recomputed(store, paper, 24), recomputed(store, paper, 240)
        assert score == pytest.approx(short / (long + RISING_FLOOR), rel=1e-9, abs=1e-12)
        assert 0 < score < 1
    assert [(-s, p.key) for p, s in found] == sorted((-s, p.key) for p, s in found)


def test_many_new_votes_rise_above_few_and_above_old_ones(store: Store) -> None:
    store.add(record(n) for n in range(4))
    for number, votes, age in ((1, 1, 1), (2, 20, 1), (3, 20, 400)):
        for n in range(votes):
            store.vote(id_of(number), f"reader {n}", NOW - timedelta(hours=age))
    store.vote(id_of(0), "later", NOW + timedelta(hours=1))
    assert [paper.id for paper, _ in rising(store, NOW)] == [id_of(2), id_of(1), id_of(3)]


def test_the_votes_of_the_source_count_from_the_day_of_entry(store: Store) -> None:
    store.add(
        [
            record(1, upvotes=8, first_seen=DAY),
            record(2, upvotes=8, first_seen=DAY - timedelta(days=1)),
            record(3, upvotes=0, first_seen=DAY),
            record(4, first_seen=DAY),
            record(5, upvotes=8),
            record(6, upvotes=800, first_seen=DAY + timedelta(days=1)),
        ]
    )
    found = [(paper.id, score) for paper, score in trending(store, NOW)]
    assert found == [(id_of(1), pytest.approx(8 * 2**-0.75)), (id_of(2), pytest.approx(8 * 2**-1.75))]


def test_points_and_age(store: Store) -> None:
    yesterday = DAY - timedelta(days=1)
    store.add([
        record(1, first_seen=DAY, upvotes=4),
        record(2, first_seen=yesterday, published=DAY - timedelta(days=9)),
        record(3, published=yesterday),
        record(4),
        record(5, first_seen=DAY),
    ])  # fmt: skip
    cast = {1: 2, 2: 5, 3: 3, 4: 2}
    for number, votes in cast.items():
        for n in range(votes):
            store.vote(id_of(number), f"reader {n}", NOW - timedelta(hours=3 - n / 4))
    store.event(id_of(5), "view", NOW)
    points = {1: 6, 2: 5, 3: 3, 4: 2}
    ages = {1: hours(start(DAY)), 2: hours(start(yesterday)), 3: hours(start(yesterday)), 4: 3.0}
    wanted = {id_of(n): ranking.hn(points[n], ages[n]) for n in points}
    assert {p.key: s for p, s in trending(store, NOW, method="hn")} == pytest.approx(wanted)
    wanted = {id_of(n): ranking.hot(points[n], NOW.timestamp() - 3600 * ages[n]) for n in points}
    assert {p.key: s for p, s in trending(store, NOW, method="hot")} == pytest.approx(wanted)


def test_top_counts_the_window_and_weighs_votes_by_views_where_there_are_views(store: Store) -> None:
    old = DAY - timedelta(days=5)
    store.add(
        [record(1, upvotes=3, first_seen=DAY), record(2, upvotes=90, first_seen=old), record(3), record(4, upvotes=9)]
    )
    for n in range(5):
        store.vote(id_of(3), f"reader {n}", NOW - timedelta(hours=n))
        store.vote(id_of(4), f"reader {n}", NOW - timedelta(hours=30 + n))
    store.vote(id_of(4), "tomorrow", NOW + timedelta(hours=1))

    def top(window: str) -> list[tuple[str, float]]:
        return [(paper.key, score) for paper, score in trending(store, NOW, window, "top")]

    assert top("day") == [(id_of(3), 5.0), (id_of(1), 3.0)]
    assert top("week") == [(id_of(2), 90.0), (id_of(3), 5.0), (id_of(4), 5.0), (id_of(1), 3.0)]
    for n in range(50):
        store.event(id_of(3), "view", NOW - timedelta(minutes=n))
    wanted = [(id_of(2), 90, 90), (id_of(4), 5, 5), (id_of(1), 3, 3), (id_of(3), 5, 50)]
    assert top("week") == [(id, pytest.approx(ranking.wilson(votes, seen))) for id, votes, seen in wanted]


def test_in_a_large_catalogue_only_what_is_near_is_read(store: Store) -> None:
    """Where enough papers are near, those with an older day of entry are left out, and they could not be first."""
    far = DAY - timedelta(days=13)
    store.add([record(n, upvotes=10, first_seen=DAY) for n in range(20)] + [record(99, upvotes=500, first_seen=far)])
    assert id_of(99) not in {p.id for p, _ in trending(store, NOW, limit=20)}
    found = trending(store, NOW, limit=21)
    assert found[-1][0].id == id_of(99)
    assert found[-1][1] < 500 / 4096 < found[0][1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("window", WINDOWS)
def test_an_empty_catalogue_and_times_at_the_ends_of_the_calendar(store: Store, window: str, method: str) -> None:
    assert trending(store, NOW, window, method) == []
    store.add([record(1, upvotes=5, first_seen=DAY), record(2)])
    store.vote(id_of(2), "ada", NOW)
    for now in (datetime.min, datetime(1000, 1, 1)):
        assert trending(store, now.replace(tzinfo=UTC), window, method) == []
        assert rising(store, now.replace(tzinfo=UTC)) == []
    late = trending(store, datetime(9999, 12, 31, 23, tzinfo=UTC), window, method)
    assert all(score >= 0 for _, score in late)
    assert late == trending(store, datetime(9999, 12, 31, 23, tzinfo=UTC), window, method)


def test_the_package_has_the_function_however_often_it_is_asked_for() -> None:
    script = "from paperworks import feed; assert feed.trending is feed.trending and callable(feed.trending)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_bad_arguments_name_themselves(tmp_path: Any) -> None:
    with Store(tmp_path / "store.sqlite") as store:
        for arguments, words in (
            ({"now": datetime(2026, 4, 24)}, "now: got .* without a time zone"),
            ({"window": "year"}, "window: got 'year', wanted one of day, week, month"),
            ({"method": "magic"}, "method: got 'magic', wanted one of decay, hn, hot, top"),
            ({"limit": 0}, "limit: got 0"),
            ({"limit": True}, "limit: got True"),
        ):
            with pytest.raises(ValueError, match=words):
                trending(store, **{"now": NOW, **arguments})  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="limit: got 0"):
            rising(store, NOW, limit=0)
