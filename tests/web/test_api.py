"""The JSON under /api: a twin of every page, clear refusals, subscribing, and the owner's runs watched live."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
import requests
import uvicorn
from starlette.testclient import TestClient

from paperworks.feed.records import PaperRecord
from paperworks.feed.store import Store
from paperworks.lab import registry
from paperworks.web import Settings, create_app, views
from paperworks.web.models import Filters, Model
from paperworks.web.settings import RATES, Rate

FRIDAY = date(2026, 4, 24)
NOW = datetime(2026, 4, 25, 9, tzinfo=UTC)
TOKEN = "correct horse battery staple"
OWNER = {"Authorization": f"Bearer {TOKEN}"}
QUICK = "crrelu-is-eafo-of-relu"
"""A claim that is checked in a moment."""


class Outbox(list[EmailMessage]):
    """A transport that keeps what it is given."""

    def send(self, message: EmailMessage) -> None:
        self.append(message)


def made(folder: Path, **changes: Any) -> Any:
    url = folder / "papers.sqlite"
    with Store(url) as store:
        store.add(
            PaperRecord(
                f"Paper {n} on <b>wings</b> & \N{SNOWMAN}", id=f"2604.{n:05d}", first_seen=FRIDAY, rank=n,
                source="daily", published=FRIDAY, abstract="We study wings.", authors=["Ada B.", "Grace C."], upvotes=n,
            )
            for n in range(1, 61)
        )  # fmt: skip
        store.add([PaperRecord("An old one", id="cs/0501001", published=date(2005, 1, 1), source="arxiv")])
    rates = dict.fromkeys(RATES, Rate(10**6, 10**6))
    given = {"store": url, "owner_token": TOKEN, "secret": "s" * 40, "now": lambda: NOW, "rates": rates, **changes}
    return create_app(Settings(**given))


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return made(tmp_path_factory.mktemp("api"))


@pytest.fixture(scope="module")
def client(app: Any) -> Iterator[TestClient]:
    with TestClient(app) as opened:
        yield opened


def view(app: Any, path: str) -> Model:
    site = app.state.site
    return {
        "latest": lambda: views.latest(site),
        "papers/2026-04-24?page=2": lambda: views.day(site, FRIDAY, 2),
        "week/2026-W17": lambda: views.week(site, "2026-W17"),
        "month/2026-04": lambda: views.month(site, "2026-04"),
        "trending?window=week&method=hot&limit=7": lambda: views.trending(site, "week", "hot", limit=7),
        "search?q=wings&until=2026-04-24&limit=5&page=2": lambda: views.search(
            site, "wings", Filters(until=FRIDAY), page=2, limit=5
        ),
        "paper/ash": lambda: views.paper(site, "ash"),
        "paper/cs/0501001": lambda: views.paper(site, "cs/0501001"),
        "areas": lambda: views.areas(site),
        "area/swin": lambda: views.area(site, "swin"),
        "how": lambda: views.how(site),
        "feeds": lambda: views.feeds(site),
    }[path]()


@pytest.mark.parametrize(
    "path",
    [
        "latest", "papers/2026-04-24?page=2", "week/2026-W17", "month/2026-04",
        "trending?window=week&method=hot&limit=7", "search?q=wings&until=2026-04-24&limit=5&page=2", "paper/ash",
        "paper/cs/0501001", "areas", "area/swin", "how", "feeds",
    ],
)  # fmt: skip
def test_the_twin_of_a_page_is_its_data(app: Any, client: TestClient, path: str) -> None:
    answer = client.get(f"/api/{path}")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    told, known = answer.json(), view(app, path).model_dump(mode="json")
    for one in (told, known):
        one.pop("took_ms", None)
        if report := one.get("report"):
            assert report["claims"]
    assert told == known
    again = client.get(f"/api/{path}", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_the_owner_is_told_that_claims_can_be_run(client: TestClient) -> None:
    assert client.get("/api/paper/ash").json()["can_run"] is False
    assert client.get("/api/paper/ash", headers=OWNER).json()["can_run"] is True
    assert client.get("/api/paper/ash", headers={"Authorization": "Bearer wrong"}).json()["can_run"] is False
    assert client.get("/api/paper/2604.00001", headers=OWNER).json()["can_run"] is False


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("papers/2026-02-30", 422), ("papers/yesterday", 422), ("papers/0001-01-01", 422),
        ("papers/2026-04-24%00", 400), ("papers/2026-04-24?page=0", 422), ("papers/2026-04-24?page=3", 422),
        ("papers/2026-04-24?page=1e3", 422), ("papers/2026-04-24?page=-1", 422),
        ("papers/2026-04-24?page=99999999999999999999999", 422),
        ("week/2025-W53", 422), ("week/2026-W17%0a", 422), ("month/2026-13", 422), ("month/9999-01", 422),
        ("trending?window=year", 422), ("trending?method=", 422), ("trending?limit=101", 422),
        ("search?q=x&limit=0", 422), ("search?q=x&page=9999", 422), ("search?q=" + "x" * 301, 422),
        ("search?q=" + "x" * 5000, 414), ("search?q=x&since=2026-13-01", 422), ("search?q=x&code=maybe", 422),
        ("search?q=x&since=2026-04-24&until=2026-04-23", 422), ("search?q=x&verdict=true", 422),
        ("search?q=x&since=9999-12-31", 422), ("paper/nowhere", 404), ("paper/..%2f..%2fetc%2fpasswd", 404),
        ("paper/%00", 400), ("paper/%ff%fe", 404), ("paper/" + "9" * 300, 422), ("paper/2604.99999v7", 404),
        ("paper/x'%20OR%201=1;--", 404), ("area/nowhere", 404), ("area/%F0%9F%98%80", 404), ("area/" + "a" * 65, 422),
        ("nowhere", 404),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_a_reason(client: TestClient, path: str, status: int) -> None:
    answer = client.get(f"/api/{path}")
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["detail"]
    assert isinstance(answer.json()["detail"], str)
    assert answer.json()["detail"]
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    "query",
    ["", "   ", '"', "NEAR(", "a AND", "title:x", "-", "*", "\N{SNOWMAN}", "中文", "' OR 1=1 --", "\x00", "\ufeff"],
)
def test_every_query_of_a_search_is_answered(client: TestClient, query: str) -> None:
    answer = client.get("/api/search", params={"q": query})
    assert answer.status_code == 200
    assert answer.json()["query"] == query
    if not query.strip():
        assert (answer.json()["total"], answer.json()["entries"]) == (0, [])


def test_what_is_not_read_only_is_not_read_only(client: TestClient) -> None:
    for path in ("latest", "search", "paper/ash", "areas"):
        for method in ("post", "put", "delete", "patch"):
            assert client.request(method, f"/api/{path}").status_code == 405
    assert client.get("/api/subscribe").status_code == 405


def test_every_operation_says_what_it_answers(client: TestClient) -> None:
    described = client.get("/api/openapi.json").json()
    wanted = {
        "/api/latest", "/api/papers/{day}", "/api/week/{week}", "/api/month/{month}", "/api/trending", "/api/search",
        "/api/paper/{id}", "/api/areas", "/api/area/{area}", "/api/how", "/api/feeds", "/api/subscribe", "/api/runs",
        "/api/runs/{id}", "/api/runs/{id}/events",
    }  # fmt: skip
    assert set(described["paths"]) == wanted
    problem = {"$ref": "#/components/schemas/Problem"}
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            assert operation["description"], (method, path)
            for status, answer in operation["responses"].items():
                if status.startswith("4"):
                    assert answer["content"]["application/json"]["schema"] == problem, (method, path, status)
            if operation.get("parameters") or operation.get("requestBody"):
                assert "422" in operation["responses"], (method, path)
            for parameter in operation.get("parameters", ()):
                _check_bounds(parameter["schema"], parameter["name"])


def _check_bounds(schema: dict[str, Any], name: str) -> None:
    for one in schema.get("anyOf", [schema]):
        if one.get("type") == "string":
            assert {"maxLength", "pattern", "enum", "const", "format"} & set(one), name
        elif one.get("type") == "integer":
            assert {"minimum", "maximum"} <= set(one), name


def test_subscribing_tells_nobody_who_is_subscribed(tmp_path: Path) -> None:
    outbox = Outbox()
    app = made(tmp_path, transport=outbox, rates={"subscribe": Rate(5, 1)}, catalogue=False)
    with TestClient(app) as client:
        first = client.post("/api/subscribe", json={"email": "ada@example.org"})
        assert first.status_code == 202
        assert [message["To"] for message in outbox] == ["ada@example.org"]
        text = outbox[0].get_body(("plain",)).get_content()  # type: ignore[union-attr]
        token = text.partition("/confirm/")[2].split()[0]
        assert app.state.site.subscriptions.confirm(token, NOW).email == "ada@example.org"
        again = client.post("/api/subscribe", json={"email": "ada@example.org"})
        assert (again.status_code, again.content) == (first.status_code, first.content)
        assert len(outbox) == 1
        for wrong in ({"email": "ada"}, {"email": "a@b.example\r\nBcc: c@d.example"}, {"email": None}):
            answer = client.post("/api/subscribe", json=wrong)
            assert (answer.status_code, list(answer.json())) == (422, ["detail"])
        limited = client.post("/api/subscribe", json={"email": "grace@example.org"})
        assert limited.status_code == 429
        assert int(limited.headers["retry-after"]) > 0
        assert len(outbox) == 1


def test_bodies_that_are_no_json_are_refused(client: TestClient) -> None:
    for path, headers in (("/api/subscribe", {}), ("/api/runs", OWNER)):
        for body in (b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"email":"a@b.example","more":1}'):
            answer = client.post(path, content=body, headers={**headers, "content-type": "application/json"})
            assert answer.status_code == 422, (path, body[:20])
        deep = client.post(path, content=b'{"a":' * 9000, headers={**headers, "content-type": "application/json"})
        assert deep.status_code == 400
        form = client.post(path, data={"email": "a@b.example", "paper": "ash"}, headers=headers)
        assert form.status_code == 422  # what a page of another site could send without asking
        big = client.post(path, content=b" " * 200_000, headers={**headers, "content-type": "application/json"})
        assert big.status_code == 413


RUN_CALLS = [
    ("GET", "/api/runs"), ("POST", "/api/runs"), ("GET", "/api/runs/x"), ("DELETE", "/api/runs/x"),
    ("GET", "/api/runs/x/events"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), RUN_CALLS)
def test_runs_are_the_owners(client: TestClient, method: str, path: str) -> None:
    body = {"json": {"paper": "crrelu"}} if method == "POST" else {}
    for headers in ({}, {"Authorization": "Bearer nope"}, {"Authorization": "Basic " + TOKEN}, {"Cookie": "owner=1.2"}):
        answer = client.request(method, path, headers=headers, **body)  # type: ignore[arg-type]
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert list(answer.json()) == ["detail"]


def test_a_page_of_another_site_starts_no_run_with_the_owners_cookie(app: Any, client: TestClient) -> None:
    session = app.state.tokens.set_owner(NOW.timestamp()).partition(";")[0]
    for more in ({"sec-fetch-site": "same-site"}, {"origin": "http://testserver:9999"}, {"origin": "null"}):
        headers = {"cookie": session, **more}
        assert client.post("/api/runs", json={"paper": "nowhere"}, headers=headers).status_code == 403
        assert client.delete("/api/runs/x", headers=headers).status_code == 403
    assert client.post("/api/runs", json={"paper": "nowhere"}, headers={"cookie": session}).status_code == 422


def test_runs_are_off_where_the_site_is_not_only_for_this_machine(tmp_path: Path) -> None:
    with TestClient(made(tmp_path, host="0.0.0.0", catalogue=False)) as client:
        for method, path in RUN_CALLS:
            body = {"json": {"paper": "crrelu"}} if method == "POST" else {}
            assert client.request(method, path, headers=OWNER, **body).status_code == 403  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"paper": "nowhere"}, 422), ({"paper": "../ash"}, 422), ({"paper": "ash\x00"}, 422),
        ({"paper": "\ud800"}, 422),
        ({"paper": "ash", "tier": "full; rm -rf /"}, 422), ({"paper": "ash", "claims": ["nothing"]}, 422),
        ({"paper": "ash", "claims": []}, 422), ({"paper": "ash", "settings": {"data": "cifar:/etc"}}, 422),
        ({"paper": "ash", "device": "cuda"}, 422), ({"paper": registry.announced()[0].id}, 422), ({"paper": 7}, 422),
        ({"paper": "ash", "claims": [{"a": 1}]}, 422), ({"paper": "x" * 10_000}, 422),
    ],
)  # fmt: skip
def test_nothing_else_can_be_started(client: TestClient, body: dict[str, Any], status: int) -> None:
    content = json.dumps(body)
    answer = client.post("/api/runs", content=content, headers={**OWNER, "content-type": "application/json"})
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["detail"]
    assert client.get("/api/runs", headers=OWNER).json() == {"runs": []}


def test_an_unknown_run_is_not_there(client: TestClient) -> None:
    for id in ("x", "..%2f..", "%F0%9F%98%80", "0" * 40):
        for method, path in (
            ("GET", f"/api/runs/{id}"),
            ("DELETE", f"/api/runs/{id}"),
            ("GET", f"/api/runs/{id}/events"),
        ):
            assert client.request(method, path, headers=OWNER).status_code == 404


@contextmanager
def served(app: Any) -> Iterator[str]:
    """The application behind a real server on loopback; its address."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def watch(base: str, id: str) -> list[dict[str, Any]]:
    """Every state that a run's stream tells, up to its end."""
    with requests.get(f"{base}/api/runs/{id}/events", headers=OWNER, stream=True, timeout=120) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].partition(";")[0] == "text/event-stream"
        assert answer.headers["cache-control"] == "no-store"
        lines = answer.iter_lines(decode_unicode=True)
        return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


