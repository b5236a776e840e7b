"""Atom, RSS and JSON Feed: what the formats ask for, any text in them, the same bytes for the same store."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import fake_papers
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paperworks.feed.arxiv import parse_arxiv_atom
from paperworks.feed.records import PaperRecord
from paperworks.feed.store import Store
from paperworks.feed.syndication import atom, json_feed, rss
from paperworks.feed.verdicts import Verdicts
from paperworks.lab.records import Verdict

BASE = "https://papers.example"
DAY = date(2026, 4, 24)
SEEN = datetime(2026, 4, 25, 9, 30, 15, tzinfo=UTC)
ATOM = "{http://www.w3.org/2005/Atom}"
DC = "{http://purl.org/dc/elements/1.1/}"


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with Store(store_url) as opened:
        opened.add(
            [
                paper(1, first_seen=DAY, rank=1, upvotes=5, area="wings", authors=["Ada Löwe", "Bo M."]),
                paper(2, first_seen=DAY, rank=0, area="fins", abstract="Fish & <chips>.", categories=["cs.LG", "q"]),
                paper(3, first_seen=DAY - timedelta(days=3), upvotes=9, area="wings"),
                paper(4, published=DAY - timedelta(days=1), authors=["Eve Löwe"]),
                PaperRecord("Of Unknown Date", source="page"),
            ],
            SEEN,
        )
        yield opened


def paper(number: int, **facts: Any) -> PaperRecord:
    return PaperRecord(f"Paper {number}", id=f"2604.{number:05d}", source="daily", **facts)


def entries(xml: str) -> list[Element]:
    return ElementTree.fromstring(xml).findall(f"{ATOM}entry")


def titles(store: Store, **arguments: Any) -> list[str]:
    """The titles of a feed, which are the same in all three formats."""
    found = [item["title"] for item in json_feed(store, base_url=BASE, **arguments)["items"]]
    assert [one.findtext(f"{ATOM}title") for one in entries(atom(store, base_url=BASE, **arguments))] == found
    channel = ElementTree.fromstring(rss(store, base_url=BASE, **arguments))
    assert [one.findtext("title") for one in channel.iter("item")] == found
    return found


def numbers(*wanted: int) -> list[str]:
    return [f"Paper {number}" for number in wanted]


def test_the_newest_come_first(store: Store) -> None:
    assert titles(store) == [*numbers(1, 2, 4, 3), "Of Unknown Date"]
    assert titles(store, limit=2) == numbers(1, 2)
    assert titles(store, day=DAY) == numbers(2, 1), "a day keeps the order of its list"
    assert titles(store, area="wings") == numbers(1, 3)
    assert titles(store, author="löwe") == numbers(1, 4)
    assert titles(store, author="bo M") == numbers(1)
    assert titles(store, author="%") == []
    assert titles(store, now=datetime(2026, 4, 23, 12, tzinfo=UTC)) == [*numbers(4, 3), "Of Unknown Date"]


def test_votes_here_and_at_the_source_are_one_threshold(store: Store) -> None:
    assert titles(store, min_score=6) == numbers(3)
    for n in range(4):
        store.vote("2604.00001", f"reader {n}", SEEN)
    assert titles(store, min_score=9) == numbers(1, 3)
    assert titles(store, min_score=9, day=DAY) == numbers(1)
    assert titles(store, min_score=9.5) == []
    assert "9 votes" in atom(store, base_url=BASE, day=DAY)


def test_a_search_is_a_feed(store: Store) -> None:
    class Found:
        def query(self, text: str, filters: Any, limit: int, offset: int) -> Any:
            assert (text, filters) == ("wings", {"area": "wings"})
            order = [store.get(f"2604.0000{number}") for number in (3, 1)]
            return SimpleNamespace(items=[SimpleNamespace(paper=one) for one in order][offset : offset + limit])

    search: Any = Found()
    assert titles(store, query="wings", area="wings", search=search) == numbers(3, 1)
    assert titles(store, query="wings", area="wings", search=search, day=DAY) == numbers(1)
    assert titles(store, query="wings", area="wings", search=search, min_score=6) == numbers(3)


def test_the_real_search_is_asked(store: Store) -> None:
    assert titles(store, query="fish", limit=1) == numbers(2)
    assert titles(store, query="  ") == []


def rfc3339(text: str | None) -> datetime:
    assert text is not None
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", text), text
    return datetime.fromisoformat(text)


def test_atom_has_what_the_rfc_asks_for(store: Store) -> None:
    feed = ElementTree.fromstring(atom(store, base_url=BASE + "/", area="wings", min_score=5))
    assert feed.tag == f"{ATOM}feed"
    assert feed.findtext(f"{ATOM}title") == "Daily Papers in wings with at least 5 votes"
    assert feed.findtext(f"{ATOM}author/{ATOM}name")
    links = {link.get("rel"): link.get("href") or "" for link in feed.findall(f"{ATOM}link")}
    assert links == {"self": f"{BASE}/feeds/atom.xml?area=wings&min_score=5", "alternate": f"{BASE}/"}
    assert rfc3339(feed.findtext(f"{ATOM}updated")) == SEEN, "the time at which the store learnt of it"
    ids = [feed.findtext(f"{ATOM}id")]
    for entry in feed.findall(f"{ATOM}entry"):
        ids.append(entry.findtext(f"{ATOM}id"))
        assert rfc3339(entry.findtext(f"{ATOM}updated")) == SEEN
        rfc3339(entry.findtext(f"{ATOM}published"))
        summary = entry.find(f"{ATOM}summary")
        assert summary is not None
        assert summary.get("type") == "text"
    assert len(set(ids)) == 3
    assert all(id and re.fullmatch(r"tag:papers\.example,2026:[\w/.?&=-]+", id) for id in ids)
    first = feed.find(f"{ATOM}entry")
    assert first is not None
    assert [author.findtext(f"{ATOM}name") for author in first.findall(f"{ATOM}author")] == ["Ada Löwe", "Bo M."]
    assert [link.get("href") for link in first.findall(f"{ATOM}link")] == [
        f"{BASE}/paper/2604.00001", "https://arxiv.org/abs/2604.00001"
    ]  # fmt: skip
    assert first.findtext(f"{ATOM}published") == "2026-04-24T00:00:00Z"
    fish = next(entry for entry in entries(atom(store, base_url=BASE)) if entry.findtext(f"{ATOM}title") == "Paper 2")
    assert [category.get("term") for category in fish.findall(f"{ATOM}category")] == ["fins", "cs.LG", "q"]
    assert "Fish & <chips>." in (fish.findtext(f"{ATOM}summary") or "")


def test_rss_has_what_readers_ask_for(store: Store) -> None:
    root = ElementTree.fromstring(rss(store, base_url=BASE, day=DAY))
    assert (root.tag, root.get("version")) == ("rss", "2.0")
    channel = root.find("channel")
    assert channel is not None
    for name in ("title", "link", "description", "lastBuildDate"):
        assert channel.findtext(name)
    own = channel.find(f"{ATOM}link")
    assert own is not None
    assert (own.get("rel"), own.get("href")) == ("self", f"{BASE}/feeds/rss.xml?day=2026-04-24")
    fish, wings = channel.findall("item")
    guid = wings.find("guid")
    assert guid is not None
    assert (guid.get("isPermaLink"), guid.text) == ("false", "tag:papers.example,2026:paper/2604.00001")
    assert wings.findtext("link") == f"{BASE}/paper/2604.00001"
    assert parsedate_to_datetime(wings.findtext("pubDate") or "") == datetime(2026, 4, 24, tzinfo=UTC)
    assert [creator.text for creator in wings.findall(f"{DC}creator")] == ["Ada Löwe", "Bo M."]
    assert "<p>Fish &amp; &lt;chips&gt;.</p>" in (fish.findtext("description") or ""), "a description is HTML"


def test_json_feed_has_what_version_1_1_asks_for(store: Store) -> None:
    feed = json_feed(store, base_url=BASE, author="Löwe", limit=3)
    assert json.loads(json.dumps(feed)) == feed
    assert feed["version"] == "https://jsonfeed.org/version/1.1"
    assert feed["title"] == "Daily Papers by Löwe"
    assert parse_qs(urlsplit(feed["feed_url"]).query) == {"author": ["Löwe"], "limit": ["3"]}
    first = feed["items"][0]
    assert first["id"] == "tag:papers.example,2026:paper/2604.00001"
    assert first["external_url"] == "https://arxiv.org/abs/2604.00001"
    assert rfc3339(first["date_modified"]) == SEEN
    assert (first["authors"], first["tags"]) == ([{"name": "Ada Löwe"}, {"name": "Bo M."}], ["wings"])
    assert first["_paperworks"]["votes"] == 5
    assert first["content_text"]


def test_the_same_store_gives_the_same_bytes_and_a_change_shows(store: Store) -> None:
    def made() -> list[str]:
        return [atom(store, base_url=BASE), rss(store, base_url=BASE), json.dumps(json_feed(store, base_url=BASE))]

    before = made()
    assert made() == before
    later = SEEN + timedelta(hours=2)
    store.add([paper(3, note="a comment")], later)
    assert all(one != other for one, other in zip(made(), before, strict=True))
    old = {e.findtext(f"{ATOM}id"): e.findtext(f"{ATOM}updated") for e in entries(before[0])}
    new = {e.findtext(f"{ATOM}id"): e.findtext(f"{ATOM}updated") for e in entries(made()[0])}
    changed = {id for id in old if old[id] != new[id]}
    assert changed == {"tag:papers.example,2026:paper/2604.00003"}
    assert ElementTree.fromstring(made()[0]).findtext(f"{ATOM}updated") == "2026-04-25T11:30:15Z"


def test_the_verdicts_of_a_carried_paper_are_told(store: Store) -> None:
    card = fake_papers.paper_with_claims()
    store.add([paper(7, card=card.id, first_seen=DAY), paper(8, card="another", first_seen=DAY)], SEEN)
    assert "Verdicts" not in atom(store, base_url=BASE)
    verdicts = Verdicts(store, [card])
    found = {item["title"]: item for item in json_feed(store, base_url=BASE, verdicts=verdicts)["items"]}
    assert "Verdicts on its claims: 3 not run." in found["Paper 7"]["content_text"]
    assert "Not carried yet" in found["Paper 8"]["content_text"]
    assert "arried" not in found["Paper 1"]["content_text"]
    judged = SEEN + timedelta(days=1)
    store.lab.put_verdict(Verdict("fake", "observed", "exact", "holds", "desk", "cpu", created=judged))
    feed = json_feed(store, base_url=BASE, verdicts=verdicts)
    item = next(item for item in feed["items"] if item["title"] == "Paper 7")
    assert "Verdicts on its claims: 1 holds, 2 not run." in item["content_text"]
    assert item["_paperworks"]["verdicts"]["holds"] == 1
    assert rfc3339(item["date_modified"]) == judged, "a new verdict is news"


def test_an_empty_feed_is_a_feed(tmp_path: Any) -> None:
    with Store(tmp_path / "store.sqlite") as store:
        feed = ElementTree.fromstring(atom(store, base_url="http://127.0.0.1:8000"))
        assert rfc3339(feed.findtext(f"{ATOM}updated"))
        assert (feed.findtext(f"{ATOM}id") or "").startswith("tag:127.0.0.1,2026:")
        assert ElementTree.fromstring(rss(store, base_url=BASE)).find("channel/item") is None
        assert json_feed(store, base_url=BASE)["items"] == []


TEXT = st.text(st.characters(exclude_categories=[]), max_size=30)  # lone surrogates and control characters too


@given(title=TEXT, author=TEXT, abstract=TEXT, area=TEXT)
def test_any_text_is_well_formed_xml_and_comes_back(
    shared: Store, title: str, author: str, abstract: str, area: str
) -> None:
    facts: dict[str, Any] = {"authors": ["B" + author], "abstract": abstract, "area": "C" + area, "first_seen": DAY}
    paper = PaperRecord("A" + title, id="2604.00001", source="arxiv", **facts)
    shared.database.write(lambda connection: connection.exec_driver_sql("DELETE FROM papers"))
    shared.add([paper], SEEN)
    for asked in ({"author": "B" + author}, {"area": "C" + area}):
        (entry,) = entries(atom(shared, base_url=BASE, **asked))  # type: ignore[arg-type]
        (item,) = ElementTree.fromstring(rss(shared, base_url=BASE, **asked)).iter("item")  # type: ignore[arg-type]
        (one,) = json_feed(shared, base_url=BASE, **asked)["items"]  # type: ignore[arg-type]
        legal = re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", "A" + title)
        assert entry.findtext(f"{ATOM}title") == item.findtext("title") == one["title"] == " ".join(legal.split())
        json.dumps(one, ensure_ascii=False).encode()
    # what another program of ours would read from the feed, were its ids those of arXiv
    as_of_arxiv = atom(shared, base_url=BASE).replace("tag:papers.example,2026:paper/", "http://arxiv.org/abs/")
    ((record,), _) = parse_arxiv_atom(as_of_arxiv)
    assert (record.id, record.published) == ("2604.00001", DAY)
    assert len(record.authors or []) == 1


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store(tmp_path_factory.mktemp("feed") / "store.sqlite") as opened:
        yield opened


@pytest.mark.parametrize("make", [atom, rss, json_feed])
def test_bad_arguments_name_themselves(shared: Store, make: Any) -> None:
    for arguments, words in (
        ({"limit": 0}, "limit: got 0"),
        ({"limit": 201}, "limit: got 201, wanted a whole number from 1 to 200"),
        ({"limit": "9"}, "limit: got '9'"),
        ({"min_score": float("nan")}, "min_score: got nan"),
        ({"base_url": "papers.example"}, "base_url: got"),
        ({"base_url": "ftp://papers.example"}, "base_url: got"),
        ({"base_url": f"http://{'a' * 70}.example"}, "base_url: got"),
        ({"now": datetime(2026, 4, 24)}, "now: got"),
    ):
        with pytest.raises(ValueError, match=words):
            make(shared, **{"base_url": BASE, **arguments})
    with pytest.raises(TypeError, match="day: got datetime, wanted a date"):
        make(shared, base_url=BASE, day=SEEN)


def test_the_example_of_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs" / "feed.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    found: dict[str, str] = {}
    exec(compile(block, "feed.md", "exec"), found)
    assert ElementTree.fromstring(found["xml"]).tag == f"{ATOM}feed"
