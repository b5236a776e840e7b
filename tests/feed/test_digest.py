"""What is in a digest: which papers, in which order, why each, and the verdicts that changed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from feed.digest_world import DAY, NOW, SENDER, SITE, TODAY, Kept, World, flat, text_of

from paperworks.feed.digest import Digest
from paperworks.feed.records import PaperRecord
from paperworks.feed.store import Store
from paperworks.feed.verdicts import Flip, Verdicts
from paperworks.lab.nouns import Paper


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(str(tmp_path / "store.sqlite"))
    yield made
    made.close()


# which papers


def test_nothing_new_is_no_digest(world: World) -> None:
    reader = world.reader()
    assert world.digest.build(reader, NOW) is None
    world.paper(1, day=TODAY - 3 * DAY)
    world.paper(2, day=TODAY + DAY)
    assert world.digest.build(reader, NOW) is None
    world.paper(3, day=TODAY)
    assert world.ids(world.digest.build(reader, NOW)) == ["2604.00003"]


def test_building_keeps_nothing(world: World) -> None:
    reader = world.reader()
    world.paper(1)
    first, second = world.digest.build(reader, NOW), world.digest.build(reader, NOW)
    assert text_of(first) == text_of(second)
    assert world.rows() == []


def test_a_paper_is_never_sent_twice(world: World) -> None:
    transport = Kept()
    world.reader(count=2)
    for number in range(1, 6):
        world.paper(number, upvotes=10 - number)
    for days in range(5):
        world.digest.send(transport, NOW + days * DAY)
    world.store.add([PaperRecord("Paper 1 of many", id="2604.00001", first_seen=TODAY + 5 * DAY, source="daily")])
    world.digest.send(transport, NOW + 5 * DAY)
    sent = [id for message in transport.sent for id in world.ids(message)]
    assert sent[:2] == ["2604.00001", "2604.00002"]
    assert len(sent) == len(set(sent))


def test_a_paper_that_gets_its_arxiv_id_later_is_not_sent_again(world: World) -> None:
    transport = Kept()
    world.reader()
    world.store.add([PaperRecord("Learning to Fly", first_seen=TODAY, source="page")])
    world.digest.send(transport, NOW)
    world.store.add([PaperRecord("Learning to Fly", id="2604.00001", first_seen=TODAY + DAY, source="daily")])
    world.digest.send(transport, NOW + DAY)
    assert len(transport.sent) == 1


def test_since_the_last_digest_however_long_ago(world: World) -> None:
    transport = Kept()
    reader = world.reader()
    world.paper(1)
    world.digest.send(transport, NOW)
    world.paper(2, day=TODAY + 3 * DAY)
    world.paper(3, day=TODAY + 8 * DAY)
    assert set(world.ids(world.digest.build(reader, NOW + 9 * DAY))) == {"2604.00002", "2604.00003"}


def test_a_paper_that_was_ingested_after_its_day_is_still_news(world: World) -> None:
    transport = Kept()
    reader = world.reader()
    world.paper(1)
    world.digest.send(transport, NOW)
    late = PaperRecord("Late", id="2604.00002", first_seen=TODAY - 2 * DAY, source="daily")
    old = PaperRecord("Old", id="2604.00003", first_seen=TODAY - 20 * DAY, source="daily")
    world.store.add([late, old], NOW + timedelta(hours=20))
    assert world.ids(world.digest.build(reader, NOW + DAY)) == ["2604.00002"]


def test_without_a_day_in_the_feed_a_papers_own_date_counts(world: World) -> None:
    reader = world.reader()
    world.store.add(
        [
            PaperRecord("New", id="2604.00001", published=TODAY, source="arxiv"),
            PaperRecord("Old", id="2604.00002", published=TODAY - 20 * DAY, source="arxiv"),
        ]
    )
    assert world.ids(world.digest.build(reader, NOW)) == ["2604.00001"]


def test_a_weekly_digest_looks_back_a_week(world: World) -> None:
    world.paper(1, day=TODAY - 6 * DAY)
    assert world.digest.build(world.reader("daily"), NOW) is None
    assert world.ids(world.digest.build(world.reader("weekly", frequency="weekly"), NOW)) == ["2604.00001"]


def test_the_most_read_come_first_and_few(world: World) -> None:
    reader = world.reader(count=3)
    for number, votes in enumerate((5, 50, 0, 20, 1), 1):
        world.paper(number, upvotes=votes)
    assert world.ids(world.digest.build(reader, NOW)) == ["2604.00002", "2604.00004", "2604.00001"]
    for person in range(60):
        world.store.vote("2604.00003", f"person {person}", NOW - timedelta(hours=1))
    built = world.digest.build(reader, NOW)
    assert world.ids(built)[0] == "2604.00003"
    assert "60 votes" in flat(built)


def test_equal_papers_are_in_the_order_of_the_feed(world: World) -> None:
    reader = world.reader()
    for number, rank in ((1, 2), (2, 0), (3, None), (4, 1)):
        world.paper(number, rank=rank)
    assert world.ids(world.digest.build(reader, NOW)) == ["2604.00002", "2604.00004", "2604.00001", "2604.00003"]


def test_the_minimum_score_counts_votes_there_and_here(world: World) -> None:
    reader = world.reader(minimum_score=3)
    world.paper(1, upvotes=2)
    world.paper(2, upvotes=3)
    world.paper(3)
    assert world.ids(world.digest.build(reader, NOW)) == ["2604.00002"]
    world.store.vote("2604.00001", "someone", NOW)
    assert set(world.ids(world.digest.build(reader, NOW))) == {"2604.00001", "2604.00002"}


def test_a_saved_query_chooses_and_says_why(world: World) -> None:
    reader = world.reader(queries=["sparse attention", "the wings of birds"])
    world.paper(1, "Sparse Attention for Long Contexts", upvotes=1)
    world.paper(2, "A Paper on Bread", upvotes=100)
    world.paper(3, "Winged Machines", abstract="How birds fly.")
    world.paper(4, "Attention Is a Matter of Taste")
    built = world.digest.build(reader, NOW)
    assert world.ids(built) == ["2604.00001", "2604.00003"] or world.ids(built) == ["2604.00003", "2604.00001"]
    assert "Why: matches “sparse attention”" in flat(built)
    assert "Why: matches “the wings of birds”" in flat(built)
    assert "bread" not in flat(built).lower()


def test_some_of_the_words_are_named(world: World) -> None:
    reader = world.reader(queries=["sparse attention for video"])
    world.paper(1, "Sparse Attention")
    world.paper(2, "Video of Bread")
    built = world.digest.build(reader, NOW)
    assert world.ids(built) == ["2604.00001"]
    assert "matches “sparse attention for video” by sparse, attention" in flat(built)


def test_an_old_paper_that_enters_the_feed_matches_too(world: World) -> None:
    reader = world.reader(queries=["sparse attention"])
    world.paper(1, "Sparse Attention", published=TODAY - 2000 * DAY)
    world.paper(2, "A Paper on Bread")
    assert world.ids(world.digest.build(reader, NOW)) == ["2604.00001"]


def test_a_query_that_nothing_matches_sends_nothing(world: World) -> None:
    world.paper(1, "A Paper on Bread")
    reader = world.reader()
    for query in ("quantum gravity", "???", "the", '"; DROP TABLE papers --', "研究"):
        assert world.digest.build(world.people.preferences(reader, queries=[query]), NOW) is None


def test_meaning_alone_counts_where_the_catalogue_is_large(world: World) -> None:
    reader = world.reader(queries=["loaf baking oven"])
    for number in range(100):
        world.paper(number + 10, f"Flight {number} of wings", abstract="How birds fly over the sea.")
    world.paper(1, "A Paper on Bread", abstract="An oven. Dough rises, and is baked.")
    built = world.digest.build(reader, NOW)
    assert world.ids(built)[0] == "2604.00001"
    assert len(world.ids(built)) <= 3


AREA_CARD = {"authors": "A. B.", "n_authors": 1, "summary": "In our own words.", "method": "", "usage": ""}


def card(id: str, area: str, *keywords: str, arxiv: str = "") -> Paper:
    return Paper(
        id=id, title=f"The Card {id}", area=area, arxiv=arxiv, date=TODAY - 900 * DAY, keywords=keywords, **AREA_CARD
    )  # type: ignore[arg-type]


def test_an_area_chooses_by_the_card_or_by_what_its_cards_speak_of(world: World) -> None:
    world.store.add_cards(
        [
            card("one", "spiking", "spiking neural network", "attention", arxiv="2601.00001"),
            card("two", "spiking", "spiking neural network", "large language model", arxiv="2601.00002"),
            card("three", "steering", "large language model", arxiv="2601.00003"),
        ]
    )
    reader = world.reader(areas=["spiking"])
    world.store.add([PaperRecord("The Card one", id="2601.00001", first_seen=TODAY, source="daily")])
    world.paper(1, "Deep Spiking Neural Networks", abstract="Large language models, attention.")
    world.paper(2, "Large Language Models", abstract="attention")
    world.paper(3, "Spiking and Neural, but no Network")
    built = world.digest.build(reader, NOW)
    assert set(world.ids(built)) == {"2601.00001", "2604.00001"}
    assert "Why: area spiking" in flat(built)
    assert "Why: area spiking: speaks of “spiking neural network”" in flat(built)


def test_what_is_rising_is_said_so(world: World) -> None:
    reader = world.reader()
    for number in range(1, 9):
        world.paper(number, upvotes=number * number)
    built = text_of(world.digest.build(reader, NOW))
    assert built.count("Why: rising\n") == 5
    assert "Why: number 8 by votes of 8 new papers\n" in built


# verdicts


class Told(Verdicts):
    """Verdicts that a test sets."""

    def __init__(self, store: Store) -> None:
        super().__init__(store, cards=())
        self.known: dict[str, dict[str, int]] = {}
        self.changed: list[Flip] = []

    def counts(self, card: str | None) -> dict[str, int] | None:
        return self.known.get(card or "")

    def flips(self, since: datetime, until: datetime) -> list[Flip]:
        return [flip for flip in self.changed if since < flip.at <= until]


@pytest.fixture
def told(world: World) -> Told:
    verdicts = Told(world.store)
    world.store.add_cards(
        [card("one", "kan", "splines", arxiv="2601.00001"), card("two", "spiking", arxiv="2601.00002")]
    )
    search, people = world.digest.search, world.people
    world.digest = Digest(world.store, search, people, base_url=SITE, sender=SENDER, verdicts=verdicts)
    return verdicts


def flip(card: str, before: str, after: str, at: datetime = NOW, claim: str = "c", tier: str = "desk") -> Flip:
    return Flip(card, claim, "It is more accurate than its baseline.", before, after, tier, at)


def test_a_carried_paper_has_its_verdicts_and_an_announced_one_says_so(world: World, told: Told) -> None:
    told.known["one"] = {"holds": 3, "inconclusive": 1, "fails": 1, "not run": 0, "error": 2}
    world.store.add(
        PaperRecord(f"The Card {name}", id=f"2601.0000{n}", first_seen=TODAY, source="daily")
        for n, name in ((1, "one"), (2, "two"))
    )
    built = world.digest.build(world.reader(), NOW)
    assert "Claims: 3 hold, 1 open, 1 fails, 2 errors" in text_of(built)
    assert text_of(built).count("not carried yet") == 1
    assert "spiking · A. B. · 6 Nov 2023 · not carried yet\n" in text_of(built)
    html = text_of(built, "html")
    for status in ("holds", "inconclusive", "fails", "error"):
        assert f'class="{status}"' in html
    assert 'class="not-run"' not in html


def test_verdicts_that_changed_are_told_once(world: World, told: Told) -> None:
    transport = Kept()
    world.reader()
    told.changed = [flip("one", "holds", "fails", NOW - timedelta(hours=1))]
    world.digest.send(transport, NOW)
    world.digest.send(transport, NOW + DAY)
    assert [message["Subject"] for message in transport.sent] == ["A verdict changed: The Card one"]
    assert "No new papers, but a verdict that changed." in text_of(transport.sent[0])
    assert "holds -> fails, at the desk tier" in text_of(transport.sent[0])
    assert f"{SITE}/paper/2601.00001" in text_of(transport.sent[0])
    told.changed.append(flip("one", "fails", "holds", NOW + DAY + timedelta(hours=1)))
    world.digest.send(transport, NOW + 2 * DAY)
    assert "fails -> holds" in text_of(transport.sent[1])


def test_what_changed_and_changed_back_is_no_news(world: World, told: Told) -> None:
    hours = [NOW - timedelta(hours=n) for n in (1, 2, 3)]
    told.changed = [flip("one", "fails", "holds", hours[0]), flip("one", "holds", "fails", hours[1])]
    assert world.digest.build(world.reader(), NOW) is None
    told.changed.append(flip("one", "inconclusive", "holds", hours[2]))
    assert "inconclusive -> holds" in text_of(world.digest.build(world.reader("other"), NOW))


def test_only_changes_of_what_one_follows(world: World, told: Told) -> None:
    told.changed = [flip("one", "holds", "fails"), flip("two", "fails", "holds"), flip("unknown", "holds", "error")]
    for interest, wanted in (
        ({"areas": ["kan"]}, {"one"}),
        ({"queries": ["splines"]}, {"one"}),
        ({"areas": ["spiking"], "queries": ["splines"]}, {"one", "two"}),
        ({}, {"one", "two"}),
    ):
        built = text_of(world.digest.build(world.reader(f"r{len(str(interest))}", **interest), NOW))
        assert set(re.findall(r"The Card (\w+)", built)) == wanted
    assert world.digest.build(world.reader("none", areas=["video"]), NOW) is None


def test_of_very_many_changes_some_are_counted(world: World, told: Told) -> None:
    told.changed = [flip("one", "holds", "fails", claim=f"c{n}") for n in range(14)]
    built = world.digest.build(world.reader(), NOW)
    assert built is not None
    assert built["Subject"] == "14 verdicts changed: The Card one"
    assert text_of(built).count("->") == 10
    assert "And 4 more." in text_of(built)
    assert "And 4 more." in text_of(built, "html")


def test_the_verdicts_are_those_of_the_store_by_default(world: World) -> None:
    made = Digest(world.store, world.digest.search, world.people, base_url=SITE, sender=SENDER)
    assert made.verdicts.counts("crrelu") is not None