def test_a_real_paper_is_run_and_watched_and_its_page_shows_the_verdicts(tmp_path: Path) -> None:
    with served(made(tmp_path)) as base:
        before = requests.get(f"{base}/api/paper/crrelu", timeout=60).json()
        asked = {"paper": "crrelu", "claims": [QUICK]}
        answer = requests.post(f"{base}/api/runs", json=asked, headers=OWNER, timeout=60)
        assert answer.status_code == 202
        started = answer.json()
        assert answer.headers["location"] == f"/api/runs/{started['id']}"
        with requests.get(f"{base}{answer.headers['location']}/events", headers=OWNER, stream=True, timeout=60) as gone:
            assert next(gone.iter_lines()).startswith(b"id: ")  # and this reader leaves
        last = watch(base, started["id"])[-1]
        assert (last["state"], last["total"], last["done"]) == ("done", 1, 1)
        assert last["verdicts"] == {QUICK: "holds"}
        assert watch(base, started["id"]) == [last]
        assert requests.get(f"{base}{answer.headers['location']}", headers=OWNER, timeout=60).json() == last
        ended = {**OWNER, "Last-Event-ID": "done"}
        told = requests.get(f"{base}{answer.headers['location']}/events", headers=ended, timeout=60)
        assert (told.status_code, told.content) == (204, b"")
        after = requests.get(f"{base}/api/paper/crrelu", timeout=60).json()
    assert (before["entry"]["verdicts"]["holds"], after["entry"]["verdicts"]["holds"]) == (0, 1)
    with Store(tmp_path / "papers.sqlite") as store:
        assert [kind for kind, _, _ in store.history("crrelu")] == ["run"]


def test_a_server_that_ends_stops_its_run_and_keeps_what_finished(tmp_path: Path) -> None:
    app = made(tmp_path)
    with served(app) as base:
        asked = {"paper": "crrelu", "tier": "desk", "claims": [QUICK, "more-accurate-than-relu"]}
        id = requests.post(f"{base}/api/runs", json=asked, headers=OWNER, timeout=60).json()["id"]
        other = requests.post(f"{base}/api/runs", json=asked, headers=OWNER, timeout=60).json()["id"]
        stopped = requests.delete(f"{base}/api/runs/{other}", headers=OWNER, timeout=60).json()
        assert stopped["state"] == "stopped"
        with requests.get(f"{base}/api/runs/{id}/events", headers=OWNER, stream=True, timeout=120) as stream:
            for line in stream.iter_lines(decode_unicode=True):
                if line.startswith("data: ") and json.loads(line.removeprefix("data: "))["done"] >= 1:
                    break
    state = app.state.site.runs.get(id)
    assert state.state == "stopped"
    assert state.finished is not None
    assert 1 <= state.done < state.total
