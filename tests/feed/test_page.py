"""The text of a saved page: entries, meta lines in every shape, dates."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paperworks.feed.page import parse_page
from paperworks.feed.records import normalised_title
from paperworks.feed.skipped import Skipped

PAGE = """Daily Papers
by AK and the research community

Apr 24

Get trending papers in your email inbox!

Subscribe

Learning to Fly: A Study of 2{times} Wings

We study wings. On May 3 they fly, as 12 authors before us saw.

{meta}

Without a Meta Line

This abstract ends the entry.

Third: On Things~and Stuff

It has two paragraphs.

This is the second of them.

• 1 author · Feb 12 · 3
"""

SHAPES = {
    "one line": "- 7 authors · Aug 9, 2024 · 2",
    "lines": "7 authors\n·\nAug 9, 2024\n2",
    "blank lines": "7 authors\n\n·\n\nAugust 9, 2024\n\n2 comments",
    "iso": "7 authors 2024-08-09 2",
    "day first": "7 authors, 9 Aug 2024, 2",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_entries_in_order_with_their_numbers(shape: str) -> None:
    records = parse_page(PAGE.replace("{meta}", SHAPES[shape]), date(2026, 4, 24))
    assert [r.title for r in records] == [
        "Learning to Fly: A Study of 2× Wings", "Without a Meta Line", "Third: On Things and Stuff"
    ]  # fmt: skip
    first, second, third = records
    assert (first.n_authors, first.published, first.comments) == (7, date(2024, 8, 9), 2)
    assert first.abstract.startswith("We study wings. On May 3")
    assert (second.n_authors, second.published, second.comments) == (None, None, None)
    assert second.abstract == "This abstract ends the entry."
    assert (third.n_authors, third.published, third.comments) == (1, date(2026, 2, 12), 3)
    assert third.abstract == "It has two paragraphs.\n\nThis is the second of them."
    assert all(r.source == "page" and r.first_seen is None for r in records)


def test_a_date_without_a_year_is_never_after_the_page() -> None:
    text = "Some Title\n\nAn abstract.\n\n2 authors · Dec 31"
    assert parse_page(text, date(2026, 1, 2))[0].published == date(2025, 12, 31)
    assert parse_page(text, date(2026, 12, 31))[0].published == date(2026, 12, 31)


def test_html_of_a_page_is_read_too() -> None:
    html = """<!doctype html><html><head><title>Papers</title><script>var x = "<p>";</script></head><body>
    <h1>Daily Papers</h1><article><h3><a href="/papers/2408.05421">Learning to
    Fly</a></h3><p>We study wings &amp; more.</p><ul><li>7 authors</li></ul><div>·</div><time>Aug 9, 2024</time>
    </article></body></html>"""
    record = parse_page(html, date(2026, 4, 24))[0]
    assert (record.title, record.abstract) == ("Learning to Fly", "We study wings & more.")
    assert (record.n_authors, record.published) == (7, date(2024, 8, 9))


def test_nothing_to_read_and_wrong_types_are_refused() -> None:
    for text in ("", "Daily Papers\n\nApr 24\n\nSubscribe"):
        with pytest.raises(ValueError, match="got no entry"):
            parse_page(text, date(2026, 4, 24))
    with pytest.raises(TypeError, match="page_date"):
        parse_page("A\n\nB", "2026-04-24")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="text"):
        parse_page(b"A", date(2026, 4, 24))  # type: ignore[arg-type]


@given(st.text(max_size=300))
def test_any_text_after_an_entry_gives_records(text: str) -> None:
    # A text with no entry is refused; with one in front of it nothing may be.
    records = parse_page("A title\n\nAn abstract.\n\n2 authors · Apr 1\n\n" + text, date(2026, 4, 24))
    assert records[0].title == "A title"
    assert all(normalised_title(r.title) for r in records)


def test_an_entry_whose_date_does_not_exist_is_told_of_and_the_others_are_read() -> None:
    text = "\n\n".join(
        ["One", "Words.", "2 authors · Feb 30, 2026", "Two", "Words.", "1 author · Feb 28", "Three", "More.", "Apr 31"]
    )
    skipped: list[Skipped] = []
    assert [record.title for record in parse_page(text, date(2026, 4, 24), skipped)] == ["Two"]
    assert skipped == [
        Skipped("entry 1 (One)", "date: got 'Feb 30, 2026', which is no day"),
        Skipped("entry 3 (Three)", "date: got 'Apr 31', which is no day"),
    ]
    assert parse_page("One\n\nWords.\n\nFeb 30", date(2026, 4, 24)) == []


def test_a_leap_day_without_a_year_is_the_last_one() -> None:
    text = "Some Title\n\nAn abstract.\n\n2 authors · Feb 29"
    assert parse_page(text, date(2026, 1, 2))[0].published == date(2024, 2, 29)


@pytest.mark.parametrize("title", ["Searching for Better Papers", "Search in Research Papers", "Newton's Next Paper"])
def test_a_title_that_sounds_like_the_banner_is_a_title(title: str) -> None:
    text = f"Search any paper with AI\n\nSearch papers\n\n{title}\n\nAn abstract.\n\n2 authors · Apr 1"
    [record] = parse_page(text, date(2026, 4, 24))
    assert (record.title, record.abstract) == (title, "An abstract.")
