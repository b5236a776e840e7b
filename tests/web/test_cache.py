"""Pages kept as bytes: never older than the store, never another reader's, made once for many."""

from __future__ import annotations

import asyncio
import gzip
import re
import threading
import zlib
from dataclasses import replace
from datetime import timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from web.web_site import FRIDAY, NOW, TOKEN, Reader, fill, make_app

from paperworks.feed.records import PaperRecord
from paperworks.feed.store import Store
from paperworks.web import cache, pages

DAY = "/papers/2026-04-24"
PAPER = "/paper/2604.00002"


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    return Reader(make_app(tmp_path))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The templates that were rendered."""
    names: list[str] = []
    render = pages.render

    def counted(template: str, **values: Any) -> str:
        names.append(template)
        return render(template, **values)

    monkeypatch.setattr(pages, "render", counted)
    return names


async def asked(app: Any, path: str = DAY) -> tuple[int, bytes]:
    """Status and body of a page, asked for in this event loop."""
    sent: list[dict[str, Any]] = []
    scope = {
        "type": "http", "http_version": "1.1", "method": "GET", "path": path, "raw_path": path.encode(),
        "query_string": b"", "headers": [(b"host", b"testserver")], "client": ("127.0.0.1", 1),
        "server": ("testserver", 80), "scheme": "http", "root_path": "",
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return int(sent[0]["status"]), b"".join(message.get("body", b"") for message in sent[1:])


def test_a_page_is_made_once(reader: Reader, made: list[str]) -> None:
    first, second = reader.get(DAY), reader.get(DAY)
    assert first.content == second.content
    assert made == ["listing.html.j2"]
    assert first.headers["etag"] == second.headers["etag"]
    reader.get(f"{DAY}?page=1")
    assert len(made) == 2


def test_a_reader_who_has_the_page_is_told_so(reader: Reader) -> None:
    first = reader.get(DAY)
    tag = first.headers["etag"]
    for sent in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        answer = reader.get(DAY, headers={"if-none-match": sent})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == tag
    assert reader.get(DAY, headers={"if-none-match": '"other"'}).status_code == 200


def test_a_page_is_as_new_as_the_store(reader: Reader, tmp_path: Path) -> None:
    before = reader.get(DAY)
    with Store(tmp_path / "site.sqlite") as other_process:
        record = PaperRecord("A late one", id="2604.00009", first_seen=FRIDAY, rank=9, source="daily")
        other_process.add([record])
    after = reader.get(DAY)
    assert "A late one" not in before.text
    assert "A late one" in after.text
    assert before.headers["etag"] != after.headers["etag"]
    assert reader.get(DAY, headers={"if-none-match": before.headers["etag"]}).status_code == 200


def test_a_vote_and_a_verdict_make_a_page_anew(reader: Reader, made: list[str]) -> None:
    site = reader.app.state.site  # type: ignore[attr-defined]
    reader.get(DAY)
    site.store.vote("2604.00002", "one", NOW)
    assert "1 vote" in reader.get(DAY).text
    verdict = next(iter(site.store.lab.history("ash", "parameters")))
    reader.get(DAY)
    count = len(made)
    site.store.lab.put_verdict(replace(verdict, fingerprint="another", created=NOW))
    reader.get(DAY)
    assert len(made) == count + 1


def test_what_depends_on_the_time_is_made_anew_each_minute(tmp_path: Path, made: list[str]) -> None:
    moment = [NOW]
    reader = Reader(make_app(tmp_path, now=lambda: moment[0]))
    for second in (0, 30, 59):
        moment[0] = NOW.replace(second=second)
        reader.get("/trending")
    assert len(made) == 1
    moment[0] = NOW.replace(minute=NOW.minute + 1)
    reader.get("/trending")
    assert len(made) == 2


def test_each_reader_has_a_token_of_their_own_in_a_kept_page(reader: Reader, made: list[str]) -> None:
    others = [Reader(reader.app) for _ in range(3)]
    found = [re.findall(r'name="csrf" value="(\w{64})"', one.page(PAPER)) for one in others]
    assert made == ["paper_of_site.html.j2"]
    assert len({token for tokens in found for token in tokens}) == 3
    assert all(len(set(tokens)) == 1 for tokens in found)
    assert "form-token-" not in others[0].page(PAPER)
    first, again = others[0].get(PAPER), others[0].get(PAPER)
    assert first.text == again.text
    assert first.headers["cache-control"] == "private, no-cache"
    # The tag of one reader is not another's: their page has another token.
    tag = first.headers["etag"]
    assert others[0].get(PAPER, headers={"if-none-match": tag}).status_code == 304
    assert others[1].get(PAPER, headers={"if-none-match": tag}).status_code == 200


def test_pages_without_forms_give_nobody_a_cookie(reader: Reader) -> None:
    for path in ("/", DAY, "/search?q=adaptive", "/areas", "/how"):
        answer = reader.get(path)
        assert "set-cookie" not in answer.headers
        assert answer.headers["cache-control"] == "public, max-age=0, must-revalidate"


def test_what_the_owner_sees_is_not_kept(reader: Reader, made: list[str]) -> None:
    path = "/paper/2210.11672"
    owner = Reader(reader.app)
    owner.sign_in()
    assert "Run its claims" in owner.page(path)
    bearer = reader.get(f"/api{path}", headers={"authorization": f"Bearer {TOKEN}"})
    assert bearer.json()["can_run"] is True
    assert reader.get(f"/api{path}").json()["can_run"] is False
    assert "Run its claims" not in reader.page(path)
    assert "Run its claims" in owner.page(path)
    assert owner.get(path).headers["cache-control"] in ("no-store", "private, no-store")


def test_compressed_and_plain_are_the_same_page(reader: Reader) -> None:
    plain = reader.get(DAY, headers={"accept-encoding": "identity"})
    packed = reader.get(DAY, headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert plain.content == packed.content
    assert int(packed.headers["content-length"]) < int(plain.headers["content-length"]) / 3
    assert "Accept-Encoding" in plain.headers["vary"]
    # With a form the token is put between what was compressed beforehand.
    plain = reader.get(PAPER, headers={"accept-encoding": "identity"})
    packed = reader.get(PAPER, headers={"accept-encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert plain.content == packed.content
    assert packed.headers["content-length"] == Reader(reader.app).get(PAPER).headers["content-length"]


@given(st.lists(st.binary(max_size=3000), min_size=1, max_size=5), st.binary(max_size=64))
def test_pieces_make_one_gzip_file(parts: list[bytes], token: bytes) -> None:
    body = token.join(parts)
    made = cache.gzipped(cache.deflated(token, 0).join(map(cache.deflated, parts)), body)
    assert gzip.decompress(made) == body
    assert zlib.decompress(made, wbits=31) == body


def test_others_are_given_the_page_before_while_one_makes_it_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app(tmp_path)
    first = Reader(app).get(DAY)
    app.state.site.store.add([PaperRecord("A late one", id="2604.00009", first_seen=FRIDAY, rank=9)])
    render, begun, may_go = pages.render, threading.Event(), threading.Event()

    def slow(template: str, **values: Any) -> str:
        begun.set()
        may_go.wait(10)
        return render(template, **values)

    monkeypatch.setattr(pages, "render", slow)

    async def both() -> tuple[Any, Any]:
        making = asyncio.create_task(asked(app))
        while not begun.is_set():
            await asyncio.sleep(0.01)
        meanwhile = await asked(app)
        may_go.set()
        return meanwhile, await making

    meanwhile, anew = asyncio.run(both())
    assert meanwhile[1] == first.content
    assert b"A late one" in anew[1]


@pytest.mark.parametrize("path", [DAY, PAPER, "/healthz", "/nowhere", "/static/nothing.css"])
def test_head_is_get_without_the_body(reader: Reader, path: str) -> None:
    reader.get(PAPER)
    got, head = reader.get(path), reader.head(path)
    assert (head.status_code, head.content) == (got.status_code, b"")
    assert head.headers.get("content-length") == got.headers.get("content-length")


def test_errors_are_not_kept(reader: Reader, tmp_path: Path) -> None:
    assert reader.get("/paper/2604.00077").status_code == 404
    reader.app.state.site.store.add([PaperRecord("It came", id="2604.00077")])  # type: ignore[attr-defined]
    assert reader.get("/paper/2604.00077").status_code == 200


def test_many_readers_of_a_new_page_wait_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = make_app(tmp_path)
    rendered, may_go = [], threading.Event()
    render = pages.render

    def slow(template: str, **values: Any) -> str:
        rendered.append(template)
        may_go.wait(10)
        return render(template, **values)

    monkeypatch.setattr(pages, "render", slow)

    async def all_of_them() -> list[int]:
        tasks = [asyncio.create_task(asked(app)) for _ in range(50)]
        while not rendered:
            await asyncio.sleep(0.01)
        may_go.set()
        return [status for status, _ in await asyncio.gather(*tasks)]

    assert asyncio.run(all_of_them()) == [200] * 50
    assert rendered == ["listing.html.j2"]


def test_the_kept_pages_are_bounded(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "PAGES", 3)
    for number in range(6):
        reader.get(f"/how?n={number}")
    kept = reader.app.cache  # type: ignore[attr-defined]
    assert [query for _, query in kept._pages] == [b"n=3", b"n=4", b"n=5"]
    assert kept._bytes == sum(page.size for page in kept._pages.values())
    monkeypatch.setattr(cache, "BYTES", 1000)
    reader.get("/how?n=7")
    assert len(kept._pages) == 3  # one page larger than its share is not kept at all


def test_on_postgresql_a_page_is_as_new_as_the_look_up(store_url: str, tmp_path: Path) -> None:
    fill(store_url)
    reader = Reader(make_app(tmp_path, store=store_url, fresh_seconds=0.0))
    reader.get(DAY)
    with Store(store_url) as other_process:
        other_process.add([PaperRecord("A late one", id="2604.00009", first_seen=FRIDAY, rank=9)])
    assert "A late one" in reader.get(DAY).text
    # What this process did is seen at once, however seldom is looked.
    seldom = Reader(make_app(tmp_path, store=store_url, fresh_seconds=3600.0))
    seldom.get(PAPER)
    seldom.fill_in(PAPER, {}, f"{PAPER}/vote")
    assert "Vote <b>1</b>" in seldom.page(PAPER)


def test_a_feed_says_since_when_it_is_as_it_is(tmp_path: Path) -> None:
    moment = [NOW]
    reader = Reader(make_app(tmp_path, now=lambda: moment[0]))
    path = "/feeds/atom.xml"
    first = reader.get(path).headers["last-modified"]
    assert parsedate_to_datetime(first) == NOW.replace(microsecond=0)
    moment[0] += timedelta(hours=1)  # made anew, and the same
    assert reader.get(path).headers["last-modified"] == first
    same = reader.get(path, headers={"if-modified-since": first})
    assert (same.status_code, same.content, same.headers["last-modified"]) == (304, b"", first)
    assert reader.get(path, headers={"if-modified-since": first, "if-none-match": '"x"'}).status_code == 200
    moment[0] = NOW  # two changes within a second
    reader.app.state.site.store.add([PaperRecord("A late one", id="2604.00009", first_seen=FRIDAY)])  # type: ignore[attr-defined]
    changed = reader.get(path, headers={"if-modified-since": first})
    assert changed.status_code == 200
    assert parsedate_to_datetime(changed.headers["last-modified"]) > parsedate_to_datetime(first)
    for wrong in ("yesterday", "", "Fri, 24 Apr 99999 18:30:00 GMT"):
        assert reader.get(path, headers={"if-modified-since": wrong}).status_code == 200
    assert "last-modified" not in reader.get(PAPER).headers, "its form has the reader's token in it"
