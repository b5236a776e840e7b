"""The pages that are read: what they show, that they are sound HTML, and that data cannot get out of its place."""

from __future__ import annotations

import re
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from web.web_site import FRIDAY, HOSTILE, NOW, Outline, Reader, make_app

from paperworks.feed.records import PaperRecord
from paperworks.feed.store import Store
from paperworks.web.assets import assets
from paperworks.web.models import ArenaRow, ArenaTable, DayCount
from paperworks.web.rendering import environment, month_grid, render

READ = [
    "/", "/papers/2026-04-24", "/papers/2026-04-25", "/week/2026-W17", "/month/2026-04", "/trending",
    "/trending?window=month&method=top", "/search", "/search?q=adaptive", "/search?q=zzzzqqqq",
    "/search?q=adaptive&area=activations&verdict=fails&code=yes&since=2020-01-01&until=2026-12-31&author=Lee",
    "/paper/2210.11672", "/paper/2604.00001", "/paper/2604.00002", "/paper/cs/0501001", "/areas", "/area/activations",
    "/how", "/feeds", "/subscribe", "/confirm/a-token", "/owner",
]  # fmt: skip


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader(make_app(tmp_path_factory.mktemp("pages")))


@pytest.mark.parametrize("path", READ)
def test_every_page_is_sound_html_within_the_policy(reader: Reader, path: str) -> None:
    page = reader.page(path)
    outline = Outline(page)
    assert outline.unclosed == []
    assert outline.all("html")[0]["lang"] == "en"
    assert len(outline.all("main")) == len(outline.all("h1")) == page.partition("<body>")[0].count("<title>") == 1
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    levels = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch("h[1-6]", tag)]
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels)), levels
    # What the content security policy would block, and what would be asked of others.
    assert not [a for _, a in outline.tags if "style" in a or any(name.startswith("on") for name in a)]
    assert not outline.all("style")
    assert all((script.get("src") or "").startswith("/static/") for script in outline.all("script"))
    for tag, attributes in outline.tags:
        for name in ("src", "action", *(["href"] if tag == "link" else [])):
            assert (attributes.get(name) or "/").startswith("/"), (tag, attributes)
    assert all((a.get("href") or "").startswith(("/", "#", "http://", "https://")) for a in outline.all("a"))


@pytest.mark.parametrize("path", READ)
def test_every_field_has_a_label(reader: Reader, path: str) -> None:
    outline = Outline(reader.page(path))
    labelled = {label.get("for") for label in outline.all("label")}
    fields = [*outline.all("input"), *outline.all("select"), *outline.all("textarea")]
    shown = [field for field in fields if field.get("type") != "hidden" and "hidden" not in field]
    assert all(field.get("id") in labelled for field in shown)


def test_links_of_a_page_lead_somewhere(reader: Reader) -> None:
    seen: set[str] = set()
    for path in ("/", "/papers/2026-04-24", "/paper/2210.11672", "/area/activations", "/search?q=adaptive", "/feeds"):
        for link in Outline(reader.page(path)).all("a"):
            href = (link["href"] or "").removeprefix("http://testserver")
            if href.startswith("/"):
                seen.add(href.partition("#")[0])
    assert len(seen) > 30
    assert {path: status for path in sorted(seen) if (status := reader.get(path).status_code) != 200} == {}


def test_anchors_of_a_paper_are_there(reader: Reader) -> None:
    outline = Outline(reader.page("/paper/2210.11672"))
    ids = {attributes.get("id") for _, attributes in outline.tags}
    anchors = {href[1:] for link in outline.all("a") if (href := link["href"] or "").startswith("#")}
    assert anchors
    assert anchors <= ids


def test_the_day_lists_the_feed_in_its_order(reader: Reader) -> None:
    page = reader.page("/papers/2026-04-24")
    titles = re.findall(r'<h2><a href="/paper/([^"]+)">', page)
    assert titles == ["2210.11672", "2604.00001", "2604.00002"]
    assert "Friday, 24 April 2026" in page
    text = re.sub(r"\s+", " ", Outline(page).text)
    assert "13 votes 3 comments" in text  # twelve of the source and one of here


