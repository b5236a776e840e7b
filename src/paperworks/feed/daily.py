"""The JSON of the Daily Papers page: a day's list, a search, one paper."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

from paperworks.feed.records import PaperRecord, arxiv_id, plain_title
from paperworks.feed.skipped import Skipped, leaving_out

__all__ = ["parse_daily_papers", "parse_paper"]


def parse_daily_papers(source: list[Any] | str | bytes, skipped: list[Skipped] | None = None) -> list[PaperRecord]:
    """The records of a list of daily papers or of search results, in its order.

    Each item has two dates: that of the paper and, outside it, the day on which it entered the feed; they become
    `published` and `first_seen`. Unknown keys are passed over, missing ones are not known, 0 stays 0. `rank` is set
    where the day is known. An item without a title is left out, and told of in `skipped`.

    Raises:
        TypeError: neither a list nor JSON text.
        ValueError: JSON that is malformed or no list; the server's own error text if it sent one.
    """
    items = _decoded(source)
    if isinstance(items, Mapping) and isinstance(items.get("papers"), list):
        items = items["papers"]
    if isinstance(items, Mapping) and "error" in items:
        raise ValueError(f"daily papers: the source says {str(items['error'])[:200]!r}")
    if not isinstance(items, list):
        raise ValueError(f"daily papers: got a JSON {type(items).__name__}, wanted a list")
    records: list[PaperRecord] = []
    for place, item in enumerate(items):
        with leaving_out(_name_of(place, item), skipped):
            record = _record(item, "daily")
            record.rank = len(records) if record.first_seen is not None else None
            records.append(record)
    return records


def _name_of(place: int, item: Any) -> str:
    nested = item.get("paper") if isinstance(item, Mapping) else None
    id = (nested if isinstance(nested, Mapping) else item).get("id") if isinstance(item, Mapping) else None
    return f"item {place + 1} ({id})" if id else f"item {place + 1}"


def parse_paper(source: Mapping[str, Any] | str | bytes) -> PaperRecord:
    """The record of one paper's JSON. Raises ValueError where it is malformed or has no title."""
    item = _decoded(source)
    if isinstance(item, Mapping) and "error" in item:
        raise ValueError(f"paper: the source says {str(item['error'])[:200]!r}")
    return _record(item, "paper")


def _decoded(source: Any) -> Any:
    if not isinstance(source, str | bytes):
        if isinstance(source, list | Mapping):
            return source
        raise TypeError(f"source: got {type(source).__name__}, wanted JSON as text, bytes, list or dict")
    try:
        return json.loads(source)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"source: got text that is no JSON: {error}") from None


def _record(item: Any, source: str) -> PaperRecord:
    if not isinstance(item, Mapping):
        raise ValueError(f"paper: got a JSON {type(item).__name__}, wanted an object")
    nested = item.get("paper")
    wrapped = isinstance(nested, Mapping)
    inner: Mapping[str, Any] = nested if isinstance(nested, Mapping) else item
    title = _text(inner.get("title")) or _text(item.get("title"))
    if title is None:
        raise ValueError("paper: got JSON without a title, wanted a paper")
    id, version = _id(inner.get("id") or item.get("id"))
    entered = (item.get("publishedAt") if wrapped else None) or inner.get("submittedOnDailyAt")
    upvotes = inner.get("upvotes") if inner.get("upvotes") is not None else item.get("upvotes")
    comments = item.get("numComments") if item.get("numComments") is not None else inner.get("numComments")
    names = [_text(a.get("name")) for a in _list(inner.get("authors")) if isinstance(a, Mapping)]
    authors = [name for name in names if name is not None]
    return PaperRecord(
        plain_title(title),
        id=id,
        version=version,
        abstract=_text(inner.get("summary")) or _text(item.get("summary")) or "",
        authors=authors or None,
        published=utc_day(inner.get("publishedAt")),
        first_seen=utc_day(entered),
        upvotes=_count(upvotes),
        comments=_count(comments),
        code=_address(inner.get("githubRepo")),
        project_page=_address(inner.get("projectPage")),
        thumbnail=_address(item.get("thumbnail") or item.get("thumbnailUrl")),
        url=f"https://arxiv.org/abs/{id}" if id else None,
        keywords=[word for word in map(_text, _list(inner.get("ai_keywords"))) if word],
        submitted_by=_name(item.get("submittedBy") or inner.get("submittedOnDailyBy")),
        organization=_name(item.get("organization") or inner.get("organization")),
        source=source,
    )


def _text(value: Any) -> str | None:
    return " ".join(value.split()) if isinstance(value, str) and value.strip() else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else None


def _address(value: Any) -> str | None:
    """An http(s) address; anything else, such as a `javascript:` one, is not known."""
    text = _text(value)
    return text if text and text.startswith(("https://", "http://")) else None


def _name(value: Any) -> str | None:
    if isinstance(value, Mapping):
        return _text(value.get("fullname")) or _text(value.get("name"))
    return _text(value)


def _id(value: Any) -> tuple[str | None, int | None]:
    try:
        return arxiv_id(value) if isinstance(value, str) else (None, None)
    except ValueError:
        return None, None


def utc_day(value: Any) -> date | None:
    """The UTC day of an ISO time; None for anything else."""
    if not isinstance(value, str):
        return None
    try:
        when = datetime.fromisoformat(value)
        return when.astimezone(UTC).date() if when.tzinfo else when.date()
    except (ValueError, OverflowError):  # the first and the last day of the calendar may have none in UTC
        return None
