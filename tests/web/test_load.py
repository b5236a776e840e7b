"""Many readers at once: nobody sees an error. What they waited is printed (`-s`), and claimed on the card."""

from __future__ import annotations

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
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    path = tmp_path_factory.mktemp("load") / "feed.sqlite"
    fill(path, 50)
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


def test_readers_see_what_was_added_meanwhile(tmp_path: Path) -> None:
    from datetime import UTC, date, datetime
    from urllib.request import urlopen

    from paperworks.feed import PaperRecord, Store

    path = tmp_path / "feed.sqlite"
    fill(path, 3)
    with served(path) as port, Store(path) as store:
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
