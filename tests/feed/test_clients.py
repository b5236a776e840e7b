"""The clients against a server on loopback: pages, conditional requests, patience, offline, refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest
from feed.loopback import Answer, Asked, Loopback, loopback

from paperworks.feed.clients import ArxivClient, DailyPapersClient, SourceError


@pytest.fixture
def server() -> Iterator[Loopback]:
    with loopback() as state:
        yield state


def items(*ids: str) -> bytes:
    paper = [{"paper": {"id": id, "title": f"Paper {id}"}, "publishedAt": "2026-04-24T08:00:00Z"} for id in ids]
    return json.dumps(paper).encode()


def test_a_day_is_read_over_all_its_pages(server: Loopback) -> None:
    first, rest = [f"2604.{i:05d}" for i in range(100)], ["2604.00099", "2604.00100"]

    def answer(asked: Asked) -> Answer:
        return 200, {}, items(*(first if asked.query["p"] == "0" else rest))

    server.answer = answer
    records = DailyPapersClient(server.url).day(date(2026, 4, 24))
    assert [record.rank for record in records] == list(range(101)), "a paper on two pages is one"
    assert records[-1].id == "2604.00100"
    assert [a.query["date"] for a in server.asked] == ["2026-04-24"] * 2
    assert server.asked[0].headers["User-Agent"].startswith("paperworks/")


def test_unchanged_answers_come_from_the_cache(server: Loopback, tmp_path: Path) -> None:
    def answer(asked: Asked) -> Answer:
        if asked.headers.get("If-None-Match") == '"v1"':
            return 304, {}, b""
        return 200, {"ETag": '"v1"', "Last-Modified": "Fri, 24 Apr 2026 08:00:00 GMT"}, items("2604.00001")

    server.answer = answer
    client = DailyPapersClient(server.url, cache=tmp_path)
    assert client.day("2026-04-24") == client.day("2026-04-24")
    assert server.asked[1].headers["If-Modified-Since"] == "Fri, 24 Apr 2026 08:00:00 GMT"


def test_the_cache_answers_offline_and_a_damaged_one_does_not(server: Loopback, tmp_path: Path) -> None:
    server.answer = lambda asked: (200, {}, items("2604.00001"))
    online = DailyPapersClient(server.url, cache=tmp_path).day("2026-04-24")
    server.answer = lambda asked: (503, {}, b"")
    offline = DailyPapersClient(server.url, cache=tmp_path, retries=0)
    assert offline.day("2026-04-24") == online
    with pytest.raises(SourceError, match="HTTP 503, after 1 attempts"):
        offline.day("2026-04-25")
    next(tmp_path.glob("*.body")).write_bytes(b"[]")
    with pytest.raises(SourceError):
        offline.day("2026-04-24")


def test_it_waits_as_long_as_the_server_asks_and_then_longer_each_time(server: Loopback) -> None:
    waits: list[float] = []
    answers = [(429, {"Retry-After": "7"}, b""), (500, {}, b""), (503, {"Retry-After": "soon"}, b"")]
    server.answer = lambda asked: answers.pop(0) if answers else (200, {}, b"[]")
    client = DailyPapersClient(server.url, retries=3, backoff=0.5)
    client._source._sleep = waits.append
    assert client.week("2026-W17") == []
    assert waits == [7.0, 1.0, 2.0]


def test_what_the_server_refuses_is_told_at_once(server: Loopback) -> None:
    server.answer = lambda asked: (400, {}, b'{"error": "Invalid date"}')
    with pytest.raises(ValueError, match=r"HTTP 400.*Invalid date"):
        DailyPapersClient(server.url).month("2026-04")
    assert len(server.asked) == 1


def test_search_and_paper(server: Loopback) -> None:
    server.answer = lambda asked: (200, {}, items("2604.00001") if "search" in asked.path else b'{"title": "T"}')
    client = DailyPapersClient(server.url)
    (found,) = client.search("wings & more", limit=3)
    assert (found.source, found.rank) == ("search", None)
    assert server.asked[0].query == {"q": "wings & more", "limit": "3"}
    assert client.paper("2604.00001v2").title == "T"
    assert server.asked[1].path == "/api/papers/2604.00001"


def test_bad_arguments_ask_nothing(server: Loopback) -> None:
    client = DailyPapersClient(server.url)
    for call in (
        lambda: client.day("2026-02-30"),
        lambda: client.week("2026-W54"),
        lambda: client.week("2026-17"),
        lambda: client.month("2026-13"),
        lambda: client.search("  "),
        lambda: client.search("a", limit=0),
        lambda: client.paper("../../etc/passwd"),
        lambda: DailyPapersClient("file:///etc/passwd"),
        lambda: ArxivClient(server.url).search("all:x", max_results=2001),
        lambda: ArxivClient(server.url).search(""),
    ):
        with pytest.raises(ValueError, match="got"):
            call()
    assert not server.asked


ATOM = '<feed xmlns="http://www.w3.org/2005/Atom"><entry><id>http://arxiv.org/abs/{id}v1</id><title>T</title></entry></feed>'
OAI = (
    '<OAI-PMH xmlns="http://www.openarchives.org/OAI/2.0/"><ListRecords><record><header/><metadata>'
    '<arXiv xmlns="http://arxiv.org/OAI/arXiv/"><id>{id}</id><title>T</title></arXiv></metadata></record>'
    "<resumptionToken>{token}</resumptionToken></ListRecords></OAI-PMH>"
)


def test_arxiv_is_asked_one_request_an_interval(server: Loopback) -> None:
    waits: list[float] = []
    server.answer = lambda asked: (200, {}, ATOM.format(id="2604.00001").encode())
    client = ArxivClient(server.url, min_interval=3.0)
    client._source._sleep = waits.append
    assert client.search("cat:cs.LG", start=50, max_results=50)[0][0].id == "2604.00001"
    assert client.papers(["2604.00001v3"])[0].version == 1
    assert server.asked[0].query["sortBy"] == "submittedDate"
    assert server.asked[1].query["id_list"] == "2604.00001"
    assert len(waits) == 1
    assert 2 < waits[0] <= 3


def test_harvesting_follows_tokens_and_stops_at_a_loop(server: Loopback) -> None:
    def answer(asked: Asked) -> Answer:
        last = asked.query.get("resumptionToken") == "next"
        return 200, {}, OAI.format(id="2604.00002" if last else "2604.00001", token="" if last else "next").encode()

    server.answer = answer
    client = ArxivClient(server.url, min_interval=0, oai_url=server.url)
    assert [r.id for r in client.harvest(date(2026, 4, 1))] == ["2604.00001", "2604.00002"]
    assert server.asked[0].query == {"verb": "ListRecords", "metadataPrefix": "arXiv", "from": "2026-04-01"}
    server.answer = lambda asked: (200, {}, OAI.format(id="2604.00001", token="next").encode())
    with pytest.raises(ValueError, match="a second time"):
        list(client.harvest(date(2026, 4, 1)))


def test_what_was_left_out_is_gathered_over_all_pages(server: Loopback) -> None:
    def answer(asked: Asked) -> Answer:
        page = int(asked.query["p"])
        good = json.loads(items(*(f"2604.{page}{i:04d}" for i in range(99 if page == 0 else 2))))
        return 200, {}, json.dumps([*good, {"paper": {"id": f"2604.9999{page}"}}]).encode()

    server.answer = answer
    client = DailyPapersClient(server.url)
    assert len(client.day("2026-04-24")) == 101, "a page with an item that is none is a full page"
    assert [one.item for one in client.skipped] == ["item 100 (2604.99990)", "item 3 (2604.99991)"]
    server.answer = lambda asked: (200, {}, ATOM.format(id="nothing").encode())
    arxiv = ArxivClient(server.url, min_interval=0)
    assert arxiv.search("cat:cs.LG") == ([], 0)
    assert len(arxiv.skipped) == 1
