"""Search over a store on both databases: what is found, in what order, and why."""

from __future__ import annotations

import numpy as np
import pytest
from feed.search_world import NOON, PAPERS, catalogue, ids, search, store

from paperworks.feed import PaperRecord, Search, Store
from paperworks.feed.search import _diverse

__all__ = ["catalogue", "search", "store"]


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
    """0.85 likeness - 0.15 largest likeness to one chosen: 0.85 * 0.8 - 0.15 = 0.53 lies between 0.85 * 0.7 and 0.6."""
    vectors = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)
    assert _diverse({7: 0.9, 8: 0.8, 9: 0.7}, vectors, 3) == [7, 9, 8]
    assert _diverse({7: 0.9, 8: 0.8, 9: 0.6}, vectors, 2) == [7, 8]


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
