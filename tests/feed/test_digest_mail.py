"""The digest as a mail: headers, text and HTML, links, whatever the titles are."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from html.parser import HTMLParser
from pathlib import Path

import pytest
from feed.digest_world import DAY, NOW, SENDER, SITE, TODAY, Kept, World, flat, text_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paperworks.feed import letters
from paperworks.feed.addresses import one_line
from paperworks.feed.digest import Digest
from paperworks.feed.preferences import Preferences
from paperworks.feed.records import PaperRecord, normalised_title, plain_title
from paperworks.feed.subscriptions import Subscriber
from paperworks.lab.report.colours import contrast

DOCUMENT = Path(__file__).parents[2] / "docs" / "digest.md"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(str(tmp_path / "store.sqlite"))
    yield made
    made.close()


def test_the_headers(world: World) -> None:
    reader = world.reader()
    world.paper(1, "Größe × 研究")
    built = world.digest.build(reader, NOW)
    assert built is not None
    found = message_from_bytes(built.as_bytes(), policy=policy.default)
    assert found["From"] == SENDER
    assert found["To"] == "reader@example.org"
    assert found["Subject"] == "1 new paper: Größe × 研究"
    assert found["Date"] == "Fri, 24 Apr 2026 09:30:00 +0000"
    assert re.fullmatch(r"<digest\.[0-9a-f]{32}@example\.org>", found["Message-ID"])
    assert found["List-Id"] == "paperworks <digest.papers.example.org>"
    link = f"{SITE}/u/{reader.unsubscribe_token}"
    mailto = f"mailto:papers@example.org?subject=unsubscribe%20{reader.unsubscribe_token}"
    assert found["List-Unsubscribe"] == f"<{link}>, <{mailto}>"
    assert found["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert found["Precedence"] == "bulk"
    assert found["Auto-Submitted"] == "auto-generated"
    assert [part.get_content_type() for part in found.iter_parts()] == ["text/plain", "text/html"]
    for kind in ("plain", "html"):
        assert link in text_of(found, kind)
        assert f"{SITE}/preferences/{reader.unsubscribe_token}" in text_of(found, kind)


def test_the_message_id_is_of_the_reader_and_the_period(world: World) -> None:
    one, other = world.reader(), world.reader("other")
    world.paper(1)
    ids = [
        message["Message-ID"]
        for message in (
            world.digest.build(one, NOW),
            world.digest.build(one, NOW + timedelta(hours=1)),
            world.digest.build(other, NOW),
            world.digest.build(one, NOW + 0.7 * DAY),
        )
        if message is not None
    ]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_html_loads_nothing_and_its_links_are_whole(world: World) -> None:
    reader = world.reader()
    world.paper(1, "A <b>bold</b> & “quoted” title", abstract="<script>alert(1)</script> 1 < 2", n_authors=3)
    page = Page(text_of(world.digest.build(reader, NOW), "html"))
    assert {tag for tag, _ in page.tags} <= {
        "html", "head", "meta", "title", "style", "body", "div", "table", "tr", "td", "a", "h1", "h2", "p", "b", "span",
        "br",
    }  # fmt: skip
    assert not [
        name for _, names in page.tags for name in names if name in ("src", "background", "id") or name[:2] == "on"
    ]
    assert "url(" not in page.text
    assert "@import" not in page.text
    links = [names["href"] or "" for tag, names in page.tags if tag == "a"]
    assert len(links) == 4
    assert all(urllib.parse.urlsplit(link)[:2] == ("https", "papers.example.org") for link in links)
    assert "A <b>bold</b> & “quoted” title" in page.text
    assert "<script>alert(1)</script> 1 < 2" in page.text
    # every element that has text has its style at itself: the rules in the head are for dark screens and small ones
    for tag, names in page.tags:
        if tag in ("h1", "h2", "p", "a", "span", "td"):
            assert names.get("style") or tag == "td" or "aria-hidden" in names


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(title=st.text(min_size=1, max_size=300), abstract=st.text(max_size=300), author=st.text(max_size=100))
def test_any_title_abstract_and_author_make_a_mail(world: World, title: str, abstract: str, author: str) -> None:
    if not normalised_title(title):
        title += "x"
    reader = Subscriber("0" * 32, "reader@example.org", "token", Preferences(count=50))
    world.store.database.write(lambda connection: connection.exec_driver_sql("DELETE FROM papers"))
    world.paper(1, title, abstract=abstract, authors=[author])
    built = world.digest.build(reader, NOW)
    assert built is not None
    data = built.as_bytes()
    assert data.isascii()
    found = message_from_bytes(data, policy=policy.default)
    assert sorted(found.keys()) == sorted(
        ["From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "MIME-Version", "Content-Type", "List-Id",
         "List-Unsubscribe", "List-Unsubscribe-Post", "Precedence"]
    )  # fmt: skip
    kept = one_line(plain_title(title))
    assert " ".join(str(found["Subject"]).split()).startswith(f"1 new paper: {kept}"[:100].strip())
    assert kept.replace(" ", "") in "".join(text_of(found).split())
    assert [tag for tag, _ in Page(text_of(found, "html")).tags].count("h2") == 1


def test_a_long_title_is_cut_in_the_subject_and_whole_in_the_mail(world: World) -> None:
    title = "On the " + "Unreasonable " * 30 + "Length of Titles"
    world.paper(1, title)
    built = world.digest.build(world.reader(), NOW)
    assert built is not None
    assert len(built["Subject"]) <= 120
    assert built["Subject"].endswith("Unreasonable…")
    assert title in flat(built)


def test_a_long_abstract_is_cut_after_a_sentence(world: World) -> None:
    world.paper(1, abstract="This is the first sentence of it. " * 40)
    built = flat(world.digest.build(world.reader(), NOW))
    assert built.count("This is the first sentence of it.") == 9
    assert "…" not in built


def test_latex_in_titles_is_spelled_out(world: World) -> None:
    world.paper(1, "$2{\\times}$ Faster at 100\\% of the Cost")
    built = world.digest.build(world.reader(), NOW)
    assert built is not None
    assert built["Subject"] == "1 new paper: 2× Faster at 100% of the Cost"


def test_old_arxiv_ids_and_papers_without_one_have_links(world: World) -> None:
    world.store.add([PaperRecord("Old", id="cs/0501001", first_seen=TODAY), PaperRecord("None", first_seen=TODAY)])
    built = text_of(world.digest.build(world.reader(), NOW))
    assert f"{SITE}/paper/cs/0501001\n" in built
    assert re.search(rf"{SITE}/paper/title-[0-9a-f]+\n", built)


def test_the_day_is_that_of_the_reader(world: World) -> None:
    world.paper(1)
    late = datetime(2026, 4, 24, 22, 30, tzinfo=UTC)
    assert text_of(world.digest.build(world.reader("utc"), late)).startswith("Friday, 24 April 2026\n")
    there = world.reader("there", timezone="Asia/Tokyo")
    assert text_of(world.digest.build(there, late)).startswith("Saturday, 25 April 2026\n")
    weekly = world.reader("weekly", frequency="weekly")
    assert text_of(world.digest.build(weekly, late)).startswith("Week to 24 April 2026\n")


def test_it_says_what_was_asked_for(world: World) -> None:
    world.paper(1, "Sparse Attention")
    many = world.reader("many", queries=[f"sparse {n} attention" for n in range(5)] + ["attention"], areas=["kan"])
    assert "daily digest on “sparse 0 attention”, “sparse 1 attention”," in flat(world.digest.build(many, NOW))
    assert "and 3 more. Sent to many@example.org." in flat(world.digest.build(many, NOW))
    assert "You asked for a daily digest of the papers that are read most." in flat(
        world.digest.build(world.reader(), NOW)
    )


def test_the_preview_needs_no_subscriber_and_is_there_when_nothing_is_new(world: World) -> None:
    shown = world.digest.preview(Preferences(), NOW)
    assert shown["Subject"] == "Nothing new"
    assert "Nothing is new." in text_of(shown)
    world.paper(1)
    assert world.ids(world.digest.preview(Preferences(), NOW)) == ["2604.00001"]
    assert world.digest.preview(Preferences(queries=["bread"]), NOW)["Subject"] == "Nothing new"
    assert world.people.unsubscribe("preview") is False
    local = Digest(
        world.store, world.digest.search, world.people, base_url="http://127.0.0.1:8000", sender="p@localhost"
    )
    assert local.preview(Preferences(), NOW)["From"] == "p@localhost"


def test_wrong_arguments(world: World) -> None:
    naive = datetime(2026, 4, 24)
    for call in (
        lambda: world.digest.build(world.reader(), naive),
        lambda: world.digest.preview(Preferences(), naive),
        lambda: world.digest.send(Kept(), naive),
    ):
        with pytest.raises(ValueError, match="now: got 2026-04-24T00:00:00 without a time zone"):
            call()
    for wrong in ({"base_url": "papers.example.org"}, {"sender": "nobody\r\nBcc: x@y.org"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Digest(world.store, world.digest.search, world.people, **{"base_url": SITE, "sender": SENDER, **wrong})


def test_the_example_of_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAPERWORKS_DB", str(tmp_path / "store.sqlite"))
    [example] = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(example, str(DOCUMENT), "exec"), {})


def test_text_is_readable_on_its_ground_by_light_and_dark() -> None:
    """WCAG 2 AA: a contrast of 4.5."""
    templates = Path(letters.__file__).parent / "templates"
    source = "".join(
        (templates / name).read_text() for name in ("mail.html.j2", "digest.html.j2", "confirmation.html.j2")
    )
    pairs = re.findall(r"background: ?(#\w{6})(?: !important)?; ?color: ?(#\w{6})", source)
    assert len(pairs) == 5 + 6 + 1
    texts = {
        "#ffffff": set(re.findall(r"[\";]color:(#\w{6});(?:font|text|margin|word|\")", source)),
        "#12161c": set(re.findall(r"\.(?:ink|muted|link) \{ color: (#\w{6})", source)),
    }
    assert texts["#12161c"] == {"#e4e8ed", "#9ca7b4", "#8db6fa"}
    assert {"#1b2028", "#556070", "#0b55c4"} <= texts["#ffffff"]
    texts["#ffffff"] -= {"#ffffff"}
    for ground, colour in pairs + [(ground, colour) for ground, some in texts.items() for colour in some]:
        assert contrast(ground, colour) >= 4.5, (ground, colour)
