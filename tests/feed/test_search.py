"""Search over a store on both databases: what is found, in what order, restricted how; hostile text is only text."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paperworks.feed import PaperRecord, Search, Store
from paperworks.feed.meaning import LSA
from paperworks.feed.search import Item, _diverse
from paperworks.feed.verdicts import Verdicts
from paperworks.lab import registry
from paperworks.lab.store.database import StoreError

NOON = datetime(2026, 4, 24, 12, tzinfo=UTC)

PAPERS = [
    PaperRecord(
        "Sparse Attention in Deep Networks",
        id="2401.00001",
        abstract="We keep few weights. Attention scores below a threshold are dropped before the softmax.",
        authors=["Jane Doe", "Jörg Müller"],
        published=date(2024, 1, 10),
        code="https://example.org/sparse",
        area="efficiency",
        source="arxiv",
    ),
    PaperRecord(
        "A Study of Birdsong",
        id="2402.00002",
        abstract="Birds learn their songs from tutors. We record finches and decode the syllables they sing.",
        authors=["Ann Lee"],
        published=date(2024, 2, 10),
        keywords=["zebra finch", "vocal learning"],
        area="neuro",
        source="arxiv",
    ),
    PaperRecord(
        "Spiking Networks that Sing",
        id="2403.00003",
        abstract="Spiking neurons are trained with surrogate gradients to produce the songs of finches.",
        authors=["Doe Smith"],
        published=date(2024, 3, 10),
        first_seen=date(2024, 3, 12),
        area="spiking",
        source="arxiv",
    ),
    PaperRecord(
        "AF-KAN: Rational Edges",
        id="2404.00004",
        abstract="Edges of a network carry rational functions. Pruning removes those that stay flat.",
        authors=["Jane Roe"],
        first_seen=date(2024, 4, 10),
        area="kan",
        source="daily",
    ),
]


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with Store(store_url) as opened:
        opened.add(PAPERS, at=NOON)
        yield opened


@pytest.fixture
def search(store: Store) -> Search:
    return Search(store)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Search]:
    with Store(tmp_path_factory.mktemp("catalogue") / "store.sqlite") as opened:
        opened.add_cards(registry.catalogue())
        yield Search(opened)


def ids(items: list[Item]) -> list[str | None]:
    return [item.paper.id for item in items]


def test_a_word_of_the_title_comes_before_one_of_the_body(search: Search) -> None:
    found = search.query("birdsong")
    assert ids(found.items)[0] == "2402.00002"
    both = search.query("finches networks")
    assert ids(both.items)[0] == "2403.00003"
    assert both.total == len(both.items)
    assert both.took_ms > 0


def test_forms_of_a_word_are_one_word(search: Search) -> None:
    assert ids(search.query("pruned edge").items)[0] == "2404.00004"
    assert search.query("pruned edge").items[0].parts["words"] > 0


def test_the_last_word_may_be_the_beginning_of_one(search: Search) -> None:
    assert ids(search.query("surrog").items)[0] == "2403.00003"
    assert ids(search.query("zebra fin").items)[0] == "2402.00002"
    assert search.lists("gradi qqxxzzyy")["words"] == []  # only the last


def test_what_was_meant_is_found(search: Search) -> None:
    for typed, wanted, read in [
        ("birdsogn", "2402.00002", "birdsong"),
        ("surogate gradeints", "2403.00003", "surrogate"),
        ("afkan", "2404.00004", "af kan"),
        ("bird song", "2402.00002", "birdsong"),
        ("atention", "2401.00001", "attention"),
    ]:
        first = search.query(typed).items[0]
        assert first.paper.id == wanted
        assert first.parts["typos"] > 0
        assert read in first.why


def test_an_item_says_why(search: Search) -> None:
    item = search.query("threshold softmax").items[0]
    paper, score, parts, snippet = item
    assert paper.id == "2401.00001"
    assert score == pytest.approx(sum(parts.values()))
    assert snippet == "Attention scores below a threshold are dropped before the softmax."
    assert [snippet[start:end] for start, end in item.marks] == ["threshold", "softmax"]
    assert item.why.startswith("words: threshold, softmax")
    assert "nearest sentence: Attention scores below" in item.why
    assert "\n" not in item.why


def test_the_order_is_that_of_reciprocal_rank_fusion(search: Search) -> None:
    lists = search.lists("songs of finches")
    for item in search.query("songs of finches").items:
        key = item.paper.key
        expected = {
            name: search.weights[name] / (60 + keys.index(key) + 1) for name, keys in lists.items() if key in keys
        }
        assert item.parts == pytest.approx(expected)
        assert item.score == pytest.approx(sum(expected.values()))


def test_a_paper_without_any_relation_is_not_found(search: Search) -> None:
    assert search.query("qqxxzzyy").total == 0
    assert "2404.00004" not in ids(search.query("birdsong").items)


FILTERS: list[tuple[dict[str, Any], set[str]]] = [
    ({"since": date(2024, 3, 1)}, {"2403.00003", "2404.00004"}),
    ({"until": date(2024, 1, 10)}, {"2401.00001"}),
    ({"since": date(2024, 1, 11), "until": date(2024, 3, 11)}, {"2402.00002", "2403.00003"}),
    ({"area": "kan"}, {"2404.00004"}),
    ({"area": "nowhere"}, set()),
    ({"author": "doe"}, {"2401.00001", "2403.00003"}),
    ({"author": "Jane Doe"}, {"2401.00001"}),
    ({"author": "muller"}, {"2401.00001"}),
    ({"author": "MÜLLER jörg"}, {"2401.00001"}),
    ({"author": "Jane Müller"}, set()),
    ({"author": "finch"}, set()),
    ({"author": "…"}, set()),
    ({"code": True}, {"2401.00001"}),
    ({"code": False}, {"2402.00002", "2403.00003", "2404.00004"}),
    ({"code": None, "area": None}, {"2401.00001", "2402.00002", "2403.00003", "2404.00004"}),
    ({"code": True, "area": "kan"}, set()),
]


def test_filters_hold_for_every_list(search: Search) -> None:
    for filters, wanted in FILTERS:
        # words of all four, a slip of the finger, and so all three lists
        found = search.query("attention songs finches edges networks weihgts", filters)
        assert set(ids(found.items)) == wanted, filters
        assert found.total == len(wanted)


@pytest.mark.parametrize(
    ("filters", "error", "said"),
    [
        ({"colour": "red"}, ValueError, "filters: got 'colour'"),
        ({"since": "2024-01-01"}, TypeError, "since: got str"),
        ({"until": NOON}, TypeError, "until: got datetime"),
        ({"since": date(2024, 2, 1), "until": date(2024, 1, 1)}, ValueError, "since: got 2024-02-01"),
        ({"code": 1}, TypeError, "code: got int"),
        ({"area": 3}, TypeError, "area: got int"),
        ({"verdict": "great"}, ValueError, "verdict: got 'great'"),
    ],
)
def test_what_is_no_filter_is_refused(
    catalogue: Search, filters: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        catalogue.query("networks", filters)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"limit": 0}, ValueError, "limit: got 0"),
        ({"limit": True}, TypeError, "limit: got bool"),
        ({"offset": -1}, ValueError, "offset: got -1"),
        ({"offset": 1.5}, TypeError, "offset: got float"),
        ({"text": "x" * 1001}, ValueError, "text: got 1001 characters, wanted at most 1000"),
        ({"text": "x" * 100_000}, ValueError, "text: got 100000 characters"),
        ({"text": b"x"}, TypeError, "text: got bytes"),
    ],
)
def test_what_is_no_query_is_refused(
    catalogue: Search, arguments: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        catalogue.query(**{"text": "networks", **arguments})


@pytest.mark.parametrize("text", ["", "  \n\t", "?!", '""', "*", "🙂", "\x00", "\ud800", "_"])
def test_a_query_without_words_has_no_answer(catalogue: Search, text: str) -> None:
    found = catalogue.query(text)
    assert (found.items, found.total) == ([], 0)


HOSTILE = [
    '"', "'", "a", "k", "networks AND", "NOT networks", "NEAR(sparse networks, 2)", "title:sparse", "^sparse",
    "sparse*", "*sparse", "sparse -networks", "(sparse", "{title} : sparse", "a:b:c",
    "networks\x00sparse", "'; DROP", "'s", "the", "ﬁnches",
    "networks 🙂", "日本語 networks", "深層学習", "networks & !sparse | <-> :*", "\\", "sparse\\:*",
    "networks " * 100, " ".join(f"w{i}" for i in range(180)), "ԱԲԳ ΑΒΓ", "naïve Müller", "١٢٣",
]  # fmt: skip


def test_syntax_of_the_database_is_only_text(search: Search) -> None:
    for text in HOSTILE:
        found = search.query(text)
        assert len(found.items) == found.total <= len(PAPERS)
        if "networks" in text.split():
            assert {"2401.00001", "2403.00003"} <= set(ids(found.items)), text


@given(st.text(max_size=200))
def test_any_text_is_a_query(catalogue: Search, text: str) -> None:
    found = catalogue.query(text, limit=5)
    assert len(found.items) <= 5 <= found.total or len(found.items) == found.total
    for item in found.items:
        assert all(0 <= start < end <= len(item.snippet) for start, end in item.marks)
        assert "\n" not in item.why


def test_pages_are_parts_of_one_order(catalogue: Search) -> None:
    whole = catalogue.query("sparse activation of neurons in video", limit=100)
    assert whole.total == len(whole.items) > 20
    pages = [catalogue.query("sparse activation of neurons in video", limit=7, offset=o) for o in range(0, 50, 7)]
    assert [i.paper.key for page in pages for i in page.items] == [i.paper.key for i in whole.items]
    assert {page.total for page in pages} == {whole.total}
    assert catalogue.query("sparse", offset=1000).items == []


def test_equal_papers_stand_by_id(store_url: str) -> None:
    with Store(store_url) as store:
        numbers = [5, 3, 9, 1, 7]
        store.add([PaperRecord("One Title for All", id=f"2405.0000{n}") for n in numbers], at=NOON)
        found = Search(store).query("title for all")
        assert ids(found.items) == [f"2405.0000{n}" for n in sorted(numbers)]


def test_new_papers_are_found_at_once_and_changed_ones_as_they_are(store: Store, search: Search) -> None:
    assert search.query("glaciers").total == 0
    before = search.model
    store.add([PaperRecord("Glaciers and Networks", id="2405.00005", abstract="Ice flows.")], at=NOON)
    found = search.query("glaciers")
    assert ids(found.items)[0] == "2405.00005"
    assert search.model != before  # five papers are a fifth more than four
    # a change that is said to be of an earlier time
    earlier = datetime(2020, 1, 1, tzinfo=UTC)
    store.add(
        [PaperRecord("Volcanoes and Networks", id="2405.00005v2", abstract="Lava flows.", source="arxiv")], earlier
    )
    assert all("words" not in item.parts for item in search.query("glaciers").items)
    assert ids(search.query("volcanoes").items)[0] == "2405.00005"
    assert "meaning" in search.query("lava networks").items[0].parts


def test_votes_change_nothing_that_is_kept(store: Store, search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    search.query("networks")
    store.vote("2401.00001", "somebody", NOON)
    monkeypatch.setattr(type(search._index), "_renewed", lambda *_: pytest.fail("was made anew"))
    assert search.query("networks").total > 0


def test_counts_of_the_source_change_nothing_that_is_kept(store: Store, search: Search) -> None:
    search.query("networks")
    tick = search._index.tick
    store.add([PaperRecord("A Study of Birdsong", id="2402.00002", upvotes=12, comments=3, source="daily")], at=NOON)
    search.query("networks")
    assert search._index.tick == tick
    store.add([PaperRecord("A Study of Birdsong", id="2402.00002", code="https://example.org/birds")], at=NOON)
    assert ids(search.query("birdsong", {"code": True}).items) == ["2402.00002"]
    assert search._index.tick > tick


def test_accents_and_punctuation_are_no_part_of_a_word(store: Store, search: Search) -> None:
    store.add([PaperRecord("Gödel/Nöther at 2.5D: e.g. U-Net", id="2405.00006")], at=NOON)
    for text in ("godel", "nöther", "Noether nother", "5d", "unet"):
        assert ids(search.query(text).items)[0] == "2405.00006", text
        assert {"words", "typos"} & set(search.query(text).items[0].parts)


class Told:
    """What is known of three cards' claims."""

    def generation(self) -> str:
        return "1"

    def report(self) -> dict[str, Any]:
        counts = {"ash": {"holds": 2, "fails": 1}, "crrelu": {"not run": 3}, "sdm": {"inconclusive": 1}}
        return {"papers": [{"id": card, "counts": count} for card, count in counts.items()]}