def test_a_listing_says_how_the_claims_stand(reader: Reader) -> None:
    counts = reader.get("/api/paper/2210.11672").json()["entry"]["verdicts"]
    page = reader.page("/papers/2026-04-24")
    tally = re.search(r'<ul class="tally".*?</ul>', page, re.DOTALL)
    assert tally
    said = dict(zip(*[iter(re.sub("<[^>]+>", " ", tally[0]).split()[:4])] * 2, strict=True))
    assert said == {str(counts["holds"]): "hold", str(counts["inconclusive"]): "open"}
    widths = [float(width) for width in re.findall(r'<rect class="[\w-]+" x="[\d.]+%" width="([\d.]+)%"', page)]
    assert sum(widths) == pytest.approx(100, abs=0.01)


def test_an_announced_paper_is_not_carried_yet(reader: Reader) -> None:
    card = reader.get("/api/latest").json()
    announced = next(one for one in card["published"] if one["state"] == "announced")
    page = reader.page(f"/paper/{announced['id']}")
    assert "Not carried yet" in page
    assert "its method and its claims are not built here" in page
    assert 'class="claims"' not in page
    assert "not carried yet" in reader.page("/")


def test_a_paper_shows_claims_numbers_and_what_changed(reader: Reader) -> None:
    page = reader.page("/paper/2210.11672")
    for said in ("95 % interval", "Where each part comes from", "Verdicts that changed", "Their code", "Use it"):
        assert said in page
    assert '<svg class="plot' in page
    assert "paperworks run ash" in page
    changes = page[page.index('id="changes"') :]
    assert re.findall(r"badge (\w+)", changes)[:2] == ["fails", "holds"]


def test_a_figure_keeps_its_colours_without_style_attributes(reader: Reader) -> None:
    page = reader.page("/paper/2210.11672")
    figure = page[page.index("<figure>") : page.index("</figure>")]
    assert "style=" not in figure
    assert 'stroke="var(--series-1, #2462c4)"' in figure
    assert 'font-family="var(--sans, sans-serif)"' in figure
    assert "Not drawn yet" in page  # a figure that lacks results costs itself alone


def test_what_a_source_says_stays_text(reader: Reader) -> None:
    for path in ("/papers/2026-04-24", "/paper/2604.00001", "/search?q=script+alert", f"/search?q={HOSTILE}"):
        page = reader.page(path)
        assert "<script>alert" not in page
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
        assert "javascript:" not in page
        assert "49" not in re.findall(r"'n' (\S+)", page)


def test_matches_of_a_search_are_marked(reader: Reader) -> None:
    page = reader.page("/search?q=adaptive+activation")
    assert re.search(r"\d+ papers? in [\d.]+ ms", page)
    fragment = reader.page("/search?q=statistics&fragment=1")
    assert "<html" not in fragment
    assert "<mark>" in fragment
    entries = fragment[fragment.index('<ol class="entries">') :].strip()
    assert entries in reader.page("/search?q=statistics")


def test_a_search_keeps_its_filters(reader: Reader) -> None:
    page = reader.page("/search?q=adaptive&area=activations&code=yes&since=2020-01-01")
    assert "<option selected>activations</option>" in page
    assert re.search(r'name="code"[^>]* checked', page)
    assert 'name="since" type="date" value="2020-01-01"' in page


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/papers/2026-02-30", 422, "2026-02-30"),
        ("/papers/1200-01-01", 422, "1990"),
        ("/week/2026-W60", 422, "2026-W60"),
        ("/month/2026-4", 422, "2026-4"),
        ("/papers/2026-04-24?page=2", 422, "page"),
        ("/papers/2026-04-24?page=none", 422, "page"),
        ("/trending?window=year", 422, "window"),
        ("/search?q=a&since=yesterday", 422, "yesterday"),
        ("/search?q=a&verdict=maybe", 422, "verdict"),
        ("/search?q=" + "a" * 301, 422, "q: "),
        ("/paper/9999.99999", 404, "9999.99999"),
        ("/area/nothing", 404, "nothing"),
        ("/feeds/atom.xml?limit=0", 422, "limit"),
        ("/feeds/other.xml", 404, "atom.xml"),
        ("/go?day=tomorrow", 422, "tomorrow"),
        ("/nowhere", 404, "no page"),
        ("/static/../app.py", 404, ""),
        ("/static/site.py", 404, ""),
    ],
)
def test_what_cannot_be_is_refused_with_a_reason(reader: Reader, path: str, status: int, said: str) -> None:
    page = reader.page(path, status)
    outline = Outline(page)
    assert said in outline.text
    assert outline.unclosed == []
    assert any(field.get("name") == "q" for field in outline.all("input"))
    twin = reader.get(f"/api{path}") if path.startswith(("/papers", "/paper/", "/area/", "/week", "/month")) else None
    if twin is not None:
        assert twin.status_code == status
        assert twin.json().keys() == {"detail"}


