"""Reading the daily list from a live site: one working day a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

from paperworks.lab.nouns import Arm, Setting, protocol
from paperworks.lab.trial import Trial

if TYPE_CHECKING:
    from paperworks.feed import PaperRecord

__all__ = ["as_read", "live_ingest", "with_one_date", "working_day"]


def as_read(records: Sequence[PaperRecord]) -> list[PaperRecord]:
    """The records as the client gives them."""
    return list(records)


def with_one_date(records: Sequence[PaperRecord]) -> list[PaperRecord]:
    """What is left of the records where a reader takes the two dates of an item for one."""
    return [replace(record, published=None) for record in records]


def working_day(end: date, number: int) -> date:
    """The `number`-th working day before `end`, 0 being the last: the list has no weekends."""
    day = end - timedelta(days=1)
    while True:
        if day.weekday() < 5:
            if number == 0:
                return day
            number -= 1
        day -= timedelta(days=1)


def _address(value: str) -> None:
    if value and not value.startswith(("http://", "https://")):
        raise ValueError(f"got {value!r}, wanted an address such as https://huggingface.co")


def _iso_day(value: str) -> None:
    try:
        date.fromisoformat(value or "2026-01-01")
    except ValueError:
        raise ValueError(f"got {value!r}, wanted a day such as 2026-04-24") from None


@protocol(
    "live ingest",
    metrics={
        "complete": "share of the day's records that have an arXiv id and both dates; 0 for an empty day",
        "records": "records of the day",
    },
    settings=(
        Setting("daily_url", str, "", "address of the site that serves the daily list", _address),
        Setting("daily_before", str, "", "the days read are those before this one; today if empty", _iso_day),
    ),
    time_limit=300.0,
)
def live_ingest(trial: Trial, arm: Arm) -> dict[str, float]:
    """Read the list of one working day; the arm's target is what a reader makes of the records.

    Raises SourceError where the site cannot be reached, ValueError where it refuses.
    """
    from paperworks.feed import DailyPapersClient

    end = date.fromisoformat(trial.settings["daily_before"] or datetime.now(UTC).date().isoformat())
    day = working_day(end, trial.seed)
    client = DailyPapersClient(trial.settings["daily_url"])
    trial.progress(0.1, f"the list of {day}")
    records = arm.build(client.day(day))
    complete = sum(bool(r.id and r.published and r.first_seen) for r in records)
    return {"complete": complete / len(records) if records else 0.0, "records": float(len(records))}
