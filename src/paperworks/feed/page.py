"""The text of a saved Daily Papers page, as a browser copies it: title, abstract, then authors, date and comments."""

from __future__ import annotations

import contextlib
import re
from datetime import date, datetime
from html.parser import HTMLParser
from typing import Any

from paperworks.feed.records import PaperRecord, normalised_title, plain_title
from paperworks.feed.skipped import Skipped, leaving_out

__all__ = ["parse_page"]

_BULLET = r"[\s·•∙⋅*|,\-–—]*"
_AUTHORS = re.compile(rf"{_BULLET}(\d{{1,9}})\s+authors?\b", re.IGNORECASE)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = r"(jan|feb|mar|apr|may|jun|jul|aug|sept?|oct|nov|dec)[a-z]*\.?"
_DATES = (
    re.compile(
        rf"\b{_MONTH}\s+(?P<day>\d{{1,2}})(?!\d)(?:st|nd|rd|th)?(?:\s*,?\s*(?P<year>\d{{4}})\b)?", re.IGNORECASE
    ),
    re.compile(rf"\b(?P<day>\d{{1,2}})\s+{_MONTH}(?:\s*,?\s*(?P<year>\d{{4}})\b)?", re.IGNORECASE),
)
_ISO = re.compile(r"\b(\d{4})-(\d{2})-(\d{2})\b")
_BANNER = re.compile(
    r"daily papers|by ak and the research community|get trending papers.*|subscribe|trending papers?|"
    r"search (?:any |all )?papers?(?: with ai)?|"
    r"hugging face|new|papers|models|datasets|spaces|log ?in|sign ?up|previous|next|submitted by.*|upvote\s*\d*|"
    r"\W*\d{0,4}\W*",
    re.IGNORECASE,
)


def _dated(text: str) -> tuple[int, int, tuple[int | None, int, int]] | None:
    """Where the first date in `text` stands, and its year, if it has one, month and day. It may not exist."""
    if match := _ISO.search(text):
        year, month, day = (int(part) for part in match.groups())
        return match.start(), match.end(), (year, month, day)
    for pattern in _DATES:
        if match := pattern.search(text):
            month = 1 + _MONTHS.index(match[1 if pattern is _DATES[0] else 2][:3].lower())
            return match.start(), match.end(), (int(match["year"]) if match["year"] else None, month, int(match["day"]))
    return None


def _is_meta(text: str) -> bool:
    """Whether a block of lines holds authors, date or comments and nothing else."""
    rest = _AUTHORS.sub(" ", text, count=1)
    found = _dated(rest)
    if found is not None:
        rest = f"{rest[: found[0]]} {rest[found[1] :]}"
    changed = found is not None or _AUTHORS.search(text) is not None
    return changed and re.fullmatch(r"\W*(?:\d{1,9}\W*(?:comments?)?\W*)?", rest, re.IGNORECASE) is not None


LONGEST_META = 200
"""Characters of a meta line; what is longer is text."""


def _meta(text: str, page_date: date) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if match := _AUTHORS.search(text):
        values["n_authors"] = int(match[1])
        text = text[: match.start()] + " " + text[match.end() :]
    if found := _dated(text):
        values["published"] = _day(text[found[0] : found[1]], *found[2], page_date)
        text = text[found[1] :]
    if match := re.search(r"(\d{1,9})", text):
        values["comments"] = int(match[1])
    return values


def _day(said: str, year: int | None, month: int, day: int, page_date: date) -> date:
    """The day; without a year the last one of that name up to the page's. Raises ValueError where there is none."""
    for one in [year] if year is not None else range(page_date.year, page_date.year - 9, -1):
        with contextlib.suppress(ValueError):
            found = date(one, month, day)
            if year is not None or found <= page_date:
                return found
    raise ValueError(f"date: got {said!r}, which is no day")


def _blocks(text: str) -> list[tuple[str, bool]]:
    """(text, is it the meta line) of the page's blocks; the banner is left out."""
    lines = [line.strip().lstrip("\ufeff") for line in text.splitlines()]
    blocks: list[tuple[str, bool]] = []
    open_block = False
    meta: list[str] = []
    for line in [*lines, ""]:
        # The meta line may come as one line or as several: "3 authors", "·", "Apr 24", "2".
        piece = " · ".join([*meta, line])
        if line and len(piece) <= LONGEST_META and _is_meta(piece):
            meta.append(line)
            open_block = False
        elif meta and (not line or re.fullmatch(r"\W+", line)):
            continue
        else:
            if meta:
                blocks.append((" · ".join(meta), True))
                meta = []
            if not line or re.fullmatch(r"\W+", line):
                open_block = False
            elif not _BANNER.fullmatch(line):
                if open_block:
                    blocks[-1] = (f"{blocks[-1][0]} {line}", False)
                else:
                    blocks.append((line, False))
                open_block = True
    return [*blocks, (" · ".join(meta), True)] if meta else blocks


class _Text(HTMLParser):
    """The text of a page, one line a block element, without scripts and styles."""

    BLOCKS = ("p", "div", "li", "ul", "ol", "h1", "h2", "h3", "h4", "article", "section", "header", "time", "br")

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._hidden += tag in ("script", "style", "head")
        if tag in self.BLOCKS:
            self.parts.append("\n\n")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style", "head") and self._hidden > 0
        if tag in self.BLOCKS:
            self.parts.append("\n\n")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(" ".join(data.split("\n")) if data.strip() else " ")


def parse_page(text: str, page_date: date, skipped: list[Skipped] | None = None) -> list[PaperRecord]:
    """The entries of a saved page in its order, from its text or its HTML.

    An entry is a title, a blank line, an abstract, a blank line, and a line of authors, date and comments; the last
    may be missing, the comments may be. A date without a year is of `page_date`'s year, or of the year before where
    that would lie after it. `first_seen` is not set: a page of search results is no day. An entry whose date does not
    exist is left out, and told of in `skipped`.

    Raises:
        TypeError: `text` is no string or `page_date` no date.
        ValueError: no entry was found.
    """
    if not isinstance(text, str):
        raise TypeError(f"text: got {type(text).__name__}, wanted str")
    if isinstance(page_date, datetime) or not isinstance(page_date, date):
        raise TypeError(f"page_date: got {page_date!r}, wanted a date")
    if re.search(r"<(?:html|body|article|div|p)\b", text[:20000], re.IGNORECASE):
        parser = _Text()
        parser.feed(text)
        text = "".join(parser.parts)
    records: list[PaperRecord] = []
    wrong: list[Skipped] = []
    entry: list[str] = []

    def close(meta: str = "") -> None:
        if entry and normalised_title(entry[0]):
            with leaving_out(f"entry {len(records) + len(wrong) + 1} ({entry[0]})", wrong):
                title, abstract = plain_title(entry[0]), "\n\n".join(entry[1:])
                records.append(PaperRecord(title, abstract=abstract, source="page", **_meta(meta, page_date)))
        entry.clear()

    for block, is_meta in _blocks(text):
        if is_meta:
            close(block)
            continue
        if len(entry) >= 2 and _begins_entry(block):
            close()
        entry.append(block)
    close()
    if not records and not wrong:
        raise ValueError("text: got no entry, wanted titles, each with an abstract under it")
    if skipped is not None:
        skipped += wrong
    return records


def _begins_entry(block: str) -> bool:
    """Whether a block after an abstract is a title, not one more paragraph."""
    return len(block) <= 250 and not block.rstrip().endswith((".", ":", ";", ","))
