"""Many readers at once, and requests that are no HTTP: nobody else sees an error. Times are printed (`-s`), and claimed
on the card."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from paperworks.papers.protocols.feed_readers import DAY, fill, served
from paperworks.papers.protocols.feed_requests import Readings, read_pages

DAY_PAGE = [f"/papers/{DAY}"]
MIXED = [
    f"/papers/{DAY}", "/", "/week/2026-W17", "/trending", "/search?q=depth+motion", "/paper/8001.00001", "/areas",
    "/how", f"/api/papers/{DAY}", "/feeds/atom.xml",
]  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("load") / "feed.sqlite"
    fill(path, 50)
    return path


@pytest.fixture(scope="module")
def port(path: Path) -> Iterator[int]:
    with served(path) as port:
        yield port


def report(what: str, seen: Readings) -> None:
    p50, p99, rate = seen.milliseconds(0.5), seen.milliseconds(0.99), len(seen.seconds) / seen.wall_seconds
    print(f"\n{what}: {len(seen.seconds)} pages, p50 {p50:.1f} ms, p99 {p99:.1f} ms, {rate:.0f} pages/s")


def test_a_few_readers_of_every_page(port: int) -> None:
    seen = read_pages(port, MIXED, readers=20, each=6, pause=0.05)
    report("20 readers of ten pages", seen)
    assert seen.errors == []
    assert len(seen.seconds) == 120


def test_readers_see_what_was_added_meanwhile(port: int, path: Path) -> None:
    from datetime import UTC, date, datetime
    from urllib.request import urlopen

    from paperworks.feed import PaperRecord, Store

    with Store(path) as store:
        address = f"http://127.0.0.1:{port}/papers/{DAY}"
        assert b"A late arrival" not in urlopen(address).read()
        late = PaperRecord("A late arrival", id="8001.00099", first_seen=date.fromisoformat(DAY), rank=3)
        store.add([late], datetime(2026, 4, 24, 13, tzinfo=UTC))
        assert b"A late arrival" in urlopen(address).read()


@pytest.mark.slow
@pytest.mark.parametrize("pause", [0.5, 0.0], ids=["reading", "hurrying"])
def test_200_readers_of_the_day_page(port: int, pause: float) -> None:
    seen = read_pages(port, DAY_PAGE, readers=200, each=20, pause=pause)
    report(f"200 readers, {pause} s between pages", seen)
    assert seen.errors == []
    assert len(seen.seconds) == 4000


@pytest.mark.slow
def test_200_readers_of_every_page(port: int) -> None:
    seen = read_pages(port, MIXED, readers=200, each=10, pause=0.5)
    report("200 readers of ten pages", seen)
    # All come from one address, whose searches are limited.
    assert set(seen.errors) <= {"/search?q=depth+motion: HTTP 429"}
    assert len(seen.seconds) == 2000


BROKEN = {
    "no HTTP": b"hello\r\n\r\n",
    "a bad version": b"GET / HTTP/9.9\r\nHost: 127.0.0.1\r\n\r\n",
    "no end of a header": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 200_000,
    "a header in two lines": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: a\r\n b\r\n : c\r\n\r\n",
    "a negative length": b"POST /subscribe HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -5\r\n\r\n",
    "two lengths": b"POST /u/x HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "a length and chunks": b"POST /u/x HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /owner HTTP/1.1\r\n\r\n",
    "bad chunks": b"POST /u/x HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "an address of 100 kB": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "NUL": b"GET /\x00 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "half a request": b"POST /subscribe HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 500\r\n\r\nemail=",
}


@pytest.mark.parametrize("request_bytes", BROKEN.values(), ids=BROKEN)
def test_broken_http_stops_nobody_else(port: int, request_bytes: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        with contextlib.suppress(OSError):  # the server may hang up while it is being talked to
            connection.sendall(request_bytes)
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(OSError):
            while piece := connection.recv(65_536):
                answer += piece
    statuses = [int(line.split()[1]) for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.")]
    assert all(status < 500 for status in statuses), answer[:300]
    assert len(statuses) <= 1, "nothing in a request is taken for a second one"
    assert read_pages(port, DAY_PAGE, readers=2, each=1, pause=0.0).errors == []
