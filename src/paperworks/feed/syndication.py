"""Feeds to follow: Atom 1.0 (RFC 4287), RSS 2.0 and JSON Feed 1.1 of the newest papers, of a day, or of a search.

Everything in a feed comes from the store, dates included: as long as the store has not changed, the bytes are the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from email.utils import format_datetime
from html import escape
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import paperworks
from paperworks.feed.records import PaperRecord
from paperworks.feed.selection import Selected, Selection
from paperworks.feed.store import Store
from paperworks.feed.verdicts import Verdicts

if TYPE_CHECKING:
    from paperworks.feed.search import Search

__all__ = ["atom", "json_feed", "rss"]

_ATOM = "http://www.w3.org/2005/Atom"
_DC = "http://purl.org/dc/elements/1.1/"
ElementTree.register_namespace("atom", _ATOM)
ElementTree.register_namespace("dc", _DC)

_START = datetime(1970, 1, 1, tzinfo=UTC)
_UNFIT = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class _Entry:
    id: str
    url: str
    title: str
    text: str
    authors: list[str]
    categories: list[str]
    published: datetime
    updated: datetime
    record: PaperRecord
    votes: int
    verdicts: Mapping[str, int] | None


@dataclass(frozen=True)
class _Feed:
    id: str
    title: str
    home: str
    address: str  # of the feed, without the file name
    parameters: str  # with the question mark
    updated: datetime
    entries: list[_Entry]

    def own(self, file: str) -> str:
        return f"{self.address}{file}{self.parameters}"


def atom(
    store: Store,
    *,
    base_url: str,
    query: str | None = None,
    day: date | None = None,
    area: str | None = None,
    author: str | None = None,
    min_score: float | None = None,
    limit: int = 20,
    now: datetime | None = None,
    search: Search | None = None,
    verdicts: Verdicts | None = None,
) -> str:
    """The newest papers as Atom 1.0.

    Args:
        base_url: of the site, ``http(s)://host``; entries lead to its pages and their ids have its host.
        query: only what a search finds, the best first; a blank one finds nothing.
        day: only what entered the feed on that day, in the order of its list.
        area: only of this area.
        author: only with an author whose name contains this, in any case.
        min_score: only with at least this many votes, here and at the source together.
        limit: number of entries, from 1 to 200.
        now: leave out what enters the feed later; nothing is left out by default.
        search: what answers `query`; made for the call by default.
        verdicts: with them the text of a carried paper says how its claims stand.

    An entry was last updated when the store learnt something new of its paper or of one of its claims.

    Raises:
        ValueError: the address, `limit`, `min_score` or `now` is none; what `Search.query` refuses.
        TypeError: `day` is no date.
    """
    selection = Selection(query, day, area, author, min_score, limit, now)
    return _atom(_feed(store, base_url, selection, search, verdicts))


def rss(
    store: Store,
    *,
    base_url: str,
    query: str | None = None,
    day: date | None = None,
    area: str | None = None,
    author: str | None = None,
    min_score: float | None = None,
    limit: int = 20,
    now: datetime | None = None,
    search: Search | None = None,
    verdicts: Verdicts | None = None,
) -> str:
    """The newest papers as RSS 2.0; arguments and errors as of `atom`."""
    selection = Selection(query, day, area, author, min_score, limit, now)
    return _rss(_feed(store, base_url, selection, search, verdicts))


def json_feed(
    store: Store,
    *,
    base_url: str,
    query: str | None = None,
    day: date | None = None,
    area: str | None = None,
    author: str | None = None,
    min_score: float | None = None,
    limit: int = 20,
    now: datetime | None = None,
    search: Search | None = None,
    verdicts: Verdicts | None = None,
) -> dict[str, Any]:
    """The newest papers as JSON Feed 1.1; arguments and errors as of `atom`."""
    selection = Selection(query, day, area, author, min_score, limit, now)
    return _json(_feed(store, base_url, selection, search, verdicts))


# what goes in


def _feed(store: Store, base_url: str, selection: Selection, search: Search | None, verdicts: Verdicts | None) -> _Feed:
    base, host = _site(base_url)
    entries = [_entry(paper, base, host, verdicts) for paper in selection.papers(store, search)]
    given = selection.parameters()
    parameters = "?" + urlencode(given, quote_via=quote, errors="replace") if given else ""
    return _Feed(
        id=f"tag:{host},2026:feeds/papers{parameters}",
        title=_fit(" ".join(["Daily Papers", *selection.words()])),
        home=f"{base}/",
        address=f"{base}/feeds/",
        parameters=parameters,
        updated=max((entry.updated for entry in entries), default=_START),
        entries=entries,
    )


def _site(base_url: str) -> tuple[str, str]:
    """The address without a slash at its end, and its host for a tag."""
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"base_url: got {base_url!r}, wanted http://host or https://host")
    try:
        host = parts.hostname.encode("idna").decode()
    except UnicodeError:
        raise ValueError(f"base_url: got {base_url!r}, whose host is no name") from None
    return base_url.rstrip("/"), host


def _entry(paper: Selected, base: str, host: str, verdicts: Verdicts | None) -> _Entry:
    record, changed = paper.record, paper.changed
    told = verdicts.paper(record.card) if verdicts is not None and record.card else None
    judged = [datetime.fromisoformat(claim["verdict"]["created"]) for claim in _judged(told)]
    day = record.first_seen or record.published
    path = quote(record.key, safe="/")
    return _Entry(
        id=f"tag:{host},2026:paper/{path}",
        url=f"{base}/paper/{path}",
        title=" ".join(_fit(record.title).split()),
        text=_fit("\n\n".join(filter(None, [_standing(record, verdicts, told), *_paragraphs(paper)]))),
        authors=_names(record.authors or []),
        categories=_names([record.area or "", *record.categories]),
        published=changed if day is None else datetime.combine(day, time(), UTC),
        updated=max([changed.astimezone(UTC).replace(microsecond=0), *judged]),
        record=record,
        votes=paper.votes,
        verdicts=told["counts"] if told is not None else None,
    )


def _judged(told: Mapping[str, Any] | None) -> list[Any]:
    return [claim for claim in told["claims"] if claim["verdict"] is not None] if told is not None else []


def _standing(record: PaperRecord, verdicts: Verdicts | None, told: Mapping[str, Any] | None) -> str:
    """How the claims of a paper that has a card stand."""
    if verdicts is None or record.card is None:
        return ""
    if told is None:
        return "Not carried yet: its claims cannot be run."
    counted = [f"{count} {status}" for status, count in told["counts"].items() if count]
    return f"Verdicts on its claims: {', '.join(counted) or 'none'}."


def _paragraphs(paper: Selected) -> tuple[str, str]:
    record, votes = paper.record, paper.votes
    facts = [
        f"{record.n_authors} author{'s' * (record.n_authors != 1)}" if record.n_authors is not None else "",
        f"published {record.published.isoformat()}" if record.published else "",
        f"{votes} vote{'s' * (votes != 1)}" if votes else "",
    ]
    return " · ".join(filter(None, facts)), record.summary or record.abstract


def _names(texts: list[str]) -> list[str]:
    return [name for name in dict.fromkeys(" ".join(_fit(text).split()) for text in texts) if name]


def _fit(text: str) -> str:
    """Text without the characters that XML cannot hold."""
    return _UNFIT.sub("", text)


# what comes out


def _stamp(when: datetime) -> str:
    """RFC 3339, in whole seconds of UTC."""
    return when.astimezone(UTC).replace(microsecond=0, tzinfo=None).isoformat() + "Z"


def _written(root: Element) -> str:
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)).decode("utf-8")


def _add(parent: Element, name: str, text: str = "", **attributes: str) -> Element:
    element = SubElement(parent, name, attributes)
    element.text = text or None
    return element


def _atom(feed: _Feed) -> str:
    root = Element("feed", xmlns=_ATOM)
    _add(root, "id", feed.id)
    _add(root, "title", feed.title)
    _add(root, "updated", _stamp(feed.updated))
    _add(root, "link", rel="self", type="application/atom+xml", href=feed.own("atom.xml"))
    _add(root, "link", rel="alternate", type="text/html", href=feed.home)
    _add(_add(root, "author"), "name", "paperworks")
    _add(root, "generator", "paperworks", version=paperworks.__version__)
    for entry in feed.entries:
        one = _add(root, "entry")
        _add(one, "id", entry.id)
        _add(one, "title", entry.title, type="text")
        _add(one, "published", _stamp(entry.published))
        _add(one, "updated", _stamp(entry.updated))
        _add(one, "link", rel="alternate", type="text/html", href=entry.url)
        if entry.record.id:
            _add(one, "link", rel="related", href=f"https://arxiv.org/abs/{entry.record.id}")
        for name in entry.authors:
            _add(_add(one, "author"), "name", name)
        for name in entry.categories:
            _add(one, "category", term=name)
        _add(one, "summary", entry.text, type="text")
    return _written(root)


def _rss(feed: _Feed) -> str:
    root = Element("rss", version="2.0")
    channel = _add(root, "channel")
    _add(channel, "title", feed.title)
    _add(channel, "link", feed.home)
    _add(channel, "description", "Papers, and whether their claims hold.")
    _add(channel, "language", "en")
    _add(channel, "lastBuildDate", format_datetime(feed.updated.astimezone(UTC)))
    _add(channel, "generator", f"paperworks {paperworks.__version__}")
    own = {"rel": "self", "type": "application/rss+xml", "href": feed.own("rss.xml")}
    _add(channel, f"{{{_ATOM}}}link", **own)
    for entry in feed.entries:
        one = _add(channel, "item")
        _add(one, "title", entry.title)
        _add(one, "link", entry.url)
        _add(one, "guid", entry.id, isPermaLink="false")
        _add(one, "pubDate", format_datetime(entry.published.astimezone(UTC)))
        for name in entry.authors:
            _add(one, f"{{{_DC}}}creator", name)
        for name in entry.categories:
            _add(one, "category", name)
        paragraphs = escape(entry.text, quote=False).split("\n\n")  # a description is read as HTML
        _add(one, "description", "".join(f"<p>{paragraph}</p>" for paragraph in paragraphs))
    return _written(root)


def _json(feed: _Feed) -> dict[str, Any]:
    return {
        "version": "https://jsonfeed.org/version/1.1",
        "title": feed.title,
        "home_page_url": feed.home,
        "feed_url": feed.own("feed.json"),
        "description": "Papers, and whether their claims hold.",
        "language": "en",
        "authors": [{"name": "paperworks"}],
        "items": [_item(entry) for entry in feed.entries],
    }


def _item(entry: _Entry) -> dict[str, Any]:
    item: dict[str, Any] = {
        "id": entry.id,
        "url": entry.url,
        "title": entry.title,
        "content_text": entry.text,
        "date_published": _stamp(entry.published),
        "date_modified": _stamp(entry.updated),
        "authors": [{"name": name} for name in entry.authors],
        "tags": entry.categories,
        "_paperworks": {
            "about": "https://github.com/paperworks/paperworks/blob/main/docs/feed.md",
            "id": entry.record.key,
            "votes": entry.votes,
            "verdicts": dict(entry.verdicts) if entry.verdicts is not None else None,
        },
    }
    if entry.record.id:
        item["external_url"] = f"https://arxiv.org/abs/{entry.record.id}"
    return item
