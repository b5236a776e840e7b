"""Requests that are malformed, hostile or too much: each is answered with a clear 4xx, and nothing is lost."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, date, datetime
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paperworks.data.synthetic_papers import synthetic_papers
from paperworks.feed import PaperRecord, Store
from paperworks.web import Settings, create_app
from paperworks.web.models import Problem
from paperworks.web.settings import RATES, Rate

NOW = datetime(2026, 4, 24, 18, 30, tzinfo=UTC)
TOKEN = "the owner's token"
FORM = "application/x-www-form-urlencoded"
ORIGIN = "https://papers.example"


class Outbox(list[Any]):
    """A transport that keeps what is sent."""

    def send(self, message: Any) -> None:
        self.append(message)


class Site:
    """The application, asked without a client in between that would tidy up what it sends."""

    def __init__(self, path: Any) -> None:
        self.path = path
        self.outbox = Outbox()
        with Store(path) as store:
            days = (date(2026, 4, 23), date(2026, 4, 24))
            store.add(
                [PaperRecord(**facts, first_seen=days[i % 2]) for i, facts in enumerate(synthetic_papers(30))], NOW
            )
        self.app = create_app(
            Settings(
                store=path,
                secret="secret " * 8,
                base_url=ORIGIN,
                transport=self.outbox,
                owner_token=TOKEN,
                now=lambda: NOW,
                catalogue=False,
                rates=dict.fromkeys(RATES, Rate(10**6, 10**6)),
            )
        )

    def ask(
        self, method: str, target: str | bytes, body: bytes | list[bytes] = b"", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """One request with a raw path; headers by name with ``_`` for ``-``; a list is a body without a length."""
        raw = target.encode("latin-1") if isinstance(target, str) else target
        path, _, query = raw.partition(b"?")
        pieces = body if isinstance(body, list) else [body]
        named = {"host": "papers.example", **{name.replace("_", "-").lower(): value for name, value in headers.items()}}
        if not isinstance(body, list) and (body or method == "POST"):
            named.setdefault("content-length", str(len(body)))
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "https",
            "path": unquote_to_bytes(path).decode("utf-8", "replace"), "raw_path": path, "query_string": query,
            "root_path": "", "headers": [(n.encode("latin-1"), v.encode("latin-1")) for n, v in named.items()],
            "client": ("203.0.113.9", 1), "server": ("papers.example", 443), "state": {},
        }  # fmt: skip
        sent: list[dict[str, Any]] = []
        waiting = iter(pieces)
        left = len(pieces)

        async def receive() -> dict[str, Any]:
            nonlocal left
            left -= 1
            if left < 0:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": next(waiting), "more_body": left > 0}

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(self.app(scope, receive, send))
        start = next(message for message in sent if message["type"] == "http.response.start")
        content = b"".join(message.get("body", b"") for message in sent if message["type"] == "http.response.body")
        return start["status"], {n.decode().lower(): v.decode("latin-1") for n, v in start["headers"]}, content

    def contents(self) -> dict[str, list[Any]]:
        """Everything that the store holds."""
        names = ("papers", "aliases", "paper_versions", "feed_days", "events", "votes", "subscribers", "deliveries")
        with closing(sqlite3.connect(self.path)) as connection:
            return {name: sorted(map(repr, connection.execute(f"SELECT * FROM {name}"))) for name in names}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("abuse") / "feed.sqlite")
    yield made
    made.app.state.site.close()


@pytest.fixture(autouse=True)
def _nothing_is_lost(site: Site) -> Iterator[None]:
    before = site.contents()
    yield
    assert site.contents() == before
    assert site.outbox == []


def problem(answer: tuple[int, dict[str, str], bytes], *statuses: int) -> None:
    """The answer is a refusal that says why: a page for people, or JSON with a detail."""
    status, headers, body = answer
    assert status in statuses or (not statuses and 400 <= status < 500), (status, body[:300])
    if "json" in headers["content-type"]:
        assert Problem.model_validate_json(body).detail
    else:
        assert headers["content-type"].startswith("text/html")
        assert b"<h1" in body
        assert b"Traceback" not in body


# --- addresses of pages ---

DATES = [
    "/papers/2026-13-01", "/papers/2026-02-30", "/papers/2026-4-24", "/papers/tomorrow", "/papers/99999-01-01",
    "/papers/0000-00-00", "/papers/-2026-04-24", "/papers/2026-04-24T00:00", "/papers/2026-04-24%00",
    "/papers/20260424",
    "/papers/%D9%A2%D9%A0%D9%A2%D9%A6-%D9%A0%D9%A4-%D9%A2%D9%A4", "/week/2026-W54", "/week/2026-W00", "/week/2026-17",
    "/week/2025-W53", "/month/2026-00", "/month/2026-13", "/month/2026", "/month/2026-04-24", "/week/9999-W99",
]  # fmt: skip


@pytest.mark.parametrize("path", DATES)
@pytest.mark.parametrize("prefix", ["", "/api"])
def test_dates_that_do_not_exist(site: Site, prefix: str, path: str) -> None:
    problem(site.ask("GET", prefix + path), 400, 404, 422)


@pytest.mark.parametrize("path", ["/papers/0001-01-01", "/papers/9999-12-31", "/week/9999-W52", "/month/0001-01"])
@pytest.mark.parametrize("prefix", ["", "/api"])
def test_the_ends_of_the_calendar(site: Site, prefix: str, path: str) -> None:
    status, _, _ = site.ask("GET", prefix + path)
    assert status < 500


NUMBERS = ["page=0", "page=-1", "page=abc", "page=1e3", "page=999999999999999999999", "page=", "page=1&page=zzz"]


@pytest.mark.parametrize("query", NUMBERS)
@pytest.mark.parametrize("path", ["/", "/papers/2026-04-24", "/api/search", "/api/trending", "/week/2026-W17"])
def test_pages_that_do_not_exist(site: Site, path: str, query: str) -> None:
    answer = site.ask("GET", f"{path}?q=depth&{query}")
    assert answer[0] < 500
    if query.startswith(("page=-1", "page=0", "page=abc")):
        problem(answer, 400, 404, 422)


@pytest.mark.parametrize(
    "query",
    ["window=year", "method=magic", "window=%00", "limit=0", "limit=-5", "limit=1000000000", "limit=NaN"],
)
def test_trending_with_what_it_does_not_have(site: Site, query: str) -> None:
    problem(site.ask("GET", f"/api/trending?{query}"), 400, 422)


TRAVERSALS = [
    "/static/../../../../etc/passwd", "/static/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "/static/..%2f..%2f..%2fetc%2fpasswd",
    "/static//etc/passwd", "/static/%2fetc%2fpasswd", "/static/..%5c..%5capp.py", "/static/%00", "/static/../app.py",
    "/paper/../../../etc/passwd", "/paper/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/api/paper/../../etc/passwd",
    "/area/..%2f..",
    "/papers/..%2f..%2fetc%2fpasswd", "/feeds/../../app.py", "/static/", "/static", "/u/../subscribe/../../etc/passwd",
    "/confirm/%2e%2e%2f%2e%2e", "/runs/../../etc/passwd", "/api/runs/%2e%2e",
]  # fmt: skip


@pytest.mark.parametrize("path", TRAVERSALS)
def test_no_path_leads_out(site: Site, path: str) -> None:
    status, _, body = site.ask("GET", path)
    assert 400 <= status < 500 or status in (301, 307, 308), status
    assert b"root:" not in body
    assert b"create_app" not in body


UNKNOWN = ["/paper/9999.99999", "/paper/no-such-card", "/area/alchemy", "/nowhere", "/api/nowhere", "/feeds/feed.exe",
           "/api/paper/9999.99999", "/api/area/alchemy", "/api/runs/1", "/paper/" + "a" * 5000, "/paper/%ff%fe",
           "/paper/%ED%A0%80", "/area/%ED%A0%80", "/u/", "/u/forged", "/preferences/forged"]  # fmt: skip


@pytest.mark.parametrize("path", UNKNOWN)
def test_what_is_not_there(site: Site, path: str) -> None:
    problem(site.ask("GET", path))


# --- queries ---

HOSTILE = [
    '"', "'", '"""', "a AND", "NEAR(", "NEAR(a b, 3)", "title:", "title : x", "* ", "-", "^a", "a*b", "{title} : x",
    "OR",
    "NOT NOT", "(((((((", "a\x00b", "\x00", "\ud7ff", "🧠" * 20, "神经网络", "ا" * 40, "\u202eevil", "%", "_", "\\",
    "a" * 190,
    "'; DROP TABLE papers; --", "\" OR 1=1 --", "<script>alert(1)</script>", "{{7*7}}", "${7*7}", "../../etc/passwd",
    "(a+)+$", " ".join("abcdefghijklmnopqrstuvwxyz"), "\u0301" * 50, "ﬁ", "İstanbul", "ß" * 30, "\r\nSet-Cookie: a=b",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_queries_are_words_or_refused(site: Site, text: str) -> None:
    for path in ("/search", "/api/search", "/feeds/atom.xml", "/feeds/rss.xml", "/feeds/feed.json"):
        status, headers, body = site.ask("GET", f"{path}?q={quote(text)}&query={quote(text)}")
        assert status == 200 or 400 <= status < 500, (path, text, status, body[:200])
        assert b"<script>alert(1)</script>" not in body or "json" in headers["content-type"]
        assert "set-cookie" not in headers or "a=b" not in headers["set-cookie"]
        assert b"49" not in body or "7*7" not in text or b"{{7*7}}" in body or b"${7*7}" in body or status != 200


