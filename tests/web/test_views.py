"""What the pages show, as data: listings by day, week and month, rankings, papers, areas."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from fake_papers import BASELINE, METHOD, noise, paper_with_claims
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event

from paperworks.feed.records import PaperRecord
from paperworks.feed.store import Store, card_record
from paperworks.feed.verdicts import Verdicts
from paperworks.lab import registry
from paperworks.lab.arena import Arena, run_arena
from paperworks.lab.execute import execute
from paperworks.lab.nouns import Arm
from paperworks.lab.records import TrialResult, TrialSpec, Verdict
from paperworks.web import arenas, views
from paperworks.web.entries import spans
from paperworks.web.models import Filters, Listing
from paperworks.web.periods import day_of, month_of, week_of

FRIDAY = date(2026, 4, 24)
NOW = datetime(2026, 4, 25, 9, tzinfo=UTC)
DAY = timedelta(days=1)


@dataclass
class Listed:
    """A search that finds every paper in the order of the store."""

    store: Store
    asked: list[dict[str, Any]] = field(default_factory=list)

    def query(self, text: str, filters: dict[str, Any] | None = None, limit: int = 20, offset: int = 0) -> Any:
        self.asked.append(filters or {})
        items = self._items()
        return SimpleNamespace(items=items[offset : offset + limit], total=len(items), took_ms=0.5)

    def similar(self, id: str, limit: int = 10) -> list[Any]:
        return [item for item in self._items() if item.paper.key != id][:limit]

    def _items(self) -> list[Any]:
        made = {"score": 0.5, "parts": {}, "snippet": "learning to fly", "marks": ((9, 11),), "why": "words: to"}
        return [SimpleNamespace(paper=record, **made) for record in self.store.records()]


@dataclass
class Site:
    store: Store
    verdicts: Verdicts
    search: Any
    settings: Any
    time: datetime = NOW

    def now(self) -> datetime:
        return self.time


@pytest.fixture
def site(store_url: str) -> Iterator[Site]:
    settings = SimpleNamespace(base_url="https://papers.example", runs_allowed=True)
    with Store(store_url) as store:
        yield Site(store, Verdicts(store, [paper_with_claims()]), Listed(store), settings)


def paper(n: int, **facts: Any) -> PaperRecord:
    known = {"id": f"2604.{n:05d}", "first_seen": FRIDAY, "source": "daily", "rank": n, **facts}
    return PaperRecord(f"Paper {n}", **known)


def ids(listing: Listing) -> tuple[list[int], list[int]]:
    return tuple([int(one.id[5:]) for one in part] for part in (listing.entries, listing.published))  # type: ignore[return-value]


def test_a_day_has_the_feed_in_its_order_then_what_was_published_on_it(site: Site) -> None:
    site.store.add([paper(1, rank=2), paper(2, rank=0), paper(3, rank=1, published=FRIDAY)])
    site.store.add([paper(4, first_seen=FRIDAY + DAY, published=FRIDAY), paper(5, first_seen=None, published=FRIDAY)])
    found = views.day(site, FRIDAY)
    assert ids(found) == ([2, 3, 1], [4, 5])
    assert (found.total, found.page, found.pages) == (5, 1, 1)
    assert (found.name, found.heading) == ("2026-04-24", "Friday, 24 April 2026")
    assert (found.previous, found.following) == (None, "/papers/2026-04-25")
    assert [(one.day, one.papers) for one in found.calendar] == [(FRIDAY, 5), (FRIDAY + DAY, 1)]
    assert views.day(site, "2026-04-24") == found
    assert ids(views.day(site, FRIDAY - DAY)) == ([], [])
    assert views.day(site, FRIDAY - DAY).following == "/papers/2026-04-24"


def test_a_paper_of_two_days_stands_in_a_week_once_at_the_newer(site: Site) -> None:
    site.store.add([paper(1), paper(2), paper(3, first_seen=FRIDAY - DAY)])
    site.store.add([paper(1, first_seen=FRIDAY - 2 * DAY, rank=0), paper(9, first_seen=FRIDAY - 7 * DAY)])
    found = views.week(site, "2026-W17")
    assert ids(found) == ([1, 2, 3], [])
    assert found.heading == "Week 17: 20 to 26 April 2026"
    assert (found.previous, found.following) == ("/week/2026-W16", None)
    assert ids(views.month(site, "2026-04"))[0] == [1, 2, 3, 9]
    assert views.month(site, FRIDAY).heading == "April 2026"


def test_pages_go_through_both_parts_without_a_gap(site: Site) -> None:
    site.store.add(paper(n, first_seen=FRIDAY if n <= 70 else None, published=FRIDAY) for n in range(1, 131))
    found = [views.day(site, FRIDAY, page) for page in (1, 2, 3)]
    assert [(len(one.entries), len(one.published)) for one in found] == [(50, 0), (20, 30), (0, 30)]
    assert [n for one in found for part in ids(one) for n in part] == list(range(1, 131))
    assert {(one.total, one.pages) for one in found} == {(130, 3)}
    for page in (0, -1, 4, 10**30):
        with pytest.raises(ValueError, match=r"page: got -?\d+, wanted one from 1 to 3"):
            views.day(site, FRIDAY, page)


def test_a_listing_asks_the_database_as_often_for_many_papers_as_for_few(site: Site) -> None:
    asked: list[str] = []
    event.listen(site.store.database.engine, "before_cursor_execute", lambda *told: asked.append(told[2]))
    site.store.add([paper(1), paper(2)])
    views.day(site, FRIDAY)  # reads the verdicts, which are kept
    counts = []
    for more in (range(3, 5), range(5, 60)):
        site.store.add(paper(n) for n in more)
        asked.clear()
        views.day(site, FRIDAY)
        counts.append(len(asked))
    assert counts[0] == counts[1] < 20


def test_votes_verdicts_and_states_stand_in_the_entries(site: Site) -> None:
    site.store.add([paper(1), paper(2, area="swin", card="later"), card_record(paper_with_claims())])
    for reader in ("ada", "grace"):
        site.store.vote("2604.00001", reader, NOW)
    listed = {one.id: one for one in views.day(site, FRIDAY).entries}
    assert (listed["2604.00001"].votes, listed["2604.00001"].state) == (2, "listed")
    assert (listed["2604.00002"].votes, listed["2604.00002"].state) == (0, "announced")
    assert listed["2604.00002"].verdicts is None
    carried = views.paper(site, "fake").entry
    assert carried.state == "carried"
    assert carried.verdicts == {"holds": 0, "inconclusive": 0, "fails": 0, "not run": 3, "error": 0}


def test_latest_is_the_newest_day_filled_up_with_the_catalogue(site: Site) -> None:
    site.store.add(paper(n, first_seen=None, published=date(2020, 1, 1) + n * DAY) for n in range(1, 61))
    found = views.latest(site)
    assert (found.kind, found.name, found.heading) == ("latest", "latest", "The newest papers")
    assert ids(found) == ([], list(range(60, 10, -1)))
    assert (found.total, found.pages) == (60, 2)
    assert ids(views.latest(site, 2)) == ([], list(range(10, 0, -1)))
    site.store.add([paper(70), paper(71), paper(72, first_seen=FRIDAY + 5 * DAY)])
    found = views.latest(site)
    assert (found.since, found.heading) == (FRIDAY, "Friday, 24 April 2026")
    assert ids(found) == ([70, 71], list(range(60, 12, -1)))
    assert (found.total, found.pages) == (50, 1)
    assert found.previous == "/papers/2020-03-01"
    site.store.add(paper(n) for n in range(100, 160))
    assert (views.latest(site).total, views.latest(site).pages, ids(views.latest(site, 2))[1]) == (62, 2, [])


def test_latest_of_an_empty_store_is_empty(site: Site) -> None:
    found = views.latest(site)
    assert (found.total, found.pages, found.entries, found.published, found.rising) == (0, 1, [], [], [])


@given(st.dates(date(1990, 1, 1), date(2100, 12, 31)))
def test_names_of_periods_come_back_as_the_periods(when: date) -> None:
    for make in (day_of, week_of, month_of):
        try:
            found = make(when)
        except ValueError:
            assert make is week_of
            assert when + 7 * DAY > date(2100, 12, 31)  # the last week ends in 2101
            continue
        assert found.since <= when <= found.until
        assert make(found.name) == found
        assert found.path.endswith(found.name)


def test_weeks_are_iso_weeks_and_are_said_as_people_do() -> None:
    assert week_of(date(2024, 12, 30)).name == "2025-W01"
    assert week_of("2025-W01").since == date(2024, 12, 30)
    assert week_of("2025-W01").heading == "Week 1: 30 December 2024 to 5 January 2025"
    assert week_of("2026-W18").heading == "Week 18: 27 April to 3 May 2026"
    assert week_of("2026-W53").until == date(2027, 1, 3)
    assert day_of("2024-02-29").heading == "Thursday, 29 February 2024"


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (day_of, "2026-02-30"), (day_of, "2026-4-1"), (day_of, "20260401"), (day_of, "1989-12-31"), (day_of, ""),
        (day_of, "2101-01-01"), (day_of, "٢٠٢٦-٠٤-٢٤"), (day_of, "2026-04-24\n"), (day_of, "../../etc"),
        (week_of, "2025-W53"), (week_of, "2026-W00"), (week_of, "2026-17"), (week_of, "0000-W01"),
        (week_of, "2100-W53"), (month_of, "2026-13"), (month_of, "2026-00"), (month_of, "0000-01"),
        (month_of, "2026-04-01"),
    ],
)  # fmt: skip
def test_what_is_no_date_is_refused(make: Any, text: str) -> None:
    with pytest.raises(ValueError, match=r"^(day|week|month): got .*, wanted"):
        make(text)


def test_trending_ranks_by_votes_and_pages(site: Site) -> None:
    site.store.add(paper(n) for n in range(1, 8))
    for n in range(1, 6):
        for reader in range(n):
            site.store.vote(f"2604.{n:05d}", f"reader {reader}", NOW - timedelta(hours=1))
    found = views.trending(site, "week", "decay", limit=3)
    assert [one.id for one in found.entries] == ["2604.00005", "2604.00004", "2604.00003"]
    scores = [one.score for one in found.entries]
    assert scores == sorted(scores, reverse=True)
    assert [one.id for one in views.trending(site, "week", "decay", 2, 3).entries][:2] == ["2604.00002", "2604.00001"]
    assert [one.id for one in views.latest(site).rising][:1] == ["2604.00005"]
    for wrong in ({"window": "year"}, {"method": "x"}, {"limit": 0}, {"limit": 101}, {"page": 99}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: got"):
            views.trending(site, **wrong)  # type: ignore[arg-type]


def test_search_has_snippets_filters_and_pages(site: Site) -> None:
    site.store.add(paper(n, area="kan" if n % 2 else None) for n in range(1, 46))
    found = views.search(site, "fly", Filters(area="kan", since=FRIDAY), page=2)
    assert [int(one.id[5:]) for one in found.entries] == list(range(21, 41))
    assert [(piece.text, piece.match) for piece in found.entries[0].snippet] == [
        ("learning ", False), ("to", True), (" fly", False),
    ]  # fmt: skip
    assert (found.entries[0].score, found.entries[0].why) == (0.5, "words: to")
    assert (found.total, found.pages, found.areas, found.took_ms) == (45, 3, ["kan"], 0.5)
    assert site.search.asked == [{"area": "kan", "since": FRIDAY}]
    for wrong in (
        {"page": 0}, {"page": 4}, {"limit": 0}, {"limit": 1000},
        {"filters": Filters(since=FRIDAY, until=FRIDAY - DAY)}, {"filters": Filters(since=date(1, 1, 1))},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"^(page|limit|since): got"):
            views.search(site, "fly", **wrong)  # type: ignore[arg-type]


@given(st.text(max_size=30), st.lists(st.tuples(st.integers(-5, 40), st.integers(-5, 40)), max_size=6))
def test_the_pieces_of_a_snippet_are_the_snippet(text: str, marks: list[tuple[int, int]]) -> None:
    pieces = spans(text, marks)
    assert "".join(piece.text for piece in pieces) == text
    marked = {at for start, end in marks for at in range(max(start, 0), min(end, len(text)))}
    assert sum(len(piece.text) for piece in pieces if piece.match) == len(marked)


def test_a_paper_by_any_of_its_ids_with_all_that_is_known(site: Site) -> None:
    card = paper_with_claims()
    site.store.add([card_record(card), paper(1, keywords=["wings"], project_page="javascript:alert(1)")])
    site.store.add([paper(1, first_seen=FRIDAY - DAY, code="ftp://files.example/x")])
    found = views.paper(site, "2604.00001v2")
    assert found == views.paper(site, "https://arxiv.org/abs/2604.00001")
    assert found.feed_days == [FRIDAY, FRIDAY - DAY]
    assert {one.field: one.source for one in found.provenance}["title"] == "daily"
    assert (found.project_page, found.entry.code) == (None, None)
    assert (found.report, found.changes, found.can_run) == (None, [], False)
    assert [one.id for one in found.similar] == ["0000.00000"]
    carried = views.paper(site, "fake", owner=True)
    assert carried.report is not None
    assert [claim["id"] for claim in carried.report["claims"]] == [claim.id for claim in card.claims]
    assert carried.can_run
    assert not views.paper(site, "fake").can_run
    site.settings.runs_allowed = False
    assert not views.paper(site, "fake", owner=True).can_run
    for unknown in ("2604.99999", "", "../../etc/passwd", "\x00", "\ud800", "x" * 10_000, "fake' OR 1=1 --"):
        with pytest.raises(LookupError, match="paper: there is none"):
            views.paper(site, unknown)


def test_a_verdict_that_changed_is_told(site: Site) -> None:
    card = paper_with_claims()
    site.store.add([card_record(card)])
    claim = card.claims[1]
    for hours, status in ((5, "inconclusive"), (4, "holds"), (3, "holds"), (2, "fails")):
        at = NOW - timedelta(hours=hours)
        given = Verdict(card.id, claim.id, "measured", status, "smoke", "cpu", reason=str(hours), created=at)
        site.store.lab.put_verdict(given)
    found = views.paper(site, "fake")
    assert [(one.before, one.after) for one in found.changes] == [("holds", "fails"), ("inconclusive", "holds")]
    assert found.changes[0].sentence == claim.sentence
    assert found.changes[0].at == NOW - timedelta(hours=2)
    assert found.entry.verdicts is not None
    assert found.entry.verdicts["fails"] == 1


def test_areas_count_papers_and_verdicts(site: Site) -> None:
    card = paper_with_claims()
    site.store.add([card_record(card), paper(1, area="fakes", card="later"), paper(2, area="other", card="third")])
    found = views.areas(site)
    assert [(one.area, one.papers, one.carried) for one in found.areas] == [("fakes", 2, 1), ("other", 1, 0)]
    assert (found.papers, found.carried, found.verdicts["not run"]) == (3, 1, 3)
    one = views.area(site, "fakes")
    assert [entry.state for entry in one.entries] == ["carried", "announced"]
    assert (one.verdicts["not run"], one.arena) == (3, None)
    for unknown in ("nowhere", "", "\x00", "../.."):
        with pytest.raises(LookupError, match=r"area: got .*, wanted one of fakes, other"):
            views.area(site, unknown)


def test_an_arena_without_measurements_has_no_rows(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    # to know which version of the code an arm has takes seconds: not where nothing was measured
    monkeypatch.setattr(arenas, "stored_arena", lambda *_, **__: pytest.fail("reads the source of every arm"))
    site.store.add([card_record(card) for card in registry.papers("kan")])
    arena = views.area(site, "kan").arena
    assert arena is not None
    assert (arena.rows, arena.tier, arena.command) == ([], "desk", "paperworks arena kan")
    assert arena.reference == "MLP, equal parameters"


class Direct:
    """An engine without processes."""

    def run(self, specs: Sequence[TrialSpec], progress: Any = None) -> Iterator[TrialResult]:
        yield from map(execute, specs)


def test_an_arena_is_read_again_when_there_are_other_trials(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = (BASELINE, METHOD, Arm("broken", f"{noise.target.partition(':')[0]}:nowhere"))
    arena = Arena("fakes", noise, "score", arms[:2], {}, 8)
    monkeypatch.setattr(arenas, "find_arena", lambda area: arena)
    site.store.add([card_record(paper_with_claims())])
    empty = views.area(site, "fakes").arena
    assert empty is not None
    assert empty.rows == []
    rows = run_arena(arena, site.store.lab, Direct(), tier="smoke")
    found = views.area(site, "fakes").arena
    assert found is not None
    assert (found.tier, found.command, found.reference) == ("smoke", "paperworks arena fakes --tier smoke", "baseline")
    assert [row.arm for row in found.rows] == ["method", "baseline"]
    best, reference = found.rows
    assert rows[0].mean is not None
    assert (best.mean, best.seeds, reference.difference) == (rows[0].mean.mean, 8, None)
    assert best.difference == pytest.approx(best.mean - reference.mean)  # type: ignore[operator]
    assert best.difference_low < best.difference < best.difference_high  # type: ignore[operator]
    assert views.area(site, "fakes").arena is found
    monkeypatch.setattr(arenas, "find_arena", lambda area: replace(arena, arms=arms))
    assert views.area(site, "fakes").arena is found
    run_arena(replace(arena, arms=arms), site.store.lab, Direct(), tier="smoke")
    told = views.area(site, "fakes").arena
    assert told is not None
    assert [(row.arm, row.mean is None, row.error != "") for row in told.rows][-1] == ("broken", True, True)


def test_text_that_no_response_can_carry_is_made_plain(site: Site) -> None:
    site.store.add([paper(1, abstract="half \ud83d pair", authors=["A\udfff B"])])
    shown = views.day(site, FRIDAY).entries[0]
    assert (shown.abstract, shown.authors) == ("half ? pair", ["A? B"])
    assert shown.model_dump_json()


def test_feeds_are_offered_of_all_and_of_each_area(site: Site) -> None:
    site.store.add([paper(1, area="kan")])
    found = views.feeds(site)
    assert [one.url for one in found.feeds] == [
        f"https://papers.example/feeds/{file}{query}"
        for query in ("", "?area=kan")
        for file in ("atom.xml", "rss.xml", "feed.json")
    ]
    assert views.how(site).statuses == ["holds", "inconclusive", "fails", "not run", "error"]
