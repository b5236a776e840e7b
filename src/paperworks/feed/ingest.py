"""Papers into the catalogue: of the daily list, of arXiv, and of files in any of their formats."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, NoReturn

import platformdirs
import requests

from paperworks.feed.arxiv import parse_arxiv_atom, parse_oai
from paperworks.feed.clients import LARGEST, ArxivClient, DailyPapersClient
from paperworks.feed.daily import parse_daily_papers, parse_paper
from paperworks.feed.merging import AddReport
from paperworks.feed.page import parse_page
from paperworks.feed.records import PaperRecord
from paperworks.feed.skipped import Skipped
from paperworks.feed.store import CHUNK, Store

__all__ = [
    "Ingested", "Offline", "arxiv_client", "arxiv_query", "cache_folder", "daily_client", "ingest", "newest",
    "parse_any", "read_file",
]  # fmt: skip

PAGE = 200
"""Entries asked of arXiv at once."""


@dataclass(frozen=True)
class Ingested:
    """What became of a source: how its records changed the catalogue, and what was left out, with the reason."""

    added: AddReport
    skipped: tuple[Skipped, ...] = ()

    @property
    def read(self) -> int:
        """Number of records that the catalogue took."""
        return self.added.new + self.added.updated + self.added.merged + self.added.unchanged

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return {"read": self.read, **asdict(self.added), "skipped": [asdict(one) for one in self.skipped]}


def ingest(
    store: Store, records: Iterable[PaperRecord], skipped: list[Skipped], at: datetime | None = None
) -> Iterator[Ingested]:
    """Merge records into the catalogue, and tell how far it is after each batch, which is one transaction.

    Args:
        records: read as they are wanted, so that a source of any size can be ingested.
        skipped: where the one who makes `records` tells what it leaves out.
        at: when; now by default.

    Yields at least once, also where the source breaks off with an error: what came before it is kept and told of, and
    then the error is raised. What was yielded is kept, whatever happens later.
    """
    added, batch = AddReport(), []
    ended: list[Exception] = []
    for record in _up_to_an_error(records, ended):
        batch.append(record)
        if len(batch) == CHUNK:
            added += store.add(batch, at)
            batch = []
            yield Ingested(added, tuple(skipped))
    added += store.add(batch, at)
    yield Ingested(added, tuple(skipped))
    if ended:
        raise ended[0]


def _up_to_an_error(records: Iterable[PaperRecord], ended: list[Exception]) -> Iterator[PaperRecord]:
    try:
        yield from records
    except Exception as error:
        ended.append(error)


# files

_BEFORE_ROOT = r"(?:<\?.*?\?>|<!--.*?-->|<![^>\[]*(?:\[.*?\]\s*)?>|\s)*+"  # possessive, or hostile text takes years
_ROOT = re.compile(_BEFORE_ROOT + r"<(?:[\w.-]+:)?([\w.-]+)", re.DOTALL)


def read_file(path: str | Path, page_date: date, skipped: list[Skipped] | None = None) -> list[PaperRecord]:
    """The records of a file; formats and errors as of `parse_any`. OSError where it cannot be read."""
    with open(path, "rb") as file:
        return parse_any(file.read(LARGEST + 1), page_date, skipped)


def parse_any(content: bytes, page_date: date, skipped: list[Skipped] | None = None) -> list[PaperRecord]:
    """The records of what a source sent or a browser saved: which of these it is shows in it.

    JSON of a day's list, of a search or of one paper; Atom of arXiv's query interface; OAI-PMH in the ``arXiv`` format;
    HTML or text of a page of daily papers, whose dates without a year are read with `page_date`.

    Raises ValueError for more than 64 MiB, for what is none of these, and as the parser of the format does.
    """
    if len(content) > LARGEST:
        raise ValueError(f"file: got more than {LARGEST} bytes, wanted at most those")
    text = _text(content)
    start = text[:4000].lstrip("\ufeff \t\r\n")
    if not start:
        raise ValueError("file: got nothing, wanted JSON, XML, HTML or the text of a page")
    if start[0] in "[{":
        return _json(text, skipped)
    root = _ROOT.match(start)
    name = root[1].lower() if root else ""
    if name == "feed":
        return parse_arxiv_atom(content, skipped)[0]
    if name == "oai-pmh":
        return parse_oai(content, skipped)[0]
    if start.startswith("<?xml") and name != "html":
        raise ValueError(f"file: got XML with the root element {name!r}, wanted an Atom feed or an OAI-PMH answer")
    return parse_page(text, page_date, skipped)


def _text(content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = content.decode("utf-16", errors="replace")
    else:
        text = content.decode("utf-8-sig", errors="replace")
    if "\0" in text or 50 * text.count("\N{REPLACEMENT CHARACTER}") > len(text):
        raise ValueError("file: got bytes that are no text, wanted JSON, XML, HTML or the text of a page")
    return text


def _json(text: str, skipped: list[Skipped] | None) -> list[PaperRecord]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"file: got JSON that is malformed: {error}") from None
    if isinstance(found, Mapping) and not isinstance(found.get("papers"), list):
        return parse_daily_papers([found], skipped) if "paper" in found else [parse_paper(found)]
    return parse_daily_papers(found, skipped)


# sources


class Offline:
    """A session in which every address is out of reach: a client with a cache answers from it."""

    def get(self, url: str, **_: object) -> NoReturn:
        """Raise ConnectionError."""
        raise requests.ConnectionError("offline, and not in the cache")


def cache_folder() -> Path:
    """Where answers of the sources are kept, in the user's cache folder."""
    return platformdirs.user_cache_path("paperworks", appauthor=False) / "feed"


def daily_client(base_url: str | None = None, *, offline: bool = False) -> DailyPapersClient:
    """A client of the daily list, by default of Hugging Face; offline it answers from the cache alone."""
    options = _patience(offline)
    return DailyPapersClient(**options) if base_url is None else DailyPapersClient(base_url, **options)


def arxiv_client(base_url: str | None = None, *, offline: bool = False) -> ArxivClient:
    """A client of arXiv, or of one address for both of its interfaces; offline it answers from the cache alone."""
    options = _patience(offline) | ({"min_interval": 0.0} if offline else {})
    return ArxivClient(**options) if base_url is None else ArxivClient(base_url, oai_url=base_url, **options)


def _patience(offline: bool) -> dict[str, Any]:
    return {"cache": cache_folder(), **({"session": Offline(), "retries": 0} if offline else {})}


def arxiv_query(query: str | None = None, category: str | None = None) -> str:
    """A query in arXiv's syntax for a query, a category or both. Raises ValueError for neither, or no category."""
    if category is not None and not re.fullmatch(r"[A-Za-z-]+(?:\.[A-Za-z-]+|\.\*)?", category):
        raise ValueError(f"category: got {category!r}, wanted one such as cs.LG")
    words = query if query and query.strip() else None
    if words and category:
        return f"cat:{category} AND ({words})"
    if category:
        return f"cat:{category}"
    if words is None:
        raise ValueError("arXiv: got neither a query nor a category, wanted one of them")
    return words


def newest(client: ArxivClient, query: str, since: date | None, limit: int) -> Iterator[PaperRecord]:
    """What a query finds on arXiv, the newest submission first, until `since` or `limit` records."""
    for start in range(0, limit, PAGE):
        wanted = min(PAGE, limit - start)
        before = len(client.skipped)
        records, total = client.search(query, start, wanted)
        for record in records:
            if since is not None and record.published is not None and record.published < since:
                return
            yield record
        if len(records) + len(client.skipped) == before or start + wanted >= total:
            return