@pytest.mark.parametrize("length", [2_000, 100_000])
def test_over_long_queries(site: Site, length: int) -> None:
    for path in ("/search", "/api/search", "/feeds/atom.xml"):
        status, _, body = site.ask("GET", f"{path}?q={'depth+' * (length // 6)}&query={'a' * length}")
        assert status == 200 or 400 <= status < 500
        assert len(body) < 300_000, "what was sent is not sent back many times over"


@pytest.mark.parametrize(
    "query",
    ["since=yesterday", "until=2026-02-30", "verdict=maybe", "code=perhaps", "since=2026-05-01%00", "area=%00"],
)
def test_filters_that_mean_nothing(site: Site, query: str) -> None:
    status, _, _ = site.ask("GET", f"/api/search?q=depth&{query}")
    assert 400 <= status < 500 or query.startswith("area")


@pytest.mark.parametrize(
    "raw", [b"/search?q=%ff%fe", b"/search?q=%ED%A0%80", b"/search?q=\xff\xfe", b"/search?%ff=%ff"]
)
def test_bytes_that_are_no_text(site: Site, raw: bytes) -> None:
    assert site.ask("GET", raw)[0] < 500


# --- bodies, methods, headers ---


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "PROPFIND", "get", "X" * 200])
@pytest.mark.parametrize(
    "path", ["/", "/search", "/papers/2026-04-24", "/api/latest", "/subscribe", "/static/site.css"]
)
def test_methods_that_are_not_served(site: Site, method: str, path: str) -> None:
    status, _, _ = site.ask(method, path)
    assert status in (400, 404, 405)


