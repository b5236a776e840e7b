"""Clients of the Daily Papers page and of arXiv: conditional requests, patience, and an offline cache."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import requests

import paperworks
from paperworks.feed.arxiv import parse_arxiv_atom, parse_oai
from paperworks.feed.daily import parse_daily_papers, parse_paper
from paperworks.feed.records import PaperRecord, arxiv_id
from paperworks.feed.skipped import Skipped

__all__ = ["ArxivClient", "DailyPapersClient", "SourceError"]

TIMEOUT = (10.0, 60.0)
LARGEST = 64 * 2**20
LONGEST_WAIT = 300.0
_AGAIN = (429, 500, 502, 503, 504)


class SourceError(OSError):
    """A source could not be read and nothing of it is in the cache; the message names the address and says why."""


class _Source:
    """GET requests against one base address, one at a time.

    What came with an ETag or a date is asked for again under it, and taken from the cache where it has not changed.
    429 and 5xx are tried again, after what Retry-After says, else after `backoff`, doubled each time. Where the
    source cannot be reached the cache answers.
    """

    def __init__(
        self,
        base_url: str,
        session: Any = None,
        cache: str | Path | None = None,
        *,
        retries: int = 3,
        backoff: float = 0.5,
        min_interval: float = 0.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not isinstance(base_url, str) or not re.match(r"https?://[^/\s]+", base_url):
            raise ValueError(f"base_url: got {base_url!r}, wanted an http or https address")
        if retries < 0 or backoff < 0 or min_interval < 0:
            raise ValueError("retries, backoff and min_interval: wanted numbers >= 0")
        self.base_url = base_url.rstrip("/")
        self.session = requests.Session() if session is None else session
        self.cache = None if cache is None else Path(cache)
        self.retries, self.backoff, self.min_interval, self._sleep = retries, backoff, min_interval, sleep
        self._last = -float("inf")
        self._lock = threading.Lock()

    def get(self, path: str, parameters: Mapping[str, Any]) -> bytes:
        """The body of `path` with `parameters`. Raises ValueError for 4xx, SourceError where it cannot be had."""
        given = {name: str(value) for name, value in parameters.items() if value is not None}
        url = self.base_url + path
        kept = self._kept(url, given)
        headers = {"User-Agent": f"paperworks/{paperworks.__version__}"}
        if kept is not None:
            headers |= {to: kept[0][of] for of, to in _VALIDATORS.items() if kept[0].get(of)}
        with self._lock:
            answer, why = self._answer(url, given, headers)
        if answer is None:
            if kept is not None:
                return kept[1]
            raise SourceError(f"{url}: {why}")
        if answer.status_code == 304 and kept is not None:
            return kept[1]
        if answer.status_code >= 400:
            raise ValueError(f"{url}: HTTP {answer.status_code}: {' '.join(answer.text[:200].split())}")
        body = bytes(answer.content)
        if len(body) > LARGEST:
            raise SourceError(f"{url}: got {len(body)} bytes, wanted at most {LARGEST}")
        self._keep(url, given, answer.headers, body)
        return body

    def _answer(self, url: str, parameters: Mapping[str, str], headers: Mapping[str, str]) -> tuple[Any, str]:
        why = ""
        for attempt in range(self.retries + 1):
            self._wait_for_turn()
            wait = self.backoff * 2**attempt
            try:
                answer = self.session.get(url, params=parameters, headers=headers, timeout=TIMEOUT)
            except requests.RequestException as error:
                why = f"{type(error).__name__}: {error}"
            else:
                if answer.status_code not in _AGAIN:
                    return answer, ""
                why = f"HTTP {answer.status_code}"
                asked = _retry_after(answer.headers.get("Retry-After"))
                wait = wait if asked is None else asked
            finally:
                self._last = time.monotonic()
            if attempt < self.retries:
                self._sleep(min(wait, LONGEST_WAIT))
        return None, f"{why}, after {self.retries + 1} attempts"

    def _wait_for_turn(self) -> None:
        wait = self._last + self.min_interval - time.monotonic()
        if wait > 0:
            self._sleep(wait)

    def _files(self, url: str, parameters: Mapping[str, str]) -> tuple[Path, Path] | None:
        if self.cache is None:
            return None
        name = hashlib.sha256(json.dumps([url, sorted(parameters.items())]).encode()).hexdigest()
        return self.cache / f"{name}.json", self.cache / f"{name}.body"

    def _kept(self, url: str, parameters: Mapping[str, str]) -> tuple[dict[str, Any], bytes] | None:
        files = self._files(url, parameters)
        if files is None:
            return None
        try:
            facts, body = json.loads(files[0].read_text()), files[1].read_bytes()
        except (OSError, ValueError):
            return None
        return (facts, body) if facts.get("sha256") == hashlib.sha256(body).hexdigest() else None

    def _keep(self, url: str, parameters: Mapping[str, str], headers: Mapping[str, str], body: bytes) -> None:
        files = self._files(url, parameters)
        if files is None:
            return
        files[0].parent.mkdir(parents=True, exist_ok=True)
        facts: dict[str, Any] = {name: headers.get(name) for name in _VALIDATORS}
        facts |= {"url": url, "parameters": dict(parameters), "sha256": hashlib.sha256(body).hexdigest()}
        for path, content in ((files[1], body), (files[0], json.dumps(facts).encode())):
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                file.write(content)
            os.replace(file.name, path)


_VALIDATORS = {"ETag": "If-None-Match", "Last-Modified": "If-Modified-Since"}


def _retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks to wait: a number of seconds or a date."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (when.astimezone(UTC) - datetime.now(UTC)).total_seconds())


class DailyPapersClient:
    """The Daily Papers JSON.

    Args:
        base_url: address of the site.
        session: anything with requests' `get`; a new `requests.Session` by default.
        cache: a folder; without one nothing is kept and nothing works offline.
        retries: further attempts after 429 and 5xx and where the site cannot be reached.
        backoff: seconds before the first of them, doubled each time; a Retry-After header wins.

    Every method raises ValueError for what the site refuses, in its words, and SourceError where it cannot be reached
    and the cache has nothing. What it sent that is no paper is left out and gathered in `skipped`.
    """

    def __init__(
        self,
        base_url: str = "https://huggingface.co",
        session: Any = None,
        cache: str | Path | None = None,
        *,
        retries: int = 3,
        backoff: float = 0.5,
    ) -> None:
        self._source = _Source(base_url, session, cache, retries=retries, backoff=backoff)
        self.skipped: list[Skipped] = []

    def day(self, day: date | str) -> list[PaperRecord]:
        """The papers of one day, in the order of its list."""
        return self._list(date=_iso_day(day).isoformat())

    def week(self, week: str) -> list[PaperRecord]:
        """The papers of one ISO week, such as ``2026-W17``."""
        match = re.fullmatch(r"(\d{4})-W(\d{2})", week)
        try:
            date.fromisocalendar(int(match[1]), int(match[2]), 1)  # type: ignore[index]
        except (TypeError, ValueError):
            raise ValueError(f"week: got {week!r}, wanted an ISO week such as 2026-W17") from None
        return self._list(week=week)

    def month(self, month: str) -> list[PaperRecord]:
        """The papers of one month, such as ``2026-04``."""
        if not re.fullmatch(r"\d{4}-(?:0[1-9]|1[0-2])", month):
            raise ValueError(f"month: got {month!r}, wanted one such as 2026-04")
        return self._list(month=month)

    def search(self, q: str, limit: int | None = None) -> list[PaperRecord]:
        """The site's own search. Raises ValueError for an empty query or a limit below 1."""
        if not q.strip():
            raise ValueError(f"q: got {q!r}, wanted words")
        if limit is not None and limit < 1:
            raise ValueError(f"limit: got {limit}, wanted 1 or more")
        records = parse_daily_papers(self._source.get("/api/papers/search", {"q": q, "limit": limit}), self.skipped)
        for record in records:
            record.source, record.rank = "search", None
        return records

    def paper(self, id: str) -> PaperRecord:
        """One paper by arXiv id."""
        return parse_paper(self._source.get(f"/api/papers/{arxiv_id(id)[0]}", {}))

    def _list(self, **when: str) -> list[PaperRecord]:
        """All pages of a list; ranks run on within each day."""
        records: list[PaperRecord] = []
        for page in range(100):
            before = len(self.skipped)
            answer = self._source.get("/api/daily_papers", {**when, "p": page, "limit": 100})
            found = parse_daily_papers(answer, self.skipped)
            known = {record.key for record in records}
            fresh = [record for record in found if record.key not in known]
            records += fresh
            if len(found) + len(self.skipped) - before < 100 or not fresh:
                break
        places: dict[date | None, int] = {}
        for record in records:
            record.rank = places.get(record.first_seen, 0) if record.first_seen is not None else None
            places[record.first_seen] = places.get(record.first_seen, 0) + 1
        return records


