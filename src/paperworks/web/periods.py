"""The days, weeks and months that listings are made for: their names, their limits and what people call them."""

from __future__ import annotations

import calendar
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

from paperworks.lab.report.wording import MONTHS

Kind = Literal["day", "week", "month"]

FIRST, LAST = date(1990, 1, 1), date(2100, 12, 31)
"""Listings are made for dates from the one to the other."""

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


@dataclass(frozen=True)
class Period:
    """A day, an ISO week (from Monday) or a month, in UTC."""

    kind: Kind
    since: date
    until: date

    @property
    def name(self) -> str:
        """``2026-04-24``, ``2026-W17`` or ``2026-04``."""
        if self.kind == "week":
            year, week, _ = self.since.isocalendar()
            return f"{year}-W{week:02d}"
        return self.since.isoformat() if self.kind == "day" else self.since.isoformat()[:7]

    @property
    def path(self) -> str:
        """Path of the page."""
        return f"/{'papers' if self.kind == 'day' else self.kind}/{self.name}"

    @property
    def heading(self) -> str:
        """As people say it."""
        if self.kind == "day":
            return f"{WEEKDAYS[self.since.weekday()]}, {_said(self.since)}"
        if self.kind == "month":
            return f"{MONTHS[self.since.month - 1]} {self.since.year}"
        return f"Week {self.since.isocalendar().week}: {_range(self.since, self.until)}"


def _said(day: date, year: bool = True, month: bool = True) -> str:
    return " ".join([str(day.day), *([MONTHS[day.month - 1]] if month else []), *([str(day.year)] if year else [])])


def _range(since: date, until: date) -> str:
    one_year = since.year == until.year
    return f"{_said(since, not one_year, not (one_year and since.month == until.month))} to {_said(until)}"


def check_date(name: str, day: date) -> date:
    """`day`, where a listing can be of it; else ValueError."""
    if not FIRST <= day <= LAST:
        raise ValueError(f"{name}: got {day.isoformat()}, wanted a date from {FIRST} to {LAST}")
    return day


def day_of(day: date | str) -> Period:
    """The period of a date or of its text ``2026-04-24``. Raises ValueError."""
    if isinstance(day, str):
        day = _parsed("day", r"([0-9]{4})-([0-9]{2})-([0-9]{2})", day, "2026-04-24", date)
    check_date("day", day)
    return Period("day", day, day)


def week_of(week: date | str) -> Period:
    """The ISO week ``2026-W17``, or the one that a date lies in. Raises ValueError."""
    if isinstance(week, str):
        monday = _parsed(
            "week", r"([0-9]{4})-W([0-9]{2})", week, "2026-W17", lambda y, w: date.fromisocalendar(y, w, 1)
        )
    else:
        monday = week - timedelta(days=week.weekday())
    check_date("week", monday)
    return Period("week", monday, monday + timedelta(days=6))


def month_of(month: date | str) -> Period:
    """The month ``2026-04``, or the one that a date lies in. Raises ValueError."""
    if isinstance(month, str):
        month = _parsed("month", r"([0-9]{4})-([0-9]{2})", month, "2026-04", lambda y, m: date(y, m, 1))
    check_date("month", month)
    first = month.replace(day=1)
    return Period("month", first, first.replace(day=calendar.monthrange(first.year, first.month)[1]))


def _parsed(name: str, pattern: str, text: str, example: str, make: Callable[..., date]) -> date:
    match = re.fullmatch(pattern, text)
    try:
        if match is not None:
            return make(*map(int, match.groups()))
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"{name}: got {text[:40]!r}, wanted one such as {example}") from None


PERIODS: dict[Kind, Callable[[date | str], Period]] = {"day": day_of, "week": week_of, "month": month_of}
