"""The card of the page itself: its exact checks and that what is broken loses them, its protocols, the live list."""

from __future__ import annotations

import json
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from feed.loopback import Asked, loopback
from in_process import Here

from paperworks.feed.evaluation import judged
from paperworks.lab.nouns import MINIMUM_SEEDS, at_tier, resolve
from paperworks.lab.registry import find
from paperworks.lab.report import collect
from paperworks.lab.report.figures import draw_all
from paperworks.lab.runner import run
from paperworks.lab.store import open_store
from paperworks.lab.trial import Trial
from paperworks.papers.protocols import feed_delivery, feed_events, feed_pages
from paperworks.papers.protocols.feed_live import working_day
from paperworks.papers.protocols.feed_requests import read_pages
from paperworks.papers.protocols.feed_retrieval import KINDS, fold
from paperworks.papers.protocols.feed_unsubscribe import header_faults

paper = find("daily-papers")


def unmet(id: str) -> list[str]:
    found = resolve(paper.claim(id).target)(Trial())
    return [name for name, bound in paper.claim(id).bounds.items() if not bound.met(found[name])]


# --- the card ---


def test_facts() -> None:
    assert (paper.arxiv, paper.url) == ("", "")
    assert paper.carried


def test_the_usage_on_the_card_runs(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    page = feed_pages.page_text(feed_pages.carried_papers())
    exec(paper.usage, {"saved_page": page, "page_date": feed_pages.PAGE_DATE})
    assert "SwiFT" in capsys.readouterr().out


def test_every_measured_criterion_has_enough_seeds_and_something_to_lose_to() -> None:
    for claim in paper.claims:
        for criterion in claim.criteria:
            assert at_tier(criterion.seeds, "desk") >= MINIMUM_SEEDS
            assert criterion.control is not None


# --- exact claims ---


@pytest.mark.parametrize("claim", [c for c in paper.claims if c.kind == "exact"], ids=lambda claim: claim.id)
def test_what_is_exact_holds(claim: Any) -> None:
    assert unmet(claim.id) == []


def test_a_parser_that_swallows_an_entry_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = feed_pages.parse_page
    monkeypatch.setattr(feed_pages, "parse_page", lambda text, day: right(text, day)[:-1])
    assert any("entries" in name for name in unmet("page-parser-reads-every-entry"))
    monkeypatch.setattr(feed_pages, "parse_page", lambda text, day: right(text, date(2025, 4, 24)))
    assert any("fields" in name for name in unmet("page-parser-reads-every-entry"))


def test_scores_of_another_half_life_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = feed_events.trending
    monkeypatch.setattr(
        feed_events, "trending", lambda store, now, window, limit: right(store, now, "day", limit=limit)
    )
    lost = unmet("trending-equals-the-sum")
    assert "half-life 72 h: largest difference" in lost
    assert not [name for name in lost if "24 h" in name]


class Forgetful(feed_delivery.Digest):
    """A digest that writes a delivery down only when the mail has been handed over."""

    def send(self, transport: Any, now: Any, dry_run: Any = None) -> Any:
        with self.store.database.read() as connection:
            known = set(connection.scalars(feed_delivery.select(feed_delivery.deliveries.c.subscriber)))
        for subscriber in self.subscriptions.active():
            if subscriber.id not in known and (message := self.build(subscriber, now)) is not None:
                transport.send(message)
        return []


def test_a_mail_that_is_sent_again_is_counted(tmp_path: Path) -> None:
    path, mailbox = tmp_path / "feed.sqlite", tmp_path / "mails"
    feed_delivery._prepare(path, 3)
    for _ in range(2):
        with feed_delivery.Store(path) as store:
            subscriptions = feed_delivery.Subscriptions(store, feed_delivery.SECRET)
            digest = Forgetful(
                store,
                feed_delivery.Search(store),
                subscriptions,
                base_url="https://papers.example",
                sender="p@papers.example",
            )
            digest.send(feed_delivery.Mailbox(mailbox), feed_delivery.NOW)
    assert set(feed_delivery._sent(mailbox).values()) == {2}


HEAD = "From: p@papers.example\r\nTo: a@b.example\r\n"
LINK = "List-Unsubscribe: <https://papers.example/u/abc>, <mailto:u@papers.example?subject=abc>\r\n"
CLICK = "List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"


def test_the_headers_of_rfc_8058_are_told_from_others() -> None:
    assert not any(header_faults(f"{HEAD}{LINK}{CLICK}\r\nText".encode()).values())
    for bad in (
        LINK, CLICK, LINK + LINK + CLICK, LINK.replace("https", "http") + CLICK,
        LINK.replace("<", "").replace(">", "") + CLICK,
        LINK + CLICK.replace("One-Click", "Two-Clicks"), LINK.replace("/u/abc", "/u/a bc") + CLICK,
    ):  # fmt: skip
        assert any(header_faults(f"{HEAD}{bad}\r\n{LINK}{CLICK}".encode()).values()), bad


# --- protocols ---


def test_the_folds_have_no_query_in_common_and_all_kinds_alike() -> None:
    queries = judged("test")
    folds = [fold(queries, 10, number) for number in range(10)]
    texts = [one["query"] for part in folds for one in part]
    assert sorted(texts) == sorted(one["query"] for one in queries)
    for part in folds:
        assert Counter(one["kind"] for one in part) == dict.fromkeys(KINDS, 2)


def test_readers_tell_what_went_wrong() -> None:
    with loopback() as site:
        site.answer = lambda asked: (200, {}, b"page") if asked.path == "/there" else (503, {}, b"")
        seen = read_pages(int(site.url.rpartition(":")[2]), ["/there"], readers=3, each=1, pause=0.0)
        assert (len(seen.seconds), seen.errors, seen.received) == (3, [], 12)
        seen = read_pages(int(site.url.rpartition(":")[2]), ["/gone"], readers=2, each=1, pause=0.0)
        assert seen.errors == [seen.errors[0]] * 2
    seen = read_pages(int(site.url.rpartition(":")[2]), ["/there"], readers=2, each=1, pause=0.0)
    assert len(seen.errors) == 2
    with pytest.raises(ValueError, match="got no answer"):
        seen.milliseconds(0.5)


def test_the_figure_shows_ways_of_searching_and_times(tmp_path: Path) -> None:
    claims = [
        "meaning-and-words-beat-words-alone", "meaning-adds-to-words-and-spelling",
        "search-is-instant-on-the-catalogue",
        "search-is-instant-at-50000",
    ]  # fmt: skip
    with open_store(tmp_path / "lab.sqlite") as store:
        verdicts = run([paper], store, Here(), tier="smoke", claims=claims)
        assert {verdict.status for verdict in verdicts} == {"inconclusive"}
        [drawn] = draw_all(collect(store, [paper]))["daily-papers"]
    assert drawn.missing == ""
    for words in ("words alone", "words and spelling", "misspellings", "nDCG@10", "300 papers", "milliseconds"):
        assert words in drawn.svg


# --- the live list ---


def item(number: int, entered: str) -> dict[str, Any]:
    inner = {"id": f"2604.0{number:04}", "title": f"Paper {number}", "publishedAt": "2026-04-02T09:00:00Z"}
    return {"paper": inner, "title": f"Paper {number}", "publishedAt": f"{entered}T00:00:00Z"}


def answered(asked: Asked) -> tuple[int, dict[str, str], bytes]:
    day = asked.query.get("date", "")
    if asked.path != "/api/daily_papers" or date.fromisoformat(day).weekday() > 4:
        return 404, {}, b""
    return 200, {}, json.dumps([item(n, day) for n in range(3)] if asked.query["p"] == "0" else []).encode()


def live(tmp_path: Path, url: str, **options: Any) -> Any:
    settings = {"daily_url": url, "daily_before": "2026-04-27"}
    with open_store(tmp_path / f"{len(options)}.sqlite") as store:
        [verdict] = run([paper], store, Here(), tier="desk", settings=settings, claims=["live-ingest"], **options)
    return verdict


def test_the_live_list_needs_an_address() -> None:
    [need] = paper.claim("live-ingest").needs
    assert need.missing({}) is not None
    assert need.missing({"daily_url": "file:///etc/passwd"}) is not None
    assert need.missing({"daily_url": "https://huggingface.co"}) is None


def test_the_live_list_is_read_and_one_date_for_two_is_seen(tmp_path: Path) -> None:
    with loopback() as site:
        site.answer = answered
        verdict = live(tmp_path, site.url)
        assert verdict.status == "holds", verdict.reason
        days = sorted({asked.query["date"] for asked in site.asked})
        assert (len(days), days[-1]) == (8, "2026-04-24"), "the last working day before the 27th is Friday the 24th"
        assert live(tmp_path, site.url, control=True).status == "fails"


def test_an_empty_list_does_not_hold(tmp_path: Path) -> None:
    with loopback() as site:
        site.answer = lambda asked: (200, {}, b"[]")
        assert live(tmp_path, site.url).status == "fails"


def test_a_site_that_cannot_be_reached_is_an_error(tmp_path: Path) -> None:
    with loopback() as site:
        site.answer = lambda asked: (400, {}, b'{"error": "Invalid date"}')
        verdict = live(tmp_path, site.url)
    assert verdict.status == "error"
    assert "Invalid date" in verdict.reason


def test_working_days() -> None:
    assert [working_day(date(2026, 4, 27), n) for n in range(6)] == [
        date(2026, 4, 24), date(2026, 4, 23), date(2026, 4, 22), date(2026, 4, 21), date(2026, 4, 20), date(2026, 4, 17)
    ]  # fmt: skip