def test_the_filter_by_verdict(catalogue: Search) -> None:
    search = Search(catalogue.store, verdicts=cast(Verdicts, Told()))
    for status, wanted in {
        "holds": {"ash"}, "fails": {"ash"}, "inconclusive": {"sdm"}, "not run": {"crrelu"}, "any": {"ash", "sdm"},
        "error": set(),
    }.items():  # fmt: skip
        found = search.query("ASH CRReLU similarity distance magnitude activations", {"verdict": status})
        assert {item.paper.card for item in found.items} == wanted
    assert Search(catalogue.store).query("ASH", {"verdict": "any"}).total == 0  # nothing was measured


def test_a_deleted_paper_is_gone(store: Store, search: Search) -> None:
    from sqlalchemy import delete

    from paperworks.feed.tables import papers

    assert search.query("birdsong").total > 0
    store.database.write(lambda connection: connection.execute(delete(papers).where(papers.c.key == "2402.00002")))
    assert "2402.00002" not in ids(search.query("birdsong finches").items)
    assert len(search._index.current().vectors) == 3


def test_another_process_reads_the_fit(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(store_url) as store:
        store.add(PAPERS, at=NOON)
        first = Search(store)
        wanted = first.query("songs of finches")
        model = first.model
    monkeypatch.setattr(LSA, "fit", lambda *_: pytest.fail("was fitted again"))
    with Store(store_url) as store:
        second = Search(store)
        assert second.model == model
        assert second.query("songs of finches").items == wanted.items


def test_a_store_that_cannot_be_written_is_searched_all_the_same(
    store: Store, search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StoreError("read only")

    monkeypatch.setattr(store.database, "write", refuse)
    assert ids(search.query("songs finches").items)[0] in ("2402.00002", "2403.00003")


def test_threads_share_a_search_while_papers_come(store: Store, search: Search) -> None:
    failures: list[BaseException] = []
    done = threading.Event()

    def ask() -> None:
        try:
            while not done.is_set():
                assert "2402.00002" in ids(search.query("birdsong").items)
                assert len(search.similar("2402.00002")) >= 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(10, 22):
        store.add([PaperRecord(f"Paper number{number} on birdsong", id=f"2405.000{number}")], at=NOON)
        assert f"2405.000{number}" in ids(search.query(f"number{number}").items)
    done.set()
    for thread in threads:
        thread.join()
    assert failures == []


def test_similar_papers_leave_the_paper_out(search: Search) -> None:
    near = search.similar("2402.00002")
    assert ids(near)[0] == "2403.00003"
    assert "2402.00002" not in ids(near)
    assert near[0].parts == {"meaning": near[0].score}
    assert 0 < near[0].score <= 1
    assert near[0].why.startswith("nearest sentence: Spiking neurons")
    assert len(search.similar("2402.00002", limit=1)) == 1
    with pytest.raises(ValueError, match=r"id: got '9999.00001'"):
        search.similar("9999.00001")
    with pytest.raises(ValueError, match="limit: got 0"):
        search.similar("2402.00002", limit=0)


def test_what_repeats_a_nearer_one_comes_later() -> None:
    """0.7 likeness - 0.3 largest likeness to one chosen: 0.7 * 0.8 - 0.3 < 0.7 * 0.5."""
    vectors = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)
    assert _diverse({7: 0.9, 8: 0.8, 9: 0.5}, vectors, 3) == [7, 9, 8]
    assert _diverse({7: 0.9, 8: 0.8, 9: 0.3}, vectors, 2) == [7, 8]


class Counting:
    """An embedder of three dimensions that counts what it is asked for."""

    name = "counting-1"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def embed(self, texts: list[str]) -> np.ndarray:
        self.asked += texts
        return np.array([[1 + text.count("a"), 1 + text.count("e"), 1 + text.count("o")] for text in texts], np.float32)


def test_vectors_of_a_model_are_kept_and_only_new_texts_are_embedded(store: Store) -> None:
    model = Counting()
    wanted = Search(store, model).query("songs")
    assert wanted.items[0].parts["meaning"] > 0
    again = Counting()
    search = Search(store, again)
    assert search.query("songs").items == wanted.items
    assert not any("Birdsong" in text and "\n" in text for text in again.asked)
    store.add([PaperRecord("New Paper", id="2405.00005", abstract="Of songs.")], at=NOON)
    search.query("songs")
    assert [text.splitlines()[0] for text in again.asked if "New Paper" in text] == ["New Paper. New Paper. Of songs."]


def test_an_embedder_that_gives_no_vectors_is_refused(store: Store) -> None:
    class Wrong:
        name = "wrong"

        def embed(self, texts: list[str]) -> np.ndarray:
            return np.full((len(texts), 2), np.nan)

    with pytest.raises(ValueError, match="embedder: wrong gave"):
        Search(store, Wrong()).query("songs")


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"colour": 1.0}, "weights: got 'colour'"),
        ({"words": -1.0}, "weights: got -1.0 for words"),
        ({"words": float("nan")}, "weights: got nan"),
        ({"words": 0.0}, "weights: got none above 0"),
        ({}, "weights: got none above 0"),
    ],
)
def test_what_is_no_weight_is_refused(catalogue: Search, weights: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Search(catalogue.store, weights=weights)


def test_a_list_without_weight_takes_no_part(store: Store) -> None:
    for name in ("words", "typos", "meaning"):
        for item in Search(store, weights={name: 2.0}).query("birdsogn finches").items:
            assert set(item.parts) == {name}


def test_an_empty_catalogue_has_no_answers(store_url: str) -> None:
    with Store(store_url) as store:
        search = Search(store)
        assert search.query("anything at all").total == 0
        store.add(PAPERS[:1], at=NOON)
        assert ids(search.query("attention").items) == ["2401.00001"]
        assert search.similar("2401.00001") == []
