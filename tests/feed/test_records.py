"""Ids, titles and the merging of two accounts of one paper."""

from __future__ import annotations

from dataclasses import asdict
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paperworks.feed.records import (
    PaperRecord,
    arxiv_id,
    from_mapping,
    merge,
    normalised_title,
    plain_title,
    title_key,
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("2408.05421", ("2408.05421", None)),
        ("2408.05421v2", ("2408.05421", 2)),
        ("arXiv:0704.0001v12", ("0704.0001", 12)),
        ("http://arxiv.org/abs/2408.05421v2", ("2408.05421", 2)),
        ("https://export.arxiv.org/pdf/2408.05421.pdf", ("2408.05421", None)),
        ("cs/0501001", ("cs/0501001", None)),
        ("https://arxiv.org/abs/math.GT/0309136v1", ("math.GT/0309136", 1)),
        ("oai:arXiv.org:2408.05421", ("2408.05421", None)),
    ],
)
def test_ids_lose_their_version(text: str, found: tuple[str, int | None]) -> None:
    assert arxiv_id(text) == found


FULL_WIDTH = "2408.05421".translate({code: code + 0xFEE0 for code in range(ord("0"), ord("9") + 1)})


@pytest.mark.parametrize(
    "text", ["", "2408", "2408.05421v", "../2408.05421", "http://evil.example/abs/2408.05421", FULL_WIDTH]
)
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="arXiv id: got"):
        arxiv_id(text)


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("A  Title\n over lines", "A Title over lines"),
        ("Up to $2{\\times}$ Faster", "Up to 2× Faster"),
        ("2{times} at 100\\%~Load", "2× at 100% Load"),
        ("\\textbf{MoTE}: $\\alpha$-Mixing in {BERT}", "MoTE: α-Mixing in BERT"),
        ("A \\& B_1", "A & B_1"),
        ("Costs \\$5", "Costs $5"),
        ("Costs $5", "Costs $5"),
        ("A $5 to $6 thing, $x^2$ and $O(n \\log n)$", "A $5 to $6 thing, x^2 and O(n \\log n)"),
        ("\\$5 and $x$", "$5 and x"),
    ],
)
def test_titles_are_spelled_out(raw: str, plain: str) -> None:
    assert plain_title(raw) == plain


def test_spellings_of_one_title_are_equal() -> None:
    a, b = "Déjà Vu:  KANs for $2\\times$ Speed", "deja vu - kans for 2× speed"
    assert normalised_title(a) == normalised_title(b)
    assert title_key(a) == title_key(b)
    assert title_key(a) != title_key("Another")


@given(st.text(min_size=1, max_size=60))
def test_any_text_is_a_title_or_refused(text: str) -> None:
    if normalised_title(text):
        assert PaperRecord(text).key == title_key(text)
    else:
        with pytest.raises(ValueError, match="title: got"):
            PaperRecord(text)


def test_counts_and_ids_of_a_record_are_checked() -> None:
    record = PaperRecord("T", id="2408.05421v3", authors=["A", "B"], upvotes=0)
    assert (record.id, record.version, record.n_authors, record.upvotes) == ("2408.05421", 3, 2, 0)
    assert record.key == "2408.05421"
    for bad in ({"upvotes": -1}, {"comments": True}, {"id": "nothing"}, {"upvotes": 2**31}, {"version": 10**5000}):
        with pytest.raises(ValueError):
            PaperRecord("T", **bad)  # type: ignore[arg-type]


def test_arxiv_is_believed_about_the_paper_and_the_daily_list_about_the_feed() -> None:
    daily = PaperRecord(
        "T x", id="2408.05421", abstract="short", first_seen=date(2024, 8, 12), upvotes=0, source="daily"
    )
    arxiv = PaperRecord("T of X", id="2408.05421v2", abstract="long", authors=["A"], source="arxiv")
    for both in (merge(daily, arxiv), merge(arxiv, daily)):
        assert (both.title, both.abstract, both.authors, both.version) == ("T of X", "long", ["A"], 2)
        assert (both.first_seen, both.upvotes) == (date(2024, 8, 12), 0)
        assert both.provenance["abstract"] == "arxiv"
        assert both.provenance["upvotes"] == "daily"
    later = merge(merge(daily, arxiv), PaperRecord("T x", id="2408.05421", upvotes=7, source="daily"))
    assert (later.upvotes, later.title) == (7, "T of X")


def test_an_older_version_replaces_nothing_of_a_later_one() -> None:
    second = PaperRecord("New title", id="2408.05421v2", source="arxiv")
    first = PaperRecord("Old title", id="2408.05421v1", abstract="from v1", source="arxiv")
    for both in (merge(second, first), merge(first, second)):
        assert (both.title, both.version, both.abstract) == ("New title", 2, "from v1")


def test_merging_is_idempotent_and_takes_the_id_of_either() -> None:
    a = PaperRecord("T", abstract="x", source="page", n_authors=3)
    b = PaperRecord("T", id="2408.05421", source="daily")
    both = merge(a, b)
    assert both.id == "2408.05421"
    assert merge(both, b) == both == merge(both, a)
    with pytest.raises(ValueError, match="two accounts of one paper"):
        merge(b, PaperRecord("T", id="2408.05422"))


def test_a_record_goes_through_a_mapping() -> None:
    record = PaperRecord("T", id="2408.05421v2", published=date(2024, 8, 9), categories=["cs.LG"], source="arxiv")
    values = asdict(record) | {"published": "2024-08-09"}
    assert from_mapping(values) == record