def _iso_day(day: date | str) -> date:
    if isinstance(day, str):
        try:
            return date.fromisoformat(day)
        except ValueError:
            raise ValueError(f"date: got {day!r}, wanted one such as 2026-04-24") from None
    if isinstance(day, datetime) or not isinstance(day, date):
        raise TypeError(f"date: got {type(day).__name__}, wanted a date")
    return day


class ArxivClient:
    """arXiv's query interface and its OAI-PMH, one request at a time, `min_interval` seconds apart as arXiv asks.

    Args:
        base_url: of the query interface. oai_url: of OAI-PMH.
        min_interval: seconds from one request to the next.
        session, cache, retries, backoff: as of `DailyPapersClient`, and so are errors and `skipped`.
    """

    def __init__(
        self,
        base_url: str = "https://export.arxiv.org",
        *,
        min_interval: float = 3.0,
        cache: str | Path | None = None,
        session: Any = None,
        retries: int = 3,
        backoff: float = 0.5,
        oai_url: str | None = None,
    ) -> None:
        options: dict[str, Any] = {"retries": retries, "backoff": backoff, "min_interval": min_interval}
        self.skipped: list[Skipped] = []
        self._source = _Source(base_url, session, cache, **options)
        self._oai = _Source(oai_url or "https://oaipmh.arxiv.org", session, cache, **options)

    def search(self, query: str, start: int = 0, max_results: int = 50) -> tuple[list[PaperRecord], int]:
        """The records of a query in arXiv's syntax, the newest submission first, and how many there are in all.

        Raises ValueError for an empty query, `max_results` outside 1..2000 or a page that ends beyond 30,000.
        """
        if not query.strip():
            raise ValueError(f"query: got {query!r}, wanted a query such as cat:cs.LG")
        if start < 0 or not 1 <= max_results <= 2000 or start + max_results > 30_000:
            raise ValueError(
                f"start, max_results: got {start}, {max_results}, wanted at most 2000 a call and 30,000 in all"
            )
        parameters = {"search_query": query, "start": start, "max_results": max_results}
        order = {"sortBy": "submittedDate", "sortOrder": "descending"}
        return parse_arxiv_atom(self._source.get("/api/query", parameters | order), self.skipped)

    def papers(self, ids: list[str]) -> list[PaperRecord]:
        """The records of arXiv ids, in batches of 100."""
        names = [arxiv_id(id)[0] for id in ids]
        found: list[PaperRecord] = []
        for start in range(0, len(names), 100):
            batch = names[start : start + 100]
            answer = self._source.get("/api/query", {"id_list": ",".join(batch), "max_results": len(batch)})
            found += parse_arxiv_atom(answer, self.skipped)[0]
        return found

    def harvest(self, since: date, until: date | None = None, *, set: str | None = None) -> Iterator[PaperRecord]:
        """Every record that changed from `since` to `until`, by OAI-PMH; resumption tokens are followed."""
        parameters: dict[str, Any] = {
            "verb": "ListRecords", "metadataPrefix": "arXiv", "from": since.isoformat(),
            "until": until.isoformat() if until else None, "set": set,
        }  # fmt: skip
        seen: list[str] = []
        while True:
            records, token = parse_oai(self._oai.get("/oai", parameters), self.skipped)
            yield from records
            if token is None:
                return
            if token in seen:
                raise ValueError(f"OAI-PMH: got the resumption token {token!r} a second time")
            seen.append(token)
            parameters = {"verb": "ListRecords", "resumptionToken": token}
