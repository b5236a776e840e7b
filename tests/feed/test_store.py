"""The catalogue on SQLite and on PostgreSQL: merging, days, votes and scores."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest

from paperworks.feed.merging import AddReport
from paperworks.feed.ranking import HALF_LIVES, WEIGHTS, decay
from paperworks.feed.records import PaperRecord, title_key
from paperworks.feed.store import Store, card_record
from paperworks.feed.tables import scores
from paperworks.lab import registry

DAY = date(2026, 4, 24)
MORNING = datetime(2026, 4, 24, 8, 30, tzinfo=UTC)


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with Store(store_url) as opened:
        yield opened


def record(title: str = "Learning to Fly", **facts: object) -> PaperRecord:
    return PaperRecord(title, **{"source": "daily", "first_seen": DAY, **facts})  # type: ignore[arg-type]


def test_what_is_added_comes_back(store: Store) -> None:
    paper = record(id="2604.00001", abstract="We study wings.\x00", authors=["A. B.", "C. D."], upvotes=0, rank=3)
    assert store.add([paper]) == AddReport(new=1)
    assert store.get("2604.00001v3") == paper
    assert store.get("https://arxiv.org/abs/2604.00001") == paper
    assert store.get("2604.00002") is None
    assert len(store) == 1
    assert store.add([paper]) == AddReport(unchanged=1)
    assert [known for _, known in store.versions("2604.00001")] == [paper]


def test_a_later_version_updates_and_an_earlier_one_does_not(store: Store) -> None:
    first = PaperRecord("Learning to Fly", id="2604.00001v1", abstract="Old.", source="arxiv")
    second = replace(first, version=2, abstract="New.")
    assert store.add([first, second, first]) == AddReport(new=1, updated=1, unchanged=1)
    known = store.get("2604.00001")
    assert known is not None
    assert (known.version, known.abstract) == (2, "New.")


def test_a_title_that_gets_its_arxiv_id_stays_one_paper(store: Store) -> None:
    assert store.add([record("Learning to  Fly!", upvotes=4)]) == AddReport(new=1)
    assert store.get(title_key("learning to fly")) is not None
    later = PaperRecord("Learning to Fly", id="2604.00001", abstract="Wings.", source="arxiv")
    assert store.add([later]) == AddReport(merged=1)
    assert len(store) == 1
    for id in ("2604.00001", title_key("Learning to Fly")):
        known = store.get(id)
        assert known is not None
        assert (known.id, known.upvotes, known.abstract) == ("2604.00001", 4, "Wings.")
    assert [p.id for p in store.day(DAY)] == ["2604.00001"]
    # an account without an id still finds it, and one of another id is another paper
    assert store.add([record("Learning to Fly", upvotes=5)]) == AddReport(updated=1)
    assert store.add([record("Learning to Fly", id="2604.00009")]) == AddReport(new=1)


def test_both_accounts_in_one_call(store: Store) -> None:
    given = [record("Learning to Fly"), record("Learning to Fly", id="2604.00001"), record("Learning to Fly")]
    assert store.add(given) == AddReport(new=1, merged=1, unchanged=1)
    assert store.get(title_key("Learning to Fly")) == store.get("2604.00001")


def test_a_day_is_in_the_order_of_its_list_and_keeps_papers_seen_again_later(store: Store) -> None:
    store.add(record(f"Paper {n}", id=f"2604.0000{n}", rank=9 - n) for n in range(1, 6))
    store.add([record("Paper 3", id="2604.00003", rank=0, first_seen=DAY + timedelta(days=1))])
    assert [p.id for p in store.day(DAY)] == [f"2604.0000{n}" for n in (5, 4, 3, 2, 1)]
    assert [p.id for p in store.day(DAY + timedelta(days=1))] == ["2604.00003"]
    week = store.between(DAY - timedelta(days=3), DAY + timedelta(days=3))
    assert [p.id for p in week] == [f"2604.0000{n}" for n in (3, 5, 4, 2, 1)]
    assert store.days() == [(DAY + timedelta(days=1), 1), (DAY, 5)]
    assert store.days(until=DAY) == [(DAY, 5)]
    assert store.day(DAY - timedelta(days=1)) == []


def test_many_records_are_several_transactions(store: Store) -> None:
    given = [record(f"Paper number {n}", id=f"2604.{n:05d}") for n in range(1001)]
    assert store.add(given) == AddReport(new=1001)
    before = store.generation()
    assert store.add(given) == AddReport(unchanged=1001)
    assert store.generation() == before
    store.add([replace(given[0], upvotes=7)])
    assert store.generation() != before
    assert [p.id for p in store.records()] == [p.id for p in given]


def test_cards_are_records(store: Store) -> None:
    store.add_cards(registry.papers())
    known = store.get("ash")
    assert known is not None
    assert (known.id, known.area, known.card, known.source) == ("2210.11672", "activations", "ash", "card")
    assert known.summary
    assert not known.abstract
    # a source that knows the abstract adds it, and the card's summary stays
    store.add([replace(card_record(registry.find("ash")), source="arxiv", abstract="Data.", summary="", card=None)])
    known = store.get("ash")
    assert known is not None
    assert known.abstract == "Data."
    assert known.summary


def test_one_vote_a_person(store: Store) -> None:
    store.add([record(id="2604.00001")])
    assert store.vote("2604.00001", "ada", MORNING)
    assert not store.vote("2604.00001", "ada", MORNING + timedelta(hours=1))
    assert store.vote("2604.00001", "grace", MORNING)
    assert [kind for kind, _, _ in store.history("2604.00001")] == ["vote", "vote"]
    for wrong in (lambda: store.vote("2604.00002", "ada", MORNING), lambda: store.vote("2604.00001", "", MORNING)):
        with pytest.raises(ValueError, match=r"^(id|person): got"):
            wrong()
    with pytest.raises(ValueError, match="time zone"):
        store.vote("2604.00001", "ada", datetime(2026, 4, 24))
    with pytest.raises(ValueError, match="kind: got 'like', wanted one of vote"):
        store.event("2604.00001", "like", MORNING)


def test_the_score_kept_is_the_sum_over_all_events_in_any_order(store: Store) -> None:
    store.add([record(id="2604.00001")])
    draw = random.Random(0)
    for n in range(60):
        at = MORNING - timedelta(hours=draw.uniform(0, 500))
        store.event("2604.00001", draw.choice(list(WEIGHTS)), at, person=f"reader {n}")
    told = store.history("2604.00001")
    with store.database.read() as connection:
        kept = {row.half_life: row for row in connection.execute(scores.select())}
    assert set(kept) == set(HALF_LIVES.values())
    for half_life, row in kept.items():
        assert row.at == max(at for _, _, at in told)
        ages = [(WEIGHTS[kind], (row.at - at).total_seconds() / 3600) for kind, _, at in told]
        assert row.value == pytest.approx(decay(ages, half_life), rel=1e-9)


def test_what_is_no_record_is_refused_and_nothing_of_the_batch_is_kept(store: Store) -> None:
    with pytest.raises(TypeError, match="records: got dict"):
        store.add([record(id="2604.00001"), {"title": "x"}])  # type: ignore[list-item]
    assert len(store) == 0
    for wrong in (MORNING, "2026-04-24", None):
        with pytest.raises(TypeError, match=r"day: got .*, wanted a date"):
            store.day(wrong)  # type: ignore[arg-type]
