"""The templates of the pages, over those of the report, and what they are filled with."""

from __future__ import annotations

import calendar
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import Any
from urllib.parse import quote, urlencode

import jinja2

from paperworks import __version__
from paperworks.lab.report.html import environment as report_environment
from paperworks.lab.report.wording import MONTHS, day
from paperworks.web.arena_plot import arena_plot
from paperworks.web.assets import static
from paperworks.web.models import DayCount, Entry, FeedLink, Listing, Trending
from paperworks.web.periods import WEEKDAYS

SHORT = {"holds": "hold", "fails": "fail", "inconclusive": "open", "not run": "not run", "error": "in error"}
"""What a count of verdicts is called in a listing."""

LONGEST_TEXT = 5000
"""Characters of an abstract in a listing."""

SOURCES = {
    "card": "our card",
    "arxiv": "arXiv",
    "oai": "arXiv (OAI-PMH)",
    "daily": "the daily list",
    "paper": "the daily list's page of the paper",
    "search": "the daily list's search",
    "page": "a saved page",
}
"""Where a field of a record came from."""


@lru_cache(maxsize=1)
def environment() -> jinja2.Environment:
    """The environment of the pages: the report's filters and macros, its templates found after the site's own."""
    report = report_environment()
    assert report.loader is not None
    made = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader("paperworks.web", "templates"), report.loader]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= report.filters | {
        "date": long_date,
        "short_date": short_date,
        "segment": segment,
        "count": count,
        "host": host,
        "by_day": by_day,
        "by_topic": by_topic,
        "moment": moment,
        "reason": reason,
        "shortened": shortened,
        "weekday": weekday,
    }
    made.globals |= report.globals | {
        "SHORT": SHORT,
        "VERSION": __version__,
        "SOURCES": SOURCES,
        "address": address,
        "arena_plot": arena_plot,
        "month_grid": month_grid,
        "month_name": lambda day: day.isoformat()[:7],
        "ranking_tabs": ranking_tabs,
        "static": static,
        "week_name": week_name,
    }
    made.tests |= report.tests
    return made


def render(template: str, **values: Any) -> str:
    """A page as HTML."""
    return environment().get_template(template).render({"query": "", "here": "", "owner": False, **values})


def long_date(when: date | datetime) -> str:
    """``24 April 2026``."""
    return day(when.isoformat())


def short_date(when: date | datetime) -> str:
    """``24 Apr 2026``."""
    return f"{when.day} {MONTHS[when.month - 1][:3]} {when.year}"


def weekday(when: date) -> str:
    """``Friday, 24 April``."""
    return f"{WEEKDAYS[when.weekday()]}, {when.day} {MONTHS[when.month - 1]}"


def moment(when: datetime) -> str:
    """``24 Apr 2026, 13:05 UTC``."""
    when = when.astimezone(UTC)
    return f"{short_date(when)}, {when:%H:%M} UTC"


def count(number: int, one: str, many: str = "") -> str:
    """``1 vote``, ``2 votes``, thousands separated."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def reason(entry: Entry) -> str:
    """Why a search found a paper, without the sentence that the listing shows anyway."""
    said, colon, sentence = entry.why.partition("nearest sentence: ")
    shown = "".join(span.text for span in entry.snippet)
    if not colon or sentence.rstrip("….")[:60] not in shown:
        return entry.why
    return f"{said}meaning" if said else ""


def shortened(text: str) -> str:
    """No more of a text than an abstract has: a source may send any amount, and a page lists fifty."""
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"


def host(address: str) -> str:
    """The host of a web address, without ``www.``, for the text of a link."""
    return address.split("//", 1)[-1].split("/", 1)[0].removeprefix("www.")


def segment(text: str) -> str:
    """`text` as a part of an address; the slash of old arXiv ids stays."""
    return quote(text, safe="/")


def address(path: str, /, **parameters: Any) -> str:
    """`path` with the parameters that have a value, in their order."""
    given = {name: value for name, value in parameters.items() if value not in (None, "", False)}
    written = {name: "yes" if value is True else str(value) for name, value in given.items()}
    return f"{path}?{urlencode(written)}" if written else path


def week_name(day: date) -> str:
    """The ISO week of a date, ``2026-W17``."""
    year, week, _ = day.isocalendar()
    return f"{year}-W{week:02d}"


def month_grid(around: date, days: Iterable[DayCount]) -> dict[str, Any]:
    """The month of a date as the calendar shows it: weeks from Monday, each with its ISO name and seven days, which are
    None outside the month, else ``(date, papers)``; and the months before and after."""
    papers = {one.day: one.papers for one in days}
    year, month = around.year, around.month
    weeks = []
    for row in calendar.Calendar().monthdatescalendar(year, month):
        cells = [(one, papers.get(one, 0)) if one.month == month else None for one in row]
        weeks.append((week_name(row[0]), row[0].isocalendar().week, cells))
    before, after = (year - (month == 1), (month - 2) % 12 + 1), (year + (month == 12), month % 12 + 1)
    return {
        "name": f"{year}-{month:02d}",
        "title": f"{MONTHS[month - 1]} {year}",
        "weeks": weeks,
        "before": f"{before[0]}-{before[1]:02d}",
        "after": f"{after[0]}-{after[1]:02d}",
    }


def ranking_tabs(choices: Mapping[str, str], found: Trending, name: str) -> list[tuple[str, str, bool]]:
    """Text, address and whether it is shown, of the windows or methods that a reader may change to."""
    shown = {"window": found.window, "method": found.method}
    return [
        (text, address("/trending", **{**shown, name: value}), value == shown[name]) for value, text in choices.items()
    ]


def by_day(listing: Listing) -> list[tuple[date | None, list[Entry]]]:
    """The entries under the day on which each entered the feed, in their order.

    One that stood in the feed on another day too, outside the listing, goes with those before it.
    """
    groups: list[tuple[date | None, list[Entry]]] = []
    for entry in listing.entries:
        day = entry.first_seen
        if day is None or not listing.since <= day <= listing.until:
            day = groups[-1][0] if groups else None
        if not groups or groups[-1][0] != day:
            groups.append((day, []))
        groups[-1][1].append(entry)
    return groups


def by_topic(feeds: Iterable[FeedLink]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The feeds as a table: a topic with the format's name and the address of each of its feeds."""
    rows: dict[str, list[tuple[str, str]]] = {}
    for feed in feeds:
        topic, _, kind = feed.title.rpartition(", ")
        rows.setdefault(topic or feed.title, []).append((kind, feed.url))
    return list(rows.items())