def test_a_page_that_breaks_tells_nothing_of_the_inside(tmp_path: Any) -> None:
    app = make_app(tmp_path)
    app.state.site.store.close()
    reader = Reader(app, raise_server_exceptions=False)
    for path, kind in (("/areas", "text/html"), ("/api/areas", "application/json")):
        answer = reader.get(path)
        assert answer.status_code == 500
        assert answer.headers["content-type"].startswith(kind)
        assert "content-security-policy" in answer.headers
        assert str(tmp_path) not in answer.text
        assert "Traceback" not in answer.text


def test_other_names_of_a_paper_lead_to_its_page(reader: Reader) -> None:
    for id in ("ash", "2210.11672v2"):
        answer = reader.get(f"/paper/{id}", follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (301, "/paper/2210.11672")
    assert reader.get("/go?day=2026-04-24").url.path == f"/papers/{FRIDAY}"


def test_feeds_are_served_with_their_types(reader: Reader) -> None:
    answer = reader.get("/feeds/atom.xml?day=2026-04-24")
    assert answer.headers["content-type"].startswith("application/atom+xml")
    assert len(ElementTree.fromstring(answer.content).findall("{http://www.w3.org/2005/Atom}entry")) == 3
    assert reader.get("/feeds/rss.xml").headers["content-type"].startswith("application/rss+xml")
    assert reader.get("/feeds/feed.json?area=activations").json()["items"]


def test_static_files_never_change_under_their_address(reader: Reader) -> None:
    for name, asset in assets().items():
        answer = reader.get(asset.address)
        assert answer.content == asset.body, name
        assert "immutable" in answer.headers["cache-control"]
        assert answer.headers["content-encoding"] == "gzip"
    style = assets()["site.css"].body.decode()
    assert "@import" not in style
    assert "url(" not in style
    assert style.count("{") == style.count("}")


def test_robots_are_told_what_to_leave_alone(reader: Reader) -> None:
    assert "Disallow: /u/" in reader.page("/robots.txt")
    assert reader.get("/healthz").json()["status"] == "ok"


def test_the_calendar_knows_iso_weeks() -> None:
    grid = month_grid(FRIDAY.replace(year=2025, month=1, day=1), [DayCount(day=FRIDAY.replace(2025, 1, 3), papers=4)])
    assert (grid["before"], grid["after"], grid["title"]) == ("2024-12", "2025-02", "January 2025")
    assert grid["weeks"][0][:2] == ("2025-W01", 1)
    assert grid["weeks"][0][2][:3] == [None, None, (FRIDAY.replace(2025, 1, 1), 0)]
    assert grid["weeks"][0][2][4][1] == 4


def test_an_arena_is_drawn_to_scale(reader: Reader) -> None:
    rows = [
        ArenaRow(arm="best", mean=0.9, low=0.8, high=1.0, difference=0.1, difference_low=0.05, difference_high=0.15,
                 seeds=8),
        ArenaRow(arm="first", mean=0.8, low=0.7, high=0.9, seeds=8),
        ArenaRow(arm="broken", mean=None, low=None, high=None, seeds=8, error="RuntimeError: <b>no</b>"),
    ]  # fmt: skip
    table = ArenaTable(
        protocol="images", metric="accuracy", meaning="share right", higher_is_better=True, reference="first",
        tier="desk", command="paperworks arena x", rows=rows,
    )  # fmt: skip
    plot = environment().globals["arena_plot"](table)
    best, first, broken = plot.rows
    assert best.at_low == pytest.approx(first.at_mean, abs=0.01)
    assert best.width == pytest.approx(first.width, abs=0.01)
    assert (first.is_reference, plot.reference) == (True, first.at_mean)
    assert (best.difference, best.difference_interval) == ("+0.100", "[+0.050, +0.150]")
    assert broken.error == "RuntimeError: <b>no</b>"
    found = reader.app.state.site  # type: ignore[attr-defined]
    page = render("area.html.j2", found=_area_with(found, table), here="/area/x", csrf="", sends_mail=True)
    assert "&lt;b&gt;no&lt;/b&gt;" in page
    assert environment().globals["arena_plot"](table.model_copy(update={"rows": []})) is None


def _area_with(site: Any, table: ArenaTable) -> Any:
    from paperworks.web import views

    return views.area(site, "activations").model_copy(update={"arena": table})


def test_now_is_the_clock_of_the_settings(reader: Reader) -> None:
    assert reader.app.state.site.now() == NOW  # type: ignore[attr-defined]


def test_a_paper_of_a_day_that_no_page_is_of_takes_no_page_down(tmp_path: Path) -> None:
    papers = [
        PaperRecord("Of the first second of Unix", id="2604.00001", published=date(1970, 1, 1)),
        PaperRecord("Of a year to come", id="2604.00002", published=date(2999, 1, 1), first_seen=date(9999, 12, 31)),
    ]
    with Store(tmp_path / "site.sqlite") as store:
        store.add(papers)
    reader = Reader(make_app(tmp_path, catalogue=False))
    dated = ("/papers/2026-04-24", "/week/2026-W17", "/month/2026-04", "/week/1990-W01", "/papers/2100-12-31")
    for path in ("/", *dated, "/trending", "/paper/2604.00001", "/search?q=unix"):
        reader.page(path)
    latest = reader.get("/api/latest").json()
    assert [entry["id"] for entry in latest["published"]] == ["2604.00001"]
    assert (latest["previous"], latest["following"]) == (None, None)


def test_a_week_has_a_heading_for_each_day_of_the_feed(tmp_path: Path) -> None:
    with Store(tmp_path / "site.sqlite") as store:
        for n, day in enumerate((FRIDAY, FRIDAY, FRIDAY - timedelta(days=3))):
            store.add([PaperRecord(f"Paper {n}", id=f"2604.0000{n}", first_seen=day, rank=n, source="daily")])
    reader = Reader(make_app(tmp_path, catalogue=False))
    for path in ("/week/2026-W17", "/month/2026-04"):
        page = reader.page(path)
        found = re.findall(r'<h2 class="part"><a href="([^"]+)">([^<]+)</a></h2>|<h3><a[^>]*>(Paper \d)', page)
        assert found == [
            ("/papers/2026-04-24", "Friday, 24 April", ""), ("", "", "Paper 0"), ("", "", "Paper 1"),
            ("/papers/2026-04-21", "Tuesday, 21 April", ""), ("", "", "Paper 2"),
        ]  # fmt: skip
    assert "Friday, 24 April</a></h2>" not in reader.page("/papers/2026-04-24")


def test_an_empty_catalogue_says_how_to_fill_it(tmp_path: Path) -> None:
    Store(tmp_path / "site.sqlite").close()
    reader = Reader(make_app(tmp_path, catalogue=False))
    for path in ("/", "/papers/2026-04-24", "/week/2026-W17"):
        assert "paperworks ingest --source daily" in reader.page(path)


def test_a_listing_does_not_grow_with_what_one_source_sends(tmp_path: Path) -> None:
    with Store(tmp_path / "site.sqlite") as store:
        store.add([PaperRecord("Endless", id="2604.00001", first_seen=FRIDAY, abstract="word " * 100_000)])
    reader = Reader(make_app(tmp_path, catalogue=False))
    assert len(reader.page("/papers/2026-04-24")) < 50_000
    assert reader.page("/paper/2604.00001").count("word") >= 100_000
