"""The text of a Daily Papers page, put together from cards in the shapes that saved pages have."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from paperworks.feed.page import parse_page
from paperworks.lab.nouns import Paper

__all__ = ["PAGE_DATE", "PageCheck", "carried_papers", "check_page", "page_html", "page_text"]

OWN_CARD = "daily-papers"
PAGE_DATE = date(2026, 4, 24)
_BANNER = (
    "Daily Papers", "by AK and the research community", f"{PAGE_DATE:%b} {PAGE_DATE.day}",
    "Get trending papers in your email inbox!", "Subscribe",
)  # fmt: skip
WITHOUT_META = (8, 29)
"""Places of the two entries that end with their abstract."""


def carried_papers() -> list[Paper]:
    """The 45 papers of the catalogue: every card but that of the page itself."""
    from paperworks.lab import registry

    return [card for card in registry.catalogue() if card.id != OWN_CARD]


def _authors(card: Paper) -> str:
    return f"{card.n_authors} author{'s' if card.n_authors > 1 else ''}"


def _day(day: date) -> str:
    """As the page writes it: the year is left out where it is the page's."""
    return f"{day:%b} {day.day}" + ("" if day.year == PAGE_DATE.year else f", {day.year}")


def _comments(place: int) -> int | None:
    """Most entries have no comments: the page then shows no number."""
    return place if place % 5 == 2 else None


def _meta(card: Paper, place: int) -> list[str]:
    comments = _comments(place)
    return [_authors(card), "·", _day(card.date), *([] if comments is None else [str(comments)])]


def page_text(cards: Sequence[Paper]) -> str:
    """The page as a browser copies it; the line under an abstract comes as one line, a bullet, or several lines."""
    blocks = [*_BANNER]
    for place, card in enumerate(cards):
        blocks += [card.title, " ".join(card.summary.split())]
        if place not in WITHOUT_META:
            join = ("- {}".format, str, str)[place % 3]
            blocks.append(join((" ", "\n", "\n\n")[place % 3].join(_meta(card, place))))
    return "\n\n".join(blocks) + "\n"


def page_html(cards: Sequence[Paper]) -> str:
    """The page as a browser saves it."""
    banner = "".join(f"<p>{html.escape(line)}</p>" for line in _BANNER)
    articles = []
    for place, card in enumerate(cards):
        meta = "" if place in WITHOUT_META else "".join(f"<li>{html.escape(part)}</li>" for part in _meta(card, place))
        title, abstract = html.escape(card.title), html.escape(" ".join(card.summary.split()))
        articles.append(f"<article><h3><a href='#'>{title}</a></h3><p>{abstract}</p><ul>{meta}</ul></article>")
    return f"<html><head><style>p{{}}</style></head><body><header>{banner}</header>{''.join(articles)}</body></html>"


@dataclass(frozen=True)
class PageCheck:
    """What a parser made of a page: entries, and how many titles, abstracts and fields are not the cards'."""

    entries: int
    wrong_titles: int
    wrong_abstracts: int
    wrong_fields: int
    without_meta: int


def check_page(text: str, cards: Sequence[Paper]) -> PageCheck:
    """Parse `text` and hold it against `cards` in their order; an entry too few or too many counts as wrong."""
    records = parse_page(text, PAGE_DATE)
    titles = abstracts = fields = abs(len(records) - len(cards))
    for place, (card, record) in enumerate(zip(cards, records, strict=False)):
        titles += record.title != card.title
        abstracts += record.abstract != " ".join(card.summary.split())
        wanted: tuple[object, ...] = (card.n_authors, card.date, _comments(place))
        if place in WITHOUT_META:
            wanted = (None, None, None)
        fields += sum(
            a != b for a, b in zip((record.n_authors, record.published, record.comments), wanted, strict=True)
        )
    bare = sum(record.n_authors is None and record.published is None for record in records)
    return PageCheck(len(records), titles, abstracts, fields, bare)