@pytest.mark.parametrize(
    "path", ["/subscribe", "/api/subscribe", "/u/forged", "/owner", "/preferences/forged", "/runs"]
)
def test_huge_bodies(site: Site, path: str) -> None:
    kind = "application/json" if path.startswith("/api") else FORM
    problem(site.ask("POST", path, b"email=" + b"a" * 10_000_000, content_type=kind), 413)
    chunks = [b"a" * 65_536] * 200
    assert site.ask("POST", path, chunks, content_type=kind)[0] in (400, 403, 404, 411, 413)


BODIES = {
    "no JSON": b"{", "an array": b"[]", "a number": b"3", "null": b"null", "no field": b"{}", "deep": b"[" * 30_000,
    "another type": b'{"email": 3}', "a list": b'{"email": ["a@b.example"]}', "NaN": b'{"email": NaN}',
    "more than asked": b'{"email": "a@b.example", "status": "active"}', "no text": b'{"email": "\xff\xfe"}',
    "a surrogate": b'{"email": "\\ud800@b.example"}', "NUL": b'{"email": "a\\u0000@b.example"}', "empty": b"",
}  # fmt: skip


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_malformed_json(site: Site, body: bytes) -> None:
    problem(site.ask("POST", "/api/subscribe", body, content_type="application/json"), 400, 422)


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/xml", "", "multipart/form-data", "image/png", "a/b; c=\x7f"]
)
def test_other_kinds_of_body(site: Site, kind: str) -> None:
    for path in ("/subscribe", "/api/subscribe", "/owner"):
        problem(site.ask("POST", path, b"email=a%40b.example", content_type=kind), 400, 403, 415, 422)


