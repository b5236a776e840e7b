"""The JSON of the daily list: two dates, counts of zero, unknown and missing keys, hostile values."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paperworks.feed.daily import parse_daily_papers, parse_paper
from paperworks.feed.skipped import Skipped

ITEM: dict[str, Any] = {
    "paper": {
        "id": "2408.05421",
        "authors": [
            {"_id": "1", "name": "Ada L.", "hidden": False},
            {"_id": "2", "name": "Bo M.", "hidden": True, "user": {"fullname": "Bo"}},
        ],
        "publishedAt": "2024-08-09T23:30:00.000Z",
        "title": "Learning to\n Fly",
        "summary": "We study\nwings.",
        "upvotes": 0,
        "githubRepo": "https://github.com/a/b",
        "projectPage": "javascript:alert(1)",
        "ai_keywords": ["wings", "flight"],
        "somethingNew": {"x": 1},
    },
    "publishedAt": "2024-08-12T01:00:00.000+02:00",
    "title": "Learning to  Fly",
    "numComments": 0,
    "submittedBy": {"fullname": "A Reader", "name": "reader"},
    "organization": {"name": "lab", "fullname": "The Lab"},
}


def test_the_paper_has_its_date_and_the_feed_has_its_own() -> None:
    (record,) = parse_daily_papers([ITEM])
    assert (record.published, record.first_seen) == (date(2024, 8, 9), date(2024, 8, 11))
    assert (record.title, record.abstract, record.authors) == (
        "Learning to Fly",
        "We study wings.",
        ["Ada L.", "Bo M."],
    )
    assert (record.upvotes, record.comments, record.rank) == (0, 0, 0), "0 is a count"
    assert record.n_authors == 2, "a hidden author is an author"
    assert (record.code, record.project_page) == ("https://github.com/a/b", None)
    assert (record.submitted_by, record.organization, record.keywords) == ("A Reader", "The Lab", ["wings", "flight"])
    assert record.url == "https://arxiv.org/abs/2408.05421"


def test_lists_come_as_objects_text_and_bytes_and_bad_items_are_left_out() -> None:
    items = [ITEM, {"paper": {"id": "2408.05422"}}, "nonsense", {"title": "Old Search Result", "id": "2401.00001"}]
    for source in (items, json.dumps(items), json.dumps(items).encode(), json.dumps({"papers": items})):
        first, second = parse_daily_papers(source)
        assert first.id == "2408.05421"
        assert (second.title, second.rank, second.upvotes, second.comments) == ("Old Search Result", None, None, None)
    assert parse_daily_papers("[]") == []


def test_one_paper_is_flat_and_has_no_comments() -> None:
    flat = {**ITEM["paper"], "submittedOnDailyAt": "2024-08-12T08:00:00Z", "submittedOnDailyBy": {"name": "reader"}}
    record = parse_paper(json.dumps(flat))
    assert (record.first_seen, record.published) == (date(2024, 8, 12), date(2024, 8, 9))
    assert (record.submitted_by, record.comments, record.source) == ("reader", None, "paper")


def test_errors_are_told_in_the_sources_words() -> None:
    for bad, said in (("{", "no JSON"), ("3", "wanted a list"), ('{"error": "Invalid date"}', "Invalid date")):
        with pytest.raises(ValueError, match=said):
            parse_daily_papers(bad)
    with pytest.raises(ValueError, match="without a title"):
        parse_paper({"id": "2408.05421"})
    with pytest.raises(TypeError, match="source: got int"):
        parse_daily_papers(3)  # type: ignore[arg-type]


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=8), lambda x: st.lists(x, max_size=2))
KEYS = ("id", "authors", "publishedAt", "title", "summary", "upvotes", "numComments", "githubRepo", "ai_keywords")


@given(st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys((*KEYS, "paper"), JSON)), max_size=3))
def test_no_shape_of_an_item_breaks_the_list(items: list[Any]) -> None:
    nested = [{"paper": item, "publishedAt": 3} for item in items]
    assert len(parse_daily_papers([*items, *nested])) <= 2 * len(items)


def test_what_is_left_out_is_told_with_the_reason() -> None:
    bad = [{"paper": {"id": "2408.05422"}}, "nonsense", {"paper": ITEM["paper"] | {"title": "\\text{}"}}, 3, ITEM]
    skipped: list[Skipped] = []
    (record,) = parse_daily_papers(bad, skipped)
    assert (record.id, record.rank) == ("2408.05421", 0)
    assert [one.item for one in skipped] == ["item 1 (2408.05422)", "item 2", "item 3 (2408.05421)", "item 4"]
    assert [one.reason for one in skipped] == [
        "paper: got JSON without a title, wanted a paper",
        "paper: got a JSON str, wanted an object",
        "title: got '', wanted a text with letters or digits",
        "paper: got a JSON int, wanted an object",
    ]


def test_a_count_that_no_database_holds_is_not_known() -> None:
    paper = ITEM["paper"] | {"upvotes": 2**31}
    assert parse_daily_papers([{**ITEM, "paper": paper}])[0].upvotes is None
