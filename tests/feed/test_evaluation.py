"""Measures against values worked out by hand, and the search's own numbers on the judged queries."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paperworks.feed import PaperRecord, Search, Store
from paperworks.feed.evaluation import (
    MEASURES,
    choose_weights,
    judged,
    measures,
    ndcg,
    paired_bootstrap,
    recall,
    reciprocal_rank,
)
from paperworks.feed.fusion import WEIGHTS, fuse
from paperworks.lab import registry

KINDS = {"name", "words", "paraphrase", "typo"}


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Search]:
    with Store(tmp_path_factory.mktemp("catalogue") / "store.sqlite") as opened:
        opened.add_cards(registry.catalogue())
        yield Search(opened)


def test_ndcg_is_gain_by_discount_over_the_best() -> None:
    best = 7 + 1 / math.log2(3)
    assert ndcg(["x", "b", "a"], {"a": 3, "b": 1}) == pytest.approx((1 / math.log2(3) + 7 / 2) / best)
    assert ndcg(["a", "b"], {"a": 3, "b": 1}) == 1
    assert ndcg(["x"] * 10 + ["a"], {"a": 3}) == 0  # beyond the first ten
    assert ndcg([], {"a": 3}) == 0
    assert ndcg(["a"], {}) == 0


def test_reciprocal_rank_and_recall() -> None:
    grades = {"a": 3, "b": 1, "c": 0}
    assert reciprocal_rank(["c", "x", "b", "a"], grades) == pytest.approx(1 / 3)
    assert reciprocal_rank(["c", "x"], grades) == 0
    assert recall(["c", "x", "b", "a"], grades, 3) == 0.5
    assert recall(["a", "b"], grades, 5) == 1
    assert recall(["a"], {}, 5) == 0


@given(st.permutations(list("abcdefgh")), st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 3)))
def test_measures_lie_between_0_and_1(ranked: list[str], grades: dict[str, int]) -> None:
    found = measures(ranked, grades)
    assert set(found) == set(MEASURES)
    assert all(0 <= value <= 1 + 1e-12 for value in found.values())
    assert found["recall@5"] <= found["recall@20"]


def test_the_bootstrap_tells_a_difference_from_none() -> None:
    better = paired_bootstrap([0.9, 0.8, 0.95, 0.85] * 10, [0.5, 0.6, 0.55, 0.45] * 10)
    assert better["difference"] == pytest.approx(0.35)
    assert 0.2 < better["low"] < 0.35 < better["high"]
    assert better["p"] == 0
    same = paired_bootstrap([0.5, 0.6, 0.7], [0.5, 0.6, 0.7])
    assert same == {"difference": 0, "low": 0, "high": 0, "p": 1}
    with pytest.raises(ValueError, match="a, b: got 2 and 1"):
        paired_bootstrap([1, 2], [1])


def test_the_judged_queries_are_all_answerable(search: Search) -> None:
    asked = judged()
    assert {one["kind"] for one in asked} == KINDS
    assert len(judged("tune")) + len(judged("test")) == len(asked) >= 40
    with pytest.raises(ValueError, match="split: got 'both'"):
        judged("both")


def test_the_default_beats_each_of_its_lists_on_queries_it_was_not_tuned_on(search: Search) -> None:
    told = search.evaluate(judged("test"))
    assert told["queries"] == len(judged("test"))
    assert set(told["by_kind"]) == KINDS
    assert set(told["lists"]) == {"words", "typos", "meaning"}
    assert told["weights"] == dict(WEIGHTS)
    for alone in told["lists"].values():
        assert told["ndcg@10"] > alone["ndcg@10"]
        assert set(alone["by_kind"]) == KINDS
    difference = told["default_vs_words"]
    assert difference["difference"] == pytest.approx(told["ndcg@10"] - told["lists"]["words"]["ndcg@10"])
    assert difference["low"] > 0
    assert told["by_kind"]["typo"]["ndcg@10"] > told["lists"]["words"]["by_kind"]["typo"]["ndcg@10"]


def test_no_weights_are_much_better_on_the_tuning_half(search: Search) -> None:
    """The catalogue grows by a card now and then, and the best weights may move a little with it."""
    chosen, reached = choose_weights(search, judged("tune"))
    assert chosen["words"] == 1
    default = search.evaluate(judged("tune"))["ndcg@10"]
    assert default <= reached + 1e-9
    assert reached < default + 0.005


def test_relevant_papers_may_be_named_by_id_card_or_title(search: Search) -> None:
    first = search.query("birdsong gated activation").items[0].paper
    assert first.id is not None
    assert first.card is not None
    for name in (first.id, f"{first.id}v3", first.card, first.title, first.title.upper()):
        told = search.evaluate([{"query": "birdsong gated activation", "relevant": {name: 2}}])
        assert told["ndcg@10"] == told["mrr"] == told["recall@5"] == 1
        assert told["by_kind"][""]["mrr"] == 1


def test_what_cannot_be_judged_is_refused(search: Search) -> None:
    with pytest.raises(ValueError, match="judgements: got none"):
        search.evaluate([])
    with pytest.raises(ValueError, match="relevant: got 'No Such Paper', which is not in the catalogue"):
        search.evaluate([{"query": "x", "relevant": {"No Such Paper": 1}}])
    with pytest.raises(ValueError, match="relevant: got the grade -1"):
        search.evaluate([{"query": "x", "relevant": {"ash": -1}}])


def test_words_on_postgresql_are_as_good(store_url: str) -> None:
    """Its ranks are others than BM25; the judged queries of names and words are answered all the same."""
    with Store(store_url) as store:
        store.add_cards(registry.catalogue())
        told = Search(store).evaluate(judged("test"))
    for kind in ("name", "words"):
        assert told["lists"]["words"]["by_kind"][kind]["ndcg@10"] > 0.9
    assert told["ndcg@10"] > told["lists"]["words"]["ndcg@10"]


def test_fusion_adds_what_each_list_gives_and_breaks_ties_by_id() -> None:
    lists = {"words": ["a", "b"], "typos": [], "meaning": ["b", "a", "c"]}
    found = fuse(lists, {"words": 1.0, "typos": 2.0, "meaning": 1.0})
    assert [key for key, _, _ in found] == ["a", "b", "c"]
    assert found[0][1] == found[1][1] == pytest.approx(1 / 61 + 1 / 62)
    assert found[0][2] == {"words": 1 / 61, "meaning": 1 / 62}
    assert found[2][2] == {"meaning": 1 / 63}


def test_a_record_without_id_can_be_judged(tmp_path_factory: pytest.TempPathFactory) -> None:
    with Store(tmp_path_factory.mktemp("one") / "store.sqlite") as store:
        store.add(
            [PaperRecord("An Unnumbered Note", abstract="On nothing."), PaperRecord("Another", abstract="On it.")]
        )
        told = Search(store).evaluate([{"query": "unnumbered", "relevant": {"An unnumbered note": 1}}])
        assert told["mrr"] == 1
