"""From files and sources of every kind: what is malformed is skipped with a reason, and the rest is read."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from feed.loopback import Answer, Asked, Loopback, loopback
from hypothesis import given
from hypothesis import strategies as st

from paperworks.feed import ingest as sources
from paperworks.feed.clients import SourceError
from paperworks.feed.merging import AddReport
from paperworks.feed.records import PaperRecord
from paperworks.feed.skipped import Skipped
from paperworks.feed.store import CHUNK, Store

DAY = date(2026, 4, 24)
SEEN = datetime(2026, 4, 24, 9, tzinfo=UTC)

ITEM = {"paper": {"id": "2604.00001", "title": "Learning to Fly"}, "publishedAt": "2026-04-24T08:00:00Z"}
ENTRY = (
    "<entry><id>http://arxiv.org/abs/{id}v1</id><published>{day}T10:00:00Z</published><title>Paper {id}</title></entry>"
)
ATOM = (
    '<feed xmlns="http://www.w3.org/2005/Atom" xmlns:o="http://a9.com/-/spec/opensearch/1.1/">'
    "<o:totalResults>{total}</o:totalResults>{entries}</feed>"
)
OAI = (
    '<OAI-PMH xmlns="http://www.openarchives.org/OAI/2.0/"><ListRecords><record><header/><metadata>'
    '<arXiv xmlns="http://arxiv.org/OAI/arXiv/"><id>2604.00001</id><title>Learning to Fly</title></arXiv></metadata>'
    "</record></ListRecords></OAI-PMH>"
)
PAGE = "Daily Papers\n\nLearning to Fly\n\nWe study wings.\n\n2 authors · Apr 20"
HTML = "<html><body><h3>Learning to Fly</h3><p>We study wings.</p><div>2 authors · Apr 20</div></body></html>"
XML = '<?xml version="1.0" encoding="UTF-8"?>\n'
ONE = ATOM.format(total=1, entries=ENTRY.format(id="2604.00001", day="2026-04-20"))

FILES = {
    "a day's list": (json.dumps([ITEM]), "daily"),
    "an object of papers": (json.dumps({"papers": [ITEM]}), "daily"),
    "one item of a list": (json.dumps(ITEM), "daily"),
    "one paper": (json.dumps(ITEM["paper"]), "paper"),
    "Atom": (ONE, "arxiv"),
    "Atom with a declaration": (XML + "<!-- saved -->\n" + ONE, "arxiv"),
    "Atom with a prefix": (
        ONE.replace("<", "<a:").replace("<a:/", "</a:").replace("a:o:", "o:").replace("xmlns=", "xmlns:a="), "arxiv"
    ),
    "OAI-PMH": (XML + OAI, "oai"),
    "text of a page": (PAGE, "page"),
    "HTML": (HTML, "page"),
    "HTML with a document type": ("<!DOCTYPE html>\n" + HTML, "page"),
    "XHTML": (XML + '<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN" "x.dtd">' + HTML, "page"),
}  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", FILES)
def test_the_format_of_a_file_shows_in_it(tmp_path: Path, name: str, encoding: str) -> None:
    text, source = FILES[name]
    path = tmp_path / "saved"
    text = text.replace(' encoding="UTF-8"', "") if encoding == "utf-16" else text
    path.write_bytes(text.encode(encoding))
    skipped: list[Skipped] = []
    (record,) = sources.read_file(path, DAY, skipped)
    assert record.source == source
    assert record.title in ("Learning to Fly", "Paper 2604.00001")
    assert record.id == (None if source == "page" else "2604.00001")
    assert skipped == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "file: got nothing"),
        (b" \n\xef\xbb\xbf", "file: got"),
        (b"{", "JSON that is malformed"),
        (b"[" * 100_000, "JSON that is malformed"),
        (b"{}", "without a title"),
        (b'{"error": "Invalid date"}', "Invalid date"),
        (b'<?xml version="1.0"?><rss/>', "root element 'rss'"),
        (b'<!DOCTYPE l [<!ENTITY a "x"><!ENTITY b "&a;&a;">]><feed>&b;</feed>', "refused"),
        (b"<feed", "malformed XML"),
        (b"Daily Papers", "got no entry"),
        (b"%PDF-1.7\n\xe2\xe3\xcf\xd3\n" + bytes(range(256)), "no text"),
    ],
)
def test_what_is_no_paper_is_refused_in_words(content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sources.parse_any(content, DAY)


@pytest.mark.parametrize("piece", ["<!---->", "<!-- ", "<?", "<![", " ", "<!>", "<a:", "<!-->"])
def test_a_beginning_that_could_be_read_in_two_ways_each_time_comes_to_an_end(piece: str) -> None:
    with contextlib.suppress(ValueError):
        sources.parse_any((piece * 4000).encode(), DAY)


@given(st.binary(max_size=60), st.sampled_from([b"", b"[", b"{", b"<feed ", b"<html>", b"\xff\xfe", b"<?xml "]))
def test_any_bytes_give_records_or_a_value_error(rest: bytes, start: bytes) -> None:
    records: list[PaperRecord] = []
    with contextlib.suppress(ValueError):
        records = sources.parse_any(start + rest, DAY)
    assert all(record.title for record in records)


def test_a_file_that_is_too_large_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "LARGEST", 100)
    path = tmp_path / "large"
    path.write_bytes(b"[" + b" " * 1000 + b"]")
    with pytest.raises(ValueError, match="more than 100 bytes"):
        sources.read_file(path, DAY)


def test_records_are_merged_in_batches_and_told_of_after_each(store_url: str) -> None:
    with Store(store_url) as store:
        skipped = [Skipped("item 3", "no title")]
        records = (PaperRecord(f"Paper {n}", id=f"2604.{n:05d}", source="daily") for n in range(CHUNK + 2))
        first, last = sources.ingest(store, records, skipped, SEEN)
        assert (first.added, last.added) == (AddReport(new=CHUNK), AddReport(new=CHUNK + 2))
        assert len(store) == last.read == CHUNK + 2
        assert last.to_json() == {
            "read": CHUNK + 2, "new": CHUNK + 2, "updated": 0, "merged": 0, "unchanged": 0,
            "skipped": [{"item": "item 3", "reason": "no title"}],
        }  # fmt: skip
        (empty,) = sources.ingest(store, [], [])
        assert (empty.read, empty.skipped) == (0, ())


@pytest.mark.parametrize("extra", [0, 3])
def test_all_that_came_is_kept_and_told_of_when_the_source_breaks_off(store_url: str, extra: int) -> None:
    def records() -> Iterator[PaperRecord]:
        yield from (PaperRecord(f"Paper {n}", id=f"2604.{n:05d}") for n in range(CHUNK + extra))
        raise SourceError("gone")

    with Store(store_url) as store:
        told: list[sources.Ingested] = []
        with pytest.raises(SourceError, match="gone"):
            told.extend(sources.ingest(store, records(), []))
        assert [made.read for made in told] == [CHUNK, CHUNK + extra]
        assert len(store) == CHUNK + extra


def test_hostile_values_of_a_source_reach_the_store_or_are_skipped(store_url: str) -> None:
    nasty = {
        "title": "A \ud800 title \x00 with \x1b[31m", "summary": "\ufffe\udfff" * 9, "upvotes": 10**30,
        "authors": [{"name": "\ud83d"}, {"name": 7}, None], "publishedAt": "9999-12-31T23:59:59-23:59",
        "ai_keywords": ["\x00", {}, "a" * 10_000], "githubRepo": "javascript:alert(1)",
        "id": "2604.00002v99999999999999",
    }  # fmt: skip
    content = json.dumps([{"paper": nasty, "publishedAt": "0001-01-01T00:00:00+23:59"}, ITEM, 3, {"paper": []}])
    skipped: list[Skipped] = []
    records = sources.parse_any(content.encode(), DAY, skipped)
    with Store(store_url) as store:
        *_, made = sources.ingest(store, records, skipped)
        assert made.read + len(made.skipped) == 4
        assert store.get("2604.00001") is not None
        known = store.get("2604.00002")
        if known is not None:
            assert (known.upvotes, known.code) == (None, None)


# sources


@pytest.fixture
def server() -> Iterator[Loopback]:
    with loopback() as state:
        yield state


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "paperworks" / "feed"


def test_offline_the_cache_answers_and_nothing_is_asked(server: Loopback, cache: Path) -> None:
    server.answer = lambda asked: (200, {}, json.dumps([ITEM]).encode())
    online = sources.daily_client(server.url).day(DAY)
    assert any(cache.iterdir())
    asked = len(server.asked)
    offline = sources.daily_client(server.url, offline=True)
    assert offline.day(DAY) == online
    with pytest.raises(SourceError, match="not in the cache"):
        offline.day("2026-04-25")
    assert len(server.asked) == asked


def test_arxiv_offline_does_not_wait_for_its_turn(server: Loopback) -> None:
    server.answer = lambda asked: (200, {}, ONE.encode())
    client = sources.arxiv_client(server.url)
    client._source.min_interval = 0.0
    assert client.search("cat:cs.LG")[1] == 1
    server.answer = lambda asked: (200, {}, OAI.encode())
    client._oai.min_interval = 0.0
    assert [r.id for r in client.harvest(DAY)] == ["2604.00001"], "one address serves both interfaces"
    offline = sources.arxiv_client(server.url, offline=True)
    assert (offline._source.min_interval, offline._source.retries) == (0.0, 0)
    assert offline.search("cat:cs.LG")[1] == 1
    assert [r.id for r in offline.harvest(DAY)] == ["2604.00001"]


def test_a_query_of_words_and_a_category() -> None:
    assert sources.arxiv_query("all:wings") == "all:wings"
    assert sources.arxiv_query(category="cs.LG") == "cat:cs.LG"
    assert sources.arxiv_query("ti:a OR ti:b", "q-bio.NC") == "cat:q-bio.NC AND (ti:a OR ti:b)"
    assert sources.arxiv_query(category="astro-ph.*") == "cat:astro-ph.*"
    for given_, words in (({}, "neither a query nor a category"), ({"category": "cs.LG OR all:x"}, "category: got")):
        with pytest.raises(ValueError, match=words):
            sources.arxiv_query(**given_)


def test_the_newest_are_read_page_by_page_until_the_day_or_the_limit(server: Loopback) -> None:
    total, days = 450, {n: date(2026, 4, 24 - n // 100).isoformat() for n in range(450)}

    def answer(asked: Asked) -> Answer:
        start, size = int(asked.query["start"]), int(asked.query["max_results"])
        wanted = range(start, min(start + size, total))
        entries = "".join(ENTRY.format(id=f"2604.{n:05d}", day=days[n]) for n in wanted)
        return 200, {}, ATOM.format(total=total, entries=entries).encode()

    server.answer = answer
    client = sources.arxiv_client(server.url)
    client._source.min_interval = 0.0

    def read(since: date | None, limit: int) -> list[str | None]:
        server.asked.clear()
        return [record.id for record in sources.newest(client, "all:x", since, limit)]

    assert read(None, 30_000) == [f"2604.{n:05d}" for n in range(450)]
    assert [asked.query["start"] for asked in server.asked] == ["0", "200", "400"]
    assert len(read(None, 250)) == 250
    assert [asked.query["max_results"] for asked in server.asked] == ["200", "50"]
    assert len(read(date(2026, 4, 23), 30_000)) == 200
    assert len(server.asked) == 2


def test_a_page_of_nothing_but_malformed_entries_does_not_end_the_reading(server: Loopback) -> None:
    def answer(asked: Asked) -> Answer:
        id = "nothing" if asked.query["start"] == "0" else "2604.00001"
        return 200, {}, ATOM.format(total=201, entries=ENTRY.format(id=id, day="2026-04-24")).encode()

    server.answer = answer
    client = sources.arxiv_client(server.url)
    client._source.min_interval = 0.0
    found: Any = list(sources.newest(client, "all:x", None, 1000))
    assert [record.id for record in found] == ["2604.00001"]
    assert len(client.skipped) == 1
