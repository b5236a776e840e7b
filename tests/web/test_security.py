"""What every response carries, and what is refused before a page is reached."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from web.web_site import Reader, make_app

from paperworks.web import Settings
from paperworks.web.drawings import ATTRIBUTES, declarations, without_style
from paperworks.web.security import ADDRESSES, Limiter, Tokens, response_headers
from paperworks.web.settings import RATES, Rate


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader(make_app(tmp_path_factory.mktemp("security")))


@pytest.mark.parametrize("path", ["/", "/paper/2210.11672", "/nowhere", "/api/latest", "/api/nowhere", "/healthz"])
def test_every_response_carries_the_headers(reader: Reader, path: str) -> None:
    headers = reader.get(path).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["form-action"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-opener-policy"] == headers["cross-origin-resource-policy"] == "same-origin"
    assert "strict-transport-security" not in headers
    assert "server" not in headers


def test_https_is_asked_for_where_there_is_https(tmp_path: Path) -> None:
    app = make_app(tmp_path, base_url="https://papers.example")
    reader = Reader(app, base_url="https://papers.example")
    answer = reader.get("/subscribe")
    assert "max-age=31536000" in answer.headers["strict-transport-security"]
    assert answer.headers["set-cookie"].startswith("__Host-visitor=")
    for part in ("Secure", "HttpOnly", "SameSite=Lax", "Path=/"):
        assert part in answer.headers["set-cookie"]
    owner = Tokens(app.state.site.settings).set_owner(0.0)
    assert owner.startswith("__Host-owner=")
    assert "SameSite=Strict" in owner
    assert "Secure" in owner


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader(make_app(tmp_path_factory.mktemp("named"), hosts=("papers.example",)))


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("testserver", 200), ("127.0.0.1:8000", 200), ("localhost", 200), ("[::1]:8000", 200), ("LOCALHOST:1", 200),
        ("papers.example", 200), ("evil.example", 400), ("testserver.evil.example", 400), ("", 400), ("[", 400),
        ("localhost@evil.example", 400),
    ],
)  # fmt: skip
def test_only_the_sites_own_names_are_served(named: Reader, host: str, status: int) -> None:
    assert named.get("/how", headers={"host": host}).status_code == status


def test_rates_are_limited_and_say_until_when(tmp_path: Path) -> None:
    rates = {"search": Rate(3, 1), "subscribe": Rate(1, 1), "vote": Rate(1, 1), "owner": Rate(1, 1)}
    reader = Reader(make_app(tmp_path, rates=rates))
    assert [reader.get("/search?q=a").status_code for _ in range(4)] == [200, 200, 200, 429]
    refused = reader.get("/api/search?q=a")
    assert refused.status_code == 429
    assert refused.json() == {"detail": "Too many requests; please wait a little."}
    assert 1 <= int(refused.headers["retry-after"]) <= 61
    for name in ("query", "q%75ery", "limit=2&query"):
        assert reader.get(f"/feeds/atom.xml?{name}=a").status_code == 429
    assert reader.get("/").status_code == reader.get("/feeds/atom.xml").status_code == 200
    for path in ("/subscribe", "/owner", "/paper/2604.00002/vote"):
        assert [reader.post(path).status_code for _ in range(2)] == [415, 429], path
    assert "wait" in reader.get("/search?q=a").text


def test_a_bucket_fills_up_again_and_others_are_others() -> None:
    clock = [0.0]
    limiter = Limiter({"search": Rate(2, 60)}, lambda: clock[0])
    assert [limiter.wait("search", "10.0.0.1") for _ in range(3)] == [0, 0, 1]
    assert limiter.wait("search", "10.0.0.2") == 0
    clock[0] = 1.0
    assert [limiter.wait("search", "10.0.0.1") for _ in range(2)] == [0, 1]
    # One host has a whole /64 of IPv6 addresses.
    assert [limiter.wait("search", f"2001:db8::{n}") for n in range(3)] == [0, 0, 1]
    assert limiter.wait("search", "2001:db8:0:1::1") == 0


def test_the_buckets_are_bounded() -> None:
    limiter = Limiter({"search": Rate(1, 1)}, lambda: 0.0)
    for n in range(ADDRESSES + 50):
        limiter.wait("search", f"client-{n}")
    assert len(limiter._buckets) == ADDRESSES


def test_what_is_too_large_is_refused_unread(reader: Reader) -> None:
    limit = reader.app.state.site.settings.body_limit  # type: ignore[attr-defined]
    assert reader.post("/subscribe", content=b"a" * (limit + 1)).status_code == 413
    assert reader.post("/api/subscribe", content=b"a" * (limit + 1)).json()["detail"].endswith(f"{limit} bytes.")

    def drip() -> Any:
        for _ in range(limit // 1000 + 2):
            yield b"email=" + b"a" * 994

    form = {"content-type": "application/x-www-form-urlencoded"}
    assert reader.post("/subscribe", content=drip(), headers=form).status_code == 413
    assert reader.get("/" + "a" * 600).status_code == 414
    assert reader.get("/search?q=" + "a" * 3000).status_code == 414
    assert reader.get("/papers/%00").status_code == 400


def test_a_length_that_is_no_number_is_refused(reader: Reader) -> None:
    for length in (b"-1", b"1e3", "²".encode(), b"9" * 40):
        sent: list[dict[str, Any]] = []
        scope = {
            "type": "http", "method": "POST", "path": "/subscribe", "raw_path": b"/subscribe", "query_string": b"",
            "headers": [(b"host", b"testserver"), (b"content-length", length)], "client": ("127.0.0.1", 1),
        }  # fmt: skip

        async def receive() -> dict[str, Any]:
            raise AssertionError("nothing is read")

        async def send(message: dict[str, Any], sent: list[dict[str, Any]] = sent) -> None:
            sent.append(message)

        asyncio.run(reader.app(scope, receive, send))  # type: ignore[arg-type]
        assert sent[0]["status"] in (400, 413)


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(reader: Reader, method: str) -> None:
    answer = reader.request(method, "/papers/2026-04-24")
    assert answer.status_code == 405
    assert "content-security-policy" in answer.headers


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_no_cookie_or_header_breaks_a_page(reader_of_hypothesis: Reader, cookie: bytes, authorization: bytes) -> None:
    def printable(value: bytes) -> str:
        return "".join(chr(byte) for byte in value if 32 <= byte < 127)

    headers = {"cookie": f"owner={printable(cookie)}; visitor={printable(cookie)}"}
    headers["authorization"] = f"Bearer {printable(authorization)}"
    answer = reader_of_hypothesis.get("/subscribe", headers=headers)
    assert answer.status_code == 200


@pytest.fixture(scope="module")
def reader_of_hypothesis(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader(make_app(tmp_path_factory.mktemp("cookies")))


def test_tokens_are_bound_to_reader_purpose_and_secret() -> None:
    one, other = Tokens(Settings(secret="one")), Tokens(Settings(secret="other"))
    assert one.form_token("a") != one.form_token("b")
    assert one.form_token("a") != other.form_token("a")
    assert one.sign("form", "a") != one.sign("person", "a")
    assert "a" * 40 not in one.person("a" * 40)


@pytest.mark.parametrize(
    "wrong",
    [
        {"base_url": "ftp://a"}, {"base_url": "papers.example"}, {"base_url": "https://a/b"}, {"owner_token": ""},
        {"rates": {"everything": Rate(1, 1)}}, {"body_limit": 0},
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Settings(**wrong)
    with pytest.raises(ValueError, match="rate"):
        Rate(0, 1)


@pytest.mark.parametrize(
    ("given", "allowed"),
    [
        ({}, False), ({"owner_token": "t"}, True), ({"owner_token": "t", "host": "0.0.0.0"}, False),
        ({"owner_token": "t", "host": "0.0.0.0", "allow_runs": True}, True),
        ({"owner_token": "t", "allow_runs": False}, False), ({"allow_runs": True}, False),
    ],
)  # fmt: skip
def test_runs_are_allowed_to_an_owner_on_loopback(given: dict[str, Any], allowed: bool) -> None:
    assert Settings(**given).runs_allowed is allowed
    assert set(Settings(**given).rates) == set(RATES)


def test_the_secret_is_random_unless_given() -> None:
    assert Settings().secret != Settings().secret
    assert len(Settings().secret) >= 32
    assert dict(response_headers(Settings(base_url="https://a")))[b"strict-transport-security"]


def test_style_becomes_attributes() -> None:
    assert declarations("fill: var(--ink, #1b2028); stroke-width: 0.7; cursor: pointer") == {
        "fill": "var(--ink, #1b2028)",
        "stroke-width": "0.7",
    }
    assert declarations("font: italic 700 9.5px var(--sans, sans-serif)") == {
        "font-weight": "700", "font-style": "italic", "font-size": "9.5px", "font-family": "var(--sans, sans-serif)",
    }  # fmt: skip
    assert declarations("font: 9px sans-serif; ; fill:none") == {
        "font-size": "9px", "font-family": "sans-serif", "fill": "none",
    }  # fmt: skip


@given(st.dictionaries(st.sampled_from(sorted(ATTRIBUTES)), st.text("abc#(),- 0123456789.", min_size=1).map(str.strip)))
def test_no_declaration_is_lost(said: dict[str, str]) -> None:
    said = {name: value for name, value in said.items() if value}
    style = "; ".join(f"{name}: {value}" for name, value in said.items())
    svg = f'<svg><g style="{style}"><path d="M0 0" /></g></svg>'
    made = ElementTree.fromstring(without_style(svg))
    assert made[0].attrib == said
    assert made[0][0].attrib == {"d": "M0 0"}