INJECTIONS = [
    "a@b.example\r\nBcc: all@victims.example", "a@b.example\nSubject: hello", "a@b.example%0aBcc: x@y.example",
    "a\x00@b.example",
    "a@b.example, c@d.example", "<a@b.example>", '"a\r\n"@b.example', "a@b.example\u2028Bcc: x", "a@b", "@",
    "a" * 400 + "@b.example",
    "a@[127.0.0.1]", "a@b.example;c@d.example", "a b@c.example", "\u202ea@b.example", "a@-b.example", "a@b..example",
]  # fmt: skip


@pytest.mark.parametrize("address", INJECTIONS)
def test_no_address_adds_a_header_or_a_recipient(site: Site, address: str) -> None:
    body = json.dumps({"email": address}).encode()
    problem(site.ask("POST", "/api/subscribe", body, content_type="application/json"), 400, 422)


def test_forms_from_elsewhere(site: Site) -> None:
    for path in ("/subscribe", "/owner", "/runs", "/paper/8001.00001/vote", "/preferences/forged", "/confirm/forged"):
        for headers in ({}, {"origin": "https://evil.example"}, {"cookie": "visitor=forged; csrf=forged"}):
            answer = site.ask("POST", path, b"email=a%40b.example&csrf=forged", content_type=FORM, **headers)
            problem(answer, 400, 401, 403, 404, 422)


def test_one_click_with_a_forged_token(site: Site) -> None:
    for token in ("forged", "0" * 75, "a" * 3000, "%00", "%ED%A0%80", "%ff"):
        problem(site.ask("POST", f"/u/{token}", b"List-Unsubscribe=One-Click", content_type=FORM), 400, 404, 413, 414)


def test_another_host_is_not_believed(site: Site) -> None:
    for host in ("evil.example", "papers.example.evil.example", "papers.example@evil.example", "", "[::1"):
        status, _, body = site.ask("GET", "/feeds/atom.xml", host=host)
        assert 400 <= status < 500 or b"evil" not in body


RUNS = [
    {"paper": "crrelu", "tier": "smoke", "settings": {"model": "os:system"}}, {"paper": "../../etc", "tier": "smoke"},
    {"paper": "crrelu", "tier": "gigantic"}, {"paper": "crrelu", "tier": "smoke", "claims": ["; rm -rf /"]}, [],
    None, {}, {"paper": ["crrelu"], "tier": "smoke"}, {"paper": "crrelu", "tier": "smoke", "device": "cuda:0; ls"},
]  # fmt: skip


@pytest.mark.parametrize("wanted", RUNS, ids=range(len(RUNS)))
def test_runs_take_no_orders(site: Site, wanted: Any) -> None:
    body = json.dumps(wanted).encode()
    problem(site.ask("POST", "/api/runs", body, content_type="application/json"), 401, 403, 404)
    for bad in ("Bearer ", "Bearer wrong", "Basic dGhl", f"Bearer {TOKEN}x", f"bearer\x00{TOKEN}"):
        problem(site.ask("POST", "/api/runs", body, content_type="application/json", authorization=bad), 401, 403, 404)
    answer = site.ask("POST", "/api/runs", body, content_type="application/json", authorization=f"Bearer {TOKEN}")
    problem(answer, 400, 403, 404, 422)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["/", "/search", "/papers/", "/week/", "/paper/", "/area/", "/api/", "/feeds/", "/static/", "/u/"]),
    st.binary(max_size=30),
    st.dictionaries(
        st.sampled_from(["q", "query", "page", "limit", "since", "area", "author", "day", "min_score", "window"]),
        st.text(max_size=20),
        max_size=4,
    ),
)
def test_whatever_is_asked_nothing_falls_over(site: Site, path: str, rest: bytes, query: dict[str, str]) -> None:
    asked = "&".join(f"{name}={quote(value.encode('utf-8', 'replace'))}" for name, value in query.items())
    status, _, _ = site.ask("GET", f"{path}{quote(rest)}?{asked}")
    assert status < 500
