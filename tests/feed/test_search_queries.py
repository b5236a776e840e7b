"""What a search is asked: filters, what is refused, and that hostile text is only text."""

from __future__ import annotations

from datetime import date
from typing import Any, cast

import pytest
from feed.search_world import NOON, PAPERS, catalogue, ids, search, store
from hypothesis import given
from hypothesis import strategies as st

from paperworks.feed import Search
from paperworks.feed.verdicts import Verdicts

__all__ = ["catalogue", "search", "store"]


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
